"""Local Context Norm by Triton kernels: where they are used, and how they are called."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from geonorm.errors import GeonormWarning
from geonorm.norms.moments import axis_border, before, box_sum_adjoint, share_of_window

BLOCK = 1024
"""Cells a program works on."""

TILE = 2048
"""Cells of the windows of some lines that a program slides over at once."""

LARGEST_WINDOW = 2048
"""Cells of a window that fit into a program; longer ones are left to plain torch."""


def kernels_for(x: Tensor, window: tuple[int, int]) -> ModuleType | None:
    """Return the kernels if they take this tensor: on a CUDA device, up to float32, on a device where they work."""
    if x.device.type != "cuda" or x.dtype == torch.float64 or x.numel() == 0:
        return None
    if max(min(size, length) for size, length in zip(window, x.shape[2:], strict=True)) > LARGEST_WINDOW:
        return None
    return _working_kernels(x.device)


@cache
def _working_kernels(device: torch.device) -> ModuleType | None:
    """Return the kernels if what they compute on this device is what plain torch computes there."""
    try:
        kernels = importlib.import_module("geonorm.norms.gpu_kernels")
        fault = _fault(kernels, device)
    except torch.OutOfMemoryError:  # nothing is known then
        raise
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
    if fault is None:
        return kernels
    warnings.warn(
        f"Local Context Norm runs on {device} in plain torch, several times slower, because its Triton kernels do not "
        f"work there: {fault}. Newer versions of torch and Triton may help.",
        GeonormWarning,
        stacklevel=2,
    )
    return None


def _fault(kernels: ModuleType, device: torch.device) -> str | None:
    """Return what is wrong with the kernels on a device, measured on a small map; None: nothing."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(1, 8, 9, 14, generator=generator, dtype=torch.float64).to(device) for _ in range(2))
    weight, bias = (torch.rand(8, generator=generator, dtype=torch.float64).to(device) for _ in range(2))
    from geonorm.norms.local_context import local_context_norm, local_context_norm_backward  # which use this module

    expected, mean, rstd = local_context_norm(x, weight, bias, 4, [3, 5], "nearest", 1e-5)
    expected_grad, *_ = local_context_norm_backward(grad, x, weight, mean, rstd, 4, [3, 5], "nearest")
    x, weight, bias, grad = (value.float() for value in (x, weight, bias, grad))
    got, mean, rstd = forward(kernels, x, weight, bias, 4, (3, 5), "nearest", 1e-5, keep=True)
    got_grad, *_ = backward(kernels, grad, x, weight, mean, rstd, 4, (3, 5), "nearest")
    for name, one, other in (("output", got, expected), ("gradient", got_grad, expected_grad)):
        error = float((one.double() - other).abs().max())
        if not error < 1e-4:
            return f"their {name} is {error:.1e} away from plain torch's"
    return None


