"""Streets and the blocks between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from geonorm.data.drawing.sheet import Frame, Sheet, Wave
from geonorm.data.drawing.styles import ASPHALT, CONCRETE, GRASS, MARK, MEADOW, TRACK, WATER, City, Zone

_DISTRICT_PX = 620.0
_HOME_PX = 200.0  # this near to the middle of a scene, people live


@dataclass(frozen=True)
class Block:
    """The ground between four streets, in plan coordinates."""

    us: tuple[float, float]
    vs: tuple[float, float]
    zone: Zone
    river: bool = False

    @property
    def depth_px(self) -> float:
        """Length along ``u``."""
        return self.us[1] - self.us[0]

    @property
    def length_px(self) -> float:
        """Length along ``v``."""
        return self.vs[1] - self.vs[0]

    def inset(self, margin_px: float) -> Block:
        """Return the block without a rim of ``margin_px``."""
        us = (self.us[0] + margin_px, self.us[1] - margin_px)
        vs = (self.vs[0] + margin_px, self.vs[1] - margin_px)
        return Block(us, vs, self.zone, self.river)


@dataclass(frozen=True)
class _Line:
    """A street: where its middle runs, how wide it is."""

    at: float
    width_px: float


def lay_streets(city: City, height: int, width: int, rng: np.random.Generator) -> tuple[Sheet, tuple[Block, ...]]:
    """Return a sheet covered with streets, and the blocks that lie between them."""
    frame = _bent_frame(city, height, width, rng)
    sheet = Sheet(city, frame, height, width, base=TRACK if city.dirt_roads else ASPHALT)
    reach = 0.5 * math.hypot(height, width) + max(wave.reach_px for wave in frame.waves) + 60
    rows = _lines(city, city.block_depth_px, reach, rng, first=-0.27)
    river = _river_row(city, rows, rng)
    zone_of = _districts(city, reach, rng)

    blocks: list[Block] = []
    columns: list[_Line] = []
    for index, (top, bottom) in enumerate(pairwise(rows)):
        if not columns or rng.random() < 0.45:
            columns = _lines(city, city.block_length_px, reach, rng, first=-rng.uniform(0.35, 0.6))
        for left, right in pairwise(columns):
            us = (top.at + top.width_px / 2, bottom.at - bottom.width_px / 2)
            vs = (left.at + left.width_px / 2, right.at - right.width_px / 2)
            block = Block(us, vs, zone_of(sum(us) / 2, sum(vs) / 2), river=index == river)
            half = 0.5 * math.hypot(block.depth_px, block.length_px) + 40
            if sheet.sees(sum(us) / 2, sum(vs) / 2, reach_px=half):
                blocks.append(block)
        for line in columns:
            _mark_street(sheet, line, (top.at, bottom.at), rng, downward=True)
    for line in rows:
        _mark_street(sheet, line, (-reach, reach), rng, downward=False)
    return sheet, tuple(blocks)


def draw_verge(sheet: Sheet, block: Block, rng: np.random.Generator) -> Block:
    """Draw the rim of a block, often with a pavement, and return the ground inside it."""
    verge = sheet.city.yard[0]
    sheet.box(block.us, block.vs, verge, tone=rng.uniform(0.85, 1.05), round_px=9)
    if sheet.city.dirt_roads or rng.random() < 0.3:
        return block.inset(5)
    inner = block.inset(rng.uniform(0, 5))
    sheet.box(inner.us, inner.vs, CONCRETE, tone=rng.uniform(0.9, 1.08), round_px=7)
    return inner.inset(5)


def draw_river(sheet: Sheet, block: Block, rng: np.random.Generator) -> None:
    """Fill a block with a river between its banks; the streets at its ends become bridges."""
    sheet.box(block.us, block.vs, MEADOW if sheet.city.dirt_roads else GRASS)
    v = np.arange(block.vs[0], block.vs[1] + 12, 12.0).clip(max=block.vs[1])
    middle = sum(block.us) / 2
    half = block.depth_px / 2 - 34
    for material, rim in ((TRACK, 7.0), (WATER, 0.0)):
        top = middle - half - rim + 14 * np.sin(v / 97) + 6 * np.sin(v / 31 + 1)
        bottom = middle + half + rim + 13 * np.sin(v / 83 + 2) + 5 * np.sin(v / 27)
        sheet.area(np.concatenate([top, bottom[::-1]]), np.concatenate([v, v[::-1]]), material)
    for edge in (block.us[0] + 12, block.us[1] - 12):
        for place in np.arange(block.vs[0] + 20, block.vs[1] - 20, 26.0):
            if rng.random() < 0.6:
                sheet.plant_any(edge + rng.uniform(-7, 7), place, rng)


def _bent_frame(city: City, height: int, width: int, rng: np.random.Generator) -> Frame:
    waves = []
    for _ in range(2):
        length = rng.uniform(1000, 2400)
        slope = city.bend * rng.uniform(0.4, 1.0)
        waves.append(Wave(slope * length / (2 * math.pi), length, rng.uniform(0, 2 * math.pi)))
    # The waves move the middle of the plan away; the shift brings it back.
    loose = Frame(0.0, 0.0, rng.uniform(-math.pi, math.pi), (waves[0], waves[1]))
    row, col = loose.place(0.0, 0.0)
    return Frame(height / 2 - float(row), width / 2 - float(col), loose.turn, loose.waves)


def _lines(
    city: City, pitch_px: tuple[float, float], reach: float, rng: np.random.Generator, *, first: float
) -> list[_Line]:
    """Return streets on both sides of 0, which lies ``-first`` of the way through its block."""
    ats = [first * rng.uniform(*pitch_px)]
    while ats[-1] < reach:
        ats.append(ats[-1] + rng.uniform(*pitch_px))
    while ats[0] > -reach:
        ats.insert(0, ats[0] - rng.uniform(*pitch_px))
    widths = [rng.uniform(36, 40) if rng.random() < 0.16 else rng.uniform(*city.street_px) for _ in range(len(ats))]
    return [_Line(at, width) for at, width in zip(ats, widths, strict=True)]


def _river_row(city: City, rows: list[_Line], rng: np.random.Generator) -> int | None:
    """Return which row of blocks is under water, if any: never the one in the middle of the scene."""
    wet = rng.random() < city.river
    near = [
        index
        for index, (top, bottom) in enumerate(pairwise(rows))
        if 200 < abs(top.at + bottom.at) / 2 < rows[-1].at * 0.62
    ]
    return int(rng.choice(near)) if wet and near else None


def _districts(city: City, reach: float, rng: np.random.Generator) -> Callable[[float, float], Zone]:
    """Return which zone a place belongs to: districts of one kind with strays, homes in the middle."""
    zones = list(city.zones)
    weights = np.array([city.zones[zone] for zone in zones])
    weights /= weights.sum()
    count = max(2, math.ceil((2 * reach / _DISTRICT_PX) ** 2))
    places = rng.uniform(-reach, reach, size=(count, 2))
    kinds = rng.choice(len(zones), size=count, p=weights)

    def zone_of(u: float, v: float) -> Zone:
        if math.hypot(u, v) < _HOME_PX:
            return zones[0]
        if rng.random() < 0.2:
            return zones[int(rng.choice(len(zones), p=weights))]
        return zones[int(kinds[np.hypot(places[:, 0] - u, places[:, 1] - v).argmin()])]

    return zone_of


def _mark_street(
    sheet: Sheet, line: _Line, ends: tuple[float, float], rng: np.random.Generator, *, downward: bool
) -> None:
    """Draw surface, wear, lane marks and cars of one street."""

    def run(start: float, stop: float, side_px: float) -> tuple[list[float], list[float]]:
        fixed, moving = [line.at + side_px] * 2, [start, stop]
        return (moving, fixed) if downward else (fixed, moving)

    main = line.width_px > 35 and not (downward and sheet.city.dirt_roads)
    paved = main or not sheet.city.dirt_roads
    if main and sheet.city.dirt_roads:
        sheet.stroke(*run(*ends, 0), width_px=round(line.width_px * 0.7), material=ASPHALT)
    tone = rng.uniform(0.86, 1.12)
    sheet.stroke(*run(*ends, 0), width_px=round(line.width_px) + 2, tone=tone)
    for side in (-0.22, 0.22):
        worn = tone * rng.uniform(0.9, 1.08)
        sheet.stroke(*run(*ends, side * line.width_px), width_px=round(line.width_px * 0.22), tone=worn)
    if paved:
        _patch(sheet, run, ends, line.width_px, tone, rng)
    if paved and (main or rng.random() < 0.3):
        for start in np.arange(ends[0] + 30, ends[1] - 30, 30.0):
            sheet.stroke(*run(start, start + 12, 0), width_px=1, material=MARK)
    if main and paved:
        for side in (-0.3, 0.3):
            sheet.stroke(*run(ends[0] + 22, ends[1] - 22, side * line.width_px), width_px=1, material=MARK)

    for place in np.arange(ends[0] + 30, ends[1] - 30, 24.0):
        chance = rng.random()
        if chance < 0.05 + 0.05 * main:
            side, lean = 0.22 * line.width_px, 0.0
        elif chance < (0.3 if sheet.city.storeys[1] > 3 else 0.14) and not main:
            side, lean = line.width_px / 2 - 5, rng.normal(0, 0.03)
        else:
            continue
        us, vs = run(place, place, side * rng.choice((-1, 1)))
        sheet.park(us[0], vs[0], turn=lean + (math.pi / 2 if downward else 0.0))


def _patch(
    sheet: Sheet,
    run: Callable[[float, float, float], tuple[list[float], list[float]]],
    ends: tuple[float, float],
    width_px: float,
    tone: float,
    rng: np.random.Generator,
) -> None:
    """Mend the asphalt here and there, in another grey."""
    for start in np.arange(ends[0], ends[1], 130.0):
        if rng.random() < 0.4:
            place, side = start + rng.uniform(0, 100), rng.uniform(-0.3, 0.3) * width_px
            length, width = rng.uniform(6, 60), int(rng.integers(3, 10))
            sheet.stroke(*run(place, place + length, side), width_px=width, tone=tone * rng.uniform(0.8, 1.1))
