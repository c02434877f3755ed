"""Writing labels and images: read back with plain rasterio, checked by rio-cogeo, interrupted at will."""

import json
import math
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate

from geonorm.errors import InvalidConfigError, RasterError, TargetExistsError
from geonorm.raster.read import Grid, open_raster
from geonorm.raster.window import Window
from geonorm.raster.write import LabelWriter, check_target, write_image

HEIGHT, WIDTH = 60, 90
UTM = CRS.from_epsg(32633)
PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)
GRID = Grid(HEIGHT, WIDTH, UTM, PLACE)

NAMES = ["background", "Gebäude"]
COLORS = [(10, 20, 30), (200, 100, 50)]
TAGS = {"model": "U-Net", "provenance": '{"version": "1 < 2 & 3"}'}


def noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> NDArray[np.uint8]:
    """Return random labels of two classes and nodata."""
    return np.random.default_rng(seed).choice(np.array([0, 1, 255], dtype=np.uint8), (height, width))


def writer(target: Path, grid: Grid = GRID, **options: Any) -> LabelWriter:
    """Return a writer of two classes."""
    settings: dict[str, Any] = {"class_names": NAMES, "class_colors": COLORS, "tags": TAGS, **options}
    return LabelWriter(target, grid, **settings)


def write(target: Path, labels: NDArray[np.uint8], grid: Grid = GRID, **options: Any) -> None:
    """Write labels in one go."""
    with writer(target, grid, **options) as new:
        new.write(0, labels)


def read_back(path: Path) -> NDArray[Any]:
    """Return all values, with rasterio alone."""
    with rasterio.open(path) as dataset:
        return dataset.read()


def names_in(folder: Path) -> list[str]:
    """Return what lies in a folder, hidden things too."""
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def files_end_at(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Label maps


def test_labels_come_back_with_place_colours_names_and_tags(tmp_path: Path) -> None:
    labels = noise()

    write(tmp_path / "map.tif", labels)

    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), labels[None])
        assert (dataset.crs, dataset.transform, dataset.nodata) == (UTM, PLACE, 255)
        assert dataset.colorinterp == (ColorInterp.palette,)
        assert [dataset.colormap(1)[label][:3] for label in (0, 1)] == COLORS
        assert dataset.colormap(1)[255][3] == 0
        assert json.loads(dataset.tags()["class_names"]) == NAMES
        assert TAGS.items() <= dataset.tags().items()
        np.testing.assert_array_equal(dataset.dataset_mask() != 0, labels != 255)
    assert names_in(tmp_path) == ["map.tif"]


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
@settings(max_examples=20, deadline=None)  # every example makes a file
def test_the_heights_of_the_strips_do_not_show(heights: list[int]) -> None:
    labels = noise()
    cuts = [row for row in np.cumsum(heights).tolist() if row < HEIGHT]

    with tempfile.TemporaryDirectory() as folder:
        whole, strips = Path(folder, "whole.tif"), Path(folder, "strips.tif")
        write(whole, labels, block_px=16)
        with writer(strips, block_px=16) as new:
            for row, part in zip([0, *cuts], np.split(labels, cuts), strict=True):
                new.write(row, part)

        np.testing.assert_array_equal(read_back(strips), labels[None])
        assert strips.read_bytes() == whole.read_bytes()


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
    ],
    ids=["rotated", "south up", "no CRS", "ESRI", "Mars", "nowhere", "CRS only"],
)
def test_every_grid_is_kept(tmp_path: Path, grid: Grid) -> None:
    write(tmp_path / "map.tif", noise(), grid)

    with open_raster(tmp_path / "map.tif") as reader:
        assert reader.grid == grid


def test_where_pixels_lie_nowhere_no_transform_is_written(tmp_path: Path) -> None:
    changed, nowhere = noise() == 1, Grid(HEIGHT, WIDTH, None, Affine.identity())

    write(tmp_path / "map.tif", noise(), nowhere)
    write_image(tmp_path / "changed.tif", changed, transform=nowhere.transform)

    for name in ("map.tif", "changed.tif"):
        with pytest.warns(NotGeoreferencedWarning):
            rasterio.open(tmp_path / name).close()
    with open_raster(tmp_path / "changed.tif") as reader:
        assert reader.grid == nowhere
        np.testing.assert_array_equal(reader.read(Window(0, 0, HEIGHT, WIDTH)).values[0], changed)


def test_labels_of_many_classes_keep_their_numbers(tmp_path: Path) -> None:
    labels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    colors = [(value, 255 - value, 7) for value in range(255)]

    write(tmp_path / "map.tif", labels, class_names=[f"class {i}" for i in range(255)], class_colors=colors)

    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), labels)
        assert [dataset.colormap(1)[label][:3] for label in range(255)] == colors


# All or nothing


