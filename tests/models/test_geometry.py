"""How far networks see: against trying it out, on U-Nets, on single layers and on random chains of layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from geonorm.errors import InvalidConfigError
from geonorm.models import TileGeometry, UNet, tile_geometry
from geonorm.models.flow import further_sizes
from geonorm.models.unet import Downsample, NormAt, Padding
from geonorm.norms import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalContrastNorm,
    NormFactory,
    SwitchableNorm,
)
from tests.models.networks import (
    EXACT_BODIES,
    ROUNDED_BODIES,
    Network,
    Skip,
    TransposedConv,
    local,
    no_norm,
    random_image,
    unet,
    with_random_values,
)
from tests.models.reach import Seen, seen_by_change, seen_by_nan

LOCAL_NORMS = {
    "no norm": no_norm,
    "BN": BatchNorm,
    "9 px": local(window_px=9),
    "4 cells": local(window_cells=4),
    "3 x 6 cells": local(window_cells=(3, 6)),
    "1 x 2 cells, clip": local(window_cells=(1, 2), border="clip"),
}

both_paddings = pytest.mark.parametrize("padding", ["same", "valid"])
both_pools = pytest.mark.parametrize("downsample", ["max", "maxblur"])
every_norm_at = pytest.mark.parametrize("norm_at", ["every", "block", "ends"])


def told(geometry: TileGeometry) -> Seen:
    """Return what the geometry says, once it says anything."""
    assert not geometry.unbounded
    assert geometry.halo_px is not None
    assert geometry.core_halo_px is not None
    return Seen(geometry.halo_px, geometry.core_halo_px)


# U-Nets


@both_paddings
@both_pools
@every_norm_at
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("norm", LOCAL_NORMS.values(), ids=LOCAL_NORMS)
def test_a_unet_sees_as_far_as_its_geometry_says(
    norm: NormFactory, depth: int, norm_at: NormAt, padding: Padding, downsample: Downsample
) -> None:
    network = unet(norm, depth=depth, padding=padding, norm_at=norm_at, downsample=downsample, width=2)

    geometry = tile_geometry(network)

    assert told(geometry) == seen_by_nan(network, geometry)


@both_pools
@pytest.mark.parametrize(
    ("norm", "depth", "width"),
    [(BatchNorm, 4, 1), (local(window_px=17), 3, 2)],
    ids=["BN, depth 4", "17 px, depth 3"],
)
def test_a_deep_unet_sees_as_far_as_its_geometry_says(
    norm: NormFactory, depth: int, width: int, downsample: Downsample
) -> None:
    network = unet(norm, depth=depth, width=width, downsample=downsample, bands=1)

    geometry = tile_geometry(network)

    assert told(geometry) == seen_by_nan(network, geometry, bands=1)


@both_paddings
@both_pools
@pytest.mark.parametrize("depth", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", [no_norm, BatchNorm])
def test_a_very_large_value_is_felt_as_far_as_the_geometry_says(
    norm: NormFactory, depth: int, padding: Padding, downsample: Downsample
) -> None:
    network = unet(norm, depth=depth, padding=padding, downsample=downsample)  # of two channels, one may be dead
    network = with_random_values(network, positive=True)

    geometry = tile_geometry(network)

    assert told(geometry) == seen_by_change(network, geometry)


@pytest.mark.parametrize("window", [{"window_px": 5}, {"window_cells": 4}, {"window_cells": (3, 6)}])
def test_a_very_large_value_is_not_felt_beyond_the_windows(window: dict[str, Any]) -> None:
    network = with_random_values(unet(local(**window), norm_at="ends", width=2), positive=True)

    geometry = tile_geometry(network)

    seen = seen_by_change(network, geometry)
    assert 0 < seen.halo_px <= told(geometry).halo_px
    assert 0 < seen.core_halo_px <= told(geometry).core_halo_px


@pytest.mark.parametrize(
    ("norm", "arguments", "halo_px"),
    [
        (BatchNorm, {}, 107),
        (no_norm, {}, 107),
        (BatchNorm, {"downsample": "maxblur"}, 122),
        (local(window_px=31), {}, 335),
        (local(window_px=91), {}, 863),
        (local(window_px=91), {"padding": "valid", "norm_at": "ends"}, 197),
    ],
)
def test_the_halo_of_a_unet_of_depth_4(norm: NormFactory, arguments: dict[str, Any], halo_px: int) -> None:
    assert tile_geometry(unet(norm, depth=4, **arguments)).halo_px == halo_px


@pytest.mark.parametrize(
    ("padding", "downsample", "depth", "margin_px", "least_px"),
    [
        ("same", "max", 4, 0, 16),
        ("valid", "max", 4, 92, 188),
        ("same", "max", 1, 0, 2),
        ("valid", "max", 1, 8, 20),
        ("same", "maxblur", 4, 0, 16),
        ("valid", "maxblur", 4, 122, 248),
    ],
)
def test_the_margin_and_the_sizes_of_a_unet(
    padding: Padding, downsample: Downsample, depth: int, margin_px: int, least_px: int
) -> None:
    geometry = tile_geometry(unet(depth=depth, padding=padding, downsample=downsample))

    assert (geometry.stride_px, geometry.margin_px, geometry.least_px) == (2**depth, margin_px, least_px)


@given(needed_px=st.integers(0, 400))
def test_the_side_to_read_is_the_smallest_that_is_taken(needed_px: int) -> None:
    geometry = TileGeometry(
        stride_px=8,
        halo_px=0,
        core_halo_px=0,
        margin_px=0,
        unbounded=(),
        local_halo_px=0,
        least_px=20,
    )

    sides = range(20, 500, 8)
    assert geometry.read_px(needed_px) == next(side for side in sides if side >= needed_px)


class SmallOnly(nn.Module):
    """A network that takes small images only."""

    def __init__(self, network: nn.Module, most_px: int) -> None:
        super().__init__()
        self.network, self.most_px = network, most_px

    def forward(self, image: Tensor) -> Tensor:
        """Run the network, or refuse."""
        if image.shape[-1] > self.most_px:
            raise ValueError
        return self.network(image)


@pytest.mark.parametrize("most_px", [8, 100, 260])
def test_sizes_that_a_network_refuses_are_passed_over(most_px: int) -> None:
    network = unet(depth=2)

    geometry = tile_geometry(SmallOnly(network, most_px))

    free = tile_geometry(network)
    assert geometry == free


def test_a_network_that_takes_one_size_only_has_no_exact_halo() -> None:
    geometry = tile_geometry(SmallOnly(unet(depth=2), 256))

    assert geometry.core_halo_px is None
    assert "256 px is taken, but 260 px is not" in geometry.unbounded[0]


def test_a_unet_is_run_four_times_to_tell_its_geometry() -> None:
    network = unet(depth=2)
    runs: list[None] = []
    network.register_forward_pre_hook(lambda *_: runs.append(None))

    tile_geometry(network)

    assert len(runs) == 4  # at three sizes, and at the smallest


# Other layers


@pytest.mark.parametrize("body", EXACT_BODIES.values(), ids=EXACT_BODIES)
def test_a_layer_sees_as_far_as_its_geometry_says(body: Callable[[Tensor], Tensor]) -> None:
    network = Network(body)

    geometry = tile_geometry(network)

    assert told(geometry) == seen_by_nan(network, geometry)


@pytest.mark.parametrize("body", ROUNDED_BODIES.values(), ids=ROUNDED_BODIES)
def test_an_interpolating_layer_sees_no_farther_and_less_than_a_stride_nearer(
    body: Callable[[Tensor], Tensor],
) -> None:
    network = Network(body)

    geometry = tile_geometry(network)

    seen = seen_by_nan(network, geometry)
    assert seen.halo_px <= told(geometry).halo_px < seen.halo_px + geometry.stride_px
    assert seen.core_halo_px <= told(geometry).core_halo_px < seen.core_halo_px + geometry.stride_px


@st.composite
def narrowing(draw: st.DrawFn, stride: int) -> list[nn.Module]:
    """Return layers that make one cell of ``stride`` cells a side, padded as lopsidedly as can be."""
    kernel = [draw(st.integers(stride, stride + 3)) for _ in range(2)]
    dilation = draw(st.integers(1, 3)) if stride == 1 else 1
    pads: list[int] = []
    for side in reversed(kernel):
        both = dilation * (side - 1) + 1 - stride
        before = draw(st.integers(0, both))
        pads += [before, both - before]
    conv = nn.Conv2d(4, 4, (kernel[0], kernel[1]), stride=stride, dilation=dilation)
    pools = [nn.AvgPool2d((kernel[0], kernel[1]), stride=stride), nn.MaxPool2d((kernel[0], kernel[1]), stride=stride)]
    layer = conv if dilation > 1 else draw(st.sampled_from([conv, *pools]))
    return [nn.ZeroPad2d((pads[0], pads[1], pads[2], pads[3])), layer]


@st.composite
def widening(draw: st.DrawFn, stride: int) -> list[nn.Module]:
    """Return layers that make ``stride`` cells a side of one."""
    extra = draw(st.integers(0, 3))
    kinds: list[list[nn.Module]] = [
        [nn.Upsample(scale_factor=stride)],
        [nn.Upsample(scale_factor=stride, mode="bilinear")],
        [nn.Conv2d(4, 4 * stride**2, 1), nn.PixelShuffle(stride)],
        [TransposedConv(stride + extra, stride=stride, first=draw(st.integers(0, extra)))],
    ]
    return draw(st.sampled_from(kinds))


@st.composite
def chains(draw: st.DrawFn) -> nn.Module:
    """Return a network that narrows its map up to twice, and widens it again."""
    strides = draw(st.lists(st.sampled_from([1, 2, 3]), max_size=2))
    down = [layer for stride in strides for layer in draw(narrowing(stride))]
    middle = draw(narrowing(1))
    up = [layer for stride in reversed(strides) for layer in draw(widening(stride))]
    return Network(Skip(*down, *middle, *up))


@settings(max_examples=40)
@given(network=chains())
def test_no_chain_of_layers_sees_farther_than_its_geometry_says(network: nn.Module) -> None:
    geometry = tile_geometry(network)

    seen = seen_by_nan(network, geometry)

    assert seen.halo_px <= told(geometry).halo_px
    assert seen.core_halo_px <= told(geometry).core_halo_px


def written_beside(x: Tensor) -> Tensor:
    """Add to each pixel the one 9 px to its left, in place."""
    y = x.clone()
    y[..., 9:] += x[..., :-9]
    return y


def written_into_a_new_map(x: Tensor) -> Tensor:
    """Move the map by 9 px, into a map that comes from nowhere."""
    y = torch.zeros(x.shape, device=x.device, dtype=x.dtype)
    y[..., 9:] = x[..., :-9]
    return y


def written_into_a_view(x: Tensor) -> Tensor:
    """Add to a map its blurred self, through a view of all of it."""
    y = x.clone()
    y.view(1, 2, -1, *x.shape[-2:]).add_(F.avg_pool2d(x, 9, 1, 4).view(1, 2, -1, *x.shape[-2:]))
    return y


def written_into_a_slice_of_all(x: Tensor) -> Tensor:
    """Add to a map its blurred self, through a slice of all of it."""
    y = x.clone()
    y[:] += F.avg_pool2d(x, 9, 1, 4)
    return y


def written_below_a_view(x: Tensor) -> Tensor:
    """Add to a map its blurred self, and look at it through an older view."""
    y = x.clone()
    older = y.detach()
    y += F.avg_pool2d(x, 9, 1, 4)
    return older


def written_below_a_view_of_nothing(x: Tensor) -> Tensor:
    """Fill a map that comes from nowhere, and look at it through an older view."""
    y = torch.zeros(x.shape, device=x.device, dtype=x.dtype)
    older = y.detach()
    y.copy_(F.avg_pool2d(x, 9, 1, 4))
    return older


def written_by_the_list(x: Tensor) -> Tensor:
    """Add to a map its blurred self, as optimizers do."""
    y = x.clone()
    torch._foreach_add_([y], [F.avg_pool2d(x, 9, 1, 4)])
    return y


@pytest.mark.parametrize(
    "body",
    [
        written_beside,
        written_into_a_new_map,
        written_into_a_view,
        written_into_a_slice_of_all,
        written_below_a_view,
        written_below_a_view_of_nothing,
        written_by_the_list,
    ],
)
def test_what_is_written_into_part_of_a_map_is_not_lost(body: Callable[[Tensor], Tensor]) -> None:
    network = Network(body)

    geometry = tile_geometry(network)

    if not geometry.unbounded:
        assert told(geometry).halo_px >= seen_by_nan(network, geometry, upto_px=9).halo_px


# What sees everything


@both_paddings
@pytest.mark.parametrize("norm", [GroupNorm, InstanceNorm, LayerNorm, SwitchableNorm])
def test_norms_over_the_map_are_named_by_their_place(norm: type[nn.Module], padding: Padding) -> None:
    geometry = tile_geometry(unet(norm, norm_at="block", padding=padding))

    places = ("encoder.0.3", "bottom.3", "decoder.0.3")
    assert geometry.unbounded == tuple(f"{place} ({norm.__name__})" for place in places)
    assert geometry.halo_px is None
    assert geometry.core_halo_px is None


@both_paddings
@pytest.mark.parametrize("norm", [GroupNorm, InstanceNorm, LayerNorm, SwitchableNorm])
def test_beside_what_sees_everything_stands_how_far_the_rest_sees(norm: NormFactory, padding: Padding) -> None:
    everything, rest = (tile_geometry(unet(each, depth=2, padding=padding)) for each in (norm, BatchNorm))

    assert everything.local_halo_px == rest.core_halo_px
    assert (everything.stride_px, everything.margin_px, everything.least_px) == (
        rest.stride_px,
        rest.margin_px,
        rest.least_px,
    )


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels by what the whole map holds."""
        return x * self.weights(x)


