"""Overlapping tiles: their weights, and the maps they give together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geonorm.tiling.blending import Blend, blend_px, blend_weights
from geonorm.tiling.engine import predict_strips, predict_tile
from geonorm.tiling.plan import Plan
from tests.tiling.grids import plans, reader

FILL = torch.tensor([3.0])
BLENDS: tuple[Blend, ...] = ("linear", "hann")


def image_of(plan: Plan) -> np.ndarray:
    """Return one band of random values."""
    return np.random.default_rng(0).integers(1, 256, (1, plan.height, plan.width)).astype("uint8")


def unchanged(logits: Tensor) -> Tensor:
    """Keep logits as they are."""
    return logits


@given(core_px=st.integers(1, 40), reach_px=st.integers(0, 20), blend=st.sampled_from(("none", *BLENDS)))
def test_weights_are_symmetric_never_zero_and_add_up_to_one(core_px: int, reach_px: int, blend: Blend) -> None:
    reach_px = min(reach_px, core_px // 2)

    weights = blend_weights(blend, core_px, reach_px)

    assert weights.shape == (core_px + 2 * reach_px,)
    assert (weights > 0).all()
    assert (weights <= 1).all()
    torch.testing.assert_close(weights, weights.flip(0))
    if blend != "none":
        together = torch.zeros(4 * core_px + 2 * reach_px)
        for tile in range(4):
            together[tile * core_px : (tile + 1) * core_px + 2 * reach_px] += weights
        inner = together[2 * reach_px : -2 * reach_px or None]
        torch.testing.assert_close(inner, torch.ones_like(inner))


def slowly(plan: Plan, image: np.ndarray, predict: object, blend: Blend) -> Tensor:
    """Return the blended logits pixel weights by tile, in float64, with the whole raster in memory."""
    rows, cols = plan.axes
    reach_px = blend_px(plan)
    weights = blend_weights(blend, plan.core_px, reach_px).double()
    total = torch.zeros(1, plan.height, plan.width, dtype=torch.float64)
    weight = torch.zeros_like(total)
    for row in rows.spans():
        for col in cols.spans():
            starts = [
                (span.core_start + axis.index) // plan.core_px * plan.core_px - axis.index - reach_px
                for span, axis in ((row, rows), (col, cols))
            ]
            places = [
                [place for place in range(start, start + len(weights)) if 0 <= place < axis.length]
                for start, axis in zip(starts, (rows, cols), strict=True)
            ]
            whole = type(row)  # a span whose core is all that the tile contributes to
            wide = [whole(place[0], place[-1] + 1, span.reads) for place, span in zip(places, (row, col), strict=True)]
            logits = predict_tile(reader(image), predict, plan, *wide, fill=FILL, finish=unchanged).double()  # type: ignore[arg-type]
            share = torch.outer(
                *(weights[np.array(place) - start] for place, start in zip(places, starts, strict=True))
            )
            area = np.s_[:, places[0][0] : places[0][-1] + 1, places[1][0] : places[1][-1] + 1]
            total[area] += logits * share
            weight[area] += share
    return total / weight


@pytest.mark.parametrize("blend", BLENDS)
@settings(max_examples=50)
@given(plan=plans(max_side_px=60, min_core_px=6), batch_size=st.integers(1, 3))
def test_a_pixel_has_the_weighted_mean_of_the_tiles_that_see_it(blend: Blend, plan: Plan, batch_size: int) -> None:
    image, margin_px = image_of(plan), plan.network.margin_px

    def predict(tiles: Tensor) -> Tensor:  # each tile sees something else in a pixel
        tiles = tiles.float()
        tiles = tiles + tiles.mean((2, 3), keepdim=True)
        return tiles[..., margin_px : tiles.shape[-2] - margin_px, margin_px : tiles.shape[-1] - margin_px]

    strips = predict_strips(
        reader(image), predict, plan, fill=FILL, finish=unchanged, blend=blend, batch_size=batch_size
    )

    found = torch.cat([strip.output for strip in strips], dim=-2)
    torch.testing.assert_close(found.double(), slowly(plan, image, predict, blend), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("blend", BLENDS)
def test_a_strip_alone_is_what_it_is_among_all(blend: Blend) -> None:
    plan = Plan(height=90, width=70, core_px=16, halo_px=5, first_index=(3, 7))
    image = image_of(plan)

    def predict(tiles: Tensor) -> Tensor:
        return tiles.float() + tiles.float().mean((2, 3), keepdim=True)

    def strips(skip: frozenset[int]) -> dict[int, Tensor]:
        found = predict_strips(reader(image), predict, plan, fill=FILL, finish=unchanged, blend=blend, skip=skip)
        return {strip.row: strip.output for strip in found}

    everything = strips(frozenset())

    for row in everything:
        alone = strips(frozenset(everything) - {row})
        assert [*alone] == [row]
        assert torch.equal(alone[row], everything[row])


@pytest.mark.parametrize("blend", BLENDS)
def test_tiles_without_data_do_no_harm_to_their_neighbours(blend: Blend) -> None:
    plan = Plan(height=80, width=80, core_px=16, halo_px=4)
    image = image_of(plan)
    counts = np.ones(image.shape, dtype=bool)
    counts[:, 16:64, 20:] = False
    calls = []

    def predict(tiles: Tensor) -> Tensor:
        calls.append(len(tiles))
        return tiles.float()

    strips = list(
        predict_strips(reader(image, value_valid=counts), predict, plan, fill=FILL, finish=unchanged, blend=blend)
    )

    found = torch.cat([strip.output for strip in strips], dim=-2)
    valid = np.concatenate([strip.valid for strip in strips])
    np.testing.assert_array_equal(valid, counts[0])
    torch.testing.assert_close(found[0][valid], torch.from_numpy(image[0][valid]).float())
    assert sum(calls) < plan.num_tiles
