"""Reading windows: against plain rasterio and numpy, on drawn rasters and on awkward real ones."""

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import rasterio
import rasterio.control
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.raster.grid import Grid, GroundControlPoint
from geonorm.raster.read import Pixels, RasterSource, check_readable, open_raster
from geonorm.raster.window import Window
from tests.raster.drawn import HEIGHT, PLACE, UTM, WIDTH, blob, draw, noise
from tests.raster.odd_files import DAMAGED, VALID

WHOLE = Window(0, 0, HEIGHT, WIDTH)


def read(path: Path, window: Window = WHOLE, **options: Any) -> Pixels:
    """Open, read and close."""
    with open_raster(path, **options) as reader:
        return reader.read(window)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """Three bands without a zero."""
    return noise(3, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, image: NDArray[np.uint8]) -> Path:
    """A raster in which every value counts."""
    return draw(tmp_path_factory.mktemp("plain") / "plain.tif", image)


# Values


@given(data=st.data())
def test_a_window_holds_what_the_file_holds_there(plain: Path, image: NDArray[np.uint8], data: st.DataObject) -> None:
    row, col = data.draw(st.integers(0, HEIGHT - 1)), data.draw(st.integers(0, WIDTH - 1))
    height, width = data.draw(st.integers(1, HEIGHT - row)), data.draw(st.integers(1, WIDTH - col))

    pixels = read(plain, Window(row, col, height, width))

    np.testing.assert_array_equal(pixels.values, image[:, row : row + height, col : col + width])
    assert pixels.valid.all()


def test_bands_come_in_the_order_in_which_they_are_asked_for(plain: Path, image: NDArray[np.uint8]) -> None:
    pixels = read(plain, bands=[3, 1])

    np.testing.assert_array_equal(pixels.values, image[[2, 0]])
    assert pixels.value_valid.shape == (2, HEIGHT, WIDTH)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"])
def test_values_keep_the_type_of_the_file(tmp_path: Path, dtype: str) -> None:
    values = noise(2, HEIGHT, WIDTH, high=100, dtype=dtype)

    with open_raster(draw(tmp_path / "typed.tif", values)) as reader:
        assert reader.dtype == dtype
        assert reader.read(WHOLE).values.dtype == dtype


@pytest.mark.parametrize(
    "window",
    [
        Window(-1, 0, 5, 5),
        Window(0, -1, 5, 5),
        Window(HEIGHT - 4, 0, 5, 5),
        Window(0, WIDTH - 4, 5, 5),
        Window(0, 0, WIDTH, HEIGHT),
        Window(3, 3, 0, 5),
        Window(3, 3, 5, 0),
    ],
)
def test_a_window_beyond_the_raster_or_without_pixels_is_our_bug(plain: Path, window: Window) -> None:
    with open_raster(plain) as reader, pytest.raises(ValueError, match="inside the 60 x 90 raster"):
        reader.read(window)


def test_a_reader_says_what_it_reads(plain: Path) -> None:
    with open_raster(plain, bands=(2,)) as reader:
        assert (reader.path, reader.bands, reader.count) == (str(plain), (2,), 3)
        assert reader.grid == Grid(HEIGHT, WIDTH, UTM, PLACE)
        assert reader.block_shape[1] == WIDTH
        assert reader.resolution == pytest.approx(0.3)


# Validity


def test_where_everything_counts_no_mask_is_made(plain: Path) -> None:
    pixels = read(plain)

    assert pixels.value_valid.strides == (0, 0, 0)
    assert pixels.valid.strides == (0, 0)


@pytest.mark.parametrize(("rule", "combine"), [("all", np.any), ("any", np.all)])
@pytest.mark.parametrize("bands", [(1, 2, 3), (2,), (3, 1)])
def test_a_nodata_value_counts_in_no_band(
    tmp_path: Path, rule: Literal["all", "any"], combine: Any, bands: Sequence[int]
) -> None:
    values = noise(3, HEIGHT, WIDTH, low=0, high=3)
    path = draw(tmp_path / "nodata.tif", values, nodata=2)

    pixels = read(path, bands=bands, nodata_rule=rule)

    expected = values[[band - 1 for band in bands]] != 2
    np.testing.assert_array_equal(pixels.value_valid, expected)
    np.testing.assert_array_equal(pixels.valid, combine(expected, axis=0))


