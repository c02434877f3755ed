"""Local statistics in plain operators, held against the layer, whose own oracle is in test_local_context.py."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from geonorm.norms import LocalContextNorm, SwitchableNorm
from geonorm.norms.local_context import Border
from geonorm.norms.moments import local_moments
from geonorm.norms.portable import local_statistics as portable_statistics
from geonorm.norms.portable import plain_operators

SHAPES = [(1, 4, 9, 7), (2, 8, 5, 40), (1, 4, 1, 1), (1, 8, 33, 3)]


def values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * 3 + 10


@pytest.mark.parametrize("border", ["nearest", "clip"])
@pytest.mark.parametrize("window", [(1, 1), (3, 5), (8, 4), (31, 31)])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_computes_what_the_layer_does(shape: tuple[int, ...], window: tuple[int, int], border: Border) -> None:
    x = values(*shape)
    layer = LocalContextNorm(shape[1], window_cells=window, border=border)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    expected = layer(x)

    with plain_operators():
        y = layer(x)

    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("border", ["nearest", "clip"])
def test_its_moments_are_those_of_float64_far_from_zero(border: Border) -> None:
    x = values(1, 4, 64, 80).double() + 1000
    mean, var = portable_statistics(x.float(), 4, [9, 31], border)

    exact_mean, exact_var = local_moments(x.float().double(), window=(9, 31), border=border, height=64, rows=range(64))

    torch.testing.assert_close(mean[0], exact_mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(var[0], exact_var, rtol=1e-6, atol=0)


@pytest.mark.parametrize("compat", [None, "authors"])
def test_the_pool_of_switchable_norm_and_the_released_layer_are_as_they_are(compat: Literal["authors"] | None) -> None:
    x = values(2, 8, 24, 20)
    layers = [
        SwitchableNorm(8, pool=("IN", "LCN"), window_cells=5, group_size=4).eval(),
        LocalContextNorm(8, window_cells=5, compat=compat),
    ]
    for layer in layers:
        expected = layer(x)
        with plain_operators():
            y = layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_outside_it_the_layer_computes_as_usual() -> None:
    layer, x = LocalContextNorm(4, window_cells=5), values(1, 4, 16, 16)
    before = layer(x)
    with plain_operators():
        pass

    assert torch.equal(layer(x), before)
