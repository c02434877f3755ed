"""Grids: their resolution, their anchor, their crops, and plain data that holds them."""

import json
import math
from pathlib import Path

import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from geonorm.raster.grid import Grid, GroundControlPoint
from geonorm.raster.read import open_raster
from geonorm.raster.window import Window
from tests.raster.drawn import HEIGHT, PLACE, UTM, WIDTH


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        ("EPSG:32633", Affine(0.3, 0, 4e5, 0, -0.3, 5e6), 0.3),
        ("EPSG:32633", Affine(0.3, 0, 4e5, 0, 0.3, 5e6), 0.3),
        ("EPSG:32633", Affine(0.0, 0.3, 4e5, 0.3, 0.0, 5e6), 0.3),
        ("EPSG:32633", Affine(2.0, 0, 4e5, 0, -8.0, 5e6), 4.0),
        ("EPSG:25832+7837", Affine(0.2, 0, 4e5, 0, -0.2, 5e6), 0.2),
        ("EPSG:2263", Affine(0.5, 0, 9e5, 0, -0.5, 2e5), 0.5 * 1200 / 3937),  # US survey feet
        ("EPSG:3857", Affine(1.0, 0, 0, 0, -1.0, 30), 1.0),
        ("EPSG:3857", Affine(1.0, 0, 0, 0, -1.0, 8399737.9), math.cos(math.radians(60))),
        ("ESRI:102100", Affine(1.0, 0, 0, 0, -1.0, 8399737.9), math.cos(math.radians(60))),
        ("EPSG:3395", Affine(1.0, 0, 0, 0, -1.0, 8362698.6), 0.5013),  # cos(60) / sqrt(1 - (e sin(60))^2)
        ("EPSG:4326", Affine(1e-5, 0, 10, 0, -1e-5, 0.0), 1.11319),
        ("EPSG:4326", Affine(1e-5, 0, 10, 0, -1e-5, 60.0), 1.11319 * math.sqrt(0.5)),
        ("EPSG:4326", Affine(1e-5, 0, 10, 0, 1e-5, 60.0), 1.11319 * math.sqrt(0.5)),
        ("IAU_2015:49910", Affine(5.0, 0, 0, 0, -5.0, 0), None),  # Mars
        ("EPSG:32633", Affine.identity(), None),
        ("EPSG:4978", Affine(5.0, 0, 0, 0, -5.0, 0), None),
        (None, Affine(5.0, 0, 0, 0, -5.0, 0), None),
    ],
)
def test_the_resolution_is_the_size_of_a_pixel_on_the_ground(
    crs: str | None, transform: Affine, expected: float | None
) -> None:
    grid = Grid(HEIGHT, WIDTH, CRS.from_user_input(crs) if crs else None, transform)

    assert grid.resolution_m == (None if expected is None else pytest.approx(expected, rel=4e-3))


placed = st.builds(
    # An origin on a corner or on the centre of a pixel, in a grid turned by quarters, either way up.
    lambda side, col, row, half, turn, flip: (
        Affine.rotation(turn) @ Affine.scale(side, flip * side) @ Affine.translation(col + half, row + half)
    ),
    side=st.sampled_from([0.0746, 0.15, 0.3, 1.0, 1 / 3, 10.0, 1e-5]),
    col=st.integers(-(10**7), 10**7),
    row=st.integers(-(10**7), 10**7),
    half=st.sampled_from([0.0, 0.5]),
    turn=st.sampled_from([0.0, 90.0, 180.0, 30.0, -76.3]),
    flip=st.sampled_from([1, -1]),
)


@given(transform=placed, row=st.integers(0, 10**5), col=st.integers(0, 10**5))
def test_crops_agree_on_the_index_of_a_pixel(transform: Affine, row: int, col: int) -> None:
    whole = Grid(HEIGHT, WIDTH, UTM, transform)
    crop = Grid(HEIGHT, WIDTH, UTM, transform @ Affine.translation(col, row))

    rows, cols = whole.first_index
    assert crop.first_index == (rows + row, cols + col)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (Affine(0.3, 0, 3.0, 0, -0.3, 6.0), (-20, 10)),
        (Affine(0.3, 0, 3.0, 0, 0.3, 6.0), (20, 10)),
        (Affine(0.3, 0, -3.0, 0, -0.3, -6.0), (20, -10)),
        (Affine(0.3, 0, 3.15, 0, -0.3, 6.0), (-20, 11)),  # half a pixel counts as a whole one
        (Affine(0.3, 0, 3.09, 0, -0.3, 6.0), (-20, 10)),
        (Affine(0.0, 0.3, 3.0, 0.3, 0.0, 6.0), (10, 20)),  # rows run along x
        (Affine.identity(), (0, 0)),
    ],
)
def test_the_first_index_counts_pixels_from_the_origin_of_the_crs(transform: Affine, expected: tuple[int, int]) -> None:
    assert Grid(HEIGHT, WIDTH, UTM, transform).first_index == expected


