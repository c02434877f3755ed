"""The same raster labelled in other ways: the grid moved, other cores, the whole at once, a crop, the neighbours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geonorm.evaluation.measures import Disagreement, disagreement, no_disagreement
from geonorm.evaluation.neighbours import neighbour_strips
from geonorm.inference.job import Job
from geonorm.models.rescale import rescale_of
from geonorm.raster.cropped import Cropped
from geonorm.raster.read import RasterSource
from geonorm.raster.window import Window
from geonorm.tiling.engine import Predict, Strip
from geonorm.tiling.plan import Axis

Kind = Literal["aligned", "unaligned", "core", "whole", "crop", "neighbour", "train"]

TRAIN_TILES = 4
"""Tiles that share batch statistics where norms behave as in training."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """Another way to label a raster, to be held against the grid at rest."""

    kind: Kind
    by_px: int | tuple[int, int] | None = None
    """How far the grid moves, the side of the core, or rows and columns that a crop cuts off."""

    @property
    def name(self) -> str:
        """Name for files."""
        by = "-".join(map(str, self.by_px)) if isinstance(self.by_px, tuple) else str(self.by_px)
        return {
            "aligned": f"moved-{by}",
            "unaligned": f"moved-{by}",
            "core": f"core-{by}",
            "whole": "whole",
            "crop": f"crop-{by}",
            "neighbour": "neighbour",
            "train": "train",
        }[self.kind]

    @property
    def words(self) -> str:
        """What is done, for people."""
        match self.kind:
            case "aligned" | "unaligned":
                return f"grid moved by {self.by_px} px"
            case "core":
                return f"cores of {self.by_px} px"
            case "whole":
                return "the whole image in one pass"
            case "crop":
                rows, cols = self.by_px if isinstance(self.by_px, tuple) else (0, 0)
                return f"{rows} row{'s' * (rows != 1)} and {cols} column{'s' * (cols != 1)} cut off"
            case "neighbour":
                return "each pixel by the nearest tile next to its own"
            case "train":
                return f"norms as in training, {TRAIN_TILES} tiles at a time"


def rows_of(
    way: Way, job: Job, reader: RasterSource, *, batch_size: int = 1, progress: bool = False, title: str = ""
) -> Iterator[tuple[Window, Tensor, NDArray[np.bool_]]]:
    """Yield what a way of labelling says, from the top.

    Args:
        way: The way.
        job: The grid at rest.
        reader: Another reader of the same raster.
        batch_size: Tiles per network call.
        progress: Show a progress bar.
        title: What it is called.

    Yields:
        Rows of the raster, all columns or, of a crop, those that are left; logits ``(K, rows, cols)``; and where they
        can be held against the grid at rest, ``(rows, cols)``.
    """
    row, col = way.by_px if isinstance(way.by_px, tuple) else (0, 0)
    strips = _strips(way, job, reader, batch_size=batch_size, progress=progress, title=title)
    reach_px = cut_reach_px(job)
    for strip in strips:
        height, width = strip.output.shape[-2:]
        counts = strip.valid
        if way.kind == "crop":
            # What lies within reach of a cut may see that pixels are missing.
            inside = (strip.row + np.arange(height) >= reach_px * bool(row))[:, None]
            counts = counts & inside & (np.arange(width) >= reach_px * bool(col))[None]
        yield Window(row + strip.row, col, height, width), strip.output, counts


def _strips(
    way: Way, job: Job, reader: RasterSource, *, batch_size: int, progress: bool, title: str
) -> Iterator[Strip]:
    """Return the strips of a way of labelling, in pixels of what it labels."""
    if way.kind == "whole":
        return iter([job.whole(finish=_as_they_are)])
    if way.kind == "neighbour":
        return neighbour_strips(job, batch_size=batch_size, progress=progress, title=title)
    match way.kind, way.by_px:
        case "core", int(core_px):
            other = replace(job, reader=reader, plan=replace(job.plan, core_px=core_px))
        case "crop", (int(row), int(col)):
            other = _cropped(job, reader, row, col)
        case "train", _:
            other, batch_size = replace(job, reader=reader, predict=as_in_training(job)), TRAIN_TILES
        case _, int(shift_px):
            other = job.moved(shift_px, reader)
        case _:
            raise ValueError(f"{way} does not say by how much")
    return other.strips(finish=_as_they_are, batch_size=batch_size, progress=progress, title=title)


def cut_reach_px(job: Job) -> int:
    """Return how far from a cut a pixel may see that something is missing: further than the halo of whole cores."""
    return max(job.plan.axes[0].aligned_halo_px, job.geometry.halo_px or 0)


def borders_of(way: Way, job: Job) -> tuple[list[int], list[int]]:
    """Return the first rows and columns of the cores, but for those at the raster's edge, of both grids together."""
    plans = [job.plan]
    if way.kind in ("aligned", "unaligned") and isinstance(way.by_px, int):
        row, col = job.plan.grid_offset_px
        plans.append(replace(job.plan, grid_offset_px=(row + way.by_px, col + way.by_px)))
    elif way.kind == "core" and isinstance(way.by_px, int):
        plans.append(replace(job.plan, core_px=way.by_px))
    found = [{start for plan in plans for start in _starts(plan.axes[axis])} for axis in (0, 1)]
    if way.kind == "crop" and isinstance(way.by_px, tuple):
        # The same, unless the raster does not know its place.
        cropped = _cropped(job, job.reader, *way.by_px).plan.axes
        for starts, axis, cut in zip(found, cropped, way.by_px, strict=True):
            starts |= {start + cut for start in _starts(axis)}
    rows, cols = map(sorted, found)
    return rows, cols


