"""Raw band values in, standardized values out: the only place where values are scaled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError


class Rescale(nn.Module):
    """Subtract each band's mean and divide by its deviation; both are buffers of shape ``(C,)``.

    A pixel that holds the mean becomes exactly 0: this is how pixels without data enter the network. Numbers that are
    given here (a user's, or those of pretrained weights) stay; the statistics of the data fill in only what is not.

    Attributes:
        given: Which of the two were given: ``"mean"``, ``"deviation"``.

    Args:
        in_channels: Bands C.
        mean: Mean of each band's raw values; 0 where None.
        deviation: Deviation of each band's raw values, greater than 0; 1 where None.

    Raises:
        InvalidConfigError: Not one number per band, or a deviation that is not greater than 0.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        in_channels: int,
        *,
        mean: Sequence[float] | None = None,
        deviation: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.given = {name for name, values in (("mean", mean), ("deviation", deviation)) if values is not None}
        mean = [0.0] * in_channels if mean is None else list(mean)
        deviation = [1.0] * in_channels if deviation is None else list(deviation)
        for name, values in (("mean", mean), ("deviation", deviation)):
            if len(values) != in_channels:
                raise InvalidConfigError(
                    f"{name} needs one number per band, got {len(values)} numbers for {in_channels} bands."
                )
        if not all(value > 0 for value in deviation):
            raise InvalidConfigError(f"Deviations must be greater than 0, got {deviation}.")
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))

    def forward(self, image: Tensor) -> Tensor:
        """Standardize ``image``, raw band values of shape ``(N, C, H, W)``."""
        if image.dim() != 4 or image.shape[1] != len(self.mean):
            raise InvalidConfigError(f"The model takes images (N, {len(self.mean)}, H, W), got {tuple(image.shape)}.")
        return (image - self.mean[:, None, None]) / self.deviation[:, None, None]


def raw_noise(rescale: Rescale, *shape: int) -> Tensor:
    """Return raw values about the mean, ``(N, C, H, W)``, on the CPU: always the same."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    mean, deviation = (values.detach().cpu()[:, None, None] for values in (rescale.mean, rescale.deviation))
    return mean + deviation * noise


def rescale_of(network: nn.Module) -> Rescale:
    """Return the module that scales a network's input.

    Raises:
        InvalidConfigError: The network has none.
    """
    rescale = next((module for module in network.modules() if isinstance(module, Rescale)), None)
    if rescale is None:
        raise InvalidConfigError(
            f"{type(network).__name__} has no Rescale; give a network that takes raw band values and scales them first."
        )
    return rescale
