"""What a checkpoint says of its model: plain data, loaded weights-only."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn

import geonorm.models
import geonorm.norms
from geonorm import __version__
from geonorm.data.spec import DatasetSpec
from geonorm.errors import CheckpointError, InvalidConfigError, one_line
from geonorm.models import SmpNetwork, TileGeometry, localize_norms, tile_geometry
from geonorm.norms.factory import class_behind

KEY = "geonorm"
PREFIX = "network."
"""What the names of the network's weights begin with in a checkpoint."""
FORMAT = 1
KEPT_NORM: dict[str, Any] = {"class_path": "kept", "init_args": {}}
"""In place of a norm: the network has the norms that its library gave it."""
TRUSTED_PACKAGES = ("geonorm", "torch.nn", "segmentation_models_pytorch", "torchgeo", "timm")
PUBLIC_MODULES = (geonorm.norms, geonorm.models)
"""Where a class is looked for under its short path before the path it is defined at."""

Description = dict[str, Any]
"""``{"class_path": ..., "init_args": {...}}``, as in a YAML."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A network with all there is to know of its input and output."""

    network: nn.Module
    """Raw band values in, logits out; in evaluation mode."""
    spec: DatasetSpec
    """Bands, classes, colours, resolution."""
    network_path: Description
    """How the network is made."""
    norm_path: Description
    """How its norms are made."""
    name: str
    """Name of the checkpoint file."""
    version: str
    """The geonorm that wrote it."""
    localized_px: int | None = None
    """Window over which its GN, IN and LN take their statistics now; None where they are as they were made."""
    step: int | None = None
    """Steps of training behind it; None where the checkpoint does not say."""

    @functools.cached_property
    def geometry(self) -> TileGeometry:
        """What tiling has to know of the network."""
        return tile_geometry(self.network)


def describe(
    network: Description, norm: Description, spec: DatasetSpec, *, localized_px: int | None = None
) -> dict[str, Any]:
    """Return what a checkpoint holds beside the weights."""
    facts = {
        "format": FORMAT,
        "version": __version__,
        "network": network,
        "norm": norm,
        "spec": spec.as_plain(),
    }
    return facts if localized_px is None else {**facts, "localized": {"window_px": localized_px}}


def localized_px_of(facts: dict[str, Any]) -> int | None:
    """Return the window that a checkpoint's norms were made local with, from what `describe` returned."""
    localized = facts.get("localized")
    return None if localized is None else localized["window_px"]


