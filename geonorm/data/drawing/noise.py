"""Random fields without visible cells, and the small blurs of a lens."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]


def smooth_noise(rng: np.random.Generator, height: int, width: int, *, cell_px: float) -> Field:
    """Return random hills about ``cell_px`` wide, mean 0 and deviation about 1, shape ``(height, width)``."""
    rows, cols = math.ceil(height / cell_px) + 3, math.ceil(width / cell_px) + 3
    grid = rng.standard_normal((rows, cols), dtype=np.float32) * np.float32(1.4)
    box = (1.0, 1.0, 1.0 + width / cell_px, 1.0 + height / cell_px)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC, box=box))


def blur(field: Field, sigma_px: float) -> Field:
    """Return the field through a Gaussian of ``sigma_px`` up to 1.5 along the last two axes."""
    weights = np.exp(-0.5 * (np.arange(4) / sigma_px) ** 2).astype(np.float32)
    weights /= weights[0] + 2 * weights[1:].sum()
    for axis in (-2, -1):
        field = _weighted_neighbours(field, weights, axis)
    return field


def wide_mean(field: Field, *, reach_px: int) -> Field:
    """Return the mean of the surroundings, coarse and cheap: reduced by ``reach_px`` and enlarged again."""
    height, width = field.shape
    small = Image.fromarray(field).reduce(reach_px)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _weighted_neighbours(field: Field, weights: Field, axis: int) -> Field:
    total = field * weights[0]
    size = field.shape[axis]
    for distance, weight in enumerate(weights[1:], start=1):
        if weight < 1e-3:
            break
        index = np.arange(size)
        for shifted in (np.maximum(index - distance, 0), np.minimum(index + distance, size - 1)):
            total += weight * np.take(field, shifted, axis=axis)
    return total
