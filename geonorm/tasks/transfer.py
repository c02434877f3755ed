"""Start a network from the weights of another one: what fits by name and shape is taken, the rest stays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geonorm.errors import CheckpointError, name_some
from geonorm.tasks.checkpoint import load_plain

TAKEN_OFF = ("", "network.", "model.", "module.")
"""What the names in a file may begin with, beyond those of the network: of geonorm, of other Lightning modules, of
``DataParallel``."""
PUT_BEFORE = ("", "network.", "network.encoder.")
"""Where the tensors of a file may belong in a network: the same network, smp's, the encoder of smp's."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What became of the tensors of a file and of a network."""

    source: str
    """The file."""
    taken: tuple[str, ...]
    """Tensors of the network that now hold the file's numbers."""
    left: tuple[str, ...]
    """Tensors of the file that the network has no place for."""
    new: tuple[str, ...]
    """Tensors of the network that the file has nothing for: they stay as they were."""

    def in_words(self) -> str:
        """Return one line for the user."""
        total = len(self.taken) + len(self.new)
        parts = [f"{len(self.taken)} of {total} tensors of the network start from {self.source}"]
        statistics, others = _apart(self.left)
        if others:
            parts.append(f"left there: {name_some(others, most=4)}")
        if statistics:
            parts.append(f"left there: {len(statistics)} running statistics")
        statistics, others = _apart(self.new)
        if others:
            parts.append(f"new here: {name_some(others, most=4)}")
        if statistics:
            parts.append(f"new here: {len(statistics)} running statistics, to be trained before use")
        return "; ".join(parts)


@torch.no_grad()
def take_weights(network: nn.Module, path: str | os.PathLike[str]) -> Transfer:
    """Copy every tensor of a file into the network whose name and shape fit.

    Args:
        network: Changed in place.
        path: A checkpoint of geonorm or of another LightningModule, or a plain state dict; weights alone are read.

    Raises:
        CheckpointError: No such file, no tensors in it, or not one convolution of the network fits.
    """
    weights = _tensors_of(load_plain(Path(path)))
    places = network.state_dict()
    here = _by_best_names(weights, places)
    taken = tuple(name for name in places if name in here)
    if not any(places[name].dim() == 4 for name in taken):
        raise CheckpointError(
            f"Nothing in {path} fits: of its {len(weights)} tensors none has name and shape of a convolution of the "
            f"network ({_example(places)}). Give a checkpoint of the same network: depth, width, encoder."
        )
    # Through load_state_dict, so that layers see old forms of their weights as in any checkpoint.
    network.load_state_dict({name: weights[here[name]] for name in taken}, strict=False)
    used = set(here.values())
    return Transfer(
        source=os.fspath(path),
        taken=taken,
        left=tuple(name for name in weights if name not in used),
        new=tuple(name for name in places if name not in here),
    )


def _tensors_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint or of a plain state dict, by name."""
    found = content.get("state_dict", content)
    entries = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in entries if isinstance(value, Tensor)}


def _by_best_names(weights: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the name in the file for each name in the network that it fits, under the prefixes that fit the most."""

    def fitting(off: str, before: str) -> dict[str, str]:
        pairs = {before + name.removeprefix(off): name for name in weights if name.startswith(off)}
        return {here: there for here, there in pairs.items() if here in places and _fits(weights[there], places[here])}

    # The first of several best: names as they stand.
    return max((fitting(off, before) for off, before in product(TAKEN_OFF, PUT_BEFORE)), key=len)


def _fits(weight: Tensor, place: Tensor) -> bool:
    """Say whether shapes agree; (1, C, 1, 1) and (1, C, 1) of the released LCN and SN stand for (C,)."""
    released = place.dim() == 1 < weight.dim() and weight.shape[1] == weight.numel() == place.numel()
    return released or weight.shape == place.shape


def _apart(names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the names of running statistics, and the others."""
    statistics = [name for name in names if name.rpartition(".")[-1] in STATISTICS]
    return statistics, [name for name in names if name not in statistics]


def _example(places: Mapping[str, Tensor]) -> str:
    return next((f"{name} {tuple(value.shape)}" for name, value in places.items() if value.dim() == 4), "it has none")
