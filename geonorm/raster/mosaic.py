"""Rasters of one grid, read as one."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.raster.closing import Closing
from geonorm.raster.grid import Grid
from geonorm.raster.read import Pixels, RasterSource
from geonorm.raster.window import Window

MAX_OPEN = 64  # files at a time: macOS lends a process 256, and several threads may read
SAME_PX = 0.01  # by which pixels of one grid may lie apart
SAME_SIZE = 1e-6  # by which their sides may differ, relatively


class Mosaic(Closing):
    """Rasters of one grid that are read as one; closed ones will do, they are opened when they are needed.

    A pixel is that of the first raster, in the order given, in which it is valid. What no raster holds is invalid,
    with the value 0.

    Attributes:
        sources: The rasters. They stay the caller's, who may close them.
        grid: The grid of all of them, as far as the rectangle around them reaches.
        places: Where each raster lies in that rectangle.
        path: The first raster, and how many more there are.
        bands: The bands that are read, counted from 1.
        dtype: Type of the values.
        count: Number of bands that every raster has.
        block_shape: Rows and columns of the blocks in which the first raster is stored.
    """

    def __init__(self, sources: Sequence[RasterSource]) -> None:
        if not sources:
            raise InvalidConfigError("a mosaic needs at least one raster, got none.")
        first = sources[0]
        for source in sources[1:]:
            if not _may_join(first, source):
                raise RasterError(
                    f"{source.path} and {first.path} differ in grid, bands or type, so they cannot be read as one. "
                    "Label them apart, or bring them to one grid with gdalwarp -tap -tr."
                )
        self.sources = tuple(sources)
        offsets = [(0, 0), *(_offset(first.grid, source.grid) or (0, 0) for source in sources[1:])]
        row, col = (min(starts) for starts in zip(*offsets, strict=True))
        self.places = tuple(
            Window(top - row, left - col, source.grid.height, source.grid.width)
            for (top, left), source in zip(offsets, sources, strict=True)
        )
        height, width = max(place.row_end for place in self.places), max(place.col_end for place in self.places)
        # The corner's own transform, where there is a raster, has no rounding of ours.
        corners = (
            source.grid for source, place in zip(sources, self.places, strict=True) if place.row == place.col == 0
        )
        corner = next(corners, None) or first.grid.cropped(Window(row, col, height, width))
        self.grid = first.grid if len(sources) == 1 else corner.cropped(Window(0, 0, height, width))
        self.path = first.path if len(sources) == 1 else f"{first.path} and {len(sources) - 1} more"
        self.bands, self.dtype, self.block_shape = first.bands, first.dtype, first.block_shape
        self.count = min(source.count for source in sources)
        self._rectangles = np.array([[p.row, p.row_end, p.col, p.col_end] for p in self.places])
        self._opened: OrderedDict[int, RasterSource] = OrderedDict()

    @property
    def resolution(self) -> float | None:
        """Ground size of a pixel in metres, as ``grid.resolution_m``."""
        return self.grid.resolution_m

    def read(self, window: Window) -> Pixels:
        """Return what ``window`` holds; it must lie inside the mosaic."""
        window.check_inside(self.grid.height, self.grid.width)
        parts = list(self._parts(window))
        if len(parts) == 1 and parts[0][1] == window:
            return self._read(*parts[0])
        shape = len(self.bands), window.height, window.width
        values, value_valid = np.zeros(shape, dtype=self.dtype), np.zeros(shape, dtype=bool)
        valid, held = np.zeros(shape[1:], dtype=bool), np.zeros(shape[1:], dtype=bool)
        for index, part in parts:
            at = np.s_[
                part.row - window.row : part.row_end - window.row, part.col - window.col : part.col_end - window.col
            ]
            if valid[at].all():
                continue
            pixels = self._read(index, part)
            taken = ~held[at] | (pixels.valid & ~valid[at])
            np.copyto(values[:, *at], pixels.values, where=taken)
            np.copyto(value_valid[:, *at], pixels.value_valid, where=taken)
            valid[at] |= pixels.valid
            held[at] = True
        return Pixels(values, value_valid, valid)

    def holds_data(self, window: Window) -> bool:
        """Whether a pixel of ``window`` may be valid; False where no raster lies."""
        return any(self.sources[index].holds_data(self._inside(index, part)) for index, part in self._parts(window))

    def reopen(self) -> Mosaic:
        """Return an independent mosaic of the same rasters, for another thread."""
        return Mosaic(self.sources)

    def close(self) -> None:
        """Close the files that are open."""
        while self._opened:
            self._opened.popitem()[1].close()

    def _parts(self, window: Window) -> Iterator[tuple[int, Window]]:
        """Yield the rasters that meet ``window``, and what they share with it."""
        top, bottom, left, right = self._rectangles.T
        meets = (top < window.row_end) & (bottom > window.row) & (left < window.col_end) & (right > window.col)
        for index in np.flatnonzero(meets).tolist():
            yield index, self.places[index].intersection(window)

    def _inside(self, index: int, part: Window) -> Window:
        place = self.places[index]
        return part.shifted(-place.row, -place.col)

    def _read(self, index: int, part: Window) -> Pixels:
        return self._open(index).read(self._inside(index, part))

    def _open(self, index: int) -> RasterSource:
        """Return an open raster, and close the one that was not needed for longest."""
        if index not in self._opened:
            if len(self._opened) >= MAX_OPEN:
                self._opened.popitem(last=False)[1].close()
            source = self.sources[index].reopen()
            self._opened[index] = source
            if source.grid != self.sources[index].grid:
                raise RasterError(f"{source.path} was replaced by another raster while it was read. Start again.")
        self._opened.move_to_end(index)
        return self._opened[index]


def same_grid(a: Grid, b: Grid) -> bool:
    """Whether the pixels of two rasters are those of one grid: CRS, size, direction and phase.

    They are where no pixel of one lies more than a hundredth of a pixel beside one of the other's grid. Rasters
    without a transform share no grid.
    """
    return _offset(a, b) is not None


def group_neighbours(sources: Sequence[RasterSource], *, gap_px: int = 1024) -> list[list[int]]:
    """Return the rasters that are to be read as one: groups of indices, in the order of their first raster.

    Rasters are in one group if they have one grid, the same bands and type, and neighbours of neighbours lie at most
    ``gap_px`` pixels apart. Closed ones will do.

    Args:
        sources: The rasters.
        gap_px: Pixels between two rasters, in rows and in columns, that still make them neighbours.
    """
    grids: list[tuple[RasterSource, list[int], list[tuple[int, int]]]] = []
    for index, source in enumerate(sources):
        for first, members, offsets in grids:
            if _may_join(first, source):
                members.append(index)
                offsets.append(_offset(first.grid, source.grid) or (0, 0))
                break
        else:
            grids.append((source, [index], [(0, 0)]))
    groups = []
    for _, members, offsets in grids:
        sizes = [(sources[index].grid.height, sources[index].grid.width) for index in members]
        parts = _connected(np.array(offsets), np.array(sizes), gap_px)
        groups += [[members[position] for position in part] for part in parts]
    return sorted(groups)


def _may_join(a: RasterSource, b: RasterSource) -> bool:
    return a.bands == b.bands and a.dtype == b.dtype and same_grid(a.grid, b.grid)


def _offset(a: Grid, b: Grid) -> tuple[int, int] | None:
    """Return the row and column in ``a`` of the first pixel of ``b``, None if they have no common grid.

    It follows from the difference of their corners. Indices counted from the origin of the CRS are each rounded, and
    by another amount where the origin lies far away.
    """
    s, t = a.transform, b.transform
    if not (a.has_transform and b.has_transform) or not all(map(math.isfinite, (*s, *t))) or s.is_degenerate:
        return None

    def in_pixels(x: float, y: float) -> tuple[float, float]:
        return (s.a * y - s.d * x) / s.determinant, (s.e * x - s.b * y) / s.determinant

    row, col = in_pixels(t.c - s.c, t.f - s.f)
    down, right = in_pixels(t.b, t.e), in_pixels(t.a, t.d)  # (1, 0) and (0, 1) if the pixels are the same
    if not all(map(math.isfinite, (row, col, *down, *right))):
        return None
    # How much longer, or turned, a pixel of b is adds up over all the pixels between two places.
    stretch = max(abs(down[0] - 1), abs(down[1]), abs(right[0]), abs(right[1] - 1))
    span_px = max(a.height, a.width, b.height, b.width, abs(row), abs(col))
    apart_px = max(abs(row - round(row)), abs(col - round(col)))
    if stretch > SAME_SIZE or stretch * span_px > SAME_PX or apart_px > SAME_PX or a.crs != b.crs:
        return None
    return round(row), round(col)


def _connected(offsets: NDArray[Any], sizes: NDArray[Any], gap_px: int) -> list[list[int]]:
    """Return which rectangles hang together, as sorted lists of their positions."""
    starts, ends = offsets, offsets + sizes
    left = np.ones(len(starts), dtype=bool)
    parts = []
    while left.any():
        found = [int(left.argmax())]
        left[found[0]] = False
        for index in found:  # which grows meanwhile
            near = (np.maximum(starts - ends[index], starts[index] - ends) <= gap_px).all(axis=1) & left
            left &= ~near
            found += np.flatnonzero(near).tolist()
        parts.append(sorted(found))
    return parts
