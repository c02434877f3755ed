"""Rectangles of pixels, against sets of pixels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geonorm.raster.window import Window

positions, sizes = st.integers(-9, 9), st.integers(0, 9)
windows = st.builds(Window, row=positions, col=positions, height=sizes, width=sizes)


def pixels(window: Window) -> set[tuple[int, int]]:
    """Return the (row, col) of every pixel of the window."""
    rows, cols = range(window.row, window.row_end), range(window.col, window.col_end)
    return {(row, col) for row in rows for col in cols}


@given(window=windows)
def test_a_window_holds_height_times_width_pixels(window: Window) -> None:
    assert len(pixels(window)) == window.height * window.width


@given(first=windows, second=windows)
def test_an_intersection_holds_the_pixels_of_both(first: Window, second: Window) -> None:
    assert pixels(first.intersection(second)) == pixels(first) & pixels(second)


@given(first=windows, second=windows)
def test_a_window_that_lies_in_another_is_their_intersection(first: Window, second: Window) -> None:
    common = first.intersection(second)

    assert not pixels(common) or common.intersection(first) == common


@given(first=windows, second=windows)
def test_windows_that_do_not_meet_share_a_window_without_pixels(first: Window, second: Window) -> None:
    common = first.intersection(second)

    assert common.height >= 0
    assert common.width >= 0


@given(window=windows, height=sizes, width=sizes)
def test_a_window_lies_inside_a_raster_that_holds_all_its_pixels(window: Window, height: int, width: int) -> None:
    if pixels(window) and pixels(window) <= pixels(Window(0, 0, height, width)):
        window.check_inside(height, width)
    else:
        with pytest.raises(ValueError, match=f"inside the {height} x {width} raster"):
            window.check_inside(height, width)


@given(window=windows, rows=positions, cols=positions)
def test_a_shift_moves_every_pixel_and_can_be_undone(window: Window, rows: int, cols: int) -> None:
    shifted = window.shifted(rows, cols)

    assert pixels(shifted) == {(row + rows, col + cols) for row, col in pixels(window)}
    assert shifted.shifted(-rows, -cols) == window


def test_rows_come_before_columns() -> None:
    window = Window(1, 2, 60, 90)

    assert (window.row_end, window.col_end) == (61, 92)
    assert window.shifted(3, 0) == Window(4, 2, 60, 90)
