"""Rasters at another resolution: against GDAL's own warper, and pixel by pixel in numpy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.vrt import WarpedVRT

from geonorm.errors import GeonormError, InvalidConfigError, RasterError
from geonorm.raster import resample
from geonorm.raster.grid import Grid
from geonorm.raster.mosaic import Mosaic, same_grid
from geonorm.raster.read import Pixels, RasterSource, open_raster
from geonorm.raster.resample import Resampled, open_resampled, resampled_grid
from geonorm.raster.window import Window
from tests.raster.drawn import HEIGHT, PLACE, UTM, WIDTH, blob, draw, noise

PLACES = [
    PLACE,
    Affine.translation(4e5, 5.3e6) @ Affine.rotation(30) @ Affine.scale(0.3, -0.3),
    Affine(0.3, 0, 4e5 + 0.1, 0, 0.3, 5.3e6 - 0.04),  # south up, and no pixel at a corner of the world's grid
]
FACTORS = [2.0, 3.0, 1.7, 0.5, 0.37]


def whole(source: RasterSource) -> Window:
    return Window(0, 0, source.grid.height, source.grid.width)


def read(path: Path, factor: float, **options: Any) -> Pixels:
    """Resample to a multiple of 0.3 m and read all of it."""
    with open_resampled(path, 0.3 * factor, **options) as source:
        return source.read(whole(source))


def smooth(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Return three bands like a photograph's."""
    rows, cols = np.indices((height, width))
    waves = [np.sin(rows / 7 + band) * np.cos(cols / 5 - band) for band in range(3)]
    return (np.stack(waves) * 100 + 120 + noise(3, height, width, high=20)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resample")


# Against GDAL's warper


def warped(
    path: Path, grid: Grid, resampling: str, *, factor: float, **options: Any
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return values and valid pixels as rasterio's virtual warp has them."""
    method = rasterio.enums.Resampling[resampling]
    # Else GDAL takes the scale of its kernels from the rounded sides of the windows it happens to read.
    details = {"XSCALE": str(1 / factor), "YSCALE": str(1 / factor)}
    target = {"crs": grid.crs, "transform": grid.transform, "height": grid.height, "width": grid.width}
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(dataset, resampling=method, **target, **details, **options) as virtual,
    ):
        return virtual.read(), virtual.dataset_mask() != 0


@pytest.mark.parametrize("resampling", ["average", "bilinear", "cubic", "nearest"])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("place", PLACES)
def test_values_are_those_of_gdals_warper(
    tmp_path: Path, place: Affine, factor: float, resampling: resample.Resampling
) -> None:
    path = draw(tmp_path / "whole.tif", smooth(), transform=place)
    with open_resampled(path, 0.3 * factor, resampling=resampling) as source:
        found = source.read(whole(source))

    expected, _ = warped(path, source.grid, resampling, factor=factor)

    edge = math.ceil(3 / min(1, factor))  # beyond the raster's edge, GDAL has rules of its own
    inner = np.s_[:, edge:-edge, edge:-edge]
    apart = np.abs(found.values[inner].astype(int) - expected[inner])
    assert apart.size > 300
    assert apart.max() <= (0 if resampling == "nearest" else 1)
    assert (apart == 0).mean() > 0.97
    assert found.valid[edge:-edge, edge:-edge].all()


@pytest.mark.parametrize("resampling", ["average", "bilinear", "nearest"])
@pytest.mark.parametrize("factor", [3.0, 1.7, 0.37])
def test_nodata_is_kept_out_as_gdals_warper_does(
    tmp_path: Path, factor: float, resampling: resample.Resampling
) -> None:
    values = np.where(blob(), smooth(), 0).astype(np.uint8)
    path = draw(tmp_path / "holes.tif", values, nodata=0)
    with open_resampled(path, 0.3 * factor, resampling=resampling) as source:
        found = source.read(whole(source))

    expected, valid = warped(path, source.grid, resampling, factor=factor, init_dest_nodata=True)

    edge = math.ceil(3 / min(1, factor))
    inner = np.s_[..., edge:-edge, edge:-edge]
    np.testing.assert_array_equal(found.valid[inner], valid[inner])
    assert not found.valid.all()
    apart = np.abs(found.values[inner].astype(int) - expected[inner])
    assert apart.max() <= 1
    assert (apart == 0).mean() > 0.97


# Pixel by pixel


@pytest.mark.parametrize("rule", ["all", "any"])
@pytest.mark.parametrize("nodata", [2, None])
def test_an_average_is_the_mean_of_what_is_valid(
    tmp_path: Path, nodata: int | None, rule: Literal["all", "any"]
) -> None:
    values = noise(2, 6, 12, low=0, high=6)
    path = draw(tmp_path / "small.tif", values, nodata=0, transform=Affine(0.3, 0, 0, 0, -0.3, 0))

    with open_resampled(path, 0.9, nodata_rule=rule, nodata=nodata) as source:
        found = source.read(whole(source))

    assert source.grid == Grid(2, 4, UTM, Affine(3 * 0.3, 0, 0, 0, -3 * 0.3, 0))
    counts = (values != 0) & ((values != 2) | (nodata is None))
    pixel_counts = counts.any(axis=0) if rule == "all" else counts.all(axis=0)
    counts = counts & pixel_counts
    for row, col in np.ndindex(2, 4):
        at = np.s_[..., row * 3 : row * 3 + 3, col * 3 : col * 3 + 3]
        assert found.valid[row, col] == pixel_counts[at].any()
        for band in range(2):
            chosen = values[band][at][counts[band][at]]
            assert found.value_valid[band, row, col] == bool(chosen.size)
            assert found.values[band, row, col] == (math.floor(chosen.mean() + 0.5) if chosen.size else 0)


def test_a_mask_an_alpha_band_and_nan_are_kept_out(tmp_path: Path) -> None:
    values = np.where(blob(), smooth(), 255)
    rgba = np.concatenate([values, blob()[None] * 9]).astype(np.uint8)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        masked = draw(tmp_path / "masked.tif", values.astype(np.uint8), mask=blob())
    alpha = draw(tmp_path / "alpha.tif", rgba, alpha_band=4)
    nans = draw(tmp_path / "nan.tif", np.where(blob(), smooth(), math.nan).astype(np.float32))

    expected = read(masked, 2)

    assert not expected.valid.all()
    assert expected.values[:, expected.valid].max() < 255
    as_mask = read(alpha, 2, bands=(1, 2, 3))
    np.testing.assert_array_equal(as_mask.values, expected.values)
    np.testing.assert_array_equal(as_mask.value_valid, expected.value_valid)
    np.testing.assert_array_equal(read(nans, 2).valid, expected.valid)


def test_a_fourth_band_that_is_read_is_data(tmp_path: Path) -> None:
    values = np.concatenate([smooth(), blob()[None] * 200]).astype(np.uint8)
    tagged, plain = draw(tmp_path / "a.tif", values, alpha_band=4), draw(tmp_path / "b.tif", values)

    found, expected = read(tagged, 1.7), read(plain, 1.7)

    assert found.valid.all()
    np.testing.assert_array_equal(found.values, expected.values)


def test_palettes_are_expanded_before_they_are_averaged(tmp_path: Path) -> None:
    values = noise(1, 2, 2, low=0, high=2)
    values[0] = [[0, 1], [1, 1]]
    path = draw(tmp_path / "palette.tif", values, transform=Affine(0.3, 0, 0, 0, -0.3, 0))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp.palette]
        dataset.write_colormap(1, {0: (200, 0, 40, 255), 1: (0, 100, 80, 255)})

    assert read(path, 2, bands=(1, 2, 3)).values.ravel().tolist() == [50, 75, 70]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("resampling", ["auto", "cubic"])
