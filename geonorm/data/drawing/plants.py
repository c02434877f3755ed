"""Trees as heaps of leaves, and vehicles as little boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geonorm.data.drawing.cover import Cover
from geonorm.data.drawing.noise import Field, smooth_noise
from geonorm.data.drawing.sheet import Tree, Vehicle
from geonorm.data.drawing.styles import City, Colour, Species
from geonorm.data.drawing.terrain import SNOW, Canvas, linear

_RADII_PX = (2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 17, 20, 23)
_VARIANTS = 3
_BARE: Colour = (126, 113, 99)
_PALM: Colour = (104, 116, 62)

_PAINTS: tuple[tuple[Colour, float], ...] = (
    ((226, 226, 224), 5),
    ((172, 174, 178), 4),
    ((48, 50, 54), 4),
    ((104, 106, 110), 3),
    ((146, 36, 34), 1.2),
    ((52, 76, 120), 1.4),
    ((166, 152, 126), 0.8),
)


@dataclass(frozen=True)
class _Crown:
    """A tree from above: height of the leaves over the ground, and how bright they are."""

    top: Field
    tone: Field


class Nursery:
    """Crowns of every kind and size, grown when first asked for."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._crowns: dict[tuple[Species, int], list[_Crown]] = {}

    def crown(self, species: Species, radius_px: float) -> _Crown:
        """Return a crown of about this radius, turned at random."""
        size = min(range(len(_RADII_PX)), key=lambda number: abs(_RADII_PX[number] - radius_px))
        if (species, size) not in self._crowns:
            grow = {"broadleaf": _broadleaf, "bare": _bare, "conifer": _conifer, "palm": _palm}[species]
            self._crowns[species, size] = [grow(_RADII_PX[size], self._rng) for _ in range(_VARIANTS)]
        crown = self._crowns[species, size][int(self._rng.integers(_VARIANTS))]
        turns = int(self._rng.integers(4))
        return _Crown(np.rot90(crown.top, turns), np.rot90(crown.tone, turns))


def raise_tree(
    canvas: Canvas,
    tree: Tree,
    nursery: Nursery,
    city: City,
    rng: np.random.Generator,
    *,
    allowed: NDArray[np.bool_],
) -> None:
    """Draw one tree into albedo and relief, unless its trunk would stand where it must not."""
    row, col = round(tree.row), round(tree.col)
    if not _may_stand(row, col, allowed):
        return
    crown = nursery.crown(tree.species, tree.radius_px * (0.65 if tree.species == "conifer" else 1.0))
    half = crown.top.shape[0] // 2
    window = canvas.window(row, col, half)
    if window is None:
        return
    rows, cols = window
    own = (
        slice(rows.start - row + half, rows.stop - row + half),
        slice(cols.start - col + half, cols.stop - col + half),
    )
    tone = crown.tone[own] * (1 + 0.13 * canvas.grain[window])
    leaves = _leaf_colour(tree.species, city, rng)[:, None, None] * tone
    canvas.put(window, crown.top[own], leaves, cover=Cover.TREES)


def raise_vehicle(canvas: Canvas, vehicle: Vehicle, rng: np.random.Generator, *, allowed: NDArray[np.bool_]) -> None:
    """Draw one vehicle, unless it would stand where it must not."""
    half_long, half_wide = vehicle.length_px / 2, vehicle.width_px / 2
    window = canvas.window(vehicle.row, vehicle.col, math.hypot(half_long, half_wide))
    if window is None or not _may_stand(round(vehicle.row), round(vehicle.col), allowed):
        return
    rows, cols = window
    down = np.arange(rows.start, rows.stop)[:, None] - vehicle.row
    right = np.arange(cols.start, cols.stop)[None, :] - vehicle.col
    sin, cos = math.sin(vehicle.turn), math.cos(vehicle.turn)
    along, across = down * sin + right * cos, down * cos - right * sin
    inside = (np.abs(along) < half_long) & (np.abs(across) < half_wide)

    shares = np.array([share for _, share in _PAINTS])
    paint = linear(_PAINTS[int(rng.choice(len(_PAINTS), p=shares / shares.sum()))][0])
    tone = np.ones(along.shape, dtype=np.float32)
    top = np.full(along.shape, 3.0, dtype=np.float32)
    if vehicle.length_px > 20:
        top[:] = 11
        tone[np.abs(along - half_long + 3) < 1] = 0.3
        paint = linear((214, 212, 208)) if rng.random() < 0.6 else paint
    elif vehicle.length_px > 11:
        shift = rng.choice((-1, 1)) * along / half_long
        cabin = (shift > -0.75) & (shift < 0.4)
        top[cabin] = 4.8
        tone[((shift > 0.15) & (shift < 0.42)) | ((shift > -0.78) & (shift < -0.58))] = 0.25
    canvas.put(window, np.where(inside, top, 0).astype(np.float32), paint[:, None, None] * tone)


