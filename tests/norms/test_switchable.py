"""Switchable normalization: a learned mix of the statistics of IN, LN and BN."""

import pytest
import torch
from torch import Tensor

from geonorm.norms import BatchNorm, InstanceNorm, LayerNorm, SwitchableNorm
from tests.norms import oracles
from tests.norms.maps import random_map, relative_rms, with_random_state

pytestmark = pytest.mark.filterwarnings("ignore:SwitchableNorm.* normalizes a map of one cell")

ONLY = {"IN": (50.0, -50.0, -50.0), "LN": (-50.0, 50.0, -50.0), "BN": (-50.0, -50.0, 50.0)}


def expected_of(x: Tensor, layer: SwitchableNorm) -> Tensor:
    """Return in float64 what the definitions of the paper give."""
    names = ["weight", "bias", "mean_weight", "var_weight"]
    running = [] if layer.training else ["running_mean", "running_var"]
    values = {name: getattr(layer, name).double() for name in names + running}
    return oracles.switchable_norm(x.double(), **values)


def only(choice: str, *, num_features: int = 6) -> SwitchableNorm:
    """Return a layer that takes both statistics from one norm."""
    layer = with_random_state(SwitchableNorm(num_features)).double()
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor(ONLY[choice]))
        layer.get_parameter("var_weight").copy_(torch.tensor(ONLY[choice]))
    return layer


def test_it_begins_with_equal_parts_and_neutral_running_statistics() -> None:
    state = SwitchableNorm(6).state_dict()

    assert torch.equal(state["mean_weight"], torch.ones(3))
    assert torch.equal(state["var_weight"], torch.ones(3))
    assert torch.equal(state["running_mean"], torch.zeros(6))
    assert torch.equal(state["running_var"], torch.ones(6))


def test_the_six_control_parameters_learn_and_the_running_statistics_do_not() -> None:
    layer = SwitchableNorm(6)

    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias", "mean_weight", "var_weight"}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(3, 6, 9, 14), (1, 6, 9, 14), (2, 6, 1, 14), (4, 6, 1, 1), (1, 1, 5, 4)], ids=str)
@pytest.mark.parametrize("mean", [0, 5, 100])
def test_it_computes_what_the_definitions_of_the_paper_give(
    shape: tuple[int, int, int, int], mean: float, training: bool
) -> None:
    layer = with_random_state(SwitchableNorm(shape[1])).train(training).double()
    x = random_map(*shape, mean=mean, dtype=torch.float64)
    x = x + 3 * torch.arange(shape[1]).reshape(1, -1, 1, 1) + torch.arange(shape[0]).reshape(-1, 1, 1, 1)

    torch.testing.assert_close(layer(x), expected_of(x, layer), rtol=0, atol=1e-10)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_it_computes_the_same_in_float32(training: bool) -> None:
    layer = with_random_state(SwitchableNorm(6)).train(training)
    x = random_map(3, 6, 30, 45, mean=2)

    torch.testing.assert_close(layer(x).double(), expected_of(x, layer), rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_saturated_control_parameters_leave_one_norm(training: bool) -> None:
    x = random_map(3, 6, 9, 14, mean=2, dtype=torch.float64)

    for choice, norm in {"IN": InstanceNorm, "LN": LayerNorm, "BN": BatchNorm}.items():
        alone = with_random_state(norm(6)).train(training).double()
        layer = only(choice).train(training)
        layer.load_state_dict(alone.state_dict(), strict=False)
        torch.testing.assert_close(layer(x), alone(x), rtol=0, atol=1e-12, msg=choice)


def test_means_and_variances_are_mixed_apart() -> None:
    layer = only("IN")
    with torch.no_grad():
        layer.get_parameter("var_weight").copy_(torch.tensor(ONLY["LN"]))
    x = random_map(3, 6, 9, 14, dtype=torch.float64) * torch.arange(1, 7).reshape(1, 6, 1, 1)

    mean, variance = x.mean(dim=(2, 3), keepdim=True), x.var(dim=(1, 2, 3), correction=0, keepdim=True)
    expected = oracles.scaled((x - mean) / (variance + 1e-5).sqrt(), weight=layer.weight, bias=layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, 0.75])
