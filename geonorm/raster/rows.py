"""A GeoTIFF written from the top, some rows at a time, and read back as arrays of whole rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geonorm.files import folder_beside
from geonorm.raster.grid import Grid
from geonorm.raster.layer import Layer
from geonorm.raster.write import blocks, create, failing_as, lying_nowhere, publish

BLOCK_PX = 256


class RowWriter:
    """Takes the rows of a raster from the top; `writing_rows` makes it."""

    def __init__(self, dataset: Any, layer: Layer, width: int) -> None:
        self._dataset = dataset
        self._layer = layer
        self._row = 0
        # Blocks are written once, whole: what GDAL has to take up again it compresses again.
        self._waiting = np.empty((len(layer.band_names), 0, width), dtype=layer.dtype)

    def add(self, values: NDArray[Any]) -> None:
        """Take the next rows, ``(bands, rows, W)`` or ``(rows, W)`` of one band."""
        values = values[None] if values.ndim == 2 else values
        self._waiting = np.concatenate([self._waiting, values.astype(self._layer.dtype, copy=False)], axis=1)
        self._write(self._waiting.shape[1] // BLOCK_PX * BLOCK_PX)

    def finish(self) -> None:
        """Write the rest."""
        self._write(self._waiting.shape[1])

    def _write(self, rows: int) -> None:
        if rows:
            window = ((self._row, self._row + rows), (0, self._waiting.shape[2]))
            self._dataset.write(self._waiting[:, :rows], window=window)
            self._waiting = self._waiting[:, rows:].copy()
            self._row += rows


@contextmanager
def writing_rows(
    target: Path, layer: Layer, grid: Grid, *, tags: Mapping[str, str] = MappingProxyType({})
) -> Iterator[RowWriter]:
    """Give a writer of a GeoTIFF, which appears under its name once all its rows are there.

    Args:
        target: The file to make; what is there already is replaced.
        layer: What it holds.
        grid: Where its pixels lie.
        tags: What else is to be known.

    Raises:
        RasterError: It cannot be written.
    """
    shape = (len(layer.band_names), grid.height, grid.width)
    predictor = 3 if np.dtype(layer.dtype).kind == "f" else 1
    options = {**blocks(BLOCK_PX), "compress": "deflate", "predictor": predictor, "bigtiff": "if_safer"}
    with folder_beside(target) as folder, failing_as(target), lying_nowhere():
        made = folder / "rows.tif"
        with create(made, shape, layer.dtype, crs=grid.crs, transform=grid.transform, options=options) as dataset:
            layer.describe(dataset, tags)
            writer = RowWriter(dataset, layer, grid.width)
            yield writer
            writer.finish()
        publish(made, target)
