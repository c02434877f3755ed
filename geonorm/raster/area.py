"""An area of interest -> the pixels whose centres lie in it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import rasterio.features
import shapely  # type: ignore[import-untyped]  # ships no types
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from geonorm.errors import InvalidConfigError, RasterError, one_line
from geonorm.raster.grid import Grid
from geonorm.raster.read import is_local
from geonorm.raster.shapes import Bounds, bounds_of, in_crs_of, in_pixels, known_crs, polygons_of, read_layer
from geonorm.raster.window import Window

BLOCK_PX = 512
"""Side of the squares, counted from the raster's corner, that are filled at once: each pixel always in the same one."""
MAX_EDGES = 2000
"""Of a polygon; what has more is cut up."""


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
        known = None if crs is None else known_crs(crs)
        return cls(np.array([shapely.box(*bounds)]), known, name)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], layer: str | None = None) -> Self:
        """Return the area of all polygons of a vector file; points and lines in it are left out.

        Args:
            path: A file that GDAL reads, such as GeoPackage, GeoJSON or shapefile.
            layer: The layer to read, where there are several.
        """
        area = cls.by_value(path, layer=layer).get(None)
        if area is None or not len(area.polygons):
            raise RasterError(f"{os.fspath(path)} holds no polygons. Name a file or a layer with some.")
        return area

    @classmethod
    def by_value(
        cls, path: str | os.PathLike[str], attribute: str | None = None, *, layer: str | None = None
    ) -> dict[Any, Self]:
        """Return the areas of the polygons of a vector file, by the values of an attribute.

        Args:
            path: A file that GDAL reads.
            attribute: Its name; where None, all polygons are of the value None.
            layer: The layer to read, where there are several.
        """
        name = os.fspath(path)
        if is_local(name) and not os.path.exists(name):
            raise RasterError(f"there is no file {name}. Check the name and the folder.")
        meta, wkb, values = read_layer(name, layer, attribute=attribute)
        if meta["crs"] is None:
            raise RasterError(f"{name} has no coordinate system. Give it one with ogr2ogr -a_srs.")
        try:
            shapes = shapely.from_wkb(wkb)
        except shapely.errors.GEOSException as error:
            raise RasterError(
                f"{name} holds a shape that cannot be read: {one_line(error)}. Repair it first."
            ) from error
        of = [None] * len(shapes) if values is None else values.tolist()
        crs = known_crs(meta["crs"])
        return {
            value: cls(polygons_of(shapes[[other == value for other in of]]), crs, name) for value in dict.fromkeys(of)
        }

    def fingerprint(self) -> str:
        """Return letters that two areas share only if they are the same."""
        content = b"".join(shapely.to_wkb(self.polygons)) + (self.crs.to_wkt() if self.crs else "").encode()
        return hashlib.sha256(content).hexdigest()

    def on(self, grid: Grid) -> AreaOnGrid:
        """Return the pixels of a raster whose centres lie in the area."""
        polygons = polygons_of(shapely.make_valid(self.polygons))
        if self.crs is not None:
            if grid.crs is None or not grid.has_transform:
                raise InvalidConfigError(
                    f"the raster lies nowhere (it lacks a CRS or a transform), so {self.name} cannot be laid on it. "
                    "Give it both with gdal_translate -a_srs -a_ullr, or name the area in pixels."
                )
            if self.crs != grid.crs:
                polygons = in_crs_of(polygons, self.crs, grid, self.name)
        if grid.transform.is_degenerate:
            raise InvalidConfigError(f"the raster's pixels have no size, so {self.name} cannot be laid on it.")
        raster = shapely.box(0, 0, grid.width, grid.height)
        polygons = shapely.make_valid(in_pixels(polygons, grid.transform))
        polygons = polygons_of(shapely.intersection(polygons, raster))
        if not len(polygons):
            raise AreaMissesError(
                f"{self.name} misses the raster, whose left, bottom, right and top are "
                f"{_in_words(bounds_of(grid))}. Check its CRS, and that x comes before y."
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
        large += list(polygons_of(shapely.intersection(polygon, halves)))
    return np.array(pieces, dtype=object)


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
