"""What tells networks of the same weights apart, in every process alike."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from geonorm import norms
from geonorm.models import UNet
from geonorm.models.structure import structure_of, weights_hash
from geonorm.norms.base import Norm
from tests.models.networks import Network, random_image, unet, with_random_values

LCN = {"pool": ("IN", "BN", "LCN", "GN"), "window_cells": 3}
CHOICES: dict[tuple[str, str], tuple[dict[str, Any], tuple[Any, ...]]] = {
    ("GroupNorm", "group_size"): ({}, (1, 2)),
    ("GroupNorm", "num_groups"): ({}, (1, 2)),
    ("LocalContrastNorm", "window_cells"): ({}, (3, 5)),
    ("BatchRenorm", "r_max"): ({}, (1.0, 2.0)),
    ("BatchRenorm", "d_max"): ({}, (0.0, 1.0)),
    ("BatchRenorm", "warmup_steps"): ({}, (0, 9)),
    ("BatchRenorm", "ramp_steps"): ({}, (0, 9)),
    ("LocalContextNorm", "stride"): ({"window_px": 9}, (1, 4)),
    ("LocalContextNorm", "window_px"): ({}, (3, 9)),
    ("LocalContextNorm", "window_cells"): ({}, (3, (3, 5), 4)),
    ("LocalContextNorm", "group_size"): ({"window_cells": 3}, (1, 2)),
    ("LocalContextNorm", "border"): ({"window_cells": 3}, ("nearest", "clip")),
    ("LocalContextNorm", "compat"): ({"window_cells": 3}, (None, "authors")),
    ("SwitchableNorm", "stride"): ({**LCN, "window_cells": None, "window_px": 9}, (1, 4)),
    ("SwitchableNorm", "pool"): ({}, (("IN", "LN", "BN"), ("LN", "IN", "BN"))),
    ("SwitchableNorm", "tied"): ({}, (True, False)),
    ("SwitchableNorm", "channel_groups"): ({}, (1, 2)),
    ("SwitchableNorm", "selection"): ({}, ("soft", "hard", "sparse")),
    ("SwitchableNorm", "group_size"): (LCN, (1, 2)),
    ("SwitchableNorm", "window_cells"): (LCN, (3, 5)),
    ("SwitchableNorm", "window_px"): ({**LCN, "window_cells": None}, (3, 9)),
    ("SwitchableNorm", "border"): (LCN, ("nearest", "clip")),
    ("SwitchableNorm", "compat"): ({}, (None, "authors")),
}
"""Norm and setting -> what else must be given, and values that differ."""
MADE = sorted(name for name in norms.__all__ if isinstance(one := getattr(norms, name), type) and issubclass(one, Norm))
SETTINGS = [
    (name, setting)
    for name in MADE
    for setting in inspect.signature(getattr(norms, name)).parameters
    if setting != "num_features" and ((name, setting) in CHOICES or setting != "stride")
]


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_norms_that_answer_differently_have_another_structure_and_show_another_setting(name: str, setting: str) -> None:
    same = {"LocalContextNorm": {"window_cells": 3}}.get(name, {})
    common = {"eps": (same, (1e-5, 1e-1)), "momentum": (same, (0.1, 0.2))}
    others, values = CHOICES.get((name, setting)) or common[setting]
    layers = [with_random_values(getattr(norms, name)(4, **{**others, setting: value})).eval() for value in values]
    for layer in layers:
        if hasattr(layer, "select"):
            layer.select(layer.selection)
    x = random_image(2, 4, 12, 17)

    for one, other in itertools.combinations(layers, 2):
        if not torch.equal(one(x), other(x)):
            assert structure_of(one) != structure_of(other) or weights_hash(one) != weights_hash(other)
            assert repr(one) != repr(other) or weights_hash(one) != weights_hash(other)
    assert setting in {"momentum", "r_max", "d_max", "warmup_steps", "ramp_steps"} or not torch.equal(
        layers[0](x), layers[-1](x)
    )


@pytest.mark.parametrize("settings", [{"downsample": "maxblur"}, {"padding": "valid"}, {"depth": 2}], ids=str)
def test_u_nets_of_other_settings_have_another_structure_and_show_it(settings: dict[str, Any]) -> None:
    one, other = unet(depth=1), unet(**{"depth": 1, **settings})

    assert structure_of(one) != structure_of(other)
    assert repr(one) != repr(other)


class Thing(nn.Module):
    """A layer of a user, who shows nothing of it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        vars(self).update(settings)


