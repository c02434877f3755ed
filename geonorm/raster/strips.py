"""Strips of a map, each a file of its own -> one Cloud-Optimized GeoTIFF, put together without holding any of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from xml.sax.saxutils import escape

import rasterio
import rasterio.shutil
import rasterio.windows
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint as ControlPoint
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geonorm.errors import RasterError
from geonorm.raster.grid import Grid
from geonorm.raster.layer import Layer
from geonorm.raster.read import GDAL_ERRORS, check_readable, gdal_said
from geonorm.raster.window import Window
from geonorm.raster.write import blocks, create, failing_as

BLOCK_PX = 512
# Each strip is read once, soon; the quickest compression keeps empty areas small.
_STRIP_OPTIONS = {"compress": "deflate", "zlevel": 1, "bigtiff": "if_safer", "sparse_ok": True}
_ANYWHERE = Affine.scale(2, -2)  # a strip needs no place, but without one rasterio warns
_COG_OPTIONS = {"compress": "deflate", "bigtiff": "if_safer", "sparse_ok": "yes", "num_threads": "all_cpus"}


@dataclass(frozen=True)
class Part:
    """A file, and where it lies on the grid of a map."""

    path: Path
    window: Window


def write_strip(path: Path, layer: Layer, values: NDArray[Any]) -> None:
    """Write a strip of a map in the making: a GeoTIFF in blocks, whose place means nothing.

    Args:
        path: The file to make.
        layer: What it holds.
        values: Of the layer's type, shape (bands, rows, W).
    """
    if values.shape[0] != len(layer.band_names) or values.dtype != layer.dtype:
        raise ValueError(f"{layer.name} has {len(layer.band_names)} bands of {layer.dtype}, got {values.shape}")
    options = {**blocks(BLOCK_PX), **_STRIP_OPTIONS}
    with create(path, values.shape, layer.dtype, transform=_ANYWHERE, options=options) as new:
        new.nodata = layer.nodata
        new.write(values)


def read_strip(path: Path) -> NDArray[Any]:
    """Return all values of a strip, ``(bands, rows, W)``.

    Raises:
        RasterError: It cannot be read.
    """
    try:
        with rasterio.open(path) as strip:
            values: NDArray[Any] = strip.read()
    except (*GDAL_ERRORS, OSError) as error:
        raise RasterError(f"{path} cannot be read: {gdal_said(error)}") from error
    return values


def check_strip(path: Path, layer: Layer, size: tuple[int, int]) -> None:
    """Raise `RasterError` unless a strip is there, of a size in rows and columns."""
    check_readable(path)
    with rasterio.open(path) as strip:
        if strip.shape != size or strip.count != len(layer.band_names):
            raise RasterError(f"{path} has {strip.count} bands of {strip.shape} pixels, not of {size}.")


class StripMap:
    """Strips read as one raster: a GDAL VRT, a small file of XML."""

    def __init__(
        self,
        path: Path,
        layer: Layer,
        grid: Grid,
        parts: Sequence[Part],
        *,
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write the VRT.

        Args:
            path: The file to make.
            layer: What the strips hold.
            grid: Where the pixels lie.
            parts: The strips, in pixels of the grid; they may reach beyond it, and what none covers is nodata.
            tags: What else is to be known.
        """
        self.path, self.layer, self.grid = path, layer, grid
        shape = (len(layer.band_names), grid.height, grid.width)
        with create(path, shape, layer.dtype, driver="VRT", crs=grid.crs, transform=grid.transform) as vrt:
            if grid.gcps:
                points = [ControlPoint(p.row, p.col, p.x, p.y, p.z) for p in grid.gcps]
                vrt.gcps = (points, grid.gcps_crs)
            layer.describe(vrt, tags)
            for band in range(1, len(layer.band_names) + 1):
                sources = self._sources(parts, band)
                if sources:
                    vrt.update_tags(band, ns="new_vrt_sources", **sources)

    def rows(self, rows: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the values from the top, some rows at a time: first row, and ``(bands, rows, cols)``."""
        with failing_as(self.path):
            vrt = rasterio.open(self.path)
        with vrt:
            for row in range(0, self.grid.height, rows):
                area = rasterio.windows.Window(0, row, self.grid.width, min(rows, self.grid.height - row))
                with failing_as(self.path):  # not over a yield: environments of GDAL end in the order they began
                    values = vrt.read(window=area)
                yield row, values

    def _sources(self, parts: Sequence[Part], band: int) -> dict[str, str]:
        whole = Window(0, 0, self.grid.height, self.grid.width)
        sources = {}
        for number, part in enumerate(parts):
            met = part.window.intersection(whole)
            if met.height and met.width:
                there = met.shifted(-part.window.row, -part.window.col)
                sources[f"source_{number}"] = (
                    f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(part.path.absolute()))}'
                    f"</SourceFilename><SourceBand>{band}</SourceBand>{self._properties(part)}"
                    f"{_rect('Src', there)}{_rect('Dst', met)}</SimpleSource>"
                )
        return sources

    def _properties(self, part: Part) -> str:
        """Return what spares GDAL the opening of all files at once."""
        kind = {"uint8": "Byte", "float32": "Float32"}[self.layer.dtype]
        return (
            f'<SourceProperties RasterXSize="{part.window.width}" RasterYSize="{part.window.height}" '
            f'DataType="{kind}" BlockXSize="{BLOCK_PX}" BlockYSize="{BLOCK_PX}"/>'
        )


def write_map(strips: StripMap, made: Path, *, on_grid: Grid | None = None) -> None:
    """Write strips as a Cloud-Optimized GeoTIFF; blocks without data take no place in it.

    Its bytes follow from the values, the grid and the tags alone, not from how they were cut into strips, nor from the
    number of threads.

    Args:
        strips: The strips.
        made: The file to make.
        on_grid: Another grid to bring the values to: class numbers by the nearest, others in a straight line.
    """
    layer, source = strips.layer, strips.path
    if on_grid is not None:
        source = made.with_suffix(".warped.tif")
        _warp(strips, source, on_grid)
    # GDAL's own driver reads block by block and builds the overviews on the disk.
    rasterio.shutil.copy(
        source,
        made,
        driver="COG",
        blocksize=BLOCK_PX,
        overview_resampling="mode" if layer.is_categorical else "average",
        predictor="no" if layer.is_categorical else "yes",
        **_COG_OPTIONS,
    )
    if on_grid is not None:
        source.unlink()


def _warp(strips: StripMap, path: Path, grid: Grid) -> None:
    """Bring the values to another grid, block by block."""
    layer = strips.layer
    shape = (len(layer.band_names), grid.height, grid.width)
    options = {**blocks(BLOCK_PX), **_STRIP_OPTIONS}
    with (
        rasterio.open(strips.path) as source,
        create(path, shape, layer.dtype, crs=grid.crs, transform=grid.transform, options=options) as new,
        WarpedVRT(
            source,
            crs=grid.crs,
            transform=grid.transform,
            height=grid.height,
            width=grid.width,
            resampling=Resampling.nearest if layer.is_categorical else Resampling.bilinear,
            nodata=layer.nodata,
        ) as warped,
    ):
        layer.describe(new, source.tags())
        for _, area in new.block_windows(1):
            new.write(warped.read(window=area), window=area)


def _rect(which: str, window: Window) -> str:
    return f'<{which}Rect xOff="{window.col}" yOff="{window.row}" xSize="{window.width}" ySize="{window.height}"/>'