@pytest.mark.parametrize("nodata", [None, math.nan, -9999.0])
def test_nan_and_infinity_never_count(tmp_path: Path, nodata: float | None) -> None:
    values = noise(2, HEIGHT, WIDTH, dtype="float32")
    values[0, 3, 5], values[0, 3, 6], values[1, 3, 6] = math.nan, math.inf, -math.inf
    values[1, 7, 8] = -9999

    pixels = read(draw(tmp_path / "float.tif", values, nodata=nodata))

    expected = np.isfinite(values) & ((values != -9999) | (nodata != -9999))
    np.testing.assert_array_equal(pixels.value_valid, expected)
    np.testing.assert_array_equal(pixels.valid, expected.any(axis=0))


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("rule", ["all", "any"])
def test_a_mask_of_the_file_makes_all_values_of_a_pixel_invalid(
    tmp_path: Path, image: NDArray[np.uint8], internal: bool, rule: Literal["all", "any"]
) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        path = draw(tmp_path / "masked.tif", image, mask=blob())

    pixels = read(path, nodata_rule=rule)

    assert (tmp_path / "masked.tif.msk").exists() is not internal
    np.testing.assert_array_equal(pixels.valid, blob())
    np.testing.assert_array_equal(pixels.value_valid, np.stack([blob()] * 3))


def test_a_mask_and_nan_add_up(tmp_path: Path) -> None:
    values = noise(2, HEIGHT, WIDTH, dtype="float32")
    values[:, 50, 1], values[0, 50, 2] = math.nan, math.nan
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = draw(tmp_path / "masked.tif", values, mask=blob())

    pixels = read(path)

    np.testing.assert_array_equal(pixels.value_valid, blob() & np.isfinite(values))
    np.testing.assert_array_equal(pixels.valid, blob() & np.isfinite(values).any(axis=0))


def test_a_nodata_tuple_makes_the_whole_pixel_invalid_and_only_where_all_bands_match(tmp_path: Path) -> None:
    values = noise(3, HEIGHT, WIDTH, low=0, high=2)

    pixels = read(draw(tmp_path / "tuple.tif", values, tags={"NODATA_VALUES": "0 1 0"}))

    matches = (values[0] == 0) & (values[1] == 1) & (values[2] == 0)
    np.testing.assert_array_equal(pixels.valid, ~matches)
    np.testing.assert_array_equal(pixels.value_valid, np.stack([~matches] * 3))


@pytest.mark.parametrize("nodata", [None, 7])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_an_alpha_band_that_is_not_read_is_a_mask(tmp_path: Path, dtype: str, nodata: int | None) -> None:
    values = noise(4, HEIGHT, WIDTH, high=9, dtype=dtype)
    values[3] = np.where(blob(), values[3], 0)
    path = draw(tmp_path / "alpha.tif", values, alpha_band=4, nodata=nodata)

    pixels = read(path, bands=(1, 2, 3))

    expected = blob() & ((values[:3] != 7) | (nodata != 7))
    np.testing.assert_array_equal(pixels.value_valid, expected)
    np.testing.assert_array_equal(pixels.valid, expected.any(axis=0))


@pytest.mark.parametrize("bands", [None, (4,), (4, 1)])
@pytest.mark.parametrize("rule", ["all", "any"])
def test_a_band_that_is_read_is_data_even_if_it_is_tagged_as_alpha(
    tmp_path: Path, bands: Sequence[int] | None, rule: Literal["all", "any"]
) -> None:
    values = noise(4, HEIGHT, WIDTH)
    values[3] = np.where(blob(), values[3], 0)

    pixels = read(draw(tmp_path / "naip.tif", values, alpha_band=4), bands=bands, nodata_rule=rule)

    assert pixels.valid.all()
    assert pixels.value_valid.all()
    np.testing.assert_array_equal(pixels.values[0 if bands else 3], values[3])


def test_a_nodata_rule_that_does_not_exist_is_refused(plain: Path) -> None:
    with pytest.raises(InvalidConfigError, match="'all' or 'any', got 'none'"):
        open_raster(plain, nodata_rule="none")  # type: ignore[arg-type]


# Grids


