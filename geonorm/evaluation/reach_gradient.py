"""How much each pixel of the input moves the answer at an output pixel: where the gradient lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from geonorm.models.geometry import trial
from geonorm.models.predictor import evaluating
from geonorm.models.rescale import rescale_of

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Mass:
    """The size of the gradient by where the input pixel lies, for some output pixels.

    In logits per deviation of a band, summed over the bands. Distances are the larger of rows and columns, as halos
    are squares.
    """

    by_offset: Values = field(repr=False)
    """Mean over the output pixels, ``(2 * radius + 1, 2 * radius + 1)``: the output pixel is in the middle."""
    by_distance: Values = field(repr=False)
    """Sum over the input pixels at each distance from 0 on, for each output pixel, ``(pixels, radius + 1)``."""

    @property
    def radius_px(self) -> int:
        """How far was looked."""
        return self.by_distance.shape[1] - 1

    @property
    def share_beyond(self) -> Values:
        """Share of the mean mass beyond each distance, ``(radius + 1,)``; NaN where there is no gradient at all."""
        return shares_beyond(self.by_distance.mean(0))

    def distance_px(self, share: float) -> int | None:
        """Return the least distance that holds a share of the mean mass; None where there is no gradient at all."""
        return distance_holding(self.by_distance.mean(0), share)

    def furthest_px(self, share: float) -> int | None:
        """Return the same for the output pixel that sees furthest."""
        found = (distance_holding(pixel, share) for pixel in self.by_distance)
        return max((distance for distance in found if distance is not None), default=None)


class MassSum:
    """Running sums over output pixels."""

    def __init__(self, radius_px: int) -> None:
        """Begin with none; what lies further than ``radius_px`` from an output pixel is left out."""
        self._radius_px = radius_px
        self._by_offset = np.zeros((2 * radius_px + 1, 2 * radius_px + 1))
        self._by_distance: list[Values] = []
        steps = np.abs(np.arange(-radius_px, radius_px + 1))
        self._distance = np.maximum(steps[:, None], steps)

    def add(self, sizes: Tensor, row: int, col: int) -> None:
        """Add an output pixel that stands at a row and column of its input; ``sizes`` is ``(h, w)``."""
        found = np.zeros_like(self._by_offset)
        here, there = zip(*map(self._overlap, sizes.shape, (row, col)), strict=True)
        found[here] = sizes.cpu().numpy()[there]
        self._by_offset += found
        self._by_distance.append(np.bincount(self._distance.ravel(), found.ravel()).astype(np.float64))

    def mean(self) -> Mass:
        """Return what was found of the pixels so far, at least one."""
        return Mass(by_offset=self._by_offset / len(self._by_distance), by_distance=np.stack(self._by_distance))

    def _overlap(self, length: int, centre: int) -> tuple[slice, slice]:
        """Return the part of an axis that is near enough: among the offsets, and in the input."""
        start, stop = max(0, centre - self._radius_px), min(length, centre + self._radius_px + 1)
        shift = self._radius_px - centre
        return slice(start + shift, stop + shift), slice(start, stop)


def gradient_sizes(network: nn.Module, image: Tensor, at: tuple[int, int]) -> Tensor:
    """Return how much the answer at one output pixel changes with each pixel of the input, ``(h, w)``.

    The answer is the lead of its class: the highest logit less the second. It says when the label changes, and unlike a
    single logit it stays the same if a number is added to all of them. The size is that of its gradient, times the
    deviation of the band, summed over the bands.

    Args:
        network: Raw band values in, logits out; its parameters are not touched.
        image: Raw band values ``(1, C, h, w)``.
        at: Row and column of the pixel in the output.
    """
    rescale = rescale_of(network)
    image = image.to(rescale.mean.device).to(torch.float32).detach().requires_grad_()
    # Without gradients of their own, which would take a third of the time.
    weights = {name: value.detach() for name, value in network.named_parameters()}
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with evaluating(network), torch.enable_grad(), exact:
        logits = functional_call(network, weights, (image,))[0, :, at[0], at[1]]
        first, second = logits.topk(2).values
        lead = first - second
        if not lead.requires_grad:  # nothing but steps on the way
            return torch.zeros_like(image[0, 0])
        (gradient,) = torch.autograd.grad(lead, image)
    return (gradient[0].abs() * rescale.deviation[:, None, None]).sum(0)


def gradient_bytes(network: nn.Module, side_px: int) -> int:
    """Return how many bytes of maps a network keeps for the gradient of its input; nothing is computed."""
    ghost, image = trial(network)
    image = torch.empty(1, image.shape[1], side_px, side_px, device="meta", requires_grad=True)
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage()._cdata] = value  # held, so that no other gets its address
        return value

    weights = {name: value.detach() for name, value in ghost.named_parameters()}
    own = {value.untyped_storage()._cdata for value in (*weights.values(), *ghost.buffers())}
    with torch.enable_grad(), saved_tensors_hooks(keep, lambda value: value):
        logits = functional_call(ghost, weights, (image,))
    del logits
    return sum(value.untyped_storage().nbytes() for address, value in kept.items() if address not in own)


def shares_beyond(by_distance: Sequence[float] | Values) -> Values:
    """Return the share of a mass that lies beyond each distance; NaN where there is none.

    Example:
        >>> shares_beyond([2, 1, 1]).tolist()
        [0.5, 0.25, 0.0]
    """
    # From the far end: the little that lies there is not lost in the sum.
    outward = np.cumsum(np.asarray(by_distance, np.float64)[::-1])[::-1]
    total = outward[0] if outward[0] > 0 else np.nan
    return np.append(outward[1:], 0.0) / total


def distance_holding(by_distance: Sequence[float] | Values, share: float) -> int | None:
    """Return the least distance within which a share of a mass lies; None where there is no mass.

    Example:
        >>> distance_holding([2, 1, 1], 0.75)
        1
    """
    within = 1 - shares_beyond(by_distance)
    return None if np.isnan(within[0]) else int(np.argmax(within >= share))
