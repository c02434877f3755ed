"""Averaged weights: what checkpoints, scores and maps are made of, with norms that keep statistics."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader

from geonorm.data.spec import INRIA
from geonorm.models import UNet
from geonorm.norms import BatchNorm, SwitchableNorm
from geonorm.tasks import EpochAverage, SegmentationTask
from geonorm.tasks.checkpoint import PREFIX, load_model, save_model
from tests.tasks.test_training import batch_statistics, batches_from
from tests.tasks.trainings import (
    PATCHES_PER_EPOCH,
    QUIET,
    STEPS_PER_EPOCH,
    arguments,
    fit,
    newest,
    run,
    same,
)

pytestmark = [
    *QUIET,
    # Lightning asks torch for something that torch deprecates; the command line says nothing of it.
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\)"),
    # Scoring a checkpoint with the settings it was trained with: there is nothing to average.
    pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback, but loading a checkpoint outside"),
]

DECAY = 0.9
EMA = (
    '--trainer.callbacks=[{"class_path":"lightning.pytorch.callbacks.EMAWeightAveraging",'
    f'"init_args":{{"decay":{DECAY}}}}}]'
)
EPOCHS = '--trainer.callbacks=[{"class_path":"geonorm.tasks.EpochAverage","init_args":{"first_epoch":1}}]'
NORMS = {
    "BN": ["--model.norm=geonorm.norms.BatchNorm"],
    "SN": ["--model.norm=geonorm.norms.SwitchableNorm"],
    "sparse SN": ["--model.norm=geonorm.norms.SwitchableNorm", "--model.norm.selection=sparse"],
    "BRN": ["--model.norm=geonorm.norms.BatchRenorm", "--model.norm.warmup_steps=2", "--model.norm.ramp_steps=4"],
    "LCN": ["--model.norm=geonorm.norms.LocalContextNorm", "--model.norm.window_px=9", "--model.norm.group_size=2"],
}
DRIFTING = (60.1, 62.9, 63.6)
"""Numbers whose average over 40 steps at decay 0.99 in float32 is not what they are."""
each_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


@pytest.fixture
def after_steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights of the network after every step, as they are trained."""
    seen: list[dict[str, Tensor]] = []

    def note(task: LightningModule, *args: Any) -> None:
        seen.append({name: value.clone() for name, value in task.state_dict().items()})

    monkeypatch.setattr(SegmentationTask, "on_train_batch_end", note)
    return seen


