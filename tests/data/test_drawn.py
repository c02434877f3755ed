"""Drawn scenes: what they hold, that they are repeatable, and the layout they are written in."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.crs import CRS

from geonorm.data.drawing.cities import CITIES
from geonorm.data.drawing.light import photograph
from geonorm.data.drawing.plants import Nursery, raise_tree
from geonorm.data.drawing.roofs import raise_building
from geonorm.data.drawing.sheet import Building, Part, Tree
from geonorm.data.drawing.styles import Light, Roof
from geonorm.data.drawing.terrain import Canvas
from geonorm.data.drawn import CITY_NAMES, RESOLUTION_M, Scene, draw_scene, write_inria_layout
from geonorm.data.inria import find_pairs
from geonorm.errors import InvalidConfigError

NOON = Light(
    sun_azimuth_deg=180.0,  # shadows fall to the north, upwards
    sun_elevation_deg=45.0,
    sun=(1.0, 1.0, 1.0),
    sky=(0.2, 0.2, 0.2),
    haze=0.0,
    haze_colour=(200, 200, 200),
    gain=1.0,
    contrast=1.0,
    saturation=1.0,
)
each_city = pytest.mark.parametrize("city", CITY_NAMES)


@cache
def scene(city: str, seed: int = 0) -> Scene:
    return draw_scene(city, 400, 480, seed=seed)


def bare_ground(height: int, width: int) -> Canvas:
    flat = np.zeros((height, width), dtype=np.float32)
    return Canvas(np.full((3, height, width), 0.2, dtype=np.float32), flat, flat.copy())


def raised_house() -> Canvas:
    """A house of 60 x 40 pixels in the middle of bare ground, its ridge from west to east."""
    canvas = bare_ground(200, 220)
    part = Part(0, 0, 30, 20, 20, "gable", 0.5)
    house = Building(100.0, 110.0, 0.0, (part,), Roof(colour=(130, 130, 130), texture="shingle", spread=0.0))
    raise_building(canvas, house, np.random.default_rng(0), snow=0.0)
    return canvas


def windows(image: NDArray[np.uint8], side_px: int) -> NDArray[np.float64]:
    """Cut the grey image into squares: (number, pixels)."""
    grey = image.mean(axis=0)
    rows, cols = grey.shape[0] // side_px, grey.shape[1] // side_px
    grey = grey[: rows * side_px, : cols * side_px].reshape(rows, side_px, cols, side_px)
    return grey.swapaxes(1, 2).reshape(rows * cols, -1)


@each_city
def test_the_same_arguments_draw_the_same_bytes_whatever_the_global_random_state(city: str) -> None:
    first = draw_scene(city, 90, 130, seed=3)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  the state that must not matter
    torch.manual_seed(1)

    second = draw_scene(city, 90, 130, seed=3)

    assert first.image.tobytes() == second.image.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()


@each_city
def test_another_seed_draws_another_scene(city: str) -> None:
    assert (scene(city, 0).labels != scene(city, 1).labels).mean() > 0.05


def test_there_are_five_cities_and_more_with_names_that_a_tile_number_can_follow() -> None:
    assert len(set(CITY_NAMES)) >= 5
    assert all(name.isalpha() and name.islower() for name in CITY_NAMES)


@each_city
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 150), (201, 77)])
def test_a_scene_has_the_size_that_was_asked_for(city: str, height: int, width: int) -> None:
    drawn = draw_scene(city, height, width, seed=1)

    assert drawn.image.shape == (3, height, width)
    assert drawn.labels.shape == (height, width)
    assert drawn.image.dtype == drawn.labels.dtype == np.uint8
    assert set(np.unique(drawn.labels)) <= {0, 1}


@each_city
@pytest.mark.parametrize("seed", [0, 1])
def test_a_scene_is_built_on_but_not_built_over(city: str, seed: int) -> None:
    assert 0.05 < scene(city, seed).labels.mean() < 0.5


@each_city
def test_a_scene_uses_the_grey_levels_without_running_out_of_them(city: str) -> None:
    image = scene(city).image

    assert 70 < image.mean() < 190
    assert image.std() > 12
    assert np.isin(image, (0, 255)).mean() < 0.08


def test_each_city_has_its_own_colour_or_contrast() -> None:
    def look(city: str) -> NDArray[np.float64]:
        images = [scene(city, seed).image for seed in (0, 1)]
        return np.mean([[*image.mean(axis=(1, 2)), image.mean(axis=0).std()] for image in images], axis=0)

    looks = {city: look(city) for city in CITY_NAMES}

    for one, other in itertools.combinations(CITY_NAMES, 2):
        assert np.abs(looks[one] - looks[other]).max() > 5, (one, other)


def test_colour_alone_does_not_find_the_buildings() -> None:
    def best_by_colour(drawn: Scene) -> float:
        """IoU of the best table from colours to labels, made with the labels themselves."""
        coarse = drawn.image.astype(np.int_) // 16
        colours = (coarse[0] * 16 + coarse[1]) * 16 + coarse[2]
        on, off = (np.bincount(colours[drawn.labels == label], minlength=4096) for label in (1, 0))
        guess = (on > off)[colours]
        return float((guess & (drawn.labels == 1)).sum() / (guess | (drawn.labels == 1)).sum())

    ious = [best_by_colour(scene(city, seed)) for city in CITY_NAMES for seed in (0, 1)]

    assert np.mean(ious) < 0.62


def test_a_shadow_falls_on_the_ground_away_from_the_sun() -> None:
    image = photograph(raised_house(), NOON, np.random.default_rng(0)).mean(axis=0)

    north, south = image[66:78, 100:120].mean(), image[122:134, 100:120].mean()
    assert north < 0.65 * south


def test_a_lower_sun_casts_a_longer_shadow() -> None:
    def shaded_px(elevation_deg: float) -> int:
        light = dataclasses.replace(NOON, sun_elevation_deg=elevation_deg)
        image = photograph(raised_house(), light, np.random.default_rng(0)).mean(axis=0)
        ground = np.median(image[150:, :])
        return int((image[:78, :] < 0.75 * ground).sum())

    assert shaded_px(30.0) > 1.4 * shaded_px(55.0)


def test_the_face_of_a_roof_towards_the_sun_is_the_brighter_one() -> None:
    image = photograph(raised_house(), NOON, np.random.default_rng(0)).mean(axis=0)

    assert image[104:116, 90:130].mean() > 1.2 * image[84:96, 90:130].mean()


def test_the_label_of_a_house_is_its_outline() -> None:
    rows, cols = np.nonzero(raised_house().labels)

    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (80, 120, 80, 140)
    assert len(rows) == 41 * 61


def test_a_turned_house_runs_the_way_it_is_turned() -> None:
    canvas = bare_ground(100, 120)
    part = Part(0, 0, 40, 6, 20, "flat")
    house = Building(50, 60, math.radians(30), (part,), Roof(colour=(130, 130, 130), texture="flat"))
    raise_building(canvas, house, np.random.default_rng(0), snow=0.0)

    rows, cols = np.nonzero(canvas.labels)

    along = np.polyfit(cols, rows, 1)[0]
    assert along == pytest.approx(math.tan(math.radians(30)), abs=0.03)


def test_a_crown_over_a_roof_hides_it_and_leaves_its_label() -> None:
    canvas = raised_house()
    before, top = canvas.labels.copy(), canvas.relief.copy()
    free = canvas.labels == 0
    rng = np.random.default_rng(0)

    raise_tree(canvas, Tree(124.0, 110.0, 17.0, "broadleaf"), Nursery(rng), CITIES[0], rng, allowed=free)

    assert (canvas.relief > top)[before == 0].sum() > 300
    np.testing.assert_array_equal(canvas.labels, before)


def test_a_tree_does_not_grow_out_of_a_roof() -> None:
    canvas = raised_house()
    before = canvas.relief.copy()
    free = canvas.labels == 0
    rng = np.random.default_rng(0)

    raise_tree(canvas, Tree(100.0, 110.0, 17.0, "broadleaf"), Nursery(rng), CITIES[0], rng, allowed=free)

    np.testing.assert_array_equal(canvas.relief, before)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_large_scene_holds_bright_and_dim_districts(seed: int) -> None:
    # Narrow, for speed: a scene as wide as it is high reaches further into the weather.
    means = windows(photograph(bare_ground(2048, 800), NOON, np.random.default_rng(seed)), 256).mean(axis=1)

    assert means.max() > 1.2 * means.min()


def test_haze_takes_contrast_from_a_district() -> None:
    canvas = bare_ground(2048, 400)
    canvas.albedo[:, ::8, :] = 0.6
    hazy = dataclasses.replace(NOON, haze=0.4)

    districts = windows(photograph(canvas, hazy, np.random.default_rng(0)), 200)

    contrasts = districts.std(axis=1) / districts.mean(axis=1)  # which clouds leave as it is
    assert contrasts.max() > 1.7 * contrasts.min()


def test_a_city_that_nobody_drew_is_named_with_those_that_exist() -> None:
    with pytest.raises(InvalidConfigError, match=r"alder.*got 'atlantis'"):
        draw_scene("atlantis", 64, 64, seed=0)


@pytest.mark.parametrize(("height", "width", "seed"), [(63, 64, 0), (64, 10, 0), (64, 64, -1)])
def test_a_scene_that_cannot_be_drawn_is_refused(height: int, width: int, seed: int) -> None:
    with pytest.raises(InvalidConfigError, match="got"):
        draw_scene("alder", height, width, seed=seed)


def test_the_layout_is_that_of_inria(tmp_path: Path) -> None:
    folder = write_inria_layout(
        tmp_path, cities=["brack", "corvel"], tiles_per_city=2, size_px=64, seed=0, test_cities=["laterra"]
    )

    assert folder == tmp_path / "AerialImageDataset"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tif")) == [
        "test/images/laterra1.tif",
        *[f"train/gt/{name}.tif" for name in ("brack1", "brack2", "corvel1", "corvel2")],
        *[f"train/images/{name}.tif" for name in ("brack1", "brack2", "corvel1", "corvel2")],
    ]


def test_masks_of_test_cities_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    folder = write_inria_layout(
        tmp_path, cities=[], tiles_per_city=1, size_px=64, seed=0, test_cities=["laterra"], test_masks=True
    )

    assert [pair.name for pair in find_pairs(folder / "test")] == ["laterra1"]
    with rasterio.open(folder / "test/gt/laterra1.tif") as mask:
        assert {*np.unique(mask.read())} == {0, 255}


def test_an_image_and_its_mask_lie_on_the_same_ground(tmp_path: Path) -> None:
    folder = write_inria_layout(tmp_path, cities=["brack"], tiles_per_city=1, size_px=(64, 96), seed=0)

    image_path, mask_path = folder / "train/images/brack1.tif", folder / "train/gt/brack1.tif"
    with rasterio.open(image_path) as image, rasterio.open(mask_path) as mask:
        assert (image.count, image.height, image.width) == (3, 64, 96)
        assert (mask.count, mask.height, mask.width) == (1, 64, 96)
        assert (image.crs, image.transform) == (mask.crs, mask.transform)
        assert image.crs == CRS.from_epsg(32613)
        assert image.res == (RESOLUTION_M, RESOLUTION_M)
        assert set(np.unique(mask.read())) == {0, 255}


def test_tiles_of_a_city_lie_side_by_side(tmp_path: Path) -> None:
    folder = write_inria_layout(tmp_path, cities=["brack"], tiles_per_city=3, size_px=(64, 96), seed=0)

    boxes = []
    for number in (1, 2, 3):
        with rasterio.open(folder / f"train/images/brack{number}.tif") as image:
            boxes.append(image.bounds)

    for west, east in itertools.pairwise(boxes):
        assert east.left == pytest.approx(west.right, abs=1e-6)
        assert (east.top, east.bottom) == (west.top, west.bottom)


def test_each_city_has_a_zone_and_an_origin_of_its_own() -> None:
    assert len({city.epsg for city in CITIES}) == len(CITIES)
    assert all(CRS.from_epsg(city.epsg).is_projected for city in CITIES)


def test_tiles_differ_and_the_same_seed_writes_the_same_ones(tmp_path: Path) -> None:
    def pixels(root: str) -> list[bytes]:
        folder = write_inria_layout(tmp_path / root, cities=["alder"], tiles_per_city=2, size_px=64, seed=5)
        tiles = []
        for number in (1, 2):
            with rasterio.open(folder / f"train/images/alder{number}.tif") as image:
                tiles.append(image.read().tobytes())
        return tiles

    once, again = pixels("once"), pixels("again")

    assert once == again
    assert once[0] != once[1]


def test_a_city_for_training_and_testing_at_once_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="alder"):
        write_inria_layout(tmp_path, cities=["alder"], tiles_per_city=1, size_px=64, seed=0, test_cities=["alder"])

    assert not list(tmp_path.iterdir())


def test_progress_shows_tiles_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_inria_layout(tmp_path, cities=["alder"], tiles_per_city=2, size_px=64, seed=0, progress=True)

    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "tile/s" in shown or "s/tile" in shown


def test_without_progress_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_inria_layout(tmp_path, cities=["alder"], tiles_per_city=1, size_px=64, seed=0)

    assert capsys.readouterr() == ("", "")
