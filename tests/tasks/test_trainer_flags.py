"""Flags and callbacks of Lightning's Trainer that a training is run with: they do what they say with every norm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from geonorm.tasks import SegmentationTask
from geonorm.tasks.checkpoint import load_model
from tests.tasks.trainings import QUIET, STEPS_PER_EPOCH, fit, same

pytestmark = QUIET

NORMS = {
    "BN": [],
    "GN": ["group_size=2"],
    "IN": [],
    "LN": [],
    "LCN": ["window_px=9", "group_size=2"],
    "SN": [],
    "BRN": ["warmup_steps=0", "ramp_steps=1"],
    "local contrast": [],
    "positional": [],
}
CLASSES = {
    "BN": "BatchNorm",
    "GN": "GroupNorm",
    "IN": "InstanceNorm",
    "LN": "LayerNorm",
    "LCN": "LocalContextNorm",
    "SN": "SwitchableNorm",
    "BRN": "BatchRenorm",
    "local contrast": "LocalContrastNorm",
    "positional": "PositionalNorm",
}
STOPPING = (
    '--trainer.callbacks=[{"class_path":"lightning.pytorch.callbacks.EarlyStopping",'
    '"init_args":{"monitor":"val/iou","mode":"max","patience":2}}]'
)


@pytest.fixture
def _deterministic_for_now(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Trainer sets a flag of the whole process, and a variable of its environment."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"))
    yield
    torch.use_deterministic_algorithms(False)


def norm_words(name: str) -> list[str]:
    return [
        f"--model.norm=geonorm.norms.{CLASSES[name]}",
        *(f"--model.norm.{setting}" for setting in NORMS[name]),
    ]


@pytest.mark.usefixtures("_deterministic_for_now")
@pytest.mark.parametrize("name", NORMS)
def test_every_norm_trains_deterministically(
    scenes: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    step = SegmentationTask.training_step

    def note(task: SegmentationTask, *args: Any) -> Tensor:
        asked.append(torch.are_deterministic_algorithms_enabled())
        return step(task, *args)

    monkeypatch.setattr(SegmentationTask, "training_step", note)
    one_step = ["--trainer.max_epochs=1", "--data.patches_per_epoch=4"]
    words = [*norm_words(name), *one_step, "--trainer.deterministic=true"]

    one, other = (fit(scenes, tmp_path / folder, *words) for folder in ("one", "other"))

    assert asked == [True, True]
    assert same(one.weights, other.weights)


def test_a_training_stops_where_the_score_no_longer_rises(scenes: Path, tmp_path: Path) -> None:
    still = ["--model.norm=geonorm.norms.LayerNorm", "--model.learning_rate=1e-30", "--trainer.max_epochs=9"]

    done = fit(scenes, tmp_path, STOPPING, *still)

    assert done.checkpoint("last")["global_step"] == 3 * STEPS_PER_EPOCH
    assert len(done.logged("val/iou")) == 3
    assert done.checkpoint("best")["epoch"] == 0


def test_half_precision_trains_and_leaves_weights_in_float32(scenes: Path, tmp_path: Path) -> None:
    done = fit(scenes, tmp_path, "--trainer.precision=bf16-mixed", "--trainer.enable_model_summary=false")

    assert done.logged("val/iou")[-1] > 0.5
    network = load_model(done.folder / "checkpoints/last.ckpt").network
    assert {value.dtype for value in network.state_dict().values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("loss", ["BinaryCrossEntropy", "Dice", "Focal", "Lovasz", "Jaccard"])
def test_every_loss_teaches_to_tell_buildings(scenes: Path, tmp_path: Path, loss: str) -> None:
    done = fit(scenes, tmp_path, f"--model.loss=geonorm.tasks.losses.{loss}")

    assert done.logged("val/iou")[-1] > 0.5
    assert done.logged("train/loss")[-1] < done.logged("train/loss")[0]
    assert not any("loss" in name for name in done.weights)


def test_a_single_logit_stays_zero_through_training_and_resuming(scenes: Path, tmp_path: Path) -> None:
    single = ["--model.single_logit=true", "--model.loss=geonorm.tasks.losses.BinaryCrossEntropy"]

    whole = fit(scenes, tmp_path / "whole", *single)
    begun = fit(scenes, tmp_path / "cut", *single, "--trainer.max_epochs=1")
    resumed = fit(scenes, tmp_path / "cut", *single, f"--ckpt_path={begun.folder}/checkpoints/last.ckpt")

    assert not whole.weights["network.head.weight"][0].any()
    assert not whole.weights["network.head.bias"][0].any()
    assert whole.weights["network.head.weight"][1].any()
    assert same(resumed.weights, whole.weights)
    assert whole.logged("val/iou")[-1] > 0.5