def moving_average(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the exponential average by its definition, in float64."""
    average = {name: value.double() for name, value in weights[0].items()}
    for step in weights[1:]:
        average = {name: DECAY * value + (1 - DECAY) * step[name].double() for name, value in average.items()}
    return average


def assert_close_to(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    floats = {name: value.double() for name, value in found.items() if value.is_floating_point()}
    torch.testing.assert_close(floats, {name: expected[name].double() for name in floats}, rtol=1e-5, atol=1e-6)


@each_norm
def test_a_checkpoint_holds_the_moving_average_with_scale_and_counters_as_they_are(
    scenes: Path, tmp_path: Path, after_steps: list[dict[str, Tensor]], norm: list[str]
) -> None:
    done = fit(scenes, tmp_path, EMA, *norm)

    assert len(after_steps) == 2 * STEPS_PER_EPOCH
    last = done.checkpoint("last")
    assert_close_to(last["state_dict"], moving_average(after_steps))
    assert not all(torch.allclose(last["state_dict"][name], value) for name, value in after_steps[-1].items())
    whole = {name for name, value in after_steps[-1].items() if not value.is_floating_point()}
    scale = {"network.rescale.mean", "network.rescale.deviation"}
    assert all(torch.equal(last["state_dict"][name], after_steps[-1][name]) for name in whole | scale)
    assert same(last["current_model_state"], after_steps[-1])


def test_the_scale_in_a_checkpoint_does_not_drift(scenes: Path, tmp_path: Path) -> None:
    slow = EMA.replace(str(DECAY), "0.99")
    scale = [f"--model.band_{name}={list(DRIFTING)}" for name in ("means", "deviations")]
    unscored = ["--trainer.max_epochs=5", "--trainer.check_val_every_n_epoch=4", "--data.patches_per_epoch=160"]

    done = fit(scenes, tmp_path, slow, *scale, *unscored)

    assert load_model(done.folder / "checkpoints" / "last.ckpt").spec.band_means == pytest.approx(DRIFTING, rel=1e-6)
    for name in ("mean", "deviation"):
        assert torch.equal(done.weights[f"network.rescale.{name}"], torch.tensor(DRIFTING))


def test_numbers_drift_in_an_average_of_floats() -> None:
    update = get_ema_avg_fn(0.99)
    start = average = torch.tensor(DRIFTING)
    for step in range(39):
        average = update(average, start, step)

    assert (average != start).all()


@each_norm
def test_scores_and_maps_are_those_of_the_average(
    scenes: Path, tmp_path: Path, after_steps: list[dict[str, Tensor]], norm: list[str]
) -> None:
    done = fit(scenes, tmp_path, EMA, *norm)
    checkpoint = done.folder / "checkpoints/last.ckpt"

    assert run(["validate", *arguments(scenes, tmp_path / "scored", EMA, *norm, f"--ckpt_path={checkpoint}")]) == 0
    labels = labelled(checkpoint, scenes)

    assert newest(tmp_path / "scored").logged("val/iou") == pytest.approx(done.logged("val/iou")[-1:], abs=1e-6)
    of_average, of_last = (
        labelled(with_weights(checkpoint, weights, tmp_path / f"{name}.ckpt"), scenes)
        for name, weights in (("average", moving_average(after_steps)), ("newest", after_steps[-1]))
    )
    assert (labels != of_average).mean() < 1e-3  # rounding may tip a pixel
    assert (labels != of_last).mean() > 3e-3


def labelled(checkpoint: Path, scenes: Path) -> NDArray[np.uint8]:
    """Return the labels that ``geonorm predict`` gives a scene."""
    target = checkpoint.with_suffix(".tif")
    assert run(["predict", str(checkpoint), str(scenes / "images/austin1.tif"), str(target), "--halo=0"]) == 0
    with rasterio.open(target) as dataset:
        return dataset.read(1)


def with_weights(checkpoint: Path, weights: dict[str, Tensor], target: Path) -> Path:
    """Write a checkpoint of the same network with other weights."""
    model = load_model(checkpoint)
    model.network.load_state_dict({name.removeprefix(PREFIX): value for name, value in weights.items()})
    save_model(model, target)
    return target


@pytest.mark.parametrize("average", [EMA, EPOCHS], ids=["EMA", "epochs"])
def test_an_averaged_run_goes_on_as_if_it_had_never_stopped(scenes: Path, tmp_path: Path, average: str) -> None:
    whole = fit(scenes, tmp_path / "whole", average, "--trainer.max_epochs=3")
    begun = fit(scenes, tmp_path / "begun", average, "--trainer.max_epochs=2")

    resumed = fit(
        scenes,
        tmp_path / "begun",
        average,
        "--trainer.max_epochs=3",
        f"--ckpt_path={begun.folder}/checkpoints/last.ckpt",
    )

    assert same(resumed.weights, whole.weights)
    assert resumed.logged("val/iou") == whole.logged("val/iou")[2:]


class Patches(LightningDataModule):
    """Forty batches of one patch."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches."""
        image = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 200
        batches: Any = [{"image": image, "mask": (image[:, 0] > 100).to(torch.uint8)}] * 40
        return DataLoader(batches, batch_size=None)

    val_dataloader = train_dataloader


class Noted(SegmentationTask):
    """A task that notes the weights of its last layer after every step, and its scale as it is scored."""

    def on_train_start(self) -> None:
        """Begin."""
        super().on_train_start()
        self.seen: list[Tensor] = []
        self.scales: list[Tensor] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the weights."""
        self.seen.append(self.get_parameter("network.head.weight").detach().clone())

    def on_validation_batch_start(self, *args: Any) -> None:
        """Note the scale."""
        self.scales.append(self.get_buffer("network.rescale.mean").clone())


def fitted(callback: Callback, **settings: Any) -> Noted:
    """Return a task after a training."""
    torch.manual_seed(0)
    spec = INRIA.with_statistics(DRIFTING, DRIFTING)
    task = Noted(BatchNorm, spec, partial(UNet, depth=1, width=4))
    training = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    training.fit(task, Patches())
    return task


def test_a_training_leaves_the_average_in_the_network_with_its_scale_untouched() -> None:
    task = fitted(EMAWeightAveraging(decay=0.99), limit_val_batches=0)

    average = task.seen[0].double()
    for weight in task.seen[1:]:
        average = 0.99 * average + 0.01 * weight.double()
    torch.testing.assert_close(task.get_parameter("network.head.weight").double(), average, rtol=1e-5, atol=1e-6)
    assert torch.equal(task.get_buffer("network.rescale.mean"), torch.tensor(task.spec.band_means))
    assert torch.equal(task.get_buffer("network.rescale.deviation"), torch.tensor(task.spec.band_deviations))


def test_a_training_that_ends_before_its_average_begins_leaves_the_network_as_it_is() -> None:
    task = fitted(EpochAverage(first_epoch=1))

    assert torch.equal(task.get_parameter("network.head.weight"), task.seen[-1])


def test_the_average_is_scored_with_the_scale_untouched() -> None:
    task = fitted(EMAWeightAveraging(decay=0.99))

    assert len(task.scales) == 40
    assert all(torch.equal(scale, torch.tensor(task.spec.band_means)) for scale in task.scales)


@pytest.mark.parametrize("norm", [NORMS["BN"], NORMS["SN"], NORMS["BRN"]], ids=["BN", "SN", "BRN"])
def test_epochs_are_averaged_alike_from_the_first_that_counts(
    scenes: Path, tmp_path: Path, after_steps: list[dict[str, Tensor]], norm: list[str]
) -> None:
    done = fit(scenes, tmp_path, EPOCHS, "--trainer.max_epochs=3", *norm)

    second, third = after_steps[2 * STEPS_PER_EPOCH - 1], after_steps[3 * STEPS_PER_EPOCH - 1]
    assert_close_to(done.weights, {name: (value.double() + third[name].double()) / 2 for name, value in second.items()})


def test_before_the_first_epoch_that_counts_scores_and_checkpoints_are_the_networks_own(
    scenes: Path, tmp_path: Path
) -> None:
    plain = fit(scenes, tmp_path / "plain", "--trainer.max_epochs=1")

    early = fit(scenes, tmp_path / "early", EPOCHS, "--trainer.max_epochs=1")

    assert same(early.weights, plain.weights)
    assert early.logged("val/iou") == plain.logged("val/iou")
    resumed = fit(scenes, tmp_path / "early", EPOCHS, f"--ckpt_path={early.folder}/checkpoints/last.ckpt")
    whole = fit(scenes, tmp_path / "whole", EPOCHS)
    assert same(resumed.weights, whole.weights)


@pytest.mark.parametrize(("kind", "correction"), [(BatchNorm, 1), (SwitchableNorm, 0)])
def test_statistics_can_be_taken_anew_for_the_averaged_weights(
    scenes: Path, tmp_path: Path, kind: type[nn.Module], correction: int
) -> None:
    norm = [f"--model.norm=geonorm.norms.{kind.__name__}"]
    done = fit(scenes, tmp_path / "anew", EMA, *norm, "--batch_average.num_batches=3")
    plain = fit(scenes, tmp_path / "plain", EMA, *norm)

    assert done.logged("train/loss") == plain.logged("train/loss")
    network = load_model(done.folder / "checkpoints/last.ckpt").network
    batches = batches_from(scenes, 2 * PATCHES_PER_EPOCH, count=3)
    kept = {name: value.clone() for name, value in network.named_buffers() if "running" in name}
    seen = batch_statistics(network, batches, kind=kind, correction=correction)
    assert kept.keys() == seen.keys()
    for name, value in seen.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", ["", ',"device":"cpu"'])
def test_lightnings_older_averaging_is_refused_with_what_to_use(
    scenes: Path, tmp_path: Path, more: str, capfd: pytest.CaptureFixture[str]
) -> None:
    older = '[{"class_path":"lightning.pytorch.callbacks.StochasticWeightAveraging","init_args":{"swa_lrs":0.1%s}}]'

    assert run(["fit", *arguments(scenes, tmp_path, f"--trainer.callbacks={older % more}")]) == 2

    last = capfd.readouterr().err.splitlines()[-1]
    assert re.match(r"geonorm: error: Lightning's StochasticWeightAveraging .* geonorm\.tasks\.EpochAverage", last)


def test_a_negative_first_epoch_is_refused(scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = EPOCHS.replace(":1}", ":-1}")

    assert run(["fit", *arguments(scenes, tmp_path, wrong)]) == 2

    assert "first_epoch must not be negative" in capfd.readouterr().err.splitlines()[-1]
