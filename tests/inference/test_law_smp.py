"""The law for networks of the smp library: tiles give what the whole image gives, at any size, core and place."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from geonorm.models import SmpNetwork, TileGeometry, build_smp, tile_geometry
from geonorm.models.predictor import predictor
from geonorm.norms import BatchNorm, LocalContextNorm, NormFactory
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.engine import Predict, predict_strips, predict_whole
from geonorm.tiling.plan import Plan
from geonorm.tiling.supply import Read
from tests.inference.rasters import noise
from tests.models.networks import with_random_values
from tests.tiling.grids import reader

LOCAL: NormFactory = partial(LocalContextNorm, window_px=3, group_size=2)  # 3 x 3 cells at every level
NETWORKS: dict[str, tuple[str, str, NormFactory]] = {
    "unet, BN": ("unet", "tu-resnet10t", BatchNorm),
    "unet, LCN": ("unet", "tu-resnet10t", LOCAL),
    "unet of a mobilenet, BN": ("unet", "tu-mobilenetv2_035", BatchNorm),
    "unetplusplus, BN": ("unetplusplus", "tu-resnet10t", BatchNorm),
    "fpn, BN": ("fpn", "tu-resnet10t", BatchNorm),
    "linknet, BN": ("linknet", "tu-resnet10t", BatchNorm),
}
TOLERANCE = 1e-5
"""Of the largest logit: convolutions of many channels are rounded differently in maps of other sizes."""
FINE_TOLERANCE = 1e-12
"""In double precision: a halo that is one stride short changes logits by 1e-6 or less, which float32 may round away."""
SPARE_STRIDES = {"fpn": 1, "linknet": 1}
"""By how many strides the halo is too large: interpolation by 4 and transposed convolutions over 4 cells are counted as
if every phase saw as far as one does."""
NARROW_PX = 20
"""Longest short side of a raster: many tiles along the other one at a small price."""

LONG = ["unet of a mobilenet, BN", "unetplusplus, BN"]
CASES = [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in NETWORKS]

every_network = pytest.mark.parametrize("name", CASES)
every_batch_norm = pytest.mark.parametrize("name", [case for case in CASES if str(case.values[0]).endswith("BN")])


@cache
def made(name: str) -> tuple[SmpNetwork, TileGeometry]:
    """Return a network and its geometry."""
    arch, encoder, norm = NETWORKS[name]
    built = build_smp(arch, encoder, in_channels=3, num_classes=3, norm=norm)
    network = with_random_values(built).eval()
    return network, tile_geometry(network)


def keep(logits: Tensor) -> Tensor:
    """Keep the logits, where labels would hide small differences."""
    return logits


def plan_of(geometry: TileGeometry, height: int, width: int, core_px: int, **settings: Any) -> Plan:
    """Return a plan with the exact halo, or with another one."""
    assert geometry.core_halo_px is not None
    settings = {"halo_px": geometry.core_halo_px, **settings}
    return Plan(height=height, width=width, core_px=core_px, network=network_of(geometry), **settings)


def tiled(predict: Predict, plan: Plan, *, batch_size: int = 1) -> Tensor:
    """Return the logits of the tiles, put together."""
    strips = predict_strips(image(plan), predict, plan, fill=torch.zeros(3), finish=keep, batch_size=batch_size)
    return torch.cat([strip.output for strip in strips], dim=-2)


def whole(predict: Predict, plan: Plan) -> Tensor:
    """Return the logits of the whole-image pass."""
    return predict_whole(image(plan), predict, plan, fill=torch.zeros(3), finish=keep).output


def image(plan: Plan) -> Read:
    """Return what reads an image of the plan's size."""
    return reader(noise(3, plan.height, plan.width))


@cache
def in_double(name: str) -> Predict:
    """Return a network that computes in double precision, as a function of tiles."""
    network = copy.deepcopy(made(name)[0]).double()

    def predict(tiles: Tensor) -> Tensor:
        with torch.no_grad():
            return network(tiles.double())

    return predict


def farthest(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a share of the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


@st.composite
def plans(draw: st.DrawFn, geometry: TileGeometry) -> Plan:
    """Return a plan with the exact halo for a long and narrow raster anywhere in the world."""
    core_px = geometry.stride_px * draw(st.integers(2, 6))
    read_px = plan_of(geometry, 1, 1, core_px).read_px
    length = draw(
        st.one_of(
            st.sampled_from([1, core_px - 1, core_px, core_px + 1]),
            st.integers(1, read_px),
            st.integers(read_px, read_px + 2 * core_px),  # only here tiles are smaller than the whole-image pass
        )
    )
    breadth = draw(st.one_of(st.sampled_from([1, 2]), st.integers(1, NARROW_PX)))
    height, width = (length, breadth) if draw(st.booleans()) else (breadth, length)
    anywhere = st.one_of(st.integers(-100, 100), st.integers(-(10**8), 10**8))
    return plan_of(
        geometry,
        height,
        width,
        core_px,
        first_index=(draw(anywhere), draw(anywhere)),
        grid_offset_px=(draw(anywhere), draw(anywhere)),
    )


@every_network
@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), batch_size=st.integers(1, 2))
def test_tiles_of_an_smp_network_give_the_whole_image(name: str, data: st.DataObject, batch_size: int) -> None:
    network, geometry = made(name)
    plan, predict = data.draw(plans(geometry)), predictor(network, torch.device("cpu"))

    found, expected = tiled(predict, plan, batch_size=batch_size), whole(predict, plan)

    assert farthest(found, expected) <= TOLERANCE
    first, second = expected.topk(2, dim=0).values
    flips = found.argmax(0) != expected.argmax(0)
    assert not flips[first - second > 2 * TOLERANCE * expected.abs().max()].any()
    assert farthest(tiled(in_double(name), plan, batch_size=batch_size), whole(in_double(name), plan)) <= FINE_TOLERANCE


@every_batch_norm  # the others take longer
def test_the_exact_halo_is_enough_and_one_stride_less_is_not(name: str) -> None:
    geometry = made(name)[1]
    stride_px, exact_px = geometry.stride_px, plan_of(geometry, 1, 1, geometry.stride_px).axes[0].aligned_halo_px
    spare_px = stride_px * SPARE_STRIDES.get(NETWORKS[name][0], 0)
    exact = plan_of(geometry, 2 * exact_px + 5 * stride_px + 1, 7, 3 * stride_px, first_index=(-5, 3))
    less = replace(exact, halo_px=exact_px - spare_px - stride_px)

    expected = whole(in_double(name), exact)

    assert exact.read_px < exact.axes[0].wholes[0].px
    assert farthest(tiled(in_double(name), exact), expected) <= FINE_TOLERANCE
    assert farthest(tiled(in_double(name), less), expected) > 10 * FINE_TOLERANCE
