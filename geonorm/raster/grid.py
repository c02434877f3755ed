"""Where the pixels of a raster lie on the ground."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from affine import Affine
from rasterio.crs import CRS

from geonorm.raster.window import Window


@dataclass(frozen=True)
class GroundControlPoint:
    """A position in a raster, in pixels from its upper left corner, and its coordinates on the ground."""

    row: float
    col: float
    x: float
    y: float
    z: float | None = None


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie; ``transform`` is the identity where the file has none.

    A raster without a transform may have ground control points ``gcps`` instead, with a CRS of their own. They only
    pass through: nothing is computed from them.
    """

    height: int
    width: int
    crs: CRS | None
    transform: Affine
    gcps: tuple[GroundControlPoint, ...] = ()
    gcps_crs: CRS | None = None

    @property
    def has_transform(self) -> bool:
        """Whether the pixels have a place in a coordinate system."""
        return bool(self.transform != Affine.identity())

    @property
    def resolution_m(self) -> float | None:
        """Ground size of a pixel in metres at the centre of the raster, None where it is unknown.

        Pixels that are not square count as the square of the same area. Rasters without a CRS or a
        transform, and those of other planets, have no known size.
        """
        if self.crs is None or not self.has_transform:
            return None
        resolution_m = _resolution_m(self, self.crs)
        return resolution_m if math.isfinite(resolution_m) and resolution_m > 0 else None

    @property
    def first_index(self) -> tuple[int, int]:
        """Index (row, col) of the first pixel, counted from the origin of the CRS.

        All crops of a raster agree on it, so it anchors tiles to the world rather than to the file. (0, 0)
        where there is no transform, or none that can be inverted.
        """
        if not self.has_transform or self.transform.is_degenerate:
            return 0, 0
        origin = ~self.transform  # takes the origin of the CRS to column c, row f
        if not (math.isfinite(origin.c) and math.isfinite(origin.f)):
            return 0, 0
        # Not 0.5: most origins lie on a corner or on the centre of a pixel, within rounding, and 0.63 keeps
        # both away from the step of floor.
        return math.floor(0.63 - origin.f), math.floor(0.63 - origin.c)

    def cropped(self, window: Window) -> Grid:
        """Return the grid of the pixels of ``window``, which may reach beyond this one."""
        t, row, col = self.transform, window.row, window.col
        return Grid(
            window.height,
            window.width,
            self.crs,
            # A raster without a place has none as a part, either.
            Affine(t.a, t.b, t.a * col + t.b * row + t.c, t.d, t.e, t.d * col + t.e * row + t.f)
            if self.has_transform
            else t,
            tuple(replace(point, row=point.row - row, col=point.col - col) for point in self.gcps),
            self.gcps_crs,
        )

    def as_plain(self) -> dict[str, Any]:
        """Return the grid as plain data that JSON can hold; `from_plain` takes it back, bit for bit."""
        return {
            "height": self.height,
            "width": self.width,
            "crs": _wkt(self.crs),
            "transform": list(self.transform)[:6],
            "gcps": [[point.row, point.col, point.x, point.y, point.z] for point in self.gcps],
            "gcps_crs": _wkt(self.gcps_crs),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Return the grid that `as_plain` took apart."""
        crs, gcps_crs = (plain[key] and CRS.from_wkt(plain[key]) for key in ("crs", "gcps_crs"))
        points = tuple(GroundControlPoint(*numbers) for numbers in plain["gcps"])
        return cls(plain["height"], plain["width"], crs, Affine(*plain["transform"]), points, gcps_crs)


def _wkt(crs: CRS | None) -> str | None:
    # The first version of WKT, where it can say it: it keeps more of user-defined systems than GDAL's second does.
    return None if crs is None else crs.to_wkt()


def _resolution_m(grid: Grid, crs: CRS) -> float:
    """Return the side of the square that covers as much ground as the centre pixel, NaN if unknown."""
    wkt = crs.to_wkt()
    ellipsoid = re.search(r'(?:SPHEROID|ELLIPSOID)\["[^"]*",\s*([0-9.]+)', wkt)
    if ellipsoid is None or not 6.3e6 < float(ellipsoid[1]) < 6.4e6:  # nothing known, or not the earth
        return math.nan
    t, col, row = grid.transform, grid.width / 2, grid.height / 2
    y = t.d * col + t.e * row + t.f
    side, radius_m = math.sqrt(abs(t.determinant)), float(ellipsoid[1])
    if crs.is_geographic:
        radians = crs.units_factor[1]
        return side * radians * radius_m * math.sqrt(max(0.0, math.cos(y * radians)))
    if not crs.is_projected:
        return math.nan
    unit_m = crs.linear_units_factor[1]
    if re.search(r'(?:PROJECTION|METHOD)\["(?:Mercator|Popular)', wkt):  # ESRI:102100 has no EPSG code
        # The cosine of the latitude, 1 / cosh(y / radius); PROJ would not return from absurd coordinates.
        e = math.exp(-abs(y * unit_m / radius_m))
        return side * unit_m * 2 * e / (1 + e * e)
    return side * unit_m
