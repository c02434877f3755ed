"""The sheet a scene is planned on: bent plan coordinates, what covers the ground, what stands on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from geonorm.data.drawing.noise import Field
from geonorm.data.drawing.styles import City, Roof, Species

Form = Literal["gable", "hip", "flat", "lean"]

STOREY_PX = 10.0
_WALL_STEPS = 4  # a wall is stored in quarters of a pixel
_BEND_EVERY_PX = 24.0


@dataclass(frozen=True)
class Wave:
    """One swing of the street grid: ``reach_px`` to the side, every ``length_px``."""

    reach_px: float
    length_px: float
    phase: float


@dataclass(frozen=True)
class Frame:
    """Where a point of the plan lies on the canvas.

    The plan is a rectangular grid, ``u`` down and ``v`` to the right. It is turned by ``turn`` and bent
    by ``waves``; its point (0, 0) lies near ``(row, col)``.
    """

    row: float
    col: float
    turn: float
    waves: tuple[Wave, Wave]

    def place(self, u: ArrayLike, v: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return rows and columns of points of the plan."""
        u, v = np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64)
        across, along = self.waves
        u, v = (
            u + across.reach_px * np.sin(2 * math.pi * v / across.length_px + across.phase),
            v + along.reach_px * np.sin(2 * math.pi * u / along.length_px + along.phase),
        )
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return self.row + cos * u + sin * v, self.col - sin * u + cos * v

    def spot(self, u: float, v: float) -> tuple[float, float, float]:
        """Return row and column of one point, and the angle at which ``v`` runs there."""
        rows, cols = self.place([u, u], [v - 4, v + 4])
        heading = math.atan2(rows[1] - rows[0], cols[1] - cols[0])
        return float(rows.mean()), float(cols.mean()), heading


@dataclass(frozen=True)
class Part:
    """One rectangular wing: its middle from the middle of the building, its halves, and its roof."""

    along: float
    across: float
    half_along: float
    half_across: float
    eave_px: float
    form: Form = "gable"
    pitch: float = 0.4
    crosswise: bool = False
    """Whether the ridge runs along the second axis."""


@dataclass(frozen=True)
class Building:
    """A building on the canvas; where its parts overlap, the highest is seen."""

    row: float
    col: float
    turn: float
    parts: tuple[Part, ...]
    roof: Roof


@dataclass(frozen=True)
class Tree:
    """A tree on the canvas."""

    row: float
    col: float
    radius_px: float
    species: Species


@dataclass(frozen=True)
class Vehicle:
    """A car or a trailer on the canvas."""

    row: float
    col: float
    turn: float
    length_px: float = 15.0
    width_px: float = 6.5