def test_a_raster_without_a_transform_opens_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "map.ppm").write_bytes(b"P6 90 60 255\n" + noise(HEIGHT, WIDTH, 3).tobytes())

    with open_raster(tmp_path / "map.ppm") as reader:
        assert reader.grid == Grid(HEIGHT, WIDTH, None, Affine.identity())
        assert not reader.grid.has_transform
        assert reader.read(WHOLE).valid.all()


def test_ground_control_points_come_with_their_crs_and_place_no_pixel(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    numbers, crs = [(0, 0.5, 10.25, 50.5, 7.0), (60, 90, 11, 49, 0)], CRS.from_epsg(4326)
    points = [rasterio.control.GroundControlPoint(*number) for number in numbers]
    path = draw(tmp_path / "gcps.tif", image, crs=crs, transform=None, gcps=points)

    with open_raster(path) as reader:
        expected = tuple(GroundControlPoint(*number) for number in numbers)
        assert reader.grid == Grid(HEIGHT, WIDTH, None, Affine.identity(), expected, crs)
        assert reader.resolution is None
        np.testing.assert_array_equal(reader.read(WHOLE).values, image)


# A nodata value that the user declares


@pytest.mark.parametrize("rule", ["all", "any"])
@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 2), ("int16", 2.0), ("float32", 2), ("float64", 2.0)])
def test_a_declared_nodata_value_counts_as_one_that_the_file_declares(
    tmp_path: Path, dtype: str, nodata: float, rule: Literal["all", "any"]
) -> None:
    values = noise(3, HEIGHT, WIDTH, low=0, high=3, dtype=dtype)
    silent, speaking = draw(tmp_path / "a.tif", values), draw(tmp_path / "b.tif", values, nodata=nodata)

    pixels, expected = read(silent, nodata=nodata, nodata_rule=rule), read(speaking, nodata_rule=rule)

    np.testing.assert_array_equal(pixels.values, values)
    np.testing.assert_array_equal(pixels.value_valid, values != 2)
    np.testing.assert_array_equal(pixels.valid, expected.valid)


def test_a_declared_nodata_value_adds_to_that_of_the_file_and_to_its_alpha_band(tmp_path: Path) -> None:
    values = noise(4, HEIGHT, WIDTH, low=0, high=4)
    path = draw(tmp_path / "rgba.tif", values, alpha_band=4, nodata=3)

    pixels = read(path, bands=(2, 1), nodata=2)

    np.testing.assert_array_equal(pixels.value_valid, (values[[1, 0]] < 2) & (values[3] != 0))


@pytest.mark.parametrize("nodata", [0.1, -3.4028235e38, -3.40282346638528859812e38])
def test_a_decimal_that_float32_rounds_is_found(tmp_path: Path, nodata: float) -> None:
    values = noise(1, HEIGHT, WIDTH, dtype="float32")
    values[0, 5, 7] = np.float32(nodata)

    valid = read(draw(tmp_path / "float.tif", values), nodata=nodata).valid

    assert not valid[5, 7]
    assert valid.sum() == HEIGHT * WIDTH - 1


@pytest.mark.parametrize("nodata", [math.nan, math.inf])
def test_nan_may_be_declared_for_decimals(tmp_path: Path, nodata: float) -> None:
    values = noise(1, HEIGHT, WIDTH, dtype="float32")
    values[0, 5, 7] = nodata

    assert read(draw(tmp_path / "float.tif", values), nodata=nodata).valid.sum() == HEIGHT * WIDTH - 1


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("uint8", 256),
        ("uint8", -1),
        ("uint8", 0.5),
        ("uint8", math.nan),
        ("uint8", math.inf),
        ("int16", 40_000),
        ("float32", 1e39),
    ],
)
def test_a_nodata_value_that_no_pixel_can_have_is_refused(tmp_path: Path, dtype: str, nodata: float) -> None:
    path = draw(tmp_path / "typed.tif", noise(1, HEIGHT, WIDTH, high=100, dtype=dtype))

    with pytest.raises(InvalidConfigError, match=f"can hold, {dtype} from .* got {re.escape(str(nodata))}") as caught:
        open_raster(path, nodata=nodata)

    assert_one_clear_line(caught.value, path)


# Palettes


