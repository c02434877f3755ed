"""The grid at rest, that all others are held against: its logits on disk, as no map is held whole in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geonorm.files import folder_beside
from geonorm.inference.job import Job
from geonorm.inference.outputs import NODATA_LABEL, labels_layer
from geonorm.raster.rows import writing_rows
from geonorm.raster.window import Window
from geonorm.tiling.engine import labels_of

ROWS = 128
"""Rows that are held against each other at a time."""


class Resting:
    """Logits of a raster, read by windows.

    Attributes:
        seconds: What it took to label the raster.
    """

    def __init__(self, logits: NDArray[np.float32], valid: NDArray[np.bool_], seconds: float) -> None:
        self._logits = logits
        self._valid = valid
        self.seconds = seconds

    def logits(self, window: Window) -> Tensor:
        """Return the logits, ``(K, rows, cols)``."""
        return torch.from_numpy(np.array(self._logits[:, *_slices(window)]))

    def valid(self, window: Window) -> NDArray[np.bool_]:
        """Return where the raster has data, ``(rows, cols)``."""
        return np.array(self._valid[_slices(window)])


@contextmanager
def at_rest(
    job: Job, target: Path, *, batch_size: int = 1, progress: bool = False, title: str = ""
) -> Iterator[Resting]:
    """Label a raster, write its map, and give the logits; they take 4 bytes a pixel and class on disk meanwhile.

    Args:
        job: The grid at rest.
        target: Its map, a GeoTIFF.
        batch_size: Tiles per network call.
        progress: Show a progress bar.
        title: What it is called.
    """
    grid, num_classes = job.reader.grid, len(job.model.spec.class_names)
    with folder_beside(target) as folder:
        shape = grid.height, grid.width
        logits = np.lib.format.open_memmap(folder / "logits.npy", "w+", np.float32, (num_classes, *shape))
        valid = np.lib.format.open_memmap(folder / "valid.npy", "w+", np.bool_, shape)
        began = time.monotonic()
        with writing_rows(target, labels_layer(job.model.spec), grid, tags=job.provenance()) as writer:
            for strip in job.strips(finish=lambda one: one, batch_size=batch_size, progress=progress, title=title):
                rows = slice(strip.row, strip.row + strip.rows)
                logits[:, rows], valid[rows] = strip.output.numpy(), strip.valid
                labels = labels_of(strip.output[None])[0].numpy()
                writer.add(np.where(strip.valid, labels, NODATA_LABEL))
        yield Resting(logits, valid, time.monotonic() - began)
        del logits, valid  # Windows does not remove what is mapped


def blocks_of(window: Window) -> Iterator[Window]:
    """Yield a window in blocks of at most `ROWS` rows, which begin at multiples of it."""
    row = window.row
    while row < window.row_end:
        stop = min(window.row_end, (row // ROWS + 1) * ROWS)
        yield Window(row, window.col, stop - row, window.width)
        row = stop


def _slices(window: Window) -> tuple[slice, slice]:
    return slice(window.row, window.row_end), slice(window.col, window.col_end)
