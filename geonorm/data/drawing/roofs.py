"""Raising buildings: the shape of their roofs, what lies on them, and their labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geonorm.data.drawing.cover import Cover
from geonorm.data.drawing.noise import Field
from geonorm.data.drawing.sheet import Building, Part
from geonorm.data.drawing.styles import Colour
from geonorm.data.drawing.terrain import SNOW, Canvas, linear

_PARAPET_PX = 1.5

_Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Patch:
    """The pixels around a building, in the building's own directions."""

    along: _Floats
    across: _Floats
    top: _Floats
    """Height of the roof, 0 where there is none."""
    inward: _Floats
    """Distance to the edge of the part that is seen."""
    down: _Floats
    """Distance along the slope's fall line, for streaks and ribs."""
    ridge: _Floats
    """Distance along the ridge."""
    face: NDArray[np.int8]
    """Which face of which part is seen."""


def raise_building(canvas: Canvas, building: Building, rng: np.random.Generator, *, snow: float) -> None:
    """Draw one building into albedo, relief and labels, wherever it is the highest thing."""
    reach = max(
        math.hypot(abs(part.along) + part.half_along, abs(part.across) + part.half_across) for part in building.parts
    )
    window = canvas.window(building.row, building.col, reach)
    if window is None:
        return
    patch = _shape(building, *window)
    grain = canvas.grain[window]
    tone = _texture(building, patch, grain, rng)
    spread = building.roof.spread
    colour = linear(building.roof.colour) * np.float32(math.exp(rng.normal(0, 1.6 * spread)))
    colour = colour * np.exp(rng.normal(0, 0.35 * spread, size=3)).astype(np.float32)
    top, albedo = _furnished(building, patch, colour[:, None, None] * tone, rng)
    if snow > 0 and rng.random() < snow:
        albedo = _snowed_on(albedo, patch, grain, rng)
    canvas.put(window, top, albedo, label=1, cover=Cover.BUILT)


def _shape(building: Building, rows: slice, cols: slice) -> _Patch:
    down = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(building.row)
    right = np.arange(cols.start, cols.stop, dtype=np.float32)[None, :] - np.float32(building.col)
    sin, cos = np.float32(math.sin(building.turn)), np.float32(math.cos(building.turn))
    along, across = down * sin + right * cos, down * cos - right * sin

    zero = np.zeros_like(along)
    top, inward, fall, ridge = zero, zero, zero, zero
    face = np.zeros(along.shape, dtype=np.int8)
    for number, part in enumerate(building.parts):
        to_end = part.half_along - np.abs(along - part.along)
        to_side = part.half_across - np.abs(across - part.across)
        height, part_fall, part_ridge, part_face = _roof(part, along - part.along, across - part.across)
        edge = np.minimum(to_end, to_side)
        wins = (edge >= 0) & (height > top)
        top, inward = np.where(wins, height, top), np.where(wins, edge, inward)
        fall, ridge = np.where(wins, part_fall, fall), np.where(wins, part_ridge, ridge)
        face = np.where(wins, part_face + 4 * number, face).astype(np.int8)
    return _Patch(along, across, top, inward, fall, ridge, face)


def _roof(part: Part, along: _Floats, across: _Floats) -> tuple[_Floats, _Floats, _Floats, NDArray[np.int_]]:
    """Return height, distance down the slope, distance along the ridge, and number of the face."""
    half_along, half_across = part.half_along, part.half_across
    if part.crosswise:
        along, across, half_along, half_across = across, along, half_across, half_along
    to_end, to_side = half_along - np.abs(along), half_across - np.abs(across)
    side = (across > 0).astype(np.int_)
    if part.form == "gable":
        return part.eave_px + part.pitch * to_side, to_side, along, side
    if part.form == "hip":
        at_end = to_end < to_side
        height = part.eave_px + part.pitch * np.minimum(to_end, to_side)
        face = np.where(at_end, 2 + (along > 0), side)
        return height, np.minimum(to_end, to_side), np.where(at_end, across, along), face
    if part.form == "lean":
        return part.eave_px + part.pitch * (across + half_across), across, along, np.zeros_like(side)
    rim = np.float32(_PARAPET_PX) * np.clip(2.6 - np.minimum(to_end, to_side), 0, 1)
    return part.eave_px + rim, across, along, np.zeros_like(side)


