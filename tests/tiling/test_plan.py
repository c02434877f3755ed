"""Where tiles lie: every pixel in one core, the grid fixed in the world, reads where the network wants them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geonorm.errors import InvalidConfigError
from geonorm.tiling.plan import Axis, Network, Plan
from tests.tiling.grids import networks, plans

many = settings(max_examples=300)


def world_index(plan: Plan, axis: int) -> int:
    """Return the index of the raster's first pixel, counted from a line of the grid."""
    return plan.first_index[axis] - plan.grid_offset_px[axis]


def length_of(plan: Plan, axis: int) -> int:
    """Return rows or columns."""
    return (plan.height, plan.width)[axis]


def whole_end(axis: Axis) -> int:
    """Return the first pixel after the whole-image pass."""
    return axis.whole_start + axis.whole_px


# Cores


@many
@given(plan=plans())
def test_every_pixel_lies_in_one_core(plan: Plan) -> None:
    for number, axis in enumerate(plan.axes):
        spans = list(axis.spans())

        assert spans[0].core_start == 0
        assert spans[-1].core_stop == length_of(plan, number)
        assert all(span.core_start < span.core_stop for span in spans)
        assert all(one.core_stop == other.core_start for one, other in pairwise(spans))


@many
@given(plan=plans())
def test_cores_meet_at_multiples_of_the_core_in_the_world(plan: Plan) -> None:
    for number, axis in enumerate(plan.axes):
        seams = [span.core_start for span in axis.spans()][1:]

        index, core_px = world_index(plan, number), plan.core_px
        expected = [pixel for pixel in range(1, length_of(plan, number)) if (index + pixel) % core_px == 0]
        assert seams == expected


@given(plan=plans(), row=st.integers(0, 149), col=st.integers(0, 149))
def test_a_crop_has_the_seams_of_the_raster(plan: Plan, row: int, col: int) -> None:
    row, col = row % plan.height, col % plan.width
    index = (plan.first_index[0] + row, plan.first_index[1] + col)
    crop = replace(plan, height=plan.height - row, width=plan.width - col, first_index=index)

    for first, ours, theirs in zip((row, col), plan.axes, crop.axes, strict=True):
        seams = {span.core_start for span in ours.spans() if span.core_start > first}
        assert {span.core_start + first for span in theirs.spans()} - {first} == seams


@given(plan=plans(), steps=st.integers(-5, 5))
def test_moving_the_grid_by_whole_cores_changes_nothing(plan: Plan, steps: int) -> None:
    rows, cols = plan.grid_offset_px
    moved = replace(plan, grid_offset_px=(rows + steps * plan.core_px, cols - steps * plan.core_px))

    for ours, theirs in zip(plan.axes, moved.axes, strict=True):
        assert list(ours.spans()) == list(theirs.spans())
    assert plan.whole() == moved.whole()


@given(plan=plans())
def test_the_number_of_tiles_is_the_number_of_cores(plan: Plan) -> None:
    rows, cols = (list(axis.spans()) for axis in plan.axes)

    assert [axis.num_cores for axis in plan.axes] == [len(rows), len(cols)]
    assert plan.num_tiles == len(rows) * len(cols)


def test_a_grid_of_16_px_over_40_px_that_begin_at_15() -> None:
    plan = Plan(height=40, width=40, core_px=16, first_index=(15, -1))

    for axis in plan.axes:
        cores = [(span.core_start, span.core_stop) for span in axis.spans()]
        assert cores == [(0, 1), (1, 17), (17, 33), (33, 40)]


def test_an_offset_moves_the_grid_down_and_to_the_right() -> None:
    plan = Plan(height=40, width=40, core_px=16, grid_offset_px=(3, 0))

    rows, cols = ([span.core_start for span in axis.spans()] for axis in plan.axes)
    assert (rows, cols) == ([0, 3, 19, 35], [0, 16, 32])


# Reads


@many
@given(plan=plans())
def test_reads_begin_where_cells_of_the_whole_pass_do(plan: Plan) -> None:
    for axis in plan.axes:
        for span in axis.spans():
            assert (span.read_start - axis.whole_start) % plan.network.stride_px == 0


@many
@given(plan=plans())
def test_reads_hold_core_and_halo_unless_the_whole_pass_ends_there(plan: Plan) -> None:
    for number, axis in enumerate(plan.axes):
        for span in axis.spans():
            # A core that the raster's edge cuts is still surrounded from where it would begin.
            first = span.core_start - (world_index(plan, number) + span.core_start) % plan.core_px
            assert span.read_start <= max(axis.whole_start, first - plan.halo_px)
            assert span.read_start + span.read_px >= min(whole_end(axis), first + plan.core_px + plan.halo_px)


