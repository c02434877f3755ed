"""Rasters that are drawn for a test, 60 x 90 pixels unless more is needed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

UTM = CRS.from_epsg(32633)
RESOLUTION_M = 0.3


def place(first_index: tuple[int, int], *, resolution_m: float = RESOLUTION_M) -> Affine:
    """Return the transform of a raster whose first pixel has this row and column in the world."""
    row, col = first_index
    return Affine(resolution_m, 0, col * resolution_m, 0, -resolution_m, -row * resolution_m)


def noise(bands: int, height: int = 60, width: int = 90, *, dtype: str = "uint8") -> NDArray[Any]:
    """Return random values, none of which is 0."""
    return np.random.default_rng(0).integers(1, 256, (bands, height, width)).astype(dtype)


def draw(
    path: Path,
    values: NDArray[Any],
    *,
    first_index: tuple[int, int] = (-17_666_664, 1_333_332),
    resolution_m: float = RESOLUTION_M,
    **options: Any,
) -> Path:
    """Write a raster with rasterio alone."""
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    where = {"crs": UTM, "transform": place(first_index, resolution_m=resolution_m)}
    # MINISBLACK: else GDAL tags a fourth band as alpha.
    with rasterio.open(path, "w", driver="GTiff", photometric="minisblack", **{**where, **shape, **options}) as new:
        new.write(values)
    return path


def labels_in(path: Path) -> NDArray[np.uint8]:
    """Return the labels of a map (H, W), without plain rasterio's word about missing transforms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            return dataset.read(1)
