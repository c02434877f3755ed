"""GeoTIFFs written row by row, and parts of a raster as rasters of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from geonorm.errors import RasterError
from geonorm.raster.cropped import Cropped
from geonorm.raster.grid import Grid
from geonorm.raster.layer import Layer
from geonorm.raster.read import open_raster
from geonorm.raster.rows import BLOCK_PX, writing_rows
from geonorm.raster.window import Window
from geonorm.raster.write import write_image

PLACE = Affine(0.5, 0.0, 500_003.0, 0.0, -0.5, 4_000_007.0)
CHANGE = Layer(name="change", dtype="float32", band_names=("change",), nodata=-1.0)
MAP = Layer(name="map", dtype="uint8", band_names=("labels", "flips"), nodata=255)


@pytest.mark.parametrize("parts", [(700,), (1, 255, 1, 443), (300, 300, 100), (BLOCK_PX, BLOCK_PX, 188)])
@pytest.mark.parametrize("layer", [CHANGE, MAP])
def test_rows_are_there_as_they_came(parts: tuple[int, ...], layer: Layer, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 250, (len(layer.band_names), 700, 37)).astype(layer.dtype)
    target = tmp_path / "map.tif"

    with writing_rows(target, layer, Grid(700, 37, CRS.from_epsg(32633), PLACE), tags={"made_by": "a test"}) as writer:
        row = 0
        for rows in parts:
            writer.add(values[:, row : row + rows])
            row += rows

    with rasterio.open(target) as dataset:
        assert np.array_equal(dataset.read(), values)
        assert (dataset.transform, dataset.crs, dataset.nodata) == (PLACE, CRS.from_epsg(32633), layer.nodata)
        assert dataset.tags()["made_by"] == "a test"
        assert dataset.descriptions == layer.band_names
    assert sorted(tmp_path.iterdir()) == [target]


def test_a_map_that_is_not_finished_does_not_appear(tmp_path: Path) -> None:
    def write() -> None:
        with writing_rows(tmp_path / "map.tif", CHANGE, Grid(700, 37, None, PLACE)) as writer:
            writer.add(np.zeros((300, 37), np.float32))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write()

    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(RasterError, match="cannot be written"),
        writing_rows(tmp_path / "no" / "map.tif", CHANGE, Grid(7, 3, None, PLACE)),
    ):
        pass


@given(data=st.data())
def test_a_part_is_the_raster_cut_by_numpy(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "parts.tif"
    image = np.random.default_rng(0).integers(1, 250, (2, 40, 30)).astype(np.uint8)
    image[:, 5:9, 3:11] = 0
    if not path.exists():
        write_image(path, image, crs="EPSG:32633", transform=PLACE, nodata=0)
    row, col = data.draw(st.integers(0, 38)), data.draw(st.integers(0, 28))
    part = Window(row, col, data.draw(st.integers(1, 40 - row)), data.draw(st.integers(1, 30 - col)))
    top, left = data.draw(st.integers(0, part.height - 1)), data.draw(st.integers(0, part.width - 1))
    window = Window(
        top, left, data.draw(st.integers(1, part.height - top)), data.draw(st.integers(1, part.width - left))
    )

    with Cropped(open_raster(path), part) as cropped, cropped.reopen() as again:
        found, second, grid = cropped.read(window), again.read(window), cropped.grid

    expected = image[:, row : row + part.height, col : col + part.width][
        :, top : top + window.height, left : left + window.width
    ]
    assert np.array_equal(found.values, expected)
    assert np.array_equal(second.values, expected)
    assert np.array_equal(found.valid, (expected != 0).any(0))
    assert (grid.height, grid.width) == (part.height, part.width)
    assert grid.transform @ (0, 0) == PLACE @ (col, row)


def test_a_part_does_not_reach_beyond_its_raster(tmp_path: Path) -> None:
    write_image(tmp_path / "image.tif", np.ones((1, 9, 9), np.uint8), transform=PLACE)
    with open_raster(tmp_path / "image.tif") as reader:
        with pytest.raises(ValueError, match="inside"):
            Cropped(reader, Window(3, 3, 7, 6))
        with pytest.raises(ValueError, match="inside"):
            Cropped(reader, Window(3, 3, 4, 4)).read(Window(2, 2, 3, 2))
