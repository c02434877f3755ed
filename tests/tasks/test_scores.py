"""Scores from summed pixel counts, against counting one by one and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from geonorm.data.spec import IGNORE_LABEL
from geonorm.tasks.scores import Scores, confusion, iou_of

seeds = st.integers(0, 2**32 - 1)
class_counts = st.integers(2, 5)
HEIGHT, WIDTH = 6, 9


def maps(seed: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return a random prediction (uint8, as the engine gives it) and random labels, a fifth of them ignored."""
    draw = np.random.default_rng(seed)
    # Some classes are left out, in both or in one of the two.
    predicted = draw.choice(draw.integers(0, num_classes, 3), (HEIGHT, WIDTH))
    labels = draw.choice(draw.integers(0, num_classes, 3), (HEIGHT, WIDTH))
    labels[draw.random((HEIGHT, WIDTH)) < 0.2] = IGNORE_LABEL
    return torch.from_numpy(predicted.astype(np.uint8)), torch.from_numpy(labels.astype(np.uint8))


def counted_one_by_one(predicted: Tensor, labels: Tensor, num_classes: int) -> NDArray[np.int64]:
    counts = np.zeros((num_classes, num_classes), np.int64)
    for called, label in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if label != IGNORE_LABEL:
            counts[label, called] += 1
    return counts


@given(seed=seeds, num_classes=class_counts)
def test_confusion_is_what_counting_one_by_one_gives(seed: int, num_classes: int) -> None:
    predicted, labels = maps(seed, num_classes)

    counts = confusion(predicted, labels, num_classes)

    assert counts.dtype == torch.int64
    np.testing.assert_array_equal(counts, counted_one_by_one(predicted, labels, num_classes))


@given(seed=seeds, num_classes=class_counts)
def test_iou_is_the_overlap_divided_by_the_union(seed: int, num_classes: int) -> None:
    predicted, labels = maps(seed, num_classes)
    counts_too = labels != IGNORE_LABEL

    found = iou_of(confusion(predicted, labels, num_classes))

    for label in range(num_classes):
        called, is_label = (predicted == label) & counts_too, labels == label
        overlap, union = int((called & is_label).sum()), int((called | is_label).sum())
        assert float(found[label]) == pytest.approx(overlap / union if union else math.nan, nan_ok=True)


@given(seed=seeds, num_classes=class_counts)
def test_scores_are_those_of_torchmetrics(seed: int, num_classes: int) -> None:
    scores = Scores(num_classes, range(num_classes))
    jaccard = MulticlassJaccardIndex(num_classes, average="none", ignore_index=IGNORE_LABEL, zero_division=math.nan)
    accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=IGNORE_LABEL)
    for part in range(3):
        predicted, labels = maps(seed + part, num_classes)
        scores.update(f"city {part}", predicted, labels)
        jaccard.update(predicted.long(), labels.long())
        accuracy.update(predicted.long(), labels.long())

    assert scores.iou() == pytest.approx(jaccard.compute().nanmean().item())
    assert scores.accuracy() == pytest.approx(accuracy.compute().item())


@given(seed=seeds, cut=st.integers(1, HEIGHT - 1), groups=st.permutations(["one", "one", "other"]))
def test_scores_do_not_depend_on_how_the_pixels_are_dealt_out(seed: int, cut: int, groups: list[str]) -> None:
    predicted, labels = maps(seed, 3)
    whole, parts = Scores(3, [1, 2]), Scores(3, [1, 2])
    whole.update("all", predicted, labels)

    for group, rows in zip(groups, (slice(cut), slice(cut, cut + 1), slice(cut + 1, None)), strict=True):
        parts.update(group, predicted[rows], labels[rows])

    assert torch.equal(parts.total(), whole.total())
    assert (parts.iou(), parts.accuracy()) == pytest.approx((whole.iou(), whole.accuracy()), nan_ok=True)


