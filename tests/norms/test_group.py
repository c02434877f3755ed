"""GroupNorm, InstanceNorm and LayerNorm are one family."""

import pytest
import torch
from torch import nn

from geonorm.errors import InvalidConfigError
from geonorm.norms import GroupNorm, InstanceNorm, LayerNorm
from tests.norms import oracles
from tests.norms.maps import random_map, relative_rms, with_random_state


@pytest.mark.parametrize("num_groups", [1, 2, 3, 4, 6, 12])
def test_it_agrees_with_torch(num_groups: int) -> None:
    ours = with_random_state(GroupNorm(12, num_groups=num_groups, eps=1e-3)).double()
    torchs = nn.GroupNorm(num_groups, 12, eps=1e-3).double()
    torchs.load_state_dict(ours.state_dict())
    x = random_map(2, 12, 9, 14, mean=3, dtype=torch.float64)

    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 6, 12])
def test_a_group_size_is_a_number_of_groups_said_the_other_way(group_size: int) -> None:
    by_size = with_random_state(GroupNorm(12, group_size=group_size))
    by_number = with_random_state(GroupNorm(12, num_groups=12 // group_size))
    x = random_map(2, 12, 9, 14)

    assert torch.equal(by_size(x), by_number(x))


def test_four_channels_share_statistics_unless_told_otherwise() -> None:
    default, four = GroupNorm(12), GroupNorm(12, group_size=4)
    x = random_map(2, 12, 9, 14)

    assert torch.equal(default(x), four(x))


def test_one_group_is_layer_norm() -> None:
    group = with_random_state(GroupNorm(12, num_groups=1)).double()
    layer = with_random_state(LayerNorm(12)).double()
    x = random_map(2, 12, 9, 14, dtype=torch.float64)

    torch.testing.assert_close(group(x), layer(x), rtol=1e-12, atol=1e-12)


def test_one_channel_a_group_is_instance_norm() -> None:
    group = with_random_state(GroupNorm(12, group_size=1)).double()
    instance = with_random_state(InstanceNorm(12)).double()
    x = random_map(2, 12, 9, 14, dtype=torch.float64)

    torch.testing.assert_close(group(x), instance(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group_size", [1, 4, 8])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mean", [0, 10, 100, 1000])
def test_a_large_mean_costs_little_accuracy(group_size: int, memory_format: torch.memory_format, mean: float) -> None:
    layer = GroupNorm(8, group_size=group_size).requires_grad_(False)
    x = random_map(1, 8, 512, 512, mean=mean).contiguous(memory_format=memory_format)
    weight, bias = layer.weight.double(), layer.bias.double()
    expected = oracles.group_norm(x.double(), weight=weight, bias=bias, group_size=group_size)

    y = layer(x)

    assert relative_rms(y, expected=expected) < max(2e-6, 1e-7 * mean)


@pytest.mark.parametrize("norm", [GroupNorm, InstanceNorm, LayerNorm])
def test_nothing_but_weight_and_bias_is_stored(norm: type[nn.Module]) -> None:
    assert set(norm(8).state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("norm", [GroupNorm, InstanceNorm, LayerNorm])
def test_training_and_evaluation_are_the_same(norm: type[nn.Module]) -> None:
    layer, x = with_random_state(norm(8)), random_map(2, 8, 9, 14)

    assert torch.equal(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_groups": 5},
        {"group_size": 5},
        {"num_groups": 24},
        {"group_size": 24},
        {"num_groups": 0},
        {"group_size": 0},
        {"num_groups": -1},
        {"group_size": -4},
    ],
    ids=str,
)
def test_groups_that_do_not_divide_the_channels_are_an_error(settings: dict[str, int]) -> None:
    (name, value), *_ = settings.items()

    with pytest.raises(InvalidConfigError, match=rf"(?s)(?=.*{name})(?=.*{value})(?=.*12)"):
        GroupNorm(12, **settings)


def test_groups_are_given_one_way_only() -> None:
    with pytest.raises(InvalidConfigError, match=r"(?s)(?=.*num_groups)(?=.*group_size)"):
        GroupNorm(12, num_groups=3, group_size=4)


def test_the_default_group_must_divide_the_channels_too() -> None:
    with pytest.raises(InvalidConfigError, match=r"(?s)(?=.*group_size)(?=.*6)"):
        GroupNorm(6)
