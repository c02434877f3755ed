"""An area of interest -> the pixels whose centres lie in it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyogrio  # type: ignore[import-untyped]  # ships no types
import pyogrio.errors  # type: ignore[import-untyped]  # ships no types
import pyogrio.raw  # type: ignore[import-untyped]  # ships no types
import rasterio.features
import rasterio.warp
import shapely  # type: ignore[import-untyped]  # ships no types
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from geonorm.errors import InvalidConfigError, RasterError, name_some, one_line
from geonorm.raster.grid import Grid
from geonorm.raster.read import GDAL_ERRORS, is_local
from geonorm.raster.window import Window

BLOCK_PX = 512
"""Side of the squares, counted from the raster's corner, that are filled at once: each pixel always in the same one."""
MAX_EDGES = 2000
"""Of a polygon; what has more is cut up."""
EDGE_PARTS = 256
"""Parts into which an edge as long as the raster is cut before its way to another CRS bends it."""

Bounds = tuple[float, float, float, float]


class AreaMissesError(InvalidConfigError):
    """No pixel of the raster lies in the area."""


@dataclass(frozen=True)
class Area:
    """Polygons on the ground, in a CRS of their own, or (None) in that of the raster they are laid on.

    ``name`` is what messages call it.
    """

    polygons: NDArray[np.object_]
    crs: CRS | None
    name: str

    @classmethod
    def from_bounds(cls, bounds: Bounds, crs: CRS | str | None = None) -> Self:
        """Return the area between four coordinates.

        Args:
            bounds: Left, bottom, right, top.
            crs: Their coordinate system, such as ``EPSG:4326`` (x before y); that of the raster by default. They are
                columns and rows of pixels where the raster has no transform.
        """
        name = f"the area {_in_words(bounds)}"
        ordered = len(bounds) == 4 and bounds[0] < bounds[2] and bounds[1] < bounds[3]
        if not (ordered and all(map(math.isfinite, bounds))):
            raise InvalidConfigError(
                f"{name} must be left, bottom, right and top, with left < right and bottom < top. "
                "Put them in this order, x before y."
            )
        known = None if crs is None else _known(crs)
        return cls(np.array([shapely.box(*bounds)]), known, name)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], layer: str | None = None) -> Self:
        """Return the area of all polygons of a vector file; points and lines in it are left out.

        Args:
            path: A file that GDAL reads, such as GeoPackage, GeoJSON or shapefile.
            layer: The layer to read, where there are several.
        """
        name = os.fspath(path)
        if is_local(name) and not os.path.exists(name):
            raise RasterError(f"there is no file {name}. Check the name and the folder.")
        meta, wkb = _read_layer(name, layer)
        if meta["crs"] is None:
            raise RasterError(f"{name} has no coordinate system. Give it one with ogr2ogr -a_srs.")
        try:
            polygons = _polygons_of(shapely.from_wkb(wkb))
        except shapely.errors.GEOSException as error:
            raise RasterError(
                f"{name} holds a shape that cannot be read: {one_line(error)}. Repair it first."
            ) from error
        if not len(polygons):
            raise RasterError(f"{name} holds no polygons ({len(wkb)} other shapes). Name a file or a layer with some.")
        return cls(polygons, _known(meta["crs"]), name)

    def fingerprint(self) -> str:
        """Return letters that two areas share only if they are the same."""
        content = b"".join(shapely.to_wkb(self.polygons)) + (self.crs.to_wkt() if self.crs else "").encode()
        return hashlib.sha256(content).hexdigest()

    def on(self, grid: Grid) -> AreaOnGrid:
        """Return the pixels of a raster whose centres lie in the area."""
        polygons = _polygons_of(shapely.make_valid(self.polygons))
        if self.crs is not None:
            if grid.crs is None or not grid.has_transform:
                raise InvalidConfigError(
                    f"the raster lies nowhere (it lacks a CRS or a transform), so {self.name} cannot be laid on it. "
                    "Give it both with gdal_translate -a_srs -a_ullr, or name the area in pixels."
                )
            if self.crs != grid.crs:
                polygons = _in_crs(polygons, self.crs, grid, self.name)
        if grid.transform.is_degenerate:
            raise InvalidConfigError(f"the raster's pixels have no size, so {self.name} cannot be laid on it.")
        raster = shapely.box(0, 0, grid.width, grid.height)
        polygons = shapely.make_valid(_in_pixels(polygons, grid.transform))
        polygons = _polygons_of(shapely.intersection(polygons, raster))
        if not len(polygons):
            raise AreaMissesError(
                f"{self.name} misses the raster, whose left, bottom, right and top are "
                f"{_in_words(_bounds(grid))}. Check its CRS, and that x comes before y."
            )
        area = AreaOnGrid(polygons, _window_of(polygons, grid))
        if not area.holds_pixels():
            raise AreaMissesError(f"{self.name} lies between the centres of pixels. Take a larger one.")
        return area


