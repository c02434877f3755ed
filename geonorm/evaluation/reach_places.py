"""Where a raster is looked at: places spread evenly over it, the same at every run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from geonorm.tiling.plan import Axis, Plan, Span

Point = tuple[float, float, float, float]


def points() -> Iterator[Point]:
    """Yield points of the unit cube of four dimensions that fill it evenly, however many are taken (Sobol).

    Of the first ``4^k`` points, each cell of a ``2^k`` x ``2^k`` grid over the first two dimensions holds one.
    """
    engine = torch.quasirandom.SobolEngine(4)
    while True:
        first, second, third, fourth = engine.draw(1)[0].tolist()
        yield first, second, third, fourth


def core_at(plan: Plan, point: Point) -> tuple[int, int]:
    """Return the first row and column of a core of the plan's size, by the last two numbers of a point.

    It begins where cells of the network do, and lies as far from the edges of the raster as the halo reaches, or in the
    middle half of the places there are if the halo would leave less.
    """
    rows, cols = plan.axes
    return _start(rows, point[2]), _start(cols, point[3])


def pixel_in(plan: Plan, core: tuple[int, int], point: Point) -> tuple[int, int]:
    """Return the row and column of a pixel of a core, by the first two numbers of a point."""
    return core[0] + int(point[0] * plan.core_px), core[1] + int(point[1] * plan.core_px)


def spans_at(plan: Plan, core: tuple[int, int]) -> tuple[Span, Span]:
    """Return the rows and the columns of the core that begins at a row and column where cells of the network do."""
    index_row, index_col = plan.first_index
    rows, cols = replace(plan, grid_offset_px=(index_row + core[0], index_col + core[1])).axes
    return _span_from(rows, core[0]), _span_from(cols, core[1])


def _span_from(axis: Axis, start: int) -> Span:
    return next(span for span in axis.spans() if span.core_stop > max(0, start))


def _start(axis: Axis, share: float) -> int:
    """Return where a core begins, a share of the way along the places there are."""
    stride = axis.network.stride_px
    first = -axis.index % stride
    if first + axis.core_px > axis.length:  # no core lies wholly inside
        return first - stride if first else 0
    steps = (axis.length - axis.core_px - first) // stride
    inset = min(-(-axis.halo_px // stride), steps // 4)
    return first + stride * (inset + int(share * (steps - 2 * inset + 1)))
