"""Disagreement of two maps, against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from geonorm.evaluation.measures import TIE_TOLERANCE, disagreement


def random_probs(seed: int, *, height: int = 7, width: int = 11, num_classes: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_classes, height, width, generator=generator).softmax(0)


def test_disagreement_is_what_a_loop_over_pixels_counts() -> None:
    one, other = random_probs(0), random_probs(1)
    valid = random_probs(2)[0] > 0.33

    found = disagreement(one, other, valid)

    p, q = one.double().numpy(), other.double().numpy()
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
    one, other = random_probs(0), random_probs(1)
    valid = torch.ones(7, 11, dtype=torch.bool)

    parts = [disagreement(one[:, rows], other[:, rows], valid[rows]) for rows in (slice(0, 3), slice(3, 7))]

    whole, summed = disagreement(one, other, valid), parts[0] + parts[1]
    assert (summed.flips, summed.pixels, summed.change_max) == (whole.flips, whole.pixels, whole.change_max)
    assert summed.change_sum == pytest.approx(whole.change_sum)
    torch.testing.assert_close(summed.counts, whole.counts)


def test_equal_maps_do_not_disagree() -> None:
    probs = random_probs(0)

    found = disagreement(probs, probs, torch.ones(7, 11, dtype=torch.bool))

    assert (found.flips, found.change_max, found.change_mean, found.iou) == (0, 0.0, 0.0, [1.0, 1.0, 1.0])


def test_a_flip_between_classes_as_good_as_equal_counts_as_a_tie_too() -> None:
    lead = TIE_TOLERANCE / 4
    one = torch.tensor([0.5 + lead, 0.5 - lead]).view(2, 1, 1)

    found = disagreement(one, one.flip(0), torch.ones(1, 1, dtype=torch.bool))

    assert (found.flips, found.ties) == (1, 1)


def test_a_clear_flip_is_no_tie() -> None:
    one = torch.tensor([0.9, 0.1]).view(2, 1, 1)

    found = disagreement(one, one.flip(0), torch.ones(1, 1, dtype=torch.bool))

    assert (found.flips, found.ties) == (1, 0)


def test_a_map_without_data_has_nothing_to_disagree_about() -> None:
    probs = random_probs(0)

    found = disagreement(probs, random_probs(1), torch.zeros(7, 11, dtype=torch.bool))

    assert (found.pixels, found.flips, found.flips_percent) == (0, 0, 0.0)
