"""Local context normalization: numbers, gradients, borders, and the same bits in every crop."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from geonorm.errors import InvalidConfigError
from geonorm.norms import GroupNorm, InstanceNorm, LayerNorm, LocalContextNorm, compiled
from tests.norms import oracles
from tests.norms.maps import random_map, relative_rms, scene, with_random_state
from tests.norms.oracles import Border

BORDERS: list[Border] = ["nearest", "clip"]
FORMATS = [torch.contiguous_format, torch.channels_last]
WINDOWS = [(1, 1), (3, 3), (5, 5), (2, 2), (4, 4), (7, 3), (2, 9), (6, 1), (1, 8)]
MAPS = [(13, 22), (5, 9), (1, 1), (1, 17), (17, 1), (2, 3)]

both_borders = pytest.mark.parametrize("border", BORDERS)
both_formats = pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "channels_last"])


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True, params=["compiled", "plain torch"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run every test with the compiled loops, and in plain torch."""
    with compiled.plain_torch() if request.param == "plain torch" else nullcontext():
        yield request.param


@pytest.fixture(scope="module", params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test with this number of threads."""
    with torch_threads(request.param):
        yield request.param


def make(
    num_features: int, *, window: tuple[int, int] | int, group_size: int = 4, border: Border = "nearest"
) -> LocalContextNorm:
    """Return a layer with random weight and bias."""
    layer = LocalContextNorm(num_features, window_cells=window, group_size=group_size, border=border)
    return with_random_state(layer)


def oracle(x: Tensor, layer: LocalContextNorm, *, window: tuple[int, int], group_size: int, border: Border) -> Tensor:
    """Return in float64 what `layer` should make of `x`."""
    return oracles.local_context_norm(
        x.double(),
        weight=layer.weight.double(),
        bias=layer.bias.double(),
        window=window,
        group_size=group_size,
        border=border,
    )


# --- against the oracle -----------------------------------------------------------------------------


def test_the_numbers_of_a_map_small_enough_to_check_by_hand() -> None:
    x = torch.tensor([[0.0, 2.0, 4.0, 12.0]], dtype=torch.float64).reshape(1, 1, 1, 4)
    nearest = LocalContextNorm(1, window_cells=(1, 3), group_size=1, eps=1e-12)
    clip = LocalContextNorm(1, window_cells=(1, 3), group_size=1, border="clip", eps=1e-12)
    even = LocalContextNorm(1, window_cells=(1, 2), group_size=1, border="clip", eps=1e-12)

    # windows 0 2 4 | 0 2 4 | 2 4 12 | 2 4 12: means 2 2 6 6, variances 8/3 8/3 56/3 56/3
    by_hand = torch.tensor([-2 / (8 / 3) ** 0.5, 0, -2 / (56 / 3) ** 0.5, 6 / (56 / 3) ** 0.5])
    torch.testing.assert_close(nearest(x).flatten(), by_hand.double())
    # windows 0 2 | 0 2 4 | 2 4 12 | 4 12: means 1 2 6 8, variances 1 8/3 56/3 16
    by_hand = torch.tensor([-1, 0, -2 / (56 / 3) ** 0.5, 1])
    torch.testing.assert_close(clip(x).flatten(), by_hand.double())
    # windows 0 2 | 2 4 | 4 12 | 12: the extra cell lies after, the last window is cut to one cell
    torch.testing.assert_close(even(x).flatten(), torch.tensor([-1, -1, -1, 0]).double())


@both_borders
@pytest.mark.parametrize("window", [*WINDOWS, (31, 31), (100, 3), (3, 100), (13, 22), (12, 23)], ids=str)
@pytest.mark.parametrize("size", MAPS, ids=str)
def test_it_computes_what_the_oracle_computes(size: tuple[int, int], window: tuple[int, int], border: Border) -> None:
    layer = make(4, window=window, group_size=2, border=border)
    x = random_map(2, 4, *size, mean=3, dtype=torch.float64)
    expected = oracle(x, layer, window=window, group_size=2, border=border)

    torch.testing.assert_close(layer.double()(x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.float()(x.float()).double(), expected, rtol=0, atol=2e-4)


@both_borders
@both_formats
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 6, 12])
def test_consecutive_channels_share_their_statistics(
    group_size: int, border: Border, memory_format: torch.memory_format
) -> None:
    layer = make(12, window=(5, 4), group_size=group_size, border=border).double()
    x = random_map(2, 12, 8, 11, dtype=torch.float64) * torch.arange(1, 13).reshape(1, 12, 1, 1)
    expected = oracle(x, layer, window=(5, 4), group_size=group_size, border=border)

    y = layer(x.contiguous(memory_format=memory_format))

    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)


@both_borders
@pytest.mark.parametrize("window", [(7, 5), (12, 31), (91, 91), (61, 20), (20, 91)], ids=str)
def test_rows_and_columns_are_not_mixed_up_on_a_map_of_60_by_90(window: tuple[int, int], border: Border) -> None:
    layer = make(4, window=window, border=border).double()
    x = random_map(1, 4, 60, 90, mean=3, dtype=torch.float64)
    expected = oracle(x, layer, window=window, group_size=4, border=border)

    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.float()(x.float()).double(), expected, rtol=0, atol=1e-5)


@both_borders
def test_every_length_of_a_window_is_right(border: Border) -> None:
    x = random_map(1, 2, 1, 300, mean=3, dtype=torch.float64)
    lengths = [*range(1, 40), 63, 64, 65, 91, 127, 128, 129, 227, 255, 256, 257, 299, 300, 301]

    for length in lengths:
        rows = make(2, window=(1, length), group_size=2, border=border).double()
        cols = make(2, window=(length, 1), group_size=2, border=border).double()
        mean, variance = oracles.box_moments(x, window=(1, length), group_size=2, border=border)
        expected = oracles.scaled((x - mean) / (variance + 1e-5).sqrt(), weight=rows.weight, bias=rows.bias)

        torch.testing.assert_close(rows(x), expected, rtol=0, atol=1e-9, msg=str(length))
        torch.testing.assert_close(cols(x.mT), expected.mT, rtol=0, atol=1e-9, msg=str(length))


@both_borders
@pytest.mark.parametrize("window", [(5, 4), (31, 31), (91, 3), (10, 200)], ids=str)
def test_the_fast_oracle_agrees_with_the_plain_one(window: tuple[int, int], border: Border) -> None:
    x = random_map(2, 4, 30, 43, mean=7, dtype=torch.float64)

    fast = oracles.box_moments(x, window=window, group_size=2, border=border)

    plain = oracles.window_moments(x, window=window, group_size=2, border=border)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=150)
@given(
    samples=st.integers(1, 3),
    groups=st.integers(1, 3),
    group_size=st.integers(1, 4),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    window=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    border=st.sampled_from(BORDERS),
    memory_format=st.sampled_from(FORMATS),
    mean=st.sampled_from([0.0, -3.0, 50.0]),
)
def test_any_shape_and_window_agree_with_the_oracle(
    samples: int,
    groups: int,
    group_size: int,
    height: int,
    width: int,
    window: tuple[int, int],
    border: Border,
    memory_format: torch.memory_format,
    mean: float,
) -> None:
    layer = make(groups * group_size, window=window, group_size=group_size, border=border).double()
    x = random_map(samples, groups * group_size, height, width, mean=mean, dtype=torch.float64)
    expected = oracle(x, layer, window=window, group_size=group_size, border=border)

    y = layer(x.contiguous(memory_format=memory_format))

    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)


# --- relatives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(14, 21), (15, 22), (101, 101), (14, 999)], ids=str)
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 12])
def test_a_window_as_large_as_the_map_is_group_norm(window: tuple[int, int], group_size: int) -> None:
    layer = make(12, window=window, group_size=group_size).double()
    group = with_random_state(GroupNorm(12, group_size=group_size)).double()
    x = random_map(2, 12, 14, 21, mean=3, dtype=torch.float64)

    torch.testing.assert_close(layer(x), group(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 12])
def test_a_window_larger_than_the_map_is_group_norm_at_a_cut_border_too(group_size: int) -> None:
    layer = make(12, window=(15, 22), group_size=group_size, border="clip").double()
    group = with_random_state(GroupNorm(12, group_size=group_size)).double()
    x = random_map(2, 12, 14, 21, mean=3, dtype=torch.float64)

    torch.testing.assert_close(layer(x), group(x), rtol=0, atol=1e-12)


@both_borders
def test_a_window_over_everything_is_layer_norm_or_instance_norm(border: Border) -> None:
    x = random_map(2, 12, 14, 21, mean=3, dtype=torch.float64)
    layer = with_random_state(LayerNorm(12)).double()
    instance = with_random_state(InstanceNorm(12)).double()

    all_channels = make(12, window=99, group_size=12, border=border).double()
    one_channel = make(12, window=99, group_size=1, border=border).double()

    torch.testing.assert_close(all_channels(x), layer(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(one_channel(x), instance(x), rtol=0, atol=1e-12)


@both_borders
@pytest.mark.parametrize("window", [(3, 3), (5, 9), (31, 7)], ids=str)
def test_turning_or_flipping_the_map_turns_or_flips_the_result(window: tuple[int, int], border: Border) -> None:
    layer, turned = make(8, window=window, border=border), make(8, window=window[::-1], border=border)
    x = random_map(2, 8, 24, 37)
    y = layer(x)

    torch.testing.assert_close(layer(x.flip(2)), y.flip(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(x.flip(3)), y.flip(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned(x.mT), y.mT, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned(x.rot90(1, (2, 3))), y.rot90(1, (2, 3)), rtol=0, atol=1e-5)


# --- gradients --------------------------------------------------------------------------------------


@both_borders
@both_formats
@pytest.mark.parametrize("window", [(3, 3), (2, 4), (5, 2), (1, 1), (9, 3), (2, 9), (9, 9)], ids=str)
def test_the_gradient_is_that_of_finite_differences(
    window: tuple[int, int], border: Border, memory_format: torch.memory_format
) -> None:
    layer = make(4, window=window, group_size=2, border=border).double()
    x = random_map(1, 4, 5, 4, dtype=torch.float64).contiguous(memory_format=memory_format)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (x.requires_grad_(), layer.weight, layer.bias)
    assert torch.autograd.gradcheck(function, inputs)


@both_borders
@pytest.mark.parametrize("window", [(5, 5), (4, 7), (40, 3), (3, 40), (13, 16), (40, 40)], ids=str)
@pytest.mark.parametrize("mean", [0, 100, 1000])
def test_the_gradient_is_accurate_in_float32(window: tuple[int, int], border: Border, mean: float) -> None:
    layer, x = make(8, window=window, border=border), random_map(2, 8, 16, 21, mean=mean).requires_grad_()
    upstream, exact_x = random_map(2, 8, 16, 21, seed=3), x.detach().double().requires_grad_()
    exact_y = oracle(exact_x, layer, window=window, group_size=4, border=border)
    expected = torch.autograd.grad(exact_y, [exact_x, layer.weight, layer.bias], upstream.double())

    got = torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], upstream)

    for one, other in zip(got, expected, strict=True):
        assert relative_rms(one, expected=other.double()) < max(2e-6, 1e-7 * mean)


@both_borders
@pytest.mark.parametrize("window", [(5, 5), (4, 7), (6, 1)], ids=str)
def test_a_cell_depends_on_its_window_and_on_nothing_else(window: tuple[int, int], border: Border) -> None:
    layer, x = make(8, window=window, border=border), random_map(1, 8, 12, 17).requires_grad_()
    rows, cols = oracles.spans(12, window[0], border), oracles.spans(17, window[1], border)
    y = layer(x)

    for row, col in [(0, 0), (1, 8), (5, 8), (11, 16), (6, 15)]:
        (grad,) = torch.autograd.grad(y[0, 5, row, col], x, retain_graph=True)
        inside = torch.zeros(8, 12, 17, dtype=torch.bool)
        inside[4:, slice(*rows[row]), slice(*cols[col])] = True
        assert torch.equal(grad[0] != 0, inside)


@both_borders
@pytest.mark.parametrize("intruder", [1e30, float("inf"), float("nan")])
@pytest.mark.parametrize(("row", "col"), [(6, 3), (0, 0), (11, 16), (1, 15)])
def test_a_strange_cell_touches_only_the_windows_that_hold_it(
    row: int, col: int, border: Border, intruder: float
) -> None:
    layer, x = make(8, window=(5, 4), border=border), random_map(1, 8, 12, 17)
    strange = x.clone()
    strange[0, 2, row, col] = intruder

    changed = (layer(strange) != layer(x))[0]

    rows = torch.tensor([top <= row < bottom for top, bottom in oracles.spans(12, 5, border)])
    cols = torch.tensor([left <= col < right for left, right in oracles.spans(17, 4, border)])
    assert torch.equal(changed[:4].any(dim=0), rows[:, None] & cols)
    assert not changed[4:].any()


@both_borders
def test_a_second_derivative_is_refused(border: Border) -> None:
    layer, x = make(8, window=5, border=border), random_map(2, 8, 12, 17).requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)

    with pytest.raises(RuntimeError, match=r"twice|local_context_norm_backward"):
        torch.autograd.grad(grad.square().sum(), x)


@both_borders
@both_formats
@pytest.mark.parametrize("window", [(5, 5), (91, 91), (91, 5)], ids=str)
def test_the_graph_keeps_the_input_and_two_numbers_for_each_group(
    window: tuple[int, int], border: Border, memory_format: torch.memory_format
) -> None:
    layer = make(16, window=window, border=border)
    x = random_map(2, 16, 60, 90).contiguous(memory_format=memory_format).requires_grad_()
    saved: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        layer(x)

    assert x.untyped_storage().data_ptr() in saved
    assert sum(saved.values()) <= 1.5 * x.untyped_storage().nbytes() + 4 * layer.weight.untyped_storage().nbytes()


# --- accuracy ---------------------------------------------------------------------------------------


def error_against_float64(x: Tensor, *, window: int, border: Border, group_size: int = 4) -> Tensor:
    """Return the error of every cell and the expected value, stacked, float64."""
    size = (window, window)
    layer = LocalContextNorm(x.shape[1], window_cells=size, group_size=group_size, border=border)
    mean, variance = oracles.box_moments(x, window=size, group_size=group_size, border=border)
    with torch.inference_mode():
        y = layer(x).double()
    exact = x.double() - oracles.per_channel(mean, group_size)
    exact /= oracles.per_channel(variance + 1e-5, group_size).sqrt()
    return torch.stack([y - exact, exact])


@both_borders
@pytest.mark.parametrize("window", [3, 31, 32, 91, 600])
@pytest.mark.parametrize("mean", [0, 1, 10, 100, 1000, 1030])
def test_a_large_mean_costs_little_accuracy(mean: float, window: int, border: Border) -> None:
    x = scene(4, 512, 512, mean=mean)

    error, expected = error_against_float64(x, window=window, border=border)

    assert relative_rms(error + expected, expected=expected) < max(2e-6, 4e-8 * mean)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mean", "window", "border"),
    [(10, 31, "nearest"), (0, 227, "clip"), (1000, 31, "clip"), (1030, 227, "nearest")],
)
def test_a_large_mean_costs_little_accuracy_on_a_large_map(mean: float, window: int, border: Border) -> None:
    x = scene(4, 4096, 4096, mean=mean)

    error, expected = error_against_float64(x, window=window, border=border)

    assert relative_rms(error + expected, expected=expected) < max(2e-6, 4e-8 * mean)


@both_borders
@pytest.mark.parametrize("window", [5, 31, 91])
@pytest.mark.parametrize("level", [0, 1, 10])
def test_still_water_beside_a_town_stays_accurate(window: int, border: Border, level: float) -> None:
    x = random_map(1, 4, 256, 384)
    x[..., 192:] = level + 0.01 * x[..., 192:]

    error, expected = error_against_float64(x, window=window, border=border)

    water = slice(192 + window, None)
    bound = max(2e-6, 4e-8 * level / 0.01)
    assert relative_rms((error + expected)[..., water], expected=expected[..., water]) < bound
    assert relative_rms((error + expected)[..., 192:], expected=expected[..., 192:]) < bound


@both_borders
@both_formats
@pytest.mark.parametrize(
    ("window", "group_size"), [((31, 31), 4), ((64, 5), 1), ((1500, 9), 2), ((700, 700), 4)], ids=str
)
def test_large_maps_agree_with_the_fast_oracle(
    window: tuple[int, int], group_size: int, border: Border, memory_format: torch.memory_format
) -> None:
    layer = make(4, window=window, group_size=group_size, border=border).requires_grad_(False).double()
    x = random_map(1, 4, 1300, 150, mean=3, dtype=torch.float64)
    x = (x * torch.linspace(1, 2, 1300)[:, None]).contiguous(memory_format=memory_format)
    mean, variance = oracles.box_moments(x, window=window, group_size=group_size, border=border)
    normal = x - oracles.per_channel(mean, group_size)
    normal /= oracles.per_channel(variance + 1e-5, group_size).sqrt()

    y = layer(x)

    expected = oracles.scaled(normal, weight=layer.weight, bias=layer.bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-7)


@both_borders
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 255.0, 1234.567, 65535.0])
def test_a_constant_map_becomes_the_bias(border: Border, value: float) -> None:
    layer, x = make(8, window=31, border=border), torch.full((1, 8, 60, 90), value)

    y = layer(x)

    bias = layer.bias.reshape(1, 8, 1, 1).expand(x.shape)
    torch.testing.assert_close(y, bias, rtol=0, atol=max(1e-6, 2e-5 * value))


# --- the same bits everywhere -----------------------------------------------------------------------

HEIGHT, WIDTH = 60, 90


@cache
def whole_map() -> Tensor:
    """Return five samples with slopes, edges and a large mean."""
    samples = [scene(8, HEIGHT, WIDTH, mean=mean) for mean in (0, 1, 10, 100, 1000)]
    return torch.cat(samples).mul_(random_map(5, 8, 1, WIDTH, seed=5).exp())


@cache
def whole_result(
    way: str, window: tuple[int, int], group_size: int, border: Border, memory_format: torch.memory_format
) -> Tensor:
    """Return the normalized whole map, all samples at once, from one thread, computed in the `way` of the test."""
    layer = make(8, window=window, group_size=group_size, border=border)
    with torch.no_grad(), torch_threads(1):
        return layer(whole_map().contiguous(memory_format=memory_format))


def assert_same_bits(crop: Tensor, whole: Tensor, *, layer: LocalContextNorm, top: int, left: int) -> None:
    """Compare the results of a crop and of the whole where a cell has the same window in both."""
    kept = []
    for dim, start in ((2, top), (3, left)):
        ours = oracles.spans(crop.shape[dim], layer.window[dim - 2], layer.border)
        theirs = oracles.spans(whole.shape[dim], layer.window[dim - 2], layer.border)
        moved = [(first + start, after + start) for first, after in ours]
        kept.append(torch.tensor([i for i, span in enumerate(moved) if span == theirs[start + i]]))
    rows, cols = kept
    assert len(rows) * len(cols) > 0
    assert torch.equal(crop[:, :, rows][..., cols], whole[:, :, top + rows][..., left + cols])


@st.composite
def crops(draw: st.DrawFn, length: int, window: int) -> tuple[int, int]:
    """Draw the first and the end of a crop that holds a window; as often as not it touches an edge."""
    size = draw(st.integers(min(window, length), length))
    start = draw(st.one_of(st.just(0), st.just(length - size), st.integers(0, length - size)))
    return start, start + size


@st.composite
def windows_and_crops(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Draw a window and a crop in rows and columns."""
    window = draw(st.sampled_from([(5, 5), (31, 31), (8, 3), (2, 16), (1, 7), (9, 1), (99, 5), (4, 99)]))
    return window, draw(crops(HEIGHT, window[0])), draw(crops(WIDTH, window[1]))


@settings(deadline=None, max_examples=100)
@given(
    window_and_crop=windows_and_crops(),
    samples=st.sampled_from([slice(0, 5), slice(0, 1), slice(4, 5), slice(1, 3), slice(0, 5, 3)]),
    group_size=st.sampled_from([1, 4, 8]),
    border=st.sampled_from(BORDERS),
    memory_format=st.sampled_from(FORMATS),
    as_view=st.booleans(),
    with_grad=st.booleans(),
)
@pytest.mark.usefixtures("threads")
def test_a_crop_gives_bit_for_bit_what_the_whole_map_gives(
    window_and_crop: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    samples: slice,
    group_size: int,
    border: Border,
    memory_format: torch.memory_format,
    as_view: bool,
    with_grad: bool,
    way: str,
) -> None:
    window, (top, bottom), (left, right) = window_and_crop
    layer = make(8, window=window, group_size=group_size, border=border)
    x = whole_map().contiguous(memory_format=memory_format)[samples, :, top:bottom, left:right]

    with torch.set_grad_enabled(with_grad):
        crop = layer(x if as_view else x.contiguous(memory_format=memory_format)).detach()

    whole = whole_result(way, window, group_size, border, memory_format)[samples]
    assert_same_bits(crop, whole, layer=layer, top=top, left=left)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("group_size", "border", "memory_format"),
    [
        (4, "nearest", torch.contiguous_format),
        (4, "clip", torch.channels_last),
        (1, "clip", torch.contiguous_format),
        (12, "nearest", torch.channels_last),
        (12, "clip", torch.contiguous_format),
    ],
    ids=str,
)
def test_neither_threads_nor_batch_nor_crop_change_a_bit_of_a_large_map(
    group_size: int, border: Border, memory_format: torch.memory_format
) -> None:
    layer = make(12, window=(31, 30), group_size=group_size, border=border).requires_grad_(False)
    x = random_map(5, 12, 140, 264, mean=20).contiguous(memory_format=memory_format)
    with torch_threads(1):
        expected = layer(x)

    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x[3:4]), expected[3:4])
    assert_same_bits(layer(x[1:3, :, 11:137, 19:250]), expected[1:3], layer=layer, top=11, left=19)
    assert_same_bits(layer(x[:1, :, 97:, 19:250]), expected[:1], layer=layer, top=97, left=19)


