"""Ground that is not for living: halls with parking lots, parks, forests, fields."""

from __future__ import annotations

import math

import numpy as np

from geonorm.data.drawing.sheet import Form, Part, Sheet
from geonorm.data.drawing.streets import Block, draw_verge
from geonorm.data.drawing.styles import (
    ASPHALT,
    CONCRETE,
    CROP,
    GRASS,
    LITTER,
    MARK,
    MEADOW,
    PAVING,
    SOIL,
    TRACK,
    WATER,
)

_PITCH_PX = (62.0, 98.0)  # half a playing field


def draw_halls(sheet: Sheet, block: Block, rng: np.random.Generator) -> None:
    """Set large halls beside each other, each with a yard, parked cars and trailers."""
    city = sheet.city
    lots = draw_verge(sheet, block, rng)
    start = lots.vs[0]
    while lots.vs[1] - start > 80:
        stop = start + rng.uniform(130, 250)
        if lots.vs[1] - stop < 120:
            stop = min(lots.vs[1], start + 290)
        surface = int(rng.choice((ASPHALT, ASPHALT, CONCRETE, PAVING)))
        if city.dirt_roads and rng.random() < 0.6:
            surface = SOIL
        sheet.box(lots.us, (start + 3, stop - 3), surface, tone=rng.uniform(0.82, 1.14))
        half_along = min((stop - start) / 2 - rng.uniform(10, 26), 100)
        half_across = min(rng.uniform(0.2, 0.33) * lots.depth_px, 100)
        flip = rng.random() < 0.5
        u = lots.us[0] + half_across + 8 if flip else lots.us[1] - half_across - 8
        if half_along > 20:
            _raise_hall(sheet, u, (start + stop) / 2, half_along, half_across, rng)
        us = (u + half_across + 10, lots.us[1]) if flip else (lots.us[0], u - half_across - 10)
        _draw_parking(sheet, us, (start + 8, stop - 8), rng)
        for place in np.arange(start, stop, 20.0):
            if rng.random() < 0.35:
                edge = lots.us[1] if flip else lots.us[0]
                sheet.plant_any(edge, place, rng, share=0.7)
        start = stop


def draw_park(sheet: Sheet, block: Block, rng: np.random.Generator) -> None:
    """Draw lawns, paths and trees, with a pond or a playing field."""
    city = sheet.city
    sheet.box(block.us, block.vs, GRASS, tone=rng.uniform(0.92, 1.06), round_px=9)
    _mottle(sheet, block, (GRASS, MEADOW), rng)
    middle = (sum(block.us) / 2, sum(block.vs) / 2)
    way = np.linspace(*block.vs, 30)
    for _ in range(2):
        swing = block.depth_px * rng.uniform(0.1, 0.3)
        bends = middle[0] + swing * np.sin(way / rng.uniform(50, 90) + rng.uniform(0, 6))
        sheet.stroke(list(bends), list(way), width_px=int(rng.integers(4, 8)), material=TRACK, tone=1.05)
    sporting = rng.random() < 0.35
    if sporting:
        _draw_pitch(sheet, middle)
    elif rng.random() < 0.6:
        _draw_pond(sheet, middle, block.depth_px * rng.uniform(0.15, 0.3), rng)
    if rng.random() < 0.5:
        place = (rng.uniform(block.us[0] + 40, block.us[1] - 40), block.vs[0] + 40)
        sheet.build(*place, [Part(0, 0, 20, 13, 11, "hip", 0.4)], city.pick_roof(rng))
    for u, v in _scatter(block.inset(6), 27, rng):
        on_pitch = sporting and abs(u - middle[0]) < _PITCH_PX[0] + 9 and abs(v - middle[1]) < _PITCH_PX[1] + 9
        if rng.random() < 0.42 and not on_pitch:
            sheet.plant_any(u, v, rng)


