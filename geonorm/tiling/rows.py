"""Rows of a raster through a network in one stream: every row is computed once, and labels leave below.

A raster that is too wide for the rows that are kept to fit into memory goes through in blocks of columns, with a halo
on the left and on the right, and a band of strips at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from geonorm.errors import InvalidConfigError
from geonorm.raster.window import Window
from geonorm.tiling.engine import Counts, Finish, Strip, counted, is_out_of_memory, labels_of
from geonorm.tiling.plan import Plan, Span, Stretch
from geonorm.tiling.supply import Patch, Supply

BAND_PX = 8192
"""Rows that go through together where the columns do not."""


class Stream(Protocol):
    """An image on its way through a network."""

    def push(self, rows: Tensor) -> Tensor | None:
        """Take the next rows, raw values ``(1, C, h, W)``; return the logits ``(1, K, h', W')`` they complete."""


OpenStream = Callable[[int], Stream]
"""Begins an image of so many rows."""


@dataclass(frozen=True)
class RowPlan:
    """How a raster goes through in a stream."""

    step_px: int
    """Rows that go in at a time, a multiple of the network's stride."""
    block_px: int | None = None
    """Columns that go through together; None: all."""

    def blocks(self, cols: Sequence[Span]) -> list[Sequence[Span]]:
        """Return the cores along the columns that go through together."""
        return _cuts(cols, self.block_px)

    def bands(self, rows: Sequence[Span]) -> list[Sequence[Span]]:
        """Return the cores along the rows that go through together."""
        return _cuts(rows, None if self.block_px is None else BAND_PX)

    def widest_px(self, plan: Plan) -> int:
        """Columns that the network sees at a time, at most."""
        return max(stretch_of(block).px for block in self.blocks([*plan.axes[1].spans()]))

    def overhead(self, plan: Plan) -> float:
        """How many pixels the network computes for each of the raster."""
        rows, cols = ([*axis.spans()] for axis in plan.axes)
        sides = [sum(stretch_of(part).px for part in parts) for parts in (self.bands(rows), self.blocks(cols))]
        return sides[0] * sides[1] / (plan.height * plan.width)


