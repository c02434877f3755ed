"""What figures follow from: the network, the raster and the settings; figures of others are never mixed with them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from geonorm import __version__
from geonorm.data.labels import LabelRules
from geonorm.errors import InvalidConfigError
from geonorm.files import write_text
from geonorm.inference.halo import Halo
from geonorm.models.predictor import Precision
from geonorm.raster.read import NodataRule, is_local
from geonorm.tasks.checkpoint import TrainedModel

SETTINGS_FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How rasters are labelled; the same for every network and raster."""

    core_px: int
    halo: Halo
    grid_offset_px: tuple[int, int]
    batch_size: int
    device: str
    precision: Precision
    nodata_rule: NodataRule
    rules: LabelRules
    """What the values of true labels mean."""
    progress: bool


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network on one raster."""

    model: TrainedModel
    label: str
    """Name of the network in the report."""
    checkpoint: str
    source: str
    truth: str | None
    """Raster or vector file of true labels."""
    tta: str
    folder: Path
    """Where its maps and figures go."""


def check_settings(subject: Subject, how: Measuring) -> None:
    """Write down what figures follow from; raise where those that are there followed from something else.

    Raises:
        InvalidConfigError: They did.
    """
    path = subject.folder / SETTINGS_FILE
    wanted = json.loads(json.dumps(_settings(subject, how), default=str))
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in wanted if there.get(key) != wanted[key]]
        if differing:
            key = differing[0]
            raise InvalidConfigError(
                f"{subject.folder} holds figures of other settings ({key}: there {there.get(key)!r:.60}, now "
                f"{wanted[key]!r:.60}). Choose another folder, or --restart to measure anew."
            )
    write_text(path, json.dumps(wanted, indent=1) + "\n")


def _settings(subject: Subject, how: Measuring) -> dict[str, Any]:
    weights = hashlib.sha256()
    for name, value in sorted(subject.model.network.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    files = {
        name: None if path is None else _fingerprint(path)
        for name, path in (("source", subject.source), ("labels", subject.truth))
    }
    settings = {key: value for key, value in asdict(how).items() if key != "progress"}
    return {
        "version": __version__,
        "weights": weights.hexdigest(),
        "network": subject.model.network_path,
        "norm": subject.model.norm_path,
        "localized_px": subject.model.localized_px,
        "tta": subject.tta,
        **files,
        **settings,
    }


def _fingerprint(path: str) -> list[Any]:
    """Return what changes with a file; of a file elsewhere, its name."""
    if not is_local(path):
        return [path]
    stat = os.stat(path)
    return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
