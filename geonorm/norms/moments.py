"""Mean and variance over sliding windows, by sums that are the same wherever a cell lies.

Every result is computed by one tree of element-wise operations that depends on the window alone: windows of
1, 2, 4, ... cells are merged by Chan's formula (Chan, Golub and LeVeque, 1983), and those the binary digits of
the window's length name are put together. A crop therefore gives bit for bit what the whole map gives, at the
cells whose windows lie inside it. Means are carried as differences to the window's first cell, so a constant
added to the map costs no accuracy. Only ``+``, ``-``, ``*`` are used, each rounded by itself: fused operations
(``addcmul``, ``add`` with ``alpha``) may round differently in the tail of a row than in its body.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Moments(NamedTuple):
    """Moments of equally many values at each cell, three tensors of one shape ``(..., rows, cols)``.

    ``first`` is the value that ``offset`` counts from: the mean is ``first + offset``. ``var`` is biased.
    """

    first: Tensor
    offset: Tensor
    var: Tensor


def group_moments(x: Tensor) -> Moments:
    """Return the moments over the channels of each group; ``x`` is ``(B, group_size, rows, cols)``."""
    group_size, first = x.shape[1], x[:, 0]
    if group_size == 1:
        zeros = torch.zeros_like(first)
        return Moments(first, zeros, zeros)
    rest = x[:, 1:] - first[:, None]
    offset = fold_channels(rest).mul_(1 / group_size)
    rest.sub_(offset[:, None])
    var = fold_channels(rest.mul_(rest)).add_(offset * offset).mul_(1 / group_size)
    return Moments(first, offset, var)


def fold_channels(x: Tensor) -> Tensor:
    """Return the sum over dimension 1 by repeated halving (a reduction's order would depend on the shape)."""
    if x.shape[1] == 1:
        return x[:, 0].clone()
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        folded = x[:, :half] + x[:, half : 2 * half]
        if x.shape[1] % 2:
            folded[:, 0] += x[:, -1]
        x = folded
    return x[:, 0]


def slide_moments(moments: Moments, window: int, dim: int, counts: Tensor | None = None) -> Moments:
    """Return the moments of each full window along ``dim``; that axis shrinks by ``window - 1``.

    Args:
        moments: Moments of single cells.
        window: Cells in the window, at most the axis' length.
        dim: Axis to slide along, counted from the end (-1 or -2).
        counts: 1 for each position that counts and 0 for each that does not, shape ``(length,)``; None if all do.
    """
    run, run_length = _Run(*moments, _as_axis(counts, dim)), 1
    total: _Run | None = None
    total_length = 0
    while True:
        if window & run_length:
            total = run if total is None else _merge(total, total_length, run, run_length, dim)
            total_length += run_length
        if 2 * run_length > window:
            break
        run = _merge(run, run_length, run, run_length, dim)
        run_length *= 2
    if total is None:
        raise ValueError(f"window must be at least 1, got {window}")
    length = moments.first.shape[dim] - window + 1
    total = total.narrow(dim, 0, length)
    var = total.m2 * (1 / window) if total.entries is None else total.m2 / total.entries
    return Moments(total.first, total.offset, var)


class _Run(NamedTuple):
    """Moments of a run of cells along one axis.

    ``m2`` is the sum, not the mean, of squared deviations; ``entries`` how many cells of the run count, None: all.
    """

    first: Tensor
    offset: Tensor
    m2: Tensor
    entries: Tensor | None

    def narrow(self, dim: int, start: int, length: int) -> _Run:
        """Return the runs from ``start`` on."""
        entries = None if self.entries is None else self.entries.narrow(dim, start, length)
        first, offset, m2 = (tensor.narrow(dim, start, length) for tensor in (self.first, self.offset, self.m2))
        return _Run(first, offset, m2, entries)


def _merge(a: _Run, a_length: int, b: _Run, b_length: int, dim: int) -> _Run:
    """Return the moments of each run of ``a`` together with the run of ``b`` that follows it."""
    size = b.offset.shape[dim] - a_length
    a, b = a.narrow(dim, 0, size), b.narrow(dim, a_length, size)
    if a.entries is None or b.entries is None:
        entries = None
        share: float | Tensor = b_length / (a_length + b_length)
        spread: float | Tensor = a_length * b_length / (a_length + b_length)
    else:
        entries = a.entries + b.entries
        share = b.entries / entries.clamp(min=1)
        spread = a.entries * share
    delta = (b.first - a.first).add_(b.offset).sub_(a.offset)
    m2 = (delta * delta).mul_(spread).add_(a.m2 + b.m2)
    return _Run(a.first, delta.mul_(share).add_(a.offset), m2, entries)


def slide_sum(x: Tensor, window: int, dim: int) -> Tensor:
    """Return the sum of each full window along ``dim``; that axis shrinks by ``window - 1``."""
    length = x.shape[dim] - window + 1
    run, run_length = x, 1
    total: Tensor | None = None
    total_length = 0
    while True:
        if window & run_length:
            if total is None:
                total = run
            else:
                size = run.shape[dim] - total_length
                total = total.narrow(dim, 0, size) + run.narrow(dim, total_length, size)
            total_length += run_length
        if 2 * run_length > window:
            break
        size = run.shape[dim] - run_length
        run = run.narrow(dim, 0, size) + run.narrow(dim, run_length, size)
        run_length *= 2
    if total is None:
        raise ValueError(f"window must be at least 1, got {window}")
    return total.narrow(dim, 0, length)


def before(window: int) -> int:
    """Return how many cells of a window lie before its centre (an even window has its extra cell after)."""
    return (window - 1) // 2


def local_moments(
    x: Tensor, *, window: tuple[int, int], border: str, height: int, rows: range
) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of the windows centred on the cells of some rows of a map.

    Args:
        x: The rows `source_rows` names, shape ``(B, group_size, source rows, W)``, float32 or float64.
        window: Rows and columns of the window.
        border: ``"nearest"`` or ``"clip"``.
        height: Rows of the whole map.
        rows: The rows of the map to return.

    Returns:
        Two tensors of shape ``(B, len(rows), W)``.
    """
    width = x.shape[-1]
    moments = group_moments(x)
    repeats: list[int] = []
    for dim, length, cells in ((-1, width, range(width)), (-2, height, rows)):
        size = window[dim]
        if axis_border(border, size, length) == "nearest":
            size = min(size, length)
            moments = slide_moments(moments, size, dim)
            repeats += _repeats(size, length, cells)
        else:
            moments, counts = _extend(moments, size, length, cells, dim)
            moments = slide_moments(moments, size, dim, counts)
            repeats += (0, 0)
    mean = moments.first + moments.offset
    return _repeated(mean, repeats), _repeated(moments.var, repeats)


def axis_border(border: str, window: int, length: int) -> str:
    """Return the rule for one axis: where it is shorter than the window, every cell takes the whole of it."""
    return "nearest" if length < window else border


def source_rows(window: int, border: str, height: int, rows: range) -> range:
    """Return the rows that the windows of ``rows`` reach, themselves included."""
    if axis_border(border, window, height) == "nearest":
        window = min(window, height)
        last_start = height - window
        start, stop = (min(max(row - before(window), 0), last_start) for row in (rows.start, rows.stop - 1))
        return range(start, stop + window)
    start = max(0, rows.start - before(window))
    return range(start, min(height, rows.stop - 1 - before(window) + window))


def _repeated(planes: Tensor, repeats: list[int]) -> Tensor:
    return pad(planes[None], repeats, mode="replicate")[0] if any(repeats) else planes


def _repeats(window: int, length: int, cells: range) -> tuple[int, int]:
    """Return how often the first and the last full window repeat so that each cell has the nearest one."""
    wanted = [cell - before(window) for cell in (cells.start, cells.stop - 1)]
    first, last = (min(max(start, 0), length - window) for start in wanted)
    head = min(first - wanted[0], len(cells) - 1) if wanted[0] < first else 0
    return head, len(cells) - (last - first + 1) - head


def _extend(moments: Moments, window: int, length: int, cells: range, dim: int) -> tuple[Moments, Tensor]:
    """Add cells that do not count, so that the windows of the border cells are full; return the counts too."""
    head = max(0, before(window) - cells.start)
    tail = max(0, cells.stop - 1 - before(window) + window - length)
    sizes = (head, tail, 0, 0) if dim == -1 else (0, 0, head, tail)
    counts = pad(torch.ones_like(moments.first[0].select(1 if dim == -2 else 0, 0)), (head, tail))
    # The values counted from are repeated outwards, so that their differences stay small.
    first = pad(moments.first[None], sizes, mode="replicate")[0]
    return Moments(first, pad(moments.offset, sizes), pad(moments.var, sizes)), counts


def box_sum_adjoint(planes: Tensor, *, window: tuple[int, int], border: str) -> Tensor:
    """Return for each cell the sum over all cells whose window holds it; ``planes`` is ``(B, H, W)``."""
    for dim in (-1, -2):
        length = planes.shape[dim]
        size = window[dim]
        if axis_border(border, size, length) == "nearest":
            size = min(size, length)
            planes = _gather_nearest(planes, size, dim)
            margins = (size - 1, size - 1)
        else:
            margins = (size - 1 - before(size), before(size))
        planes = slide_sum(pad(planes, (*margins, 0, 0) if dim == -1 else (0, 0, *margins)), size, dim)
    return planes


def window_counts(shape: tuple[int, int], *, window: tuple[int, int], like: Tensor) -> Tensor:
    """Return how many cells each window holds under ``border="clip"``, shape ``(H, W)``."""
    counts = []
    for length, size in zip(shape, window, strict=True):
        cells = torch.arange(length, device=like.device)
        start = (cells - before(size)).clamp(min=0)
        end = (cells - before(size) + size).clamp(max=length)
        inside = torch.full_like(cells, length) if length < size else end - start
        counts.append(inside.to(like.dtype))
    return counts[0][:, None] * counts[1]


def share_of_window(
    shape: tuple[int, int], group_size: int, *, window: tuple[int, int], border: str, like: Tensor
) -> float | Tensor:
    """Return one over the number of values in each window of a map ``(H, W)``: a number, or a plane."""
    height, width = shape
    if border == "nearest":
        return 1 / (group_size * min(window[0], height) * min(window[1], width))
    return 1 / (group_size * window_counts(shape, window=window, like=like))


def _gather_nearest(planes: Tensor, window: int, dim: int) -> Tensor:
    """Add to each full window what the cells it serves hold."""
    length = planes.shape[dim]
    head, full = before(window), length - window + 1
    gathered = planes.narrow(dim, head, full).clone()
    gathered.narrow(dim, 0, 1).add_(planes.narrow(dim, 0, head).sum(dim, keepdim=True))
    rest = planes.narrow(dim, head + full, length - head - full)
    gathered.narrow(dim, full - 1, 1).add_(rest.sum(dim, keepdim=True))
    return gathered


def _as_axis(counts: Tensor | None, dim: int) -> Tensor | None:
    return counts if counts is None or dim == -1 else counts[:, None]
