"""Drawn scenes with their land cover, one by one or as a data set in the layout of Chesapeake Land Cover.

All is drawn three times as fine and reduced to 1 m: what stands on the ground decides what the image shows and what
the land cover says. The same arguments draw the same bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from tqdm import tqdm

from geonorm.data.drawing.cover import closed_canopy, most_common
from geonorm.data.drawing.light import photograph
from geonorm.data.drawing.scene import raise_scene
from geonorm.data.drawing.states import STATES, State
from geonorm.data.drawing.thirty_metres import landsat, nlcd, prior
from geonorm.errors import InvalidConfigError
from geonorm.files import folder_beside, put_in_place
from geonorm.raster.write import write_image

STATE_NAMES = tuple(state.name for state in STATES)
SMALLEST_PX, LARGEST_PX = 64, 2048
NO_LAND_COVER = 15
LAYERS = (
    "naip-new",
    "naip-old",
    "lc",
    "buildings",
    "nlcd",
    "landsat-leaf-on",
    "landsat-leaf-off",
    "prior_from_cooccurrences_101_31_no_osm_no_buildings",
)
"""As torchgeo names them; those after ``buildings`` hold squares of 30 m."""

_FINER = 3  # drawn pixels along one of a tile: a third of a metre, near the 0.3 m that all is drawn for
_MARGIN_PX = 36  # of them around a scene, cut off again, so that shadows and crowns reach in
_UNMAPPED_EVERY = 4  # one tile in so many lies at the edge of what was mapped

# The quarter quadrangles of a square degree are counted from the north-west, four to each of 64 quadrangles.
_FIRST_CELL = {"train": 0, "val": 137, "test": 180}  # 137 is the tile of West Virginia that torchgeo looks for
_MOST = {"train": 128, "val": 40, "test": 76}


@dataclass(frozen=True)
class Land:
    """One piece of ground, photographed twice, and what covers it."""

    image: NDArray[np.uint8]
    """Red, green, blue, near infrared, ``(4, H, W)``."""
    older: NDArray[np.uint8]
    """The same ground some years before, under another light, ``(4, H, W)``."""
    cover: NDArray[np.uint8]
    """1 water, 2 trees, 3 low plants, 4 barren, 5 built, 6 road, ``(H, W)``."""
    buildings: NDArray[np.uint8]
    """1 = building, 0 = not, also under trees, ``(H, W)``."""


@dataclass(frozen=True)
class _Tile:
    """A tile to be drawn, and where it lies."""

    state: State
    split: str
    number: int
    name: str
    easting_m: float
    northing_m: float

    @property
    def folder(self) -> str:
        return f"{self.state.name}_1m_{self.state.year}_extended-debuffered-{self.split}_tiles"

    def file(self, layer: str) -> str:
        return f"{self.folder}/{self.name}_{layer}.tif"


def draw_land(state: str, height: int, width: int, *, seed: int) -> Land:
    """Return a piece of land of a state, at 1 m a pixel.

    Args:
        state: One of ``STATE_NAMES``.
        height: Rows, 64 to 2048.
        width: Columns, 64 to 2048.
        seed: Another seed draws another place.
    """
    style = _state(state)
    _check_size((height, width))
    if seed < 0:
        raise InvalidConfigError(f"seed must be 0 or more, got {seed}.")
    rng = np.random.default_rng([zlib.crc32(f"land of {state}".encode()), seed])
    canvas = raise_scene(style.look, _FINER * height + 2 * _MARGIN_PX, _FINER * width + 2 * _MARGIN_PX, rng)
    shape = (_FINER * height, _FINER * width)
    inner = (slice(_MARGIN_PX, _MARGIN_PX + shape[0]), slice(_MARGIN_PX, _MARGIN_PX + shape[1]))
    images = [
        _reduced(photograph(canvas, light, rng, infrared=True)[:, *inner]) for light in (style.look.light, style.older)
    ]
    buildings = _reduced(255 * canvas.labels[None, *inner])[0] > 127
    cover = closed_canopy(most_common(canvas.cover[inner], _FINER))
    return Land(images[0], images[1], cover, buildings.astype(np.uint8))


def write_chesapeake_layout(
    root: Path,
    *,
    states: Sequence[str],
    train_tiles: int,
    val_tiles: int = 1,
    test_tiles: int = 1,
    size_px: int | tuple[int, int],
    seed: int,
    progress: bool = False,
) -> Path:
    """Draw a data set in the layout of Chesapeake Land Cover, and return its folder ``cvpr_chesapeake_landcover``.

    Each split of each state has a folder ``{state}_1m_{year}_extended-debuffered-{split}_tiles``; a tile is a file for
    each of ``LAYERS``, tiled GeoTIFF of 1 m in the UTM zone of its state, and a row of ``spatial_index.geojson``. The
    first tile of each split and every fourth after it lack the land cover of one corner (15). Tiles lie kilometres
    apart, those of another split elsewhere. torchgeo's own data set looks for the folders of all states and for one
    tile of West Virginia: these are made whatever ``states`` says. Tiles that exist are replaced.

    Args:
        root: Folder in which to make ``cvpr_chesapeake_landcover``.
        states: States to draw, of ``STATE_NAMES``.
        train_tiles: Tiles of each state for training, up to 128.
        val_tiles: Tiles of each for validation, up to 40.
        test_tiles: Tiles of each for testing, up to 76.
        size_px: Side of a tile, or its height and width, 64 to 2048.
        seed: Another seed draws other tiles.
        progress: Show a bar with rate and time left.
    """
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    _check_size((height, width))
    counts = {"train": train_tiles, "val": val_tiles, "test": test_tiles}
    for split, count in counts.items():
        if not 0 <= count <= _MOST[split]:
            raise InvalidConfigError(f"{split}_tiles must be 0 to {_MOST[split]}, got {count}.")
    doubles = sorted({name for name in states if list(states).count(name) > 1})
    if doubles:
        raise InvalidConfigError(f"each state can be drawn once, got {', '.join(doubles)} twice.")
    wanted = [
        (_state(name), split, number) for name in states for split, count in counts.items() for number in range(count)
    ]
    known = (_state("wv"), "val", 0)
    tiles = [_placed(*tile) for tile in (wanted if known in wanted else [*wanted, known])]

    folder = Path(root) / "cvpr_chesapeake_landcover"
    for state in STATES:
        for split in counts:
            (folder / _placed(state, split, 0).folder).mkdir(parents=True, exist_ok=True)
    for tile in tqdm(tiles, desc="drawing", unit="tile", disable=not progress):
        _write(folder, tile, height, width, seed)
    _write_index(folder, tiles, height, width)
    return folder


def _write(folder: Path, tile: _Tile, height: int, width: int, seed: int) -> None:
    own = np.random.SeedSequence([seed, _FIRST_CELL[tile.split], tile.number]).generate_state(1)[0]
    land = draw_land(tile.state.name, height, width, seed=int(own))
    transform = Affine(1.0, 0.0, tile.easting_m, 0.0, -1.0, tile.northing_m)
    block_px = min(256, 16 * max(1, min(height, width) // 16))  # a block holds whole multiples of 16
    for layer, values in zip(LAYERS, _layers(land, unmapped=tile.number % _UNMAPPED_EVERY == 0), strict=True):
        write_image(
            folder / tile.file(layer),
            values,
            crs=f"EPSG:{_epsg(tile.state)}",
            transform=transform,
            tiled=True,
            block_px=block_px,
            compress=None if layer.startswith("naip") else "deflate",  # noise does not compress
        )


def _layers(land: Land, *, unmapped: bool) -> Iterator[NDArray[np.generic]]:
    """Yield the values of each of ``LAYERS``."""
    height, width = land.cover.shape
    rows, cols = np.arange(height)[:, None] / height, np.arange(width)[None, :] / width
    mapped = rows + cols > 0.2 if unmapped else np.ones((height, width), dtype=np.bool_)
    yield land.image
    yield land.older
    yield np.where(mapped, land.cover, np.uint8(NO_LAND_COVER))
    yield land.buildings
    yield nlcd(land.cover)
    yield landsat(land.image)
    yield landsat(land.older)
    yield prior(land.cover)


def _write_index(folder: Path, tiles: Sequence[_Tile], height: int, width: int) -> None:
    """Write where the tiles lie, in web Mercator, and their files."""
    features = []
    for tile in tiles:
        to_web = Transformer.from_crs(_epsg(tile.state), 3857, always_xy=True)
        east, south = tile.easting_m + width, tile.northing_m - height
        xs = [tile.easting_m, east, east, tile.easting_m, tile.easting_m]
        ys = [tile.northing_m, tile.northing_m, south, south, tile.northing_m]
        ring = [[float(x), float(y)] for x, y in zip(*to_web.transform(xs, ys), strict=True)]
        properties = {"split": f"{tile.state.name}-{tile.split}"} | {layer: tile.file(layer) for layer in LAYERS[:-1]}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    index = {"type": "FeatureCollection", "name": "spatial_index", "crs": crs, "features": features}
    target = folder / "spatial_index.geojson"
    with folder_beside(target) as beside:
        made = beside / target.name
        made.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        put_in_place(made, target)


def _placed(state: State, split: str, number: int) -> _Tile:
    """Return a tile with its name and the corner of its quarter quadrangle, in whole metres."""
    quadrangle, quarter = divmod(_FIRST_CELL[split] + number, 4)
    row, col = divmod(quadrangle, 8)
    latitude = state.south + 1 - row / 8 - (quarter // 2) / 16
    longitude = -(state.west + 1) + col / 8 + (quarter % 2) / 16
    easting, northing = Transformer.from_crs(4269, _epsg(state), always_xy=True).transform(longitude, latitude)
    corner = ("nw", "ne", "sw", "se")[quarter]
    name = f"m_{state.south}{state.west:03d}{quadrangle + 1:02d}_{corner}_{state.zone}_1"
    return _Tile(state, split, number, name, float(round(easting)), float(round(northing)))


def _reduced(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mean of each square of drawn pixels, rounded: ``(C, 3H, 3W)`` to ``(C, H, W)``."""
    count, height, width = image.shape
    squares = image.reshape(count, height // _FINER, _FINER, width // _FINER, _FINER).astype(np.float32)
    return np.rint(squares.mean(axis=(2, 4))).astype(np.uint8)


def _epsg(state: State) -> int:
    return 26900 + state.zone


def _state(name: str) -> State:
    for state in STATES:
        if state.name == name:
            return state
    raise InvalidConfigError(f"state must be one of {', '.join(STATE_NAMES)}, got {name!r}.")


def _check_size(size: tuple[int, int]) -> None:
    if not SMALLEST_PX <= min(size) <= max(size) <= LARGEST_PX:
        raise InvalidConfigError(
            f"drawn land has {SMALLEST_PX} to {LARGEST_PX} pixels each way, got {size[0]} x {size[1]}."
        )
