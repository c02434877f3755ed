"""Pixels in time for the tiles: read in chunks that follow the file's blocks, ahead of the network, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geonorm.raster.read import Pixels
from geonorm.raster.window import Window
from geonorm.tiling.plan import Plan, Span, Stretch

Read = Callable[[Window], Pixels]
"""Returns the pixels of a window that lies inside the raster."""

_Part = tuple[int, int, int]
"""Number of a chunk, counted from the top, and its first and last but one column."""

TALLEST_BLOCK_PX = 4096
"""Blocks that are higher are cut."""
AS_THEY_ARE = (np.uint8, np.int8, np.int16, np.int32)
"""Types that go to the device as they lie in the file; all others are made float32 before."""


@dataclass(frozen=True)
class Patch:
    """Some cores of one row of tiles."""

    strip: int
    """Which row of cores, counted from the top of the grid."""
    row: Span
    cols: tuple[Span, ...]

    @property
    def core(self) -> Window:
        """The pixels it writes."""
        first, last = self.cols[0], self.cols[-1]
        height = self.row.core_stop - self.row.core_start
        return Window(self.row.core_start, first.core_start, height, last.core_stop - first.core_start)

    def reads(self, plan: Plan) -> Window:
        """Return the pixels it needs at all phases, all inside the raster."""
        # A read that is reflected at one end may reach further at the other than the last one does.
        rows = [reflect(read.start, read.px, plan.height) for read in self.row.reads]
        cols = [
            reflect(read.start, read.px, plan.width) for span in (self.cols[0], self.cols[-1]) for read in span.reads
        ]
        return _bounds(np.concatenate(rows), np.concatenate(cols))


@dataclass(frozen=True)
class Chunk:
    """Some pixels of a raster."""

    window: Window
    pixels: Pixels | None
    """None where no pixel counts."""
    all_valid: bool
    """Whether every value of every pixel counts."""


class View:
    """What some chunks hold, as one raster; they cover all that is asked of it."""

    def __init__(self, chunks: Sequence[Chunk], plan: Plan, fill: Tensor, dtype: np.dtype[Any]) -> None:
        """Take the chunks, and what pixels without data hold, shape ``(C,)``."""
        self._chunks = chunks
        self._plan = plan
        self._fill = fill.to(torch.float32)
        self._dtype = dtype

    def tiles(self, row: Stretch, cols: Sequence[Stretch]) -> Tensor:
        """Return the tiles that are read in one row, ``(N, C, h, w)``.

        Raw values in the type of the file, if torch can take them to the device as they are; float32 otherwise, and
        where a pixel without data holds the fill.
        """
        plan = self._plan
        rows = reflect(row.start, row.px, plan.height)
        columns = [reflect(col.start, col.px, plan.width) for col in cols]
        windows = [_bounds(rows, one) for one in columns]
        found = [self._gather(window) for window in windows]
        plain = self._dtype.type in AS_THEY_ARE and all(filled is None for _, filled in found)
        tiles = []
        for window, one, (values, filled) in zip(windows, columns, found, strict=True):
            tile = torch.from_numpy(values)
            if not plain:
                tile = _as_float32(values)
                if filled is not None:
                    tile = torch.where(torch.from_numpy(filled), self._fill[:, None, None], tile)
            tiles.append(_reflected(tile, rows - window.row, one - window.col))
        return torch.stack(tiles) if len(tiles) > 1 else tiles[0][None]

    def valid(self, window: Window) -> NDArray[np.bool_]:
        """Return where the raster has data, ``(rows, cols)``."""
        valid = np.zeros((window.height, window.width), dtype=np.bool_)
        for chunk, there, here in self._parts(window):
            if chunk.pixels is not None:
                valid[here] = True if chunk.all_valid else chunk.pixels.valid[there]
        return valid

    def _gather(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Return the values of a window, and where they are to be made up, None where none is."""
        shape = (len(self._fill), window.height, window.width)
        parts = list(self._parts(window))
        values = np.empty(shape, dtype=self._dtype)
        filled = None if all(chunk.all_valid for chunk, _, _ in parts) else np.zeros(shape, dtype=np.bool_)
        for chunk, there, here in parts:
            if chunk.pixels is None:
                values[:, *here] = 0
            else:
                values[:, *here] = chunk.pixels.values[:, *there]
            if filled is not None and not chunk.all_valid:
                pixels = chunk.pixels
                filled[:, *here] = True if pixels is None else ~(pixels.value_valid[:, *there] & pixels.valid[there])
        return values, filled

    def _parts(self, window: Window) -> Iterator[tuple[Chunk, tuple[slice, slice], tuple[slice, slice]]]:
        """Yield the chunks that a window meets: where in the chunk, and where in the window."""
        for chunk in self._chunks:
            top, bottom = max(window.row, chunk.window.row), min(window.row_end, chunk.window.row_end)
            left, right = max(window.col, chunk.window.col), min(window.col_end, chunk.window.col_end)
            if top < bottom and left < right:
                yield chunk, _slices(chunk.window, top, bottom, left, right), _slices(window, top, bottom, left, right)


