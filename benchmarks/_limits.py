"""What this machine can do at most, measured on the spot: bytes copied and operations computed in a second.

Both in seconds of processor time, which other work lengthens least, and the best of several.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from _lines import Limit
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

MATRIX = 2048
LARGE_BYTES = 256 * 2**20
"""More than the caches of a processor."""


def limit_of_bytes(count: float, what: str, *, at: float | None = None) -> Limit:
    """Return the seconds in which so many bytes are read or written.

    Args:
        count: Bytes.
        what: Their name.
        at: Bytes a second; else those of a large copy.
    """
    speed = at or copied_bytes_per_second(LARGE_BYTES)
    return Limit(count / speed, f"{what} at {speed / 1e9:.1f} GB/s")


def limit_of_flops(count: float, *, by_the_clock: bool = False) -> Limit:
    """Return the seconds in which so many floating-point operations are computed.

    Args:
        count: Operations.
        by_the_clock: Of all threads at once, instead of processor time.
    """
    speed = flops_per_second() * (torch.get_num_threads() if by_the_clock else 1)
    return Limit(count / speed, f"{count / 1e9:.3g} GFLOP at {speed / 1e9:.0f} GFLOP/s")


@cache
def copied_bytes_per_second(size: int) -> float:
    """Return how many bytes a second are read and written by a copy of so many bytes to memory that is there."""
    source = torch.zeros(size // 4).fill_(1)
    target = source.clone()
    return 2 * source.nbytes / _best(lambda: target.copy_(source))


@cache
def flops_per_second() -> float:
    """Return the floating-point operations a second of a large product of matrices or convolution, the better one."""
    return max(matmul_flops_per_second(), convolution_flops_per_second())


@cache
def matmul_flops_per_second() -> float:
    """Return the floating-point operations a second of a large product of float32 matrices."""
    a = torch.ones(MATRIX, MATRIX)
    return 2 * MATRIX**3 / _best(lambda: a @ a)


@cache
def convolution_flops_per_second() -> float:
    """Return those of a 3 x 3 convolution from 128 to 128 channels on a map of 256 x 256."""
    layer = nn.Conv2d(128, 128, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.ones(1, 128, 256, 256).to(memory_format=torch.channels_last)
    with torch.no_grad():
        return flops_of(lambda: layer(x)) / _best(lambda: layer(x))


def flops_of(run: Callable[[], object]) -> int:
    """Return the operations of products of matrices and convolutions in a call, way back included if it goes it."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _best(run: Callable[[], object]) -> float:
    """Return the least seconds of a call, of 9."""
    best = float("inf")
    for turn in range(10):
        began = time.process_time()
        run()
        if turn:
            best = min(best, time.process_time() - began)
    return best