class AreaOnGrid:
    """The pixels of a raster that lie in an area. Memory grows with the windows asked for, not with the raster.

    Attributes:
        window: The rectangle around them.
    """

    def __init__(self, polygons: NDArray[np.object_], window: Window) -> None:
        """Take polygons in pixels, x to the right and y down from the raster's corner."""
        self._pieces = _subdivided(polygons)
        self._tree = shapely.STRtree(self._pieces)
        self.window = window

    def inside(self, window: Window) -> NDArray[np.bool_]:
        """Return which pixels of ``window`` have their centre in the area, shape (rows, cols)."""
        inside = np.zeros((window.height, window.width), dtype=bool)
        asked = window.intersection(self.window)
        for block in _blocks(asked):
            part = block.intersection(asked)
            inside[_within(window, part)] = self._fill(block)[_within(block, part)]
        return inside

    def holds_pixels(self) -> bool:
        """Whether there is such a pixel at all."""
        return any(self._fill(block).any() for block in _blocks(self.window))

    def _fill(self, block: Window) -> NDArray[np.bool_]:
        near = self._tree.query(shapely.box(block.col, block.row, block.col_end, block.row_end))
        shape, place = (block.height, block.width), Affine.translation(block.col, block.row)
        if not len(near):
            return np.zeros(shape, dtype=bool)
        return rasterio.features.rasterize(self._pieces[near], out_shape=shape, transform=place, dtype="uint8") != 0


def _read_layer(name: str, layer: str | None) -> tuple[dict[str, Any], NDArray[np.object_]]:
    """Return what is known of a layer, and its shapes as WKB."""
    try:
        layers = [str(found) for found, _ in pyogrio.list_layers(name)]
        if not layers:
            raise RasterError(f"{name} holds no layer of shapes. Name a vector file, such as GeoPackage or GeoJSON.")
        if layer is None and len(layers) == 1:
            layer = layers[0]
        if layer not in layers:
            asked = "none is named" if layer is None else f"{layer!r} is asked for"
            raise RasterError(f"{name} has the layers {name_some(layers)}, but {asked}. Name one of them.")
        meta, _, wkb, _ = pyogrio.raw.read(name, layer=layer, columns=[], force_2d=True)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.GeometryError) as error:
        raise RasterError(
            f"{name} does not open as a vector file: {one_line(error)}. Try GeoPackage or GeoJSON, or see ogrinfo."
        ) from error
    return meta, wkb


def _known(crs: CRS | str) -> CRS:
    try:
        return CRS.from_user_input(crs)
    except ValueError as error:  # CRSError is one
        raise InvalidConfigError(
            f"{str(crs)[:80]!r} is no coordinate system that is known: {one_line(error)}. Try a code such as EPSG:4326."
        ) from error


