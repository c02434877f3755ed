"""The law for rows in a stream: strips are those of the whole image, wherever a run begins and however it is cut."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from geonorm.models import TileGeometry, UNet, tile_geometry
from geonorm.models.predictor import predictor
from geonorm.models.rescale import rescale_of
from geonorm.models.row_predictor import RowPredictor
from geonorm.raster.window import Window
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.engine import Strip, predict_strips, predict_whole
from geonorm.tiling.plan import Plan
from geonorm.tiling.rows import RowPlan, predict_rows
from geonorm.tiling.supply import Supply
from tests.inference.rasters import noise
from tests.models.networks import local, torch_threads, unet
from tests.tiling.grids import reader

CPU = torch.device("cpu")
NETWORKS: dict[str, Callable[[], UNet]] = {
    "BN": partial(unet, depth=2),
    "BN, valid": partial(unet, depth=2, padding="valid"),
    "5 px": partial(unet, local(window_px=5)),
    "5 px, valid": partial(unet, local(window_px=5), padding="valid"),
    "9 px, ends, one band": partial(unet, local(window_px=9), depth=2, bands=1, norm_at="ends"),
    "4 x 3 cells, clip": partial(unet, local(window_cells=(4, 3), border="clip"), norm_at="block"),
    "5 px, blur": partial(unet, local(window_px=5), downsample="maxblur"),
}


def keep(logits: Tensor) -> Tensor:
    """Keep the logits, where labels would hide small differences."""
    return logits


@cache
def made(name: str) -> tuple[UNet, TileGeometry, RowPredictor]:
    """Return a network, its geometry, and the same by rows."""
    network = NETWORKS[name]()
    geometry = tile_geometry(network)
    return network, geometry, RowPredictor(network, geometry, CPU)


def plan_of(geometry: TileGeometry, height: int, width: int, **settings: Any) -> Plan:
    """Return a plan with the exact halo."""
    assert geometry.core_halo_px is not None
    return Plan(height=height, width=width, halo_px=geometry.core_halo_px, network=network_of(geometry), **settings)


def streamed(
    name: str,
    image: NDArray[Any],
    plan: Plan,
    *,
    step_px: int,
    block_px: int | None = None,
    skip: Collection[int] = (),
    on_read: Callable[[Window], None] = lambda window: None,
    **settings: Any,
) -> list[Strip]:
    """Return the strips of an image in which 0 is no data."""
    network, _, rows = made(name)
    read = reader(image, value_valid=image != 0, on_read=on_read)
    with Supply([read], plan, block_rows=7, dtype=image.dtype, fill=mean_of(network)) as supply:
        found = predict_rows(
            supply,
            rows,
            plan,
            RowPlan(step_px, block_px),
            blank=lambda height: torch.zeros(2, height, plan.width),
            finish=keep,
            skip=skip,
            **settings,
        )
        return list(found)


def mean_of(network: nn.Module) -> Tensor:
    """Return what pixels without data hold."""
    return rescale_of(network).mean


def whole(name: str, image: NDArray[Any], plan: Plan) -> Tensor:
    """Return the logits of the whole-image pass."""
    network = made(name)[0]
    read = reader(image, value_valid=image != 0)
    return predict_whole(read, predictor(network, CPU), plan, fill=mean_of(network), finish=keep).output


def together(strips: list[Strip]) -> Tensor:
    """Return strips as one raster."""
    return torch.cat([strip.output for strip in strips], dim=-2)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=12, deadline=None)
@given(
    cells=st.integers(2, 20),
    step=st.integers(1, 30),
    block=st.sampled_from([None, None, 1, 2, 5]),
    first_index=st.tuples(st.integers(-100, 100), st.integers(-100, 100)),
    grid_offset_px=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    height=st.integers(1, 150),
    width=st.integers(1, 90),
    with_holes=st.booleans(),
    data=st.data(),
)
def test_rows_give_the_bits_of_the_whole_image(
    name: str,
    cells: int,
    step: int,
    block: int | None,
    first_index: tuple[int, int],
    grid_offset_px: tuple[int, int],
    height: int,
    width: int,
    with_holes: bool,
    data: st.DataObject,
) -> None:
    network, geometry, _ = made(name)
    image = noise(len(mean_of(network)), height, width)
    if with_holes:
        image[:, 10:70, 15:40] = 0
    core_px = cells * geometry.stride_px
    plan = plan_of(geometry, height, width, core_px=core_px, first_index=first_index, grid_offset_px=grid_offset_px)
    starts = [span.core_start for span in plan.axes[0].spans()]
    skip = data.draw(st.sets(st.sampled_from(starts)))

    strips = streamed(
        name,
        image,
        plan,
        step_px=step * geometry.stride_px,
        block_px=None if block is None else block * core_px,
        skip=skip,
    )

    expected, counts = whole(name, image, plan), (image != 0).any(axis=0)
    assert [strip.row for strip in strips] == [start for start in starts if start not in skip]
    for strip in strips:
        rows = slice(strip.row, strip.row + strip.rows)
        np.testing.assert_array_equal(strip.valid, counts[rows])
        valid = torch.from_numpy(strip.valid)
        assert torch.equal(strip.output[:, valid], expected[:, rows][:, valid])
        for col in plan.axes[1].spans():  # as tiles have it
            if not strip.valid[:, col.core_start : col.core_stop].any():
                assert not strip.output[..., col.core_start : col.core_stop].any()


def test_two_threads_give_the_bits_of_one() -> None:
    image = noise(3, 60, 45)
    plan = plan_of(made("5 px")[1], 60, 45, core_px=24)
    with torch_threads(1):
        expected = whole("5 px", image, plan)

    with torch_threads(2):
        assert torch.equal(together(streamed("5 px", image, plan, step_px=8)), expected)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("step_px", [16, 400])
def test_windows_of_91_px_find_their_neighbours_at_the_edges(padding: Any, step_px: int) -> None:
    network = unet(local(window_px=91), width=2, norm_at="ends", padding=padding)
    geometry, image = tile_geometry(network), noise(3, 300, 130)
    plan = plan_of(geometry, 300, 130, core_px=48, first_index=(47, 95))  # first cores of one pixel
    read, fill = reader(image), mean_of(network)
    expected = predict_whole(read, predictor(network, CPU), plan, fill=fill, finish=keep).output

    with Supply([read], plan, block_rows=7, dtype=image.dtype, fill=fill) as supply:
        rows, blank = RowPredictor(network, geometry, CPU), torch.zeros
        found = [*predict_rows(supply, rows, plan, RowPlan(step_px), blank=blank, finish=keep, skip=(0, 1, 145))]

    for strip in found:
        assert torch.equal(strip.output, expected[:, strip.row : strip.row + strip.rows])
    assert len(found) == 5


def test_strips_that_are_taken_up_again_begin_a_halo_above(tmp_path: Path) -> None:
    geometry = made("5 px")[1]
    image, seen = noise(3, 400, 40), list[Window]()
    plan = plan_of(geometry, 400, 40, core_px=20)

    strips = streamed("5 px", image, plan, step_px=8, skip=range(0, 200, 20), on_read=seen.append)

    assert [strip.row for strip in strips] == [*range(200, 400, 20)]
    first = min(window.row for window in seen)
    assert first <= 200 - plan.halo_px
    assert first > 200 - plan.halo_px - 40  # to a chunk of the file
    assert torch.equal(together(strips), whole("5 px", image, plan)[:, 200:])


def test_blocks_of_columns_read_their_own_columns() -> None:
    geometry = made("BN")[1]
    image, seen = noise(3, 60, 400), list[Window]()
    plan = plan_of(geometry, 60, 400, core_px=40)

    strips = streamed("BN", image, plan, step_px=16, block_px=80, on_read=seen.append)

    assert torch.equal(together(strips), whole("BN", image, plan))
    assert max(window.width for window in seen) <= 80 + 2 * plan.axes[1].aligned_halo_px
    assert len({window.col for window in seen}) == 5


def test_a_gap_wider_than_two_halos_is_not_computed() -> None:
    geometry = made("5 px")[1]
    plan = plan_of(geometry, 400, 40, core_px=20)
    computed: list[int] = []
    rows = made("5 px")[2]

    def note(height: int) -> Any:
        computed.append(height)
        return rows(height)

    image = noise(3, 400, 40)
    with Supply([reader(image)], plan, block_rows=7, dtype=image.dtype, fill=mean_of(made("5 px")[0])) as supply:
        wanted = {0, 20, 60, 300}
        skip = {*range(0, 400, 20)} - wanted
        found = predict_rows(supply, note, plan, RowPlan(8), blank=torch.zeros, finish=keep, skip=skip)
        assert [strip.row for strip in found] == sorted(wanted)

    assert len(computed) == 2  # the gap of one strip goes through
    assert sum(computed) < 250


def test_strips_that_are_known_to_be_empty_or_outside_the_area_do_not_go_through() -> None:
    network, geometry, rows = made("BN")
    plan, image = plan_of(geometry, 400, 120, core_px=20), noise(3, 400, 120)
    widths: list[int] = []

    def counts(window: Window) -> NDArray[np.bool_]:
        place = np.add.outer(np.arange(window.row, window.row_end) * 1000, np.arange(window.col, window.col_end))
        return (place // 1000 >= 290) & (place % 1000 < 33)

    class Watched:
        def __init__(self, height: int) -> None:
            self.run = rows(height)

        def push(self, part: Tensor) -> Tensor | None:
            widths.append(part.shape[3])
            return self.run.push(part)

    done: list[int] = []
    with Supply(
        [reader(image)],
        plan,
        block_rows=7,
        dtype=image.dtype,
        fill=mean_of(network),
        holds_data=lambda window: window.row >= 100,
    ) as supply:
        found = [
            *predict_rows(
                supply,
                Watched,
                plan,
                RowPlan(8),
                blank=lambda height: torch.zeros(2, height, 120),
                finish=keep,
                counts=counts,
                on_rows=done.append,
            )
        ]

    assert [strip.row for strip in found] == [*range(0, 400, 20)]
    assert sum(done) == 400
    assert max(widths) < 120  # columns of the area and a halo
    expected = whole("BN", image, plan)
    for strip in found:
        rows_of = slice(strip.row, strip.row + strip.rows)
        np.testing.assert_array_equal(strip.valid, counts(Window(strip.row, 0, strip.rows, 120)))
        valid = torch.from_numpy(strip.valid)
        assert torch.equal(strip.output[:, valid], expected[:, rows_of][:, valid])


@pytest.mark.parametrize("core_px", [20, 40])
def test_rows_and_tiles_give_the_same_strips(core_px: int) -> None:
    network, geometry, _ = made("4 x 3 cells, clip")
    image = noise(3, 130, 90)
    image[:, 30:70, 15:90] = 0
    plan = plan_of(geometry, 130, 90, core_px=core_px, first_index=(-5, 13))
    read = reader(image, value_valid=image != 0)
    tiles = list(predict_strips(read, predictor(network, CPU), plan, fill=mean_of(network), finish=keep))

    found = streamed("4 x 3 cells, clip", image, plan, step_px=16)

    for strip, expected in zip(found, tiles, strict=True):
        assert (strip.row, strip.rows) == (expected.row, expected.rows)
        assert torch.equal(strip.output, expected.output)
        np.testing.assert_array_equal(strip.valid, expected.valid)
