"""Tensors into the compiled loops of Local Context Norm: which ones, in which threads, in which memory."""

from __future__ import annotations

import ctypes
import importlib
import logging
import mmap
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from geonorm.errors import GeonormWarning
from geonorm.norms.moments import axis_border

VALUES_PER_THREAD = 2**16
"""Values below which another thread costs more than it brings."""

MOST_THREADS = 256

logger = logging.getLogger("geonorm.norms")

_enabled = ContextVar("_enabled", default=os.environ.get("GEONORM_COMPILED", "1") != "0")


def loops_for(x: Tensor) -> ModuleType | None:
    """Return the compiled loops if they take this tensor: on the CPU, up to float32; else None."""
    if not _enabled.get() or x.device.type != "cpu" or x.dtype == torch.float64 or x.numel() == 0:
        return None
    return _loops(LOOPS)


def plane_loops_for(x: Tensor) -> ModuleType | None:
    """Return the compiled loops over whole planes if they take this tensor: float32 on the CPU; else None."""
    if not _enabled.get() or x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() == 0:
        return None
    return _loops(PLANE_LOOPS)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Compute in plain torch inside, as where numba is missing."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


@cache
def _loops(name: str) -> ModuleType | None:
    """Return a module of loops, or None where numba cannot be used."""
    try:
        return _import_and_compile(name)
    except (ImportError, OSError, RuntimeError) as error:
        _warn_of(str(error))
        return None


@cache
def _warn_of(fault: str) -> None:
    warnings.warn(
        "Local Context Norm and Switchable Norm are computed in plain torch, two to four times slower, because "
        f"numba cannot be used: {fault}. `pip install numba` mends most of that; GEONORM_COMPILED=0 takes plain "
        "torch without this line.",
        GeonormWarning,
        stacklevel=3,
    )


def _import_and_compile(name: str) -> ModuleType:
    """Compile what every layer needs, which takes a place to write to; where there is none, one of this process."""
    try:
        return _probed(name)
    except (OSError, RuntimeError) as error:
        # numba can write neither beside the source nor in the user's home, or the disk is full.
        if isinstance(error, RuntimeError) and "cannot cache" not in str(error):
            raise
        import numba

        numba.config.CACHE_DIR = _scratch_folder().name  # type: ignore[attr-defined]  # made as numba is imported
        sys.modules.pop(name, None)
        return _probed(name)


def _probed(name: str) -> ModuleType:
    loops = importlib.import_module(name)
    if not _is_kept(getattr(loops, FIRST[name])) and os.environ.get("LOCAL_RANK", "0") == "0":
        logger.warning(
            "geonorm: compiling the loops of Local Context Norm and Switchable Norm for this machine: once, up to a "
            "minute"
        )
    PROBES[name](loops)
    return loops


def _is_kept(loop: Any) -> bool:
    """Return whether numba has kept a compiled loop, as far as the names of its files tell."""
    folder = loop.stats.cache_path
    names = os.listdir(folder) if folder and os.path.isdir(folder) else []
    return any(name.startswith(f"{loop.__module__.rpartition('.')[2]}.{loop.__name__}-") for name in names)


def _normalize_one_cell(loops: ModuleType) -> None:
    cell, one = torch.ones(1, 1, 1, 1), torch.ones(1)
    forward(loops, cell, one, one, 1, (1, 1), "nearest", 1e-5, keep=loops.NOTHING)


def _take_moments_of_one_cell(loops: ModuleType) -> None:
    cell = torch.ones(1, 1).numpy()
    loops.moments(cell, cell[0].copy(), cell[0].copy(), (0, 1))


LOOPS, PLANE_LOOPS = "geonorm.norms.loops", "geonorm.norms.plane_loops"
FIRST = {LOOPS: "forward", PLANE_LOOPS: "moments"}
"""The loop of each module that a probe compiles."""
PROBES: dict[str, Callable[[ModuleType], None]] = {LOOPS: _normalize_one_cell, PLANE_LOOPS: _take_moments_of_one_cell}


@cache
def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that goes with this process."""
    return tempfile.TemporaryDirectory(prefix="geonorm-")


def forward(
    loops: ModuleType,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    group_size: int,
    window: tuple[int, int],
    border: str,
    eps: float,
    *,
    keep: int,
    wanted: range | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalized map and what ``keep`` asks for, as `loops.forward` does; of rows all or those wanted."""
    num, channels, height, width = x.shape
    num_groups = channels // group_size
    normalizes = keep != loops.MEAN_AND_VAR
    y = in_large_pages(torch.empty_like(x)) if normalizes else x.new_empty(0)
    kept = (num, num_groups, height, width) if keep != loops.NOTHING else (0, 0, 0, 0)
    mean, spread = (in_large_pages(x.new_empty(kept, dtype=torch.float32)) for _ in range(2))
    rows, cols = _axes(window, border, height, width)
    weights, biases = (values.detach().float().reshape(num_groups, group_size) for values in (weight, bias))

    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    for index in _samples(x, last=last):
        maps = _maps(x[index], group_size, last=last)
        result = _room(y[index], maps, last=last) if normalizes else torch.empty(0, 0, 0, 0)
        planes = [plane[index] if keep != loops.NOTHING else plane for plane in (mean, spread)]
        planes = planes if last else [plane.flatten(0, 1) for plane in planes]
        arrays = [part.numpy() for part in (maps, result, *planes, weights, biases)]
        loop = loops.forward_channels_last if last else loops.forward

        def work(
            part: tuple[int, int, int, int], loop: Callable[..., None] = loop, arrays: Sequence[object] = arrays
        ) -> None:
            loop(*arrays, rows, cols, eps, keep, part)

        _share_out(work, maps.shape[0], wanted or range(height), values=maps.numel())
        if normalizes:
            _put_back(result, y[index], last=last)
    return y, mean, spread


