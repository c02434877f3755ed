"""What label values mean, against plain lookups and GDAL's own warping and filling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas  # type: ignore[import-untyped]
import numpy as np
import pytest
import rasterio.features
import shapely  # type: ignore[import-untyped]
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject

from geonorm.data.labels import LabelRules, open_labels
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import DatasetError, InvalidConfigError, RasterError
from geonorm.raster.area import Area
from geonorm.raster.read import open_raster
from geonorm.raster.window import Window

HEIGHT, WIDTH = 60, 90
WHOLE = Window(0, 0, HEIGHT, WIDTH)
PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)
CRS = "EPSG:32633"


def draw(path: Path, values: NDArray[Any], *, transform: Affine = PLACE, crs: str | None = CRS, **options: Any) -> str:
    shape = {"count": 1, "height": values.shape[0], "width": values.shape[1], "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape, **options) as dataset:
        dataset.write(values, 1)
    return str(path)


@pytest.fixture
def image(tmp_path: Path) -> str:
    return draw(tmp_path / "image.tif", np.ones((HEIGHT, WIDTH), np.uint8))


def read(labels: str, rules: LabelRules, image: str, window: Window = WHOLE) -> NDArray[np.uint8]:
    with open_raster(image) as source, open_labels(labels, rules, source) as opened:
        return opened.read(window)


@given(
    classes=st.lists(st.sets(st.integers(0, 40), min_size=1, max_size=5), min_size=2, max_size=5),
    ignored=st.sets(st.integers(0, 40), max_size=4),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "int32", "float32"]),
)
def test_every_value_gets_the_label_of_its_class(classes: list[set[int]], ignored: set[int], dtype: str) -> None:
    seen: set[int] = set()
    some = []
    for values in classes:
        some.append(tuple(sorted(values - seen)))
        seen |= values
    rules = LabelRules(classes=tuple(some), ignored=tuple(ignored - seen), ignore_others=True)
    image = np.arange(48).reshape(6, 8).astype(dtype)

    found = rules.labels_of(image, np.ones(image.shape, np.bool_), name="a.tif")

    expected = [next((label for label, of in enumerate(some) if value in of), IGNORE_LABEL) for value in range(48)]
    np.testing.assert_array_equal(found.ravel(), expected)


def test_a_value_that_means_nothing_is_an_error_unless_it_has_no_data(tmp_path: Path, image: str) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[3, 4], values[9, 9] = 7, 99
    rules = LabelRules(classes=((0,), (1,)))

    with pytest.raises(
        DatasetError, match=r"a\.tif holds the value 7 \(1 pixel\), 99 \(1 pixel\); 0 is class 0, 1 is class 1\."
    ):
        read(draw(tmp_path / "a.tif", values), rules, image)
    with pytest.raises(DatasetError, match=r"holds the value 7 \(1 pixel\); "):
        read(draw(tmp_path / "a.tif", values, nodata=99), rules, image)
    labels = read(draw(tmp_path / "a.tif", values, nodata=99), LabelRules(classes=((0,), (1, 7))), image)
    assert (labels[3, 4], labels[9, 9], labels[0, 0]) == (1, IGNORE_LABEL, 0)


def test_a_class_may_be_the_value_that_is_declared_to_be_nodata(tmp_path: Path, image: str) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[:, 50:] = 1

    labels = read(draw(tmp_path / "a.tif", values, nodata=0), LabelRules(classes=((0,), (1,))), image)

    np.testing.assert_array_equal(labels, values)


def test_labels_on_another_grid_are_brought_to_that_of_the_image(tmp_path: Path, image: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, (80, 70)).astype(np.uint8)
    place = PLACE @ Affine.translation(-20, -30) @ Affine.rotation(10) @ Affine.scale(1.7)
    rules = LabelRules(classes=((0,), (1,)), any_grid=True)
    expected = np.full((HEIGHT, WIDTH), IGNORE_LABEL, np.uint8)
    reproject(
        values,
        expected,
        src_transform=place,
        src_crs=CRS,
        dst_transform=PLACE,
        dst_crs=CRS,
        dst_nodata=IGNORE_LABEL,
        init_dest_nodata=True,
        resampling=Resampling.nearest,
    )

    path = draw(tmp_path / "a.tif", values, transform=place)

    found = read(path, rules, image)
    assert (expected == IGNORE_LABEL).any()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(read(path, rules, image, Window(20, 30, 7, 50)), expected[20:27, 30:80])
    with pytest.raises(DatasetError, match=r"80 x 70 pixels, but its image .*image\.tif is 60 x 90"):
        read(path, LabelRules(classes=((0,), (1,))), image)


def test_labels_of_another_crs_fit_too(tmp_path: Path, image: str) -> None:
    values = np.zeros((40, 40), np.uint8)
    values[10:30, 10:30] = 1
    with open_raster(image) as source:
        bounds = rasterio.transform.array_bounds(HEIGHT, WIDTH, source.grid.transform)
    left, bottom, right, top = rasterio.warp.transform_bounds(CRS, "EPSG:4326", *bounds)
    place = Affine((right - left) / 40, 0, left, 0, (bottom - top) / 40, top)

    found = read(
        draw(tmp_path / "a.tif", values, transform=place, crs="EPSG:4326"),
        LabelRules(classes=((0,), (1,)), any_grid=True),
        image,
    )

    assert found[30, 45] == 1
    assert found[2, 2] == 0
    assert 0.2 < (found == 1).mean() < 0.3


def test_labels_of_another_size_that_lie_nowhere_are_refused(tmp_path: Path, image: str) -> None:
    path = draw(tmp_path / "a.tif", np.zeros((10, 10), np.uint8), crs=None)

    with pytest.raises(DatasetError, match=r"10 x 10 pixels.* or both say where they lie"):
        read(path, LabelRules(classes=((0,), (1,)), any_grid=True), image)


# Polygons


def write_shapes(path: Path, shapes: list[Any], crs: str = CRS, **columns: Any) -> str:
    geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return str(path)


def pixels(row: int, col: int, height: int, width: int) -> Any:
    """Return a rectangle of pixels as a shape on the ground."""
    left, top = 400_000 + 0.3 * col, 5_300_000 - 0.3 * row
    return shapely.box(left, top - 0.3 * height, left + 0.3 * width, top)


@pytest.mark.parametrize("suffix", ["gpkg", "geojson"])
def test_polygons_become_labels_as_gdal_fills_them(tmp_path: Path, image: str, suffix: str) -> None:
    generator = np.random.default_rng(0)
    shapes = [shapely.Point(*generator.uniform((400_000, 5_299_982), (400_027, 5_300_000))).buffer(3) for _ in range(9)]
    path = write_shapes(tmp_path / f"a.{suffix}", shapes)

    found = read(path, LabelRules(classes=((0,), (1,))), image)

    expected = rasterio.features.rasterize(shapes, out_shape=(HEIGHT, WIDTH), transform=PLACE, dtype="uint8")
    assert (found != expected).mean() < (0.002 if suffix == "geojson" else 1e-9)  # GeoJSON rounds to 7 digits


def test_polygons_get_the_class_of_their_attribute_the_highest_on_top(tmp_path: Path, image: str) -> None:
    shapes = [pixels(0, 0, 20, 20), pixels(10, 10, 20, 20), pixels(40, 50, 5, 5), pixels(50, 70, 5, 5)]
    path = write_shapes(tmp_path / "a.gpkg", shapes, kind=["tree", "house", "cloud", None])
    rules = LabelRules(
        classes=(("ground",), ("house", "shed"), ("tree",)), ignored=("cloud", ""), attribute="kind", background=0
    )

    found = read(path, rules, image)

    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[10:30, 10:30] = 1
    expected[0:20, 0:20] = 2
    expected[40:45, 50:55] = expected[50:55, 70:75] = IGNORE_LABEL
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(read(path, rules, image, Window(9, 8, 30, 60)), expected[9:39, 8:68])


def test_pixels_under_no_polygon_may_be_left_out(tmp_path: Path, image: str) -> None:
    path = write_shapes(tmp_path / "a.gpkg", [pixels(0, 0, 60, 10)])

    found = read(path, LabelRules(classes=((0,), (1,)), background=IGNORE_LABEL), image)

    assert (found[:, :10] == 1).all()
    assert (found[:, 10:] == IGNORE_LABEL).all()


def test_an_image_without_a_polygon_is_background(tmp_path: Path, image: str) -> None:
    path = write_shapes(tmp_path / "a.gpkg", [pixels(9000, 0, 60, 10)])

    assert (read(path, LabelRules(classes=((0,), (1,))), image) == 0).all()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            LabelRules(classes=(("a",), ("b",)), attribute="kind"),
            r"kind of .*a\.gpkg holds the value 'house'; a is class",
        ),
        (LabelRules(classes=(("a",), ("b",)), attribute="type"), r"no attribute 'type'; it has kind"),
        (LabelRules(classes=((0,), (1,)), layer="other"), r"has the layers a, but 'other' is asked for"),
    ],
)
def test_polygons_that_mean_nothing_are_named(tmp_path: Path, image: str, rules: LabelRules, message: str) -> None:
    path = write_shapes(tmp_path / "a.gpkg", [pixels(0, 0, 60, 10)], kind=["house"])

    with pytest.raises((DatasetError, RasterError), match=message):
        read(path, rules, image)


def test_a_file_of_polygons_that_changes_is_read_anew(tmp_path: Path, image: str) -> None:
    rules = LabelRules(classes=((0,), (1,)))
    path = write_shapes(tmp_path / "a.geojson", [pixels(0, 0, 60, 10)])
    before = read(path, rules, image)
    write_shapes(tmp_path / "a.geojson", [pixels(0, 0, 60, 20)])

    assert (before == 1).sum() < (read(path, rules, image) == 1).sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ((0,), (0,))}, "each value means one class, got 0 twice"),
        ({"classes": ((0,), (1,)), "ignored": (1,)}, "got 1 twice"),
        ({"classes": ((0,), (1,)), "background": 2}, "background must be a class from 0 to 1, got 2"),
        ({"classes": ((0,), (1,)), "shapes": 255}, "shapes must be a class from 0 to 1, got 255"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        LabelRules(**settings)


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "EPSG:3035"])
def test_polygons_far_away_change_nothing(image: str, tmp_path: Path, crs: str) -> None:
    random = np.random.default_rng(0)
    east, north = 400_000 + random.uniform(-100, 200, 300), 5_300_000 + random.uniform(-200, 100, 300)
    frame = geopandas.GeoDataFrame(geometry=shapely.box(east, north, east + 6, north + 4), crs=CRS).to_crs(crs)
    frame.to_file(tmp_path / "houses.gpkg")

    with open_raster(image) as raster:
        grid = raster.grid
        with open_labels(str(tmp_path / "houses.gpkg"), LabelRules(classes=((0,), (1,))), raster) as labels:
            found = labels.read(WHOLE)

    whole = Area.from_file(tmp_path / "houses.gpkg").on(grid).inside(WHOLE)
    assert 0 < whole.mean() < 1
    np.testing.assert_array_equal(found, whole)
