"""Disagreement of two maps, against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from geonorm.evaluation.measures import (
    TIE_TOLERANCE,
    Curve,
    border_distance,
    class_of,
    corner_consensus,
    difference,
    disagreement,
    distance_classes,
    fidelity_of,
)


def random_logits(seed: int, *, height: int = 7, width: int = 11, num_classes: int = 3) -> Tensor:
    return torch.randn(num_classes, height, width, generator=torch.Generator().manual_seed(seed))


def test_disagreement_is_what_a_loop_over_pixels_counts() -> None:
    one, other = random_logits(0), random_logits(1)
    valid = random_logits(2)[0] > 0.33

    found = disagreement(one, other, valid)

    p, q = (torch.softmax(logits.double(), 0).numpy() for logits in (one, other))
    pixels = [tuple(index) for index in np.argwhere(valid.numpy())]
    changes = [sum(abs(p[k, r, c] - q[k, r, c]) for k in range(3)) / 2 for r, c in pixels]
    labels = [(p[:, r, c].argmax(), q[:, r, c].argmax()) for r, c in pixels]
    assert found.pixels == len(pixels)
    assert found.flips == sum(a != b for a, b in labels) > 0
    assert found.change_max == pytest.approx(max(changes))
    assert found.change_mean == pytest.approx(np.mean(changes))
    for label, iou in enumerate(found.iou):
        both = sum(a == b == label for a, b in labels)
        either = sum(label in pair for pair in labels)
        assert iou == pytest.approx(both / either)


def test_the_sum_of_two_parts_is_the_whole() -> None:
    one, other = random_logits(0), random_logits(1)
    valid = torch.ones(7, 11, dtype=torch.bool)

    parts = [disagreement(one[:, rows], other[:, rows], valid[rows]) for rows in (slice(0, 3), slice(3, 7))]

    whole, summed = disagreement(one, other, valid), parts[0] + parts[1]
    assert (summed.flips, summed.pixels, summed.change_max) == (whole.flips, whole.pixels, whole.change_max)
    assert summed.change_sum == pytest.approx(whole.change_sum)
    torch.testing.assert_close(summed.counts, whole.counts)


def test_equal_maps_do_not_disagree() -> None:
    probs = random_logits(0)

    found = disagreement(probs, probs, torch.ones(7, 11, dtype=torch.bool))

    assert (found.flips, found.change_max, found.change_mean, found.iou) == (0, 0.0, 0.0, [1.0, 1.0, 1.0])


def test_a_flip_between_classes_as_good_as_equal_counts_as_a_tie_too() -> None:
    lead = TIE_TOLERANCE / 4
    one = torch.tensor([0.5 + lead, 0.5 - lead]).log().view(2, 1, 1)

    found = disagreement(one, one.flip(0), torch.ones(1, 1, dtype=torch.bool))

    assert (found.flips, found.ties) == (1, 1)


def test_a_clear_flip_is_no_tie() -> None:
    one = torch.tensor([0.9, 0.1]).log().view(2, 1, 1)

    found = disagreement(one, one.flip(0), torch.ones(1, 1, dtype=torch.bool))

    assert (found.flips, found.ties) == (1, 0)


def test_a_map_without_data_has_nothing_to_disagree_about() -> None:
    probs = random_logits(0)

    found = disagreement(probs, random_logits(1), torch.zeros(7, 11, dtype=torch.bool))

    assert (found.pixels, found.flips, found.flips_percent) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("length", "borders", "expected"),
    [
        (7, [3], [3, 2, 1, 1, 2, 3, 4]),
        (6, [2, 4], [2, 1, 1, 1, 1, 2]),
        (3, [1, 2], [1, 1, 1]),
    ],
)
def test_distance_to_a_border_counts_from_one_on_both_sides(
    length: int, borders: list[int], expected: list[int]
) -> None:
    assert border_distance(length, borders).tolist() == expected


def test_without_borders_every_pixel_is_far() -> None:
    classes = class_of(border_distance(4, []), distance_classes(20))

    assert classes.tolist() == [4] * 4


def test_classes_begin_at_powers_of_two() -> None:
    assert distance_classes(256) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert class_of(np.array([1, 2, 3, 4, 255, 256, 999]), distance_classes(256)).tolist() == [0, 1, 1, 2, 7, 8, 8]


def test_seam_energy_is_one_where_flips_lie_anywhere() -> None:
    rates = Curve(np.array([100, 300]), np.array([10, 30]), np.zeros(2), np.zeros(2))
    seam = Curve(np.array([100, 300]), np.array([10, 15]), np.zeros(2), np.zeros(2))
    clean = Curve(np.array([100, 300]), np.array([10, 0]), np.zeros(2), np.zeros(2))

    assert rates.seam.energy == pytest.approx(1)
    assert seam.seam.energy == pytest.approx(2)
    assert clean.seam.energy is None


def test_consistent_and_correct_is_what_a_loop_counts() -> None:
    one, other = random_logits(0), random_logits(1)
    valid = random_logits(2)[0] > 0.33
    truth = torch.randint(0, 3, (7, 11), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    truth[2] = 255

    found = fidelity_of(difference(one, other), valid, truth, 3)

    labels = [(one[:, r, c].argmax(), other[:, r, c].argmax(), truth[r, c]) for r, c in np.argwhere(valid.numpy())]
    kept = [(int(a), int(b), int(t)) for a, b, t in labels if t != 255]
    assert found.labelled == len(kept) > 0
    assert found.right == sum(a == b == t for a, b, t in kept) > 0
    assert found.percent == pytest.approx(100 * found.right / len(kept))
    for true in range(3):
        for label in range(3):
            assert found.counts[true, label] == sum((t, a) == (true, label) for a, _, t in kept)
            assert found.counts_other[true, label] == sum((t, b) == (true, label) for _, b, t in kept)


def test_corner_consensus_counts_pixels_on_which_all_four_agree() -> None:
    labels = torch.zeros(4, 2, 5, dtype=torch.uint8)
    labels[1, 0, 0] = labels[3, 0, 0] = labels[2, 1, 4] = 1

    assert corner_consensus(labels) == pytest.approx(0.8)