def attention(x: Tensor) -> Tensor:
    """Let every pixel look at every other."""
    pixels = x.flatten(2)
    return (pixels @ (pixels.transpose(1, 2) @ pixels).softmax(-1)).view_as(x)


SEES_EVERYTHING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "mean of the map": (lambda x: x - x.mean((2, 3), keepdim=True), "model (Network)"),
    "mean of rows": (lambda x: x - x.mean(-1, keepdim=True), "model (Network)"),
    "mean of the batch": (lambda x: x - x.mean(0, keepdim=True), "model (Network)"),
    "softmax over the batch": (lambda x: x.softmax(0), "model (Network)"),
    "mean of all": (lambda x: x - x.mean(), "model (Network)"),
    "sum of all": (lambda x: x / x.sum(), "sum"),
    "largest of the map": (lambda x: x - x.amax((2, 3), keepdim=True), "amax"),
    "largest of all": (lambda x: x - x.amax(), "amax"),
    "deviation": (lambda x: x / x.std(), "std"),
    "softmax over columns": (lambda x: x.softmax(-1), "_softmax"),
    "softmax over space": (lambda x: x.flatten(2).softmax(-1).view_as(x), "view"),
    "pooled to one cell": (lambda x: x * F.adaptive_avg_pool2d(x, 1), "model (Network)"),
    "pooled to a grid": (
        lambda x: x + F.interpolate(F.adaptive_avg_pool2d(x, 4), size=x.shape[-2:]),
        "_adaptive_avg_pool2d",
    ),
    "corners aligned": (
        lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=True),
        "upsample_bilinear2d",
    ),
    "ratio that is not whole": (
        lambda x: F.interpolate(F.interpolate(x, scale_factor=1.5), size=x.shape[-2:]),
        "upsample_nearest2d",
    ),
    "squeeze and excitation": (Squeeze(), "body.weights.0 (AdaptiveAvgPool2d)"),
    "attention": (attention, "view"),
    "torch's group norm": (nn.GroupNorm(1, 4), "body (GroupNorm)"),
    "torch's instance norm": (nn.InstanceNorm2d(4), "body (InstanceNorm2d)"),
    "batch norm without memory": (nn.BatchNorm2d(4, track_running_stats=False), "body (BatchNorm2d)"),
    "padded by reflection": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "body (Conv2d): reflection_pad2d"),
    "padded in a circle": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "body (Conv2d)"),
    "rolled": (lambda x: x.roll(5, -1), "roll"),
    "rolled by hand": (lambda x: torch.cat([x[..., 5:], x[..., :5]], dim=-1), "cat"),
    "mirrored": (lambda x: x.flip(-1), "flip"),
    "turned": (lambda x: x.transpose(2, 3), "transpose"),
    "summed up along rows": (lambda x: x.cumsum(-1), "cumsum"),
    "unknown to the geometry": (lambda x: torch.special.bessel_j0(x), "special_bessel_j0"),
}


