"""How much each tile counts where several overlap: for networks whose answers depend on the tile."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from geonorm.tiling.plan import Axis, Plan, Span

Blend = Literal["none", "linear", "hann"]


def blend_px(plan: Plan) -> int:
    """Return how far a tile reaches into its neighbours: its halo, but never more than half a core.

    So a pixel lies in at most two tiles along each axis, and a strip can be finished once the next row of tiles is.
    """
    axis = plan.axes[0]
    return min(axis.aligned_halo_px - plan.network.margin_px, plan.core_px // 2)


def blend_weights(blend: Blend, core_px: int, reach_px: int) -> Tensor:
    """Return the weights along one side of a tile that covers a core and ``reach_px`` pixels on both sides of it.

    They rise over the first ``2 * reach_px`` pixels and fall over the last, in a straight line or as a Hann window
    does, and are 1 between. Neighbours' weights add up to 1. None is zero, so that a pixel which only one tile sees
    keeps that tile's value once it is divided by the sum.

    Args:
        blend: ``"linear"``, ``"hann"``, or ``"none"``: 1 within the core, and no reach.
        core_px: Side of the core.
        reach_px: ``0 <= reach_px <= core_px / 2``.

    Returns:
        Weights in ``(0, 1]``, shape ``(core_px + 2 * reach_px,)``, float32.

    Example:
        >>> blend_weights("linear", 4, 1)
        tensor([0.2500, 0.7500, 1.0000, 1.0000, 0.7500, 0.2500])
    """
    length = core_px + 2 * reach_px
    if blend == "none" or reach_px == 0:
        return torch.ones(length)
    rise = ((torch.arange(length) + 0.5) / (2 * reach_px)).clamp(max=1.0)
    if blend == "hann":
        rise = torch.sin(rise * math.pi / 2) ** 2
    return torch.minimum(rise, rise.flip(0))


def reach_of(span: Span, axis: Axis, reach_px: int) -> tuple[int, int, int]:
    """Return where the pixels that a tile contributes to begin and end, inside the raster, and its first weight."""
    first = _grid_start(span, axis) - reach_px
    start, stop = max(0, first), min(axis.length, first + axis.core_px + 2 * reach_px)
    return start, stop, start - first


def _grid_start(span: Span, axis: Axis) -> int:
    """Return where the core of a span begins on the grid, were it not cut at the raster's edge."""
    return (span.core_start + axis.index) // axis.core_px * axis.core_px - axis.index
