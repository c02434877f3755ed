"""What every norm promises, whatever its statistics."""

import copy
import pickle
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from geonorm.errors import GeonormWarning, InvalidConfigError
from tests.norms.cases import (
    CHANNELS,
    Case,
    both_formats,
    both_modes,
    every_dtype,
    every_norm,
    every_norm_but_none,
    norms_where,
)
from tests.norms.maps import random_map, relative_rms, with_random_state

# Half the distance between neighbouring numbers, relative; in float32 also what sums add to it.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 1e-5, torch.float64: 1e-5}


def gradients(case: Case, layer: nn.Module, x: Tensor, upstream: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of input and parameters, from the layer and from its oracle in float64."""
    exact, exact_x = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    x = x.detach().requires_grad_()
    inputs, exact_inputs = [x, *layer.parameters()], [exact_x, *exact.parameters()]
    got = torch.autograd.grad(layer(x), inputs, upstream)
    expected = torch.autograd.grad(case.oracle(exact_x, exact), exact_inputs, upstream.double())
    return list(got), list(expected)


# --- shape, dtype, memory ---------------------------------------------------------------------------


@every_norm
@both_modes
@every_dtype
def test_the_output_has_the_shape_and_the_dtype_of_the_input(case: Case, training: bool, dtype: torch.dtype) -> None:
    x = random_map(2, CHANNELS, 9, 14, dtype=dtype)

    y = case.layer(training=training)(x)

    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)


@every_norm
@both_modes
@both_formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_output_has_the_memory_format_of_the_input(
    case: Case, training: bool, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    x = random_map(2, CHANNELS, 9, 14, dtype=dtype).contiguous(memory_format=memory_format)

    y = case.layer(training=training)(x)

    assert y.is_contiguous(memory_format=memory_format)


@every_norm_but_none
@both_modes
@both_formats
def test_the_input_is_never_written_to(case: Case, training: bool, memory_format: torch.memory_format) -> None:
    x = random_map(2, CHANNELS, 9, 14).contiguous(memory_format=memory_format).requires_grad_()
    upstream = random_map(2, CHANNELS, 9, 14, seed=3).contiguous(memory_format=memory_format)
    before, upstream_before = x.detach().clone(), upstream.clone()

    y = case.layer(training=training)(x)
    y.backward(upstream)
    y.detach().fill_(7)

    assert torch.equal(x, before)
    assert torch.equal(upstream, upstream_before)


@every_norm
@both_modes
@both_formats
def test_a_slice_of_a_larger_map_is_normalized_and_the_rest_left_alone(
    case: Case, training: bool, memory_format: torch.memory_format
) -> None:
    larger = random_map(3, CHANNELS + 4, 12, 20).contiguous(memory_format=memory_format)
    before = larger.clone()
    part = larger[1:, 2:-2, 1:-2, 3:-3]
    layer = case.layer(training=training)

    got = copy.deepcopy(layer)(part)

    assert torch.equal(larger, before)
    torch.testing.assert_close(got, layer(part.contiguous()), rtol=1e-5, atol=1e-5)


# --- numbers ----------------------------------------------------------------------------------------


@every_norm
@both_modes
@both_formats
@every_dtype
def test_it_computes_what_its_oracle_computes(
    case: Case, training: bool, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    layer = case.layer(training=training)
    x = random_map(3, CHANNELS, 9, 14, mean=2, dtype=dtype).contiguous(memory_format=memory_format)
    expected = case.oracle(x.double(), copy.deepcopy(layer).double())

    y = layer(x)

    torch.testing.assert_close(y.double(), expected, rtol=1.01 * ROUNDING[dtype], atol=1e-5)


@every_norm
@both_modes
def test_a_float64_layer_is_as_exact_as_its_oracle(case: Case, training: bool) -> None:
    layer = case.layer(training=training).double()
    x = random_map(3, CHANNELS, 9, 14, mean=2, dtype=torch.float64)
    expected = case.oracle(x, copy.deepcopy(layer))

    y = layer(x)

    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)


@every_norm
@both_modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_layer_takes_its_statistics_in_float32(case: Case, training: bool, dtype: torch.dtype) -> None:
    layer = case.layer(training=training).to(dtype)
    x = random_map(3, CHANNELS, 24, 31, mean=20, dtype=dtype)
    expected = case.oracle(x.double(), copy.deepcopy(layer).double())

    y = layer(x)

    torch.testing.assert_close(y.double(), expected, rtol=1.01 * ROUNDING[dtype], atol=1e-4)


@every_norm
@both_modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_leaves_the_statistics_in_float32(case: Case, training: bool, dtype: torch.dtype) -> None:
    layer = case.layer(training=training)
    x = random_map(3, CHANNELS, 24, 31, mean=50, dtype=dtype)
    expected = case.oracle(x.double(), copy.deepcopy(layer).double())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)

    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=1.01 * ROUNDING[dtype], atol=1e-4)


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_leaves_the_gradient_as_it_is(case: Case, dtype: torch.dtype) -> None:
    layer, x = case.layer(), random_map(2, CHANNELS, 9, 14, mean=5, dtype=dtype)
    upstream = random_map(2, CHANNELS, 9, 14, seed=3, dtype=dtype)
    plain, _ = gradients(case, copy.deepcopy(layer), x, upstream)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = gradients(case, layer, x, upstream)

    for one, other in zip(got, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@every_norm
@both_modes
def test_channels_last_changes_no_number(case: Case, training: bool) -> None:
    layer, x = case.layer(training=training), random_map(2, CHANNELS, 60, 90, mean=3)

    y = copy.deepcopy(layer)(x.contiguous(memory_format=torch.channels_last))

    torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)


@norms_where(lambda case: not case.constants_show)
@both_formats
@pytest.mark.parametrize("size", [(5, 9), (60, 90), (512, 512)], ids=str)
def test_adding_a_constant_changes_nothing(
    case: Case, memory_format: torch.memory_format, size: tuple[int, int]
) -> None:
    layer = case.norm(CHANNELS)
    x = random_map(1, CHANNELS, *size).contiguous(memory_format=memory_format)

    moved = layer(x + 1000)

    torch.testing.assert_close(moved, layer(x), rtol=0, atol=1e-3)


@norms_where(lambda case: case.constants_show)
def test_adding_a_constant_shows_where_the_level_comes_from_elsewhere(case: Case) -> None:
    layer, x = case.norm(CHANNELS), random_map(1, CHANNELS, 60, 90)

    moved = copy.deepcopy(layer)(x + 1000)

    assert ((moved - layer(x)).mean(dim=(0, 2, 3)) > 0.1).all()


@every_norm
def test_samples_are_independent_in_evaluation(case: Case) -> None:
    layer, x = case.layer(training=False), random_map(3, CHANNELS, 9, 14)

    together = layer(x)

    torch.testing.assert_close(together[1:2], layer(x[1:2]), rtol=1e-5, atol=1e-5)


@every_norm_but_none
@both_modes
@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_eps_is_added_to_the_variance(case: Case, training: bool, eps: float) -> None:
    layer = with_random_state(case.norm(CHANNELS, eps=eps)).train(training).double()
    x = random_map(2, CHANNELS, 5, 6, dtype=torch.float64)
    expected = case.oracle(x, copy.deepcopy(layer), eps=eps)

    y = layer(x)

    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)


@every_norm
@both_modes
@pytest.mark.parametrize("samples", [1, 2])
def test_a_map_of_one_pixel_is_finite_and_right(case: Case, training: bool, samples: int) -> None:
    if training and samples < case.least_values:
        pytest.skip("the norm needs two values per channel, see cases.py")
    layer, x = case.layer(training=training), random_map(samples, CHANNELS, 1, 1).requires_grad_()
    expected = case.oracle(x.detach().double(), copy.deepcopy(layer).double())

    warns = case.advises_against_one_cell and training
    with pytest.warns(GeonormWarning, match="one cell") if warns else nullcontext():
        y = layer(x)
    y.square().sum().backward()

    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    assert x.grad is not None
    assert x.grad.isfinite().all()


# --- gradients --------------------------------------------------------------------------------------


@every_norm
@both_modes
@both_formats
def test_the_gradient_is_that_of_the_oracle(case: Case, training: bool, memory_format: torch.memory_format) -> None:
    layer = case.layer(training=training).double()
    x = random_map(3, CHANNELS, 7, 11, dtype=torch.float64).contiguous(memory_format=memory_format)
    upstream = random_map(3, CHANNELS, 7, 11, seed=3, dtype=torch.float64)

    got, expected = gradients(case, layer, x, upstream)

    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@every_norm
@both_modes
@pytest.mark.parametrize("mean", [0, 10, 100])
def test_the_gradient_is_accurate_in_float32(case: Case, training: bool, mean: float) -> None:
    layer, x = case.layer(training=training), random_map(3, CHANNELS, 7, 11, mean=mean)
    upstream = random_map(3, CHANNELS, 7, 11, seed=3)

    got, expected = gradients(case, layer, x, upstream)

    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        assert relative_rms(one, expected=other) < 2e-6 * max(mean, 10)


@every_norm
@both_modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_a_half_precision_map_has_its_dtype(case: Case, training: bool, dtype: torch.dtype) -> None:
    layer, x = case.layer(training=training), random_map(3, CHANNELS, 7, 11, mean=2, dtype=dtype)
    upstream = random_map(3, CHANNELS, 7, 11, seed=3, dtype=dtype)

    (got, *of_parameters), (expected, *_) = gradients(case, layer, x, upstream)

    assert got.dtype == dtype
    assert all(grad.dtype == torch.float32 for grad in of_parameters)
    torch.testing.assert_close(got.double(), expected, rtol=2 * ROUNDING[dtype], atol=1e-4)


@every_norm
def test_the_memory_format_of_the_upstream_gradient_does_not_matter(case: Case) -> None:
    layer, x = case.layer(), random_map(2, CHANNELS, 7, 11)
    upstream = random_map(2, CHANNELS, 1, 1, seed=3).expand(2, CHANNELS, 7, 11)

    plain, _ = gradients(case, copy.deepcopy(layer), x, upstream.contiguous())

    for strange in (upstream, upstream.contiguous(memory_format=torch.channels_last)):
        got, _ = gradients(case, copy.deepcopy(layer), x, strange)
        for one, other in zip(got, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@every_norm_but_none
@both_modes
def test_an_in_place_relu_may_follow(case: Case, training: bool) -> None:
    layer, x = case.layer(training=training), random_map(2, CHANNELS, 9, 14)
    inplace, outside = x.clone().requires_grad_(), x.clone().requires_grad_()

    nn.ReLU(inplace=True)(copy.deepcopy(layer)(inplace)).square().sum().backward()
    nn.ReLU(inplace=False)(layer(outside)).square().sum().backward()

    torch.testing.assert_close(inplace.grad, outside.grad, rtol=1e-5, atol=1e-5)


@every_norm
@both_modes
def test_a_frozen_layer_still_passes_the_gradient_on(case: Case, training: bool) -> None:
    layer, x = case.layer(training=training), random_map(2, CHANNELS, 9, 14)
    free, frozen = x.clone().requires_grad_(), x.clone().requires_grad_()

    copy.deepcopy(layer)(free).pow(3).sum().backward()
    layer.requires_grad_(False)(frozen).pow(3).sum().backward()

    torch.testing.assert_close(frozen.grad, free.grad, rtol=1e-5, atol=1e-5)


@every_norm_but_none
def test_the_parameters_learn_from_an_input_without_gradient(case: Case) -> None:
    layer, x = case.layer(), random_map(2, CHANNELS, 9, 14)
    other, watched = copy.deepcopy(layer), x.clone().requires_grad_()

    layer(x).pow(3).sum().backward()
    other(watched).pow(3).sum().backward()

    for one, two in zip(layer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-4)


@every_norm
@both_modes
def test_the_numbers_are_the_same_without_gradients(case: Case, training: bool) -> None:
    layer, x = case.layer(training=training), random_map(2, CHANNELS, 9, 14)
    expected = copy.deepcopy(layer)(x.clone().requires_grad_()).detach()

    with torch.no_grad():
        quiet = copy.deepcopy(layer)(x)
    with torch.inference_mode():
        quietest = copy.deepcopy(layer)(x)

    assert torch.equal(quiet, expected)
    assert torch.equal(quietest, expected)


# --- parameters, checkpoints, copies ----------------------------------------------------------------


@every_norm_but_none
def test_weight_is_one_and_bias_zero_at_first(case: Case) -> None:
    layer = case.norm(CHANNELS)

    assert torch.equal(layer.get_parameter("weight"), torch.ones(CHANNELS))
    assert torch.equal(layer.get_parameter("bias"), torch.zeros(CHANNELS))


@every_norm
@both_modes
def test_a_saved_layer_loads_into_a_new_one(case: Case, training: bool) -> None:
    layer, new = case.layer(training=training), case.norm(CHANNELS).train(training)
    x = random_map(2, CHANNELS, 9, 14)

    new.load_state_dict(layer.state_dict())

    assert torch.equal(new(x), layer(x))


@every_norm_but_none
def test_weights_with_three_more_axes_load(case: Case) -> None:
    network = nn.Sequential(nn.Identity(), case.layer())
    state = network.state_dict()
    weight, bias = torch.rand(1, CHANNELS, 1, 1), torch.rand(1, CHANNELS, 1, 1)

    network.load_state_dict(state | {"1.weight": weight, "1.bias": bias})

    assert torch.equal(network[1].get_parameter("weight"), weight.flatten())
    assert torch.equal(network[1].get_parameter("bias"), bias.flatten())
    assert (weight.shape, bias.shape) == ((1, CHANNELS, 1, 1), (1, CHANNELS, 1, 1))


@every_norm_but_none
def test_weights_of_another_width_do_not_load(case: Case) -> None:
    layer = case.layer()
    wrong = layer.state_dict() | {"weight": torch.rand(1, CHANNELS + 4, 1, 1)}

    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        layer.load_state_dict(wrong)


@every_norm
@both_modes
def test_a_copy_and_a_pickle_compute_the_same(case: Case, training: bool) -> None:
    layer, x = case.layer(training=training), random_map(2, CHANNELS, 9, 14)

    copied, pickled = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))

    expected = layer(x)
    assert torch.equal(copied(x), expected)
    assert torch.equal(pickled(x), expected)


@pytest.fixture
def deterministic_algorithms() -> Iterator[None]:
    """Let torch refuse what it cannot repeat."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@every_norm
@pytest.mark.usefixtures("deterministic_algorithms")
def test_it_works_with_deterministic_algorithms_only(case: Case) -> None:
    x, upstream = random_map(2, CHANNELS, 60, 90), random_map(2, CHANNELS, 60, 90, seed=3)

    runs = []
    for _ in range(2):
        layer, leaf = case.layer(), x.clone().requires_grad_()
        layer(leaf).backward(upstream)
        runs.append([leaf.grad, *(parameter.grad for parameter in layer.parameters())])

    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


# --- settings ---------------------------------------------------------------------------------------


@every_norm_but_none
@pytest.mark.parametrize("shape", [(2, 8, 9, 14), (2, 16, 9, 14), (2, 1, 9, 14)], ids=str)
@both_modes
def test_a_wrong_number_of_channels_is_an_error(case: Case, shape: tuple[int, ...], training: bool) -> None:
    layer = case.layer(training=training)

    with pytest.raises(InvalidConfigError, match=rf"\b{shape[1]}\b"):
        layer(torch.rand(shape))


@every_norm_but_none
@pytest.mark.parametrize("shape", [(CHANNELS,), (2, CHANNELS), (CHANNELS, 9, 14), (1, 2, CHANNELS, 9, 14)], ids=str)
@both_modes
def test_a_tensor_that_is_not_a_batch_of_maps_is_an_error(case: Case, shape: tuple[int, ...], training: bool) -> None:
    layer = case.layer(training=training)

    with pytest.raises(InvalidConfigError, match=r"(?s).+"):
        layer(torch.rand(shape))


@every_norm
def test_only_the_channel_count_is_positional(case: Case) -> None:
    with pytest.raises(TypeError, match="positional"):
        case.norm(CHANNELS, 4)


@every_norm
def test_a_layer_without_a_window_in_pixels_ignores_the_stride(case: Case) -> None:
    fine, coarse = case.norm(CHANNELS, stride=1), case.norm(CHANNELS, stride=16)
    x = random_map(2, CHANNELS, 9, 14)

    assert torch.equal(fine(x), coarse(x))