@pytest.mark.parametrize(("body", "name"), SEES_EVERYTHING.values(), ids=SEES_EVERYTHING)
def test_what_sees_everything_is_named(body: Callable[[Tensor], Tensor], name: str) -> None:
    geometry = tile_geometry(Network(body))

    assert geometry.halo_px is None
    assert geometry.core_halo_px is None
    assert any(name in found for found in geometry.unbounded), geometry.unbounded


def crossed(x: Tensor) -> Tensor:
    """Overwrite a map with its first row."""
    y = x.clone()
    y.copy_(x[..., :1, :])
    return x + y


SEES_THE_TILE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "less its first row": (lambda x: x - x[..., :1, :], "sub"),
    "less its first column": (lambda x: x - x[..., :1], "sub"),
    "the greater of it and its first cell": (lambda x: torch.maximum(x, x[..., :1, :1]), "maximum"),
    "or its first row": (
        lambda x: torch.where(torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=x.device), x, x[..., :1, :]),
        "where",
    ),
    "overwritten with its first row": (crossed, "copy_"),
    "convolved with its first cells": (lambda x: x + F.conv2d(x, x[..., :3, :3], padding=1), "convolution"),
    "stacked on a ramp": (
        lambda x: torch.stack([x, torch.linspace(0, 1, x.shape[-1], device=x.device).expand_as(x)], dim=1).sum(1),
        "stack",
    ),
    "over its width": (lambda x: x * (100 / x.shape[-1]), "mul"),
    "times its pixels": (lambda x: x * x.numel(), "mul"),
    "times its aspect": (lambda x: x * (x.shape[-2] / x.shape[-1]), "mul"),
    "times a tensor of its width": (lambda x: x * torch.tensor([x.shape[-1]], device=x.device), "tensor"),
    "times a scalar tensor of its width": (lambda x: x * torch.tensor(x.shape[-1]), "tensor"),
    "times a map full of its width": (lambda x: x * torch.full((1, 1, 1, 1), x.shape[-1], device=x.device), "full"),
    "times a sum over its size": (lambda x: x * torch.ones(x.shape[-2:], device=x.device).sum(), "ones"),
    "if its width is odd": (lambda x: x * 2 if x.shape[-1] % 2 else x, "mul"),
    "if its width is not of threes": (lambda x: x * 2 if x.shape[-1] % 3 else x, "mul"),
    "if its width is not of fives": (lambda x: x * 2 if x.shape[-1] % 5 else x, "mul"),
    "if it is a square": (lambda x: x * 2 if x.shape[-1] == x.shape[-2] else x, "mul"),
    "if it is large": (lambda x: x * 2 if x.shape[-1] > 500 else x, "mul"),
    "by one of two ways": (lambda x: x.add(1) * (x, x.sigmoid())[x.shape[-1] % 2], "mul"),
}