def backward(
    loops: ModuleType,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    group_size: int,
    window: tuple[int, int],
    border: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, ``weight`` and ``bias``, as `loops.backward` computes them."""
    _, channels, height, width = x.shape
    num_groups = channels // group_size
    grad_x = in_large_pages(torch.empty_like(x))
    grad_weight, grad_bias = (torch.zeros(num_groups, group_size, dtype=torch.float64) for _ in range(2))
    rows, cols = _axes(window, border, height, width)
    weights = weight.detach().float().reshape(num_groups, group_size)

    for index in _samples(x):
        upstream, maps = _maps(grad[index], group_size), _maps(x[index], group_size)
        result = _room(grad_x[index], maps)
        sums = torch.empty(2, maps.shape[0], group_size, dtype=torch.float64)
        planes = [plane[index].flatten(0, 1) for plane in (mean, rstd)]
        arrays = [part.numpy() for part in (upstream, maps, *planes, weights, result, sums[0], sums[1])]

        def work(part: tuple[int, int, int, int], arrays: Sequence[object] = arrays) -> None:
            loops.backward(*arrays, rows, cols, part[:2])

        _share_out(work, maps.shape[0], range(0), values=maps.numel())
        of_weight, of_bias = sums.unflatten(1, (-1, num_groups)).sum(1)
        grad_weight += of_weight
        grad_bias += of_bias
        _put_back(result, grad_x[index])
    return grad_x, grad_weight.flatten().to(weight.dtype), grad_bias.flatten().to(weight.dtype)


def _axes(window: tuple[int, int], border: str, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return for each axis the length of its window and whether it is cut at the border."""
    rows, cols = (
        (min(size, length), int(axis_border(border, size, length) == "clip"))
        for size, length in zip(window, (height, width), strict=True)
    )
    return rows, cols


def _samples(x: Tensor, *, last: bool = False) -> Iterator[slice]:
    """Yield samples to be worked through together: all, or one after the other where they have to be copied."""
    memory_format = torch.channels_last if last else torch.contiguous_format
    at_once = x.shape[0] if x.dtype == torch.float32 and x.is_contiguous(memory_format=memory_format) else 1
    for sample in range(0, x.shape[0], at_once):
        yield slice(sample, sample + at_once)


def _maps(x: Tensor, group_size: int, *, last: bool = False) -> Tensor:
    """Return float32 maps, a copy where need be: ``(samples * groups, group_size, H, W)``, or channels last."""
    if last:
        return x.detach().float().permute(0, 2, 3, 1).contiguous()
    return x.detach().float().contiguous().reshape(-1, group_size, *x.shape[2:])


def _room(y: Tensor, maps: Tensor, *, last: bool = False) -> Tensor:
    """Return ``y`` itself in the shape of the maps where that can be written to, else space of that shape."""
    values = y.permute(0, 2, 3, 1) if last else y
    if values.is_contiguous() and y.dtype == torch.float32:
        return values.view(maps.shape)
    return torch.empty_like(maps)


def _put_back(result: Tensor, y: Tensor, *, last: bool = False) -> None:
    """Copy a result to where it belongs, unless it was written there."""
    if result.data_ptr() != y.data_ptr():
        y.copy_(result.permute(0, 3, 1, 2) if last else result.reshape(y.shape))


def _share_out(work: Callable[[tuple[int, int, int, int]], None], num_maps: int, rows: range, *, values: int) -> None:
    """Do all maps, spread over torch's number of threads: by maps, or where these are few by rows, if any are given."""
    threads = _threads(values)
    strips = 1 if not rows or num_maps >= 2 * threads else min(len(rows), threads)
    parts_of_rows = [(rows.start + first, rows.start + end) for first, end in _cuts(len(rows), strips)]
    maps = _cuts(num_maps, 1 if strips > 1 else threads)
    parts = [(*some, *rows_of) for some in maps for rows_of in parts_of_rows]
    _run(work, parts)


def share_out_planes(work: Callable[[tuple[int, int]], None], planes: int, *, values: int) -> None:
    """Do all planes, spread over torch's number of threads."""
    _run(work, _cuts(planes, _threads(values)))


Part = TypeVar("Part")


def _run(work: Callable[[Part], None], parts: Sequence[Part]) -> None:
    if len(parts) == 1:
        work(parts[0])
        return
    waiting = [_pool().submit(work, part) for part in parts[1:]]
    try:
        work(parts[0])
    finally:
        wait(waiting)
    for part in waiting:
        part.result()


def _threads(values: int) -> int:
    return min(torch.get_num_threads(), MOST_THREADS, max(1, values // VALUES_PER_THREAD))


def _cuts(length: int, parts: int) -> list[tuple[int, int]]:
    """Return the beginnings and ends of about equal parts."""
    parts = max(1, min(parts, length))
    at = [length * part // parts for part in range(parts + 1)]
    return list(pairwise(at))


@cache
def _pool() -> ThreadPoolExecutor:
    """Return threads that are started as they are needed; no more than the parts at once are ever busy."""
    return ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="geonorm-loops")


def in_large_pages(values: Tensor) -> Tensor:
    """Ask for large pages before a tensor is first written to, where the system has them; return it.

    Fresh memory costs a fault for each page: for a map of 64 MiB three times what GroupNorm computes in it.
    """
    advise = _advise()
    if advise is not None and values.numel() * values.element_size() >= LARGE:
        begin = -(-values.data_ptr() // LARGE) * LARGE
        end = (values.data_ptr() + values.numel() * values.element_size()) // LARGE * LARGE
        if end > begin:
            advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)
    return values


LARGE = 2**21
"""Bytes of a large page."""


@cache
def _advise() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        return ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads are not inherited
