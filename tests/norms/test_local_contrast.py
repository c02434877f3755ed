"""Local contrast normalization: a Gaussian window, borders, and flat patches that stay flat."""

import math

import pytest
import torch
from torch import Tensor

from geonorm.errors import InvalidConfigError
from geonorm.norms import LocalContrastNorm, PositionalNorm
from tests.norms import oracles
from tests.norms.maps import random_map, relative_rms, scene, with_random_state

FORMATS = [torch.contiguous_format, torch.channels_last]


def make(num_features: int, *, window: int) -> LocalContrastNorm:
    """Return a layer with random weight and bias."""
    return with_random_state(LocalContrastNorm(num_features, window_cells=window))


def expected_of(x: Tensor, layer: LocalContrastNorm, *, window: int) -> Tensor:
    """Return in float64 what the definition gives."""
    return oracles.local_contrast_norm(
        x.double(), weight=layer.weight.double(), bias=layer.bias.double(), window=window
    )


def weights_of(window: int, *, size: tuple[int, int], at: tuple[int, int]) -> Tensor:
    """Return how much each cell's mean takes from the cell `at`.

    With a huge eps the deviation is the same everywhere, so the layer only subtracts the mean.
    """
    layer = LocalContrastNorm(1, window_cells=window, eps=1e12).double()
    impulse = torch.zeros(1, 1, *size, dtype=torch.float64)
    impulse[0, 0, at[0], at[1]] = 1
    return (impulse - layer(impulse) * 1e6)[0, 0].detach()


# --- the window -------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 5, 9])
def test_the_weights_are_a_gaussian_that_sums_to_1(window: int) -> None:
    half = window // 2
    bell = torch.exp(-((torch.arange(-half, half + 1).double() / (window / 4)) ** 2) / 2)
    expected = torch.zeros(20, 30, dtype=torch.float64)
    expected[9 - half : 10 + half, 14 - half : 15 + half] = bell[:, None] * bell

    weights = weights_of(window, size=(20, 30), at=(9, 14))

    torch.testing.assert_close(weights.sum().item(), 1.0, rtol=0, atol=1e-9)
    torch.testing.assert_close(weights, expected / expected.sum(), rtol=0, atol=1e-9)


def test_at_the_border_the_cells_inside_share_the_weight_of_those_outside() -> None:
    near, far = math.exp(-((1 / (3 / 4)) ** 2) / 2), math.exp(-((2 / (3 / 4)) ** 2) / 2)

    from_corner = weights_of(3, size=(6, 7), at=(0, 0))

    assert far > 0  # two cells away it would still weigh something, but the window ends before
    torch.testing.assert_close(from_corner[0, 0].item(), (1 / (1 + near)) ** 2, rtol=0, atol=1e-9)
    torch.testing.assert_close(from_corner[0, 1].item(), 1 / (1 + near) * near / (1 + 2 * near), rtol=0, atol=1e-9)
    assert (from_corner[2:].abs() < 1e-9).all()
    assert (from_corner[:, 2:].abs() < 1e-9).all()


