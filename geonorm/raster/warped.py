"""A raster read on the grid of another: each pixel has the value of the one that holds its centre."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import rasterio
import rasterio.windows
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geonorm.errors import RasterError
from geonorm.raster.closing import Closing
from geonorm.raster.grid import Grid
from geonorm.raster.read import GDAL_ERRORS, check_readable, gdal_said
from geonorm.raster.window import Window


class Warped(Closing):
    """The first band of a raster on the grid of another; close it, or use it in a ``with`` statement.

    Args:
        path: The raster.
        grid: The grid to read it on.

    Raises:
        RasterError: It cannot be read, or brought to the grid.
    """

    def __init__(self, path: str | os.PathLike[str], grid: Grid) -> None:
        self.path, self.grid = os.fspath(path), grid
        check_readable(path)
        self._dataset = rasterio.open(path)
        try:
            self._warped = WarpedVRT(
                self._dataset,
                crs=grid.crs,
                transform=grid.transform,
                height=grid.height,
                width=grid.width,
                resampling=Resampling.nearest,
                add_alpha=self._dataset.nodata is None,
            )
        except GDAL_ERRORS as error:
            self._dataset.close()
            raise RasterError(f"{self.path} cannot be brought to another grid: {gdal_said(error)}") from error

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return values and whether there is one, both ``(rows, cols)``; outside the raster there is none."""
        window.check_inside(self.grid.height, self.grid.width)
        area = rasterio.windows.Window(window.col, window.row, window.width, window.height)
        try:
            return self._warped.read(1, window=area), self._warped.dataset_mask(window=area) != 0
        except GDAL_ERRORS as error:
            raise RasterError(f"{self.path} cannot be read: {gdal_said(error)}") from error

    def close(self) -> None:
        """Close the file."""
        self._warped.close()
        self._dataset.close()
