"""The maps beside a consistency report: labels, where they differ, how far probabilities do, what corners say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geonorm.evaluation.corners import PADDING_PX, SIZE_PX, squares, why_not
from geonorm.evaluation.grids import Way
from geonorm.evaluation.measures import Difference
from geonorm.evaluation.resting import blocks_of
from geonorm.inference.job import Job
from geonorm.inference.outputs import NODATA_LABEL, labels_layer
from geonorm.raster.layer import Layer
from geonorm.raster.read import Reader
from geonorm.raster.rows import writing_rows
from geonorm.raster.window import Window

Report = dict[str, Any]

CORNERS = "corners"
NO_CHANGE = -1.0
"""Of pixels that are not compared."""


@contextmanager
def writing_way(way: Way, job: Job, folder: Path) -> Iterator[Callable[[Window, Difference, NDArray[np.bool_]], None]]:
    """Give what writes the maps of a way of labelling, block by block from the top.

    One has its labels and where they differ, the other by how much the probabilities do.
    """
    grid, tags = job.reader.grid, {**job.provenance(), "geonorm_compared": way.words}
    row = 0
    with (
        writing_rows(folder / f"{way.name}.tif", compared_layer(job), grid, tags=tags) as labels,
        writing_rows(folder / f"{way.name}-change.tif", change_layer(), grid, tags=tags) as change,
    ):

        def write(block: Window, found: Difference, valid: NDArray[np.bool_]) -> None:
            nonlocal row
            shape = block.row_end - row, grid.width  # rows that were passed over have no data
            here = slice(block.row - row, None), slice(block.col, block.col_end)
            maps, changes = np.full((2, *shape), NODATA_LABEL, np.uint8), np.full(shape, NO_CHANGE, np.float32)
            maps[0][here] = np.where(valid, found.others.numpy(), NODATA_LABEL)
            maps[1][here] = np.where(valid, found.flips.numpy(), NODATA_LABEL)
            changes[here] = np.where(valid, found.change.numpy(), NO_CHANGE)
            labels.add(maps)
            change.add(changes)
            row = block.row_end

        yield write


def compared_layer(job: Job) -> Layer:
    """Return what a map beside the grid at rest holds: its labels, and 0 same, 1 other, 2 other within a tie."""
    bands = ("labels", "0 same, 1 other label, 2 other label within a tie")
    # A GeoTIFF of two bands has no colour table.
    return replace(labels_layer(job.model.spec), name="compared", band_names=bands, class_names=(), class_colors=())


def change_layer() -> Layer:
    """Return what a map of changes of probability holds."""
    return Layer(name="change", dtype="float32", band_names=("change of probability",), nodata=NO_CHANGE)


def measured_corners(job: Job, reader: Reader, folder: Path) -> Report:
    """Return the corner consensus of a raster, and write what the four tiles say."""
    about = {"size_px": SIZE_PX, "padding_px": PADDING_PX}
    skipped = why_not(job)
    if skipped is not None:
        return {**about, "patches": 0, "mean": None, "skipped": skipped}
    layer = Layer(
        name="corners",
        dtype="uint8",
        band_names=tuple(f"by the tile {where}" for where in ("top left", "top right", "bottom left", "bottom right")),
        nodata=NODATA_LABEL,
    )
    found = list(squares(job, reader))
    with writing_rows(folder / f"{CORNERS}.tif", layer, reader.grid) as writer:
        for block in blocks_of(Window(0, 0, reader.grid.height, reader.grid.width)):
            values = np.full((4, block.height, block.width), NODATA_LABEL, np.uint8)
            for square in found:
                top, bottom = max(block.row, square.window.row), min(block.row_end, square.window.row_end)
                if top < bottom:
                    part = square.labels[:, top - square.window.row : bottom - square.window.row].numpy()
                    values[:, top - block.row : bottom - block.row, square.window.col : square.window.col_end] = part
            writer.add(values)
    shares = [square.consensus for square in found]
    return {
        **about,
        "patches": len(found),
        "mean": float(np.mean(shares)) if shares else None,
        "skipped": None if shares else "no patch is free of pixels without data",
        "files": {"map": f"{folder.name}/{CORNERS}.tif"},
    }