def draw_forest(sheet: Sheet, block: Block, rng: np.random.Generator) -> None:
    """Close the ground with trees, but for a few clearings."""
    city = sheet.city
    sheet.box(block.us, block.vs, MEADOW, tone=0.95, round_px=9)
    inner = block.inset(10)
    sheet.box(inner.us, inner.vs, LITTER, round_px=20)
    waves = rng.uniform(0, 6, size=3)
    mean = 0.5 * sum(city.tree_radius_px)
    leading = city.pick_species(rng)
    for u, v in _scatter(inner, mean * 1.5, rng):
        clearing = math.sin(u / 61 + waves[0]) + math.sin(v / 83 + waves[1]) + math.sin((u + v) / 47 + waves[2])
        if clearing < 1.5:
            species = leading if rng.random() < 0.8 else city.pick_species(rng)
            sheet.plant(u, v, mean * rng.uniform(0.6, 1.35), species)


def draw_fields(sheet: Sheet, block: Block, rng: np.random.Generator) -> None:
    """Divide a block into fields with furrows, and set a farm or a barn at the road."""
    city = sheet.city
    sheet.box(block.us, block.vs, MEADOW, tone=rng.uniform(0.95, 1.05), round_px=6)
    start = block.vs[0] + 6
    while block.vs[1] - start > 60:
        stop = min(start + rng.uniform(70, 200), block.vs[1] - 6)
        _draw_field(sheet, (block.us[0] + 7, block.us[1] - 7), (start, stop - 4), rng)
        if rng.random() < 0.5:
            for u in np.arange(block.us[0] + 10, block.us[1] - 10, 15.0):
                if rng.random() < 0.6:
                    sheet.plant_any(u, stop - 2, rng, share=0.7)
        start = stop
    for _ in range(int(rng.integers(1, 4))):
        half_along, half_across = rng.uniform(22, 48), rng.uniform(14, 22)
        v = rng.uniform(block.vs[0] + half_along + 8, max(block.vs[0] + half_along + 9, block.vs[1] - 60))
        u = block.us[0] + half_across + rng.uniform(12, 34)
        yard = ((u - half_across - 14, u + half_across + 16), (v - half_along - 14, v + half_along + 20))
        sheet.box(*yard, TRACK, tone=rng.uniform(0.9, 1.05), round_px=6)
        part = Part(0, 0, half_along, half_across, 14, "gable", 0.4)
        sheet.build(u, v, [part], city.pick_roof(rng, large=rng.random() < 0.5), turn=rng.normal(0, 0.05))
        sheet.park(u + half_across + 9, v, turn=rng.normal(0, 0.5))
        for _ in range(3):
            place = (u + rng.uniform(-50, 50), v + rng.uniform(-70, 70))
            sheet.plant_any(*place, rng)


def _raise_hall(
    sheet: Sheet, u: float, v: float, half_along: float, half_across: float, rng: np.random.Generator
) -> None:
    roof = sheet.city.pick_roof(rng, large=True)
    form: Form = "flat" if roof.texture == "flat" else "gable"
    pitch, eave = rng.uniform(0.08, 0.2), rng.uniform(17, 34)
    parts = [Part(0, 0, half_along, half_across, eave, form, pitch)]
    plan = rng.random()
    if plan < 0.35:
        half = half_along * rng.uniform(0.3, 0.5)
        parts.append(Part(half_along - half, 8, half, half_across + 6, eave - rng.uniform(4, 8), form, pitch))
    elif plan < 0.6:
        parts.append(Part(-half_along, 0, 12, half_across * 0.6, 11, "flat"))
    sheet.build(u, v, parts, roof, turn=math.pi * float(rng.integers(2)))


def _draw_parking(sheet: Sheet, us: tuple[float, float], vs: tuple[float, float], rng: np.random.Generator) -> None:
    """Draw rows of bays and the cars in them, and a few trailers along the edge."""
    marked = rng.random() < 0.8
    full = rng.uniform(0.1, 0.7)
    row = us[0] + 12
    while row < us[1] - 10:
        for v in np.arange(vs[0] + 8, vs[1] - 8, 9.0):
            if marked:
                sheet.stroke((row - 8, row + 8), (v - 4.5, v - 4.5), width_px=1, material=MARK)
            if rng.random() < full:
                sheet.park(row + rng.normal(0, 1), v, turn=math.pi / 2 + rng.normal(0, 0.03))
        row += 18 if rng.random() < 0.4 else 38
    for _ in range(int(rng.poisson(1.5))):
        if us[1] - us[0] > 20:
            place = (rng.uniform(us[0] + 8, us[1] - 8), rng.uniform(*vs))
            sheet.park(*place, turn=rng.choice((0.0, math.pi / 2)), length_px=rng.uniform(26, 42), width_px=8.5)


