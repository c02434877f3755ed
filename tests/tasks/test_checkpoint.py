"""Checkpoints: what they say of a model, what is loaded from them, and what is not trusted."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from jsonargparse import ArgumentParser
from timm.layers.norm_act import GroupNormAct
from torch import Tensor, nn

from geonorm import __version__
from geonorm.data.spec import INRIA
from geonorm.errors import CheckpointError, InvalidConfigError
from geonorm.models import Rescale, UNet, localize_norms
from geonorm.norms import BatchNorm, GroupNorm, LocalContextNorm, NormFactory
from geonorm.tasks.checkpoint import Description, describe, describe_factory, factory_of, load_model, save_model
from geonorm.tasks.segmentation import NetworkFactory
from tests.models.networks import random_image, with_random_values

SPEC = INRIA.with_statistics((90.5, 101.0, 84.25), (40.0, 35.5, 50.0))
NETWORK: Description = {"class_path": "geonorm.models.UNet", "init_args": {"depth": 1, "width": 4}}
NORM: Description = {"class_path": "geonorm.norms.LocalContextNorm", "init_args": {"window_px": 5}}


class Foreign(nn.Module):
    """A network that is part of no package geonorm knows."""

    def __init__(self, in_channels: int, num_classes: int, *, norm: NormFactory) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_classes, 1)


def unet() -> UNet:
    """Return the network that `NETWORK` and `NORM` describe."""
    return with_random_values(UNet(3, 2, norm=partial(LocalContextNorm, window_px=5), depth=1, width=4))


def content(made: nn.Module | None = None, **facts: Any) -> dict[str, Any]:
    """Return what a checkpoint holds, but for what only training needs."""
    weights = (made or unet()).state_dict()
    return {
        "state_dict": {f"network.{name}": value for name, value in weights.items()},
        "geonorm": {**describe(NETWORK, NORM, SPEC), **facts},
    }


def saved(path: Path, value: Any) -> Path:
    """Write a checkpoint as the Trainer does."""
    torch.save(value, path)
    return path


def refused(path: Path, **settings: Any) -> str:
    """Return the one line that a checkpoint is refused with."""
    with pytest.raises(CheckpointError) as caught:
        load_model(path, **settings)

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))
    return str(caught.value)


# Factories


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (BatchNorm, {"class_path": "geonorm.norms.BatchNorm", "init_args": {}}),
        (UNet, {"class_path": "geonorm.models.UNet", "init_args": {}}),
        (partial(LocalContextNorm, window_px=5), NORM),
        (
            partial(partial(LocalContextNorm, window_px=5, group_size=2), window_px=7),
            {
                "class_path": "geonorm.norms.LocalContextNorm",
                "init_args": {"window_px": 7, "group_size": 2},
            },
        ),
        (
            partial(LocalContextNorm, window_cells=(3, 5)),
            {"class_path": "geonorm.norms.LocalContextNorm", "init_args": {"window_cells": (3, 5)}},
        ),
        (
            partial(partial(UNet, depth=1, width=4)),
            NETWORK,
        ),
    ],
)
def test_a_class_or_a_partial_of_one_is_described_by_path_and_arguments(
    factory: Callable[..., Any], expected: Description
) -> None:
    assert describe_factory(factory, role="norm") == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["--norm=geonorm.norms.LocalContextNorm", "--norm.window_px=31"],
        ["--norm=geonorm.norms.LocalContextNorm", "--norm.window_cells=[3, 5]", "--norm.group_size=2"],
        ["--norm=geonorm.norms.BatchNorm"],
        ["--norm=GroupNorm"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_norm_of_the_command_line_is_described_so_that_the_same_one_can_be_made(arguments: list[str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--norm", type=NormFactory)
    if arguments == ["--norm=GroupNorm"]:
        arguments = ["--norm=geonorm.norms.GroupNorm", "--norm.num_groups=2"]
    norm = parser.instantiate(parser.parse_args(arguments)).norm

    description = describe_factory(norm, role="norm")

    assert description["class_path"] == arguments[0].removeprefix("--norm=")
    assert str(factory_of(description)(8, stride=2)) == str(norm(8, stride=2))


def test_a_network_of_the_command_line_is_described_too() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=NetworkFactory)
    arguments = ["--network=geonorm.models.UNet", "--network.depth=2", "--network.padding=valid"]
    network = parser.instantiate(parser.parse_args(arguments)).network

    description = describe_factory(network, role="network")

    assert description["class_path"] == "geonorm.models.UNet"
    assert description["init_args"]["depth"] == 2
    assert description["init_args"]["padding"] == "valid"


@pytest.mark.parametrize(
    "factory",
    [
        lambda num_features, *, stride: BatchNorm(num_features),
        partial(lambda num_features, *, stride, eps: BatchNorm(num_features), eps=1e-5),
        torch.nn.functional.relu,
        BatchNorm(3),
        None,
    ],
    ids=["lambda", "partial of a lambda", "function", "layer", "nothing"],
)
def test_what_a_checkpoint_could_not_name_is_refused(factory: Any) -> None:
    with pytest.raises(InvalidConfigError, match="norm must be a class or a functools") as caught:
        describe_factory(factory, role="norm")

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"norm": BatchNorm},
        {"window_px": torch.tensor(3)},
        {"window_cells": [torch.tensor(3), 3]},
        {"window_cells": {"rows": Path("3")}},
    ],
    ids=["class", "tensor", "tensor in a list", "path in a dictionary"],
)
def test_arguments_that_are_no_plain_data_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfigError, match="must be plain numbers and strings"):
        describe_factory(partial(LocalContextNorm, **arguments), role="norm")


def test_what_was_described_is_made_again() -> None:
    norm = factory_of(NORM)
    network = factory_of(NETWORK)(3, 2, norm=norm)

    assert str(network) == str(unet())


@pytest.mark.parametrize(
    "class_path",
    [
        "subprocess.Popen",
        "os.system",
        "builtins.eval",
        "geonormal.UNet",
        "torch.hub.load",
        "torch.jit.ScriptModule",
        "timmy.Net",
        "UNet",
        ".UNet",
        "",
        f"{Foreign.__module__}.Foreign",
    ],
)
def test_a_class_outside_the_known_packages_is_not_even_imported(class_path: str) -> None:
    with pytest.raises(CheckpointError, match="pass --trust") as caught:
        factory_of({"class_path": class_path, "init_args": {}})

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("class_path", "reason"),
    [
        ("torch.nn.functional.conv2d", "is not a torch.nn.Module"),
        ("torch.nn.Parameter", "is not a torch.nn.Module"),
        ("geonorm.errors.GeonormError", "is not a torch.nn.Module"),
        ("geonorm.tiling.plan.Plan", "is not a torch.nn.Module"),
        ("geonorm.models.Nope", "this installation does not have"),
        ("geonorm.nowhere.UNet", "this installation does not have"),
        ("geonorm.models.UNet.forward", "this installation does not have"),
    ],
)
def test_what_is_no_network_of_a_known_package_is_refused(class_path: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        factory_of({"class_path": class_path, "init_args": {}})

    assert class_path in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ("--trust" in str(caught.value)) == ("Module" in reason)


def test_trust_takes_any_network_but_nothing_else() -> None:
    made = factory_of({"class_path": f"{__name__}.Foreign", "init_args": {}}, trust=True)(3, 2, norm=BatchNorm)

    assert type(made).__name__ == "Foreign"
    with pytest.raises(CheckpointError, match=r"is not a torch\.nn\.Module"):
        factory_of({"class_path": "fractions.Fraction", "init_args": {}}, trust=True)


# Checkpoints


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    network, image = unet(), random_image(1, 3, 12, 20)

    model = load_model(saved(tmp_path / "last.ckpt", content(network)))

    assert torch.equal(model.network(image), network.eval()(image))
    assert not model.network.training
    assert model.spec == SPEC
    assert (model.network_path, model.norm_path) == (NETWORK, NORM)
    assert (model.name, model.version) == ("last.ckpt", __version__)


def test_a_checkpoint_is_plain_data(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt", content())

    plain = torch.load(path, weights_only=True)["geonorm"]

    assert plain == {
        "format": 1,
        "version": __version__,
        "network": NETWORK,
        "norm": NORM,
        "spec": SPEC.as_plain(),
    }


LOCAL_GN = {"norm": {"class_path": "geonorm.norms.GroupNorm", "init_args": {"group_size": 2}}}


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_localized_network_comes_back_with_its_local_norms(tmp_path: Path, padding: str) -> None:
    made_by: Description = {"class_path": "geonorm.models.UNet", "init_args": {"depth": 1, "width": 4}}
    made_by["init_args"]["padding"] = padding
    global_norms = factory_of(made_by)(3, 2, norm=partial(GroupNorm, group_size=2))
    network, _ = localize_norms(with_random_values(global_norms), 9)
    facts = {**LOCAL_GN, "network": made_by, "localized": {"window_px": 9}}

    model = load_model(saved(tmp_path / "local.ckpt", content(network, **facts)))

    image = random_image(1, 3, 32, 40)
    assert model.localized_px == 9
    assert model.norm_path == LOCAL_GN["norm"]
    assert torch.equal(model.network(image), network.eval()(image))
    assert not torch.allclose(model.network(image), global_norms.eval()(image), atol=1e-3)


def test_a_checkpoint_without_the_entry_is_loaded_as_it_was_made(tmp_path: Path) -> None:
    network = with_random_values(UNet(3, 2, norm=partial(GroupNorm, group_size=2), depth=1, width=4))

    model = load_model(saved(tmp_path / "gn.ckpt", content(network, **LOCAL_GN)))

    assert model.localized_px is None
    assert sum(isinstance(module, GroupNorm) for module in model.network.modules()) == 6


class BuiltIn(nn.Module):
    """A network whose norms have their activation built in, as timm's do, and are none of ours."""

    def __init__(self, in_channels: int, num_classes: int, *, norm: NormFactory) -> None:
        super().__init__()
        self.rescale = Rescale(in_channels)
        self.conv = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.norm = GroupNormAct(4, 2)
        self.head = nn.Conv2d(4, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.norm(self.conv(self.rescale(image))))


