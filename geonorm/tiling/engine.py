"""The loop over tiles: arrays in, strips out. No files and no particular network."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from geonorm.raster.read import Pixels
from geonorm.raster.window import Window
from geonorm.tiling.plan import Plan, Span

Read = Callable[[Window], Pixels]
"""Returns the pixels of a window that lies inside the raster."""
Predict = Callable[[Tensor], Tensor]
"""Maps raw band values ``(N, C, h, w)`` to logits ``(N, K, h', w')``."""


@dataclass(frozen=True)
class Strip:
    """Finished rows of a raster, over its whole width."""

    row: int
    """First row."""
    output: Tensor
    """What was asked for: labels ``(rows, W)`` or logits ``(K, rows, W)``."""
    valid: np.ndarray
    """True where the raster has data, shape ``(rows, W)``, bool."""

    @property
    def rows(self) -> int:
        """How many rows the strip has."""
        return self.output.shape[-2]


def labels_of(logits: Tensor) -> Tensor:
    """Return the class of the highest logit, ``(N, K, h, w)`` -> ``(N, h, w)``, uint8."""
    # max is 6 to 11 times faster than argmax over this dimension on the CPU.
    return logits.max(dim=1).indices.to(torch.uint8)


def predict_strips(
    read: Read,
    predict: Predict,
    plan: Plan,
    *,
    fill: Tensor,
    finish: Callable[[Tensor], Tensor] = labels_of,
    batch_size: int = 1,
    skip: Container[int] = (),
    on_tiles: Callable[[int], None] = lambda tiles: None,
) -> Iterator[Strip]:
    """Yield the raster's strips from the top, one row of cores each.

    Args:
        read: Gives the pixels of a window inside the raster.
        predict: The network.
        plan: Where the tiles lie.
        fill: What pixels without data hold when they enter the network: the training mean, shape ``(C,)``.
        finish: Turns the logits of cores, ``(N, K, h, w)``, into what a strip holds, ``(N, ..., h, w)``.
        batch_size: Tiles per call of the network.
        skip: First rows of strips to leave out: every strip is computed by itself, whatever came before.
        on_tiles: Called with the number of tiles done since the last call.
    """
    rows, cols = plan.axes
    for row in rows.spans():
        if row.core_start in skip:
            continue
        band = _read_rows(read, plan, row, fill)
        output: Tensor | None = None
        spans = cols.spans()
        while batch := list(islice(spans, batch_size)):
            tiles = torch.stack([band.columns(span) for span in batch])
            logits = predict(tiles)
            for span, tile in zip(batch, logits, strict=True):
                core = finish(_core(tile[None], row, span, plan.network.margin_px))[0].cpu()
                if output is None:
                    output = core.new_empty((*core.shape[:-1], plan.width))
                output[..., span.core_start : span.core_stop] = core
            on_tiles(len(batch))
        assert output is not None  # a raster has at least one column
        yield Strip(row.core_start, output, band.valid)


def predict_whole(
    read: Read,
    predict: Predict,
    plan: Plan,
    *,
    fill: Tensor,
    finish: Callable[[Tensor], Tensor] = labels_of,
) -> Strip:
    """Return the whole-image pass: the extended raster through the network at once, as one strip."""
    window = plan.whole()
    row = Span(0, plan.height, window.row, window.height)
    col = Span(0, plan.width, window.col, window.width)
    output = predict_tile(read, predict, plan, row, col, fill=fill, finish=finish)
    return Strip(0, output, read(Window(0, 0, plan.height, plan.width)).valid)


def predict_tile(
    read: Read,
    predict: Predict,
    plan: Plan,
    row: Span,
    col: Span,
    *,
    fill: Tensor,
    finish: Callable[[Tensor], Tensor] = labels_of,
) -> Tensor:
    """Return one core of the raster, ``(..., rows, cols)``."""
    band = _read_rows(read, plan, row, fill)
    return finish(_core(predict(band.columns(col)[None]), row, col, plan.network.margin_px))[0].cpu()


def reflect(start: int, length: int, size: int) -> np.ndarray:
    """Return the positions inside an axis that ``start .. start + length`` show, reflected at both ends.

    The end pixel is not repeated: beyond 0, 1, 2 comes 1, 0, 1, 2, as often as needed. An axis of one pixel
    repeats it.

    Example:
        >>> reflect(-2, 7, 3).tolist()
        [2, 1, 0, 1, 2, 1, 0]
    """
    if size == 1:
        return np.zeros(length, dtype=np.intp)
    period = 2 * (size - 1)
    positions = np.arange(start, start + length) % period
    return np.minimum(positions, period - positions)


@dataclass(frozen=True)
class _Band:
    """The rows that one row of cores reads, over the raster's whole width."""

    values: np.ndarray
    """Raw band values ``(C, rows, W)``."""
    filled: np.ndarray | None
    """True where a value is made up, ``(C, rows, W)``; None where none is."""
    fill: Tensor
    valid: np.ndarray
    """Of the rows of the core alone."""

    def columns(self, span: Span) -> Tensor:
        """Return the tile of one core, ``(C, rows, read_px)``, float32."""
        cols = reflect(span.read_start, span.read_px, self.values.shape[-1])
        with np.errstate(over="ignore"):  # a nodata value of float64 may be too large; it is filled below
            tile = torch.from_numpy(self.values[..., cols].astype(np.float32, copy=False))
        if self.filled is not None:
            tile = torch.where(torch.from_numpy(self.filled[..., cols]), self.fill[:, None, None], tile)
        return tile


def _read_rows(read: Read, plan: Plan, row: Span, fill: Tensor) -> _Band:
    rows = reflect(row.read_start, row.read_px, plan.height)
    first, last = int(rows.min()), int(rows.max())
    pixels = read(Window(first, 0, last - first + 1, plan.width))
    values = pixels.values[:, rows - first]
    filled = None
    if not pixels.valid.all() or not pixels.value_valid.all():
        filled = ~(pixels.value_valid & pixels.valid)[:, rows - first]
    valid = pixels.valid[row.core_start - first : row.core_stop - first]
    return _Band(values, filled, fill.to(torch.float32), valid)


def _core(logits: Tensor, row: Span, col: Span, margin_px: int) -> Tensor:
    """Return the core's part of the logits of one read."""
    top, left = (span.core_start - span.read_start - margin_px for span in (row, col))
    height, width = (span.core_stop - span.core_start for span in (row, col))
    return logits[..., top : top + height, left : left + width]
