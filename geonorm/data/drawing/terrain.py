"""The canvas of a scene and the ground on it: reflectance, height and label of every pixel."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from geonorm.data.drawing.cover import Cover, ground_cover
from geonorm.data.drawing.noise import Field, smooth_noise
from geonorm.data.drawing.sheet import Sheet
from geonorm.data.drawing.styles import (
    ASPHALT,
    CONCRETE,
    CROP,
    FENCE,
    GRASS,
    HEDGE,
    LITTER,
    LIVING,
    MARK,
    MEADOW,
    PAVING,
    POOL,
    SOIL,
    TRACK,
    WATER,
    Colour,
)

SNOW: Colour = (206, 213, 226)

# How a material varies: between its two colours, over some metres, and from pixel to pixel.
_TEXTURE: dict[int, tuple[float, float, float]] = {
    GRASS: (0.42, 0.09, 0.1),
    MEADOW: (0.5, 0.12, 0.13),
    SOIL: (0.5, 0.1, 0.09),
    CROP: (0.5, 0.06, 0.12),
    ASPHALT: (0.3, 0.04, 0.05),
    CONCRETE: (0.4, 0.06, 0.05),
    PAVING: (0.4, 0.07, 0.08),
    TRACK: (0.4, 0.07, 0.08),
    WATER: (0.5, 0.03, 0.03),
    MARK: (0.4, 0.1, 0.2),
    HEDGE: (0.4, 0.1, 0.3),
    FENCE: (0.4, 0.1, 0.15),
    POOL: (0.3, 0.02, 0.04),
    LITTER: (0.5, 0.16, 0.2),
}


class Canvas:
    """A scene before it is lit, on which buildings, vehicles and trees are raised one by one.

    ``albedo`` is the share of the light that comes back, linear, ``(3, H, W)``; ``relief`` the height above
    the ground in pixels, ``labels`` 1 on buildings, ``cover`` the land cover seen from above (see ``cover.py``),
    all ``(H, W)``. ``grain`` is uneven from pixel to pixel, mean 0 and deviation 1: the texture of all that is raised.
    """

    def __init__(self, albedo: Field, relief: Field, grain: Field) -> None:
        self.albedo = albedo
        self.relief = relief
        self.grain = grain
        self.labels = np.zeros(relief.shape, dtype=np.uint8)
        self.cover = np.zeros(relief.shape, dtype=np.uint8)

    def window(self, row: float, col: float, reach_px: float) -> tuple[slice, slice] | None:
        """Return the rows and columns within ``reach_px`` of a point, or None if none are on the canvas."""
        height, width = self.relief.shape
        rows = slice(max(0, math.floor(row - reach_px)), min(height, math.ceil(row + reach_px) + 1))
        cols = slice(max(0, math.floor(col - reach_px)), min(width, math.ceil(col + reach_px) + 1))
        return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None

    def put(
        self,
        window: tuple[slice, slice],
        top: Field,
        albedo: Field,
        *,
        label: int | None = None,
        cover: Cover | None = None,
    ) -> None:
        """Draw something into a window, wherever it is higher than what is there.

        Args:
            window: Rows and columns, all on the canvas.
            top: Its height, 0 where there is nothing of it, shape of the window.
            albedo: Its reflectance, shape (3, rows, cols).
            label: What it becomes in ``labels``; None leaves them.
            cover: What it becomes in ``cover``; None leaves it.
        """
        seen = top > np.maximum(self.relief[window], 0.3)
        self.relief[window][seen] = top[seen]
        self.albedo[:, *window][:, seen] = np.clip(albedo[:, seen], 0.004, 0.95)
        if label is not None:
            self.labels[window][seen] = label
        if cover is not None:
            self.cover[window][seen] = cover


def linear(colour: Colour) -> Field:
    """Return the reflectance that a photograph shows as this colour, shape ``(3,)``."""
    return np.square(np.array(colour, dtype=np.float32) / np.float32(255))


def lay_ground(sheet: Sheet, rng: np.random.Generator) -> Canvas:
    """Return the canvas with the sheet's materials on it, and its hedges and fences raised."""
    height, width = sheet.height, sheet.width
    material, walls = sheet.materials, sheet.walls
    spots = smooth_noise(rng, height, width, cell_px=70)
    spots = spots + 0.7 * smooth_noise(rng, height, width, cell_px=19)
    lumps = smooth_noise(rng, height, width, cell_px=6)
    tufts = smooth_noise(rng, height, width, cell_px=2.3)
    grain = rng.standard_normal((height, width), dtype=np.float32)

    texture = np.array([_TEXTURE[number] for number in range(len(_TEXTURE))], dtype=np.float32)
    palette = np.stack(
        [np.stack([linear(colour) for colour in sheet.city.ground[number]]) for number in range(len(_TEXTURE))]
    )
    material = _ragged(material, rng)
    blend = np.clip(0.5 + texture[:, 0][material] * spots, 0, 1)
    tone = 1 + texture[:, 1][material] * lumps + texture[:, 2][material] * (0.7 * grain + 0.7 * tufts)
    tone *= np.square(sheet.tones)
    albedo = np.empty((3, height, width), dtype=np.float32)
    for band in range(3):
        first, second = palette[:, 0, band][material], palette[:, 1, band][material]
        albedo[band] = np.maximum((first + blend * (second - first)) * tone, 0.004)
    if sheet.city.snow > 0:
        albedo = _snowed_on(albedo, material, spots + 0.3 * lumps + 0.1 * grain, sheet.city.snow)

    relief = walls * (1 + 0.12 * grain * (material == HEDGE))
    canvas = Canvas(albedo, relief, grain)
    canvas.cover = ground_cover(material, sheet.roads)
    return canvas


def _ragged(material: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the materials with the straight edges between natural ones frayed."""
    height, width = material.shape
    rows = np.arange(height)[:, None] + np.rint(1.8 * smooth_noise(rng, height, width, cell_px=5)).astype(np.intp)
    cols = np.arange(width)[None, :] + np.rint(1.8 * smooth_noise(rng, height, width, cell_px=5)).astype(np.intp)
    moved = material[np.clip(rows, 0, height - 1), np.clip(cols, 0, width - 1)]
    natural = np.zeros(len(_TEXTURE), dtype=np.bool_)
    natural[[*LIVING, TRACK, WATER]] = True
    return np.where(natural[material] & natural[moved], moved, material)


def _snowed_on(albedo: Field, material: NDArray[np.uint8], spots: Field, share: float) -> Field:
    """Return open ground whitened where the spots are high; paths keep but a trace."""
    keeps = np.zeros(len(_TEXTURE), dtype=np.float32)
    keeps[list(LIVING)] = 1
    keeps[[TRACK, PAVING]] = 0.35
    bare_below = float(np.quantile(spots[::7, ::7], 1 - share))
    cover = np.clip((spots - bare_below) * 2.5, 0, 1) * keeps[material] * np.float32(0.92)
    return albedo + cover * (linear(SNOW)[:, None, None] - albedo)