def test_norms_that_change_their_name_as_they_become_local_come_back(tmp_path: Path) -> None:
    network, _ = localize_norms(with_random_values(BuiltIn(3, 2, norm=BatchNorm)), 5)
    named = {"network": {"class_path": f"{__name__}.BuiltIn", "init_args": {}}, "localized": {"window_px": 5}}

    model = load_model(saved(tmp_path / "timm.ckpt", content(network, **named)), trust=True)

    assert "norm.0.weight" in network.state_dict()
    image = random_image(1, 3, 12, 20)
    assert torch.equal(model.network(image), network.eval()(image))


def smp_network(weights: str | None) -> Description:
    """Describe a small network of the smp library with an encoder of timm, whose norms have activations built in."""
    arguments = {"arch": "unet", "encoder": "tu-regnetx_002", "weights": weights}
    return {"class_path": "geonorm.models.SmpNetwork", "init_args": arguments}


def test_a_localized_network_with_an_encoder_of_timm_comes_back_without_fetching_weights_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = partial(GroupNorm, group_size=2)
    trained = with_random_values(factory_of(smp_network(None))(3, 2, norm=norm))
    network, _ = localize_norms(trained, 33)
    facts = {**LOCAL_GN, "network": smp_network("imagenet"), "localized": {"window_px": 33}}
    path = saved(tmp_path / "smp.ckpt", content(network, **facts))
    asked = []
    create = smp.create_model

    def note(*args: Any, encoder_weights: str | None, **settings: Any) -> nn.Module:
        asked.append(encoder_weights)
        return create(*args, encoder_weights=encoder_weights, **settings)

    monkeypatch.setattr(smp, "create_model", note)

    model = load_model(path)

    assert asked == [None]
    assert model.network_path == smp_network("imagenet")
    ours, theirs = model.network.state_dict(), network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("localized", [{"window_px": 0}, {"window_miles": 3}, 9], ids=str)
