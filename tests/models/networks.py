"""Tiny networks with values that give nothing away, and torch layers wrapped into networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from geonorm.models import Rescale, UNet
from geonorm.norms import BatchNorm, LocalContextNorm, NormFactory

Net = TypeVar("Net", bound=nn.Module)


def no_norm(num_features: int, *, stride: int) -> nn.Module:
    """Make no norm."""
    return nn.Identity()


def local(**window: Any) -> NormFactory:
    """Make a local norm of two channels a group, which suits the narrowest networks."""
    return partial(LocalContextNorm, group_size=2, **window)


def unet(norm: NormFactory = BatchNorm, *, bands: int = 3, num_classes: int = 2, **settings: Any) -> UNet:
    """Return a small U-Net in evaluation, its running statistics and its scaling filled like all else."""
    settings = {"depth": 1, "width": 4, **settings}
    return with_random_values(UNet(bands, num_classes, norm=norm, **settings)).eval()


class Network(nn.Module):
    """Rescale, a 1 x 1 convolution and what is to be looked at: a layer or a function of the map."""

    def __init__(self, body: Callable[[Tensor], Any], *, bands: int = 3, channels: int = 4) -> None:
        super().__init__()
        self.rescale = Rescale(bands)
        self.stem = nn.Conv2d(bands, channels, kernel_size=1)
        self.body = body

    def forward(self, image: Tensor) -> Any:
        """Return what ``body`` makes of a map of the image's size."""
        return self.body(self.stem(self.rescale(image)))


def with_random_values(network: Net, *, seed: int = 0, positive: bool = False) -> Net:
    """Fill weights, biases and statistics with random numbers; those of convolutions positive, if wanted."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            last = name.rpartition(".")[-1]
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            if value.dim() == 4:  # a convolution: keep the deviation
                fan_in = value[0].numel()
                value.copy_(noise / fan_in if positive else (noise - 0.5) * (12 / fan_in) ** 0.5)
            elif name == "rescale.mean":
                value.copy_(100 + 40 * noise)
            elif name == "rescale.deviation":
                value.copy_(30 + 40 * noise)
            elif value.is_floating_point():
                value.copy_(noise + 0.5 if last in {"weight", "running_var"} else noise - 0.5)
    return network


def random_image(
    *shape: int, seed: int = 0, low: int = 0, high: int = 256, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return whole numbers in [low, high), the same for the same seed."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
