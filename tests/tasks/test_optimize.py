"""Optimizers and schedules: against torch's own, by hand, and through a training that is cut in two."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    PolynomialLR,
    SequentialLR,
)

from geonorm.data.spec import INRIA
from geonorm.errors import InvalidConfigError
from geonorm.models import UNet
from geonorm.norms import BatchNorm, SwitchableNorm, harden
from geonorm.tasks import Cosine, Poly, SegmentationTask, Steps
from geonorm.tasks.optimize import OptimizerFactory, Schedule, follow, make_optimizer
from tests.tasks.trainings import QUIET, STEPS_PER_EPOCH, arguments, fit, run, same

pytestmark = QUIET

EPOCHS, PER_EPOCH = 5, 6
STEPS = EPOCHS * PER_EPOCH


def rates(scheduler: LRScheduler) -> list[float]:
    """Return the learning rates of all steps of a training."""
    found = []
    for _ in range(STEPS):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def optimizer(learning_rate: float = 0.5) -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=learning_rate)


def followed(schedule: Schedule) -> list[float]:
    return rates(follow(schedule, optimizer(), steps=STEPS, steps_per_epoch=PER_EPOCH))


# Schedules


@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
@pytest.mark.parametrize(
    ("schedule", "torchs"),
    [
        (partial(Poly), lambda made, left: PolynomialLR(made, total_iters=left, power=0.9)),
        (partial(Poly, power=2.0), lambda made, left: PolynomialLR(made, total_iters=left, power=2.0)),
        (partial(Cosine), lambda made, left: CosineAnnealingLR(made, T_max=left)),
        (partial(Cosine, final_share=0.1), lambda made, left: CosineAnnealingLR(made, T_max=left, eta_min=0.05)),
    ],
    ids=["poly", "poly of power 2", "cosine", "cosine to a tenth"],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # torch's SequentialLR uses it itself
def test_a_schedule_is_torchs_after_a_linear_warm_up(
    schedule: Callable[..., Schedule], torchs: Callable[[Optimizer, int], LRScheduler], warmup_steps: int
) -> None:
    made = optimizer()
    expected = torchs(made, STEPS - warmup_steps)
    if warmup_steps:
        rise = LinearLR(made, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
        expected = SequentialLR(made, [rise, expected], milestones=[warmup_steps])

    found = followed(schedule(warmup_steps=warmup_steps))

    assert found == pytest.approx(rates(expected), rel=1e-6, abs=1e-9)


def test_steps_are_torchs_milestones_counted_in_epochs() -> None:
    made = optimizer()
    epochs = MultiStepLR(made, [2, 3], gamma=0.1)
    expected = []
    for _ in range(EPOCHS):
        expected += [made.param_groups[0]["lr"]] * PER_EPOCH
        made.step()
        epochs.step()

    assert followed(Steps(milestones=[2, 3])) == pytest.approx(expected)


def test_a_warm_up_rises_in_equal_parts_and_never_stands_at_zero() -> None:
    found = followed(Steps(milestones=[], warmup_steps=4))

    assert found[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


def test_milestones_within_the_warm_up_count_too() -> None:
    found = followed(Steps(milestones=[1], factor=0.5, warmup_steps=PER_EPOCH + 1))

    assert found[PER_EPOCH] == pytest.approx(0.5 * 0.5 * 7 / 8)


@pytest.mark.parametrize(
    "make",
    [
        partial(Steps, milestones=[1], factor=0.0),
        partial(Steps, milestones=[1], warmup_steps=-1),
        partial(Poly, power=0.0),
        partial(Poly, warmup_steps=-1),
        partial(Cosine, final_share=1.5),
        partial(Cosine, warmup_steps=-1),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Schedule]) -> None:
    with pytest.raises(InvalidConfigError):
        make()


def test_a_warm_up_must_end_before_the_training() -> None:
    with pytest.raises(InvalidConfigError, match="fewer than the 30 steps"):
        followed(Poly(warmup_steps=STEPS))


# Optimizers


def network(norm: Any = SwitchableNorm) -> UNet:
    return UNet(3, 2, norm=norm, depth=1, width=4)


def decays(made: Optimizer) -> dict[int, float]:
    """Return the weight decay of each parameter, by its identity."""
    return {id(weight): group["weight_decay"] for group in made.param_groups for weight in group["params"]}


@pytest.mark.parametrize("ratio_weight_decay", [0.0, 1e-4, 0.02])
@pytest.mark.parametrize("make", [Adam, AdamW, partial(SGD, weight_decay=0.02)], ids=["Adam", "AdamW", "SGD"])
def test_control_parameters_have_a_weight_decay_of_their_own(make: OptimizerFactory, ratio_weight_decay: float) -> None:
    made_of = network()
    usual = make([nn.Parameter(torch.zeros(1))], lr=1.0).defaults["weight_decay"]

    made = make_optimizer(make, made_of, learning_rate=0.25, ratio_weight_decay=ratio_weight_decay)

    found = decays(made)
    controls = {
        id(weight) for name, weight in made_of.named_parameters() if name.endswith(("mean_weight", "var_weight"))
    }
    assert len(controls) == 2 * sum(isinstance(module, SwitchableNorm) for module in made_of.modules())
    assert found.keys() == {id(weight) for weight in made_of.parameters()}
    assert all(decay == (ratio_weight_decay if one in controls else usual) for one, decay in found.items())
    assert all(group["lr"] == 0.25 for group in made.param_groups)


def test_hard_choices_and_other_norms_need_no_group_of_their_own() -> None:
    hardened = network()
    harden(hardened)

    for made_of in (hardened, network(BatchNorm)):
        assert len(make_optimizer(AdamW, made_of, learning_rate=1.0, ratio_weight_decay=0.1).param_groups) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": partial(SGD, lr=0.1)}, r"learning_rate, not as lr of the optimizer \(lr=0\.1\)"),
        ({"schedule": Poly(), "lr_milestones": [3]}, "cannot both set the learning rate"),
    ],
)
def test_two_learning_rates_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        SegmentationTask(BatchNorm, INRIA, partial(UNet, depth=1, width=4), **settings)


@pytest.mark.parametrize(
    ("make", "norm", "message"),
    [
        (partial(SGD, momentum=-1.0), BatchNorm, "SGD cannot be made with these settings: Invalid momentum"),
        (partial(SGD, nesterov=True), BatchNorm, "Nesterov"),
        (torch.optim.SparseAdam, SwitchableNorm, "SparseAdam knows no weight decay"),
    ],
)
def test_what_an_optimizer_refuses_is_one_line(make: OptimizerFactory, norm: Any, message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        make_optimizer(make, network(norm), learning_rate=0.1, ratio_weight_decay=0.1)


# From the command line


NO_MILESTONES = "--model.lr_milestones=null"
POLY = [NO_MILESTONES, "--model.schedule=geonorm.tasks.Poly", "--model.schedule.warmup_steps=3"]


@pytest.mark.parametrize(
    "schedule",
    [
        POLY,
        [NO_MILESTONES, "--model.schedule=geonorm.tasks.Cosine"],
        [NO_MILESTONES, "--model.schedule=geonorm.tasks.Steps", "--model.schedule.milestones=[1]"],
    ],
    ids=["poly", "cosine", "steps"],
)
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:.ModelCheckpoint")
def test_a_run_that_is_cut_anywhere_goes_on_along_its_schedule(
    scenes: Path, tmp_path: Path, schedule: list[str]
) -> None:
    kept = '{"class_path":"ModelCheckpoint","init_args":{"every_n_train_steps":5,"save_top_k":-1,"filename":"{step}"}}'
    settings = [*schedule, f"--trainer.callbacks=[{kept}]"]
    settings += ["--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=0.9"]
    whole = fit(scenes, tmp_path / "whole", *settings)

    middle = whole.folder / "checkpoints" / "step=5.ckpt"
    resumed = fit(scenes, tmp_path / "resumed", *settings, f"--ckpt_path={middle}")

    assert resumed.logged("lr-SGD") == whole.logged("lr-SGD")[-len(resumed.logged("lr-SGD")) :]
    assert resumed.logged("train/loss") == whole.logged("train/loss")[5:]
    assert same(resumed.weights, whole.weights)


def test_the_learning_rate_of_every_step_is_logged_and_ends_where_the_training_does(
    scenes: Path, tmp_path: Path
) -> None:
    settings = [*POLY, "--trainer.accumulate_grad_batches=2", "--model.optimizer=AdamW"]

    done = fit(scenes, tmp_path, *settings)

    steps = STEPS_PER_EPOCH  # two epochs of half as many
    shares = [min(1, (t + 1) / 4) * (1 - max(0, t - 3) / (steps - 3)) ** 0.9 for t in range(steps)]
    logged = done.logged("lr-AdamW")
    assert sorted(set(logged)) == pytest.approx(sorted({0.02 * share for share in shares}))


def test_milestones_count_epochs_of_steps_where_batches_are_accumulated(scenes: Path, tmp_path: Path) -> None:
    steps = [NO_MILESTONES, "--model.schedule=geonorm.tasks.Steps", "--model.schedule.milestones=[1]"]

    done = fit(scenes, tmp_path, *steps, "--trainer.accumulate_grad_batches=3", "--model.schedule.factor=0.5")

    per_epoch = 3  # of 3, 3 and 2 batches
    assert done.checkpoint("last")["global_step"] == 2 * per_epoch
    halves = [rate for rate in done.logged("lr-Adam") if rate == pytest.approx(0.01)]
    whole = [rate for rate in done.logged("lr-Adam") if rate == pytest.approx(0.02)]
    assert len(halves) == len(whole)


def test_a_training_that_is_made_longer_follows_the_longer_curve() -> None:
    short, long = (
        follow(Poly(warmup_steps=2), optimizer(), steps=steps, steps_per_epoch=PER_EPOCH)
        for steps in (STEPS, 2 * STEPS)
    )
    for _ in range(10):
        short.optimizer.step()
        short.step()
    long.load_state_dict(short.state_dict())

    long.optimizer.step()
    long.step()

    expected = 0.5 * (1 - (11 - 2) / (2 * STEPS - 2)) ** 0.9
    assert long.get_last_lr() == pytest.approx([expected])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.schedule=geonorm.tasks.Poly"], "cannot both set the learning rate"),
        ([*POLY, "--model.schedule.power=-1"], "power must be greater than 0"),
        ([*POLY, "--model.schedule.warmup_steps=16"], "fewer than the 16 steps"),
        ([*POLY, "--trainer.max_epochs=-1"], "trainer.max_epochs or trainer.max_steps"),
        (["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1"], "lr"),
        (["--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=-1"], "Invalid momentum"),
        (["--model.loss=geonorm.tasks.losses.Focal", "--model.loss.gamma=-1"], "gamma must not be negative"),
        (["--model.loss=segmentation_models_pytorch.losses.LovaszLoss", "--model.loss.mode=multiclass"], "LovaszLoss"),
    ],
)
def test_a_mistake_is_one_line(
    scenes: Path, tmp_path: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", *arguments(scenes, tmp_path, *words)]) == 2

    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("geonorm: error:")
    assert message in last


# Batches in parts


@pytest.mark.parametrize(
    "norm",
    [
        ["--model.norm=geonorm.norms.GroupNorm", "--model.norm.group_size=2"],
        ["--model.norm=geonorm.norms.LocalContextNorm", "--model.norm.window_px=9", "--model.norm.group_size=2"],
    ],
    ids=["GN", "LCN"],
)
def test_two_halves_of_a_batch_teach_what_the_batch_teaches(scenes: Path, tmp_path: Path, norm: list[str]) -> None:
    settings = [*norm, "--model.learning_rate=1e-3", "--trainer.max_epochs=1"]

    whole = fit(scenes, tmp_path / "whole", *settings)
    halves = fit(scenes, tmp_path / "halves", *settings, "--data.batch_size=2", "--trainer.accumulate_grad_batches=2")

    assert halves.checkpoint("last")["global_step"] == whole.checkpoint("last")["global_step"] == STEPS_PER_EPOCH
    for name, weight in whole.weights.items():
        torch.testing.assert_close(halves.weights[name], weight, rtol=0, atol=1e-5)
