"""A part of a raster as a raster of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from geonorm.raster.closing import Closing
from geonorm.raster.grid import Grid
from geonorm.raster.read import Pixels, RasterSource
from geonorm.raster.window import Window


class Cropped(Closing):
    """The pixels of a window of another source, as a file cut out of it would give them.

    Raises:
        ValueError: The window reaches beyond the source.
    """

    def __init__(self, source: RasterSource, window: Window) -> None:
        window.check_inside(source.grid.height, source.grid.width)
        self._source = source
        self._window = window
        self._grid = source.grid.cropped(window)

    @property
    def path(self) -> str:
        """Name for messages."""
        return self._source.path

    @property
    def grid(self) -> Grid:
        """Where its pixels lie."""
        return self._grid

    @property
    def bands(self) -> tuple[int, ...]:
        """The bands that are read, counted from 1."""
        return self._source.bands

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self._source.dtype

    @property
    def count(self) -> int:
        """Number of bands there are."""
        return self._source.count

    @property
    def block_shape(self) -> tuple[int, int]:
        """Rows and columns of the blocks in which the whole source is stored."""
        return self._source.block_shape

    @property
    def resolution(self) -> float | None:
        """Ground size of a pixel in metres."""
        return self._grid.resolution_m

    def read(self, window: Window) -> Pixels:
        """Return what ``window`` holds; it must lie inside the part."""
        window.check_inside(self._window.height, self._window.width)
        return self._source.read(self._there(window))

    def holds_data(self, window: Window) -> bool:
        """Whether a pixel of ``window`` may be valid; False only where that is sure without reading."""
        return self._source.holds_data(self._there(window))

    def reopen(self) -> Cropped:
        """Return an independent source of the same pixels, for another thread."""
        return Cropped(self._source.reopen(), self._window)

    def close(self) -> None:
        """Close the files of the whole source."""
        self._source.close()

    def _there(self, window: Window) -> Window:
        return Window(self._window.row + window.row, self._window.col + window.col, window.height, window.width)