def load_model(path: str | os.PathLike[str], *, trust: bool = False) -> TrainedModel:
    """Return the model of a checkpoint.

    Args:
        path: A checkpoint that ``geonorm fit`` wrote.
        trust: Make networks and norms of any module, not only of the packages geonorm knows.

    Raises:
        CheckpointError: No such file, not a checkpoint of geonorm, or a class that is not trusted.
    """
    content = load_checkpoint(Path(path))
    facts = content[KEY]
    try:
        spec = DatasetSpec.from_plain(facts["spec"])
        norm = None if facts["norm"] == KEPT_NORM else factory_of(facts["norm"], trust=trust)
        make = factory_of(_without_pretrained(facts["network"]), trust=trust)
        network = make(len(spec.bands), len(spec.class_names), norm=norm)
        localized_px = localized_px_of(facts)
        if localized_px is not None:
            # Before the weights: a norm with an activation built in changes its name as it becomes local, and the
            # weights were saved under the new one.
            network, _ = localize_norms(network, localized_px)
    except CheckpointError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"This geonorm cannot make the network of {path}: {one_line(error)}") from error
    weights = {
        name.removeprefix(PREFIX): value for name, value in content["state_dict"].items() if name.startswith(PREFIX)
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {path} do not fit the network it names: {one_line(error)}") from error
    return TrainedModel(
        network=network.eval(),
        spec=spec,
        network_path=facts["network"],
        norm_path=facts["norm"],
        name=Path(path).name,
        version=facts["version"],
        localized_px=localized_px,
        step=content.get("global_step"),
    )


def save_model(model: TrainedModel, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint of a model: `load_model` and ``geonorm validate`` take it, training cannot resume from it.

    It appears under its name only when it is complete.

    Raises:
        CheckpointError: The file cannot be written.
    """
    content = {
        "state_dict": {f"{PREFIX}{name}": value.cpu() for name, value in model.network.state_dict().items()},
        "pytorch-lightning_version": lightning.__version__,  # the Trainer refuses a checkpoint without
        KEY: describe(model.network_path, model.norm_path, model.spec, localized_px=model.localized_px),
    }
    unfinished = f"{os.fspath(path)}.tmp{os.getpid()}"
    try:
        torch.save(content, unfinished)
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be written: {one_line(error)}. Choose another place.") from error
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _without_pretrained(network: Description) -> Description:
    """Return how to make an smp network without fetching pretrained weights: the checkpoint brings every number."""
    if network["class_path"] != f"{geonorm.models.__name__}.{SmpNetwork.__name__}":
        return network
    return {**network, "init_args": {**network["init_args"], "weights": None}}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint of geonorm holds, which may be plain data only.

    Raises:
        CheckpointError: No such file, not a checkpoint of geonorm, or more than plain data.
    """
    content = load_plain(path)
    if not isinstance(content.get(KEY), dict) or "state_dict" not in content:
        raise CheckpointError(
            f"{path} is a checkpoint, but not one of geonorm (it has no entry {KEY!r}). Give a .ckpt of geonorm fit."
        )
    problem = _problem_of(content)
    if problem is not None:
        raise CheckpointError(f"{path} is damaged: {problem}. Give a .ckpt as geonorm fit wrote it.")
    facts = content[KEY]
    if facts["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was written by geonorm {facts['version']}, newer than this {__version__}. Upgrade geonorm."
        )
    return content


def _problem_of(content: Mapping[str, Any]) -> str | None:
    """Return what is not as `describe` and the Trainer write it, None where all of it is."""
    facts = content[KEY]
    for name, kind, word in (("format", int, "a whole number"), ("version", str, "a text")):
        if not isinstance(facts.get(name), kind):
            return f"its {name} is {_short(facts, name)}, not {word}"
    for name in ("network", "norm"):
        made = facts.get(name)
        if not (
            isinstance(made, dict)
            and isinstance(made.get("class_path"), str)
            and isinstance(made.get("init_args"), dict)
            and all(isinstance(argument, str) for argument in made["init_args"])
        ):
            return f"its {name} is {_short(facts, name)}, not a class_path with init_args"
    if not isinstance(facts.get("spec"), dict):
        return f"its spec is {_short(facts, 'spec')}, not the facts of a data set"
    weights = content["state_dict"]
    if not (isinstance(weights, dict) and all(isinstance(name, str) for name in weights)):
        return f"its state_dict is a {type(weights).__name__}, not tensors by name"
    return None


def _short(facts: Mapping[str, Any], name: str) -> str:
    return one_line(repr(facts[name]), 60) if name in facts else "missing"


def load_plain(path: Path) -> dict[str, Any]:
    """Return the dictionary that a file of plain data holds.

    Raises:
        CheckpointError: No such file, or something else in it.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"Checkpoint {path} {problem}. Give a .ckpt of geonorm fit (runs/.../checkpoints).")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be loaded as a checkpoint of plain data; give a .ckpt of geonorm fit."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint of geonorm fit.")
    return content


def describe_factory(factory: Callable[..., Any], *, role: str) -> Description:
    """Return class path and arguments of a class, or of a ``functools.partial`` of one.

    Raises:
        InvalidConfigError: Another callable, or arguments that are not plain data.
    """
    target, arguments = class_behind(factory)
    if not isinstance(target, type):
        raise InvalidConfigError(
            f"{role} must be a class or a functools.partial of one, so that checkpoints can name it, got {factory!r}."
        )
    _check_plain(arguments, role)
    return {"class_path": _path_of(target), "init_args": arguments}


def factory_of(description: Description, *, trust: bool = False) -> Callable[..., nn.Module]:
    """Return what `describe_factory` described; only an ``nn.Module`` of a trusted package, unless ``trust``."""
    class_path = description["class_path"]
    module_name, _, class_name = class_path.rpartition(".")
    if not trust and not any(f"{module_name}.".startswith(f"{package}.") for package in TRUSTED_PACKAGES):
        raise CheckpointError(
            f"The checkpoint names {class_path}, which is not part of {', '.join(TRUSTED_PACKAGES)}. "
            "If you know where the checkpoint comes from, pass --trust."
        )
    try:
        target = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(f"The checkpoint names {class_path}, which this installation does not have.") from error
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise CheckpointError(
            f"The checkpoint names {class_path}, which is not a torch.nn.Module: nothing is made of it, with or "
            "without --trust."
        )
    return functools.partial(target, **description["init_args"])


def _path_of(target: type) -> str:
    for module in PUBLIC_MODULES:
        if getattr(module, target.__name__, None) is target:
            return f"{module.__name__}.{target.__name__}"
    return f"{target.__module__}.{target.__qualname__}"


def _check_plain(value: Any, role: str) -> None:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, role)
    elif not isinstance(value, int | float | str | None):
        raise InvalidConfigError(
            f"Arguments of {role} must be plain numbers and strings, so that checkpoints can hold them, got {value!r}."
        )