class Sheet:
    """A plan in the making: materials, their tones, low walls, and lists of what is to be raised."""

    def __init__(self, city: City, frame: Frame, height: int, width: int, *, base: int) -> None:
        self.city = city
        self.frame = frame
        self.height, self.width = height, width
        self.buildings: list[Building] = []
        self.trees: list[Tree] = []
        self.vehicles: list[Vehicle] = []
        self._material = Image.new("L", (width, height), base)
        self._tone = Image.new("L", (width, height), 128)
        self._wall = Image.new("L", (width, height), 0)
        self._road = Image.new("L", (width, height), 1)
        self._material_pen = ImageDraw.Draw(self._material)
        self._tone_pen = ImageDraw.Draw(self._tone)
        self._wall_pen = ImageDraw.Draw(self._wall)
        self._road_pen = ImageDraw.Draw(self._road)

    @property
    def materials(self) -> NDArray[np.uint8]:
        """What covers each pixel of the ground."""
        return np.asarray(self._material)

    @property
    def roads(self) -> NDArray[np.bool_]:
        """Where streets are: on all ground that no area covers, for blocks begin with one that fills them."""
        return np.asarray(self._road) == 1

    @property
    def tones(self) -> Field:
        """How bright each pixel's material is, about 1."""
        return np.asarray(self._tone).astype(np.float32) / np.float32(128)

    @property
    def walls(self) -> Field:
        """Height of hedges and fences in pixels."""
        return np.asarray(self._wall).astype(np.float32) / np.float32(_WALL_STEPS)

    def sees(self, u: float, v: float, *, reach_px: float) -> bool:
        """Return whether anything within ``reach_px`` of a point may lie on the sheet."""
        row, col, _ = self.frame.spot(u, v)
        return -reach_px < row < self.height + reach_px and -reach_px < col < self.width + reach_px

    def box(
        self,
        us: Sequence[float],
        vs: Sequence[float],
        material: int | None,
        *,
        tone: float | None = 1.0,
        round_px: float = 0.0,
    ) -> None:
        """Cover the rectangle ``us[0]..us[1]`` by ``vs[0]..vs[1]`` of the plan."""
        if us[1] - us[0] < 2 * round_px + 1 or vs[1] - vs[0] < 2 * round_px + 1:
            return
        down, right = _steps(us[0] + round_px, us[1] - round_px), _steps(vs[0] + round_px, vs[1] - round_px)
        (top, bottom), (left, end) = us, vs
        cut = 0.29 * round_px  # where the arc of a corner has its middle
        ring = [(top, v) for v in right] + [(top + cut, end - cut)]
        ring += [(u, end) for u in down] + [(bottom - cut, end - cut)]
        ring += [(bottom, v) for v in right[::-1]] + [(bottom - cut, left + cut)]
        ring += [(u, left) for u in down[::-1]] + [(top + cut, left + cut)]
        u, v = np.array(ring).T
        self.area(u, v, material, tone=tone)

    def area(self, u: ArrayLike, v: ArrayLike, material: int | None, *, tone: float | None = 1.0) -> None:
        """Cover the inside of a ring of points of the plan."""
        ring = self._points(u, v)
        if material is not None:
            self._material_pen.polygon(ring, fill=material)
            self._road_pen.polygon(ring, fill=0)
        if tone is not None:
            self._tone_pen.polygon(ring, fill=round(128 * tone))

    def stroke(
        self,
        us: Sequence[float],
        vs: Sequence[float],
        *,
        width_px: int,
        material: int | None = None,
        tone: float | None = None,
        wall_px: float | None = None,
    ) -> None:
        """Draw a line that follows the plan from its first point to its last."""
        if len(us) == 2:
            count = max(2, math.ceil(math.hypot(us[1] - us[0], vs[1] - vs[0]) / _BEND_EVERY_PX) + 1)
            us, vs = list(np.linspace(us[0], us[1], count)), list(np.linspace(vs[0], vs[1], count))
        line = self._points(us, vs)
        if material is not None:
            self._material_pen.line(line, fill=material, width=width_px, joint="curve")
        if tone is not None:
            self._tone_pen.line(line, fill=round(128 * tone), width=width_px, joint="curve")
        if wall_px is not None:
            self._wall_pen.line(line, fill=round(wall_px * _WALL_STEPS), width=width_px, joint="curve")

    def build(self, u: float, v: float, parts: Sequence[Part], roof: Roof, *, turn: float = 0.0) -> None:
        """Set a building at a point of the plan, its first axis along ``v`` and turned by ``turn``."""
        row, col, heading = self.frame.spot(u, v)
        self.buildings.append(Building(row, col, heading + turn, tuple(parts), roof))

    def plant(self, u: float, v: float, radius_px: float, species: Species) -> None:
        """Set a tree at a point of the plan."""
        row, col, _ = self.frame.spot(u, v)
        self.trees.append(Tree(row, col, radius_px, species))

    def plant_any(self, u: float, v: float, rng: np.random.Generator, *, share: float = 1.0) -> None:
        """Set a tree of the kinds and sizes that the city has, or of a ``share`` of them."""
        self.plant(u, v, share * rng.uniform(*self.city.tree_radius_px), self.city.pick_species(rng))

    def park(self, u: float, v: float, *, turn: float = 0.0, length_px: float = 15.0, width_px: float = 6.5) -> None:
        """Set a vehicle at a point of the plan."""
        row, col, heading = self.frame.spot(u, v)
        self.vehicles.append(Vehicle(row, col, heading + turn, length_px, width_px))

    def _points(self, u: ArrayLike, v: ArrayLike) -> list[tuple[float, float]]:
        rows, cols = self.frame.place(u, v)
        return list(zip(cols.tolist(), rows.tolist(), strict=True))


def _steps(start: float, stop: float) -> NDArray[np.float64]:
    return np.linspace(start, stop, max(2, math.ceil((stop - start) / _BEND_EVERY_PX) + 1))
