"""Local statistics in operators that every runtime knows, for networks that leave torch: float64 sums along each axis.

A running sum of the whole axis and the difference of two of its values serve any window and any size of map with a
dozen operators, where sums of 2, 4, 8, ... cells would take hundreds. Sums in float64 keep ten digits and more of a
variance, but not the same bits wherever a cell lies, and one NaN would reach the end of its row: so this is for export
alone (`plain_operators`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from geonorm.norms.compiled import plain_torch
from geonorm.norms.moments import before

_wanted = ContextVar("_wanted", default=False)


@contextmanager
def plain_operators() -> Iterator[None]:
    """Compute every norm in operators of torch alone inside, Local Context Norm included."""
    token = _wanted.set(True)
    try:
        with plain_torch():
            yield
    finally:
        _wanted.reset(token)


def plain_operators_wanted() -> bool:
    """Return whether `plain_operators` holds."""
    return _wanted.get()


def local_statistics(x: Tensor, group_size: int, window: list[int], border: str) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each group in the window of each cell, ``(N, groups, H, W)``, in float64.

    No branch depends on the size of the map, so one traced program serves all sizes. Windows are those of
    `geonorm.norms.LocalContextNorm`.
    """
    groups = x.double().unflatten(1, (-1, group_size))
    planes = torch.stack((groups.mean(2), (groups * groups).mean(2)))
    for dim, size in ((-2, window[0]), (-1, window[1])):
        start, end = _windows(x, dim, size, border)
        cells = (end - start).double()
        planes = _slid(planes, start, end, dim) / (cells if dim == -1 else cells[:, None])
    mean = planes[0]
    return mean, (planes[1] - mean * mean).clamp(min=0.0)


def local_context_norm(
    x: Tensor, weight: Tensor, bias: Tensor, group_size: int, window: list[int], border: str, eps: float
) -> Tensor:
    """Return what `geonorm.norms.LocalContextNorm` does."""
    wide, var = local_statistics(x, group_size, window, border)
    mean = wide.to(x.dtype)
    rest = (wide - mean).to(x.dtype)  # what float32 leaves of the mean
    rstd = torch.rsqrt(var + eps).to(x.dtype)
    groups = x.unflatten(1, (-1, group_size))
    y = (((groups - mean[:, :, None]) - rest[:, :, None]) * rstd[:, :, None]).flatten(1, 2)
    return y * weight.to(x.dtype)[:, None, None] + bias.to(x.dtype)[:, None, None]


def _windows(x: Tensor, dim: int, size: int, border: str) -> tuple[Tensor, Tensor]:
    """Return the first and the last but one cell of each cell's window along an axis."""
    cells = torch.arange(x.shape[dim], device=x.device)
    first = cells - before(size)
    # A tensor, because exporters take long over arithmetic with numbers that stand for any size.
    length = cells[-1:] + 1
    if border == "nearest":
        start = torch.minimum(first, length - size).clamp(min=0)
        return start, torch.minimum(start + size, length)
    # An axis shorter than its window is covered whole: the windows are made to reach beyond both of its ends.
    more = (length < size).long() * size
    return (first - more).clamp(min=0), torch.minimum(first + size + more, length)


def _slid(values: Tensor, start: Tensor, end: Tensor, dim: int) -> Tensor:
    """Return the sum of each window."""
    sums = pad(values.cumsum(dim), (1, 0) if dim == -1 else (0, 0, 1, 0))
    return sums.index_select(dim, end) - sums.index_select(dim, start)