def predict_rows(
    supply: Supply,
    open_stream: OpenStream,
    plan: Plan,
    rows: RowPlan,
    *,
    blank: Callable[[int], Tensor],
    finish: Finish = labels_of,
    skip: Collection[int] = (),
    counts: Counts | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Iterator[Strip]:
    """Yield the raster's strips from the top: those of `geonorm.tiling.engine.predict_strips`, with an exact halo.

    Args:
        supply: Reads the pixels ahead.
        open_stream: The network.
        plan: The strips, which are the rows of its cores, with the exact halo.
        rows: How the raster goes through.
        blank: Makes the output of so many rows of which none counts, ``(..., rows, W)``.
        finish: Turns logits ``(N, K, h, w)`` into what a strip holds, ``(N, ..., h, w)``.
        skip: First rows of strips to leave out. Strips that lie together go through together; the first of them takes
            the rows of a halo above it.
        counts: Which pixels are wanted; all where None.
        on_rows: Called with the number of rows done since the last call.
    """
    all_rows, all_cols = ([*axis.spans()] for axis in plan.axes)
    to_do = [row for row in all_rows if row.core_start not in skip]
    wanted, cols = wanted_cores(plan, to_do, all_cols, holds_data=supply.holds_data, counts=counts)
    blocks = rows.blocks(cols)
    blanks = deque(row for row in to_do if row not in {*wanted})

    def blanks_above(end: int) -> Iterator[Strip]:
        while blanks and blanks[0].core_start < end:
            row = blanks.popleft()
            height = row.core_stop - row.core_start
            on_rows(height)
            yield Strip(row.core_start, blank(height), np.zeros((height, plan.width), np.bool_))

    for run in runs_of(plan, wanted):
        for band in rows.bands(run):
            for strip in _band(supply, open_stream, plan, band, blocks, rows.step_px, finish, counts, on_rows):
                yield from blanks_above(strip.row)
                yield strip
    yield from blanks_above(plan.height)


def pass_rows(
    supply: Supply,
    open_stream: OpenStream,
    plan: Plan,
    step_px: int,
    *,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Iterator[Tensor]:
    """Yield all rows that a network makes of the whole-image pass's image, ``(1, K, h', W')`` each.

    Args:
        supply: Reads the pixels ahead.
        open_stream: The network.
        plan: The grid.
        step_px: Rows that go in at a time.
        on_rows: Called with the number of rows that went in since the last call.
    """
    rows, cols = (axis.wholes[0] for axis in plan.axes)
    stream = open_stream(rows.px)
    for patch, view in supply.views(_patches(rows, cols, step_px, plan)):
        [step] = patch.row.reads
        made = stream.push(view.tiles(step, [cols]))
        if made is not None:
            yield made
        on_rows(step.px)


def _band(
    supply: Supply,
    open_stream: OpenStream,
    plan: Plan,
    band: Sequence[Span],
    blocks: Sequence[Sequence[Span]],
    step_px: int,
    finish: Finish,
    counts: Counts | None,
    on_rows: Callable[[int], None],
) -> Iterator[Strip]:
    """Yield the strips of a band, which goes through block by block."""
    read, margin_px = stretch_of(band), plan.network.margin_px
    valid = {row: np.zeros((row.core_stop - row.core_start, plan.width), np.bool_) for row in band}
    outputs: dict[Span, Tensor] = {}
    for block in blocks:
        cols = stretch_of(block)
        first, end = block[0].core_start, block[-1].core_stop
        stream, done = open_stream(read.px), read.start + margin_px
        waiting = deque(band)
        for patch, view in supply.views(_patches(read, cols, step_px, plan), narrow=True):
            [rows] = patch.row.reads
            logits = _pushed(stream, view.tiles(rows, [cols]))
            for row, part in _shared(band, rows.start, rows.stop):
                window = Window(row.core_start + part.start, first, part.stop - part.start, end - first)
                valid[row][part, first:end] = counted(view, window, counts)
            if logits is None:
                continue
            made = Stretch(done, logits.shape[-2])
            left = first - cols.start - margin_px
            for row, part in _shared(band, made.start, made.stop):
                top = row.core_start + part.start - made.start
                height = part.stop - part.start
                found = finish(logits[..., top : top + height, left : left + end - first])[0].cpu()
                if row not in outputs:
                    outputs[row] = torch.zeros((*found.shape[:-2], *valid[row].shape), dtype=found.dtype)
                outputs[row][..., part, first:end] = found
                if block is blocks[-1]:
                    on_rows(height)
            done = made.stop
            while block is blocks[-1] and waiting and waiting[0].core_stop <= done:
                row = waiting.popleft()
                output, wanted = outputs.pop(row), valid.pop(row)
                for col in (col for part in blocks for col in part):
                    if not wanted[:, col.core_start : col.core_stop].any():
                        output[..., col.core_start : col.core_stop] = 0
                yield Strip(row.core_start, output, wanted)


def _pushed(stream: Stream, rows: Tensor) -> Tensor | None:
    try:
        return stream.push(rows)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InvalidConfigError(
            "the rows of this network do not fit into the memory of the device. Take --engine tiles, with a smaller "
            "--core_px if need be."
        ) from error


def stretch_of(cores: Sequence[Span]) -> Stretch:
    """Return what is read for neighbouring cores together."""
    start, stop = cores[0].reads[0].start, cores[-1].reads[0].stop
    return Stretch(start, stop - start)


def runs_of(plan: Plan, rows: Sequence[Span]) -> Iterator[list[Span]]:
    """Yield strips that are worth going through together: a gap of less than two halos is cheaper than a new start."""
    run: list[Span] = []
    for row in rows:
        if run and row.core_start - run[-1].core_stop > 2 * plan.axes[0].aligned_halo_px:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def wanted_cores(
    plan: Plan,
    rows: Sequence[Span],
    cols: Sequence[Span],
    *,
    holds_data: Callable[[Window], bool],
    counts: Counts | None,
) -> tuple[list[Span], list[Span]]:
    """Return the strips, and the cores along the columns, that may hold a pixel that counts.

    Args:
        plan: The grid.
        rows: The strips that are to be done.
        cols: The cores along the columns.
        holds_data: False for windows of which it is known, without reading, that no pixel counts.
        counts: Which pixels are wanted; all where None.
    """
    wanted, columns = [], np.zeros(plan.width, np.bool_)
    for row in rows:
        window = Window(row.core_start, 0, row.core_stop - row.core_start, plan.width)
        if not holds_data(window):
            continue
        found = np.ones(plan.width, np.bool_) if counts is None else counts(window).any(axis=0)
        if found.any():
            wanted.append(row)
            columns |= found
    places = np.flatnonzero(columns)
    if len(places) == 0:
        return [], list(cols)
    return wanted, [col for col in cols if col.core_stop > places[0] and col.core_start <= places[-1]]


def _patches(rows: Stretch, cols: Stretch, step_px: int, plan: Plan) -> Iterator[Patch]:
    for start in range(rows.start, rows.stop, step_px):
        step = Stretch(start, min(step_px, rows.stop - start))
        yield Patch(0, Span(0, plan.height, (step,)), (Span(0, plan.width, (cols,)),))


def _shared(rows: Sequence[Span], start: int, stop: int) -> Iterator[tuple[Span, slice]]:
    """Yield the strips that some rows of the raster meet, and which of the strip's rows these are."""
    for row in rows:
        first, end = max(start, row.core_start), min(stop, row.core_stop)
        if first < end:
            yield row, slice(first - row.core_start, end - row.core_start)


def _cuts(cores: Sequence[Span], most_px: int | None) -> list[Sequence[Span]]:
    """Return neighbouring cores in parts of so many pixels at most, or of one core."""
    parts: list[list[Span]] = []
    for core in cores:
        if parts and (most_px is None or core.core_stop - parts[-1][0].core_start <= most_px):
            parts[-1].append(core)
        else:
            parts.append([core])
    return [*parts]