class Supply:
    """Reads what patches need, in threads, ahead of them. Use it in a ``with`` statement."""

    def __init__(
        self,
        reads: Sequence[Read],
        plan: Plan,
        *,
        block_rows: int,
        dtype: np.dtype[Any],
        fill: Tensor,
        holds_data: Callable[[Window], bool] = lambda window: True,
    ) -> None:
        """Take the readers, one for each thread that is to read; nothing is read yet.

        Args:
            reads: Readers of the same raster that do not share files.
            plan: Where the tiles lie.
            block_rows: Rows of the blocks of the file.
            dtype: Type of the values.
            fill: What pixels without data hold.
            holds_data: False for windows of which it is known, without reading, that no pixel counts.
        """
        self._plan = plan
        self._fill = fill
        self._dtype = dtype
        self.holds_data = holds_data
        self._chunk_rows = chunk_rows(plan, block_rows)
        self._free: SimpleQueue[Read] = SimpleQueue()
        for read in reads:
            self._free.put(read)
        self._pool = ThreadPoolExecutor(len(reads), thread_name_prefix="read")
        self._coming: dict[_Part, Future[Chunk]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def views(self, patches: Iterable[Patch], *, narrow: bool = False) -> Iterator[tuple[Patch, View]]:
        """Yield every patch with the pixels around it, while those of the next are read.

        Args:
            patches: In the order in which they are needed.
            narrow: Read their columns only; else the raster's whole width.
        """
        coming = iter(patches)
        patch = next(coming, None)
        while patch is not None:
            following = next(coming, None)
            needed = self._parts_of(patch, narrow=narrow)
            wanted = {*needed, *(self._parts_of(following, narrow=narrow) if following is not None else ())}
            self._coming = {
                part: self._coming.get(part) or self._pool.submit(self._read, part) for part in sorted(wanted)
            }
            chunks = [self._coming[part].result() for part in needed]
            yield patch, View(chunks, self._plan, self._fill, self._dtype)
            del chunks
            patch = following

    def _read(self, part: _Part) -> Chunk:
        number, col, col_end = part
        first = number * self._chunk_rows
        window = Window(first, col, min(self._chunk_rows, self._plan.height - first), col_end - col)
        if not self.holds_data(window):
            return Chunk(window, None, all_valid=False)
        read = self._free.get()
        try:
            return chunk_of(window, read(window))
        finally:
            self._free.put(read)

    def _parts_of(self, patch: Patch, *, narrow: bool) -> list[_Part]:
        window = patch.reads(self._plan)
        cols = (window.col, window.col_end) if narrow else (0, self._plan.width)
        numbers = range(window.row // self._chunk_rows, -(-window.row_end // self._chunk_rows))
        return [(number, *cols) for number in numbers]


def chunk_of(window: Window, pixels: Pixels) -> Chunk:
    """Return what was read; pixels that do not count take no memory."""
    if not pixels.valid.any():
        return Chunk(window, None, all_valid=False)
    all_valid = bool(pixels.valid.all() and pixels.value_valid.all())
    if all_valid:  # the masks are not needed any more
        everywhere = np.broadcast_to(np.array(True), pixels.values.shape)
        pixels = Pixels(pixels.values, everywhere, everywhere[0])
    return Chunk(window, pixels, all_valid=all_valid)


def patches(plan: Plan, strips: Iterable[int]) -> Iterator[Patch]:
    """Yield all cores of some rows of tiles, row by row."""
    rows, cols = (tuple(axis.spans()) for axis in plan.axes)
    for strip in strips:
        yield Patch(strip, rows[strip], cols)


def chunk_rows(plan: Plan, block_rows: int) -> int:
    """Return how many rows are read at a time: whole blocks, about a core high."""
    block_rows = 1 if block_rows > TALLEST_BLOCK_PX else block_rows
    return min(block_rows * max(1, round(plan.core_px / block_rows)), plan.height)


def reflect(start: int, length: int, size: int) -> NDArray[np.intp]:
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


def _bounds(rows: NDArray[np.intp], cols: NDArray[np.intp]) -> Window:
    top, left = int(rows.min()), int(cols.min())
    return Window(top, left, int(rows.max()) - top + 1, int(cols.max()) - left + 1)


def _slices(window: Window, top: int, bottom: int, left: int, right: int) -> tuple[slice, slice]:
    return slice(top - window.row, bottom - window.row), slice(left - window.col, right - window.col)


def _as_float32(values: NDArray[Any]) -> Tensor:
    with np.errstate(over="ignore"):  # a nodata value of float64 may be too large; it is filled
        return torch.from_numpy(values.astype(np.float32, copy=False))


def _reflected(tile: Tensor, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> Tensor:
    """Return the rows and columns of a tile ``(C, h, w)`` that are asked for, most often just those it has."""
    for dim, positions in ((1, rows), (2, cols)):
        if len(positions) != tile.shape[dim] or (np.diff(positions) != 1).any():
            tile = tile.index_select(dim, torch.from_numpy(positions))
    return tile