@many
@given(plan=plans())
def test_reads_never_leave_the_whole_pass(plan: Plan) -> None:
    for axis in plan.axes:
        for span in axis.spans():
            assert axis.whole_start <= span.read_start
            assert span.read_start + span.read_px <= whole_end(axis)


@many
@given(plan=plans())
def test_all_reads_have_one_size_that_the_network_takes(plan: Plan) -> None:
    network = plan.network
    for axis in plan.axes:
        (read_px,) = {span.read_px for span in axis.spans()}

        assert read_px == min(axis.read_px, axis.whole_px)
        assert read_px >= network.least_px
        assert (read_px - network.least_px) % network.stride_px == 0


@many
@given(plan=plans())
def test_the_output_of_a_read_holds_its_core(plan: Plan) -> None:
    margin_px = plan.network.margin_px
    for axis in plan.axes:
        for span in axis.spans():
            assert span.read_start + margin_px <= span.core_start
            assert span.core_stop <= span.read_start + span.read_px - margin_px


@given(plan=plans())
def test_reads_are_no_larger_than_the_strides_ask_for(plan: Plan) -> None:
    network, halo_px = plan.network, max(plan.halo_px, plan.network.margin_px)

    # A stride at either end, and what the network adds to reach a side that it takes.
    bound = max(plan.core_px + 2 * (halo_px + network.stride_px - 1) + network.stride_px - 1, network.least_px)
    assert plan.read_px <= bound


# The whole-image pass


@many
@given(plan=plans())
def test_the_whole_pass_begins_less_than_a_cell_before_the_raster(plan: Plan) -> None:
    stride_px, margin_px = plan.network.stride_px, plan.network.margin_px
    for number, axis in enumerate(plan.axes):
        first = axis.whole_start + margin_px

        assert -stride_px < first <= 0
        assert (world_index(plan, number) + first) % stride_px == 0


@many
@given(plan=plans())
def test_the_whole_pass_is_the_smallest_whose_output_holds_the_raster(plan: Plan) -> None:
    network = plan.network
    for number, axis in enumerate(plan.axes):
        needed_px = length_of(plan, number) + network.margin_px - axis.whole_start
        sides = range(network.least_px, needed_px + network.stride_px + network.least_px, network.stride_px)

        assert axis.whole_px == next(side for side in sides if side >= needed_px)


@given(plan=plans())
def test_the_whole_pass_lies_on_both_axes(plan: Plan) -> None:
    whole, (rows, cols) = plan.whole(), plan.axes

    assert (whole.row, whole.col) == (rows.whole_start, cols.whole_start)
    assert (whole.height, whole.width) == (rows.whole_px, cols.whole_px)


@given(network=networks(), needed_px=st.integers(0, 100))
def test_the_side_of_a_network_is_the_smallest_that_it_takes(network: Network, needed_px: int) -> None:
    sides = range(network.least_px, 200, network.stride_px)

    assert network.side_px(needed_px) == next(side for side in sides if side >= needed_px)


# Costs and errors


def test_the_overhead_is_read_over_core_squared() -> None:
    plan = Plan(height=1000, width=2000, core_px=64, halo_px=32)

    assert plan.read_px == 128
    assert plan.overhead == 4


@pytest.mark.parametrize(
    ("core_px", "stride_px", "hint"), [(100, 16, 96), (8, 16, 16), (0, 1, 1), (-16, 16, 16), (0, 8, 8)]
)
def test_a_core_that_is_no_multiple_of_the_stride_is_one_line(core_px: int, stride_px: int, hint: int) -> None:
    with pytest.raises(InvalidConfigError, match=rf"got {core_px}\. Try {hint}\.$") as caught:
        Plan(height=9, width=9, core_px=core_px, network=Network(stride_px=stride_px))

    assert f"{stride_px} px" in str(caught.value)
    assert "\n" not in str(caught.value)
    Plan(height=9, width=9, core_px=hint, network=Network(stride_px=stride_px))


def test_a_negative_halo_is_one_line() -> None:
    with pytest.raises(InvalidConfigError, match="halo_px must not be negative, got -1"):
        Plan(height=9, width=9, halo_px=-1)
