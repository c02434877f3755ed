"""Switchable norms beyond the plain one: other pools, tied, grouped, hard and sparse ratios, the released layer."""

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.models import UNet, tile_geometry
from geonorm.norms import (
    BatchNorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalContextNorm,
    SwitchableNorm,
    harden,
)
from geonorm.norms.switchable import sparsemax
from tests.norms import oracles
from tests.norms.maps import random_map, with_random_state

CHANNELS = 8
MEMBERS = ("IN", "LN", "BN", "GN", "LCN")
ALONE: dict[str, Callable[..., nn.Module]] = {
    "IN": InstanceNorm,
    "LN": LayerNorm,
    "BN": BatchNorm,
    "GN": GroupNorm,
    "LCN": lambda channels: LocalContextNorm(channels, window_cells=3),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "IN": {"pool": ("IN",)},
    "LN+BN": {"pool": ("LN", "BN")},
    "BN+IN": {"pool": ("BN", "IN")},
    "tied": {"tied": True},
    "grouped": {"channel_groups": 4},
    "tied and grouped": {"tied": True, "channel_groups": 2},
    "hard": {"selection": "hard"},
    "hard and grouped": {"selection": "hard", "channel_groups": 2},
    "sparse": {"selection": "sparse"},
    "sparse and grouped": {"selection": "sparse", "channel_groups": 2},
    "all": {"pool": MEMBERS, "window_cells": 3},
    "all, grouped": {"pool": MEMBERS, "window_cells": (4, 5), "channel_groups": 2, "group_size": 2, "border": "clip"},
    "all, hard": {"pool": MEMBERS, "window_cells": 3, "selection": "hard"},
    "LCN+BN": {"pool": ("LCN", "BN"), "window_px": 31, "stride": 4},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def switchable(**settings: Any) -> SwitchableNorm:
    """Return a layer with random parameters and statistics in float64."""
    layer = with_random_state(SwitchableNorm(CHANNELS, **settings))
    layer.select(layer.selection)
    return layer.double()


def chosen_ratios(control: Tensor, selection: str) -> Tensor:
    """Return the ratios of each channel, ``(CHANNELS, K)``, one channel after the other."""
    rows = control.reshape(-1, control.shape[-1])
    ratios = []
    for row in rows:
        if selection == "soft":
            ratios.append(row.exp() / row.exp().sum())
        elif selection == "hard":
            best = max(range(len(row)), key=lambda k: float(row[k]))
            ratios.append(torch.tensor([float(k == best) for k in range(len(row))], dtype=row.dtype))
        else:
            ratios.append(projected(row))
    per_group = CHANNELS // len(rows)
    return torch.stack([ratios[channel // per_group] for channel in range(CHANNELS)])


def projected(row: Tensor) -> Tensor:
    """Return the nearest point of the simplex, by trying every set of entries that may be positive."""
    best: Tensor | None = None
    for size in range(1, len(row) + 1):
        for support in itertools.combinations(range(len(row)), size):
            inside = row[list(support)]
            shifted = inside - (inside.sum() - 1) / size
            if (shifted < 0).any():
                continue
            point = torch.zeros_like(row).index_put((torch.tensor(support),), shifted)
            if best is None or (point - row).norm() < (best - row).norm():
                best = point
    assert best is not None
    return best


def expected_of(x: Tensor, layer: SwitchableNorm) -> Tensor:
    """Return what the definitions give: every member's statistics over the values it is defined on."""
    members: dict[str, tuple[Tensor, Tensor]] = {}
    dims = {"IN": (2, 3), "LN": (1, 2, 3), "BN": (0, 2, 3)}
    for name in layer.pool:
        if name == "BN" and not layer.training:
            mean, var = layer.running_mean.reshape(1, -1, 1, 1), layer.running_var.reshape(1, -1, 1, 1)
        elif name in dims:
            var, mean = torch.var_mean(x, dim=dims[name], correction=0, keepdim=True)
        elif name == "GN":
            groups = [torch.var_mean(g, dim=(1, 2, 3), correction=0) for g in x.split(layer.group_size, dim=1)]
            var, mean = (
                torch.stack([g[i] for g in groups], dim=1).repeat_interleave(layer.group_size, dim=1)[..., None, None]
                for i in (0, 1)
            )
        else:
            assert layer.window is not None
            mean, var = (
                planes.repeat_interleave(layer.group_size, dim=1)
                for planes in oracles.window_moments(
                    x, window=layer.window, group_size=layer.group_size, border=layer.border
                )
            )
        members[name] = mean.expand_as(x), var.expand_as(x)
    for_mean = chosen_ratios(layer.mean_weight, layer.selection)
    for_var = for_mean if layer.var_weight is None else chosen_ratios(layer.var_weight, layer.selection)
    mean, var = torch.zeros_like(x), torch.zeros_like(x)
    for k, name in enumerate(layer.pool):
        mean = mean + for_mean[:, k, None, None] * members[name][0]
        var = var + for_var[:, k, None, None] * members[name][1]
    return oracles.scaled((x - mean) / torch.sqrt(var + layer.eps), weight=layer.weight, bias=layer.bias)


def a_map(*, seed: int = 0) -> Tensor:
    """Return a map whose channels and samples differ in mean and deviation."""
    x = random_map(3, CHANNELS, 7, 9, dtype=torch.float64, seed=seed)
    return x * torch.arange(1, CHANNELS + 1).reshape(-1, 1, 1) + torch.arange(3).reshape(-1, 1, 1, 1)


# --- numbers ----------------------------------------------------------------------------------------


@every_setting
@both_modes
def test_it_computes_what_the_definitions_give(settings: dict[str, Any], training: bool) -> None:
    layer, x = switchable(**settings).train(training), a_map()

    torch.testing.assert_close(layer(x), expected_of(x, layer), rtol=0, atol=1e-10)


@every_setting
@both_modes
def test_its_gradients_are_those_of_the_definitions(settings: dict[str, Any], training: bool) -> None:
    layer, x = switchable(**settings).train(training), a_map().requires_grad_()
    upstream = random_map(3, CHANNELS, 7, 9, seed=3, dtype=torch.float64)
    inputs = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    expected = torch.autograd.grad(expected_of(x, layer), inputs, upstream, allow_unused=True)

    got = torch.autograd.grad(layer(x), inputs, upstream, allow_unused=True)

    for one, other in zip(got, expected, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@every_setting
@both_modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_keeps_dtype_format_and_accuracy(settings: dict[str, Any], training: bool, dtype: torch.dtype) -> None:
    layer = switchable(**settings).train(training).float()
    x = a_map().to(dtype).contiguous(memory_format=torch.channels_last)
    expected = expected_of(x.double(), copy.deepcopy(layer).double())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)

    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.double(), expected, rtol=2.0**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


@pytest.mark.parametrize("member", MEMBERS)
@both_modes
def test_a_pool_of_one_is_that_norm(member: str, training: bool) -> None:
    window = {"window_cells": 3} if member == "LCN" else {}
    alone = with_random_state(ALONE[member](CHANNELS)).double().train(training)
    layer = SwitchableNorm(CHANNELS, pool=(member,), **window).double().train(training)  # type: ignore[arg-type]
    layer.load_state_dict(alone.state_dict(), strict=False)
    x = a_map()

    torch.testing.assert_close(layer(x), alone(x), rtol=0, atol=1e-11)


def test_one_image_a_batch_makes_batch_and_instance_norm_the_same_in_training() -> None:
    x = a_map()[:1]
    layer = switchable()
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for control in (other.mean_weight, other.var_weight):
            assert control is not None
            control.copy_(control[[2, 1, 0]])

    torch.testing.assert_close(layer(x), other(x), rtol=0, atol=1e-11)


def test_the_ratios_are_told_in_the_order_of_the_pool() -> None:
    layer = SwitchableNorm(CHANNELS, pool=("BN", "LCN"), window_cells=3, channel_groups=2)
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor([[0.0, 1.0], [3.0, 3.0]]))

    torch.testing.assert_close(layer.mean_ratios(), torch.tensor([[0.26894, 0.73106], [0.5, 0.5]]), rtol=1e-4, atol=0)
    torch.testing.assert_close(layer.var_ratios(), torch.full((2, 2), 0.5))


def test_tied_ratios_are_one_set() -> None:
    layer = switchable(tied=True)

    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias", "mean_weight"}
    assert torch.equal(layer.mean_ratios(), layer.var_ratios())


def test_without_batch_norm_nothing_is_kept_between_batches() -> None:
    assert dict(SwitchableNorm(CHANNELS, pool=("IN", "LN")).named_buffers()) == {}


# --- hard and sparse --------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [[1.0, 1.0, 1.0], [0.3, 0.1, -0.2], [2.0, 0.5, 0.4], [0.0, -3.0, 0.9, 1.0]])
def test_sparsemax_is_the_nearest_point_of_the_simplex(row: list[float]) -> None:
    x = torch.tensor(row, dtype=torch.float64, requires_grad=True)

    torch.testing.assert_close(sparsemax(x), projected(x.detach()), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(sparsemax, (x + torch.rand(len(row)).double() * 1e-2,))


def test_hard_choices_do_not_learn_and_soft_ones_do_again() -> None:
    layer = SwitchableNorm(CHANNELS)

    layer.select("hard")
    assert {name for name, value in layer.named_parameters() if value.requires_grad} == {"weight", "bias"}
    layer.select("soft")
    assert all(value.requires_grad for value in layer.parameters())


def test_a_trained_network_hardens_to_its_largest_ratios() -> None:
    first, second = SwitchableNorm(CHANNELS), SwitchableNorm(CHANNELS)
    with torch.no_grad():
        for layer, choice in ((first, 2), (second, 1)):
            layer.mean_weight[choice] = 1.1
            layer.var_weight[0] = 1.1  # type: ignore[index]

    count = harden(nn.Sequential(first, nn.ReLU(), second))

    assert count == 2
    assert first.chosen == (("BN",), ("IN",))
    assert second.chosen == (("LN",), ("IN",))
    assert first.mean_ratios().tolist() == [0, 0, 1]


def test_a_state_dict_settles_the_hard_choice() -> None:
    soft, hard = SwitchableNorm(CHANNELS), SwitchableNorm(CHANNELS, selection="hard")
    with torch.no_grad():
        soft.mean_weight[1] = 2.0

    hard.load_state_dict(soft.state_dict())

    assert hard.chosen == (("LN",), ("IN",))


def test_what_is_not_chosen_is_not_computed() -> None:
    layer = switchable(selection="hard")
    with torch.no_grad():
        layer.mean_weight[0], layer.var_weight[0] = 9.0, 9.0  # type: ignore[index]
    layer.select("hard")
    before = layer.running_mean.clone()

    layer(a_map())

    assert torch.equal(layer.running_mean, before)


def test_a_layer_of_hard_batch_norms_is_one_affine_map_in_evaluation() -> None:
    layer = with_random_state(SwitchableNorm(CHANNELS, pool=("BN", "IN")))
    with torch.no_grad():
        layer.mean_weight[0], layer.var_weight[0] = 9.0, 9.0  # type: ignore[index]
    harden(layer)
    frozen = FrozenBatchNorm(CHANNELS)
    frozen.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith(("mean_w", "var_w"))})
    x = a_map().float()

    assert torch.equal(layer.eval()(x), frozen(x))


def test_tiles_of_a_network_have_a_halo_only_while_every_hard_choice_is_batch_norm() -> None:
    network = UNet(3, 2, depth=2, width=8, norm=SwitchableNorm)
    layers = [module for module in network.modules() if isinstance(module, SwitchableNorm)]
    with torch.no_grad():
        for layer in layers:
            layer.mean_weight[2], layer.var_weight[2] = 2.0, 2.0  # type: ignore[index]
    assert tile_geometry(network).halo_px is None

    harden(network)
    assert tile_geometry(network).halo_px == tile_geometry(UNet(3, 2, depth=2, width=8, norm=BatchNorm)).halo_px

    with torch.no_grad():
        layers[1].var_weight[0] = 3.0  # type: ignore[index]
    harden(network)
    geometry = tile_geometry(network)
    assert geometry.halo_px is None
    assert len(geometry.unbounded) == 1


def test_a_pool_of_local_and_batch_norm_has_a_halo() -> None:
    pooled = partial(SwitchableNorm, pool=("LCN", "BN"), window_px=15)
    local = partial(LocalContextNorm, window_px=15)
    expected = tile_geometry(UNet(3, 2, depth=2, width=8, norm=local))

    assert tile_geometry(UNet(3, 2, depth=2, width=8, norm=pooled)) == expected


# --- compile, export --------------------------------------------------------------------------------


@every_setting
@both_modes
def test_it_compiles_whole_and_gives_the_same(settings: dict[str, Any], training: bool) -> None:
    layer, x = switchable(**settings).train(training), a_map()
    expected = copy.deepcopy(layer)(x)

    torch._dynamo.reset()
    got = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")(x)

    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@every_setting
def test_it_exports_and_gives_the_same(settings: dict[str, Any]) -> None:
    layer, x = switchable(**settings).eval(), a_map()

    program = torch.export.export(layer, (x,))

    torch.testing.assert_close(program.module()(x), layer(x), rtol=0, atol=1e-12)


# --- maps of one cell -------------------------------------------------------------------------------


def test_a_map_of_one_cell_is_warned_of_once() -> None:
    layer = SwitchableNorm(CHANNELS)

    with pytest.warns(GeonormWarning, match="map of one cell"):
        layer(torch.rand(4, CHANNELS, 1, 1))
    layer(torch.rand(4, CHANNELS, 1, 1))  # a second warning would be an error


def test_a_pool_without_instance_norm_takes_maps_of_one_cell() -> None:
    layer = SwitchableNorm(CHANNELS, pool=("LN", "BN"))

    assert layer(torch.rand(4, CHANNELS, 1, 1)).isfinite().all()


# --- the released layer -----------------------------------------------------------------------------


def released(x: Tensor, state: dict[str, Tensor], *, training: bool) -> Tensor:
    """Return what the released SwitchNorm2d computes, from its description."""
    flat = x.flatten(2)
    mean_in, var_in = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True)
    second = var_in + mean_in**2
    mean_ln = mean_in.mean(1, keepdim=True)
    var_ln = second.mean(1, keepdim=True) - mean_ln**2
    mean_bn, var_bn = state["running_mean"], state["running_var"]
    if training:
        mean_bn = mean_in.mean(0, keepdim=True)
        var_bn = second.mean(0, keepdim=True) - mean_bn**2
    for_mean, for_var = state["mean_weight"].softmax(0), state["var_weight"].softmax(0)
    mean = for_mean[0] * mean_in + for_mean[1] * mean_ln + for_mean[2] * mean_bn
    var = for_var[0] * var_in + for_var[1] * var_ln + for_var[2] * var_bn
    y = ((flat - mean) / (var + 1e-5).sqrt()).view_as(x)
    return y * state["weight"] + state["bias"]


@both_modes
def test_a_state_dict_of_the_released_layer_gives_its_output(training: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"weight": (1, CHANNELS, 1, 1), "bias": (1, CHANNELS, 1, 1), "mean_weight": (3,), "var_weight": (3,)}
    shapes |= {"running_mean": (1, CHANNELS, 1), "running_var": (1, CHANNELS, 1)}
    state = {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    layer, x = SwitchableNorm(CHANNELS, compat="authors").double().train(training), a_map()

    layer.load_state_dict(state)

    torch.testing.assert_close(layer(x), released(x, state, training=training), rtol=0, atol=1e-10)
    without = SwitchableNorm(CHANNELS).double().train(training)
    without.load_state_dict(state)
    assert (without(x) - layer(x)).abs().max() > 1e-3


def test_the_released_layer_without_batch_norm_loads_too() -> None:
    state = {"weight": torch.rand(1, 8, 1, 1), "bias": torch.rand(1, 8, 1, 1)}
    state |= {"mean_weight": torch.rand(2), "var_weight": torch.rand(2)}
    layer = SwitchableNorm(CHANNELS, pool=("IN", "LN"), compat="authors")

    layer.load_state_dict(state)

    assert torch.equal(layer.mean_weight, state["mean_weight"])


def test_the_released_layer_has_no_variance_on_one_cell() -> None:
    with pytest.raises(InvalidConfigError, match="one cell"):
        SwitchableNorm(CHANNELS, compat="authors")(torch.rand(2, CHANNELS, 1, 1))


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"pool": ()}, "got ''"),
        ({"pool": "IN"}, "got 'IN'"),
        ({"pool": ("IN", "WN")}, "IN, WN"),
        ({"pool": ("IN", "IN")}, "each once"),
        ({"channel_groups": 3}, "channel_groups must divide"),
        ({"channel_groups": 0}, "channel_groups must divide"),
        ({"selection": "firm"}, "selection must be"),
        ({"compat": "torch"}, "compat must be"),
        ({"pool": ("BN", "LCN")}, "LCN in the pool takes window_px"),
        ({"window_px": 31}, "not in the pool IN, LN, BN"),
        ({"pool": ("BN", "GN"), "group_size": 3}, "group_size must divide"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_in_one_line(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidConfigError, match=match) as caught:
        SwitchableNorm(CHANNELS, **settings)

    assert "\n" not in str(caught.value)