@both_borders
@both_formats
def test_a_crop_of_a_map_larger_than_any_cache_keeps_its_bits(
    border: Border, memory_format: torch.memory_format
) -> None:
    layer = make(4, window=(30, 31), border=border).requires_grad_(False)
    x = random_map(1, 4, 1300, 600, mean=20).contiguous(memory_format=memory_format)
    with torch_threads(1):
        whole = layer(x)

    for top, bottom, left, right in [(0, 1300, 300, 400), (17, 1250, 3, 200), (651, 780, 0, 600)]:
        crop = layer(x[..., top:bottom, left:right])
        assert_same_bits(crop, whole, layer=layer, top=top, left=left)


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window_px", "cells"),
    [
        (91, {1: 91, 2: 45, 4: 23, 8: 11, 16: 5, 32: 3}),
        (65, {1: 65, 2: 33, 4: 17, 8: 9, 16: 5, 32: 3}),
        (64, {1: 65, 2: 33, 4: 17, 8: 9, 16: 5, 32: 3}),
        (31, {1: 31, 2: 15, 4: 7, 8: 3, 16: 3, 32: 3}),
        (1, {1: 3, 2: 3, 32: 3}),
    ],
)
def test_a_window_in_pixels_shrinks_with_the_stride(window_px: int, cells: dict[int, int]) -> None:
    for stride, side in cells.items():
        assert LocalContextNorm(8, stride=stride, window_px=window_px).window == (side, side)


