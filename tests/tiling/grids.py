"""Plans of any kind, and rasters held in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from geonorm.raster.read import Pixels
from geonorm.raster.window import Window
from geonorm.tiling.plan import Network, Plan


@st.composite
def networks(draw: st.DrawFn, *, max_stride_px: int = 8, max_margin_px: int = 9) -> Network:
    """Return what some network asks for; the smallest side leaves at least one pixel of output."""
    margin_px = draw(st.integers(0, max_margin_px))
    return Network(
        stride_px=draw(st.integers(1, max_stride_px)),
        margin_px=margin_px,
        least_px=2 * margin_px + draw(st.integers(1, 12)),
    )


@st.composite
def plans(draw: st.DrawFn, *, max_side_px: int = 150, min_core_px: int = 1, max_phases: int = 8) -> Plan:
    """Return a plan of any sizes, anywhere in the world, at one or several phases."""
    network = draw(networks())
    phases = [k for k in range(1, min(network.stride_px, max_phases) + 1) if network.stride_px % k == 0]
    least_cells = -(-min_core_px // network.stride_px)
    where = st.one_of(st.integers(-20, 20), st.integers(-(10**8), 10**8))
    return Plan(
        height=draw(st.integers(1, max_side_px)),
        width=draw(st.integers(1, max_side_px)),
        core_px=network.stride_px * draw(st.integers(least_cells, max(least_cells, 70 // network.stride_px))),
        halo_px=draw(st.integers(0, 40)),
        network=network,
        first_index=(draw(where), draw(where)),
        grid_offset_px=(draw(where), draw(where)),
        phases=draw(st.sampled_from(phases)),
    )


def reader(
    values: NDArray[np.generic],
    *,
    value_valid: NDArray[np.bool_] | None = None,
    on_read: Callable[[Window], None] = lambda window: None,
) -> Callable[[Window], Pixels]:
    """Return what reads windows of an array (C, H, W); they must lie inside it."""
    height, width = values.shape[1:]
    counts = np.ones(values.shape, dtype=bool) if value_valid is None else value_valid

    def read(window: Window) -> Pixels:
        assert 0 <= window.row < window.row_end <= height
        assert 0 <= window.col < window.col_end <= width
        on_read(window)
        where = np.s_[:, window.row : window.row_end, window.col : window.col_end]
        return Pixels(values[where], counts[where], np.logical_or.reduce(counts[where], axis=0))

    return read
