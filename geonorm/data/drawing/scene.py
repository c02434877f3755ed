"""A whole scene, from empty ground to trees and cars; still without light."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from geonorm.data.drawing.houses import draw_houses, draw_shanties
from geonorm.data.drawing.open_ground import draw_fields, draw_forest, draw_halls, draw_park
from geonorm.data.drawing.plants import Nursery, raise_tree, raise_vehicle
from geonorm.data.drawing.roofs import raise_building
from geonorm.data.drawing.sheet import Sheet
from geonorm.data.drawing.streets import Block, draw_river, lay_streets
from geonorm.data.drawing.styles import POOL, WATER, City, Zone
from geonorm.data.drawing.terraces import draw_slabs, draw_terraces
from geonorm.data.drawing.terrain import Canvas, lay_ground

_DRAW_ZONE: Mapping[Zone, Callable[[Sheet, Block, np.random.Generator], None]] = {
    "houses": draw_houses,
    "shanties": draw_shanties,
    "terraces": draw_terraces,
    "slabs": draw_slabs,
    "halls": draw_halls,
    "park": draw_park,
    "forest": draw_forest,
    "fields": draw_fields,
}


def raise_scene(style: City, height: int, width: int, rng: np.random.Generator) -> Canvas:
    """Return a canvas of a city with all that stands on it, ``(height, width)``."""
    sheet, blocks = lay_streets(style, height, width, rng)
    for block in blocks:
        draw = draw_river if block.river else _DRAW_ZONE[block.zone]
        draw(sheet, block, rng)

    canvas = lay_ground(sheet, rng)
    for building in sheet.buildings:
        raise_building(canvas, building, rng, snow=style.snow)
    allowed = (canvas.labels == 0) & ~np.isin(sheet.materials, (WATER, POOL))
    for vehicle in sheet.vehicles:
        raise_vehicle(canvas, vehicle, rng, allowed=allowed)
    nursery = Nursery(rng)
    for tree in sheet.trees:
        raise_tree(canvas, tree, nursery, style, rng, allowed=allowed)
    return canvas
