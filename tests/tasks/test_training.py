"""fit, validate and test from the command line: logs, checkpoints, resuming, repeating."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from geonorm.data import InriaDataModule
from geonorm.data.patches import RandomPatches, Sample
from geonorm.norms import SwitchableNorm
from geonorm.tasks.checkpoint import load_model, save_model
from geonorm.tasks.ratio_log import read_ratio_log
from geonorm.tasks.training_words import without_advertisements
from tests.tasks.trainings import (
    PATCHES_PER_EPOCH,
    QUIET,
    STEPS_PER_EPOCH,
    Run,
    arguments,
    fit,
    newest,
    run,
    same,
)

pytestmark = QUIET


@pytest.fixture(scope="module")
def two_epochs(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training of two epochs."""
    return fit(scenes, tmp_path_factory.mktemp("runs"))


# What a run leaves behind


def test_every_step_and_every_epoch_is_in_the_csv_log(two_epochs: Run) -> None:
    assert len(two_epochs.logged("train/loss")) == 2 * STEPS_PER_EPOCH
    assert len(two_epochs.logged("val/iou")) == 2
    assert two_epochs.logged("lr-Adam") == pytest.approx([0.02, 0.002])


def test_each_city_is_in_the_csv_log(two_epochs: Run) -> None:
    for score in ("iou", "accuracy"):
        for city in ("austin", "vienna"):
            assert len(two_epochs.logged(f"val/{score}/{city}")) == 2


def test_tensorboard_shows_what_the_csv_log_holds(two_epochs: Run) -> None:
    events = EventAccumulator(str(two_epochs.folder)).Reload()

    for name in ("train/loss", "val/iou", "val/iou/vienna"):
        assert [event.value for event in events.Scalars(name)] == pytest.approx(two_epochs.logged(name))


def test_training_teaches_to_tell_buildings(two_epochs: Run) -> None:
    assert two_epochs.logged("val/iou")[-1] > 0.5
    assert two_epochs.logged("train/loss")[-1] < two_epochs.logged("train/loss")[0]


