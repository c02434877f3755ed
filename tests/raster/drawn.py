"""Rasters drawn with rasterio alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

HEIGHT, WIDTH = 60, 90
UTM = CRS.from_epsg(32633)
PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)


def draw(
    path: Path,
    values: NDArray[Any],
    *,
    alpha_band: int | None = None,
    mask: NDArray[np.bool_] | None = None,
    tags: dict[str, str] | None = None,
    crs: CRS | None = UTM,
    transform: Affine | None = PLACE,
    **options: Any,
) -> Path:
    """Write a raster with rasterio alone; the file's own mask follows ``GDAL_TIFF_INTERNAL_MASK``."""
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # where it is meant to be nowhere
        dataset = rasterio.open(
            path, "w", driver="GTiff", crs=crs, transform=transform, photometric="minisblack", **shape, **options
        )
    with dataset:
        if alpha_band is not None:
            tagged = {alpha_band: ColorInterp.alpha}
            dataset.colorinterp = [tagged.get(band, ColorInterp.undefined) for band in range(1, count + 1)]
        dataset.update_tags(**(tags or {}))
        dataset.write(values)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def noise(*shape: int, low: int = 1, high: int = 256, dtype: str = "uint8") -> NDArray[Any]:
    """Return random values, none of which is 0 unless ``low`` says so."""
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def blob() -> NDArray[np.bool_]:
    """Return a mask (H, W) with a hole that touches no border."""
    valid = np.ones((HEIGHT, WIDTH), dtype=bool)
    valid[10:25, 40:80] = False
    return valid
