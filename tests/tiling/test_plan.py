"""Where tiles lie: every pixel in one core, the grid fixed in the world, reads where the network wants them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geonorm.errors import InvalidConfigError
from geonorm.tiling.plan import Axis, Network, Plan, Span, Stretch
from tests.tiling.grids import networks, plans

many = settings(max_examples=300)


def world_index(plan: Plan, axis: int) -> int:
    """Return the index of the raster's first pixel, counted from a line of the grid."""
    return plan.first_index[axis] - plan.grid_offset_px[axis]


def length_of(plan: Plan, axis: int) -> int:
    """Return rows or columns."""
    return (plan.height, plan.width)[axis]


def phases_of(axis: Axis) -> Iterator[tuple[Stretch, list[tuple[Span, Stretch]]]]:
    """Yield what the whole-image pass reads at each phase, and the cores with their reads at that phase."""
    spans = list(axis.spans())
    for number, whole in enumerate(axis.wholes):
        yield whole, [(span, span.reads[number]) for span in spans]


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
        assert ours.wholes == theirs.wholes


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
        for whole, reads in phases_of(axis):
            assert all((read.start - whole.start) % plan.network.stride_px == 0 for _, read in reads)


@many
@given(plan=plans())
def test_reads_hold_the_cells_of_the_core_and_the_halo_unless_the_whole_pass_ends_there(plan: Plan) -> None:
    stride_px = plan.network.stride_px
    for number, axis in enumerate(plan.axes):
        for whole, reads in phases_of(axis):
            for span, read in reads:
                # A core that the raster's edge cuts is still surrounded from where it would begin.
                first = span.core_start - (world_index(plan, number) + span.core_start) % plan.core_px
                cell = whole.start + plan.network.margin_px  # where one begins
                first_cell = first - (first - cell) % stride_px
                last_cell = first + plan.core_px + (cell - first - plan.core_px) % stride_px
                assert read.start <= max(whole.start, first_cell - plan.halo_px)
                assert read.stop >= min(whole.stop, last_cell + plan.halo_px)


@many
@given(plan=plans())
def test_reads_never_leave_the_whole_pass(plan: Plan) -> None:
    for axis in plan.axes:
        for whole, reads in phases_of(axis):
            assert all(whole.start <= read.start <= read.stop <= whole.stop for _, read in reads)


@many
@given(plan=plans())
def test_all_reads_of_a_phase_have_one_size_that_the_network_takes(plan: Plan) -> None:
    network = plan.network
    for axis in plan.axes:
        for expected_px, (whole, reads) in zip(axis.reads_px, phases_of(axis), strict=True):
            (read_px,) = {read.px for _, read in reads}

            assert read_px == min(expected_px, whole.px)
            assert read_px >= network.least_px
            assert (read_px - network.least_px) % network.stride_px == 0


@many
@given(plan=plans())
def test_the_output_of_every_read_holds_its_core(plan: Plan) -> None:
    margin_px = plan.network.margin_px
    for axis in plan.axes:
        for span in axis.spans():
            for read in span.reads:
                assert read.start + margin_px <= span.core_start
                assert span.core_stop <= read.stop - margin_px


@given(plan=plans())
def test_reads_are_no_larger_than_the_strides_ask_for(plan: Plan) -> None:
    network, halo_px = plan.network, max(plan.halo_px, plan.network.margin_px)

    # A stride at either end, one more for a core that begins within a cell, and what the network adds to reach a side
    # that it takes.
    core_px = plan.core_px + (network.stride_px if plan.phases > 1 else 0)
    bound = max(core_px + 2 * (halo_px + network.stride_px - 1) + network.stride_px - 1, network.least_px)
    assert plan.read_px <= bound


# Phases


@many
@given(plan=plans(), steps=st.tuples(st.integers(-9, 9), st.integers(-9, 9)))
def test_a_grid_that_moves_by_steps_of_its_anchor_leaves_the_cells_where_they_are_in_the_same_order(
    plan: Plan, steps: tuple[int, int]
) -> None:
    rows, cols = (offset + step * plan.anchor_px for offset, step in zip(plan.grid_offset_px, steps, strict=True))
    moved = replace(plan, grid_offset_px=(rows, cols))

    for ours, theirs in zip(plan.axes, moved.axes, strict=True):
        assert ours.wholes == theirs.wholes


@many
@given(plan=plans(), move=st.tuples(st.integers(-9, 9), st.integers(-9, 9)))
def test_with_all_phases_the_grid_may_move_by_any_number_of_pixels(plan: Plan, move: tuple[int, int]) -> None:
    plan = replace(plan, phases=plan.network.stride_px)
    rows, cols = (offset + pixels for offset, pixels in zip(plan.grid_offset_px, move, strict=True))

    for ours, theirs in zip(plan.axes, replace(plan, grid_offset_px=(rows, cols)).axes, strict=True):
        assert ours.wholes == theirs.wholes


