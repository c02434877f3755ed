"""Where a raster lies on the earth, so that rasters of different coordinate systems can be held against each other."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
import shapely  # type: ignore[import-untyped]  # ships no types

from geonorm.raster.grid import Grid

EDGE_PARTS = 8
"""Parts of each edge whose ends are brought to longitude and latitude."""


def footprint(grid: Grid, crs_wkt: str | None = None) -> Any:
    """Return the outline of a raster as a polygon, None where it is not known or not usable.

    Args:
        grid: The raster's.
        crs_wkt: Coordinate system of the polygon; longitude and latitude on WGS 84 by default.
    """
    if grid.crs is None or not grid.has_transform or grid.transform.is_degenerate:
        return None
    steps = np.linspace(0, 1, EDGE_PARTS, endpoint=False)
    cols = np.concatenate([steps, np.ones_like(steps), 1 - steps, np.zeros_like(steps)]) * grid.width
    rows = np.concatenate([np.zeros_like(steps), steps, np.ones_like(steps), 1 - steps]) * grid.height
    t = grid.transform
    xs, ys = t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f
    try:
        xs, ys = _way(grid.crs.to_wkt(), crs_wkt).transform(xs, ys)
    except pyproj.exceptions.ProjError:
        return None  # another planet, or a system without a way to this one
    if not np.isfinite([xs, ys]).all():
        return None
    outline = shapely.make_valid(shapely.Polygon(np.stack([xs, ys], axis=1)))
    crosses_date_line = crs_wkt is None and np.ptp(xs) > 180 and grid.width * math.hypot(t.a, t.d) < 180
    return None if outline.area == 0 or crosses_date_line else outline


@lru_cache(maxsize=16)
def _way(from_wkt: str, to_wkt: str | None) -> pyproj.Transformer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of systems that PROJ knows in part only; the outcome is looked at
        return pyproj.Transformer.from_crs(from_wkt, to_wkt or "EPSG:4326", always_xy=True)
