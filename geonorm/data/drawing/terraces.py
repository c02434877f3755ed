"""Houses wall to wall around courtyards, and slabs of flats on lawns."""

from __future__ import annotations

import math

import numpy as np

from geonorm.data.drawing.sheet import STOREY_PX, Part, Sheet
from geonorm.data.drawing.streets import Block, draw_verge
from geonorm.data.drawing.styles import ASPHALT, CONCRETE, FENCE, GRASS, PAVING, City


def draw_terraces(sheet: Sheet, block: Block, rng: np.random.Generator) -> None:
    """Close a block with houses wall to wall along its streets, around a courtyard."""
    city = sheet.city
    sheet.box(block.us, block.vs, PAVING, tone=rng.uniform(0.95, 1.1))
    block = block.inset(rng.uniform(6, 10))
    depth = min(rng.uniform(*city.house_px), 0.4 * block.depth_px)
    court = block.inset(depth)
    _draw_court(sheet, court, rng)
    eave = STOREY_PX * rng.uniform(*city.storeys)
    for u, facing in ((block.us[0] + depth / 2, 1.0), (block.us[1] - depth / 2, -1.0)):
        for start, stop in _cut(block.vs, city.lot_px, rng):
            half, height = (stop - start) / 2, eave + rng.uniform(-7, 7)
            parts = _terrace(half, depth, height, city, rng)
            turn = 0.0 if facing > 0 else math.pi
            sheet.build(u, (start + stop) / 2, parts, city.pick_roof(rng), turn=turn)
    for v, facing in ((block.vs[0] + depth / 2, -1.0), (block.vs[1] - depth / 2, 1.0)):
        for start, stop in _cut(court.us, city.lot_px, rng):
            half, height = (stop - start) / 2, eave + rng.uniform(-7, 7)
            parts = _terrace(half, depth, height, city, rng)
            turn = facing * math.pi / 2
            sheet.build((start + stop) / 2, v, parts, city.pick_roof(rng), turn=turn)


def draw_slabs(sheet: Sheet, block: Block, rng: np.random.Generator) -> None:
    """Set long blocks of flats side by side on a lawn, with a strip of parked cars between."""
    city = sheet.city
    lots = draw_verge(sheet, block, rng)
    sheet.box(lots.us, lots.vs, GRASS)
    half_long = min(rng.uniform(70, 98), lots.depth_px / 2 - 8)
    half_wide = rng.uniform(18, 23)
    storeys = int(rng.integers(3, 7))
    v = lots.vs[0] + half_wide + rng.uniform(8, 20)
    while v < lots.vs[1] - half_wide - 6:
        u = sum(lots.us) / 2 + rng.uniform(-10, 10)
        parts = [Part(0, 0, half_long, half_wide, STOREY_PX * storeys, "flat")]
        sheet.box((u - half_long, u + half_long), (v + half_wide, v + half_wide + 5), CONCRETE)
        sheet.build(u, v, parts, city.pick_roof(rng, large=True), turn=math.pi / 2)
        lane = (v + half_wide + 22, v + half_wide + 56)
        if lane[1] < lots.vs[1] - 2 * half_wide:
            sheet.box((lots.us[0] - 8, u + half_long), lane, ASPHALT, tone=rng.uniform(0.92, 1.1))
            for place in np.arange(lots.us[0] + 8, u + half_long - 8, 9.0):
                if rng.random() < 0.55:
                    sheet.park(place, lane[0] + 9, turn=rng.normal(0, 0.03))
        for _ in range(int(rng.integers(3, 9))):
            place = (rng.uniform(*lots.us), v + half_wide + rng.uniform(8, 70))
            if place[1] < lots.vs[1]:
                sheet.plant_any(*place, rng)
        v += 2 * half_wide + rng.uniform(72, 110)


def _cut(
    ends: tuple[float, float], piece_px: tuple[float, float], rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Return pieces of a length that fill it from end to end."""
    pieces = []
    start = ends[0]
    while ends[1] - start > 1:
        stop = start + rng.uniform(*piece_px)
        if ends[1] - stop < piece_px[0] * 0.8:
            stop = ends[1]
        pieces.append((start, stop))
        start = stop
    return pieces


def _terrace(half: float, depth: float, eave: float, city: City, rng: np.random.Generator) -> list[Part]:
    """Return a house in a row, its ridge along the street, often with a wing into the courtyard."""
    parts = [Part(0, 0, half + 0.5, depth / 2, eave, "gable", rng.uniform(*city.pitch))]
    if rng.random() < 0.65 and half > 18:
        half_wing, reach = rng.uniform(9, 14), rng.uniform(8, 26)
        side = rng.choice((-1.0, 1.0)) * (half - half_wing)
        form = "flat" if rng.random() < 0.4 else "lean"
        low = eave - rng.uniform(6, 18)
        if form == "flat":
            parts.append(Part(side, depth / 2 + reach, half_wing, reach, low, "flat"))
        else:
            parts.append(Part(side, depth / 2 + reach, half_wing, reach, low, "gable", 0.4, True))
    return parts


def _draw_court(sheet: Sheet, court: Block, rng: np.random.Generator) -> None:
    """Fill a courtyard: one strip behind each few houses, with sheds, walls and trees."""
    city = sheet.city
    sheet.box(court.us, court.vs, PAVING, tone=rng.uniform(0.85, 1.0))
    for start, stop in _cut(court.vs, (40, 90), rng):
        for us in ((court.us[0], sum(court.us) / 2), (sum(court.us) / 2, court.us[1])):
            sheet.box(us, (start, stop), city.yard[int(rng.integers(len(city.yard)))], tone=rng.uniform(0.8, 1.1))
            if rng.random() < 0.6:
                place = (rng.uniform(*us), rng.uniform(start, stop))
                sheet.plant_any(*place, rng)
            if rng.random() < 0.4 and us[1] - us[0] > 40:
                half_along, half_across = rng.uniform(8, 18), rng.uniform(6, 12)
                part = Part(0, 0, half_along, half_across, rng.uniform(9, 14), "flat")
                place = (rng.uniform(us[0] + 20, us[1] - 12), (start + stop) / 2)
                sheet.build(*place, [part], city.pick_roof(rng, large=True), turn=rng.choice((0, math.pi / 2)))
        sheet.stroke(court.us, (start, start), width_px=1, material=FENCE, wall_px=6)
    middle = sum(court.us) / 2
    sheet.stroke((middle, middle), court.vs, width_px=1, material=FENCE, wall_px=6)