def adding(number: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x + number


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        ((1, 2), (2, 1)),
        ({"a": [1]}, {"a": [2]}),
        (frozenset("ab"), frozenset("bc")),
        (torch.zeros(3), torch.ones(3)),
        (torch.zeros(4), torch.zeros(2, 2)),
        (torch.float16, torch.float32),
        (nn.functional.relu, nn.functional.silu),
        (adding(1), adding(2)),
        (functools.partial(torch.add, alpha=1), functools.partial(torch.add, alpha=2)),
        (nn.ReLU, nn.SiLU),
        (1.5, float("inf")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_attribute_is_a_setting(one: Any, other: Any) -> None:
    assert structure_of(Thing(_it=one)) == structure_of(Thing(_it=one))
    assert structure_of(Thing(_it=one)) != structure_of(Thing(_it=other))


def test_buffers_that_are_not_saved_hooks_and_the_order_of_layers_are_told() -> None:
    def buffered(value: float) -> nn.Module:
        layer = nn.Module()
        layer.register_buffer("kernel", torch.full((2,), value), persistent=False)
        return layer

    hooked = nn.Sequential(nn.ReLU(), nn.Sigmoid())
    plain = structure_of(hooked)
    hooked[0].register_forward_hook(lambda *_: None)

    assert structure_of(buffered(1)) != structure_of(buffered(2))
    assert structure_of(hooked) != plain != structure_of(nn.Sequential(nn.Sigmoid(), nn.ReLU()))


def test_the_structure_is_plain_and_names_no_place_in_memory() -> None:
    class Own:
        pass

    endless: list[Any] = [float("nan")]
    endless.append(endless)
    text = f"{Own()!r}"

    def made() -> nn.Module:
        return Network(nn.Sequential(Thing(own=Own(), endless=endless, text=text, call=Own, hook=Thing().forward)))

    assert structure_of(made()) == json.loads(json.dumps(structure_of(made())))
    assert "0x" not in json.dumps(structure_of(made()))


def test_compiling_a_network_does_not_change_its_structure() -> None:
    network = unet()
    before = structure_of(network)

    wrapped, again = (cast(nn.Module, torch.compile(network)) for _ in range(2))
    network.compile()

    assert structure_of(network) == before
    assert structure_of(wrapped) == structure_of(again)


def test_the_mode_the_weights_and_a_forward_pass_change_no_structure() -> None:
    network = UNet(3, 2, norm=norms.SwitchableNorm, depth=1, width=4)
    before = structure_of(network)

    network.train()(random_image(2, 3, 16, 16))
    with_random_values(network).eval()(random_image(1, 3, 16, 16))

    assert structure_of(network) == before


@pytest.mark.slow
def test_every_process_tells_the_same_structure() -> None:
    lines = (
        "import json, torch",
        "from geonorm.models import build_smp",
        "from geonorm.models.structure import structure_of",
        "from geonorm.norms import SwitchableNorm",
        "network = build_smp('unet', 'resnet18', in_channels=3, num_classes=2, norm=SwitchableNorm)",
        "network.names = {'a', 'b', 'c', object}",
        "print(json.dumps([structure_of(network), structure_of(torch.compile(network))]))",
    )
    command = [sys.executable, "-c", "\n".join(lines)]

    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))

    assert first == second
    assert "0x" not in first
