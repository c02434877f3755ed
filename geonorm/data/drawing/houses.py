"""Houses on lots with gardens, and tin roofs crowded on bare ground."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geonorm.data.drawing.sheet import STOREY_PX, Form, Part, Sheet
from geonorm.data.drawing.streets import Block, draw_verge
from geonorm.data.drawing.styles import (
    ASPHALT,
    CONCRETE,
    FENCE,
    GRASS,
    HEDGE,
    MEADOW,
    PAVING,
    POOL,
    SOIL,
    TRACK,
    City,
    Roof,
)

_JOINED_BELOW_PX = 50  # on narrower lots the houses stand wall to wall


def draw_houses(sheet: Sheet, block: Block, rng: np.random.Generator) -> None:
    """Divide a block into two rows of lots, each with a house at the street and a garden behind."""
    city = sheet.city
    lots = draw_verge(sheet, block, rng)
    middle = sum(lots.us) / 2 + rng.uniform(-12, 12)
    joined = city.lot_px[1] < _JOINED_BELOW_PX
    for street, back, facing in ((lots.us[0], middle, 1.0), (lots.us[1], middle, -1.0)):
        start, roof = lots.vs[0], city.pick_roof(rng)
        while lots.vs[1] - start > city.lot_px[0] * 0.7:
            stop = start + rng.uniform(*city.lot_px)
            if lots.vs[1] - stop < city.lot_px[0] * 0.7:
                stop = lots.vs[1]
            if not joined or rng.random() < 0.12:
                roof = city.pick_roof(rng)
            if sheet.sees(middle, (start + stop) / 2, reach_px=abs(back - street) + 100):
                _draw_lot(sheet, _Lot(street, facing, abs(back - street), start, stop), roof, rng)
            start = stop


def draw_shanties(sheet: Sheet, block: Block, rng: np.random.Generator) -> None:
    """Crowd small tin roofs on bare ground, in uneven clusters with paths, walls and trees between."""
    sheet.box(block.us, block.vs, SOIL, tone=rng.uniform(0.94, 1.06))
    for _ in range(int(block.depth_px * block.length_px / 2500)):
        u, v = rng.uniform(*block.us), rng.uniform(*block.vs)
        half = rng.uniform(5, 22, size=2)
        us = (max(block.us[0], u - half[0]), min(block.us[1], u + half[0]))
        vs = (max(block.vs[0], v - half[1]), min(block.vs[1], v + half[1]))
        surface = int(rng.choice((SOIL, SOIL, TRACK, MEADOW, GRASS, CONCRETE), p=(0.3, 0.1, 0.2, 0.2, 0.12, 0.08)))
        sheet.box(us, vs, surface, tone=rng.uniform(0.8, 1.1))
    inner = block.inset(5)
    u = inner.us[0] + 14
    while u < inner.us[1] - 12:
        v = inner.vs[0] + rng.uniform(10, 30)
        lean = rng.normal(0, 0.06)
        while v < inner.vs[1] - 16:
            half_along, half_across = rng.uniform(9, 21), rng.uniform(8, 15)
            spot = (u + rng.normal(0, 4) + lean * (v - sum(inner.vs) / 2), v + half_along)
            if rng.random() < 0.8 and inner.us[0] + 10 < spot[0] < inner.us[1] - 10:
                _raise_hut(sheet, spot, half_along, half_across, rng)
            else:
                for _ in range(int(rng.integers(1, 4))):
                    place = (spot[0] + rng.normal(0, 7), spot[1] + rng.normal(0, 9))
                    sheet.plant_any(*place, rng, share=0.8)
            for _ in range(int(rng.poisson(1.6))):
                place = (spot[0] + rng.normal(0, 16), spot[1] + rng.normal(0, 18))
                if rng.random() < 0.6:
                    sheet.plant(*place, rng.uniform(1.8, 4.5), "broadleaf")
                else:
                    sheet.park(
                        *place,
                        turn=rng.uniform(0, 3),
                        length_px=rng.uniform(3, 9),
                        width_px=rng.uniform(2, 5),
                    )
            v += 2 * half_along + rng.choice([0.0, 3.0, 8.0, 26.0], p=[0.35, 0.3, 0.2, 0.15])
        if rng.random() < 0.4:
            sheet.stroke((u + 15, u + 15), inner.vs, width_px=1, material=FENCE, wall_px=5)
        u += rng.uniform(26, 36) + (12 if rng.random() < 0.25 else 0)


def _raise_hut(
    sheet: Sheet, spot: tuple[float, float], half_along: float, half_across: float, rng: np.random.Generator
) -> None:
    city = sheet.city
    turn = rng.normal(0, 0.16) + (math.pi / 2 if rng.random() < 0.25 else 0.0)
    form: Form = "gable" if rng.random() < 0.6 else "lean"
    eave, pitch = rng.uniform(8, 11), rng.uniform(0.1, 0.35)
    sheet.build(*spot, [Part(0, 0, half_along, half_across, eave, form, pitch)], city.pick_roof(rng), turn=turn)
    if rng.random() < 0.45:
        side = rng.choice((-1.0, 1.0))
        annex = Part(side * half_along, rng.uniform(-4, 4), rng.uniform(5, 9), half_across * 0.7, 7, "lean", 0.12)
        sheet.build(*spot, [annex], city.pick_roof(rng), turn=turn)


@dataclass(frozen=True)
class _Lot:
    """A lot seen from its street: ``s`` runs along the street, ``t`` from the street to the back."""

    street: float
    facing: float
    depth_px: float
    start: float
    stop: float

    @property
    def width_px(self) -> float:
        return self.stop - self.start

    @property
    def turn(self) -> float:
        return 0.0 if self.facing > 0 else math.pi

    def at(self, t: float, s: float) -> tuple[float, float]:
        """Return the point of the plan ``t`` behind the street and ``s`` from the start of the lot."""
        return self.street + self.facing * t, self.start + s

    def box(self, ts: tuple[float, float], ss: tuple[float, float]) -> tuple[list[float], list[float]]:
        """Return a rectangle of the lot in plan coordinates."""
        us = sorted(self.street + self.facing * t for t in ts)
        return us, [self.start + ss[0], self.start + ss[1]]


def _draw_lot(sheet: Sheet, lot: _Lot, roof: Roof, rng: np.random.Generator) -> None:
    city = sheet.city
    joined = city.lot_px[1] < _JOINED_BELOW_PX
    half_across = rng.uniform(*city.house_px) * 0.36
    free = lot.width_px / 2 - 5
    half_along = lot.width_px / 2 if joined else min(rng.uniform(*city.house_px) * 0.55, free)
    setback = (16 if joined else rng.uniform(13, 34)) * min(1.0, lot.depth_px / 90)
    middle_t = setback + half_across
    slack = 0.0 if joined else free - half_along
    middle_s = lot.width_px / 2 + rng.uniform(-slack, slack)
    back = middle_t + half_across

    front_of, back_of = (
        city.yard[int(rng.integers(len(city.yard)))],
        city.yard[int(rng.integers(len(city.yard)))],
    )
    sheet.box(*lot.box((0, back), (0, lot.width_px)), front_of, tone=rng.uniform(0.86, 1.14))
    sheet.box(*lot.box((back, lot.depth_px), (0, lot.width_px)), back_of, tone=rng.uniform(0.82, 1.14))
    _draw_drive(sheet, lot, setback, middle_s, half_along, rng)
    if rng.random() < 0.6:
        wide = rng.uniform(8, 1.6 * half_along)
        terrace = lot.box((back, back + rng.uniform(7, 16)), (middle_s - wide / 2, middle_s + wide / 2))
        sheet.box(*terrace, PAVING if rng.random() < 0.6 else CONCRETE, tone=rng.uniform(0.8, 1.1))
    _draw_garden(sheet, lot, back, rng)
    _draw_fences(sheet, lot, setback, rng)

    if rng.random() < 0.95:
        parts = _house_parts(half_along, half_across, roof, city, rng, joined=joined)
        turn = lot.turn + (0.0 if joined else rng.normal(0, 0.03))
        sheet.build(*lot.at(middle_t, middle_s), parts, roof, turn=turn)
        for _ in range(int(rng.poisson(2.5))):
            beside = middle_s + rng.uniform(-half_along, half_along)
            t = rng.choice((setback - 3, back + 3))
            sheet.plant(*lot.at(t, beside), rng.uniform(1.8, 3.6), "broadleaf")


def _house_parts(
    half_along: float, half_across: float, roof: Roof, city: City, rng: np.random.Generator, *, joined: bool
) -> list[Part]:
    """Return the wings of a dwelling: a plain one, an L, a T, or one with a lower garage."""
    eave = STOREY_PX * rng.uniform(city.storeys[0] * 0.9, city.storeys[1])
    if roof.texture == "flat":
        form: Form = "flat"
    else:
        form = "hip" if rng.random() < city.hipped else "gable"
    pitch = rng.uniform(*city.pitch)
    parts = [Part(0, 0, half_along, half_across, eave, form, pitch)]
    if joined:
        if rng.random() < 0.6:
            parts.append(Part(-half_along / 2, half_across + 5, half_along / 2, 8, STOREY_PX, "flat"))
        return parts
    side = rng.choice((-1.0, 1.0))
    plan = rng.random()
    if plan < 0.42:
        half_wing = rng.uniform(0.5, 0.8) * half_across
        reach = rng.uniform(5, 14)
        across = rng.choice((-1.0, 1.0)) * reach
        low = eave - 4 if form == "flat" else eave
        wing = Part(side * (half_along - half_wing), across, half_wing, half_across, low, form, pitch, True)
        parts.append(wing)
    elif plan < 0.6:
        half_wing = rng.uniform(0.45, 0.7) * half_across
        high = eave + 5 if form == "flat" else eave
        parts.append(Part(side * 3, rng.choice((-8.0, 8.0)), half_wing, half_across, high, form, pitch, True))
    if rng.random() < 0.4:
        half_garage = rng.uniform(7, 10)
        along, eave = side * (half_along + half_garage - 4), STOREY_PX * 0.8
        parts.append(Part(along, -2, half_garage, half_across * 0.75, eave, form, pitch))
    if rng.random() < 0.3:
        parts.append(Part(-side * 4, half_across + 3, half_along * 0.5, 5, STOREY_PX * 0.8, "lean", -0.15))
    return parts


def _draw_drive(
    sheet: Sheet, lot: _Lot, setback: float, middle_s: float, half_along: float, rng: np.random.Generator
) -> None:
    """Lead a drive or a path to the house, often with a car on it."""
    city = sheet.city
    surface = int(rng.choice((TRACK, SOIL, PAVING) if city.dirt_roads else (CONCRETE, CONCRETE, ASPHALT, PAVING)))
    tone = rng.uniform(0.86, 1.08)
    if lot.width_px < 46:
        sheet.box(*lot.box((0, setback), (middle_s - 2, middle_s + 2)), surface, tone=tone)
        return
    s = float(np.clip(middle_s + rng.choice((-1, 1)) * half_along * rng.uniform(0.6, 1.1), 8, lot.width_px - 8))
    half = rng.uniform(5, 9)
    deep = setback + rng.choice((4.0, 40.0), p=(0.7, 0.3))
    sheet.box(*lot.box((-9, deep), (s - half, s + half)), surface, tone=tone)
    if rng.random() < 0.55:
        sheet.park(*lot.at(rng.uniform(8, max(9.0, setback - 6)), s), turn=math.pi / 2 + rng.normal(0, 0.04))
    if rng.random() < 0.5:
        path = middle_s + rng.uniform(-6, 6)
        sheet.box(*lot.box((0, setback), (path - 2, path + 2)), CONCRETE, tone=rng.uniform(0.85, 1.1))


def _draw_garden(sheet: Sheet, lot: _Lot, back: float, rng: np.random.Generator) -> None:
    """Fill the ground behind a house: shed, beds, a pool, trees."""
    city = sheet.city
    deep = lot.depth_px - back
    if deep < 24:
        return
    if rng.random() < 0.5:
        half_along, half_across = rng.uniform(5, 11), rng.uniform(4, 8)
        corner = rng.choice((half_along + 3, lot.width_px - half_along - 3))
        t = lot.depth_px - half_across - rng.uniform(2, 14)
        form: Form = "lean" if rng.random() < 0.4 else "gable"
        part = Part(0, 0, half_along, half_across, rng.uniform(7, 9), form, 0.25)
        sheet.build(*lot.at(t, corner), [part], city.pick_roof(rng), turn=rng.normal(0, 0.08))
    if rng.random() < 0.25:
        t, s = back + rng.uniform(8, deep - 14), rng.uniform(6, max(7.0, lot.width_px - 24))
        bed = lot.box((t, t + rng.uniform(8, 16)), (s, s + rng.uniform(10, 20)))
        sheet.box(*bed, SOIL, tone=rng.uniform(0.75, 1.0))
    if rng.random() < city.pools and deep > 50:
        t, s = back + deep * 0.4, lot.width_px * rng.uniform(0.3, 0.6)
        sheet.box(*lot.box((t - 11, t + 11), (s - 17, s + 17)), CONCRETE)
        sheet.box(*lot.box((t - 6, t + 6), (s - 12, s + 12)), POOL, round_px=4)
    for _ in range(int(rng.poisson(city.trees_per_lot))):
        t = rng.uniform(back + 4, lot.depth_px) if rng.random() < 0.75 else rng.uniform(0, 12)
        sheet.plant_any(*lot.at(t, rng.uniform(0, lot.width_px)), rng)
    for _ in range(int(rng.poisson(2.0))):
        place = lot.at(rng.uniform(back, lot.depth_px), rng.uniform(0, lot.width_px))
        sheet.plant(*place, rng.uniform(1.8, 4.2), "broadleaf")
    for _ in range(int(rng.poisson(1.2))):
        place = lot.at(rng.uniform(back + 6, lot.depth_px - 6), rng.uniform(6, lot.width_px - 6))
        sheet.park(*place, turn=rng.uniform(0, 3), length_px=rng.uniform(3, 10), width_px=rng.uniform(2, 6))
    if rng.random() < 0.3:  # a thicket along the back
        s, species = rng.uniform(0, lot.width_px), city.pick_species(rng)
        for _ in range(int(rng.integers(3, 9))):
            place = lot.at(lot.depth_px - rng.uniform(0, 14), s + rng.normal(0, 14))
            sheet.plant(*place, rng.uniform(*city.tree_radius_px) * 0.8, species)


def _draw_fences(sheet: Sheet, lot: _Lot, setback: float, rng: np.random.Generator) -> None:
    """Run a fence or a hedge along the sides and the back of a lot."""
    for ts, ss in (
        ((setback + 8, lot.depth_px), (0.0, 0.0)),
        ((lot.depth_px, lot.depth_px), (0.0, lot.width_px)),
        ((4.0, 4.0), (0.0, lot.width_px * 0.6)),
    ):
        chance = rng.random() + (0.35 if ts[0] == 4 else 0.0)
        ends = lot.at(ts[0], ss[0]), lot.at(ts[1], ss[1])
        us, vs = [ends[0][0], ends[1][0]], [ends[0][1], ends[1][1]]
        if chance < 0.4:
            sheet.stroke(us, vs, width_px=1, material=FENCE, wall_px=rng.uniform(4, 6))
        elif chance < 0.6:
            sheet.stroke(us, vs, width_px=4, material=HEDGE, wall_px=rng.uniform(4, 7))
