"""Statistics for evaluation as the plain average over some training batches."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError
from geonorm.norms import BatchNorm, BatchRenorm, GroupNorm, SwitchableNorm, average_batches
from tests.norms.maps import random_map

CHANNELS = 4
NORMS: dict[str, Any] = {
    "BatchNorm": BatchNorm,
    "SwitchableNorm": SwitchableNorm,
    "torch's": lambda channels: nn.BatchNorm2d(channels),
}


def batches(count: int = 4) -> list[Tensor]:
    """Return batches of unequal statistics and sizes."""
    return [random_map(2 + i % 2, CHANNELS, 5, 6, mean=i, seed=i, dtype=torch.float64) * (1 + i) for i in range(count)]


@pytest.mark.parametrize("name", NORMS)
def test_the_running_statistics_become_the_average_over_the_batches(name: str) -> None:
    layer = NORMS[name](CHANNELS).double()
    layer.running_mean.fill_(7.0)
    correction = 0 if name == "SwitchableNorm" else 1
    expected_mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in batches()]).mean(dim=0)
    expected_var = torch.stack([x.var(dim=(0, 2, 3), correction=correction) for x in batches()]).mean(dim=0)

    used = average_batches(layer, batches())

    assert used == 4
    torch.testing.assert_close(layer.running_mean, expected_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, expected_var, rtol=1e-12, atol=1e-12)


def test_deeper_layers_see_what_training_gives_them() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(CHANNELS, 6, 3), SwitchableNorm(6), nn.ReLU(), SwitchableNorm(6)).double()
    inputs = []
    network[3].register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    network.train()
    with torch.no_grad():
        for x in batches():
            network(x)
    expected = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)

    average_batches(network, batches())

    torch.testing.assert_close(network[3].running_mean, expected, rtol=1e-12, atol=1e-12)


def test_modes_momenta_parameters_and_schedules_are_as_before() -> None:
    network = nn.Sequential(
        BatchNorm(CHANNELS, momentum=0.3), nn.Dropout(0.5), BatchRenorm(CHANNELS), SwitchableNorm(CHANNELS)
    ).double()
    network.train()
    network[0].eval()
    before = {name: value.clone() for name, value in network.named_parameters()}

    average_batches(network, batches())

    assert [module.training for module in network] == [False, True, True, True]
    assert network[0].momentum == 0.3
    assert network[2].num_batches_tracked == 0
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
    assert all(value.grad is None for value in network.parameters())


def test_dropout_is_off_meanwhile() -> None:
    network = nn.Sequential(nn.Dropout(0.5), BatchNorm(CHANNELS)).double().train()

    average_batches(network, batches(1))

    torch.testing.assert_close(network[1].running_mean, batches(1)[0].mean(dim=(0, 2, 3)), rtol=1e-12, atol=1e-12)


def test_an_error_leaves_modes_and_momenta_as_they_were() -> None:
    layer = BatchNorm(CHANNELS, momentum=0.3).double()

    with pytest.raises(InvalidConfigError):
        average_batches(layer, [torch.rand(2, CHANNELS + 1, 5, 6)])

    assert layer.training
    assert layer.momentum == 0.3


def test_a_network_without_such_statistics_draws_no_batch() -> None:
    def never() -> Any:
        raise AssertionError
        yield

    assert average_batches(nn.Sequential(GroupNorm(CHANNELS)), never()) == 0


def test_no_batch_at_all_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="at least one batch"):
        average_batches(BatchNorm(CHANNELS), [])