def test_values_keep_their_type_and_its_limits(tmp_path: Path, dtype: str, resampling: resample.Resampling) -> None:
    values = noise(1, HEIGHT, WIDTH, low=0, high=2).astype(dtype)
    limits = np.iinfo(dtype) if values.dtype.kind != "f" else None
    path = draw(
        tmp_path / "typed.tif", np.where(values, limits.max if limits else 1, limits.min if limits else 0).astype(dtype)
    )

    found = read(path, 0.37, resampling=resampling)

    assert found.values.dtype == dtype
    if limits:
        assert (found.values.min(), found.values.max()) == (limits.min, limits.max)


# One grid, one value, whatever is read


@settings(max_examples=40)
@given(
    place=st.sampled_from(PLACES),
    factor=st.sampled_from([*FACTORS, 4 / 3]),
    resampling=st.sampled_from(["auto", "cubic", "bilinear", "nearest"]),
    data=st.data(),
    chunk_px=st.sampled_from([5, 16, 1024]),
)
def test_a_window_holds_what_the_whole_holds_there(
    folder: Path, place: Affine, factor: float, resampling: Any, data: st.DataObject, chunk_px: int
) -> None:
    values = np.where(blob(), smooth(), 0).astype(np.uint8)
    path = draw(folder / "holes.tif", values, nodata=0, transform=place)
    with open_resampled(path, 0.3 * factor, resampling=resampling) as source:
        expected = source.read(whole(source))
    height, width = expected.valid.shape
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, cols = data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "CHUNK_PX", chunk_px)
        with open_resampled(path, 0.3 * factor, resampling=resampling) as source:
            found = source.read(Window(row, col, rows, cols))
            assert source.holds_data(Window(row, col, rows, cols))

    at = np.s_[..., row : row + rows, col : col + cols]
    np.testing.assert_array_equal(found.values, expected.values[at])
    np.testing.assert_array_equal(found.value_valid, expected.value_valid[at])
    np.testing.assert_array_equal(found.valid, expected.valid[at])


