"""An image and its labels, against what rasterio reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from geonorm.data.pairs import Pair, open_pair
from geonorm.errors import DatasetError, RasterError
from geonorm.raster.window import Window

HEIGHT, WIDTH = 60, 90
WHOLE = Window(0, 0, HEIGHT, WIDTH)
PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)


def draw(path: Path, values: NDArray[Any]) -> str:
    """Write a raster (C, H, W) with rasterio alone."""
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=PLACE, **shape) as dataset:
        dataset.write(values)
    return str(path)


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def random_labels() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 2, (HEIGHT, WIDTH)).astype(np.uint8)


def make_pair(folder: Path, mask: NDArray[Any]) -> Pair:
    image = draw(folder / "austin1.tif", noise(3, HEIGHT, WIDTH))
    return Pair(image=image, labels=draw(folder / "mask.tif", mask), group="austin")


@pytest.mark.parametrize("on", [1, 255])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_masks_of_0_and_1_and_of_0_and_255_give_the_same_labels(tmp_path: Path, on: int, dtype: str) -> None:
    labels = random_labels()
    pair = make_pair(tmp_path, (labels * on).astype(dtype)[None])

    with open_pair(pair) as files:
        found = files.read_labels(WHOLE)

    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("window", [WHOLE, Window(7, 31, 20, 40), Window(59, 89, 1, 1)])
def test_image_and_labels_are_read_at_the_same_place(tmp_path: Path, window: Window) -> None:
    labels = random_labels()
    rows, cols = slice(window.row, window.row_end), slice(window.col, window.col_end)

    with open_pair(make_pair(tmp_path, labels[None])) as files:
        image, found = files.read(window).values, files.read_labels(window)

    np.testing.assert_array_equal(image, noise(3, HEIGHT, WIDTH)[:, rows, cols])
    np.testing.assert_array_equal(found, labels[rows, cols])


def test_only_the_bands_asked_for_are_read(tmp_path: Path) -> None:
    pair = replace(make_pair(tmp_path, random_labels()[None]), bands=(3, 1))

    with open_pair(pair) as files:
        values = files.read(WHOLE).values

    np.testing.assert_array_equal(values, noise(3, HEIGHT, WIDTH)[[2, 0]])


def test_a_pair_lies_on_the_grid_of_its_image(tmp_path: Path) -> None:
    with open_pair(make_pair(tmp_path, random_labels()[None])) as files:
        grid = files.grid

    assert (grid.height, grid.width, grid.transform) == (HEIGHT, WIDTH, PLACE)


def test_a_pair_is_named_by_its_image() -> None:
    assert Pair(image="data2/images/tyrol-w12.tif", labels="data2/gt/x.tif", group="tyrol-w").name == "tyrol-w12"


@pytest.mark.parametrize(("value", "dtype"), [(7, "uint8"), (2, "uint8"), (256, "uint16"), (0.5, "float32")])
def test_a_value_that_is_no_label_is_named_with_its_file(tmp_path: Path, value: float, dtype: str) -> None:
    mask = random_labels().astype(dtype)
    mask[40, 80] = value
    pair = make_pair(tmp_path, mask[None])

    with open_pair(pair) as files, pytest.raises(DatasetError) as error:
        files.read_labels(WHOLE)

    assert str(error.value).startswith(f"{pair.labels} holds the value {value} (1 pixel);")


def test_a_value_that_is_no_label_does_no_harm_outside_the_window(tmp_path: Path) -> None:
    mask = random_labels()
    mask[40, 80] = 7

    with open_pair(make_pair(tmp_path, mask[None])) as files:
        found = files.read_labels(Window(0, 0, 40, WIDTH))

    np.testing.assert_array_equal(found, mask[:40])


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (HEIGHT, WIDTH - 1)])
def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    pair = make_pair(tmp_path, np.zeros((1, *size), np.uint8))

    with pytest.raises(DatasetError) as error, open_pair(pair):
        pass

    message = str(error.value)
    assert message.startswith(f"{pair.labels} is {size[0]} x {size[1]} pixels")
    assert f"{pair.image} is {HEIGHT} x {WIDTH}" in message


@pytest.mark.parametrize("missing", ["image", "labels"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    pair = make_pair(tmp_path, random_labels()[None])
    Path(getattr(pair, missing)).unlink()

    with pytest.raises(RasterError, match=r"there is no file .*\.tif"), open_pair(pair):
        pass


def test_both_files_are_closed_at_the_end(tmp_path: Path) -> None:
    with open_pair(make_pair(tmp_path, random_labels()[None])) as files:
        pass

    for read in (files.read, files.read_labels):
        with pytest.raises(RasterError):
            read(WHOLE)


@pytest.mark.real
def test_real_masks_hold_labels_alone(real_data: Path) -> None:
    folder = real_data / "buildings-rgb" / "oam-030"
    for image in sorted((folder / "images").glob("*.tif")):
        pair = Pair(image=str(image), labels=str(folder / "gt" / image.name), group="all")

        with open_pair(pair) as files:
            labels = files.read_labels(Window(0, 0, files.grid.height, files.grid.width))

        assert set(np.unique(labels)) <= {0, 1}