def test_training_moves_the_running_statistics_towards_those_of_the_batch(momentum: float) -> None:
    layer = with_random_state(SwitchableNorm(6, momentum=momentum)).double()
    mean, variance = layer.running_mean.clone(), layer.running_var.clone()

    for seed in range(3):
        x = random_map(3, 6, 9, 14, mean=seed, dtype=torch.float64, seed=seed)
        layer(x)
        mean = (1 - momentum) * mean + momentum * x.mean(dim=(0, 2, 3))
        variance = (1 - momentum) * variance + momentum * x.var(dim=(0, 2, 3), correction=0)

    torch.testing.assert_close(layer.running_mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.running_var, variance, rtol=0, atol=1e-12)
    assert not layer.running_mean.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_running_statistics_of_half_precision_maps_are_float32(dtype: torch.dtype) -> None:
    layer, x = SwitchableNorm(6, momentum=1.0), random_map(3, 6, 9, 14, mean=20, dtype=dtype)

    layer(x)

    assert (layer.running_mean.dtype, layer.running_var.dtype) == (torch.float32, torch.float32)
    exact = x.double()
    torch.testing.assert_close(layer.running_mean.double(), exact.mean(dim=(0, 2, 3)), rtol=1e-5, atol=0)
    torch.testing.assert_close(layer.running_var.double(), exact.var(dim=(0, 2, 3), correction=0), rtol=1e-4, atol=0)


def test_evaluation_leaves_the_running_statistics_alone() -> None:
    layer = with_random_state(SwitchableNorm(6)).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    layer(random_map(2, 6, 9, 14, mean=5))

    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(3, 6, 7, 11), (1, 6, 7, 11), (3, 6, 1, 1)], ids=str)
def test_the_gradients_of_the_control_parameters_are_those_of_the_definitions(
    shape: tuple[int, int, int, int], training: bool
) -> None:
    layer = with_random_state(SwitchableNorm(6)).train(training).double()
    x = random_map(*shape, dtype=torch.float64) + 3 * torch.arange(6).reshape(1, 6, 1, 1)
    upstream = random_map(*shape, seed=3, dtype=torch.float64)
    inputs = [x.requires_grad_(), layer.mean_weight, layer.get_parameter("var_weight"), layer.weight, layer.bias]
    expected = torch.autograd.grad(expected_of(x, layer), inputs, upstream)

    got = torch.autograd.grad(layer(x), inputs, upstream)

    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert (got[1].abs() > 1e-6).all() or shape[0] == 1 or shape[2] == 1
    assert (got[2].abs() > 1e-6).all() or shape[0] == 1 or shape[2] == 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("choice", [*ONLY, "mix"])
def test_a_large_mean_costs_little_accuracy(choice: str, memory_format: torch.memory_format) -> None:
    layer = SwitchableNorm(8) if choice == "mix" else only(choice, num_features=8).float()
    x = random_map(2, 8, 300, 200, mean=1000).contiguous(memory_format=memory_format)

    y = layer(x)

    assert relative_rms(y.detach(), expected=expected_of(x, layer).detach()) < 1e-4


@pytest.mark.parametrize("choice", [*ONLY, "mix"])
def test_channels_with_very_different_means_stay_accurate(choice: str) -> None:
    layer = SwitchableNorm(8) if choice == "mix" else only(choice, num_features=8).float()
    x = random_map(2, 8, 60, 90) + torch.tensor([0, 1, 10, 100, 1000, -1000, 5, 50]).reshape(1, 8, 1, 1)

    y = layer(x)

    torch.testing.assert_close(y.double(), expected_of(x, layer), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("choice", [*ONLY, "mix"])
@pytest.mark.parametrize("samples", [1, 3])
def test_maps_of_one_pixel_are_finite(choice: str, training: bool, samples: int) -> None:
    layer = (SwitchableNorm(6) if choice == "mix" else only(choice).float()).train(training)
    x = random_map(samples, 6, 1, 1, mean=4).requires_grad_()

    y = layer(x)
    y.square().sum().backward()

    assert y.isfinite().all()
    grads = [x.grad, layer.mean_weight.grad, layer.get_parameter("var_weight").grad]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    assert layer.running_var.isfinite().all()


def test_a_checkpoint_brings_control_parameters_and_running_statistics() -> None:
    layer, new = with_random_state(SwitchableNorm(6)), SwitchableNorm(6)

    new.load_state_dict(layer.state_dict())

    x = random_map(2, 6, 9, 14)
    assert torch.equal(new.eval()(x), layer.eval()(x))
