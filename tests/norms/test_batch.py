"""BatchNorm is torch's, with geonorm's face."""

import pytest
import torch
from torch import nn

from geonorm.errors import InvalidConfigError
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


def test_state_dicts_go_both_ways() -> None:
    ours, torchs = with_random_state(BatchNorm(6)), nn.BatchNorm2d(6)

    torchs.load_state_dict(ours.state_dict())
    BatchNorm(6).load_state_dict(torchs.state_dict())

    x = random_map(2, 6, 9, 14)
    torch.testing.assert_close(torchs.eval()(x), ours.eval()(x), rtol=1e-5, atol=1e-5)


def test_one_value_a_channel_has_no_variance_to_train_with() -> None:
    layer = BatchNorm(6)

    with pytest.raises(InvalidConfigError, match=r"^BatchNorm\(6\) .*one value per channel.*batch_size") as error:
        layer(torch.rand(1, 6, 1, 1))

    assert "\n" not in str(error.value)
    assert layer.num_batches_tracked == 0
    for shape in ((2, 6, 1, 1), (1, 6, 1, 2), (1, 6, 2, 1)):
        assert layer(torch.rand(*shape)).shape == shape
    assert layer.eval()(torch.rand(1, 6, 1, 1)).shape == (1, 6, 1, 1)


def test_evaluation_leaves_the_running_statistics_alone() -> None:
    layer = with_random_state(BatchNorm(6)).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    layer(random_map(2, 6, 9, 14, mean=5))

    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())
