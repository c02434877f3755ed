"""Shapes of vector files: read, brought to the CRS of a raster and to its pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyogrio  # type: ignore[import-untyped]  # ships no types
import pyogrio.errors  # type: ignore[import-untyped]  # ships no types
import pyogrio.raw  # type: ignore[import-untyped]  # ships no types
import rasterio.warp
import shapely  # type: ignore[import-untyped]  # ships no types
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from geonorm.errors import InvalidConfigError, RasterError, name_some, one_line
from geonorm.raster.grid import Grid
from geonorm.raster.read import GDAL_ERRORS

Bounds = tuple[float, float, float, float]
EDGE_PARTS = 256
"""Parts into which an edge as long as the raster is cut before its way to another CRS bends it."""


def read_layer(
    name: str, layer: str | None, *, attribute: str | None = None
) -> tuple[dict[str, Any], NDArray[np.object_], NDArray[Any] | None]:
    """Return what is known of a layer, its shapes as WKB, and the values of an attribute.

    Raises:
        RasterError: It does not open, or has no such layer or attribute.
    """
    try:
        layers = [str(found) for found, _ in pyogrio.list_layers(name)]
        if not layers:
            raise RasterError(f"{name} holds no layer of shapes. Name a vector file, such as GeoPackage or GeoJSON.")
        if layer is None and len(layers) == 1:
            layer = layers[0]
        if layer not in layers:
            asked = "none is named" if layer is None else f"{layer!r} is asked for"
            raise RasterError(f"{name} has the layers {name_some(layers)}, but {asked}. Name one of them.")
        fields = [str(field) for field in pyogrio.read_info(name, layer=layer)["fields"]]
        if attribute is not None and attribute not in fields:
            raise RasterError(
                f"{name} has no attribute {attribute!r}; it has {name_some(fields) if fields else 'none'}."
            )
        columns = [] if attribute is None else [attribute]
        meta, _, wkb, data = pyogrio.raw.read(name, layer=layer, columns=columns, force_2d=True)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.GeometryError) as error:
        raise RasterError(
            f"{name} does not open as a vector file: {one_line(error)}. Try GeoPackage or GeoJSON, or see ogrinfo."
        ) from error
    return meta, wkb, data[0] if attribute is not None else None


def known_crs(crs: CRS | str) -> CRS:
    """Return a coordinate system by its name or code."""
    try:
        return CRS.from_user_input(crs)
    except ValueError as error:  # CRSError is one
        raise InvalidConfigError(
            f"{str(crs)[:80]!r} is no coordinate system that is known: {one_line(error)}. Try a code such as EPSG:4326."
        ) from error


def polygons_of(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """Return the single polygons that shapes of any kind hold."""
    parts = shapely.get_parts(shapely.get_parts(shapes))  # of a multipolygon in a collection
    return parts[(shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)]


def in_crs_of(polygons: NDArray[np.object_], crs: CRS, grid: Grid, name: str) -> NDArray[np.object_]:
    """Return polygons in the raster's CRS, as far as they lie near the raster: far away, none may have coordinates."""

    def moved(places: NDArray[np.float64]) -> NDArray[np.float64]:
        xs, ys = rasterio.warp.transform(crs, grid.crs, places[:, 0], places[:, 1])
        return np.stack([xs, ys], axis=1)

    try:
        left, bottom, right, top = rasterio.warp.transform_bounds(grid.crs, crs, *bounds_of(grid))
        if left < right and math.isfinite(left + bottom + right + top):  # else across the date line, or over a pole
            margin = (right - left + top - bottom) / 20  # the outline bulges between the points that were moved
            frame = left - margin, bottom - margin, right + margin, top + margin
            polygons = polygons_of(shapely.intersection(polygons, shapely.box(*frame)))
        if len(polygons):
            left, bottom, right, top = shapely.total_bounds(polygons)
            longest = max(right - left, top - bottom)
            polygons = shapely.transform(shapely.segmentize(polygons, longest / EDGE_PARTS), moved)
    except GDAL_ERRORS as error:
        raise InvalidConfigError(
            f"{name} cannot be brought to the raster's CRS: {one_line(error)}. Reproject it first with ogr2ogr -t_srs."
        ) from error
    whole = np.array([np.isfinite(shapely.get_coordinates(polygon)).all() for polygon in polygons], dtype=bool)
    return polygons[whole]


def in_pixels(polygons: NDArray[np.object_], transform: Affine) -> NDArray[np.object_]:
    """Return polygons in pixels, x to the right and y down from the raster's corner."""
    t = transform

    def moved(places: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = places[:, 0] - t.c, places[:, 1] - t.f  # first, so that large coordinates lose nothing
        return np.stack([t.e * x - t.b * y, t.a * y - t.d * x], axis=1) / t.determinant

    return shapely.transform(polygons, moved)


def bounds_of(grid: Grid) -> Bounds:
    """Return left, bottom, right and top of a raster."""
    corners = [(0, 0), (grid.width, 0), (0, grid.height), (grid.width, grid.height)]
    t = grid.transform
    xs = [t.a * col + t.b * row + t.c for col, row in corners]
    ys = [t.d * col + t.e * row + t.f for col, row in corners]
    return min(xs), min(ys), max(xs), max(ys)