def test_the_best_and_the_last_state_are_kept(two_epochs: Run) -> None:
    scores = two_epochs.logged("val/iou")

    assert two_epochs.checkpoint("best")["epoch"] == scores.index(max(scores))
    assert two_epochs.checkpoint("last")["global_step"] == 2 * STEPS_PER_EPOCH
    assert sorted(path.name for path in (two_epochs.folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_knows_network_norm_and_data(two_epochs: Run, scenes: Path, name: str) -> None:
    model = load_model(two_epochs.folder / "checkpoints" / f"{name}.ckpt")

    assert model.spec == InriaDataModule(scenes).spec
    assert model.network_path == {
        "class_path": "geonorm.models.UNet",
        "init_args": {"depth": 1, "width": 4, "padding": "same", "norm_at": "every", "downsample": "max"},
    }
    assert model.norm_path["class_path"] == "geonorm.norms.BatchNorm"
    assert model.network(torch.zeros(1, 3, 4, 6)).shape == (1, 2, 4, 6)


def test_a_training_ends_with_what_it_made_and_the_command_that_uses_it(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    done = fit(scenes, Path("runs"), "--trainer.max_epochs=1")

    captured = capfd.readouterr()
    folder = "runs/lightning_logs/version_0"
    assert captured.out.splitlines()[-2:] == [
        f"Written: {folder} with best.ckpt (val/iou {done.logged('val/iou')[0]:.4f}), last.ckpt",
        f"Next: geonorm predict {folder}/checkpoints/best.ckpt image.tif labels.tif",
    ]
    assert load_model(captured.out.splitlines()[-1].split()[3]).step == STEPS_PER_EPOCH
    for unwanted in ("litlogger", "litmodels", "Total Flops"):
        assert unwanted not in captured.out + captured.err


@pytest.mark.filterwarnings("error:The dirpath has changed")
def test_scoring_says_nothing_of_folders_that_changed(two_epochs: Run, scenes: Path, tmp_path: Path) -> None:
    assert (
        run(["validate", *arguments(scenes, tmp_path, f"--ckpt_path={two_epochs.folder}/checkpoints/last.ckpt")]) == 0
    )


def test_what_lightning_logs_of_other_products_is_left_out_and_its_summary_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    summary = logging.getLogger("lightning.pytorch.callbacks.model_summary")

    with caplog.at_level(logging.INFO), without_advertisements():
        tips.info("Tip: try installing [litlogger](https://example.org/litlogger)")
        tips.info("GPU available: False")
        summary.info("\n1.5 K     Trainable params\n0         Total Flops")

    assert [record.getMessage() for record in caplog.records] == [
        "GPU available: False",
        "\n1.5 K     Trainable params",
    ]


def test_runs_without_logs_and_checkpoints_leave_their_settings_alone(scenes: Path, tmp_path: Path) -> None:
    off = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.max_epochs=1"]

    codes = [run(["fit", *arguments(scenes, tmp_path, *off)]) for _ in range(2)]

    assert codes == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


# Repeating and resuming


def test_the_same_seed_gives_the_same_weights(two_epochs: Run, scenes: Path, tmp_path: Path) -> None:
    torch.rand(3)  # whatever happened before

    again = fit(scenes, tmp_path)

    assert same(again.weights, two_epochs.weights)
    assert again.logged("train/loss") == two_epochs.logged("train/loss")


@pytest.mark.parametrize("seed", ["--seed_everything=1", "--data.seed=1"])
def test_other_seeds_give_other_weights(two_epochs: Run, scenes: Path, tmp_path: Path, seed: str) -> None:
    other = fit(scenes, tmp_path, seed, "--trainer.max_epochs=1")

    assert other.logged("train/loss")[0] != two_epochs.logged("train/loss")[0]


def test_the_configuration_that_a_run_saves_repeats_it(two_epochs: Run, tmp_path: Path) -> None:
    saved = two_epochs.folder / "config.yaml"

    code = run(["fit", f"--config={saved}", f"--trainer.default_root_dir={tmp_path}"])

    assert code == 0
    assert same(newest(tmp_path).weights, two_epochs.weights)


def test_a_resumed_run_ends_as_if_it_had_never_stopped(two_epochs: Run, scenes: Path, tmp_path: Path) -> None:
    begun = fit(scenes, tmp_path, "--trainer.max_epochs=1")

    resumed = fit(scenes, tmp_path, f"--ckpt_path={begun.folder}/checkpoints/last.ckpt")

    assert resumed.folder != begun.folder
    assert begun.checkpoint("last")["global_step"] == STEPS_PER_EPOCH
    assert resumed.checkpoint("last")["global_step"] == 2 * STEPS_PER_EPOCH
    assert same(resumed.weights, two_epochs.weights)


def test_the_last_checkpoint_is_the_last_even_where_an_earlier_one_is_best(scenes: Path, tmp_path: Path) -> None:
    standing_still = ["--model.norm=geonorm.norms.LayerNorm", "--model.learning_rate=1e-30"]

    done = fit(scenes, tmp_path, *standing_still)

    assert done.checkpoint("best")["global_step"] == STEPS_PER_EPOCH
    assert done.checkpoint("last")["global_step"] == 2 * STEPS_PER_EPOCH


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the patches that are read, as they are read."""
    numbers: list[int] = []
    read = RandomPatches.__getitem__

    def note(patches: RandomPatches, number: int) -> Sample:
        numbers.append(number)
        return read(patches, number)

    monkeypatch.setattr(RandomPatches, "__getitem__", note)
    return numbers


def test_each_epoch_sees_patches_of_its_own(scenes: Path, tmp_path: Path, asked_for: list[int]) -> None:
    fit(scenes, tmp_path)

    assert asked_for == [*range(2 * PATCHES_PER_EPOCH)]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:.ModelCheckpoint")  # resumed at the last step of an epoch there is nothing to score
@pytest.mark.parametrize(
    "options",
    [["--trainer.max_steps=8"], ["--trainer.max_steps=12", "--trainer.val_check_interval=4"]],
    ids=["after an epoch", "within an epoch"],
)
def test_a_run_resumed_by_steps_sees_the_patches_that_remained(
    scenes: Path, tmp_path: Path, asked_for: list[int], options: list[str]
) -> None:
    options = ["--trainer.max_epochs=-1", *options]
    begun = fit(scenes, tmp_path, *options)

    fit(scenes, tmp_path, *options, "--trainer.max_steps=16", f"--ckpt_path={begun.folder}/checkpoints/last.ckpt")

    assert asked_for == [*range(2 * PATCHES_PER_EPOCH)]


# Statistics by batch average


def test_a_batch_average_replaces_the_moving_one_and_leaves_the_training_alone(scenes: Path, tmp_path: Path) -> None:
    norm = ["--model.norm=geonorm.norms.SwitchableNorm"]
    plain = fit(scenes, tmp_path / "plain", *norm)

    averaged = fit(scenes, tmp_path / "averaged", *norm, "--batch_average.num_batches=3")

    assert averaged.logged("train/loss") == plain.logged("train/loss")
    network = load_model(averaged.folder / "checkpoints" / "last.ckpt").network
    kept = {name: value.clone() for name, value in network.named_buffers() if "running" in name}
    seen = batch_statistics(network, batches_from(scenes, 2 * PATCHES_PER_EPOCH, count=3))
    assert kept.keys() == seen.keys()
    for name, value in seen.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-4)


def batches_from(scenes: Path, number: int, *, count: int) -> list[Tensor]:
    """Return training batches from a patch on, read one by one."""
    data = InriaDataModule(scenes, patch_px=32, batch_size=4, patches_per_epoch=PATCHES_PER_EPOCH, num_workers=0)
    data.setup("fit")
    patches = data.train_dataloader().dataset
    batches = []
    for first in range(number, number + 4 * count, 4):
        samples = [patches[i] for i in range(first, first + 4)]
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        batches.append(data.on_after_batch_transfer(batch, 0)["image"])
    return batches


@torch.no_grad()
def batch_statistics(
    network: nn.Module, batches: list[Tensor], *, kind: type[nn.Module] = SwitchableNorm, correction: int = 0
) -> dict[str, Tensor]:
    """Return mean and variance of what each norm gets from a batch in training mode, averaged over the batches."""
    inputs: dict[str, list[Tensor]] = {}
    for name, module in network.named_modules():
        if isinstance(module, kind):
            note = inputs.setdefault(name, [])
            module.register_forward_pre_hook(lambda _, args, note=note: note.append(args[0]))
    network.train()
    for batch in batches:
        network(batch)
    means = {f"{name}.running_mean": [x.mean(dim=(0, 2, 3)) for x in maps] for name, maps in inputs.items()}
    variances = {
        f"{name}.running_var": [x.var(dim=(0, 2, 3), correction=correction) for x in maps]
        for name, maps in inputs.items()
    }
    return {name: torch.stack(values).mean(0) for name, values in (means | variances).items()}


def test_the_ratios_of_switchable_norm_are_logged_across_a_resumed_run(scenes: Path, tmp_path: Path) -> None:
    norm = "--model.norm=geonorm.norms.SwitchableNorm"
    begun = fit(scenes, tmp_path, norm, "--trainer.max_epochs=1")

    resumed = fit(scenes, tmp_path, norm, f"--ckpt_path={begun.folder}/checkpoints/last.ckpt")

    assert resumed.folder != begun.folder
    assert [*read_ratio_log(resumed.folder / "ratios.csv")] == [0, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]


# Scoring


def test_the_command_that_validate_names_scores_the_checkpoint(
    two_epochs: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", "--ckpt_path", f"{two_epochs.folder}/checkpoints/last.ckpt"]) == 2
    command = capsys.readouterr().err.strip().rpartition("geonorm ")[2].split()

    assert run([*command, f"--trainer.default_root_dir={tmp_path}"]) == 0

    assert newest(tmp_path).logged("val/iou") == two_epochs.logged("val/iou")[-1:]


@pytest.mark.parametrize(("command", "stage"), [("validate", "val"), ("test", "test")])
def test_a_checkpoint_scores_as_it_did_in_training(
    two_epochs: Run, scenes: Path, tmp_path: Path, command: str, stage: str
) -> None:
    checkpoint = f"--ckpt_path={two_epochs.folder}/checkpoints/last.ckpt"

    assert run([command, *arguments(scenes, tmp_path, checkpoint)]) == 0

    for name in ("iou", "iou/austin", "iou/vienna", "accuracy"):
        assert newest(tmp_path).logged(f"{stage}/{name}") == two_epochs.logged(f"val/{name}")[-1:]


def test_validating_prints_the_scores(
    two_epochs: Run, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["validate", *arguments(scenes, tmp_path, f"--ckpt_path={two_epochs.folder}/checkpoints/last.ckpt")])

    lines = capsys.readouterr().out.splitlines()

    [line] = [line for line in lines if "val/iou " in line]
    printed = next(float(word) for word in line.split() if word.replace(".", "").isdigit())
    assert printed == pytest.approx(two_epochs.logged("val/iou")[-1], abs=1e-6)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_checkpoint_runs_no_code(
    two_epochs: Run, scenes: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trapped = tmp_path / "trapped.ckpt"
    torch.save({**two_epochs.checkpoint("last"), "more": Trap(tmp_path / "sprung")}, trapped)

    code = run([command, *arguments(scenes, tmp_path, f"--ckpt_path={trapped}", "--trainer.max_epochs=3")])

    assert not (tmp_path / "sprung").exists()
    assert code == 2
    assert "geonorm: error:" in capsys.readouterr().err


# Starting from trained weights


def test_a_finetuning_starts_from_other_weights_and_lets_their_norms_look_nearby(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    norm = ["--model.norm=geonorm.norms.GroupNorm", "--model.norm.group_size=2", "--trainer.max_epochs=1"]
    begun = fit(scenes, tmp_path / "gn", *norm)

    start = f"--model.init_from={begun.folder}/checkpoints/last.ckpt"
    local = fit(scenes, tmp_path / "local", *norm, start, "--model.localize_px=9", "--model.learning_rate=1e-9")

    [line] = [line for line in caplog.messages if "start from" in line]
    total = len(begun.weights)
    assert f"{total} of {total} tensors" in line
    assert load_model(local.folder / "checkpoints/last.ckpt").localized_px == 9
    for name, weight in begun.weights.items():
        torch.testing.assert_close(local.weights[name], weight, rtol=0, atol=1e-6)


def test_no_training_resumes_from_weights_alone(
    scenes: Path, two_epochs: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_model(load_model(two_epochs.folder / "checkpoints/last.ckpt"), tmp_path / "weights.ckpt")
    words = arguments(scenes, tmp_path / "runs", f"--ckpt_path={tmp_path}/weights.ckpt")

    assert run(["fit", *words]) == 2

    assert "--model.init_from" in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
    assert run(["validate", *words]) == 0


def test_one_value_for_a_networks_own_batch_norm_is_one_line(
    scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in arguments(scenes, tmp_path / "runs") if not word.startswith("--model.n")]
    words += ["--model.norm=null", "--model.network=geonorm.models.SmpNetwork"]
    words += ["--model.network.arch=deeplabv3", "--model.network.encoder=resnet18"]

    assert run(["fit", *words, "--data.batch_size=1"]) == 2

    last = capfd.readouterr().err.splitlines()[-1]
    assert "(1, 256, 1, 1)" in last
    assert "--data.batch_size" in last


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm",
    [
        ["--model.norm=geonorm.norms.GroupNorm", "--model.norm.group_size=2"],
        ["--model.norm=geonorm.norms.LocalContextNorm", "--model.norm.window_px=9", "--model.norm.group_size=2"],
        ["--model.norm=geonorm.norms.BatchNorm", "--trainer.sync_batchnorm=true"],
        [
            "--model.norm=geonorm.norms.SwitchableNorm",
            "--trainer.sync_batchnorm=true",
            "--model.ratio_weight_decay=0.1",
        ],
    ],
    ids=["GN", "LCN", "synchronized BN", "synchronized SN"],
)
def test_two_processes_with_half_the_batch_learn_what_one_learns(scenes: Path, tmp_path: Path, norm: list[str]) -> None:
    twenty_steps = [*norm, "--data.patches_per_epoch=40"]
    one = fit(scenes, tmp_path / "one", *twenty_steps)

    halves = ["--data.batch_size=2", "--trainer.strategy=ddp", "--trainer.devices=2", *twenty_steps]
    words = ["fit", *arguments(scenes, tmp_path / "two", *halves)]
    done = subprocess.run([sys.executable, "-m", "geonorm", *words], timeout=300, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "sync_dist" not in done.stderr
    assert done.stdout.count("Next: geonorm predict") == 1
    two = newest(tmp_path / "two")
    assert one.checkpoint("last")["global_step"] == two.checkpoint("last")["global_step"] == 20
    for name, weight in one.weights.items():
        rtol = 1e-4 if "running" in name else 0
        torch.testing.assert_close(two.weights[name], weight, rtol=rtol, atol=1e-4)


@pytest.mark.slow
def test_two_processes_score_what_one_scores(two_epochs: Run, scenes: Path, tmp_path: Path) -> None:
    checkpoint = f"--ckpt_path={two_epochs.folder}/checkpoints/last.ckpt"

    words = arguments(scenes, tmp_path, checkpoint, "--trainer.strategy=ddp", "--trainer.devices=2")
    subprocess.run([sys.executable, "-m", "geonorm", "validate", *words], check=True, timeout=300)

    for name in ("iou", "iou/austin", "iou/vienna"):
        assert newest(tmp_path).logged(f"val/{name}") == pytest.approx(two_epochs.logged(f"val/{name}")[-1:])
