"""Tiny trainings from the command line, and what they leave behind."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from torch import Tensor

from geonorm.cli import main

QUIET = [
    # LightningCLI uses four things of jsonargparse that are on their way out.
    pytest.mark.filterwarnings(r"ignore:\s*By default only one JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*``ArgumentParser.add_instantiator`` was deprecated"),
    pytest.mark.filterwarnings(r"ignore:\s*``instantiate_classes`` was deprecated"),
    pytest.mark.filterwarnings(r"ignore:\s*skip_none parameter was deprecated"),
    # Lightning advises workers where the machine has more than two cores; tiny scenes need none.
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    # It advises a GPU where there is one; tiny networks train on the CPU, to the same bits everywhere.
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    # A resumed run is a new version, and keeps its checkpoints in a folder of its own.
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.usefixtures("one_thread"),
]
"""Marks of tests that train: warnings of Lightning that say nothing here, and one thread."""

PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)
STEPS_PER_EPOCH = 8
PATCHES_PER_EPOCH = 4 * STEPS_PER_EPOCH


def draw(path: Path, values: NDArray[Any]) -> None:
    """Write a raster (C, H, W) with rasterio alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=PLACE, **shape) as dataset:
        dataset.write(values)


def draw_scenes(root: Path) -> Path:
    """Draw a folder of four scenes of two cities, and return it: bright blocks are the buildings."""
    for seed, name in enumerate(["austin1", "austin6", "vienna2", "vienna7"]):
        random = np.random.default_rng(seed)
        labels = (random.random((6, 9)) < 0.4).repeat(10, 0).repeat(10, 1)[None]
        image = random.integers(0, 100, (3, 60, 90)) + 120 * labels
        draw(root / "images" / f"{name}.tif", image.astype(np.uint8))
        draw(root / "gt" / f"{name}.tif", labels.astype(np.uint8) * 255)
    return root


@dataclass(frozen=True)
class Run:
    """What a training has left in its folder."""

    folder: Path

    def checkpoint(self, name: str) -> dict[str, Any]:
        """Return a checkpoint; loading it weights-only is part of every test that does."""
        return torch.load(self.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.checkpoint("last")["state_dict"]

    def logged(self, name: str) -> list[float]:
        with (self.folder / "metrics.csv").open() as file:
            return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def arguments(scenes: Path, root: Path, *more: str) -> list[str]:
    """Return the settings of a tiny training."""
    settings = {
        "model.norm": "geonorm.norms.BatchNorm",
        "model.network": "geonorm.models.UNet",
        "model.network.depth": 1,
        "model.network.width": 4,
        "model.learning_rate": 0.02,
        "model.lr_milestones": [1],
        "data": "geonorm.data.InriaDataModule",
        "data.root": scenes,
        "data.patch_px": 32,
        "data.batch_size": 4,
        "data.patches_per_epoch": PATCHES_PER_EPOCH,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": root,
    }
    return [f"--{name}={value}" for name, value in settings.items()] + [*more]


def fit(scenes: Path, root: Path, *more: str) -> Run:
    """Train, and return the newest run below ``root``."""
    assert run(["fit", *arguments(scenes, root, *more)]) == 0
    return newest(root)


def newest(root: Path) -> Run:
    return Run(max((root / "lightning_logs").iterdir(), key=lambda folder: int(folder.name.split("_")[1])))


def run(words: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["geonorm"])  # LightningCLI warns of arguments beside its own
        return main(words)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