def _draw_field(sheet: Sheet, us: tuple[float, float], vs: tuple[float, float], rng: np.random.Generator) -> None:
    crop = int(rng.choice((CROP, CROP, SOIL, GRASS, MEADOW)))
    tone = rng.uniform(0.84, 1.14)
    sheet.box(us, vs, crop, tone=tone, round_px=3)
    step, depth = rng.uniform(4, 10), rng.uniform(0.05, 0.16)
    if crop in (GRASS, MEADOW):
        step, depth = rng.uniform(14, 24), 0.05
    if rng.random() < 0.7:
        for v in np.arange(vs[0] + 3, vs[1] - 3, step):
            ends = (us[0] + 6, us[1] - 6)
            sheet.stroke(ends, (v, v), width_px=max(1, round(step / 2.5)), tone=tone * (1 - depth))
    else:
        for u in np.arange(us[0] + 3, us[1] - 3, step):
            ends = (vs[0] + 6, vs[1] - 6)
            sheet.stroke((u, u), ends, width_px=max(1, round(step / 2.5)), tone=tone * (1 - depth))


def _draw_pond(sheet: Sheet, middle: tuple[float, float], radius_px: float, rng: np.random.Generator) -> None:
    angle = np.linspace(0, 2 * math.pi, 60)
    swing = sum(rng.uniform(0.03, 0.14) * np.sin(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5))
    for material, rim in ((LITTER, 7.0), (WATER, 0.0)):
        reach = radius_px * (1 + swing) + rim
        sheet.area(middle[0] + reach * np.sin(angle), middle[1] + 1.5 * reach * np.cos(angle), material)
    for _ in range(12):
        spot = rng.uniform(0, 2 * math.pi)
        u, v = middle[0] + 1.3 * radius_px * math.sin(spot), middle[1] + 1.9 * radius_px * math.cos(spot)
        sheet.plant_any(u, v, rng, share=0.8)


def _draw_pitch(sheet: Sheet, middle: tuple[float, float]) -> None:
    half_u, half_v = _PITCH_PX
    us, vs = (middle[0] - half_u, middle[0] + half_u), (middle[1] - half_v, middle[1] + half_v)
    sheet.box(us, vs, GRASS, tone=1.08)
    for number, v in enumerate(np.arange(vs[0], vs[1] - 9, 18.0)):
        if number % 2:
            sheet.box(us, (v, v + 18), None, tone=0.98)
    for u in us:
        sheet.stroke((u, u), vs, width_px=1, material=MARK)
    for v in (*vs, middle[1]):
        sheet.stroke(us, (v, v), width_px=1, material=MARK)


def _mottle(sheet: Sheet, block: Block, materials: tuple[int, ...], rng: np.random.Generator) -> None:
    """Lay soft-edged spots of other materials on a block."""
    angle = np.linspace(0, 2 * math.pi, 40)
    for _ in range(int(block.depth_px * block.length_px / 9000)):
        u, v, radius = rng.uniform(*block.us), rng.uniform(*block.vs), rng.uniform(12, 40)
        reach = radius * (1 + 0.3 * np.sin(3 * angle + u) + 0.2 * np.sin(5 * angle + v))
        material = materials[int(rng.integers(len(materials)))]
        us = np.clip(u + reach * np.sin(angle), block.us[0] + 2, block.us[1] - 2)
        vs = np.clip(v + 1.4 * reach * np.cos(angle), block.vs[0] + 2, block.vs[1] - 2)
        sheet.area(us, vs, material, tone=rng.uniform(0.93, 1.06))


def _scatter(block: Block, every_px: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Return uneven places all over a block, about ``every_px`` apart."""
    us = np.arange(block.us[0], block.us[1], every_px)
    vs = np.arange(block.vs[0], block.vs[1], every_px)
    grid = np.stack(np.meshgrid(us, vs, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = grid + rng.uniform(-0.48, 0.48, size=grid.shape) * every_px
    return [(float(u), float(v)) for u, v in grid]