@given(window_px=st.integers(1, 1000), stride=st.integers(1, 32))
def test_a_window_in_pixels_is_odd_and_no_larger_than_asked_but_for_three_cells(window_px: int, stride: int) -> None:
    rows, cols = LocalContextNorm(8, stride=stride, window_px=window_px).window

    assert rows == cols == 2 * max(1, window_px // (2 * stride)) + 1
    assert rows == 3 or (rows - 1) * stride <= window_px


@pytest.mark.parametrize("stride", [1, 4, 32])
def test_a_window_in_cells_is_the_same_at_every_stride(stride: int) -> None:
    assert LocalContextNorm(8, stride=stride, window_cells=31).window == (31, 31)
    assert LocalContextNorm(8, stride=stride, window_cells=(4, 7)).window == (4, 7)


def test_a_window_in_pixels_computes_what_its_cells_compute() -> None:
    in_pixels = with_random_state(LocalContextNorm(8, stride=4, window_px=31))
    in_cells = with_random_state(LocalContextNorm(8, window_cells=7))
    x = random_map(2, 8, 20, 33)

    assert torch.equal(in_pixels(x), in_cells(x))


def test_four_channels_and_the_nearest_window_are_the_default() -> None:
    default = LocalContextNorm(8, window_cells=5)
    named = LocalContextNorm(8, window_cells=5, group_size=4, border="nearest", eps=1e-5)
    x = random_map(2, 8, 20, 33)

    assert torch.equal(default(x), named(x))


def test_nothing_but_weight_and_bias_is_stored() -> None:
    assert set(LocalContextNorm(8, window_cells=5).state_dict()) == {"weight", "bias"}


def test_training_and_evaluation_are_the_same() -> None:
    layer, x = make(8, window=5), random_map(2, 8, 20, 33)

    assert torch.equal(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize("group_size", [5, 8, 0, -4])
def test_a_group_size_that_does_not_divide_the_channels_is_an_error(group_size: int) -> None:
    with pytest.raises(InvalidConfigError, match=rf"(?s)(?=.*group_size)(?=.*{group_size})(?=.*12)"):
        LocalContextNorm(12, window_cells=5, group_size=group_size)


@pytest.mark.parametrize("window_cells", [0, -3, (0, 3), (3, 0), (3, -1)], ids=str)
def test_a_window_without_a_cell_is_an_error(window_cells: int | tuple[int, int]) -> None:
    with pytest.raises(InvalidConfigError, match="window_cells"):
        LocalContextNorm(8, window_cells=window_cells)


@pytest.mark.parametrize("window_px", [0, -31])
def test_a_window_without_a_pixel_is_an_error(window_px: int) -> None:
    with pytest.raises(InvalidConfigError, match="window_px"):
        LocalContextNorm(8, window_px=window_px)


def test_the_window_is_given_exactly_once() -> None:
    with pytest.raises(InvalidConfigError, match=r"(?s)(?=.*window_cells)(?=.*window_px)"):
        LocalContextNorm(8)
    with pytest.raises(InvalidConfigError, match=r"(?s)(?=.*window_cells)(?=.*window_px)"):
        LocalContextNorm(8, window_cells=5, window_px=31)


def test_an_unknown_border_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(InvalidConfigError, match=r"(?s)(?=.*mirror)(?=.*nearest)(?=.*clip)"):
        LocalContextNorm(8, window_cells=5, border="mirror")  # type: ignore[arg-type]


# --- cost -------------------------------------------------------------------------------------------


class CountOperators(TorchDispatchMode):
    """Count the operators that torch is asked for."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count one and do it."""
        self.operators += 1
        return func(*args, **(kwargs or {}))


@both_borders
def test_the_cost_grows_with_the_logarithm_of_the_window(border: Border) -> None:
    x = random_map(1, 4, 300, 300, dtype=torch.float64)  # never compiled

    operators = []
    for window in (16, 256):
        with CountOperators() as counter:
            make(4, window=window, border=border).double()(x)
        operators.append(counter.operators)

    assert operators[1] < 3 * operators[0]
