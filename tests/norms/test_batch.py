"""BatchNorm is torch's, with geonorm's face."""

import pytest
import torch
from torch import nn

from geonorm.norms import BatchNorm
from tests.norms.maps import random_map, with_random_state


@pytest.mark.parametrize("momentum", [0.1, 0.5])
def test_it_trains_and_evaluates_as_torch_does(momentum: float) -> None:
    ours = with_random_state(BatchNorm(6, eps=1e-3, momentum=momentum))
    torchs = with_random_state(nn.BatchNorm2d(6, eps=1e-3, momentum=momentum))

    for seed in range(3):
        x = random_map(4, 6, 9, 14, mean=seed, seed=seed)
        torch.testing.assert_close(ours(x), torchs(x), rtol=1e-5, atol=1e-5)

    assert ours.state_dict().keys() == torchs.state_dict().keys()
    torch.testing.assert_close(dict(ours.state_dict()), dict(torchs.state_dict()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x), rtol=1e-5, atol=1e-5)


def test_tools_that_look_for_torchs_class_find_it() -> None:
    layer = with_random_state(BatchNorm(6))

    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer))[0]

    assert isinstance(layer, nn.BatchNorm2d)
    assert isinstance(synchronized, nn.SyncBatchNorm)
    torch.testing.assert_close(dict(synchronized.state_dict()), dict(layer.state_dict()))


def test_evaluation_leaves_the_running_statistics_alone() -> None:
    layer = with_random_state(BatchNorm(6)).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    layer(random_map(2, 6, 9, 14, mean=5))

    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())