def draw_palette(path: Path, values: NDArray[Any], colors: NDArray[np.uint8], **options: Any) -> Path:
    """Write one band with a colour table; ``colors`` (values, 4)."""
    draw(path, values, **options)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.palette]
        dataset.write_colormap(1, {value: tuple(color.tolist()) for value, color in enumerate(colors)})
    return path


@pytest.mark.parametrize("bands", [range(1, 4), (1, 2, 3, 4), (2,), (3, 1), (4, 2, 2)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_palette_gives_the_colours_of_its_values(tmp_path: Path, dtype: str, bands: Sequence[int]) -> None:
    colors = noise(256, 4)
    colors[:, 3] = 255  # what a TIFF says of the others
    values = noise(1, HEIGHT, WIDTH, low=0, dtype=dtype)
    path = draw_palette(tmp_path / "palette.tif", values, colors)

    with open_raster(path, bands=bands) as reader:
        pixels = reader.read(Window(5, 7, 30, 40))

    assert (reader.dtype.name, reader.count, reader.bands) == ("uint8", 4, tuple(bands))
    assert pixels.values.dtype == np.uint8
    expected = np.stack([colors[values[0, 5:35, 7:47], band - 1] for band in bands])
    np.testing.assert_array_equal(pixels.values, expected)
    assert pixels.valid.all()
    assert pixels.value_valid.shape == pixels.values.shape


@pytest.mark.parametrize("bands", [None, [1], [1, 1]])
def test_a_palette_of_which_one_band_is_asked_for_gives_its_values(tmp_path: Path, bands: Sequence[int] | None) -> None:
    values = noise(1, HEIGHT, WIDTH, low=0)
    path = draw_palette(tmp_path / "palette.tif", values, noise(256, 4))

    with open_raster(path, bands=bands) as reader:
        np.testing.assert_array_equal(reader.read(WHOLE).values, np.repeat(values, len(reader.bands), axis=0))
        assert reader.count == 1


@pytest.mark.parametrize("rule", ["all", "any"])
def test_what_is_nodata_in_a_palette_has_no_colour(tmp_path: Path, rule: Literal["all", "any"]) -> None:
    values = noise(1, HEIGHT, WIDTH, low=0, high=9)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = draw_palette(tmp_path / "palette.tif", values, noise(256, 4), nodata=3)
        masked = draw_palette(tmp_path / "masked.tif", values, noise(256, 4), mask=blob())

    pixels = read(path, bands=range(1, 4), nodata_rule=rule, nodata=5)

    expected = (values[0] != 3) & (values[0] != 5)
    np.testing.assert_array_equal(pixels.valid, expected)
    np.testing.assert_array_equal(pixels.value_valid, np.stack([expected] * 3))
    np.testing.assert_array_equal(read(masked, bands=range(1, 4), nodata_rule=rule).valid, blob())


def test_a_transparent_colour_is_invalid_unless_alpha_is_read(tmp_path: Path) -> None:
    values = noise(1, HEIGHT, WIDTH, low=0, high=9)
    draw(tmp_path / "values.tif", values)
    colors = noise(9, 4)
    colors[4, 3] = 0
    entries = "".join("<Entry c1='{}' c2='{}' c3='{}' c4='{}'/>".format(*color) for color in colors.tolist())
    path = tmp_path / "palette.vrt"
    path.write_text(
        "<VRTDataset rasterXSize='90' rasterYSize='60'><GeoTransform>1, 2, 0, 3, 0, -2</GeoTransform>"
        "<VRTRasterBand dataType='Byte' band='1'><ColorInterp>Palette</ColorInterp>"
        f"<ColorTable>{entries}</ColorTable><SimpleSource><SourceFilename relativeToVRT='1'>values.tif"
        "</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )

    np.testing.assert_array_equal(read(path, bands=range(1, 4)).valid, values[0] != 4)
    assert read(path, bands=range(1, 5)).valid.all()
    np.testing.assert_array_equal(read(path, bands=[4]).values[0], colors[values[0], 3])


@pytest.mark.parametrize("bands", [(1, 5), (0, 2)])
def test_a_palette_has_four_bands(tmp_path: Path, bands: Sequence[int]) -> None:
    path = draw_palette(tmp_path / "palette.tif", noise(1, HEIGHT, WIDTH), noise(256, 4))

    with pytest.raises(RasterError, match=re.escape(f"has 4 band(s), but bands {list(bands)}")):
        open_raster(path, bands=bands)


def test_one_band_without_a_palette_has_no_colours(tmp_path: Path) -> None:
    path = draw(tmp_path / "grey.tif", noise(1, HEIGHT, WIDTH))

    with pytest.raises(RasterError, match=re.escape("has 1 band(s), but bands [1, 2, 3]")):
        open_raster(path, bands=range(1, 4))


# Another reader of the same file


def test_a_reader_opens_another_that_reads_the_same_even_when_it_is_closed(tmp_path: Path) -> None:
    values = noise(3, HEIGHT, WIDTH, low=0, high=4)
    path = draw(tmp_path / "again.tif", values)
    with open_raster(path, bands=(3, 1, 3), nodata_rule="any", nodata=2) as reader:
        expected = reader.read(WHOLE)

    with reader.reopen() as again:
        pixels = again.read(WHOLE)

    np.testing.assert_array_equal(pixels.values, values[[2, 0, 2]])
    np.testing.assert_array_equal(pixels.value_valid, expected.value_valid)
    np.testing.assert_array_equal(pixels.valid, (values[[2, 0]] != 2).all(axis=0))


def test_readers_of_their_own_read_in_threads_what_one_reads(tmp_path: Path) -> None:
    values = noise(3, 256, 256)
    path = draw(tmp_path / "tiles.tif", values, tiled=True, blockxsize=16, blockysize=16, compress="deflate")

    def copy(reader: RasterSource) -> NDArray[Any]:
        with reader:
            return np.concatenate([reader.read(Window(row, 0, 8, 256)).values for row in range(0, 256, 8)], axis=1)

    with open_raster(path) as reader, ThreadPoolExecutor(4) as threads:
        copies = list(threads.map(copy, [reader.reopen() for _ in range(4)]))

    for found in copies:
        np.testing.assert_array_equal(found, values)


def test_a_file_may_hold_data_anywhere(plain: Path) -> None:
    with open_raster(plain) as reader:
        assert reader.holds_data(Window(0, 0, 1, 1))


# Errors


def assert_one_clear_line(error: BaseException, path: Path) -> None:
    """Check that a message names the file and says what to try, in one line."""
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 400 + 2 * len(str(path))


@pytest.mark.parametrize("bands", [(4,), (1, 2, 3, 4), (0,), (-1, 1), ()])
def test_bands_that_the_file_lacks_are_refused(plain: Path, bands: Sequence[int]) -> None:
    with pytest.raises(RasterError, match=re.escape(f"has 3 band(s), but bands {list(bands)}")) as caught:
        open_raster(plain, bands=bands)

    assert_one_clear_line(caught.value, plain)


def test_bands_of_different_types_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    draw(tmp_path / "a.tif", noise(1, HEIGHT, WIDTH))
    draw(tmp_path / "b.tif", noise(1, HEIGHT, WIDTH, dtype="uint16"))
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">'
        f"{name}</SourceFilename></SimpleSource></VRTRasterBand>"
        for band, (kind, name) in enumerate([("Byte", "a.tif"), ("UInt16", "b.tif")], 1)
    )
    path = tmp_path / "mixed.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="90" rasterYSize="60"><GeoTransform>1, 2, 0, 3, 0, -2</GeoTransform>{bands}'
        "</VRTDataset>"
    )

    with pytest.raises(RasterError, match=r"different types \(uint16, uint8\)") as caught:
        open_raster(path)

    assert_one_clear_line(caught.value, path)
    assert read(path, bands=[2]).values.dtype == np.uint16


def test_what_is_no_raster_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("A raster?\n" * 99)
    (tmp_path / "header.tif").write_bytes(b"II*\x00\x08\x00\x00\x00")
    draw(tmp_path / "radar.tif", np.ones((1, HEIGHT, WIDTH), dtype="complex64"))
    reasons = {
        "missing.tif": "there is no file",
        ".": "is a folder",
        "empty.tif": "0 bytes",
        "text.tif": "does not open as a raster: .*not recognized",
        "header.tif": "does not open as a raster",
        "radar.tif": "complex numbers",
    }

    for name, reason in reasons.items():
        with pytest.raises(RasterError, match=reason) as caught:
            check_readable(tmp_path / name)
        assert_one_clear_line(caught.value, tmp_path / name)
        with pytest.raises(RasterError, match=reason):
            open_raster(tmp_path / name)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"tiled": True, "blockxsize": 16, "blockysize": 16},
        {"compress": "deflate"},
        {"interleave": "band"},
        {"tiled": True, "blockxsize": 32, "blockysize": 16, "interleave": "band", "compress": "lzw"},
    ],
)
@pytest.mark.parametrize("sample", [1, 4096])
def test_a_file_that_was_cut_off_by_a_byte_is_refused_however_few_blocks_are_checked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image: NDArray[np.uint8],
    layout: dict[str, Any],
    sample: int,
) -> None:
    monkeypatch.setattr("geonorm.raster.read._MAX_CHECKED_BLOCKS", sample)
    path = draw(tmp_path / "cut.tif", image, **layout)
    check_readable(path)
    os.truncate(path, path.stat().st_size - 1)

    with pytest.raises(RasterError, match="is cut off: the block in row") as caught:
        check_readable(path)

    assert_one_clear_line(caught.value, path)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_a_huge_file_that_holds_no_block_is_whole_and_quickly_checked(tmp_path: Path, interleave: str) -> None:
    path = tmp_path / "sparse.tif"
    shape = {"count": 3, "height": 180_000, "width": 360_000, "dtype": "uint8", "interleave": interleave}
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512}
    with rasterio.open(path, "w", driver="GTiff", sparse_ok=True, transform=PLACE, **shape, **tiles):
        pass

    start = time.perf_counter()
    with open_raster(path) as reader:
        assert time.perf_counter() - start < 1  # 20 ms as a rule; all blocks of all bands take 10 s
        assert not reader.read(Window(179_990, 359_990, 10, 10)).values.any()


