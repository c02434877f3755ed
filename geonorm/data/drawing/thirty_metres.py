"""Coarse layers of the drawn land: squares of 30 m that follow from the fine picture, as stand-ins of other sources."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geonorm.data.drawing.cover import Cover

_SIDE_PX = 30  # of 1 m

# Codes of the National Land Cover Database.
_OPEN_WATER, _BARREN, _FOREST, _PASTURE = 11, 31, 41, 81
_DEVELOPED = ((0.8, 24), (0.5, 23), (0.2, 22))  # from this share of built ground on


def nlcd(cover: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return codes of the National Land Cover Database, ``(H, W)``: the commonest natural class, or developed."""
    natural = np.stack([_share(cover, kind) for kind in (Cover.WATER, Cover.BARREN, Cover.TREES, Cover.LOW_PLANTS)])
    codes = np.array([_OPEN_WATER, _BARREN, _FOREST, _PASTURE], dtype=np.uint8)[natural.argmax(axis=0)]
    built = _share(cover, Cover.BUILT, Cover.ROAD)
    for least, code in reversed(_DEVELOPED):
        codes = np.where(built >= least, np.uint8(code), codes)
    return codes


def landsat(image: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return nine bands in ten-thousandths of reflectance, ``(9, H, W)``, after those of Landsat 8.

    Coastal, blue, green, red, near infrared, two of short-wave infrared, panchromatic, cirrus. The camera saw none of
    the last five but near infrared; they follow from it and the visible ones.
    """
    red, green, blue, infrared = np.square(_means(image) / 255) * 10_000
    bands = (blue, blue, green, red, infrared, 0.6 * infrared, 0.4 * infrared, (red + green + blue) / 3, 0 * red)
    return np.rint(np.stack(bands)).astype(np.int16)


def prior(cover: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the shares of water, trees, low plants and all else, 0 to 255, ``(4, H, W)``."""
    kinds = ((Cover.WATER,), (Cover.TREES,), (Cover.LOW_PLANTS,), (Cover.BARREN, Cover.BUILT, Cover.ROAD))
    return np.stack([np.rint(255 * _share(cover, *some)).astype(np.uint8) for some in kinds])


def _share(cover: NDArray[np.uint8], *kinds: Cover) -> NDArray[np.float64]:
    return _means(np.isin(cover, kinds)[None])[0]


def _means(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean of each square of 30 m at all its pixels, ``(C, H, W)``; the last square may be cut."""
    count, height, width = values.shape
    rows, cols = -(-height // _SIDE_PX), -(-width // _SIDE_PX)
    pad = ((0, 0), (0, rows * _SIDE_PX - height), (0, cols * _SIDE_PX - width))
    squares = np.pad(values, pad, mode="edge").reshape(count, rows, _SIDE_PX, cols, _SIDE_PX)
    means = squares.mean(axis=(2, 4), dtype=np.float64)
    return means.repeat(_SIDE_PX, axis=1).repeat(_SIDE_PX, axis=2)[:, :height, :width]