def test_iou_comes_from_summed_counts_not_from_a_mean_over_tiles() -> None:
    scores = Scores(2, [1])
    scores.update("austin", torch.ones(1, 1), torch.ones(1, 1))  # IoU 1
    scores.update("austin", torch.ones(1, 99), torch.zeros(1, 99))  # IoU 0

    assert scores.iou() == pytest.approx(0.01)
    assert scores.iou("austin") == pytest.approx(0.01)


def test_each_group_has_scores_of_its_own() -> None:
    scores = Scores(2, [1])
    scores.update("austin", torch.tensor([1, 1, 0]), torch.tensor([1, 1, 0]))
    scores.update("vienna", torch.tensor([1, 1, 0]), torch.tensor([1, 0, 1]))

    assert [scores.iou(group) for group in ("austin", "vienna")] == pytest.approx([1, 1 / 3])
    assert [scores.accuracy(group) for group in ("austin", "vienna")] == pytest.approx([1, 1 / 3])
    assert (scores.iou(), scores.accuracy()) == pytest.approx((3 / 5, 4 / 6))


def test_rows_are_labels_and_columns_are_predictions() -> None:
    counts = confusion(torch.tensor([2, 2, 0]), torch.tensor([1, 1, 0]), 3)

    assert counts.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]


def test_only_the_scored_classes_count_in_the_mean() -> None:
    predicted, labels = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0])

    means = {}
    for classes in ((0,), (1,), (1, 2), (0, 1, 2)):
        scores = Scores(3, classes)
        scores.update("all", predicted, labels)
        means[classes] = scores.iou()

    assert means == pytest.approx({(0,): 1 / 3, (1,): 1 / 2, (1, 2): 7 / 12, (0, 1, 2): 1 / 2})


def test_a_class_that_neither_occurs_nor_is_called_does_not_count_in_the_mean() -> None:
    scores = Scores(4, [1, 2, 3])
    scores.update("all", torch.tensor([1, 1, 2]), torch.tensor([1, 0, 0]))

    iou = iou_of(scores.total())

    assert iou.tolist() == pytest.approx([0, 1 / 2, 0, math.nan], nan_ok=True)
    assert scores.iou() == pytest.approx(1 / 4)


def test_where_no_scored_class_occurs_there_is_no_score() -> None:
    scores = Scores(2, [1])
    scores.update("sea", torch.zeros(3, 3), torch.zeros(3, 3))

    assert math.isnan(scores.iou())
    assert scores.accuracy() == 1


@given(seed=seeds)
def test_ignored_pixels_change_no_score(seed: int) -> None:
    predicted, labels = maps(seed, 3)
    ignored = labels == IGNORE_LABEL

    other = torch.where(ignored, 2 - predicted, predicted)

    assert torch.equal(confusion(predicted, labels, 3), confusion(other, labels, 3))
    assert int(confusion(predicted, labels, 3).sum()) == int((~ignored).sum())


def test_labels_that_are_all_ignored_count_nothing() -> None:
    labels = torch.full((HEIGHT, WIDTH), IGNORE_LABEL, dtype=torch.uint8)

    assert confusion(torch.zeros_like(labels), labels, 3).tolist() == [[0] * 3] * 3


def test_counts_stay_on_the_device_until_they_are_gathered() -> None:
    scores = Scores(3, [1, 2])
    # Tensors without values: whoever asks for one, or for how many are not 0, gets an error.
    with FakeTensorMode(), torch.device("cuda"):
        for _ in range(2):
            scores.update("all", torch.zeros(2, 6, 9, dtype=torch.long), torch.zeros(2, 6, 9, dtype=torch.uint8))
        before = scores.total()

        scores.gather()

    assert (before.device.type, before.dtype, before.shape) == ("cuda", torch.int64, (3, 3))
    assert scores.total().device.type == "cpu"


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 700, 3), (5000,)])
def test_any_number_of_pixels_is_counted(shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(0)
    predicted, labels = (torch.randint(0, 3, shape, generator=random) for _ in range(2))

    counts = confusion(predicted, labels, 3)

    np.testing.assert_array_equal(counts, counted_one_by_one(predicted, labels, 3))