def test_a_damaged_block_is_reported_with_file_and_window(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = draw(tmp_path / "damaged.tif", image, compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    damaged = bytearray(path.read_bytes())
    damaged[offset : offset + 40] = bytes(40)
    path.write_bytes(damaged)

    with open_raster(path) as reader:
        np.testing.assert_array_equal(reader.read(Window(0, 0, 16, WIDTH)).values, image[:, :16])
        with pytest.raises(RasterError, match="rows 16 to 31, columns 30 to 39") as caught:
            reader.read(Window(16, 30, 16, 10))

    assert_one_clear_line(caught.value, path)


def test_a_block_is_decoded_once_for_many_windows(tmp_path: Path) -> None:
    tiles: dict[str, Any] = {"tiled": True, "blockxsize": 1024, "blockysize": 1024, "compress": "deflate"}
    path = draw(tmp_path / "tiles.tif", noise(1, 1024, 2048), **tiles)

    start = time.perf_counter()
    read(path, Window(0, 0, 1024, 2048))
    whole_s = time.perf_counter() - start
    with open_raster(path) as reader:
        start = time.perf_counter()
        for row in range(100):
            reader.read(Window(row, 0, 1, 2048))
    rows_s = time.perf_counter() - start

    assert rows_s < 20 * whole_s  # about 1.5 times as a rule, 120 times if the cache holds no block


@pytest.mark.slow
def test_reading_a_raster_strip_by_strip_needs_little_memory(tmp_path: Path) -> None:
    side = 16_384  # 256 MiB
    path = draw(tmp_path / "large.tif", np.zeros((1, side, side), dtype=np.uint8), compress="deflate", tiled=True)
    script = (
        "import resource, sys\n"
        "from geonorm.raster.read import open_raster\n"
        "from geonorm.raster.window import Window\n"
        "with open_raster(sys.argv[1]) as reader:\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"    for row in range(0, {side}, 256):\n"
        f"        reader.read(Window(row, 0, 256, {side}))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )

    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)

    grown = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 96 * 2**20


# Real rasters


@pytest.mark.real
@pytest.mark.parametrize("name", VALID)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # what plain rasterio says
def test_an_awkward_raster_reads_as_plain_rasterio_reads_it(real_data: Path, name: str) -> None:
    path = real_data / "odd-geotiff" / name
    with rasterio.open(path) as dataset:
        values, masks = dataset.read(), dataset.read_masks()
        expected = np.isfinite(values) & ((masks != 0) | (ColorInterp.alpha in dataset.colorinterp))
        points, gcps_crs = dataset.gcps
        gcps = tuple(GroundControlPoint(point.row, point.col, point.x, point.y, point.z) for point in points)
        grid = Grid(dataset.height, dataset.width, dataset.crs, dataset.transform, gcps, gcps_crs)

    with open_raster(path) as reader:
        pixels = reader.read(Window(0, 0, grid.height, grid.width))

    assert reader.grid == grid
    np.testing.assert_array_equal(pixels.values, values)
    np.testing.assert_array_equal(pixels.value_valid, expected)
    np.testing.assert_array_equal(pixels.valid, expected.any(axis=0))


@pytest.mark.real
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_raster_is_refused_before_work(real_data: Path, name: str) -> None:
    path = real_data / "odd-geotiff" / name

    with pytest.raises(RasterError) as caught:
        open_raster(path)

    assert_one_clear_line(caught.value, path)


@pytest.mark.real
def test_every_awkward_raster_is_tried(real_data: Path) -> None:
    names = {path.name for path in (real_data / "odd-geotiff").iterdir()}

    assert names - {"README.md", "rgb-external-mask.tif.msk"} == {*VALID, *DAMAGED}


@pytest.mark.real
def test_one_scene_has_the_same_holes_with_its_mask_inside_and_beside_it(real_data: Path) -> None:
    folder, whole = real_data / "odd-geotiff", Window(0, 0, 232, 383)

    inside, beside = (read(folder / f"rgb-{kind}-mask.tif", whole) for kind in ("internal", "external"))

    np.testing.assert_array_equal(inside.valid, beside.valid)
    assert not inside.valid.all()


@pytest.mark.real
def test_holes_that_only_an_alpha_band_marks_are_found(real_data: Path) -> None:
    path, whole = real_data / "odd-geotiff" / "drone-rgba-holes-0.35m.tif", Window(0, 0, 758, 686)
    with rasterio.open(path) as dataset:
        opaque = dataset.read(4) != 0

    np.testing.assert_array_equal(read(path, whole, bands=(1, 2, 3)).valid, opaque)
    assert 0.1 < opaque.mean() < 0.9
    assert read(path, whole).valid.all()


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "resolution_m"),
    [
        ("large-geotiff/zanzibar-z21.tif", 0.0742),
        ("large-geotiff/landcover-palette-7168x8704.tif", 0.917),
        ("large-geotiff/rotated-sar-2000x2000.tiff", 0.594),
        ("large-geotiff/world-mask-36000x18000.tif", 1113.2),
        ("odd-geotiff/rgb-plain-utm-0.15m.tif", 0.1499),
        ("odd-geotiff/rgb-jpeg-rd-new-0.25m.tif", 0.25),
        ("odd-geotiff/palette-unknown-datum.tif", 2.425),
        ("odd-geotiff/rgb-mars-crs.tif", None),
        ("odd-geotiff/float32-nodata-europa-crs.tif", None),
        ("odd-geotiff/gcps-only.tif", None),
    ],
)
def test_the_resolution_of_real_rasters(real_data: Path, name: str, resolution_m: float | None) -> None:
    with open_raster(real_data / name) as reader:
        found = reader.resolution

    assert found == (None if resolution_m is None else pytest.approx(resolution_m, rel=2e-3))


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    [
        "odd-geotiff/palette-non-square-pixels.tif",
        "odd-geotiff/palette-unknown-datum.tif",
        "large-geotiff/landcover-palette-7168x8704.tif",
    ],
)
def test_the_colours_of_real_palettes(real_data: Path, name: str) -> None:
    with rasterio.open(real_data / name) as dataset:
        window = Window(0, 0, min(dataset.height, 600), min(dataset.width, 6000))
        values = dataset.read(1)[: window.height, : window.width]
        table = np.array([dataset.colormap(1)[value] for value in range(256)], dtype=np.uint8)
        counts = values != dataset.nodata

    pixels = read(real_data / name, window, bands=range(1, 4))

    np.testing.assert_array_equal(pixels.values, np.moveaxis(table[values][..., :3], -1, 0))
    np.testing.assert_array_equal(pixels.valid, counts)
    assert pixels.valid.any()
    np.testing.assert_array_equal(read(real_data / name, window).values[0], values)