@pytest.mark.parametrize("window", [1, 3, 5, 9, 31])
@pytest.mark.parametrize("size", [(13, 22), (5, 9), (1, 1), (1, 17), (17, 1), (2, 3)], ids=str)
def test_it_computes_what_the_definition_gives_on_maps_of_any_size(size: tuple[int, int], window: int) -> None:
    layer = make(4, window=window)
    x = random_map(2, 4, *size, mean=3, dtype=torch.float64)
    expected = expected_of(x, layer, window=window)

    torch.testing.assert_close(layer.double()(x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.float()(x.float()).double(), expected, rtol=0, atol=1e-4)


def test_a_window_of_nine_cells_is_the_default() -> None:
    default, nine = LocalContrastNorm(4), LocalContrastNorm(4, window_cells=9)
    x = random_map(2, 4, 13, 22)

    assert torch.equal(default(x), nine(x))


def test_a_window_of_one_cell_is_positional_norm_where_the_contrast_is_high() -> None:
    local, positional = make(12, window=1).double(), with_random_state(PositionalNorm(12)).double()
    x = random_map(2, 12, 9, 14, dtype=torch.float64)
    deviation = (x.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
    high = (deviation > deviation.mean(dim=(2, 3), keepdim=True)).expand_as(x)

    torch.testing.assert_close(local(x)[high], positional(x)[high], rtol=1e-12, atol=1e-12)


# --- the deviation ----------------------------------------------------------------------------------


def test_low_contrast_is_not_amplified_to_high() -> None:
    layer, x = LocalContrastNorm(4).double(), random_map(1, 4, 20, 60, dtype=torch.float64)
    x[..., 30:] *= 0.01

    y = layer(x).detach()

    assert 0.9 < y[..., :24].std() < 1.1
    assert y[..., 36:].std() < 0.03


def test_all_channels_share_mean_and_deviation() -> None:
    layer, x = LocalContrastNorm(4).double(), random_map(1, 4, 13, 22, dtype=torch.float64)
    x[:, 1] += 5
    x[:, 2] *= 10

    y = layer(x).detach()

    means, deviations = y.mean(dim=(0, 2, 3)), y.std(dim=(0, 2, 3))
    assert means[1] > means[0] + 0.5
    assert deviations[2] > 5 * deviations[0]


def test_what_lies_beyond_the_window_changes_a_cell_through_the_mean_deviation_only() -> None:
    layer, x = LocalContrastNorm(4, window_cells=3).double(), random_map(1, 4, 13, 40, dtype=torch.float64)
    changed = x.clone()
    changed[..., 30:] *= 100

    before, after = layer(x)[..., :28].detach(), layer(changed)[..., :28].detach()

    ratio = (after / before).amax(dim=1), (after / before).amin(dim=1)
    torch.testing.assert_close(*ratio, rtol=1e-6, atol=0)
    assert (ratio[0] < 0.2).all()


# --- flat patches, large means ----------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 3.0, 1000.0])
@pytest.mark.parametrize("flat", [slice(0, 40), slice(0, 25), slice(12, 30)], ids=["all", "left", "middle"])
def test_a_flat_patch_becomes_the_bias_and_has_a_finite_gradient(flat: slice, value: float) -> None:
    layer, x = make(4, window=5), random_map(2, 4, 20, 40, mean=value)
    x[..., flat] = value
    x.requires_grad_()

    y = layer(x)
    y.square().sum().backward()

    inner = y[..., flat.start + 3 : flat.stop - 3].detach()
    torch.testing.assert_close(inner, layer.bias.detach().reshape(1, 4, 1, 1).expand_as(inner), rtol=0, atol=1e-3)
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (x, layer.weight, layer.bias))


def test_the_gradient_beside_a_flat_patch_is_that_of_the_definition() -> None:
    layer, x = make(4, window=5).double(), random_map(1, 4, 9, 20, dtype=torch.float64)
    x[..., :12] = 0
    x.requires_grad_()
    upstream = random_map(1, 4, 9, 20, seed=3, dtype=torch.float64)
    (expected,) = torch.autograd.grad(expected_of(x, layer, window=5), x, upstream)

    (gradient,) = torch.autograd.grad(layer(x), x, upstream)

    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("mean", [0, 10, 100, 1000])
def test_a_large_mean_costs_little_accuracy(memory_format: torch.memory_format, mean: float) -> None:
    layer = make(4, window=9).requires_grad_(False)
    x = scene(4, 24, 31, mean=mean).contiguous(memory_format=memory_format)

    y = layer(x)

    assert relative_rms(y, expected=expected_of(x, layer, window=9)) < max(2e-6, 1e-7 * mean)


def test_two_levels_far_apart_stay_accurate() -> None:
    layer, x = make(4, window=5).requires_grad_(False), random_map(1, 4, 24, 31)
    x[..., 15:] += 100

    y = layer(x)

    assert relative_rms(y, expected=expected_of(x, layer, window=5)) < 1e-4


# --- settings ---------------------------------------------------------------------------------------


def test_nothing_but_weight_and_bias_is_stored() -> None:
    assert set(LocalContrastNorm(8).state_dict()) == {"weight", "bias"}


def test_training_and_evaluation_are_the_same() -> None:
    layer, x = make(8, window=5), random_map(2, 8, 13, 22)

    assert torch.equal(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize("window_cells", [0, -3, 2, 8])
def test_a_window_without_a_centre_is_an_error(window_cells: int) -> None:
    with pytest.raises(InvalidConfigError, match=rf"(?s)(?=.*window_cells)(?=.*{window_cells})(?=.*odd)"):
        LocalContrastNorm(8, window_cells=window_cells)


@pytest.mark.parametrize(("num_features", "eps"), [(0, 1e-5), (-4, 1e-5), (6, 0.0), (6, -1e-5)])
def test_a_setting_out_of_range_is_an_error(num_features: int, eps: float) -> None:
    with pytest.raises(InvalidConfigError, match="eps" if num_features > 0 else "num_features"):
        LocalContrastNorm(num_features, eps=eps)