def as_in_training(job: Job) -> Predict:
    """Return the network of a job as a function of tiles, its norms and dropouts as in training."""
    network = copy.deepcopy(job.model.network).train()
    device, asked = rescale_of(network).mean.device, job.plan.network
    empty_px = asked.side_px(2 * asked.margin_px + 1)

    def predict(tiles: Tensor) -> Tensor:
        if tiles.shape[-2:] == (empty_px, empty_px):  # only the shape of the answer is asked for
            return job.predict(tiles)
        with torch.no_grad():
            return network(tiles.to(device).to(torch.float32)).to(torch.float32)

    return predict


def rows_together(streams: Sequence[Iterator[Strip]]) -> Iterator[tuple[int, list[Tensor], Tensor]]:
    """Yield the rows that all streams have finished: first row, the output of each, validity.

    The strips of different grids end at different rows; each is cut where another ends.
    """
    strips = [next(stream, None) for stream in streams]
    row = 0
    while all(strip is not None for strip in strips):
        held = [strip for strip in strips if strip is not None]
        stop = min(strip.row + strip.rows for strip in held)
        parts = [strip.output[..., row - strip.row : stop - strip.row, :] for strip in held]
        valid = torch.tensor(held[0].valid[row - held[0].row : stop - held[0].row])
        yield row, parts, valid
        row = stop
        strips = [
            next(stream, None) if strip.row + strip.rows == stop else strip
            for strip, stream in zip(held, streams, strict=True)
        ]


def compare_grids(
    jobs: Sequence[Job], *, on_rows: Callable[[int, list[Tensor], Tensor], None], batch_size: int = 1
) -> list[Disagreement]:
    """Return how far the maps of the other jobs are from that of the first, run side by side, nothing written.

    Args:
        jobs: The same raster under several grids, each with a reader of its own.
        on_rows: Called with rows that all jobs have finished: first row, labels ``(rows, W)`` of each job, validity.
        batch_size: Tiles per network call.
    """
    found = [no_disagreement(len(jobs[0].model.spec.class_names)) for _ in jobs[1:]]
    streams = [job.strips(finish=_as_they_are, batch_size=batch_size) for job in jobs]
    for row, logits, valid in rows_together(streams):
        for which, other in enumerate(logits[1:]):
            found[which] += disagreement(logits[0], other, valid)
        on_rows(row, [one.max(0).indices for one in logits], valid)
    return found


def _cropped(job: Job, reader: RasterSource, row: int, col: int) -> Job:
    """Return the job of labelling the raster as if its first rows and columns had been cut off."""
    plan = job.plan
    source = Cropped(reader, Window(row, col, plan.height - row, plan.width - col))
    cropped = replace(plan, height=source.grid.height, width=source.grid.width, first_index=source.grid.first_index)
    return replace(job, reader=source, plan=cropped)


def _starts(axis: Axis) -> list[int]:
    return [span.core_start for span in axis.spans() if span.core_start > 0]


def _as_they_are(logits: Tensor) -> Tensor:
    return logits
