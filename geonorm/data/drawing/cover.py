"""What covers the ground, in the classes of Chesapeake Land Cover, and how it looks in near infrared."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from geonorm.data.drawing.noise import Field
from geonorm.data.drawing.styles import (
    ASPHALT,
    CONCRETE,
    CROP,
    FENCE,
    GRASS,
    HEDGE,
    LITTER,
    MARK,
    MEADOW,
    PAVING,
    POOL,
    SOIL,
    TRACK,
    WATER,
)


class Cover(IntEnum):
    """The classes of Robinson et al., CVPR 2019, with their numbers."""

    WATER = 1
    TREES = 2
    LOW_PLANTS = 3
    BARREN = 4
    BUILT = 5
    ROAD = 6


_OF_MATERIAL: dict[int, Cover] = {
    GRASS: Cover.LOW_PLANTS,
    MEADOW: Cover.LOW_PLANTS,
    SOIL: Cover.BARREN,
    CROP: Cover.LOW_PLANTS,
    ASPHALT: Cover.BUILT,  # a parking lot; streets are told apart by where they run
    CONCRETE: Cover.BUILT,
    PAVING: Cover.BUILT,
    TRACK: Cover.BARREN,
    WATER: Cover.WATER,
    MARK: Cover.BUILT,
    HEDGE: Cover.LOW_PLANTS,
    FENCE: Cover.BUILT,
    POOL: Cover.WATER,
    LITTER: Cover.LOW_PLANTS,
}
_PAVED = (ASPHALT, CONCRETE, MARK, TRACK)

# Reflectance in near infrared per reflectance in the visible band it follows; a plant's grows with how green it is.
_DRY_PLANT, _GREENER, _CROWN = 1.4, 2.5, 1.6
_SOIL_PER_RED, _BUILT_PER_GREY, _WATER_PER_BLUE = 1.25, 1.08, 0.25
_BRIGHTEST_WATER = 0.03

_GAP_PX = 3  # so far around a pixel of 1 m
_CLOSED = 0.5  # of the ground must be under trees for the gap to count as forest


def ground_cover(material: NDArray[np.uint8], roads: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the land cover of bare ground, ``(H, W)``.

    Args:
        material: What it is made of, ``(H, W)``, see ``styles.py``.
        roads: Where streets run, ``(H, W)``.
    """
    table = np.array([_OF_MATERIAL[number] for number in range(len(_OF_MATERIAL))], dtype=np.uint8)
    return np.where(roads & np.isin(material, _PAVED), np.uint8(Cover.ROAD), table[material])


def near_infrared(albedo: Field, cover: NDArray[np.uint8]) -> Field:
    """Return reflectance in near infrared: bright leaves, dark water, ``(H, W)``.

    Leaves reflect most of it, more the greener they are, soil somewhat more than red light, roofs and roads about as
    much as red or grey light, water next to nothing.

    Args:
        albedo: Reflectance of red, green and blue, ``(3, H, W)``.
        cover: Land cover, ``(H, W)``.
    """
    red, green, blue = albedo
    greenness = np.clip((green - red) / (green + red), 0, 0.4)
    plants = green * (_DRY_PLANT + _GREENER * greenness)
    infrared = np.maximum(albedo.mean(axis=0), red) * np.float32(_BUILT_PER_GREY)
    for kind, reflectance in (
        (Cover.WATER, np.minimum(blue * np.float32(_WATER_PER_BLUE), np.float32(_BRIGHTEST_WATER))),
        (Cover.TREES, plants * np.float32(_CROWN)),
        (Cover.LOW_PLANTS, plants),
        (Cover.BARREN, red * np.float32(_SOIL_PER_RED)),
    ):
        infrared = np.where(cover == kind, reflectance, infrared)
    return np.clip(infrared, 0.004, 0.95).astype(np.float32)


def most_common(cover: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    """Return the commonest class of each square of ``times`` pixels a side; the lower number where two are as common.

    Args:
        cover: Land cover, ``(times * H, times * W)``.
        times: Side of a square.

    Returns:
        Land cover ``(H, W)``.
    """
    height, width = cover.shape[0] // times, cover.shape[1] // times
    squares = cover.reshape(height, times, width, times)
    counts = np.stack([(squares == kind).sum(axis=(1, 3)) for kind in Cover])
    return (counts.argmax(axis=0) + 1).astype(np.uint8)


def closed_canopy(cover: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return land cover in which low plants in small gaps among trees are trees, as a map has it, ``(H, W)``."""
    trees = Image.fromarray(np.where(cover == Cover.TREES, np.uint8(255), np.uint8(0)))
    share = np.asarray(trees.filter(ImageFilter.BoxBlur(_GAP_PX)), dtype=np.float32) / 255
    return np.where((cover == Cover.LOW_PLANTS) & (share > _CLOSED), np.uint8(Cover.TREES), cover)