def test_a_window_that_cannot_be_is_one_line(tmp_path: Path, localized: Any) -> None:
    network = with_random_values(UNet(3, 2, norm=partial(GroupNorm, group_size=2), depth=1, width=4))

    refused(saved(tmp_path / "odd.ckpt", content(network, **LOCAL_GN, localized=localized)))


def test_a_model_that_is_written_comes_back(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path / "last.ckpt", content()))

    save_model(model, tmp_path / "copy.ckpt")

    again, image = load_model(tmp_path / "copy.ckpt"), random_image(1, 3, 12, 20)
    assert torch.equal(again.network(image), model.network(image))
    assert (again.spec, again.network_path, again.norm_path) == (model.spec, model.network_path, model.norm_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.ckpt", "last.ckpt"]


def test_a_model_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path / "last.ckpt", content()))
    (tmp_path / "taken").mkdir()

    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        save_model(model, tmp_path / "taken")

    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "taken"]


def test_a_file_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    reason = refused(saved(tmp_path / "whole.ckpt", {"state_dict": {}, "geonorm": unet()}))

    assert "cannot be loaded as a checkpoint of plain data" in reason


def test_a_foreign_network_needs_trust(tmp_path: Path) -> None:
    path, network = f"{__name__}.Foreign", with_random_values(Foreign(3, 2, norm=BatchNorm))
    facts = {"network": {"class_path": path, "init_args": {}}}
    checkpoint = saved(tmp_path / "foreign.ckpt", content(network, **facts))

    assert path in refused(checkpoint)
    assert "--trust" in refused(checkpoint)
    trusted = load_model(checkpoint, trust=True).network.state_dict()
    assert torch.equal(trusted["conv.weight"], network.conv.weight)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"state_dict": {}}, "not one of geonorm"),
        ({"geonorm": {}}, "not one of geonorm"),
        ({"geonorm": "here", "state_dict": {}}, "not one of geonorm"),
        ({"epoch": 3, "state_dict": {"weight": torch.zeros(3)}}, "not one of geonorm"),
        (torch.zeros(3), "holds a Tensor"),
        ([1, 2], "holds a list"),
        (content(format=2, version="9.0"), "written by geonorm 9.0"),
        (content(GroupNorm(4)), "do not fit the network it names"),
        (content(UNet(3, 5, norm=BatchNorm, depth=1, width=4)), "do not fit the network it names"),
        (content(network={"class_path": "subprocess.Popen", "init_args": {}}), "--trust"),
        (content(norm={"class_path": "torch.nn.functional.relu", "init_args": {}}), "is not a torch.nn.Module"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_checkpoint_that_cannot_be_used_is_one_line(tmp_path: Path, value: Any, reason: str) -> None:
    assert reason in refused(saved(tmp_path / "other.ckpt", value))


@pytest.mark.parametrize(
    "facts",
    [
        {"network": {"class_path": "geonorm.models.UNet", "init_args": {"depth": 1, "gates": True}}},
        {"norm": {"class_path": "geonorm.norms.LocalContextNorm", "init_args": {"window_miles": 3}}},
        {"network": {"class_path": "torch.nn.Linear", "init_args": {}}},
        {"spec": {**SPEC.as_plain(), "planet": "earth"}},
    ],
    ids=["unknown argument", "unknown argument of the norm", "no network", "unknown fact"],
)
def test_facts_that_this_version_does_not_understand_are_one_line(tmp_path: Path, facts: dict[str, Any]) -> None:
    refused(saved(tmp_path / "other.ckpt", content(**facts)))


NO_VERSION = content()
del NO_VERSION["geonorm"]["version"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (NO_VERSION, "its version is missing"),
        (content(format="1"), "its format is '1'"),
        (content(format=None), "its format is None"),
        ({**content(), "state_dict": [1, 2]}, "its state_dict is a list"),
        ({**content(), "state_dict": {3: torch.zeros(2)}}, "its state_dict is a dict"),
        (content(network="UNet"), "its network is 'UNet'"),
        (content(norm={"class_path": 7, "init_args": {}}), "its norm is {'class_path': 7"),
        (content(network={"class_path": "geonorm.models.UNet"}), "its network is"),
        (content(spec=[1]), r"its spec is [1]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_with_a_part_that_cannot_be_is_one_line_that_names_it(
    tmp_path: Path, value: Any, reason: str
) -> None:
    line = refused(saved(tmp_path / "odd.ckpt", value))

    assert line.startswith(f"{tmp_path / 'odd.ckpt'} is damaged: {reason}")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"resolution_m": "x"}, "resolution_m must be a number of metres above 0, got 'x'"),
        ({"resolution_m": 0}, "resolution_m must be a number of metres above 0, got 0"),
        ({"scored_classes": [7]}, "scored_classes must be labels from 0 to 1, got [7]"),
        ({"class_colors": [[0, 0, 0], [300, 0, 0]]}, "got (300, 0, 0)"),
        ({"class_colors": 3}, "class_colors must be a tuple, got 3"),
        ({"class_names": [1, 2]}, "class_names must be a tuple of names"),
        ({"bands": "red"}, "bands must be a tuple of names"),
        ({"band_means": ["a", "b", "c"]}, "band_means must be finite numbers"),
    ],
    ids=str,
)
def test_a_checkpoint_with_facts_that_cannot_be_is_one_line_that_names_them(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    assert reason in refused(saved(tmp_path / "odd.ckpt", content(spec={**SPEC.as_plain(), **changes})))


def test_a_checkpoint_that_lacks_a_fact_is_one_line_that_names_it(tmp_path: Path) -> None:
    plain = SPEC.as_plain()
    del plain["class_names"]

    assert "lacks class_names" in refused(saved(tmp_path / "odd.ckpt", content(spec=plain)))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "last.ckpt")
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize("text", [b"", b"a checkpoint?", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\x00."])
def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "broken.ckpt").write_bytes(text)

    refused(tmp_path / "broken.ckpt")


def test_a_damaged_checkpoint_is_one_line_or_loads(tmp_path: Path) -> None:
    whole = saved(tmp_path / "last.ckpt", content()).read_bytes()
    path, draw = tmp_path / "damaged.ckpt", random.Random(0)
    messages = []
    for _ in range(100):
        damaged = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.5 else whole)
        for _ in range(draw.randrange(4)):
            if damaged:
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)

        try:
            load_model(path)
        except CheckpointError as error:
            messages.append(str(error))  # some damage goes unseen, and the checkpoint loads
    assert messages
    assert not any("\n" in message for message in messages)


def test_random_bytes_are_one_line(tmp_path: Path) -> None:
    path, draw = tmp_path / "noise.ckpt", random.Random(0)
    for _ in range(100):
        path.write_bytes(b"\x80\x02" + draw.randbytes(draw.randrange(200)))

        refused(path)