@settings(max_examples=40)
@given(
    place=st.sampled_from(PLACES),
    factor=st.sampled_from([*FACTORS, 4 / 3]),
    resampling=st.sampled_from(["auto", "cubic", "nearest"]),
    row=st.integers(0, 20),
    col=st.integers(0, 30),
)
def test_a_crop_has_the_pixels_of_the_whole(
    folder: Path, place: Affine, factor: float, resampling: Any, row: int, col: int
) -> None:
    values = smooth()
    path = draw(folder / "whole.tif", values, transform=place)
    part = draw(
        folder / "crop.tif", values[:, row : row + 35, col : col + 50], transform=place @ Affine.translation(col, row)
    )

    with open_resampled(path, 0.3 * factor, resampling=resampling) as one:
        expected = one.read(whole(one))
    with open_resampled(part, 0.3 * factor, resampling=resampling) as other:
        found = other.read(whole(other))

    assert same_grid(one.grid, other.grid)
    top, left = (b - a for a, b in zip(one.grid.first_index, other.grid.first_index, strict=True))
    edge = math.ceil(3 / min(1, factor))  # what lies beside the crop is not known to it
    height, width = (side - 2 * edge for side in found.valid.shape)
    inner = np.s_[:, top + edge : top + edge + height, left + edge : left + edge + width]
    np.testing.assert_array_equal(found.values[:, edge : edge + height, edge : edge + width], expected.values[inner])


@pytest.mark.parametrize("factor", FACTORS)
def test_a_mosaic_of_a_cut_raster_has_the_pixels_of_the_uncut_one(tmp_path: Path, factor: float) -> None:
    values = np.where(blob(), smooth(), 0).astype(np.uint8)
    path, parts = draw(tmp_path / "whole.tif", values, nodata=0), []
    for number, (rows, cols) in enumerate([((0, 23), (0, 90)), ((23, 60), (0, 41)), ((23, 60), (41, 90))]):
        place = PLACE @ Affine.translation(cols[0], rows[0])
        part = values[:, slice(*rows), slice(*cols)]
        with open_raster(draw(tmp_path / f"{number}.tif", part, nodata=0, transform=place)) as reader:
            parts.append(reader)

    with open_resampled(path, 0.3 * factor) as uncut, Resampled(Mosaic(parts), 0.3 * factor) as joined:
        assert joined.grid == uncut.grid
        expected, found = uncut.read(whole(uncut)), joined.read(whole(joined))

    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.value_valid, expected.value_valid)
    np.testing.assert_array_equal(found.valid, expected.valid)


def test_gaps_of_a_mosaic_hold_no_data(tmp_path: Path) -> None:
    readers = []
    for col in (0, 300):
        with open_raster(
            draw(tmp_path / f"{col}.tif", smooth(), transform=PLACE @ Affine.translation(col, 0))
        ) as reader:
            readers.append(reader)

    with Resampled(Mosaic(readers), 0.6) as source:
        assert source.holds_data(Window(0, 0, 5, 44))
        assert not source.holds_data(Window(0, 47, 20, 100))


# Grids


@given(
    place=st.sampled_from([*PLACES, Affine(1e-5, 0, 13.7, 0, -1e-5, 52.1), Affine(0.1, 0, 1e6, 0, -0.4, 7e6)]),
    resolution_m=st.floats(0.05, 30),
    row=st.integers(-(10**5), 10**5),
    col=st.integers(-(10**5), 10**5),
)
def test_new_pixels_cover_the_raster_and_are_counted_from_the_origin(
    place: Affine, resolution_m: float, row: int, col: int
) -> None:
    crs = CRS.from_epsg(4326) if place.a < 1e-3 else UTM
    grid = Grid(HEIGHT, WIDTH, crs, place @ Affine.translation(col, row))
    known_m = grid.resolution_m
    assert known_m is not None

    new = resampled_grid(grid, resolution_m)

    if new == grid:
        assert resolution_m == pytest.approx(known_m, rel=1e-5)
        return
    assert new.crs == crs
    origin = ~new.transform
    assert max(abs(origin.c - round(origin.c)), abs(origin.f - round(origin.f))) < 1e-6
    factor = resolution_m / known_m
    sides = [getattr(new.transform, side) / getattr(grid.transform, side) for side in "abde" if getattr(place, side)]
    assert sides == pytest.approx([factor] * len(sides), rel=1e-6)
    to_new = ~new.transform @ grid.transform
    corners = [to_new @ corner for corner in ((0, 0), (0, HEIGHT), (WIDTH, 0), (WIDTH, HEIGHT))]
    slack = 0.011 / min(1, factor)  # a hundredth of a pixel may stick out
    assert -slack <= min(x for x, _ in corners) < 1
    assert -slack <= min(y for _, y in corners) < 1
    assert new.width - 1 < max(x for x, _ in corners) <= new.width + slack
    assert new.height - 1 < max(y for _, y in corners) <= new.height + slack


