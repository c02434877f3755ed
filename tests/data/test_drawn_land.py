"""Drawn land: what covers it is what the image shows, and both data sets that know the layout read it."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform_bounds
from torchgeo.datasets import ChesapeakeCVPR

from geonorm.data import ChesapeakeDataModule, write_chesapeake_layout
from geonorm.data.drawing.cover import Cover, closed_canopy, ground_cover, most_common, near_infrared
from geonorm.data.drawing.styles import ASPHALT, GRASS, WATER
from geonorm.data.drawing.thirty_metres import landsat, nlcd, prior
from geonorm.data.drawn_land import LAYERS, NO_LAND_COVER, STATE_NAMES, Land, draw_land
from geonorm.data.pairs import open_pair
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import InvalidConfigError
from geonorm.raster.window import Window

HEIGHT, WIDTH = 180, 220
RED, GREEN, BLUE, INFRARED = range(4)
PLANTS, BUILT = (Cover.TREES, Cover.LOW_PLANTS), (Cover.BUILT, Cover.ROAD)
each_state = pytest.mark.parametrize("state", STATE_NAMES)


@cache
def land(state: str, seed: int = 3) -> Land:
    return draw_land(state, HEIGHT, WIDTH, seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maryland and Virginia, 64 x 96 pixels a tile."""
    root = tmp_path_factory.mktemp("land")
    return write_chesapeake_layout(root, states=["md", "va"], train_tiles=2, size_px=(64, 96), seed=0)