@pytest.mark.parametrize("crs", [None, "EPSG:32633", "EPSG:3857", "EPSG:4326"])
@pytest.mark.parametrize(
    "numbers",
    [
        (0, 0, 1, 0, 0, 1),
        (1, 1, 0, 1, 1, 0),
        (1e300, 0, 1e308, 0, 1e300, 1e308),
        (1e-160, 0, 1e200, 0, 1e-160, 1e200),
        (1e-300, 0, 5, 0, 1e-300, 5),
        (math.nan, 0, 0, 0, 1, 0),
        (1, 0, math.inf, 0, 1, 0),
    ],
)
def test_an_absurd_transform_stops_nothing(crs: str | None, numbers: tuple[float, ...]) -> None:
    grid = Grid(HEIGHT, WIDTH, CRS.from_user_input(crs) if crs else None, Affine(*numbers))

    assert grid.first_index == (0, 0)
    assert grid.resolution_m is None or math.isfinite(grid.resolution_m)


# Crops


@given(
    transform=placed,
    row=st.integers(-100, 100),
    col=st.integers(-100, 100),
    height=st.integers(1, 99),
    width=st.integers(1, 99),
)
def test_a_crop_has_its_first_pixel_where_the_window_says(
    transform: Affine, row: int, col: int, height: int, width: int
) -> None:
    crop = Grid(HEIGHT, WIDTH, UTM, transform).cropped(Window(row, col, height, width))

    moved = transform @ Affine.translation(col, row)
    assert (crop.height, crop.width, crop.crs) == (height, width, UTM)
    assert tuple(crop.transform) == pytest.approx(tuple(moved), rel=1e-12)


def test_a_crop_at_the_corner_has_the_very_same_transform() -> None:
    grid = Grid(HEIGHT, WIDTH, UTM, Affine(1 / 3, 0, 1e6 / 7, 0, -1 / 3, 5e6 / 7))

    assert grid.cropped(Window(0, 0, 5, 6)) == Grid(5, 6, UTM, grid.transform)


def test_a_crop_of_a_raster_without_a_place_has_none_but_keeps_its_control_points() -> None:
    points, crs = (
        (GroundControlPoint(3.5, 8, 10.0, 50.0, 1.0), GroundControlPoint(60, 90, 11.0, 49.0)),
        CRS.from_epsg(4326),
    )
    grid = Grid(HEIGHT, WIDTH, None, Affine.identity(), points, crs)

    crop = grid.cropped(Window(3, 5, 10, 20))

    assert not crop.has_transform
    moved = (GroundControlPoint(0.5, 3, 10.0, 50.0, 1.0), GroundControlPoint(57, 85, 11.0, 49.0))
    assert (crop.gcps, crop.gcps_crs) == (moved, crs)


# Plain data


numbers = st.floats(allow_nan=False, allow_infinity=False)
points = st.builds(GroundControlPoint, row=numbers, col=numbers, x=numbers, y=numbers, z=st.none() | numbers)


def through_json(grid: Grid) -> Grid:
    """Return the grid after a stay in a JSON file."""
    return Grid.from_plain(json.loads(json.dumps(grid.as_plain())))


@given(transform=st.builds(Affine, *[numbers] * 6), gcps=st.lists(points, max_size=4))
def test_a_grid_returns_from_plain_data_bit_for_bit(transform: Affine, gcps: list[GroundControlPoint]) -> None:
    grid = Grid(HEIGHT, WIDTH, UTM, transform, tuple(gcps), CRS.from_epsg(4326) if gcps else None)

    returned = through_json(grid)

    assert returned == grid
    assert repr((returned.transform, returned.gcps)) == repr((grid.transform, grid.gcps))  # -0.0 too


@pytest.mark.parametrize(
    "crs",
    [
        None,
        "EPSG:4326",
        "EPSG:4979",
        "EPSG:25832+7837",
        "EPSG:28992",
        "ESRI:102100",
        "ESRI:54009",
        "IAU_2015:49910",
        "+proj=sterea +lat_0=52 +lon_0=5 +ellps=bessel +towgs84=565.4,50,465,0.4,-0.35,1.87,4.08 +units=m",
        "+proj=laea +lat_0=-13.7 +lon_0=2.25 +R=1737400 +units=m",
        'LOCAL_CS["the quarry",UNIT["metre",1]]',
    ],
)
def test_a_crs_returns_from_plain_data(crs: str | None) -> None:
    grid = Grid(HEIGHT, WIDTH, CRS.from_user_input(crs) if crs else None, PLACE)

    assert_same_crs(through_json(grid).crs, grid.crs)


def assert_same_crs(found: CRS | None, expected: CRS | None) -> None:
    """Check that two are equal, in words too."""
    assert found == expected
    if found and expected:
        assert found.to_wkt() == expected.to_wkt()
        assert found.to_epsg() == expected.to_epsg()


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # what plain rasterio says
def test_grids_of_awkward_rasters_return_from_plain_data(real_data: Path) -> None:
    paths = [*(real_data / "odd-geotiff").glob("*.tif"), *(real_data / "large-geotiff").glob("*.tif*")]
    for path in paths:
        if "damaged" in path.name or "corrupt" in path.name:
            continue
        with open_raster(path) as reader, rasterio.open(path) as dataset:
            returned = through_json(reader.grid)

            assert returned == reader.grid
            assert_same_crs(returned.crs, dataset.crs)
            assert_same_crs(returned.gcps_crs, dataset.gcps[1])