def test_the_resolution_becomes_the_one_asked_for() -> None:
    assert resampled_grid(Grid(HEIGHT, WIDTH, UTM, PLACE), 0.75).resolution_m == pytest.approx(0.75)


def test_the_resolution_that_a_raster_has_leaves_it_as_it_is(tmp_path: Path) -> None:
    path = draw(tmp_path / "same.tif", smooth(), transform=PLACES[2])

    with open_resampled(path, 0.3) as source, open_raster(path) as reader:
        assert source.grid == reader.grid
        np.testing.assert_array_equal(source.read(whole(source)).values, smooth())


def test_it_says_what_it_reads_and_opens_another(tmp_path: Path) -> None:
    path = draw(tmp_path / "blocks.tif", smooth(64, 128), tiled=True, blockxsize=64, blockysize=32)

    with open_resampled(path, 0.6, bands=(3, 1)) as source:
        assert (source.path, source.bands, source.count, source.dtype.name) == (str(path), (3, 1), 3, "uint8")
        assert source.block_shape == (16, 32)
        assert source.resolution == pytest.approx(0.6)
        with source.reopen() as again:
            np.testing.assert_array_equal(again.read(whole(again)).values, source.read(whole(source)).values)
        with pytest.raises(ValueError, match="inside the"):
            source.read(Window(0, 0, 1, 1000))


# Errors


@pytest.mark.parametrize(
    ("resolution_m", "reason"),
    [
        (0, "above 0, got 0"),
        (-1, "above 0"),
        (math.nan, "above 0"),
        (math.inf, "above 0"),
        (301, "within a factor of 1000 of the 0.3 m"),
        (1e-9, "at most 2147483647 pixels a side"),
        (1e-12, "at most 2147483647 pixels a side"),
    ],
)
def test_resolutions_that_cannot_be_meant_are_refused(tmp_path: Path, resolution_m: float, reason: str) -> None:
    path = draw(tmp_path / "whole.tif", smooth())

    with pytest.raises(InvalidConfigError, match=reason) as caught:
        open_resampled(path, resolution_m)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("crs", "place"), [(None, PLACE), (UTM, None), ("IAU_2015:49910", PLACE)])
def test_a_raster_of_unknown_resolution_is_refused(tmp_path: Path, crs: Any, place: Affine | None) -> None:
    path = draw(tmp_path / "lost.tif", smooth(), crs=crs and CRS.from_user_input(crs), transform=place)

    with pytest.raises(RasterError, match="no known ground resolution") as caught:
        open_resampled(path, 1)

    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_resampling_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = draw(tmp_path / "whole.tif", smooth())

    with pytest.raises(GeonormError, match="average, got 'mode'"):
        open_resampled(path, 1, resampling="mode")  # type: ignore[arg-type]


# Real rasters


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("odd-geotiff/rgb-internal-mask.tif", 2.3),
        ("odd-geotiff/rgb-external-mask.tif", 2.3),
        ("odd-geotiff/rgb-nodata0.tif", 3.0),
        ("large-geotiff/rotated-sar-2000x2000.tiff", 7.0),
    ],
)
def test_real_rasters_are_resampled_as_gdals_warper_does(real_data: Path, name: str, factor: float) -> None:
    with open_raster(real_data / name) as reader:
        assert reader.resolution is not None
        resolution_m = reader.resolution * factor
    with open_resampled(real_data / name, resolution_m) as source:
        found = source.read(whole(source))

    # A mask needs a band of its own there; a nodata value is one by itself, in whatever band.
    options = {"add_alpha": True} if "mask" in name else {"UNIFIED_SRC_NODATA": "NO"}
    expected, valid = warped(real_data / name, source.grid, "average", factor=factor, init_dest_nodata=True, **options)

    inner = np.s_[..., 3:-3, 3:-3]
    np.testing.assert_array_equal(found.valid[inner], valid[inner])
    apart = np.abs(found.values[inner].astype(float) - expected[: len(found.values)][inner])[:, found.valid[inner]]
    assert apart.max() <= (1 if source.dtype.kind == "u" else 1e-3)
