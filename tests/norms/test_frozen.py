"""FrozenBatchNorm is torch's BatchNorm2d in evaluation, whatever its mode; NoNorm is nothing at all."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError
from geonorm.norms import FrozenBatchNorm, NoNorm
from tests.norms.maps import random_map, with_random_state

both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def torchs_and_ours(*, training: bool = True, eps: float = 1e-5) -> tuple[nn.BatchNorm2d, FrozenBatchNorm]:
    """Return torch's layer in evaluation, and ours with its state dict, both in float64."""
    torchs, ours = with_random_state(nn.BatchNorm2d(6, eps=eps)), FrozenBatchNorm(6, eps=eps)
    ours.load_state_dict(torchs.state_dict())
    return torchs.double().eval(), ours.double().train(training)


def learn(layer: nn.Module, *, steps: int = 3) -> nn.Module:
    """Train a layer for some steps on maps whose statistics are not its own."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for seed in range(steps):
        optimizer.zero_grad()
        layer(random_map(4, 6, 9, 14, mean=7, seed=seed)).square().mean().backward()
        optimizer.step()
    return layer


# --- FrozenBatchNorm --------------------------------------------------------------------------------


@both_modes
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_it_computes_what_torch_computes_in_evaluation(training: bool, eps: float) -> None:
    torchs, ours = torchs_and_ours(training=training, eps=eps)
    x = random_map(4, 6, 9, 14, mean=2, dtype=torch.float64)

    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-12, atol=1e-12)


@both_modes
def test_its_gradients_are_those_of_torch_in_evaluation(training: bool) -> None:
    x, upstream = (random_map(4, 6, 9, 14, seed=seed, dtype=torch.float64) for seed in (0, 3))
    x.requires_grad_()

    of_torchs, of_ours = (
        torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], upstream)
        for layer in torchs_and_ours(training=training)
    )

    torch.testing.assert_close(of_ours, of_torchs, rtol=1e-12, atol=1e-12)


def test_weight_and_bias_learn_and_the_statistics_stay() -> None:
    layer = with_random_state(FrozenBatchNorm(6))
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    after = learn(layer).state_dict()

    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {"weight", "bias"}


def test_it_can_be_frozen_altogether() -> None:
    layer, x = with_random_state(FrozenBatchNorm(6)).requires_grad_(False), random_map(2, 6, 9, 14)

    assert not layer(x).requires_grad


def test_without_loaded_statistics_it_is_the_affine_map_alone() -> None:
    layer, x = FrozenBatchNorm(2, eps=1e-12).double(), random_map(2, 2, 9, 14, mean=5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x)

    layer.load_state_dict({"weight": torch.tensor([2.0, 3.0]), "bias": torch.tensor([0.5, -1.0])}, strict=False)

    torch.testing.assert_close(layer(x), torch.stack([2 * x[:, 0] + 0.5, 3 * x[:, 1] - 1], dim=1))


def test_a_pixel_has_the_same_bits_in_every_crop_and_batch() -> None:
    layer, x = with_random_state(FrozenBatchNorm(6)), random_map(3, 6, 60, 90, mean=5)

    assert torch.equal(layer(x[1:2, :, 7:31, 11:48]), layer(x)[1:2, :, 7:31, 11:48])


@pytest.mark.parametrize("counted", [True, False], ids=["with count", "without count"])
def test_the_state_of_a_network_of_torchs_layers_loads_strictly(counted: bool) -> None:
    torchs = nn.Sequential(nn.Conv2d(3, 6, 3), with_random_state(nn.BatchNorm2d(6)))
    ours = nn.Sequential(nn.Conv2d(3, 6, 3), FrozenBatchNorm(6))
    state = {name: value for name, value in torchs.state_dict().items() if counted or "num_batches" not in name}
    names = list(state)

    ours.load_state_dict(state)

    x = random_map(2, 3, 9, 14)
    torch.testing.assert_close(ours(x), torchs.eval()(x))
    assert list(state) == names


@pytest.mark.parametrize(("num_features", "eps"), [(0, 1e-5), (-4, 1e-5), (6, 0.0), (6, -1e-5)])
def test_a_setting_out_of_range_is_an_error(num_features: int, eps: float) -> None:
    with pytest.raises(InvalidConfigError, match="eps" if num_features > 0 else "num_features"):
        FrozenBatchNorm(num_features, eps=eps)


# --- NoNorm -----------------------------------------------------------------------------------------


@both_modes
@pytest.mark.parametrize(
    "change", [Tensor.double, Tensor.bfloat16, lambda x: x[:, ::2, 1:]], ids=["float64", "bfloat16", "slice"]
)
def test_no_norm_returns_its_input(training: bool, change: Callable[[Tensor], Tensor]) -> None:
    layer, x = NoNorm(6).train(training), change(random_map(2, 6, 9, 14))

    y = layer(x)

    assert torch.equal(y, x)
    assert (y.dtype, y.stride()) == (x.dtype, x.stride())


def test_no_norm_stores_nothing() -> None:
    assert not NoNorm(6, stride=4).state_dict()
