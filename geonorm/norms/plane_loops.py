"""Statistics of whole channels and one affine map for each, in compiled loops: what Switchable Norm is made of.

Planes are the channels of all samples, ``(samples * channels, H * W)``. Sums are float64.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Part: TypeAlias = tuple[int, int]

compiled = njit(nogil=True, cache=True, error_model="numpy")
# Sums over a plane, in the order the compiler likes best.
compiled_sums = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


@compiled_sums
def moments(x: Floats, mean: Floats, var: Floats, part: Part) -> None:
    """Write mean and biased variance of some planes."""
    cells = x.shape[1]
    for plane in range(part[0], part[1]):
        values = x[plane]
        total = squares = 0.0
        for cell in range(cells):
            value = np.float64(values[cell])
            total += value
            squares += value * value
        middle = total / cells
        spread = squares / cells - middle * middle
        mean[plane] = middle
        var[plane] = 0.0 if spread < 0.0 else spread


@compiled
def add_moments_backward(
    grad: Floats, x: Floats, mean: Floats, grad_mean: Floats, grad_var: Floats, part: Part
) -> None:
    """Add to ``grad`` what comes by way of mean and variance."""
    share = np.float32(1.0 / x.shape[1])
    for plane in range(part[0], part[1]):
        values, result = x[plane], grad[plane]
        constant = grad_mean[plane] * share
        slope = np.float32(2.0) * grad_var[plane] * share
        middle = mean[plane]
        for cell in range(x.shape[1]):
            result[cell] += constant + (values[cell] - middle) * slope


@compiled
def affine(x: Floats, mean: Floats, scale: Floats, bias: Floats, y: Floats, part: Part) -> None:
    """Write ``(x - mean) * scale + bias``."""
    for plane in range(part[0], part[1]):
        values, result = x[plane], y[plane]
        middle, factor, constant = mean[plane], scale[plane], bias[plane]
        for cell in range(x.shape[1]):
            result[cell] = (values[cell] - middle) * factor + constant


@compiled_sums
def affine_backward(
    grad: Floats,
    x: Floats,
    mean: Floats,
    scale: Floats,
    grad_x: Floats,
    grad_scale: Floats,
    grad_bias: Floats,
    part: Part,
) -> None:
    """Write the gradients of x, scale and bias; that of mean is ``-scale * grad_bias``."""
    for plane in range(part[0], part[1]):
        values, upstream, result = x[plane], grad[plane], grad_x[plane]
        middle, factor = mean[plane], scale[plane]
        total = products = 0.0
        for cell in range(x.shape[1]):
            total += np.float64(upstream[cell])
            products += np.float64(upstream[cell] * (values[cell] - middle))
            result[cell] = upstream[cell] * factor
        grad_scale[plane] = products
        grad_bias[plane] = total