def _may_stand(row: int, col: int, allowed: NDArray[np.bool_]) -> bool:
    """Return whether a place is allowed; beyond the canvas all are."""
    height, width = allowed.shape
    return not (0 <= row < height and 0 <= col < width) or bool(allowed[row, col])


def _leaf_colour(species: Species, city: City, rng: np.random.Generator) -> Field:
    if species == "bare":
        base = linear(_BARE)
    elif species == "palm":
        base = linear(_PALM)
    else:
        base = linear(city.leaf[int(rng.integers(len(city.leaf)))])
    bright = math.exp(rng.normal(0, 0.16))
    if species == "conifer" and rng.random() < city.snow * 0.3:
        base = 0.6 * base + 0.4 * linear(SNOW)
    return (base * bright * np.exp(rng.normal(0, 0.06, size=3))).astype(np.float32)


def _disc(radius_px: int) -> tuple[Field, Field, Field]:
    """Return rows, columns and distances of a square around a trunk, in crown radii."""
    half = math.ceil(radius_px * 1.25)
    axis = np.arange(-half, half + 1, dtype=np.float32) / np.float32(radius_px)
    return axis[:, None], axis[None, :], np.hypot(axis[:, None], axis[None, :])


def _broadleaf(radius_px: int, rng: np.random.Generator) -> _Crown:
    """Heap round lobes on each other, rough with leaves."""
    rows, cols, distance = _disc(radius_px)
    top = np.zeros_like(distance)
    for number in range(1 + min(12, radius_px)):
        angle, out = rng.uniform(0, 2 * math.pi), 0.0 if number == 0 else rng.uniform(0.3, 0.72)
        size = 0.75 if number == 0 else rng.uniform(0.28, 0.48)
        rise = 0.55 - 0.35 * out
        apart = np.hypot(rows - out * math.sin(angle), cols - out * math.cos(angle)) / size
        top = np.maximum(top, np.where(apart < 1, rise + size * np.sqrt(np.clip(1 - apart**2, 0, 1)), 0))
    rough = smooth_noise(rng, *distance.shape, cell_px=2.6)
    inside = top + 0.16 * rough * (top > 0) > 0.42
    heights = (top + 0.11 * rough) * radius_px * 1.25
    tone = 0.72 + 0.42 * top + 0.16 * rough
    return _Crown(np.where(inside, heights, 0).astype(np.float32), tone.astype(np.float32))


def _bare(radius_px: int, rng: np.random.Generator) -> _Crown:
    """Leave only twigs, so that the ground shows through."""
    rows, cols, distance = _disc(radius_px)
    angle = np.arctan2(rows, cols)
    limbs = np.cos(angle * float(rng.integers(4, 8)) + rng.uniform(0, 6) + 2 * distance)
    twigs = rng.standard_normal(distance.shape) + 0.6 * limbs
    inside = (distance < 1.1) & (twigs > 0.35 + 0.5 * distance**2)
    heights = radius_px * (0.8 - 0.4 * distance)
    tone = 0.8 + 0.1 * twigs
    return _Crown(np.where(inside, heights, 0).astype(np.float32), tone.astype(np.float32))


def _conifer(radius_px: int, rng: np.random.Generator) -> _Crown:
    """Raise a steep cone with ragged boughs."""
    rows, cols, distance = _disc(radius_px)
    angle = np.arctan2(rows, cols)
    boughs = 0.12 * np.cos(angle * float(rng.integers(6, 11)) + rng.uniform(0, 6))
    rough = smooth_noise(rng, *distance.shape, cell_px=2.2)
    inside = distance < 0.92 + boughs + 0.06 * rough
    heights = radius_px * (4.6 - 3.4 * distance + 0.12 * rough)
    tone = 1.15 - 0.45 * distance + 0.16 * rough + 0.6 * boughs
    return _Crown(np.where(inside, heights, 0).astype(np.float32), tone.astype(np.float32))


def _palm(radius_px: int, rng: np.random.Generator) -> _Crown:
    """Spread a star of fronds on top of a high trunk."""
    rows, cols, distance = _disc(radius_px)
    angle = np.arctan2(rows, cols) + 0.35 * distance
    fronds = np.cos(angle * float(rng.integers(7, 11)) + rng.uniform(0, 6))
    inside = (distance < 0.9) & (fronds > 0.9 * distance - 0.35)
    heights = radius_px * (1.9 - 0.8 * distance**2 + 0.2 * fronds)
    tone = 0.85 + 0.3 * fronds
    return _Crown(np.where(inside, heights, 0).astype(np.float32), tone.astype(np.float32))
