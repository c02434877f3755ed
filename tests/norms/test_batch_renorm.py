"""Batch renormalization: batch statistics, corrected towards the running ones within bounds that open."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError
from geonorm.norms import BatchRenorm
from tests.norms import oracles
from tests.norms.maps import random_map, relative_rms, with_random_state

STEPS = range(8)
# Two steps of warm-up, four of ramp: r_max = 1.5 and d_max = 0.5 are reached at the sixth step.
R_BOUNDS = [1, 1, 1.125, 1.25, 1.375, 1.5, 1.5, 1.5]
D_BOUNDS = [0, 0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def scheduled() -> BatchRenorm:
    """Return a layer that opens as R_BOUNDS and D_BOUNDS say, with running statistics fixed at 0 and 1."""
    return BatchRenorm(6, warmup_steps=2, ramp_steps=4, eps=1e-12, momentum=0.0).double()


def unbounded(*, eps: float = 1e-5, momentum: float = 0.1) -> BatchRenorm:
    """Return a layer with random state whose bounds are wide open from the first step."""
    layer = BatchRenorm(6, warmup_steps=0, ramp_steps=0, r_max=1e6, d_max=1e6, eps=eps, momentum=momentum)
    return with_random_state(layer).double()


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return deviation and mean of each channel of the batch."""
    deviation, mean = torch.std_mean(y.detach(), dim=(0, 2, 3), correction=0)
    return deviation, mean


# --- the schedule -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stretch", "corrected"),
    [
        (lambda x: 100 * x + 1000, lambda r, d: (r, d)),  # wider and higher than the running statistics
        (lambda x: 0.01 * x - 1000, lambda r, d: (1 / r, -d)),  # narrower and lower
    ],
    ids=["upper bounds", "lower bounds"],
)
def test_the_bounds_stay_shut_in_the_warm_up_and_then_open_step_by_step(
    stretch: Callable[[Tensor], Tensor], corrected: Callable[[float, float], tuple[float, float]]
) -> None:
    layer, x = scheduled(), stretch(random_map(4, 6, 9, 14, dtype=torch.float64))

    seen = [moments(layer(x)) for _ in STEPS]

    for (deviation, mean), r, d in zip(seen, R_BOUNDS, D_BOUNDS, strict=True):
        scale, shift = corrected(r, d)
        torch.testing.assert_close(deviation, torch.full((6,), scale).double(), rtol=1e-6, atol=0)
        torch.testing.assert_close(mean, torch.full((6,), shift).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("warmup_steps", "ramp_steps", "expected"),
    [
        (0, 0, [1.5, 1.5, 1.5, 1.5]),
        (0, 1, [1.5, 1.5, 1.5, 1.5]),
        (0, 2, [1.25, 1.5, 1.5, 1.5]),
        (2, 0, [1, 1, 1.5, 1.5]),
        (1, 2, [1, 1.25, 1.5, 1.5]),
    ],
)
def test_short_schedules_begin_and_end_on_time(warmup_steps: int, ramp_steps: int, expected: list[float]) -> None:
    layer = BatchRenorm(6, warmup_steps=warmup_steps, ramp_steps=ramp_steps)

    r_bounds = []
    for seed in range(4):
        r_bounds.append(layer.bounds()[0].item())
        layer(random_map(2, 6, 9, 14, seed=seed))

    assert r_bounds == expected


def test_the_first_of_the_default_steps_are_batch_norm() -> None:
    ours, torchs = with_random_state(BatchRenorm(6)), with_random_state(nn.BatchNorm2d(6))

    for seed in STEPS:
        x = random_map(4, 6, 9, 14, mean=seed, seed=seed)
        torch.testing.assert_close(ours(x), torchs(x), rtol=1e-5, atol=1e-5)


def test_evaluation_does_not_count_as_a_step() -> None:
    layer, x = scheduled(), random_map(4, 6, 9, 14, dtype=torch.float64)

    for _ in STEPS:
        layer.eval()(x)

    assert [bound.item() for bound in layer.bounds()] == [1, 0]