def vegetation_index(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    red, infrared = image[RED].astype(np.float64) ** 2, image[INFRARED].astype(np.float64) ** 2
    return (infrared - red) / (infrared + red + 1)


@each_state
def test_the_same_arguments_draw_the_same_bytes(state: str) -> None:
    first, again = (draw_land(state, 64, 90, seed=3) for _ in range(2))

    for name in ("image", "older", "cover", "buildings"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()


def test_another_seed_draws_another_place() -> None:
    assert (land("md", 3).cover != land("md", 4).cover).mean() > 0.2


@each_state
def test_shapes_and_values_are_those_of_the_data_set(state: str) -> None:
    drawn = land(state)

    assert drawn.image.shape == drawn.older.shape == (4, HEIGHT, WIDTH)
    assert drawn.cover.shape == drawn.buildings.shape == (HEIGHT, WIDTH)
    assert {drawn.image.dtype, drawn.older.dtype, drawn.cover.dtype, drawn.buildings.dtype} == {np.dtype(np.uint8)}
    assert {*np.unique(drawn.cover)} <= {*Cover}
    assert {*np.unique(drawn.buildings)} <= {0, 1}


def test_every_class_occurs_among_the_states() -> None:
    covers = np.stack([land(state).cover for state in STATE_NAMES])

    assert all((covers == kind).mean() > 0.005 for kind in Cover)


@each_state
def test_plants_are_brighter_in_near_infrared_than_in_red_and_built_ground_is_not(state: str) -> None:
    drawn = land(state)
    plants, built = (np.isin(drawn.cover, kinds) for kinds in (PLANTS, BUILT))

    for image in (drawn.image, drawn.older):
        index = vegetation_index(image)
        assert index[plants].mean() > index[built].mean() + 0.1
        assert -0.35 < index[built].mean() < 0.1  # below 0 where shadows are deep


def test_water_is_dark_in_near_infrared_whatever_it_is_in_blue() -> None:
    watery = [land(state) for state in STATE_NAMES if (land(state).cover == Cover.WATER).mean() > 0.02]

    assert len(watery) >= 2
    for drawn in watery:
        water = drawn.cover == Cover.WATER
        assert drawn.image[INFRARED][water].mean() < 0.7 * drawn.image[INFRARED][~water].mean()
        assert drawn.image[INFRARED][water].mean() < drawn.image[BLUE][water].mean()


@each_state
def test_roofs_seen_from_above_are_built_ground_or_lie_under_trees(state: str) -> None:
    drawn = land(state)
    roofs = drawn.buildings == 1

    assert np.isin(drawn.cover[roofs], (Cover.BUILT, Cover.TREES)).mean() > 0.97


@each_state
def test_roads_make_one_net(state: str) -> None:
    # Streets cross the scene: a road is seldom far from another road pixel to all sides.
    roads = land(state).cover == Cover.ROAD
    inner = roads[1:-1, 1:-1]
    neighbours = sum(
        roads[1 + down : HEIGHT - 1 + down, 1 + right : WIDTH - 1 + right]
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    )

    assert 0.05 < roads.mean() < 0.35
    assert (neighbours[inner] == 1).mean() < 0.001


def test_states_differ_more_than_seeds() -> None:
    def look(state: str, seed: int) -> NDArray[np.float64]:
        image = land(state, seed).image
        return np.concatenate([image.mean(axis=(1, 2)), image.std(axis=(1, 2))])

    looks = {state: look(state, 3) for state in STATE_NAMES}

    for one, other in itertools.combinations(STATE_NAMES, 2):
        assert np.abs(looks[one] - looks[other]).max() > 8, (one, other)


def test_the_older_imagery_shows_the_same_ground_in_another_light() -> None:
    for state in STATE_NAMES:
        drawn = land(state)
        shift = np.abs(drawn.image.mean(axis=(1, 2)) - drawn.older.mean(axis=(1, 2)))
        same = np.corrcoef(drawn.image[RED].ravel(), drawn.older[RED].ravel())[0, 1]
        assert shift.max() > 5
        assert same > 0.35


def test_asphalt_is_a_road_only_where_a_street_runs() -> None:
    material = np.array([[ASPHALT, ASPHALT, GRASS, WATER]], dtype=np.uint8)

    cover = ground_cover(material, np.array([[True, False, True, True]]))

    assert cover.tolist() == [[Cover.ROAD, Cover.BUILT, Cover.LOW_PLANTS, Cover.WATER]]


def test_the_commonest_class_wins_a_square_and_the_lower_number_a_tie() -> None:
    cover = np.array([[2, 2, 5, 5], [5, 2, 1, 1]], dtype=np.uint8)

    assert most_common(cover, 2).tolist() == [[2, 1]]


def test_only_small_gaps_among_trees_are_forest() -> None:
    cover = np.full((30, 40), Cover.LOW_PLANTS, dtype=np.uint8)
    cover[5:25, 5:25] = Cover.TREES
    cover[14:16, 14:16] = Cover.LOW_PLANTS
    cover[8, 8] = Cover.ROAD

    closed = closed_canopy(cover)

    assert (closed[14:16, 14:16] == Cover.TREES).all()
    assert closed[8, 8] == Cover.ROAD
    assert (closed[:, 27:] == Cover.LOW_PLANTS).all()


def test_a_greener_leaf_reflects_more_near_infrared() -> None:
    albedo = np.array([[[0.1, 0.2]], [[0.2, 0.2]], [[0.05, 0.05]]], dtype=np.float32)
    cover = np.full((1, 2), Cover.LOW_PLANTS, dtype=np.uint8)

    green, dry = near_infrared(albedo, cover)[0]

    assert green > dry > 0.2


def test_coarse_layers_are_the_means_of_squares_of_thirty_metres() -> None:
    cover = np.full((45, 60), Cover.WATER, dtype=np.uint8)
    cover[:30, 30:] = Cover.TREES
    cover[:15, 30:] = Cover.ROAD
    image = np.full((4, 45, 60), 51, dtype=np.uint8)

    codes, shares, bands = nlcd(cover), prior(cover), landsat(image)

    assert codes[0, 0] == codes[44, 59] == 11
    assert codes[0, 30] == codes[29, 59] == 23
    assert shares[:, 0, 0].tolist() == [255, 0, 0, 0]
    assert shares[:, 10, 40].tolist() == [0, 128, 0, 128]
    assert bands.shape == (9, 45, 60)
    assert bands[3, 0, 0] == 400  # a fifth of the grey levels is a 25th of the light


def test_geonorm_reads_the_layout(folder: Path) -> None:
    data = ChesapeakeDataModule(
        folder, train_states=["md"], test_states=["va"], patch_px=32, batch_size=2, num_workers=0
    )
    data.setup("fit")
    pair = next(pair for pair in data.pairs["train"] if "_nw_" in pair.image)

    with open_pair(pair) as files:
        labels = files.read_labels(Window(0, 0, 64, 96))
        image = files.read(Window(0, 0, 64, 96))

    assert {split: len(pairs) for split, pairs in data.pairs.items()} == {"train": 2, "val": 1, "test": 1}
    assert data.pairs["test"][0].group == "va"
    assert image.values.shape == (4, 64, 96)
    assert image.valid.all()
    assert IGNORE_LABEL in labels
    assert {*np.unique(labels)} <= {0, 1, 2, 3, IGNORE_LABEL}
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 4, 32, 32)
    assert data.spec.resolution_m == pytest.approx(1, rel=1e-2)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # torchgeo builds its index in the old way of pandas
# torchgeo 0.8 uses pandas, shapely and affine in ways that these give up.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("split", ["md-train", "va-test", "wv-val"])
def test_torchgeo_reads_the_layout(folder: Path, split: str) -> None:
    data = ChesapeakeCVPR(str(folder), splits=[split], layers=list(LAYERS))
    tile = data.index.iloc[0]
    with rasterio.open(folder / tile["naip-new"]) as new, rasterio.open(folder / tile["lc"]) as cover:
        image, labels = new.read(), cover.read(1)
    left, bottom, right, top = tile.geometry.bounds

    sample = data[left:right, bottom:top]

    bands = sample["image"]
    assert bands.shape == (4 + 4 + 9 + 9, 64, 96)
    np.testing.assert_array_equal(bands[:4], image)  # a query that holds the tile in another CRS gives all of it
    np.testing.assert_array_equal(sample["mask"][0], labels)


def test_each_tile_lies_in_the_zone_of_its_state_on_the_same_grid_in_every_layer(folder: Path) -> None:
    index = json.loads((folder / "spatial_index.geojson").read_text())

    assert {feature["properties"]["split"] for feature in index["features"]} == {
        *(f"{state}-{split}" for state in ("md", "va") for split in ("train", "val", "test")),
        "wv-val",
    }
    for feature in index["features"]:
        properties = feature["properties"]
        epsg = {"md": 26918, "va": 26917, "wv": 26917}[properties["split"][:2]]
        places = set()
        for layer in LAYERS[:-1]:
            with rasterio.open(folder / properties[layer]) as dataset:
                assert dataset.crs == CRS.from_epsg(epsg)
                assert dataset.profile["tiled"]
                assert dataset.res == (1.0, 1.0)
                places.add((dataset.transform, dataset.shape))
                west, bottom, east, top = transform_bounds(dataset.crs, 4269, *dataset.bounds)
        assert len(places) == 1
        name = Path(properties["lc"]).name
        south, degree = int(name[2:4]), int(name[4:7])
        assert -degree - 1.001 < west < east < -degree + 0.001
        assert south - 0.001 < bottom < top < south + 1.001


def test_a_corner_of_the_first_tile_was_never_mapped(folder: Path) -> None:
    tiles = folder / "md_1m_2013_extended-debuffered-train_tiles"

    covers = []
    for quarter in ("nw", "ne"):
        with rasterio.open(tiles / f"m_3907601_{quarter}_18_1_lc.tif") as dataset:
            covers.append(dataset.read(1))

    assert 0 < (covers[0] == NO_LAND_COVER).mean() < 0.1
    assert (covers[1] != NO_LAND_COVER).all()


def test_more_tiles_leave_the_others_as_they_are(folder: Path, tmp_path: Path) -> None:
    more = write_chesapeake_layout(tmp_path, states=["va"], train_tiles=1, val_tiles=2, size_px=(64, 96), seed=0)

    shared = sorted(
        path.relative_to(more) for path in more.rglob("*.tif") if (folder / path.relative_to(more)).exists()
    )

    assert len(shared) == 4 * len(LAYERS)
    for path in shared:
        assert (more / path).read_bytes() == (folder / path).read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"states": ["tx"]}, "state must be one of de, md, ny, pa, va, wv, got 'tx'"),
        ({"states": ["md", "md"]}, "drawn once, got md twice"),
        ({"train_tiles": 129}, "train_tiles must be 0 to 128, got 129"),
        ({"val_tiles": -1}, "val_tiles must be 0 to 40, got -1"),
        ({"size_px": 63}, "64 to 2048 pixels each way, got 63 x 63"),
        ({"size_px": (64, 3000)}, "got 64 x 3000"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_made(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        write_chesapeake_layout(tmp_path, **{"states": ["md"], "train_tiles": 1, "size_px": 64, "seed": 0, **settings})  # type: ignore[arg-type]  # one is wrong

    assert not list(tmp_path.iterdir())