def test_the_target_appears_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "map.tif"

    with writer(target, block_px=16) as new:
        new.write(0, noise())
        assert not target.exists()
        (temporary,) = names_in(tmp_path)
        assert temporary.startswith(".map.tif.")
        assert temporary.endswith(".tmp")

    assert names_in(tmp_path) == ["map.tif"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_previous_map_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "map.tif"
    write(target, noise())
    before = target.read_bytes()

    def write_in_part() -> None:
        with writer(target, overwrite=True, block_px=16) as new:
            new.write(0, noise(seed=1)[:40])
            raise error

    with pytest.raises(error):
        write_in_part()

    assert target.read_bytes() == before
    assert names_in(tmp_path) == ["map.tif"]


def test_overwriting_replaces_the_previous_map_even_while_it_is_being_read(tmp_path: Path) -> None:
    target = tmp_path / "map.tif"
    write(target, noise())
    before = target.read_bytes()

    with target.open("rb") as other:
        write(target, noise(seed=1), overwrite=True)
        assert other.read() == before

    np.testing.assert_array_equal(read_back(target)[0], noise(seed=1))


def test_missing_rows_are_our_bug_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only 59 of 60 rows"), writer(tmp_path / "map.tif") as new:
        new.write(0, noise()[:59])

    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("row", "labels", "message"),
    [
        (20, noise()[:5], "row 10 of 60 is next, got rows 20 to 24"),
        (0, noise()[:5], "row 10 of 60 is next"),
        (10, noise()[:51], "row 10 of 60 is next, got rows 10 to 60"),
        (10, noise()[:5, :60], "90 wide, got uint8 and 60"),
        (10, noise()[:5].astype(np.int64), "must be uint8"),
    ],
)
def test_rows_out_of_order_or_shape_are_our_bug(tmp_path: Path, row: int, labels: NDArray[Any], message: str) -> None:
    with writer(tmp_path / "map.tif") as new:
        new.write(0, noise()[:10])
        with pytest.raises(ValueError, match=message):
            new.write(row, labels)
        new.write(10, noise()[10:])

    np.testing.assert_array_equal(read_back(tmp_path / "map.tif")[0], noise())


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.999])
def test_a_full_disk_is_one_clear_line_and_leaves_the_previous_map(tmp_path: Path, share: float) -> None:
    target, labels, grid = tmp_path / "map.tif", noise(600, 700), Grid(600, 700, UTM, PLACE)
    write(target, labels, grid)
    before = target.read_bytes()

    with (
        files_end_at(int(share * len(before))),
        pytest.raises(RasterError, match=r"map\.tif") as caught,
        writer(target, grid, overwrite=True) as new,
    ):
        new.write(0, labels)

    assert "\n" not in str(caught.value)
    assert target.read_bytes() == before
    assert names_in(tmp_path) == ["map.tif"]


# Refusals


def test_an_existing_target_is_refused_before_work_in_a_line_that_names_the_option(tmp_path: Path) -> None:
    target = tmp_path / "map.tif"
    target.write_text("mine")

    with pytest.raises(TargetExistsError, match=r"map\.tif exists\. .*--overwrite") as caught:
        writer(target)

    assert "\n" not in str(caught.value)
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["s3://bucket/map.tif", "https://host/map.tif", "/vsimem/map.tif", "/vsis3/bucket/map.tif"]
)
def test_a_target_that_cannot_be_renamed_is_refused(name: str) -> None:
    with pytest.raises(RasterError, match="not a local file") as caught:
        LabelWriter(name, GRID, class_names=NAMES, class_colors=COLORS, tags={})

    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RasterError, match="not a local file"):
        check_target(Path(name), overwrite=True)


def test_a_place_where_no_file_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(RasterError, match="is a folder, a file is needed"):
        writer(tmp_path, overwrite=True)
    with pytest.raises(RasterError, match="there is no folder"):
        writer(tmp_path / "missing" / "map.tif")
    with pytest.raises(RasterError, match="there is no folder"):
        writer(tmp_path / "file" / "map.tif")
    assert names_in(tmp_path) == ["file"]


def test_a_protected_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by its mode: root, who often runs tests, may write everywhere.
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(RasterError, match="cannot be written to"):
            writer(tmp_path / "map.tif")

    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(RasterError, match="cannot be written to: Permission denied"):
        write(tmp_path / "map.tif", noise())


@pytest.mark.parametrize("link", [False, True])
def test_the_source_is_never_the_target(tmp_path: Path, link: bool) -> None:
    source = target = tmp_path / "image.tif"
    source.write_text("pixels")
    if link:
        target = tmp_path / "link.tif"
        target.symlink_to(source)

    with pytest.raises(RasterError, match="cannot be the target too"):
        writer(target, overwrite=True, source=source)

    check_target(tmp_path / "other.tif", overwrite=False, source=source)


@pytest.mark.parametrize("nodata", [0, 1, 256, -1])
def test_nodata_is_no_class(tmp_path: Path, nodata: int) -> None:
    with pytest.raises(InvalidConfigError, match=f"got nodata={nodata} with 2 classes"):
        writer(tmp_path / "map.tif", nodata=nodata)


def test_every_class_needs_a_colour(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"got 2 name\(s\) and 1 colour"):
        writer(tmp_path / "map.tif", class_colors=COLORS[:1])


def test_a_long_name_and_a_relative_one_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "ü" * 120 + ".tif"

    write(Path(name), noise())

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