def test_the_schedule_goes_on_from_a_checkpoint() -> None:
    layer, x = scheduled(), 100 * random_map(4, 6, 9, 14, mean=10, dtype=torch.float64)
    for _ in range(3):
        layer(x)

    resumed = scheduled()
    resumed.load_state_dict(layer.state_dict())

    deviation, mean = moments(resumed(x))
    torch.testing.assert_close(deviation, torch.full((6,), R_BOUNDS[3]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(mean, torch.full((6,), D_BOUNDS[3]).double(), rtol=0, atol=1e-6)


# --- the correction ---------------------------------------------------------------------------------


def test_within_the_bounds_training_answers_as_evaluation_does() -> None:
    layer, x = unbounded(), random_map(4, 6, 9, 14, mean=3, dtype=torch.float64)
    expected = copy.deepcopy(layer).eval()(x)

    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_within_the_bounds_the_rest_of_the_batch_does_not_matter() -> None:
    layer, x = unbounded(), random_map(4, 6, 9, 14, mean=3, dtype=torch.float64)
    other = torch.cat([x[:1], 5 * x[1:] - 40])

    torch.testing.assert_close(copy.deepcopy(layer)(other)[:1], layer(x)[:1], rtol=1e-10, atol=1e-10)


def test_no_gradient_flows_through_the_corrections() -> None:
    layer, x = unbounded(eps=1e-12), random_map(4, 6, 9, 14, mean=3, dtype=torch.float64).requires_grad_()

    # Mean and deviation of the output are d and r. As constants they have no gradient; as what they are
    # in the forward pass, those of the batch, they have one.
    deviation, mean = torch.std_mean(layer(x), dim=(0, 2, 3), correction=0)

    for moment in (mean, deviation):
        (gradient,) = torch.autograd.grad(moment.sum(), x, retain_graph=True)
        torch.testing.assert_close(gradient, torch.zeros_like(x), rtol=0, atol=1e-10)


def test_within_the_bounds_the_gradient_is_that_of_batch_norm_times_r() -> None:
    layer, x = unbounded(eps=1e-12), random_map(4, 6, 9, 14, mean=3, dtype=torch.float64).requires_grad_()
    upstream = random_map(4, 6, 9, 14, seed=3, dtype=torch.float64)
    r = (x.detach().var(dim=(0, 2, 3), correction=0) / layer.running_var).sqrt()
    of_batch_norm = oracles.batch_norm(x, weight=layer.weight, bias=layer.bias, eps=1e-12)
    (expected,) = torch.autograd.grad(of_batch_norm, x, upstream)

    (gradient,) = torch.autograd.grad(layer(x), x, upstream)

    torch.testing.assert_close(gradient, expected * r.reshape(1, 6, 1, 1), rtol=1e-9, atol=1e-12)


def test_the_correction_sees_the_running_statistics_of_before_the_step() -> None:
    layer, x = unbounded(momentum=1.0), random_map(4, 6, 9, 14, mean=3, dtype=torch.float64)
    mean, variance = layer.running_mean.clone(), layer.running_var.clone()

    y = layer(x)

    expected = oracles.frozen_batch_norm(x, weight=layer.weight, bias=layer.bias, mean=mean, variance=variance)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


def test_a_batch_of_one_value_is_shifted_by_d() -> None:
    layer = BatchRenorm(6, warmup_steps=0, ramp_steps=0, d_max=0.5).double()
    x = torch.tensor([-9, -0.25, 0, 0.125, 0.5, 9]).double().reshape(1, 6, 1, 1)

    y = layer(x)

    torch.testing.assert_close(y.flatten(), torch.tensor([-0.5, -0.25, 0, 0.125, 0.5, 0.5]).double(), rtol=1e-5, atol=0)


# --- the running statistics -------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 0.5])
@pytest.mark.parametrize("warmup_steps", [0, 500])
def test_the_running_statistics_are_those_of_batch_norm(momentum: float, warmup_steps: int) -> None:
    ours = with_random_state(BatchRenorm(6, warmup_steps=warmup_steps, ramp_steps=2, momentum=momentum))
    torchs = with_random_state(nn.BatchNorm2d(6, momentum=momentum))

    for seed in range(4):
        x = random_map(4, 6, 9, 14, mean=seed, seed=seed)
        ours(x)
        torchs(x)

    torch.testing.assert_close(dict(ours.state_dict()), dict(torchs.state_dict()), rtol=1e-5, atol=1e-5)


def test_evaluation_leaves_the_running_statistics_alone() -> None:
    layer = with_random_state(BatchRenorm(6)).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    layer(random_map(2, 6, 9, 14, mean=5))

    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_running_statistics_of_half_precision_maps_are_float32(dtype: torch.dtype) -> None:
    layer, x = BatchRenorm(6, momentum=1.0), random_map(3, 6, 9, 14, mean=20, dtype=dtype)

    layer(x)

    assert (layer.running_mean.dtype, layer.running_var.dtype) == (torch.float32, torch.float32)
    exact = x.double()
    torch.testing.assert_close(layer.running_mean.double(), exact.mean(dim=(0, 2, 3)), rtol=1e-5, atol=0)
    torch.testing.assert_close(layer.running_var.double(), exact.var(dim=(0, 2, 3)), rtol=1e-4, atol=0)


def test_only_weight_and_bias_learn() -> None:
    layer = BatchRenorm(6)

    layer(random_map(2, 6, 9, 14).requires_grad_())

    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    assert not layer.running_mean.requires_grad
    assert not layer.running_var.requires_grad


def test_the_state_of_torchs_layer_loads() -> None:
    torchs, ours = with_random_state(nn.BatchNorm2d(6)), BatchRenorm(6)
    torchs(random_map(2, 6, 9, 14))

    ours.load_state_dict(torchs.state_dict())

    x = random_map(2, 6, 9, 14, mean=2)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x), rtol=1e-5, atol=1e-5)
    assert ours.num_batches_tracked == 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mean", [10, 100, 1000])
def test_a_large_mean_costs_little_accuracy(memory_format: torch.memory_format, mean: float) -> None:
    layer = BatchRenorm(8).requires_grad_(False)
    x = random_map(2, 8, 300, 200, mean=mean).contiguous(memory_format=memory_format)
    expected = oracles.batch_norm(x.double(), weight=layer.weight.double(), bias=layer.bias.double())

    y = layer(x)

    assert relative_rms(y, expected=expected) < 1e-7 * mean


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"r_max": 0.9}, {"r_max": -2.0}, {"d_max": -0.1}, {"warmup_steps": -1}, {"ramp_steps": -1}, {"eps": 0.0}],
    ids=str,
)
def test_a_setting_out_of_range_is_an_error(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()

    with pytest.raises(InvalidConfigError, match=rf"(?s)(?=.*{name})(?=.*{value})"):
        BatchRenorm(6, **settings)


@pytest.mark.parametrize("num_features", [0, -4])
def test_a_layer_without_channels_is_an_error(num_features: int) -> None:
    with pytest.raises(InvalidConfigError, match="num_features"):
        BatchRenorm(num_features)
