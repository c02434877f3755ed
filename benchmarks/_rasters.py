"""Rasters that benchmarks draw: written block by block, so that a large one takes no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

BLOCK_PX = 512
NORTH_UP = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)


@contextmanager
def new_raster(
    path: Path,
    *,
    bands: int,
    height: int,
    width: int,
    crs: str = "EPSG:32633",
    transform: Affine = NORTH_UP,
    block_px: int | None = BLOCK_PX,
    **stored: Any,
) -> Iterator[Any]:
    """Yield a new GeoTIFF of uint8 to write to; strips instead of blocks where `block_px` is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": bands, "height": height, "width": width, "dtype": "uint8"}
    blocks = {"tiled": True, "blockxsize": block_px, "blockysize": block_px} if block_px else {}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape, **blocks, **stored) as new:
        yield new


def rows_of_blocks(height: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the number of rows of each row of blocks."""
    for row in range(0, height, BLOCK_PX):
        yield row, min(BLOCK_PX, height - row)


def draw_slopes(path: Path, height: int, width: int) -> None:
    """Write noise over slopes, deflated."""
    noise = np.random.default_rng(0).integers(0, 60, (3, BLOCK_PX, BLOCK_PX), dtype=np.uint8)
    with new_raster(
        path, bands=3, height=height, width=width, compress="deflate", transform=Affine(0.3, 0, 0, 0, -0.3, 0)
    ) as raster:
        for row, rows in rows_of_blocks(height):
            for col, cols in rows_of_blocks(width):
                level = np.uint8((row // 7 + col // 5) % 190)
                raster.write(noise[:, :rows, :cols] + level, window=Window(col, row, cols, rows))


def draw_sparse(path: Path, height: int, width: int, *, bands: int, data_px: int) -> None:
    """Write a raster with data in so many columns; blocks without data take no place in the file."""
    left = (width - data_px) // 2 // BLOCK_PX * BLOCK_PX
    values = np.random.default_rng(0).integers(1, 256, (bands, BLOCK_PX, data_px), np.uint8)
    stored: dict[str, Any] = {"nodata": 0, "sparse_ok": True, "bigtiff": "if_safer"}
    with new_raster(path, bands=bands, height=height, width=width, **stored) as raster:
        for row, rows in rows_of_blocks(height):
            raster.write(np.roll(values, row, axis=2)[:, :rows], window=Window(left, row, data_px, rows))


def draw_scene(path: Path, size_px: int, *, transform: Affine) -> None:
    """Write a square that compresses as photographs do: fields that change slowly, round things, and some grain."""
    draw = np.random.default_rng(0)
    steps = np.arange(size_px)
    waves = draw.uniform((0.002, 0.002, 0, 10), (0.02, 0.02, 6.3, 30), (3, 4, 4))  # of rows, of columns; phase; height
    blobs = draw.uniform((0, 0, 6), (size_px, size_px, 60), (size_px**2 // 8192, 3))
    colors = draw.integers(20, 235, (len(blobs), 3), dtype=np.uint8)
    stored: dict[str, Any] = {"compress": "deflate", "interleave": "pixel"}
    with new_raster(path, bands=3, height=size_px, width=size_px, transform=transform, **stored) as raster:
        for top, count in rows_of_blocks(size_px):
            rows = steps[top : top + count]
            values = np.full((3, count, size_px), 128.0, dtype=np.float32)
            for band, parts in zip(values, waves, strict=True):
                for slow, fast, phase, height in parts:
                    band += np.outer(height * np.sin(slow * rows + phase), np.sin(fast * steps - phase))
            for (row, col, radius), color in zip(blobs, colors, strict=True):
                if not top - radius < row < top + count + radius:
                    continue
                near = steps[max(0, int(col - radius)) : int(col + radius) + 1]
                inside = (rows[:, None] - row) ** 2 + (near - col) ** 2 < radius**2
                values[:, :, near[0] : near[-1] + 1][:, inside] = color[:, None]
            values += draw.normal(0, 4, values.shape)
            raster.write(values.clip(0, 255).astype(np.uint8), window=Window(0, top, size_px, count))
