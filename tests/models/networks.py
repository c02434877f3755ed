"""Tiny networks with values that give nothing away, and torch layers wrapped into networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class Skip(nn.Module):
    """A chain of layers with a way around it, so that both must agree on the size."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.chain = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map plus what the chain makes of it."""
        return x + self.chain(x)


class TransposedConv(nn.Module):
    """A transposed convolution whose map is cut to whole multiples of its input."""

    def __init__(self, kernel: int, *, stride: int, first: int = 0) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(4, 4, kernel, stride=stride)
        self.stride, self.first = stride, first

    def forward(self, x: Tensor) -> Tensor:
        """Return ``stride`` times as many rows and columns."""
        rows, cols = (slice(self.first, self.first + self.stride * side) for side in x.shape[-2:])
        return self.conv(x)[..., rows, cols]


def _conv(kernel: int | tuple[int, int] = 3, *, out_channels: int = 4, **settings: Any) -> nn.Module:
    return nn.Conv2d(4, out_channels, kernel, **settings)


def _transposed(kernel: int, **settings: Any) -> nn.Module:
    return nn.Sequential(_conv(2, stride=2), nn.ConvTranspose2d(4, 4, kernel, stride=2, **settings))


EXACT_BODIES: dict[str, Callable[[Tensor], Tensor]] = {
    "dilated": _conv(dilation=3, padding=3),
    "even kernel, padded apart": nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), _conv(4)),
    "even window, even kernel": nn.Sequential(
        LocalContextNorm(4, window_cells=4), nn.ZeroPad2d((0, 3, 0, 3)), _conv(4)
    ),
    "one axis": _conv((5, 1), padding=(2, 0)),
    "strided, nearest": nn.Sequential(_conv(stride=2, padding=1), nn.Upsample(scale_factor=2)),
    "stride 3, nearest": Skip(_conv(stride=3), nn.Upsample(scale_factor=3)),
    "strided twice, transposed": nn.Sequential(
        _conv(stride=2, padding=1), _conv(stride=2, padding=1), _conv(padding=1), nn.ConvTranspose2d(4, 4, 4, 4)
    ),
    "transposed 2": _transposed(2),
    "transposed, stride 1": nn.ConvTranspose2d(4, 4, 3, padding=1),
    "average pool 3": nn.AvgPool2d(3, stride=1, padding=1),
    "max pool 3": nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), nn.Upsample(scale_factor=2)),
    "dilated max pool": nn.MaxPool2d(2, stride=1, padding=1, dilation=2),
    "pool along one axis": nn.Sequential(nn.MaxPool2d((2, 1)), nn.Upsample(scale_factor=(2, 1))),
    "nearest-exact": nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="nearest-exact")),
    "pixel shuffle": nn.Sequential(_conv(2, out_channels=16, stride=2), nn.PixelShuffle(2)),
    "padded and cut": lambda x: F.pad(x, (3, 1, 0, 2))[:, :, 1:-1, 4:],
    "cut on all sides": lambda x: x[..., 2:-2, 2:-2],
    "sum of two ways": lambda x: F.avg_pool2d(x, 3, 1, 1) + F.max_pool2d(x, 5, 1, 2),
    "two ways side by side": lambda x: torch.cat([x, F.avg_pool2d(x, 7, 1, 3)], dim=1),
    "over channels": lambda x: x.softmax(1) + x.mean(1, keepdim=True) + x.sum(1, keepdim=True),
    "the greater of two": lambda x: torch.maximum(x, F.avg_pool2d(x, 3, 1, 1).clamp(min=0)),
    "torch's batch norm": nn.BatchNorm2d(4),
    "pointwise": nn.Sequential(nn.PReLU(), nn.GELU(), nn.Dropout2d(), nn.LeakyReLU(inplace=True)),
}
"""What is put into a `Network`: the geometry knows to the pixel how far these see."""

ROUNDED_BODIES: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear 2": nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")),
    "bilinear 3": Skip(_conv(stride=3), nn.Upsample(scale_factor=3, mode="bilinear")),
    "bilinear 4": nn.Sequential(_conv(4, stride=4), nn.Upsample(scale_factor=4, mode="bilinear")),
    "transposed 3": _transposed(3, padding=1, output_padding=1),
    "transposed 4": _transposed(4, padding=1),
    "transposed, dilated": _transposed(3, padding=2, dilation=2, output_padding=1),
    "transposed 5, stride 3": Skip(_conv(stride=3), TransposedConv(5, stride=3, first=1)),
}
"""Of these it knows it up to a stride: phases that see less are counted like the one that sees most."""
