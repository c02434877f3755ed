"""Strips put together to maps: read back with plain rasterio, checked by rio-cogeo."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import reproject
from rio_cogeo.cogeo import cog_validate

from geonorm.errors import InvalidConfigError
from geonorm.raster.grid import Grid, GroundControlPoint
from geonorm.raster.layer import Layer
from geonorm.raster.read import open_raster
from geonorm.raster.strips import Part, StripMap, write_map, write_strip
from geonorm.raster.window import Window
from geonorm.raster.write import lying_nowhere

HEIGHT, WIDTH = 60, 90
UTM = CRS.from_epsg(32633)
PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)
GRID = Grid(HEIGHT, WIDTH, UTM, PLACE)
TAGS = {"model": "U-Net", "provenance": '{"version": "1 < 2 & 3"}'}
NAMES = ("background", "Gebäude")
COLORS = ((10, 20, 30), (200, 100, 50))
LABELS = Layer(
    name="labels", dtype="uint8", band_names=("labels",), nodata=255.0, class_names=NAMES, class_colors=COLORS
)
SHARES = Layer(name="probabilities", dtype="uint8", band_names=NAMES, nodata=255.0, scale=1 / 254)
LOGITS = Layer(name="logits", dtype="float32", band_names=NAMES, nodata=math.nan)


def noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> NDArray[np.uint8]:
    """Return random labels of two classes and nodata."""
    return np.random.default_rng(seed).choice(np.array([0, 1, 255], dtype=np.uint8), (height, width))


def write(
    target: Path,
    values: NDArray[Any],
    grid: Grid = GRID,
    *,
    layer: Layer = LABELS,
    cuts: Sequence[int] = (),
    on_grid: Grid | None = None,
) -> None:
    """Write values in strips that begin at the first row and at the cuts."""
    values = values[None] if values.ndim == 2 else values
    with tempfile.TemporaryDirectory() as folder, lying_nowhere():
        parts = []
        for row, strip in zip([0, *cuts], np.split(values, cuts, axis=1), strict=True):
            parts.append(Part(Path(folder, f"{row} & co.tif"), Window(row, 0, *strip.shape[1:])))
            write_strip(parts[-1].path, layer, strip)
        write_map(StripMap(Path(folder, "a.vrt"), layer, grid, parts, tags=TAGS), target, on_grid=on_grid)


def read_back(path: Path) -> NDArray[Any]:
    """Return all values, with rasterio alone."""
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_labels_come_back_with_place_colours_and_tags(tmp_path: Path) -> None:
    labels = noise()

    write(tmp_path / "map.tif", labels)

    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), labels[None])
        assert (dataset.crs, dataset.transform, dataset.nodata) == (UTM, PLACE, 255)
        assert dataset.colorinterp == (ColorInterp.palette,)
        assert tuple(dataset.colormap(1)[label][:3] for label in (0, 1)) == COLORS
        assert dataset.colormap(1)[255][3] == 0
        assert TAGS.items() <= dataset.tags().items()
        np.testing.assert_array_equal(dataset.dataset_mask() != 0, labels != 255)


def test_probabilities_come_back_with_their_scale_and_names(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, 600, 700)).astype(np.uint8)

    write(tmp_path / "map.tif", values, Grid(600, 700, UTM, PLACE), layer=SHARES, cuts=[100, 399])

    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), values)
        assert (dataset.nodata, dataset.scales, dataset.descriptions) == (255, (1 / 254,) * 2, NAMES)
    assert cog_validate(tmp_path / "map.tif", strict=True, quiet=True) == (True, [], [])


def test_logits_come_back_to_the_last_bit_with_nan_where_there_is_no_data(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 600, 700)).astype(np.float32)
    values[:, 50:80, 20:] = math.nan

    write(tmp_path / "map.tif", values, Grid(600, 700, UTM, PLACE), layer=LOGITS, cuts=[64])

    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), values)
        assert math.isnan(dataset.nodata)
        half = dataset.read(1, out_shape=(300, 350))
    means = np.nanmean(values[0, 100:, :].reshape(250, 2, 350, 2), axis=(1, 3))
    np.testing.assert_allclose(half[50:], means, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (60, 90), (1, 600), (600, 30), (700, 1100)])
def test_every_map_is_a_cloud_optimized_geotiff(tmp_path: Path, size: tuple[int, int]) -> None:
    path, labels = tmp_path / "map.tif", noise(*size)

    write(path, labels, Grid(*size, UTM, PLACE))

    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    np.testing.assert_array_equal(read_back(path), labels[None])


def test_overviews_show_the_most_frequent_label(tmp_path: Path) -> None:
    labels = np.ones((600, 700), dtype=np.uint8)
    one_of_four = np.random.default_rng(0).integers(0, 2, (2, 300, 350))
    labels[one_of_four[0] + 2 * np.arange(300)[:, None], one_of_four[1] + 2 * np.arange(350)] = 0
    labels[:, 400:] = 255

    write(tmp_path / "map.tif", labels, Grid(600, 700, UTM, PLACE))

    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.overviews(1) == [2]
        half = dataset.read(1, out_shape=(300, 350))
    assert (half[:, :200] == 1).all()
    assert (half[:, 200:] == 255).all()


@given(heights=st.lists(st.integers(1, 40), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)  # every example makes files
def test_the_heights_of_the_strips_do_not_show(heights: list[int]) -> None:
    labels = noise()
    cuts = [row for row in np.cumsum(heights).tolist() if row < HEIGHT]

    with tempfile.TemporaryDirectory() as folder:
        whole, strips = Path(folder, "whole.tif"), Path(folder, "strips.tif")
        write(whole, labels)
        write(strips, labels, cuts=cuts)

        np.testing.assert_array_equal(read_back(strips), labels[None])
        assert strips.read_bytes() == whole.read_bytes()


def test_strips_that_reach_over_the_map_are_cut_and_what_none_covers_is_nodata(tmp_path: Path) -> None:
    labels, path = noise(), tmp_path / "strip.tif"
    write_strip(path, LABELS, labels[None, 10:30])

    # Rows 20 to 40 and columns 5 to 85 of the map of which the strip holds rows 10 to 30.
    strips = StripMap(
        tmp_path / "a.vrt", LABELS, GRID.cropped(Window(20, 5, 20, 80)), [Part(path, Window(-10, -5, 20, WIDTH))]
    )
    found = np.concatenate([rows[0] for _, rows in strips.rows(7)])

    np.testing.assert_array_equal(found[:10], labels[20:30, 5:85])
    assert (found[10:] == 255).all()


@pytest.mark.parametrize(
    ("layer", "least"), [(LABELS, 0), (SHARES, 0), (LOGITS, 0)], ids=["labels", "probabilities", "logits"]
)
def test_blocks_without_data_take_no_place(tmp_path: Path, layer: Layer, least: int) -> None:
    side = 4096
    bands = len(layer.band_names)
    values = np.full((bands, side, side), layer.nodata, layer.dtype)
    values[:, :100, :100] = least

    write(tmp_path / "map.tif", values, Grid(side, side, UTM, PLACE), layer=layer, cuts=[2000])

    np.testing.assert_array_equal(read_back(tmp_path / "map.tif"), values)
    assert cog_validate(tmp_path / "map.tif", strict=True, quiet=True)[0]
    assert (tmp_path / "map.tif").stat().st_size < 30_000


@pytest.mark.parametrize(
    "grid",
    [
        Grid(HEIGHT, WIDTH, UTM, Affine(0.1, 0.2, 4e5, 0.25, -0.1, 5e6)),
        Grid(HEIGHT, WIDTH, UTM, Affine(0.5, 0, 4e5, 0, 0.5, 5e6)),
        Grid(HEIGHT, WIDTH, None, Affine(0.5, 0, 4, 0, -0.25, 5)),
        Grid(HEIGHT, WIDTH, CRS.from_user_input("ESRI:102039"), PLACE),
        Grid(HEIGHT, WIDTH, CRS.from_user_input("IAU_2015:49910"), PLACE),
        Grid(HEIGHT, WIDTH, None, Affine.identity()),
        Grid(HEIGHT, WIDTH, UTM, Affine.identity()),
        Grid(
            HEIGHT,
            WIDTH,
            None,
            Affine.identity(),
            tuple(GroundControlPoint(row, col, col / 8, 50 - row / 8, 1.0) for row in (0, 60) for col in (0, 90)),
            CRS.from_epsg(4326),
        ),
    ],
    ids=["rotated", "south up", "no CRS", "ESRI", "Mars", "nowhere", "CRS only", "ground control points"],
)
def test_every_grid_is_kept_also_through_json(tmp_path: Path, grid: Grid) -> None:
    write(tmp_path / "map.tif", noise(), Grid.from_plain(json.loads(json.dumps(grid.as_plain()))))

    with open_raster(tmp_path / "map.tif") as reader:
        assert reader.grid == grid


def test_where_pixels_lie_nowhere_no_transform_is_written(tmp_path: Path) -> None:
    write(tmp_path / "map.tif", noise(), Grid(HEIGHT, WIDTH, None, Affine.identity()))

    with pytest.warns(NotGeoreferencedWarning):
        rasterio.open(tmp_path / "map.tif").close()


def test_labels_of_many_classes_keep_their_numbers(tmp_path: Path) -> None:
    labels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    colors = tuple((value, 255 - value, 7) for value in range(255))
    layer = replace(LABELS, class_names=tuple(f"class {i}" for i in range(255)), class_colors=colors)

    write(tmp_path / "map.tif", labels, layer=layer)

    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), labels)
        assert tuple(dataset.colormap(1)[label][:3] for label in range(255)) == colors


@pytest.mark.parametrize(
    ("layer", "how"), [(LABELS, Resampling.nearest), (LOGITS, Resampling.bilinear)], ids=["labels", "logits"]
)
def test_values_come_to_another_grid_as_gdal_brings_them(tmp_path: Path, layer: Layer, how: Resampling) -> None:
    values = np.random.default_rng(0).integers(0, 2, (len(layer.band_names), HEIGHT, WIDTH)).astype(layer.dtype)
    values[:, 10:20, 30:50] = layer.nodata
    finer = Grid(150, 230, UTM, PLACE @ Affine.translation(2.3, 1.1) @ Affine.scale(0.37))
    expected = np.full((len(values), 150, 230), layer.nodata, layer.dtype)
    reproject(
        values,
        expected,
        src_transform=PLACE,
        src_crs=UTM,
        src_nodata=layer.nodata,
        dst_transform=finer.transform,
        dst_crs=UTM,
        dst_nodata=layer.nodata,
        resampling=how,
    )

    write(tmp_path / "map.tif", values, layer=layer, on_grid=finer)

    np.testing.assert_allclose(read_back(tmp_path / "map.tif"), expected, atol=1e-6)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.transform == finer.transform
        assert TAGS.items() <= dataset.tags().items()


@pytest.mark.parametrize("layer", [LABELS, SHARES, LOGITS], ids=lambda layer: layer.name)
def test_a_layer_comes_back_from_json(layer: Layer) -> None:
    assert str(Layer.from_plain(json.loads(json.dumps(layer.as_plain())))) == str(layer)  # nan is not equal to itself


@pytest.mark.parametrize("nodata", [0, 1, 256, -1])
def test_nodata_is_no_class(nodata: int) -> None:
    with pytest.raises(InvalidConfigError, match=f"got nodata={nodata} with 2 classes"):
        replace(LABELS, nodata=nodata)


def test_every_class_needs_a_colour() -> None:
    with pytest.raises(InvalidConfigError, match=r"got 2 name\(s\) and 1 colour"):
        replace(LABELS, class_colors=COLORS[:1])


def test_values_of_another_type_or_number_of_bands_are_our_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels has 1 bands of uint8"):
        write_strip(tmp_path / "a.tif", LABELS, noise().astype(np.int64)[None])
    with pytest.raises(ValueError, match="labels has 1 bands of uint8"):
        write_strip(tmp_path / "a.tif", LABELS, np.stack([noise(), noise()]))


# Real rasters


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    [
        "large-geotiff/rotated-sar-2000x2000.tiff",
        "odd-geotiff/float32-nan-3x2-no-crs.tif",
        "odd-geotiff/float32-nodata-europa-crs.tif",
        "odd-geotiff/float64-global-nodata.tif",
        "odd-geotiff/palette-unknown-datum.tif",
        "odd-geotiff/rgb-mars-crs.tif",
        "odd-geotiff/rgb-no-crs-512.tif",
        "odd-geotiff/rotated-10x15-no-crs.tif",
        "odd-geotiff/rotated-float32-albers.tif",
        "odd-geotiff/south-up-float32.tif",
    ],
)
def test_a_map_lies_exactly_where_its_source_lies(real_data: Path, tmp_path: Path, name: str) -> None:
    with open_raster(real_data / name) as source:
        grid = source.grid

    write(tmp_path / "map.tif", noise(grid.height, grid.width), grid)

    with open_raster(tmp_path / "map.tif") as made:
        assert made.grid == grid
