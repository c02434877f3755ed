"""LCN as its authors released it, from its description: an off-by-one window, statistics without a gradient."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from geonorm.errors import InvalidConfigError
from geonorm.models import UNet, tile_geometry
from geonorm.norms import LocalContextNorm
from geonorm.norms.local_context import local_statistics
from tests.models.reach import seen_by_nan
from tests.norms import oracles
from tests.norms.maps import random_map

CHANNELS = 4
SIZES = [(7, 9), (6, 6)]
WINDOWS = [(3, 3), (4, 4), (5, 3), (2, 5), (1, 1)]


def released(x: Tensor, *, window: tuple[int, int], group_size: int, weight: Tensor, bias: Tensor) -> Tensor:
    """Return what the released layer computes, cell by cell.

    Cell i takes the window that begins at i - floor(p / 2) + 1, moved into those that begin at 1 to H - p. Where
    the window is not smaller than the map along either axis: the group's statistics, unbiased.
    """
    height, width = x.shape[2:]
    out = torch.empty_like(x)
    for n in range(x.shape[0]):
        for first in range(0, x.shape[1], group_size):
            group = x[n, first : first + group_size]
            for row in range(height):
                for col in range(width):
                    if window[0] < height and window[1] < width:
                        top = min(max(row - window[0] // 2 + 1, 1), height - window[0])
                        left = min(max(col - window[1] // 2 + 1, 1), width - window[1])
                        part = group[:, top : top + window[0], left : left + window[1]].detach()
                        mean, var = part.mean(), part.var(correction=0)
                    else:
                        mean, var = group.mean(), group.var(correction=1)
                    out[n, first : first + group_size, row, col] = (group[:, row, col] - mean) / (var + 1e-5).sqrt()
    return out * weight + bias


def layer_of(window: tuple[int, int], *, group_size: int = 2) -> LocalContextNorm:
    """Return a layer with a state dict in the shapes of the released one."""
    layer = LocalContextNorm(CHANNELS, window_cells=window, group_size=group_size, compat="authors").double()
    generator = torch.Generator().manual_seed(0)
    shape = (1, CHANNELS, 1, 1)
    layer.load_state_dict({name: torch.rand(shape, generator=generator).double() for name in ("weight", "bias")})
    return layer


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("window", [*WINDOWS, (6, 3), (3, 99), (99, 99)], ids=str)
def test_a_state_dict_of_the_released_layer_gives_its_output_and_gradient(
    window: tuple[int, int], size: tuple[int, int]
) -> None:
    layer, x = layer_of(window), random_map(2, CHANNELS, *size, mean=3, dtype=torch.float64).requires_grad_()
    upstream = random_map(2, CHANNELS, *size, seed=3, dtype=torch.float64)
    affine = {name: getattr(layer, name).reshape(1, -1, 1, 1) for name in ("weight", "bias")}
    inputs = [x, layer.weight, layer.bias]
    expected = released(x, window=window, group_size=2, **affine)
    expected_grads = torch.autograd.grad(expected, inputs, upstream)

    y = layer(x)

    torch.testing.assert_close(y, expected, rtol=0, atol=1e-9)
    for one, other in zip(torch.autograd.grad(y, inputs, upstream), expected_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_input_is_left_alone_and_the_format_kept() -> None:
    layer = layer_of((5, 5)).float()
    x = random_map(2, CHANNELS, 9, 14).contiguous(memory_format=torch.channels_last)
    before = x.clone()

    y = layer(x)

    assert torch.equal(x, before)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert "compat='authors'" in repr(layer)


def test_it_compiles_and_exports() -> None:
    layer, x = layer_of((5, 5)).eval(), random_map(2, CHANNELS, 9, 14, dtype=torch.float64)

    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")(x)
    exported = torch.export.export(layer, (x,)).module()(x)

    torch.testing.assert_close(compiled, layer(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(exported, layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [(5, 5), (4, 4)], ids=str)
def test_the_halo_holds_all_that_a_pixel_sees(window: tuple[int, int]) -> None:
    norm = partial(LocalContextNorm, window_cells=window, compat="authors")
    network = UNet(3, 2, depth=1, width=4, norm=norm)
    geometry = tile_geometry(network)
    assert geometry.halo_px is not None

    seen = seen_by_nan(network, geometry, upto_px=geometry.halo_px + 8)

    assert seen.halo_px == geometry.halo_px


def test_it_takes_one_border_and_one_word_only() -> None:
    for settings in ({"compat": "torch"}, {"compat": "authors", "border": "clip"}):
        with pytest.raises(InvalidConfigError, match="compat must be"):
            LocalContextNorm(CHANNELS, window_cells=3, **settings)  # type: ignore[arg-type]  # words of no meaning


# --- the operator that gives statistics alone -------------------------------------------------------


@pytest.mark.parametrize("border", ["nearest", "clip"])
@pytest.mark.parametrize("window", [(3, 5), (4, 2), (99, 3), (99, 99)], ids=str)
def test_local_statistics_are_those_of_each_window(window: tuple[int, int], border: oracles.Border) -> None:
    x = random_map(2, CHANNELS, 9, 14, mean=5, dtype=torch.float64).requires_grad_()
    expected = oracles.window_moments(x, window=window, group_size=2, border=border)
    upstream = [random_map(2, 2, 9, 14, seed=seed, dtype=torch.float64) for seed in (3, 4)]
    expected_grad = torch.autograd.grad(expected, x, upstream)

    got = local_statistics(x, 2, list(window), border)

    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    torch.testing.assert_close(torch.autograd.grad(got, x, upstream), expected_grad, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck looks at it itself
def test_local_statistics_are_a_well_behaved_operator() -> None:
    x = random_map(1, CHANNELS, 6, 7, dtype=torch.float64).requires_grad_()

    torch.library.opcheck(local_statistics, (x, 2, [3, 5], "nearest"))
