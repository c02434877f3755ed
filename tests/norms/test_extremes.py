"""At the ends of their settings the norms become one another, in numbers and gradients."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from geonorm.norms import (
    BatchNorm,
    BatchRenorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalContextNorm,
    PositionalNorm,
)
from tests.norms.maps import random_map, with_random_state

CHANNELS = 12
SIZES = [(9, 14), (14, 9), (1, 17), (1, 1)]

Factory = Callable[..., nn.Module]

covering = partial(LocalContextNorm, window_cells=(14, 17))
clipped = partial(LocalContextNorm, window_cells=(2 * 14, 2 * 17), border="clip")

WHOLE_MAP = {
    "GN of one group is LN": (partial(GroupNorm, num_groups=1), LayerNorm),
    "GN of as many groups as channels is IN": (partial(GroupNorm, num_groups=CHANNELS), InstanceNorm),
    "GN of all channels is LN": (partial(GroupNorm, group_size=CHANNELS), LayerNorm),
    "GN of single channels is IN": (partial(GroupNorm, group_size=1), InstanceNorm),
    **{
        f"GN of {CHANNELS // size} groups is GN of groups of {size}": (
            partial(GroupNorm, num_groups=CHANNELS // size),
            partial(GroupNorm, group_size=size),
        )
        for size in (1, 2, 3, 4, 6, 12)
    },
    **{
        f"LCN with {name} window and groups of {size} is GN": (
            partial(norm, group_size=size),
            partial(GroupNorm, group_size=size),
        )
        for name, norm in {"a covering": covering, "a clipped covering": clipped}.items()
        for size in (1, 2, 4, 12)
    },
    "LCN with a covering window and all channels is LN": (partial(covering, group_size=CHANNELS), LayerNorm),
    "LCN with a covering window and single channels is IN": (partial(covering, group_size=1), InstanceNorm),
}
"""Pairs that agree on maps of all SIZES, in both modes."""


def assert_same(one: Factory, other: Factory, x: Tensor, *, training: bool = True) -> None:
    """Check that two norms with the same parameters give the same map and the same gradients, in float64."""
    state, results = with_random_state(FrozenBatchNorm(CHANNELS)).state_dict(), []
    for norm in (one, other):
        layer, leaf = norm(CHANNELS).double().train(training), x.clone().requires_grad_()
        layer.load_state_dict(state, strict=False)  # those without running statistics take weight and bias
        y = layer(leaf)
        y.backward(random_map(*x.shape, seed=3, dtype=torch.float64))
        results.append([y.detach(), leaf.grad, layer.get_parameter("weight").grad, layer.get_parameter("bias").grad])

    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("one", "other"), WHOLE_MAP.values(), ids=WHOLE_MAP.keys())
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_two_norms_over_the_whole_map_are_the_same(
    one: Factory, other: Factory, size: tuple[int, int], training: bool
) -> None:
    x = random_map(3, CHANNELS, *size, mean=2, dtype=torch.float64)

    assert_same(one, other, x, training=training)


@pytest.mark.parametrize("size", [(9, 14), (1, 17)], ids=str)
def test_bn_of_one_sample_is_in_while_it_trains(size: tuple[int, int]) -> None:
    x = random_map(1, CHANNELS, *size, mean=2, dtype=torch.float64)

    assert_same(BatchNorm, InstanceNorm, x)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", [BatchRenorm, partial(BatchRenorm, warmup_steps=0, r_max=1, d_max=0)])
def test_batch_renorm_without_correction_is_bn(norm: Factory, training: bool, samples: int) -> None:
    x = random_map(samples, CHANNELS, 9, 14, mean=2, dtype=torch.float64)

    assert_same(norm, BatchNorm, x, training=training)


@pytest.mark.parametrize("norm", [BatchNorm, BatchRenorm])
def test_bn_in_evaluation_is_frozen_bn(norm: Factory) -> None:
    x = random_map(3, CHANNELS, 9, 14, mean=2, dtype=torch.float64)

    assert_same(norm, FrozenBatchNorm, x, training=False)


def test_positional_norm_of_maps_of_one_cell_is_ln() -> None:
    x = random_map(3, CHANNELS, 1, 1, mean=2, dtype=torch.float64)

    assert_same(PositionalNorm, LayerNorm, x)
