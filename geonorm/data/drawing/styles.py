"""What tells one drawn city from another: light, ground, streets, roofs, trees.

Lengths are pixels of 0.3 m; colours are red, green, blue as a photograph shows them in sunlight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Colour = tuple[int, int, int]
Range = tuple[float, float]
Zone = Literal["houses", "shanties", "terraces", "slabs", "halls", "park", "forest", "fields"]
Texture = Literal["shingle", "tile", "tin", "flat"]
Species = Literal["broadleaf", "bare", "conifer", "palm"]

# What the ground is made of: the numbers that the sheet of a scene is filled with.
(GRASS, MEADOW, SOIL, CROP, ASPHALT, CONCRETE, PAVING, TRACK, WATER, MARK, HEDGE, FENCE, POOL, LITTER) = range(14)
LIVING = (GRASS, MEADOW, SOIL, CROP, LITTER)  # where snow stays


@dataclass(frozen=True, kw_only=True)
class Light:
    """Sun, sky and sensor over one city."""

    sun_azimuth_deg: float
    """Where the sun stands, clockwise from north; shadows fall to the other side."""
    sun_elevation_deg: float
    sun: tuple[float, float, float]
    """Colour of the direct light; 1 leaves a colour as the palette has it."""
    sky: tuple[float, float, float]
    """Colour of the light that also reaches the shadows."""
    haze: float
    """Share of the veil at its usual density, 0 to 1."""
    haze_colour: Colour
    gain: float
    contrast: float
    saturation: float
    """1 leaves the colours as the palettes have them, 0 takes them away."""


@dataclass(frozen=True, kw_only=True)
class Roof:
    """A kind of roof: its colour, and how far single roofs stray from it."""

    colour: Colour
    texture: Texture
    share: float = 1.0
    spread: float = 0.12


@dataclass(frozen=True, kw_only=True)
class City:
    """All that makes one city look unlike the others."""

    name: str
    epsg: int
    easting_m: float
    northing_m: float
    light: Light
    ground: Mapping[int, tuple[Colour, Colour]]
    """Two colours of each material, between which it varies from place to place."""
    zones: Mapping[Zone, float]
    """How often a district is of a kind; the middle of every scene is of the first."""
    block_depth_px: Range
    block_length_px: Range
    street_px: Range
    bend: float
    """How far the streets swing, as a slope."""
    dirt_roads: bool
    lot_px: Range
    house_px: Range
    storeys: tuple[int, int]
    pitch: Range
    hipped: float
    """Share of hipped among the sloping roofs."""
    small_roofs: tuple[Roof, ...]
    large_roofs: tuple[Roof, ...]
    yard: tuple[int, ...]
    """Materials of the gardens, drawn with equal chance."""
    species: Mapping[Species, float]
    leaf: tuple[Colour, ...]
    trees_per_lot: float
    tree_radius_px: Range
    river: float = 0.3
    """Chance that a river runs through a scene of more than 700 px."""
    pools: float = 0.0
    snow: float = 0.0
    """Share of the open ground under snow."""

    def pick_roof(self, rng: np.random.Generator, *, large: bool = False) -> Roof:
        """Return one of the roofs, by their shares."""
        roofs = self.large_roofs if large else self.small_roofs
        shares = np.array([roof.share for roof in roofs])
        return roofs[int(rng.choice(len(roofs), p=shares / shares.sum()))]

    def pick_species(self, rng: np.random.Generator) -> Species:
        """Return one kind of tree, by their shares."""
        species = list(self.species)
        shares = np.array([self.species[name] for name in species])
        return species[int(rng.choice(len(species), p=shares / shares.sum()))]
