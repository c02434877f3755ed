"""Class weights by a rule: from the shares of the classes to the numbers of a loss and of a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from geonorm.errors import InvalidConfigError
from geonorm.tasks.checkpoint import load_model
from geonorm.tasks.losses import CrossEntropy, Dice, Focal, Jaccard, WeightedSum, weigh_classes, weights_of_shares
from tests.tasks.trainings import QUIET, arguments, draw_scenes, fit, run

pytestmark = QUIET

NAMES = ("ground", "house", "water")
SHARES = (0.7, 0.2, 0.1)
LOSSES = [CrossEntropy, Focal, Dice, Jaccard]


def random_batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 9, generator=random)
    return logits, torch.randint(0, 3, (2, 8, 9), generator=random)


def test_balanced_weights_make_every_class_weigh_the_same() -> None:
    weights = weights_of_shares("balanced", SHARES, NAMES)

    np.testing.assert_allclose(np.multiply(weights, SHARES), 1 / 3)


def test_log_weights_are_those_of_the_paper() -> None:
    assert weights_of_shares("log", (1.0, 0.0), NAMES[:2]) == pytest.approx([1 / math.log(2.02), 1 / math.log(1.02)])


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("rule", ["balanced", "log"])
def test_a_rule_gives_the_loss_of_its_numbers(make: Any, rule: Any) -> None:
    by_rule, by_numbers = make(class_weights=rule), make(class_weights=weights_of_shares(rule, SHARES, NAMES))
    given = weigh_classes(by_rule, SHARES, NAMES)

    assert torch.equal(by_rule(*random_batch()), by_numbers(*random_batch()))
    assert not torch.equal(by_rule(*random_batch()), make()(*random_batch()))
    assert given == {rule: weights_of_shares(rule, SHARES, NAMES)}


def test_the_parts_of_a_sum_are_weighed_too() -> None:
    numbers = weights_of_shares("balanced", SHARES, NAMES)
    by_rule = WeightedSum([CrossEntropy(class_weights="balanced"), Dice()])

    weigh_classes(by_rule, SHARES, NAMES)

    expected = CrossEntropy(class_weights=numbers)(*random_batch()) + Dice()(*random_batch())
    torch.testing.assert_close(by_rule(*random_batch()), expected)


@pytest.mark.parametrize("make", LOSSES)
def test_a_rule_that_has_no_numbers_yet_is_no_silent_loss_without_weights(make: Any) -> None:
    with pytest.raises(InvalidConfigError, match="class_weights=balanced has no numbers yet"):
        make(class_weights="balanced")(*random_batch())


@pytest.mark.parametrize("make", LOSSES)
def test_a_rule_that_is_none_is_refused(make: Any) -> None:
    with pytest.raises(InvalidConfigError, match="balanced or log, got 'median'"):
        make(class_weights="median")


@pytest.mark.parametrize(
    ("shares", "message"),
    [(None, "needs the shares of the classes"), ((0.5, 0.5, 0.0), "no training pixel .* is of class water")],
)
def test_shares_that_are_missing_are_one_clear_line(shares: Any, message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        weigh_classes(CrossEntropy(class_weights="balanced"), shares, NAMES)


def test_numbers_and_losses_of_others_are_left_alone() -> None:
    mine = CrossEntropy(class_weights=[1.0, 2.0, 3.0])

    assert weigh_classes(mine, None, NAMES) == {}
    assert weigh_classes(nn.CrossEntropyLoss(), None, NAMES) == {}
    assert mine.class_weights is not None
    assert mine.class_weights.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("rule", ["balanced", "log"])
def test_a_training_takes_them_from_the_data_and_its_checkpoint_holds_the_numbers(
    tmp_path: Path, rule: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scenes = draw_scenes(tmp_path / "scenes")
    loss = ["--model.loss=geonorm.tasks.losses.CrossEntropy", f"--model.loss.class_weights={rule}"]

    made = fit(scenes, tmp_path / "runs", *loss, "--trainer.max_epochs=1")

    masks = []
    for name in ("austin6", "vienna7"):  # the training images
        with rasterio.open(scenes / "gt" / f"{name}.tif") as dataset:
            masks.append(dataset.read(1) == 255)
    house = float(np.mean(masks))
    [(kept, weights)] = made.checkpoint("last")["geonorm"]["class_weights"].items()
    assert kept == rule
    assert weights == pytest.approx(weights_of_shares(rule, (1 - house, house), NAMES[:2]))
    assert made.checkpoint("last")["geonorm"]["spec"]["class_shares"] == pytest.approx([1 - house, house])
    assert load_model(made.folder / "checkpoints" / "last.ckpt").spec.class_shares is not None


def test_weights_of_a_rule_train_like_the_same_numbers(tmp_path: Path) -> None:
    scenes = draw_scenes(tmp_path / "scenes")
    loss = "--model.loss=geonorm.tasks.losses.CrossEntropy"
    first = fit(scenes, tmp_path / "one", loss, "--model.loss.class_weights=balanced", "--trainer.max_epochs=1")
    numbers = first.checkpoint("last")["geonorm"]["class_weights"]["balanced"]

    second = fit(scenes, tmp_path / "two", loss, f"--model.loss.class_weights={numbers}", "--trainer.max_epochs=1")
    third = fit(scenes, tmp_path / "three", loss, "--trainer.max_epochs=1")

    assert first.logged("train/loss") == second.logged("train/loss")
    assert first.logged("train/loss") != third.logged("train/loss")


def test_a_rule_that_is_misspelled_is_refused_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = draw_scenes(tmp_path / "scenes")
    words = arguments(scenes, tmp_path, "--model.loss=geonorm.tasks.losses.Dice", "--model.loss.class_weights=even")

    assert run(["fit", *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("geonorm: error: ")
