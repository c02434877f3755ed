"""Places where most labels flip, and what the report shows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geonorm.evaluation.places import CELL_PX, PLACE_PX, worst_places
from geonorm.raster.read import as_picture
from geonorm.raster.window import Window
from geonorm.raster.write import write_image

PLACE = Affine(1.0, 0.0, 500_003.0, 0.0, -1.0, 4_000_007.0)


def a_map(path: Path, flips: NDArray[Any]) -> Path:
    write_image(path, np.stack([np.zeros_like(flips), flips]), transform=PLACE, nodata=255)
    return path


def test_places_lie_apart_and_the_first_has_most_flips(tmp_path: Path) -> None:
    flips = np.zeros((900, 1000), np.uint8)
    flips[0:320, 10:14] = 1
    flips[330, 20] = 1
    flips[700:760, 800:820] = 2
    flips[500, 500:510] = 1

    places = worst_places([a_map(tmp_path / "map.tif", flips)], 900, 1000)

    def held(window: Window) -> int:
        part = flips[window.row : window.row_end, window.col : window.col_end]
        return int((part > 0).sum())

    assert [held(place) for place in places[:2]] == [320 * 4, 60 * 20]
    assert {(place.height, place.width) for place in places} == {(PLACE_PX, PLACE_PX)}
    for index, one in enumerate(places):
        assert held(one) > 0
        for other in places[:index]:
            rows = min(one.row_end, other.row_end) - max(one.row, other.row)
            cols = min(one.col_end, other.col_end) - max(one.col, other.col)
            # At the lower and right edge a window is moved inward by less than a cell.
            assert min(rows, cols) < CELL_PX


def test_flips_of_all_maps_count_and_pixels_that_are_not_compared_do_not(tmp_path: Path) -> None:
    one, other = np.zeros((400, 900), np.uint8), np.zeros((400, 900), np.uint8)
    one[0:10, 0:10] = 1
    other[0:10, 600:608] = one[0:10, 600:608] = 1
    one[300:, 300:350] = 255

    [first, second] = worst_places([a_map(tmp_path / "1.tif", one), a_map(tmp_path / "2.tif", other)], 400, 900)

    assert first.col <= 600 < first.col_end
    assert second.col == 0


def test_a_raster_without_flips_has_no_places_and_a_small_one_is_shown_whole(tmp_path: Path) -> None:
    flips = np.zeros((50, 70), np.uint8)

    assert worst_places([a_map(tmp_path / "none.tif", flips)], 50, 70) == []

    flips[20, 20] = 1
    assert worst_places([a_map(tmp_path / "one.tif", flips)], 50, 70) == [Window(0, 0, 50, 70)]


def test_what_does_not_count_has_no_say_in_the_colours_of_a_picture() -> None:
    values = np.linspace(10, 20, 300, dtype=np.float32).reshape(3, 10, 10)
    valid = np.ones_like(values, dtype=np.bool_)
    values[:, 0, 0], valid[:, 0, 0] = -3.4e38, False

    picture = as_picture(values, valid)

    assert picture.shape == (10, 10, 3)
    assert picture[..., 0].min() < 10
    assert picture[..., 0].max() > 245
    assert picture[5:, :, 0].mean() < 200
