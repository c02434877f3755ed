"""Rasters of one grid read as one: against the raster that was cut up, and against numpy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.raster import mosaic
from geonorm.raster.grid import Grid
from geonorm.raster.mosaic import Mosaic, group_neighbours, same_grid
from geonorm.raster.read import Pixels, Reader, open_raster
from geonorm.raster.window import Window
from tests.raster.drawn import HEIGHT, PLACE, UTM, WIDTH, blob, draw, noise

WHOLE = Window(0, 0, HEIGHT, WIDTH)
ROTATED = Affine.translation(4e5, 5.3e6) @ Affine.rotation(30) @ Affine.scale(0.3, -0.3)


def assert_same_pixels(found: Pixels, expected: Pixels) -> None:
    """Check values and masks, bit for bit."""
    assert found.values.dtype == expected.values.dtype
    assert found.values.tobytes() == expected.values.tobytes()
    np.testing.assert_array_equal(found.value_valid, expected.value_valid)
    np.testing.assert_array_equal(found.valid, expected.valid)


def cut(path: Path, windows: Sequence[Window], **options: Any) -> list[Reader]:
    """Write windows of a raster to files of their own, and return closed readers of them."""
    with rasterio.open(path) as whole:
        values, mask, nodata = whole.read(), whole.dataset_mask() != 0, whole.nodata
        has_mask = "per_dataset" in str(whole.mask_flag_enums)
        crs, transform = whole.crs, whole.transform
    readers = []
    for number, window in enumerate(windows):
        at = np.s_[window.row : window.row_end, window.col : window.col_end]
        part = draw(
            path.with_name(f"{path.stem}-{number}.tif"),
            values[:, *at],
            mask=mask[at] if has_mask else None,
            nodata=nodata,
            crs=crs,
            transform=transform @ Affine.translation(window.col, window.row),
        )
        with open_raster(part, **options) as reader:
            readers.append(reader)
    return readers


def checkered(rows: Sequence[int], cols: Sequence[int]) -> list[Window]:
    """Return the windows between cuts at some rows and columns."""
    tops, lefts = itertools.pairwise((0, *rows, HEIGHT)), list(itertools.pairwise((0, *cols, WIDTH)))
    return [Window(top, left, bottom - top, right - left) for top, bottom in tops for left, right in lefts]


@st.composite
def windows(draw: st.DrawFn, height: int = HEIGHT, width: int = WIDTH) -> Window:
    row, col = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(row, col, draw(st.integers(1, height - row)), draw(st.integers(1, width - col)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mosaic")


# Pixels


@pytest.mark.parametrize("rule", ["all", "any"])
@pytest.mark.parametrize("kind", ["plain", "nodata", "mask", "float"])
@pytest.mark.parametrize("transform", [PLACE, ROTATED, Affine(1 / 3, 0, 1e6 / 7, 0, 1 / 3, 1e6 / 3)])
@pytest.mark.parametrize("cuts", [((20, 40), (30, 60)), ((1, 59), (7, 8))])
def test_a_raster_cut_into_nine_files_reads_like_the_uncut_one(
    tmp_path: Path,
    kind: str,
    rule: Literal["all", "any"],
    transform: Affine,
    cuts: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    values = noise(3, HEIGHT, WIDTH, low=0, high=3, dtype="float32" if kind == "float" else "uint8")
    if kind == "float":
        values[values == 1] = math.nan
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        options: dict[str, Any] = {
            "mask": blob() if kind == "mask" else None,
            "nodata": 2 if kind == "nodata" else None,
        }
        path = draw(tmp_path / "whole.tif", values, transform=transform, **options)
        readers = cut(path, checkered(*cuts), nodata_rule=rule)

    with open_raster(path, nodata_rule=rule) as whole, Mosaic(readers) as mosaic:
        assert mosaic.grid == whole.grid
        assert (mosaic.bands, mosaic.dtype, mosaic.count) == (whole.bands, whole.dtype, whole.count)
        assert mosaic.resolution == whole.resolution
        assert mosaic.places == tuple(checkered(*cuts))
        assert mosaic.path == f"{readers[0].path} and 8 more"
        for window in [WHOLE, Window(19, 29, 2, 2), Window(0, 0, 1, 1), Window(55, 3, 5, 80)]:
            assert_same_pixels(mosaic.read(window), whole.read(window))


@settings(max_examples=40)
@given(
    rows=st.lists(st.integers(1, HEIGHT - 1), unique=True, max_size=4).map(sorted),
    cols=st.lists(st.integers(1, WIDTH - 1), unique=True, max_size=4).map(sorted),
    order=st.randoms(use_true_random=False),
    missing=st.integers(0, 3),
    asked=st.lists(windows(), min_size=1, max_size=4),
    rule=st.sampled_from(["all", "any"]),
)
def test_however_a_raster_is_cut_and_whatever_is_missing_the_rest_reads_like_the_uncut_one(
    folder: Path, rows: list[int], cols: list[int], order: Any, missing: int, asked: list[Window], rule: Any
) -> None:
    values = noise(2, HEIGHT, WIDTH, low=0, high=3)
    path = draw(folder / "whole.tif", values, nodata=0)
    parts = checkered(rows, cols)
    order.shuffle(parts)
    parts = parts[: max(1, len(parts) - missing)]
    held = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for part in parts:
        held[part.row : part.row_end, part.col : part.col_end] = True

    with open_raster(path, nodata_rule=rule) as whole, Mosaic(cut(path, parts, nodata_rule=rule)) as mosaic:
        if held.all():
            assert mosaic.grid == whole.grid
        top, left = min(part.row for part in parts), min(part.col for part in parts)
        assert mosaic.grid.first_index == whole.grid.cropped(Window(top, left, 1, 1)).first_index
        for window in asked:
            common = window.intersection(Window(top, left, mosaic.grid.height, mosaic.grid.width))
            if not common.height * common.width:
                continue
            at = np.s_[common.row : common.row_end, common.col : common.col_end]
            expected, found = whole.read(common), mosaic.read(common.shifted(-top, -left))
            np.testing.assert_array_equal(found.values, np.where(held[at], expected.values, 0))
            np.testing.assert_array_equal(found.value_valid, expected.value_valid & held[at])
            np.testing.assert_array_equal(found.valid, expected.valid & held[at])
            assert mosaic.holds_data(common.shifted(-top, -left)) == held[at].any()


@pytest.mark.parametrize("rule", ["all", "any"])
def test_where_rasters_overlap_the_first_that_is_valid_wins(tmp_path: Path, rule: Literal["all", "any"]) -> None:
    values = np.random.default_rng(1).integers(0, 3, (3, 2, HEIGHT, WIDTH)).astype("uint8")
    readers = [
        reader
        for number in range(3)
        for reader in cut(draw(tmp_path / f"{number}.tif", values[number], nodata=0), [WHOLE], nodata_rule=rule)
    ]

    with Mosaic(readers) as mosaic:
        pixels = mosaic.read(WHOLE)

    value_valid = values != 0
    valid = value_valid.any(axis=1) if rule == "all" else value_valid.all(axis=1)
    winner = valid.argmax(axis=0)  # the first raster where none is valid
    assert len(np.unique(winner)) == 3
    rows, cols = np.indices((HEIGHT, WIDTH))
    np.testing.assert_array_equal(pixels.values, np.moveaxis(values[winner, :, rows, cols], -1, 0))
    np.testing.assert_array_equal(pixels.value_valid, np.moveaxis(value_valid[winner, :, rows, cols], -1, 0))
    np.testing.assert_array_equal(pixels.valid, valid.any(axis=0))


def test_a_mosaic_of_one_raster_is_that_raster(tmp_path: Path) -> None:
    path = draw(tmp_path / "one.tif", noise(1, HEIGHT, WIDTH), transform=None, crs=None)

    with open_raster(path) as reader, Mosaic([reader]) as mosaic:
        assert (mosaic.grid, mosaic.path) == (reader.grid, str(path))
        assert_same_pixels(mosaic.read(WHOLE), reader.read(WHOLE))


@pytest.mark.parametrize("window", [Window(-1, 0, 5, 5), Window(0, 86, 5, 5), Window(3, 3, 0, 5)])
def test_a_window_beyond_the_mosaic_is_our_bug(tmp_path: Path, window: Window) -> None:
    readers = cut(draw(tmp_path / "whole.tif", noise(1, HEIGHT, WIDTH)), checkered((20,), ()))

    with Mosaic(readers) as mosaic, pytest.raises(ValueError, match="inside the 60 x 90 raster"):
        mosaic.read(window)


def test_only_files_that_meet_the_window_are_opened_and_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mosaic, "MAX_OPEN", 3)
    path = draw(tmp_path / "whole.tif", noise(1, HEIGHT, WIDTH))
    readers = cut(path, checkered(range(10, 60, 10), range(10, 90, 10)))
    opened, open_now, most = list[str](), set[int](), 0

    class Counted(Reader):
        def __init__(self, path: str, **options: Any) -> None:
            nonlocal most
            super().__init__(path, **options)
            opened.append(path)
            open_now.add(id(self))
            most = max(most, len(open_now))

        def close(self) -> None:
            open_now.discard(id(self))
            super().close()

    monkeypatch.setattr("geonorm.raster.read.Reader", Counted)
    with open_raster(path) as whole, Mosaic(readers) as joined:
        opened.clear()
        open_now.clear()
        joined.read(Window(5, 5, 10, 10))
        assert sorted(opened) == sorted(readers[index].path for index in (0, 1, 9, 10))

        assert_same_pixels(joined.read(WHOLE), whole.read(WHOLE))
    assert most == 3
    assert not open_now


def test_the_file_that_was_not_needed_for_longest_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic, "MAX_OPEN", 2)
    opened = list[str]()

    class Counted(Reader):
        def __init__(self, path: str, **options: Any) -> None:
            super().__init__(path, **options)
            opened.append(path)

    readers = cut(draw(tmp_path / "whole.tif", noise(1, HEIGHT, WIDTH)), checkered((), (30, 60)))
    monkeypatch.setattr("geonorm.raster.read.Reader", Counted)
    with Mosaic(readers) as joined:
        for col in (0, 30, 0, 60, 0, 30):
            joined.read(Window(0, col, 1, 1))

    assert opened == [readers[index].path for index in (0, 1, 2, 1)]


def test_a_file_that_is_replaced_meanwhile_is_said(tmp_path: Path) -> None:
    readers = cut(draw(tmp_path / "whole.tif", noise(1, HEIGHT, WIDTH)), checkered((20,), ()))
    draw(Path(readers[1].path), noise(1, 5, 5))

    with Mosaic(readers) as joined, pytest.raises(RasterError, match="was replaced") as caught:
        joined.read(WHOLE)

    assert readers[1].path in str(caught.value)


def test_a_mosaic_opens_another_for_another_thread(tmp_path: Path) -> None:
    path = draw(tmp_path / "whole.tif", noise(1, HEIGHT, WIDTH))
    with Mosaic(cut(path, checkered((20,), (30,)))) as joined:
        expected = joined.read(WHOLE)

    with joined.reopen() as again:
        assert_same_pixels(again.read(WHOLE), expected)


def test_rasters_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    path = draw(tmp_path / "whole.tif", noise(2, HEIGHT, WIDTH))
    one, other = *cut(path, [WHOLE]), open_raster(path, bands=[1])

    with other, pytest.raises(RasterError, match="differ in grid, bands or type") as caught:
        Mosaic([one, other])
    assert other.path in str(caught.value)
    with pytest.raises(InvalidConfigError, match="at least one"):
        Mosaic([])


# Grids


def grid(transform: Affine = PLACE, crs: CRS | None = UTM, height: int = HEIGHT, width: int = WIDTH) -> Grid:
    return Grid(height, width, crs, transform)


@given(
    transform=st.sampled_from(
        [PLACE, ROTATED, Affine(1e-6, 0, 13.7, 0, -1e-6, 52.1), Affine(0.1, 0, 1e6, 0, 0.4, 7e6)]
    ),
    row=st.integers(-(10**6), 10**6),
    col=st.integers(-(10**6), 10**6),
    apart=st.sampled_from([0.0, 0.009, -0.009]),
)
def test_crops_of_a_raster_share_its_grid(transform: Affine, row: int, col: int, apart: float) -> None:
    crop = grid(transform @ Affine.translation(col + apart, row), height=7, width=5)

    assert same_grid(grid(transform), crop)
    assert same_grid(crop, grid(transform))


@pytest.mark.parametrize(
    "other",
    [
        grid(PLACE @ Affine.translation(0.02, 0)),
        grid(PLACE @ Affine.translation(0, 0.5)),
        grid(PLACE @ Affine.scale(1 + 1e-5)),
        grid(PLACE @ Affine.scale(1.001), height=2, width=2),
        grid(PLACE @ Affine.scale(1, -1)),
        grid(PLACE @ Affine.rotation(0.01)),
        grid(PLACE, CRS.from_epsg(32634)),
        grid(PLACE, None),
        grid(Affine.identity()),
        grid(Affine(0.3, 0, math.nan, 0, -0.3, 0)),
        grid(Affine(0, 0, 1, 0, 0, 1)),
    ],
)
def test_other_pixels_are_another_grid(other: Grid) -> None:
    assert not same_grid(grid(), other)
    assert not same_grid(other, grid())


def test_rasters_without_a_transform_share_no_grid() -> None:
    nowhere = grid(Affine.identity(), None)

    assert not same_grid(nowhere, nowhere)


def test_pixels_that_differ_by_the_rounding_of_a_world_file_are_the_same_only_where_that_does_not_add_up() -> None:
    rounded = PLACE @ Affine.scale(1 + 3e-8)

    assert same_grid(grid(), grid(rounded))
    assert not same_grid(grid(), grid(rounded, height=10**6))
    assert not same_grid(grid(), grid(rounded @ Affine.translation(10**6, 0)))


# Groups


class Placed:
    """What is to be known of a raster that lies somewhere."""

    def __init__(self, window: Window, base: Reader, **changes: Any) -> None:
        self._base = base
        self.grid = replace(grid().cropped(window), **changes)
        self.bands = base.bands

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


@pytest.fixture(scope="module")
def base(folder: Path) -> Reader:
    with open_raster(draw(folder / "base.tif", noise(1, HEIGHT, WIDTH))) as reader:
        return reader


@pytest.mark.parametrize("gap_px", [0, 1, 7])
@given(places=st.lists(windows(), min_size=1, max_size=12), strangers=st.sets(st.integers(0, 11)))
def test_neighbours_of_neighbours_are_one_group(
    base: Reader, gap_px: int, places: list[Window], strangers: set[int]
) -> None:
    places = [replace(place, height=min(place.height, 9), width=min(place.width, 9)) for place in places]
    other = {"crs": CRS.from_epsg(32634)}
    sources = [Placed(p, base, **(other if index in strangers else {})) for index, p in enumerate(places)]

    groups = group_neighbours(sources, gap_px=gap_px)

    def near(one: int, two: int) -> bool:
        a, b = places[one], places[two]
        rows, cols = max(a.row, b.row) - min(a.row_end, b.row_end), max(a.col, b.col) - min(a.col_end, b.col_end)
        return max(rows, cols) <= gap_px and (one in strangers) == (two in strangers)

    labels = list(range(len(places)))
    for _ in places:  # the obvious way: spread the lowest label until nothing changes
        labels = [min(labels[j] for j in range(len(places)) if near(i, j)) for i in range(len(places))]
    expected = [[i for i, label in enumerate(labels) if label == first] for first in sorted(set(labels))]
    assert groups == expected


def test_rasters_that_are_read_differently_stay_alone(tmp_path: Path) -> None:
    path = draw(tmp_path / "whole.tif", noise(2, HEIGHT, WIDTH))
    wider = draw(tmp_path / "wider.tif", noise(2, HEIGHT, WIDTH, dtype="uint16"))
    nowhere = draw(tmp_path / "nowhere.tif", noise(2, HEIGHT, WIDTH), crs=None, transform=None)
    readers = [
        open_raster(path),
        open_raster(path, bands=[2, 1]),
        open_raster(wider),
        open_raster(nowhere),
        open_raster(nowhere),
        open_raster(path),
    ]

    groups = group_neighbours(readers)

    for reader in readers:
        reader.close()
    assert groups == [[0, 5], [1], [2], [3], [4]]


def test_thousands_of_files_are_grouped_quickly(base: Reader) -> None:
    sources = [Placed(Window(row * 500, col * 500, 400, 400), base) for row in range(60) for col in range(60)]

    assert group_neighbours(sources, gap_px=100) == [list(range(3600))]
    assert len(group_neighbours(sources, gap_px=99)) == 3600
