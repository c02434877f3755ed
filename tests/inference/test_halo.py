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
    return torch.cat([torch.full_like(tiles, 127.5), avg_pool2d(tiles, 41, 1, 20)], dim=1)


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
    on_cores: Callable[[int], None] = lambda cores: None,
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
    assert choose("exact", EXACT, never, core_px=16).kind == "exact"
    assert choose("auto", EXACT, above_the_mean_of_41_px, core_px=16).kind == "measured"
    assert choose("auto", EXACT, never, core_px=40).kind == "exact"


def test_the_measured_halo_is_the_smallest_that_keeps_the_tolerance() -> None:
    choice = choose("measured", UNBOUNDED, above_the_mean_of_41_px)

    assert (choice.kind, choice.halo_px, choice.mismatch) == ("measured", 32, 0)
    assert choice.reference_px == 512
    assert choice.met
    assert "32 px" in choice.why
    assert "(under the tolerance" in choice.why


def test_a_measured_halo_is_never_larger_than_the_exact_one() -> None:
    choice = choose("measured", EXACT, above_the_mean_of_41_px)

    assert (choice.kind, choice.halo_px, choice.reference_px) == ("measured", 20, 20)


def test_where_no_halo_keeps_the_tolerance_the_user_is_told() -> None:
    choice = choose("auto", UNBOUNDED, above_the_mean_of_all, image=LARGE)

    assert choice.kind == "measured"
    assert not choice.met
    assert choice.mismatch is not None
    assert choice.mismatch > MISMATCH_TOLERANCE
    assert choice.halo_px == UNBOUNDED.local_halo_px
    assert "NOT under the tolerance" in choice.why


def test_cores_are_counted_as_they_are_measured() -> None:
    counted: list[int] = []

    choose("measured", UNBOUNDED, above_the_mean_of_41_px, on_cores=counted.append)

    assert sum(counted) == 3 * 4  # three cores, for the reference and for 0, 16 and 32 px


@pytest.mark.parametrize(("halo_px", "geometry"), [(0, EXACT), (19, EXACT), (500, UNBOUNDED)])
def test_a_halo_that_is_not_exact_says_that_labels_may_depend_on_the_tiles(
    halo_px: int, geometry: TileGeometry
) -> None:
    choice = choose(halo_px, geometry, never)

    assert (choice.kind, choice.halo_px) == ("given", halo_px)


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
