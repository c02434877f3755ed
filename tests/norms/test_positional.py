"""Positional normalization: statistics over the channels of one cell."""

import pytest
import torch
from torch import nn

from geonorm.errors import InvalidConfigError
from geonorm.norms import PositionalNorm
from tests.norms import oracles
from tests.norms.maps import random_map, relative_rms, with_random_state


def test_the_numbers_of_a_cell_small_enough_to_check_by_hand() -> None:
    x = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    layer = PositionalNorm(3, eps=1e-12).double()

    # mean 2, variance 8/3: divided by the 3 channels, not by 2
    by_hand = torch.tensor([-2 / (8 / 3) ** 0.5, 0, 2 / (8 / 3) ** 0.5]).double()
    torch.testing.assert_close(layer(x).flatten(), by_hand)


@pytest.mark.parametrize("channels", [1, 2, 12, 65])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_it_is_torchs_layer_norm_with_the_channels_last(channels: int, memory_format: torch.memory_format) -> None:
    ours = with_random_state(PositionalNorm(channels, eps=1e-3)).double()
    torchs = nn.LayerNorm(channels, eps=1e-3).double()
    torchs.load_state_dict(ours.state_dict())
    x = random_map(2, channels, 9, 14, mean=3, dtype=torch.float64).contiguous(memory_format=memory_format)

    expected = torchs(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)


def test_the_channels_of_every_cell_have_mean_0_and_variance_1() -> None:
    layer, x = PositionalNorm(12, eps=1e-12).double(), random_map(2, 12, 9, 14, mean=3, dtype=torch.float64)

    variance, mean = torch.var_mean(layer(x), dim=1, correction=0)

    torch.testing.assert_close(mean, torch.zeros(2, 9, 14).double())
    torch.testing.assert_close(variance, torch.ones(2, 9, 14).double())


def test_a_cell_depends_on_nothing_beside_it() -> None:
    layer, x = with_random_state(PositionalNorm(12)), random_map(2, 12, 9, 14)
    changed = x.clone()
    changed[1, :, 4, 6] += torch.arange(12) * 100

    differs = (layer(changed) != layer(x)).any(dim=1)

    assert differs.nonzero().tolist() == [[1, 4, 6]]


def test_a_crop_gives_what_the_whole_map_gives() -> None:
    layer, x = with_random_state(PositionalNorm(12)), random_map(2, 12, 60, 90, mean=3)

    torch.testing.assert_close(layer(x[1:, :, 7:31, 11:48]), layer(x)[1:, :, 7:31, 11:48], rtol=1e-6, atol=1e-6)


def test_one_channel_leaves_the_bias() -> None:
    layer, x = with_random_state(PositionalNorm(1)), random_map(2, 1, 9, 14, mean=3).requires_grad_()

    y = layer(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)

    assert torch.equal(y, layer.bias.expand(2, 9, 14)[:, None])
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mean", [0, 10, 100, 1000])
def test_a_large_mean_costs_little_accuracy(memory_format: torch.memory_format, mean: float) -> None:
    layer = PositionalNorm(64).requires_grad_(False)
    x = random_map(1, 64, 60, 90, mean=mean).contiguous(memory_format=memory_format)
    expected = oracles.positional_norm(x.double(), weight=layer.weight.double(), bias=layer.bias.double())

    y = layer(x)

    assert relative_rms(y, expected=expected) < max(1e-6, 1e-7 * mean)


def test_nothing_but_weight_and_bias_is_stored() -> None:
    assert set(PositionalNorm(8).state_dict()) == {"weight", "bias"}


def test_training_and_evaluation_are_the_same() -> None:
    layer, x = with_random_state(PositionalNorm(8)), random_map(2, 8, 9, 14)

    assert torch.equal(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize(("num_features", "eps"), [(0, 1e-5), (-4, 1e-5), (6, 0.0), (6, -1e-5)])
def test_a_setting_out_of_range_is_an_error(num_features: int, eps: float) -> None:
    with pytest.raises(InvalidConfigError, match="eps" if num_features > 0 else "num_features"):
        PositionalNorm(num_features, eps=eps)