def _texture(building: Building, patch: _Patch, grain: Field, rng: np.random.Generator) -> Field:
    """Return how the colour of a roof varies over it, about 1."""
    faces = (1 + rng.normal(0, 0.05, size=4 * len(building.parts))).astype(np.float32)
    tone = faces[patch.face]
    kind = building.roof.texture
    streaks = rng.normal(0, 1, size=512).astype(np.float32)
    by_ridge = streaks[np.rint(patch.ridge).astype(np.int_) % 512]
    if kind == "shingle":
        return tone * (1 + 0.035 * by_ridge + 0.07 * grain)
    if kind == "tile":
        courses = np.sin(patch.down * np.float32(2 * math.pi / 3.1))
        return tone * (1 + 0.05 * courses + 0.03 * by_ridge + 0.09 * grain)
    if kind == "tin":
        sheets = streaks[(np.floor(patch.ridge / 9) * 7 + np.floor(patch.down / 26) * 3).astype(np.int_) % 512]
        ribs = np.sin(patch.ridge * np.float32(2 * math.pi / 3.7))
        return tone * (1 + 0.07 * ribs + rng.uniform(0.02, 0.14) * sheets + 0.03 * by_ridge + 0.03 * grain)
    rim = np.where(patch.inward < 2.2, np.float32(rng.uniform(0.95, 1.3)), np.float32(1))
    stains = (
        streaks[np.rint(patch.along / 11).astype(np.int_) % 512]
        + np.roll(streaks, 99)[np.rint(patch.across / 13).astype(np.int_) % 512]
    )
    return tone * rim * (1 + 0.025 * stains + 0.05 * grain)


def _furnished(building: Building, patch: _Patch, bare: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """Return height and albedo with dormers, chimneys and panels on sloping roofs, machines on flat ones."""
    top, albedo = patch.top.copy(), bare.copy()

    def put(along: float, across: float, half_along: float, half_across: float, rise_px: float, colour: Colour) -> None:
        where = (np.abs(patch.along - along) < half_along) & (np.abs(patch.across - across) < half_across)
        where &= patch.inward > 1.5
        top[where] += np.float32(rise_px)
        albedo[:, where] = linear(colour)[:, None] * np.float32(rng.uniform(0.8, 1.1))

    main = building.parts[0]
    area = 4 * main.half_along * main.half_across
    if area < 400:
        return top, albedo
    if main.form == "flat":
        for _ in range(int(rng.poisson(min(area / 900, 14)))):
            along, across = (
                rng.uniform(-0.85, 0.85) * main.half_along,
                rng.uniform(-0.8, 0.8) * main.half_across,
            )
            grey = int(rng.integers(90, 225))
            half_along, half_across = rng.uniform(1.2, 4.5), rng.uniform(1.2, 4.5)
            put(along, across, half_along, half_across, rng.uniform(2, 7), (grey, grey, grey))
        return top, albedo
    if building.roof.texture == "tin":
        return top, albedo
    if main.eave_px > 26:  # people live under the roofs of tall houses
        side = rng.choice((-0.5, 0.5))
        for along in np.arange(8 - main.half_along, main.half_along - 6, rng.uniform(9, 14)):
            put(along, side * main.half_across, 2.4, 3.0, 2.5, (128, 126, 124))
            if rng.random() < 0.5:
                put(along, -side * main.half_across, 2.4, 3.0, 2.5, (128, 126, 124))
    for _ in range(int(rng.integers(1, 3))):
        along, across = rng.uniform(-0.8, 0.8) * main.half_along, rng.uniform(-0.35, 0.35) * main.half_across
        put(along, across, 1.8, 1.8, rng.uniform(4, 7), (148, 118, 104))
    for _ in range(int(rng.poisson(0.9))):
        along, across = rng.uniform(-0.8, 0.8) * main.half_along, rng.choice((-0.5, 0.5)) * main.half_across
        put(along, across, 1.6, 2.2, 0.2, (160, 172, 184))
    if rng.random() < 0.12:
        put(0, rng.choice((-0.5, 0.5)) * main.half_across, 0.5 * main.half_along, 5, 0.3, (48, 54, 76))
    return top, albedo


def _snowed_on(albedo: Field, patch: _Patch, grain: Field, rng: np.random.Generator) -> Field:
    """Return the roof with snow left on it, thinner on some faces."""
    lies = rng.uniform(-0.3, 1.1, size=128).astype(np.float32)[patch.face]
    patches = np.sin(patch.along / 7 + rng.uniform(0, 6)) * np.sin(patch.across / 6 + rng.uniform(0, 6))
    cover = np.clip(lies + 0.35 * patches.astype(np.float32) + 0.06 * grain, 0, 0.9)
    return albedo + cover * (linear(SNOW)[:, None, None] - albedo)
