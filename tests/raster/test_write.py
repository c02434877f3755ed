"""Writing images, and where files can be made: read back with plain rasterio, interrupted at will."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning

from geonorm.errors import RasterError, TargetExistsError
from geonorm.files import put_in_place
from geonorm.raster.read import Grid, open_raster
from geonorm.raster.window import Window
from geonorm.raster.write import check_target, write_image
from tests.folders import files_end_at, names_in

HEIGHT, WIDTH = 60, 90
UTM = CRS.from_epsg(32633)
PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)
COLORS = [(10, 20, 30), (200, 100, 50)]
TAGS = {"model": "U-Net", "provenance": '{"version": "1 < 2 & 3"}'}


def noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> NDArray[np.uint8]:
    """Return random labels of two classes and nodata."""
    return np.random.default_rng(seed).choice(np.array([0, 1, 255], dtype=np.uint8), (height, width))


def read_back(path: Path) -> NDArray[Any]:
    """Return all values, with rasterio alone."""
    with rasterio.open(path) as dataset:
        return dataset.read()


# Where files can be made


def test_an_existing_target_is_refused_in_a_line_that_names_the_option(tmp_path: Path) -> None:
    target = tmp_path / "map.tif"
    target.write_text("mine")

    with pytest.raises(TargetExistsError, match=r"map\.tif exists\. .*--overwrite") as caught:
        check_target(target, overwrite=False)

    assert "\n" not in str(caught.value)
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["s3://bucket/map.tif", "https://host/map.tif", "/vsimem/map.tif", "/vsis3/bucket/map.tif"]
)
def test_a_target_that_cannot_be_renamed_is_refused(name: str) -> None:
    with pytest.raises(RasterError, match="not a local file") as caught:
        check_target(name, overwrite=True)

    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_place_where_no_file_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(RasterError, match="is a folder, a file is needed"):
        check_target(tmp_path, overwrite=True)
    with pytest.raises(RasterError, match="there is no folder"):
        check_target(tmp_path / "missing" / "map.tif", overwrite=True)
    with pytest.raises(RasterError, match="there is no folder"):
        check_target(tmp_path / "file" / "map.tif", overwrite=True)
    assert names_in(tmp_path) == ["file"]


def test_a_protected_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by its mode: root, who often runs tests, may write everywhere.
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(RasterError, match="cannot be written to"):
            check_target(tmp_path / "map.tif", overwrite=True)

    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(RasterError, match="cannot be written to: Permission denied"):
        write_image(tmp_path / "map.tif", noise(), transform=PLACE)


@pytest.mark.parametrize("link", [False, True])
def test_the_source_is_never_the_target(tmp_path: Path, link: bool) -> None:
    source = target = tmp_path / "image.tif"
    source.write_text("pixels")
    if link:
        target = tmp_path / "link.tif"
        target.symlink_to(source)

    with pytest.raises(RasterError, match="cannot be the target too"):
        check_target(target, overwrite=True, source=source)

    check_target(tmp_path / "other.tif", overwrite=False, source=source)


def test_a_file_takes_the_place_of_another_even_while_that_one_is_being_read(tmp_path: Path) -> None:
    target, made = tmp_path / "map.tif", tmp_path / "made.tif"
    target.write_bytes(b"before")
    made.write_bytes(b"after")

    with target.open("rb") as other:
        put_in_place(made, target)
        assert other.read() == b"before"

    assert target.read_bytes() == b"after"
    assert names_in(tmp_path) == ["map.tif"]


def test_a_folder_takes_its_place_once(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)

    put_in_place(tmp_path / "first", tmp_path / "strip")
    with pytest.raises(OSError, match="not empty"):
        put_in_place(tmp_path / "second", tmp_path / "strip")

    assert (tmp_path / "strip" / "file").read_text() == "first"


def test_a_long_name_and_a_relative_one_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "ü" * 120 + ".tif"

    write_image(Path(name), noise(), transform=PLACE)

    np.testing.assert_array_equal(read_back(tmp_path / name)[0], noise())


# Plain images


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("compress", ["deflate", None])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_an_image_comes_back(tmp_path: Path, count: int, dtype: str, compress: str | None, tiled: bool) -> None:
    image = np.random.default_rng(0).integers(0, 100, (count, HEIGHT, WIDTH)).astype(dtype)

    write_image(tmp_path / "image.tif", image, crs=UTM, transform=PLACE, tiled=tiled, block_px=32, compress=compress)

    with rasterio.open(tmp_path / "image.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), image)
        assert (dataset.crs, dataset.transform, dataset.nodata) == (UTM, PLACE, None)
        assert dataset.dtypes == (dtype,) * count
        assert (dataset.block_shapes[0] == (32, 32)) == tiled
        assert (dataset.block_shapes[0][1] == WIDTH) == (not tiled)
        assert dataset.mask_flag_enums == ([MaskFlags.all_valid],) * count
        assert ColorInterp.alpha not in dataset.colorinterp
    assert names_in(tmp_path) == ["image.tif"]


def test_one_band_may_come_as_rows_and_columns_with_colours_and_tags(tmp_path: Path) -> None:
    write_image(tmp_path / "map.tif", noise(), crs=UTM, transform=PLACE, nodata=255, colors=COLORS, tags=TAGS)

    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), noise()[None])
        assert dataset.nodata == 255
        assert [dataset.colormap(1)[label][:3] for label in (0, 1)] == COLORS
        assert TAGS.items() <= dataset.tags().items()


def test_nan_may_be_the_value_without_data(tmp_path: Path) -> None:
    image = np.full((HEIGHT, WIDTH), math.nan, dtype=np.float32)

    write_image(tmp_path / "image.tif", image, nodata=math.nan, transform=PLACE)

    with rasterio.open(tmp_path / "image.tif") as dataset:
        assert math.isnan(dataset.nodata)


@pytest.mark.parametrize("num_bytes", [500, 3000])
def test_an_image_that_cannot_be_finished_leaves_the_previous_one(tmp_path: Path, num_bytes: int) -> None:
    target = tmp_path / "image.tif"
    write_image(target, noise(), transform=PLACE, compress=None)

    with files_end_at(num_bytes), pytest.raises(RasterError, match=r"image\.tif"):
        write_image(target, noise(seed=1), transform=PLACE, compress=None)

    np.testing.assert_array_equal(read_back(target)[0], noise())
    assert names_in(tmp_path) == ["image.tif"]


def test_where_pixels_lie_nowhere_no_transform_is_written(tmp_path: Path) -> None:
    changed, nowhere = noise() == 1, Grid(HEIGHT, WIDTH, None, Affine.identity())

    write_image(tmp_path / "changed.tif", changed, transform=nowhere.transform)

    with pytest.warns(NotGeoreferencedWarning):
        rasterio.open(tmp_path / "changed.tif").close()
    with open_raster(tmp_path / "changed.tif") as reader:
        assert reader.grid == nowhere
        np.testing.assert_array_equal(reader.read(Window(0, 0, HEIGHT, WIDTH)).values[0], changed)
