"""A raster labelled by the wrong tiles: each pixel by the tile next to its own, as far as that sees it.

Where tiles overlap they give two answers. One is kept; this is the other one, of the nearest neighbour to the left,
right, above or below. A pixel d px from the border of its core is d px outside the neighbour's, which so has d px less
of the halo left for it: how far the answers differ at d says what a halo smaller by d would do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from geonorm.inference.job import Job
from geonorm.raster.window import Window
from geonorm.tiling.engine import Halving, Strip, view_of
from geonorm.tiling.plan import Axis, Span

LEFT, RIGHT, ABOVE, BELOW = range(4)
FAR = np.iinfo(np.int64).max


def neighbour_strips(
    job: Job, *, batch_size: int = 1, progress: bool = False, title: str = "neighbours"
) -> Iterator[Strip]:
    """Yield strips of logits ``(K, rows, W)`` by the neighbours; not valid where none sees the pixel.

    Args:
        job: The grid whose tiles answer.
        batch_size: Tiles per network call.
        progress: Show a progress bar.
        title: What it is called.
    """
    plan = job.plan
    rows, cols = (tuple(axis.spans()) for axis in plan.axes)
    # A tile sees further where it was moved inward, but then not as far as the halo is meant to reach.
    reach_px = min(plan.axes[0].aligned_halo_px - plan.network.margin_px, plan.core_px // 2)
    network = Halving(job.predict, batch_size, margin_px=plan.network.margin_px)
    parts: dict[int, _Part] = {}
    # A reader of its own, as the grid at rest may be read meanwhile.
    with (
        job.reader.reopen() as reader,
        tqdm(total=len(rows) * len(cols), unit="tile", desc=title, disable=not progress) as bar,
    ):
        for strip, row in enumerate(rows):
            view = view_of(reader.read, plan, row, cols, fill=job.fill)
            for near in (strip - 1, strip, strip + 1):
                if 0 <= near < len(rows) and near not in parts:
                    parts[near] = _Part(rows[near], plan.axes, reach_px)
            top, height = _within(row, plan.height, reach_px)
            windows = {}
            for col in cols:
                left, width = _within(col, plan.width, reach_px)
                windows[col] = Window(top, left, height, width)
            for batch, logits in network.answers(view, row, windows):
                for col, said in zip(batch, logits, strict=True):
                    for near, part in parts.items():
                        part.take(said.cpu(), windows[col], col, near - strip)
                bar.update(len(batch))
            if strip:
                yield _strip(parts.pop(strip - 1), job)
        yield _strip(parts.pop(len(rows) - 1), job)


def _within(span: Span, length: int, reach_px: int) -> tuple[int, int]:
    """Return the first pixel, and how many, of a core and what lies within a reach of it on both sides."""
    start, stop = max(0, span.core_start - reach_px), min(length, span.core_stop + reach_px)
    return start, stop - start


def nearest(span: Span, axis: Axis) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how far the pixels of a core lie outside the one before, and the one after; `FAR` where there is none."""
    pixels = np.arange(span.core_start, span.core_stop)
    before = pixels - span.core_start + 1 if span.core_start > 0 else np.full(len(pixels), FAR)
    after = span.core_stop - pixels if span.core_stop < axis.length else np.full(len(pixels), FAR)
    return before, after


class _Part:
    """The pixels of a row of cores, as their neighbours see them."""

    def __init__(self, row: Span, axes: tuple[Axis, Axis], reach_px: int) -> None:
        self.row = row
        above, below = nearest(row, axes[0])
        sides = [nearest(col, axes[1]) for col in axes[1].spans()]
        left, right = (np.concatenate([side[which] for side in sides]) for which in (0, 1))
        across, along = np.minimum(left, right), np.minimum(above, below)
        beside = np.where(right < left, RIGHT, LEFT).astype(np.uint8)
        over = np.where(below < above, BELOW, ABOVE).astype(np.uint8)
        self._side = np.where(along[:, None] < across[None], over[:, None], beside[None])
        self.seen = (across <= reach_px)[None] | (along <= reach_px)[:, None]
        self.logits: Tensor | None = None

    def take(self, said: Tensor, seen: Window, col: Span, offset: int) -> None:
        """Take what a tile says of its neighbours' pixels.

        Args:
            said: Its logits, ``(K, h, w)``.
            seen: The window of the raster that they belong to.
            col: The columns of its core.
            offset: How many rows of cores this part lies below the tile's.
        """
        top, bottom = max(seen.row, self.row.core_start), min(seen.row_end, self.row.core_stop)
        if offset:
            sides = [(ABOVE if offset > 0 else BELOW, col.core_start, col.core_stop)]
        else:
            sides = [(RIGHT, seen.col, col.core_start), (LEFT, col.core_stop, seen.col_end)]
        for side, left, right in sides:
            if top < bottom and left < right:
                self._put(said, seen, Window(top, left, bottom - top, right - left), side)

    def _put(self, said: Tensor, seen: Window, window: Window, side: int) -> None:
        if self.logits is None:
            self.logits = torch.zeros((len(said), *self.seen.shape))
        first = self.row.core_start
        here = slice(window.row - first, window.row_end - first), slice(window.col, window.col_end)
        there = (
            slice(window.row - seen.row, window.row_end - seen.row),
            slice(window.col - seen.col, window.col_end - seen.col),
        )
        wanted = torch.from_numpy((self._side[here] == side) & self.seen[here])
        self.logits[:, *here] = torch.where(wanted, said[:, *there], self.logits[:, *here])


def _length(span: Span) -> int:
    return span.core_stop - span.core_start


def _strip(part: _Part, job: Job) -> Strip:
    window = Window(part.row.core_start, 0, _length(part.row), job.plan.width)
    valid = job.reader.read(window).valid
    logits = part.logits
    if logits is None:
        logits = torch.zeros((len(job.model.spec.class_names), window.height, window.width))
    return Strip(window.row, logits, part.seen & valid)