def forward(
    kernels: ModuleType,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    group_size: int,
    window: tuple[int, int],
    border: str,
    eps: float,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalized map, and mean and reciprocal deviation of each group if ``keep``."""
    num, channels, height, width = x.shape
    groups, cells = channels // group_size, height * width
    y = torch.empty_like(x)
    shape = (num, groups, height, width) if keep else (0, 0, 0, 0)
    kept_mean, kept_rstd = (x.new_empty(shape, dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(x):
        moments, begins = _window_moments(kernels, x, group_size, window, border)
        kernels.normalize[(_blocks(cells), num * groups)](
            x,
            y,
            *moments,
            kept_mean,
            kept_rstd,
            weight.contiguous(),
            bias.contiguous(),
            eps,
            groups,
            cells,
            width,
            *moments[0].shape[1:],
            *begins,
            *x.stride(),
            *y.stride(),
            group_size=group_size,
            keep=keep,
            block_cells=BLOCK,
        )
    return y, kept_mean, kept_rstd


def backward(
    kernels: ModuleType,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    group_size: int,
    window: tuple[int, int],
    border: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, ``weight`` and ``bias``; sums over planes are taken by plain torch."""
    num, channels, height, width = x.shape
    groups, cells, blocks = channels // group_size, height * width, _blocks(height * width)
    grad_x = torch.empty_like(x)
    of_mean, of_var = (x.new_empty((num * groups, height, width), dtype=torch.float64) for _ in range(2))
    sums = x.new_empty((num, channels, blocks, 2), dtype=torch.float32)
    sizes = {"group_size": group_size, "block_cells": BLOCK}
    numbers = (groups, cells, width)
    strides = (*x.stride(), *grad.stride())
    grid = (blocks, num * groups)
    weight = weight.contiguous()
    with torch.cuda.device_of(x):
        kernels.weigh[grid](grad, x, mean, rstd, weight, of_mean, of_var, sums, *numbers, blocks, *strides, **sizes)
        share = share_of_window((height, width), group_size, window=window, border=border, like=of_mean)
        boxes = [
            box_sum_adjoint(plane.mul_(share), window=window, border=border).contiguous() for plane in (of_mean, of_var)
        ]
        kernels.pass_on[grid](
            grad, x, grad_x, mean, rstd, *boxes, weight, *numbers, *strides, *grad_x.stride(), **sizes
        )
    of_weight, of_bias = sums.sum((0, 2), dtype=torch.float64).unbind(1)
    return grad_x, of_weight.to(weight.dtype), of_bias.to(weight.dtype)


def statistics(
    kernels: ModuleType, x: Tensor, group_size: int, window: tuple[int, int], border: str
) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each group in the window of each cell, ``(N, groups, H, W)``."""
    num, channels, height, width = x.shape
    with torch.cuda.device_of(x):
        (start, mean, var), begins = _window_moments(kernels, x, group_size, window, border)
    rows, cols = (
        (torch.arange(length, device=x.device) - begin).clamp(0, full - 1)
        for length, begin, full in zip((height, width), begins, mean.shape[1:], strict=True)
    )
    shape = (num, channels // group_size, height, width)
    mean, var = (plane[:, rows][:, :, cols].reshape(shape) for plane in (start + mean, var))
    return mean, var


def _window_moments(
    kernels: ModuleType, x: Tensor, group_size: int, window: tuple[int, int], border: str
) -> tuple[list[Tensor], tuple[int, int]]:
    """Return the moments of every window, and how many cells before its centre the first one's cell lies.

    The moments are three planes ``(N * groups, rows, cols)``: the mean is the sum of the first two, the third the
    variance.
    """
    num, channels, height, width = x.shape
    groups = channels // group_size
    planes = num * groups
    moments = [x.new_empty((planes, height, width), dtype=torch.float32) for _ in range(3)]
    kernels.group_moments[(_blocks(height * width), planes)](
        x, *moments, groups, height * width, width, *x.stride(), group_size=group_size, block_cells=BLOCK
    )
    begins = [0, 0]
    for dim in (2, 1):
        given = moments[0]
        length, lines = given.shape[dim], given.shape[3 - dim]
        size, cut = min(window[dim - 1], length), axis_border(border, window[dim - 1], length) == "clip"
        begins[dim - 1] = 0 if cut else before(size)
        full = length if cut else length - size + 1
        shape = list(given.shape)
        shape[dim] = full
        made = [given.new_empty(shape) for _ in range(3)]
        wide = 1 << (size - 1).bit_length()
        at_once = max(1, TILE // wide)
        kernels.slide[(-(-lines // at_once), planes, -(-full // size))](
            *moments,
            *made,
            lines,
            length,
            full,
            size,
            before(size) if cut else 0,
            *(plane.stride(axis) for plane in (given, made[0]) for axis in (0, 3 - dim, dim)),
            at_once=at_once,
            wide=wide,
        )
        moments = made
    return moments, (begins[0], begins[1])


def _blocks(cells: int) -> int:
    return -(-cells // BLOCK)