class OneOfThree(nn.Module):
    """A convolution, which one says the width."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Take the convolution whose turn it is."""
        convolved: Tensor = self.convs[x.shape[-1] % 3](x)
        return convolved


@pytest.mark.parametrize(
    ("body", "name"),
    [*SEES_THE_TILE.values(), (OneOfThree(), "body.convs.1 (Conv2d): convolution")],
    ids=[*SEES_THE_TILE, "one of three convolutions"],
)
def test_what_is_given_by_the_edges_or_the_size_of_the_tile_is_named(
    body: Callable[[Tensor], Tensor], name: str
) -> None:
    network = with_random_values(Network(body))
    image = random_image(1, 3, 525, 525)  # of threes, of fives, odd
    tile = image[..., 100:356, 100:384]
    with torch.no_grad():
        whole, tiled = network(image)[..., 150:306, 150:334], network(tile)[..., 50:-50, 50:-50]
    assert (tiled - whole).abs().max() > 1e-3  # no halo of up to 50 px makes them one

    geometry = tile_geometry(network)

    assert geometry.halo_px is None
    assert geometry.core_halo_px is None
    assert any(name in found for found in geometry.unbounded), geometry.unbounded


def blurred(x: Tensor) -> Tensor:
    """Blur each channel with weights that are made on the spot."""
    weights = torch.tensor([1.0, 2.0, 1.0], device=x.device).to(x.dtype)
    return F.conv2d(x, (weights / weights.sum()).view(1, 1, 1, 3).expand(4, 1, 1, 3), padding=(0, 1), groups=4)