@many
@given(plan=plans())
def test_phases_are_those_of_moved_grids_ordered_by_their_place_in_the_world(plan: Plan) -> None:
    stride_px, margin_px = plan.network.stride_px, plan.network.margin_px
    for number, axis in enumerate(plan.axes):
        offset = [0, 0]
        moved = []
        for phase in axis.phases_px:
            offset[number] = plan.grid_offset_px[number] + phase
            (whole,) = replace(plan, phases=1, grid_offset_px=(offset[0], offset[1])).axes[number].wholes
            moved.append(((plan.first_index[number] + whole.start + margin_px) % stride_px, whole))

        assert list(axis.wholes) == [whole for _, whole in sorted(moved, key=lambda pair: pair[0])]


@many
@given(plan=plans())
def test_poolings_of_smaller_strides_meet_each_of_their_phases_equally_often(plan: Plan) -> None:
    for axis in plan.axes:
        assert 0 in axis.phases_px
        assert len({*axis.phases_px}) == plan.phases
        for stride_px in (px for px in range(1, plan.phases + 1) if plan.phases % px == 0):
            met = Counter(phase % stride_px for phase in axis.phases_px)
            assert [*met.values()] == [plan.phases // stride_px] * stride_px


@pytest.mark.parametrize(
    ("phases", "expected"), [(1, [0]), (2, [0, 9]), (4, [0, 5, 10, 15]), (16, [*range(16)])], ids=str
)
def test_few_phases_are_spread_over_the_stride(phases: int, expected: list[int]) -> None:
    plan = Plan(height=9, width=9, network=Network(stride_px=16), phases=phases)

    assert [list(axis.phases_px) for axis in plan.axes] == [expected, expected]


def test_a_core_of_16_px_read_at_two_phases_of_four() -> None:
    plan = Plan(height=80, width=80, core_px=16, halo_px=3, network=Network(stride_px=4, least_px=4), phases=2)

    reads = [[(read.start, read.px) for read in span.reads] for span in plan.axes[0].spans()]

    # At phase 3 cells begin at -1, 3, 7, ...; the whole-image pass begins at -1 and ends at 83.
    assert reads == [
        [(0, 24), (-1, 28)],
        [(12, 24), (11, 28)],
        [(28, 24), (27, 28)],
        [(44, 24), (43, 28)],
        [(56, 24), (55, 28)],
    ]
    assert (plan.read_px, plan.num_phases, plan.anchor_px) == (28, 4, 4)


# The whole-image pass


@many
@given(plan=plans())
def test_the_whole_pass_begins_less_than_a_cell_before_the_raster(plan: Plan) -> None:
    stride_px, margin_px = plan.network.stride_px, plan.network.margin_px
    for axis in plan.axes:
        assert len(axis.wholes) == plan.phases
        for whole in axis.wholes:
            first = whole.start + margin_px

            assert -stride_px < first <= 0
    if plan.phases == 1:
        assert all((axis.index + axis.wholes[0].start + margin_px) % stride_px == 0 for axis in plan.axes)


@many
@given(plan=plans())
def test_the_whole_pass_is_the_smallest_whose_output_holds_the_raster(plan: Plan) -> None:
    network = plan.network
    for number, axis in enumerate(plan.axes):
        for whole in axis.wholes:
            needed_px = length_of(plan, number) + network.margin_px - whole.start
            sides = range(network.least_px, needed_px + network.stride_px + network.least_px, network.stride_px)

            assert whole.px == next(side for side in sides if side >= needed_px)


@given(network=networks(), needed_px=st.integers(0, 100))
def test_the_side_of_a_network_is_the_smallest_that_it_takes(network: Network, needed_px: int) -> None:
    sides = range(network.least_px, 200, network.stride_px)

    assert network.side_px(needed_px) == next(side for side in sides if side >= needed_px)


# Costs and errors


def test_the_overhead_is_read_over_core_squared() -> None:
    plan = Plan(height=1000, width=2000, core_px=64, halo_px=32)

    assert plan.read_px == 128
    assert plan.overhead == 4


def test_the_overhead_of_several_phases_is_that_of_one_on_average() -> None:
    plan = Plan(height=900, width=900, core_px=64, halo_px=32, network=Network(stride_px=16, least_px=16), phases=2)

    assert plan.overhead == (128**2 + 2 * 128 * 144 + 144**2) / 4 / 64**2


@pytest.mark.parametrize("phases", [0, -1, 3, 8])
def test_phases_that_are_not_spread_evenly_are_one_line(phases: int) -> None:
    with pytest.raises(InvalidConfigError, match=r"Take one of 1 x 1 = 1, 2 x 2 = 4, 4 x 4 = 16\.$") as caught:
        Plan(height=9, width=9, network=Network(stride_px=4), phases=phases)

    assert "stride of 4 px" in str(caught.value)
    assert "\n" not in str(caught.value)


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