def _polygons_of(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """Return the single polygons that shapes of any kind hold."""
    parts = shapely.get_parts(shapely.get_parts(shapes))  # of a multipolygon in a collection
    return parts[(shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)]


def _in_crs(polygons: NDArray[np.object_], crs: CRS, grid: Grid, name: str) -> NDArray[np.object_]:
    """Return polygons in the raster's CRS, as far as they lie near the raster: far away, none may have coordinates."""

    def moved(places: NDArray[np.float64]) -> NDArray[np.float64]:
        xs, ys = rasterio.warp.transform(crs, grid.crs, places[:, 0], places[:, 1])
        return np.stack([xs, ys], axis=1)

    try:
        left, bottom, right, top = rasterio.warp.transform_bounds(grid.crs, crs, *_bounds(grid))
        if left < right and math.isfinite(left + bottom + right + top):  # else across the date line, or over a pole
            margin = (right - left + top - bottom) / 20  # the outline bulges between the points that were moved
            frame = left - margin, bottom - margin, right + margin, top + margin
            polygons = _polygons_of(shapely.intersection(polygons, shapely.box(*frame)))
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


def _in_pixels(polygons: NDArray[np.object_], transform: Affine) -> NDArray[np.object_]:
    """Return polygons in pixels, x to the right and y down from the raster's corner."""
    t = transform

    def moved(places: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = places[:, 0] - t.c, places[:, 1] - t.f  # first, so that large coordinates lose nothing
        return np.stack([t.e * x - t.b * y, t.a * y - t.d * x], axis=1) / t.determinant

    return shapely.transform(polygons, moved)


def _in_words(bounds: Iterable[float]) -> str:
    return " ".join(f"{number:.15g}" for number in bounds)


def _subdivided(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """Return polygons in pixels as pieces with few edges, cut where pixels meet and no centre lies.

    GDAL walks through all edges of a polygon for every row that it fills.
    """
    pieces, large = list[Any](), list(polygons)
    while large:
        polygon = large.pop()
        left, top, right, bottom = polygon.bounds
        wide = right - left > bottom - top
        start, end = (left, right) if wide else (top, bottom)
        cut = round((start + end) / 2)
        if shapely.get_num_coordinates(polygon) <= MAX_EDGES or not start < cut < end:
            pieces.append(polygon)
            continue
        first = (left, top, cut, bottom) if wide else (left, top, right, cut)
        second = (cut, top, right, bottom) if wide else (left, cut, right, bottom)
        halves = [shapely.box(*first), shapely.box(*second)]
        large += list(_polygons_of(shapely.intersection(polygon, halves)))
    return np.array(pieces, dtype=object)


def _bounds(grid: Grid) -> Bounds:
    corners = [(0, 0), (grid.width, 0), (0, grid.height), (grid.width, grid.height)]
    t = grid.transform
    xs = [t.a * col + t.b * row + t.c for col, row in corners]
    ys = [t.d * col + t.e * row + t.f for col, row in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _window_of(polygons: NDArray[np.object_], grid: Grid) -> Window:
    """Return the pixels whose centres lie within the bounds of polygons in pixels."""
    left, top, right, bottom = shapely.total_bounds(polygons).tolist()
    row, col = max(0, math.ceil(top - 0.5)), max(0, math.ceil(left - 0.5))
    row_end, col_end = min(grid.height, math.floor(bottom + 0.5)), min(grid.width, math.floor(right + 0.5))
    return Window(row, col, max(0, row_end - row), max(0, col_end - col))


def _blocks(window: Window) -> Iterator[Window]:
    """Yield the blocks that hold pixels of ``window``."""
    for row in range(window.row // BLOCK_PX * BLOCK_PX, window.row_end, BLOCK_PX):
        for col in range(window.col // BLOCK_PX * BLOCK_PX, window.col_end, BLOCK_PX):
            block = Window(row, col, BLOCK_PX, BLOCK_PX)
            part = block.intersection(window)
            if part.height * part.width:
                yield block


def _within(outer: Window, part: Window) -> tuple[slice, slice]:
    """Return where a part of a window lies in its array."""
    row, col = part.row - outer.row, part.col - outer.col
    return slice(row, row + part.height), slice(col, col + part.width)
