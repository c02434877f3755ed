"""Drawn aerial scenes with their buildings, one by one or as a data set in INRIA's layout.

Everything is invented: the cities in ``drawing/cities.py``, their streets and roofs, the weather. The same
arguments draw the same bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from tqdm import tqdm

from geonorm.data.drawing.cities import CITIES
from geonorm.data.drawing.light import photograph
from geonorm.data.drawing.scene import raise_scene
from geonorm.data.drawing.styles import City
from geonorm.errors import InvalidConfigError
from geonorm.raster.write import write_image

RESOLUTION_M = 0.3
SMALLEST_PX = 64
CITY_NAMES = tuple(city.name for city in CITIES)

_MARGIN_PX = 32  # drawn around a scene and cut off, so that shadows and crowns reach in


@dataclass(frozen=True)
class Scene:
    """An aerial image and where its buildings are."""

    image: NDArray[np.uint8]
    """Red, green, blue, shape ``(3, H, W)``."""
    labels: NDArray[np.uint8]
    """1 = building, 0 = not, shape ``(H, W)``."""


def draw_scene(city: str, height: int, width: int, *, seed: int) -> Scene:
    """Return an aerial scene of a city, at 0.3 m a pixel.

    People live in the middle of every scene. Towards its edges lie other districts, and sun, haze and
    exposure change from place to place, so that a scene of 2048 pixels holds bright and dim districts.

    Args:
        city: One of ``CITY_NAMES``.
        height: Rows of the scene, at least 64.
        width: Columns of the scene, at least 64.
        seed: Another seed draws another part of the city, on another day.
    """
    style = _city(city)
    if min(height, width) < SMALLEST_PX:
        raise InvalidConfigError(
            f"a scene needs at least {SMALLEST_PX} pixels each way, got {height} x {width}: "
            "a smaller one may not hold a single house."
        )
    if seed < 0:
        raise InvalidConfigError(f"seed must be 0 or more, got {seed}.")
    rng = np.random.default_rng([zlib.crc32(city.encode()), seed])
    canvas = raise_scene(style, height + 2 * _MARGIN_PX, width + 2 * _MARGIN_PX, rng)
    image = photograph(canvas, style.light, rng)
    rows, cols = slice(_MARGIN_PX, _MARGIN_PX + height), slice(_MARGIN_PX, _MARGIN_PX + width)
    return Scene(image[:, rows, cols].copy(), canvas.labels[rows, cols].copy())


def write_inria_layout(
    root: Path,
    *,
    cities: Sequence[str],
    tiles_per_city: int,
    size_px: int | tuple[int, int],
    seed: int,
    test_cities: Sequence[str] = (),
    test_tiles_per_city: int = 1,
    test_masks: bool = False,
    progress: bool = False,
) -> Path:
    """Draw a data set in the layout of INRIA's, and return its folder ``AerialImageDataset``.

    Tiles are ``train/images/<city><number>.tif`` with masks 0/255 of the same name in ``train/gt``, and
    ``test/images/<city><number>.tif``. Those of one city lie side by side from west to east, in the UTM zone
    of the city; each is drawn by itself, so streets end where they meet. Tiles that exist are replaced.

    Args:
        root: Folder in which to make ``AerialImageDataset``.
        cities: Cities to train on, of ``CITY_NAMES``.
        tiles_per_city: Tiles of each of them.
        size_px: Side of a tile, or its height and width.
        seed: Another seed draws other tiles.
        test_cities: Cities to test on, none of ``cities``.
        test_tiles_per_city: Tiles of each of them.
        test_masks: Write masks for them too, to ``test/gt``. The contest keeps its own to itself.
        progress: Show a bar with rate and time left.
    """
    doubles = [name for name in (*cities, *test_cities) if (*cities, *test_cities).count(name) > 1]
    if doubles:
        raise InvalidConfigError(f"each city can be drawn once, got {', '.join(sorted(set(doubles)))} twice.")
    tiles = [("train", _city(name), number) for name in cities for number in range(1, tiles_per_city + 1)]
    tiles += [("test", _city(name), number) for name in test_cities for number in range(1, test_tiles_per_city + 1)]
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    folder = Path(root) / "AerialImageDataset"
    masked = ("train", "test") if test_masks else ("train",)
    for split in ("train/images", "test/images", *(f"{split}/gt" for split in masked)):
        (folder / split).mkdir(parents=True, exist_ok=True)

    for split, city, number in tqdm(tiles, desc="drawing", unit="tile", disable=not progress):
        scene = draw_scene(city.name, height, width, seed=_tile_seed(seed, number))
        name, crs = f"{city.name}{number}.tif", f"EPSG:{city.epsg}"
        west = city.easting_m + (number - 1) * width * RESOLUTION_M
        transform = Affine(RESOLUTION_M, 0.0, west, 0.0, -RESOLUTION_M, city.northing_m)
        # Noise does not compress, and training reads the images again and again.
        write_image(folder / split / "images" / name, scene.image, crs=crs, transform=transform, compress=None)
        if split in masked:
            mask = scene.labels * np.uint8(255)
            write_image(folder / split / "gt" / name, mask, crs=crs, transform=transform)
    return folder


def _city(name: str) -> City:
    for city in CITIES:
        if city.name == name:
            return city
    raise InvalidConfigError(f"city must be one of {', '.join(CITY_NAMES)}, got {name!r}.")


def _tile_seed(seed: int, number: int) -> int:
    """Return a seed of its own for each tile, also where two data sets have seeds side by side."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
