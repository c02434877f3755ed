"""Which halo is taken, what it is held against, and what the user is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from geonorm.errors import InvalidConfigError, name_some
from geonorm.inference.halo import (
    AFFORDABLE_OVERHEAD,
    MISMATCH_TOLERANCE,
    HaloChoice,
    affordable_core_px,
    choose_halo,
    mismatch_of,
    sampled_cores,
)
from geonorm.models import TileGeometry
from geonorm.tiling.plan import Network, Plan
from tests.tiling.grids import reader

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 300, 400)).astype("uint8")
LARGE = np.random.default_rng(0).integers(0, 256, (1, 900, 1000)).astype("uint8")
EXACT = TileGeometry(stride_px=1, halo_px=20, core_halo_px=20, margin_px=0, unbounded=(), local_halo_px=20, least_px=1)
UNBOUNDED = replace(EXACT, halo_px=None, core_halo_px=None, unbounded=("body.3 (GroupNorm)", "head: mean"))


def above_the_mean_of_41_px(tiles: Tensor) -> Tensor:
    """Label by the mean around each pixel: 20 px far."""
    tiles = tiles.float()
    means = avg_pool2d(avg_pool2d(tiles, (41, 1), 1, (20, 0)), (1, 41), 1, (0, 20))
    return torch.cat([torch.full_like(tiles, 127.5), means], dim=1)


def above_the_mean_of_all(tiles: Tensor) -> Tensor:
    """Label by the mean of all there is to see."""
    tiles = tiles.float()
    return torch.cat([tiles.mean((2, 3), keepdim=True).expand_as(tiles), avg_pool2d(tiles, 9, 1, 4)], dim=1)


def choose(
    halo: Any,
    geometry: TileGeometry,
    predict: Callable[[Tensor], Tensor],
    *,
    image: NDArray[np.uint8] = IMAGE,
    core_px: int = 64,
    on_cores: Callable[[int, int], None] = lambda cores, most: None,
) -> HaloChoice:
    """Return the choice for one image."""
    plan = Plan(height=image.shape[1], width=image.shape[2], core_px=core_px)
    fill = torch.zeros(1)
    return choose_halo(halo, geometry, plan, read=reader(image), predict=predict, fill=fill, on_cores=on_cores)


def never(tiles: Tensor) -> Tensor:
    """Stand for a network that must not be asked."""
    raise AssertionError("nothing was to be measured")


@pytest.mark.parametrize("halo", ["auto", "exact", 20, 33])
def test_an_exact_halo_that_is_cheap_is_taken_without_measuring(halo: Any) -> None:
    choice = choose(halo, EXACT, never)

    assert (choice.kind, choice.halo_px) == ("exact", halo if isinstance(halo, int) else 20)
    assert choice.met


def test_a_dear_exact_halo_is_taken_only_if_asked_for() -> None:
    far = replace(EXACT, core_halo_px=90)

    assert choose("exact", far, never, core_px=64).kind == "exact"
    assert choose("auto", far, above_the_mean_of_41_px, core_px=64).halo_px == 48
    assert choose("auto", far, never, core_px=180).kind == "exact"


def test_the_measured_halo_is_a_step_more_than_the_smallest_that_keeps_the_tolerance() -> None:
    choice = choose("measured", UNBOUNDED, above_the_mean_of_41_px)

    assert (choice.kind, choice.halo_px, choice.mismatch) == ("measured", 48, 0)  # 32 px would do
    assert choice.reference_px == 512
    assert choice.met
    assert "48 px" in choice.why
    assert "on the 8 cores looked at" in choice.why
    assert "(under the tolerance" in choice.why


def test_a_step_more_than_all_smaller_ones_is_the_exact_halo() -> None:
    choice = choose("measured", EXACT, above_the_mean_of_41_px)

    assert (choice.kind, choice.halo_px, choice.reference_px) == ("exact", 20, 20)
    assert "20 px, the exact one" in choice.why


def test_a_network_that_sees_nothing_around_a_pixel_gets_a_halo_all_the_same() -> None:
    choice = choose("measured", UNBOUNDED, lambda tiles: torch.cat([tiles.float(), 255 - tiles.float()], dim=1))

    assert choice.halo_px == 16


def test_a_step_more_reads_more_whatever_the_stride() -> None:
    seen: list[int] = []
    plan = Plan(height=300, width=400, core_px=64, network=Network(stride_px=32, least_px=32))
    geometry = replace(UNBOUNDED, stride_px=32)

    def near(tiles: Tensor) -> Tensor:
        seen.append(tiles.shape[-1])
        return above_the_mean_of_41_px(tiles)

    choice = choose_halo("measured", geometry, plan, read=reader(IMAGE), predict=near, fill=torch.zeros(1))

    assert choice.halo_px > 32  # 16 and 32 px read the same, and would do
    assert list(dict.fromkeys(seen))[1:] == [64, 128, 192]  # the least, twice 32 px, twice 64 px beside the core


def test_what_lies_off_the_diagonal_is_measured() -> None:
    image = np.zeros((1, 512, 512), np.uint8)
    image[:, :256, 256:] = np.random.default_rng(0).integers(0, 256, (256, 256))

    choice = choose("measured", UNBOUNDED, above_the_mean_of_41_px, image=image)

    assert choice.halo_px == 48


@pytest.mark.parametrize(("first", "shape"), [((3, 5), (300, 400)), ((63, 1), (200, 900)), ((10, 20), (50, 40))])
def test_whole_cores_are_looked_at_before_those_that_an_edge_cuts(
    first: tuple[int, int], shape: tuple[int, int]
) -> None:
    plan = Plan(height=shape[0], width=shape[1], core_px=64, first_index=first)
    rows, cols = ([span.core_stop - span.core_start for span in axis.spans()] for axis in plan.axes)
    whole = {(row, col) for row in range(len(rows)) for col in range(len(cols)) if rows[row] == cols[col] == 64}

    found = list(sampled_cores(plan))

    assert len(found) == len(set(found)) == min(8, len(rows) * len(cols))
    assert len(whole & {*found}) == min(8, len(whole))


@given(rows=st.integers(9, 40), cols=st.integers(9, 40))
def test_the_cores_looked_at_lie_in_every_quarter_of_a_raster(rows: int, cols: int) -> None:
    found = list(sampled_cores(Plan(height=rows, width=cols, core_px=1)))

    assert {(2 * row >= rows, 2 * col >= cols) for row, col in found} == {
        *((low, right) for low in (False, True) for right in (False, True))
    }


def test_where_no_halo_keeps_the_tolerance_the_user_is_told() -> None:
    choice = choose("auto", UNBOUNDED, above_the_mean_of_all, image=LARGE)

    assert choice.kind == "measured"
    assert not choice.met
    assert choice.mismatch is not None
    assert choice.mismatch > MISMATCH_TOLERANCE
    assert choice.halo_px == UNBOUNDED.local_halo_px
    assert "NOT under the tolerance" in choice.why


def test_cores_are_counted_as_they_are_measured() -> None:
    counted: list[tuple[int, int]] = []
    asked: list[int] = []

    def near(tiles: Tensor) -> Tensor:
        asked.append(1)
        return above_the_mean_of_41_px(tiles)

    choose("measured", UNBOUNDED, near, on_cores=lambda cores, most: counted.append((cores, most)))

    assert sum(cores for cores, _ in counted) == 8 * 5  # of the reference, 0, 16, 32 and 48 px
    assert {most for _, most in counted} == {8 * 12}  # of the reference, ten smaller ones, and the one taken again
    assert len(asked) < 8 * 5 - 8  # 0 and 16 px fail on their first core


@pytest.mark.parametrize(("halo_px", "geometry"), [(0, EXACT), (19, EXACT), (500, UNBOUNDED)])
def test_a_halo_that_is_not_exact_says_that_labels_may_depend_on_the_tiles(
    halo_px: int, geometry: TileGeometry
) -> None:
    choice = choose(halo_px, geometry, never)

    assert (choice.kind, choice.halo_px) == ("given", halo_px)


@pytest.mark.parametrize(
    ("names", "is_advised"),
    [
        (("body.3 (GroupNorm)", "body.5 (InstanceNorm)"), True),
        (("body.3 (GroupNorm)", "head: mean"), False),
    ],
)
def test_statistics_of_the_whole_raster_are_advised_where_they_would_do(
    names: tuple[str, ...], is_advised: bool
) -> None:
    with pytest.raises(InvalidConfigError, match="Take --halo measured") as caught:
        choose("exact", replace(UNBOUNDED, unbounded=names), never)

    assert ("--global_stats" in str(caught.value)) == is_advised


def test_where_nothing_is_exact_exact_is_refused_by_name() -> None:
    with pytest.raises(InvalidConfigError, match=r"body\.3 \(GroupNorm\), head: mean see the whole input"):
        choose("exact", UNBOUNDED, never)


@pytest.mark.parametrize(
    ("halo", "reason"), [(-1, "must not be negative, got -1"), ("exakt", "got 'exakt'"), (1.5, "got 1.5")]
)
def test_what_is_no_halo_is_one_line(halo: Any, reason: str) -> None:
    with pytest.raises(InvalidConfigError, match=reason) as caught:
        choose(halo, EXACT, never)

    assert "\n" not in str(caught.value)


@given(stride_px=st.integers(1, 200), halo_px=st.integers(0, 900), margin_px=st.integers(0, 100))
def test_a_core_that_makes_the_exact_halo_affordable_is_one_the_network_takes(
    stride_px: int, halo_px: int, margin_px: int
) -> None:
    geometry = replace(EXACT, stride_px=stride_px, core_halo_px=halo_px, margin_px=margin_px)
    network = Network(stride_px=stride_px, margin_px=margin_px, least_px=2 * margin_px + 1)
    plan = Plan(height=1, width=1, core_px=stride_px, network=network)

    core_px = affordable_core_px(geometry, plan)

    assert core_px % stride_px == 0
    assert replace(plan, core_px=core_px, halo_px=halo_px).overhead <= AFFORDABLE_OVERHEAD


def test_the_mismatch_is_the_share_of_all_pixels() -> None:
    one = [torch.zeros(2, 3), torch.zeros(4, 6)]
    other = [torch.zeros(2, 3), torch.zeros(4, 6)]
    other[0][0, 0] = other[1][3, 5] = other[1][0, 0] = 1

    assert mismatch_of(one, other) == 3 / 30


def test_a_long_list_of_names_is_cut() -> None:
    assert name_some(["a", "b", "c"]) == "a, b, c"
    assert name_some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