def cut_to_the_smaller(x: Tensor) -> Tensor:
    """Add the middle of a map to what an unpadded convolution left of it."""
    smaller = F.avg_pool2d(x, 5, 1)
    first = (x.shape[-1] - smaller.shape[-1]) // 2
    return smaller + x.narrow(-1, first, smaller.shape[-1]).narrow(-2, first, smaller.shape[-2])


def padded_to_the_larger(x: Tensor) -> Tensor:
    """Widen a map to the lengths of another, then pad what lacks, as many U-Nets do."""
    y = F.interpolate(F.max_pool2d(x, 2), size=(x.shape[-2], x.shape[-1]))
    lacking = x.shape[-1] - y.shape[-1]
    return x + F.pad(y, (lacking // 2, lacking - lacking // 2))


def filled(x: Tensor) -> Tensor:
    """Fill a new map of the same lengths."""
    y = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    y.copy_(F.avg_pool2d(x, 3, 1, 1))
    return y.expand(-1, -1, x.shape[-2], x.shape[-1])


ONLY_LENGTHS: list[Callable[[Tensor], Tensor]] = [blurred, cut_to_the_smaller, padded_to_the_larger, filled]


@pytest.mark.parametrize("body", ONLY_LENGTHS)
def test_what_knows_lengths_only_to_make_maps_fit_keeps_its_halo(body: Callable[[Tensor], Tensor]) -> None:
    network = Network(body)

    geometry = tile_geometry(network)

    assert told(geometry) == seen_by_nan(network, geometry)


@given(side=st.integers(1, 2048), stride_px=st.integers(1, 64))
def test_further_sizes_keep_to_the_stride_and_differ_in_what_is_left_over(side: int, stride_px: int) -> None:
    for height, width in further_sizes(side, stride_px):
        assert (height - side) % stride_px == (width - side) % stride_px == 0
        assert len({side, side + stride_px, width, height}) == 4
        for prime in (2, 3, 5):
            rests = {px % prime for px in (side, side + stride_px, width)}
            if stride_px % prime:
                assert 0 in rests
                assert len(rests) == min(prime, 3)


def test_of_a_module_that_is_named_the_operators_are_not_named_too() -> None:
    geometry = tile_geometry(unet(partial(LocalContrastNorm, window_cells=3), norm_at="block"))

    places = ("encoder.0.3", "bottom.3", "decoder.0.3")
    assert geometry.unbounded == tuple(f"{place} (LocalContrastNorm)" for place in places)


def test_an_output_that_is_not_of_the_image_has_no_exact_halo() -> None:
    geometry = tile_geometry(Network(lambda x: torch.zeros(x.shape, device=x.device)))

    assert geometry.halo_px is None
    assert geometry.unbounded


POSITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "a ramp is added": lambda x: x + torch.linspace(0, 1, x.shape[-1], device=x.device, dtype=x.dtype),
    "a ramp is another channel": lambda x: torch.cat(
        [x, torch.linspace(0, 1, x.shape[-1], device=x.device, dtype=x.dtype).expand_as(x)], dim=1
    ),
}


@pytest.mark.parametrize("body", POSITIONS.values(), ids=POSITIONS)
def test_a_network_that_knows_where_in_its_input_a_pixel_lies_has_no_halo(
    body: Callable[[Tensor], Tensor],
) -> None:
    geometry = tile_geometry(Network(body))

    assert geometry.unbounded
    assert geometry.halo_px is None


def test_a_network_made_for_one_size_has_no_halo() -> None:
    geometry = tile_geometry(Network(lambda x: F.interpolate(F.avg_pool2d(x, 2), size=(256, 256), mode="bilinear")))

    assert geometry.unbounded
    assert geometry.halo_px is None


# The model itself


@pytest.mark.parametrize("norm", [BatchNorm, GroupNorm, SwitchableNorm, local(window_px=5)])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(norm: NormFactory, training: bool) -> None:
    network = unet(norm).train(training)
    network.bottom.eval()
    before = copy.deepcopy(network)

    tile_geometry(network)

    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]
    assert list(network.state_dict()) == list(before.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_training_changes_nothing() -> None:
    network = unet()

    assert tile_geometry(network.train()) == tile_geometry(network.eval())


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_any_number_of_bands_will_do(bands: int) -> None:
    assert tile_geometry(unet(bands=bands)) == tile_geometry(unet())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(7, 2)),
        Network(lambda x: {"out": x}),
        Network(lambda x: (x, x)),
        Network(lambda x: x.mean((2, 3))),
    ],
    ids=["takes no image", "gives a dictionary", "gives two maps", "gives no map"],
)
def test_what_maps_no_image_to_logits_is_refused_in_one_line(model: nn.Module) -> None:
    with pytest.raises(InvalidConfigError, match=r"\(N, K, H, W\)") as caught:
        tile_geometry(model)

    assert "\n" not in str(caught.value)


def test_a_model_without_rescale_has_a_geometry_too() -> None:
    geometry = tile_geometry(nn.Conv2d(5, 2, 3, padding=1))

    assert told(geometry) == Seen(1, 1)


def test_the_geometry_of_a_unet_does_not_depend_on_its_width() -> None:
    narrow, wide = (UNet(3, 2, norm=BatchNorm, depth=2, width=width) for width in (1, 32))

    assert tile_geometry(narrow) == tile_geometry(wide)


@pytest.mark.parametrize("warn_only", [False, True])
def test_deterministic_algorithms_change_no_geometry_and_stay_on(warn_only: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"))
    usual = tile_geometry(model)
    assert not usual.unbounded
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        found = tile_geometry(model)
        stayed = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)

    assert found == usual
    assert stayed == (True, warn_only)
