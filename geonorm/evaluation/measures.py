"""How far two maps of the same raster differ: pure functions of arrays, whose results of parts add up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geonorm.data.spec import IGNORE_LABEL
from geonorm.tasks.scores import iou_of

TIE_TOLERANCE = 1e-4
"""A flip where the two highest probabilities are closer than this in both maps is counted as a tie, too."""
SAME, FLIP, TIE = 0, 1, 2
"""How the label of a pixel stands to that of the other map."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two maps pixel by pixel, ``(H, W)`` each."""

    labels: Tensor
    """Labels of the first map, uint8."""
    others: Tensor
    """Labels of the second, uint8."""
    flips: Tensor
    """`SAME`, `FLIP`, or `TIE` for a flip between classes that were as good as equal in both maps, uint8."""
    change: Tensor
    """Change of probability: half the sum over classes of |p - q|, 0 to 1, float32."""


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """Sums over the pixels with data; two of them add up."""

    pixels: int
    """Pixels compared."""
    flips: int
    """Pixels whose label differs."""
    ties: int
    """Flips between classes that were as good as equal in both maps."""
    change_sum: float
    """Sum over pixels of the change of probability: half the sum over classes of |p - q|, 0 to 1."""
    change_max: float
    """Largest change of probability."""
    counts: Tensor = field(repr=False)
    """How often a label of the one map is each label of the other, ``(K, K)``, int64."""

    def __add__(self, other: Disagreement) -> Disagreement:
        return Disagreement(
            pixels=self.pixels + other.pixels,
            flips=self.flips + other.flips,
            ties=self.ties + other.ties,
            change_sum=self.change_sum + other.change_sum,
            change_max=max(self.change_max, other.change_max),
            counts=self.counts + other.counts,
        )

    @property
    def flips_percent(self) -> float:
        """Share of labels that differ, in percent."""
        return 100 * self.flips / max(1, self.pixels)

    @property
    def change_mean(self) -> float:
        """Mean change of probability."""
        return self.change_sum / max(1, self.pixels)

    @property
    def iou(self) -> list[float]:
        """IoU between the two maps, per class; NaN for a class that neither has."""
        return [float(value) for value in iou_of(self.counts)]


@dataclass(frozen=True)
class Curve:
    """Sums over the pixels of each class of distance to the nearest border of a core; two of them add up."""

    pixels: NDArray[np.int64]
    """Pixels compared, of each class."""
    flips: NDArray[np.int64]
    change_sum: NDArray[np.float64]
    change_max: NDArray[np.float64]

    def __add__(self, other: Curve) -> Curve:
        return Curve(
            self.pixels + other.pixels,
            self.flips + other.flips,
            self.change_sum + other.change_sum,
            np.maximum(self.change_max, other.change_max),
        )

    @classmethod
    def of_none(cls, num_classes: int) -> Curve:
        """Return the sums before the first pixel."""
        whole = np.zeros(num_classes, np.int64)
        return cls(whole, whole, np.zeros(num_classes), np.zeros(num_classes))

    @property
    def seam(self) -> Seam:
        """Flips on the seam lines, the pixels on both sides of a border, and elsewhere."""
        return Seam(
            flips_on=int(self.flips[0]),
            pixels_on=int(self.pixels[0]),
            flips_off=int(self.flips[1:].sum()),
            pixels_off=int(self.pixels[1:].sum()),
        )


@dataclass(frozen=True, kw_only=True)
class Seam:
    """Flips on the seam lines and elsewhere."""

    flips_on: int
    pixels_on: int
    """Pixels on both sides of the borders of cores."""
    flips_off: int
    pixels_off: int

    @property
    def energy(self) -> float | None:
        """Share of flips on the seam lines over that elsewhere: 1 is no seam; None where nothing flips elsewhere."""
        if not self.flips_off or not self.pixels_on:
            return None
        return (self.flips_on / self.pixels_on) / (self.flips_off / self.pixels_off)


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Two maps held against the truth; two of them add up. What has no label does not count."""

    labelled: int
    """Pixels with data in both maps and a label."""
    right: int
    """Pixels whose label is the same in both maps and true: consistent and correct."""
    counts: Tensor = field(repr=False)
    """Of the first map, ``(K, K)``, rows by truth, columns by its label, int64."""
    counts_other: Tensor = field(repr=False)
    """Of the second."""

    def __add__(self, other: Fidelity) -> Fidelity:
        return Fidelity(
            labelled=self.labelled + other.labelled,
            right=self.right + other.right,
            counts=self.counts + other.counts,
            counts_other=self.counts_other + other.counts_other,
        )

    @property
    def percent(self) -> float | None:
        """Share of pixels that are consistent and correct, in percent; None where nothing is labelled."""
        return 100 * self.right / self.labelled if self.labelled else None


def difference(logits: Tensor, other: Tensor) -> Difference:
    """Return how two maps differ, pixel by pixel.

    Args:
        logits: Of the first map, ``(K, H, W)``.
        other: Of the second.
    """
    # Of arrays of one shape: the exponential function rounds differently in the tail of a row than in its body, so
    # equal logits in arrays of different shapes could get unequal probabilities.
    wide, wide_other = (one.float().contiguous().softmax(0).double() for one in (logits, other))
    labels, others = logits.max(0).indices, other.max(0).indices
    flips = (labels != others).to(torch.uint8)
    if flips.any():
        tied = (_lead(wide) < TIE_TOLERANCE) & (_lead(wide_other) < TIE_TOLERANCE)
        flips[(flips == FLIP) & tied] = TIE
    change = ((wide - wide_other).abs().sum(0) / 2).float()
    return Difference(labels=labels.to(torch.uint8), others=others.to(torch.uint8), flips=flips, change=change)


def disagreement_of(found: Difference, valid: Tensor, num_classes: int) -> Disagreement:
    """Return the sums of what was found over the pixels that count.

    Args:
        found: Two maps pixel by pixel.
        valid: True where the pixel counts, ``(H, W)``, bool.
        num_classes: Number of classes K.
    """
    labels, others = found.labels[valid].long(), found.others[valid].long()
    flips, change = found.flips[valid], found.change[valid]
    counts = torch.bincount(labels * num_classes + others, minlength=num_classes**2)
    return Disagreement(
        pixels=len(labels),
        flips=int((flips != SAME).sum()),
        ties=int((flips == TIE).sum()),
        change_sum=float(change.double().sum()),
        change_max=float(change.max()) if len(labels) else 0.0,
        counts=counts.view(num_classes, num_classes),
    )


def disagreement(logits: Tensor, other: Tensor, valid: Tensor) -> Disagreement:
    """Return the sums of how two maps differ.

    Args:
        logits: Of the first map, ``(K, H, W)``.
        other: Of the second.
        valid: True where the pixel counts, ``(H, W)``, bool.
    """
    return disagreement_of(difference(logits, other), valid, len(logits))


def no_disagreement(num_classes: int) -> Disagreement:
    """Return the sums before the first pixel."""
    zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    return Disagreement(pixels=0, flips=0, ties=0, change_sum=0.0, change_max=0.0, counts=zeros)


def curve_of(found: Difference, valid: Tensor, classes: NDArray[np.uint8], num_classes: int) -> Curve:
    """Return the sums of what was found by the distance of the pixels.

    Args:
        found: Two maps pixel by pixel.
        valid: True where the pixel counts, ``(H, W)``, bool.
        classes: Class of distance of each pixel, ``(H, W)``.
        num_classes: How many there are.
    """
    counted = valid.numpy()
    kept = classes[counted]
    change = found.change.numpy()[counted]
    flipped = found.flips.numpy()[counted] != SAME
    largest = np.zeros(num_classes)
    if change.any():
        np.maximum.at(largest, kept[change > 0], change[change > 0].astype(np.float64))
    return Curve(
        np.bincount(kept, minlength=num_classes),
        np.bincount(kept[flipped], minlength=num_classes),
        np.bincount(kept, weights=change.astype(np.float64), minlength=num_classes).astype(np.float64),
        largest,
    )


def fidelity_of(found: Difference, valid: Tensor, truth: Tensor, num_classes: int) -> Fidelity:
    """Return how two maps stand to the truth.

    Args:
        found: Two maps pixel by pixel.
        valid: True where the pixel counts, ``(H, W)``, bool.
        truth: True labels, ``(H, W)``, uint8; `IGNORE_LABEL` where there is none.
        num_classes: Number of classes K.
    """
    valid = valid & (truth != IGNORE_LABEL)
    labels, others, true = (one[valid].long() for one in (found.labels, found.others, truth))
    pairs = [torch.bincount(true * num_classes + one, minlength=num_classes**2) for one in (labels, others)]
    counts, counts_other = (one.view(num_classes, num_classes) for one in pairs)
    return Fidelity(
        labelled=len(true),
        right=int(((labels == true) & (others == true)).sum()),
        counts=counts,
        counts_other=counts_other,
    )


def border_distance(length: int, borders: Sequence[int]) -> NDArray[np.int64]:
    """Return for each pixel of an axis how far it lies from the nearest border of a core, ``(length,)``.

    Args:
        length: Pixels of the axis.
        borders: First pixels of cores; a border lies before each. Ends of the axis are none.

    Example:
        >>> border_distance(7, [3]).tolist()
        [3, 2, 1, 1, 2, 3, 4]
    """
    if not borders:
        return np.full(length, np.iinfo(np.int64).max)
    pixels, starts = np.arange(length), np.sort(np.array(borders))
    following = np.searchsorted(starts, pixels, side="right")
    far = np.iinfo(np.int64).max
    before = np.where(following > 0, pixels - starts[following - 1] + 1, far)
    after = np.where(following < len(starts), starts[np.minimum(following, len(starts) - 1)] - pixels, far)
    return np.minimum(before, after)


def distance_classes(reach_px: int) -> list[int]:
    """Return the distances at which classes begin: 1, 2, 4, 8, ... up to a reach.

    Example:
        >>> distance_classes(20)
        [1, 2, 4, 8, 16]
    """
    return [2**power for power in range(int(math.log2(max(1, reach_px))) + 1)]


def class_of(distances: NDArray[np.int64], from_px: Sequence[int]) -> NDArray[np.uint8]:
    """Return the class of each distance, the last that begins at it or before."""
    return (np.searchsorted(np.array(from_px), distances, side="right") - 1).astype(np.uint8)


def corner_consensus(labels: Tensor) -> float:
    """Return the share of pixels that four answers agree on.

    Source: Fields of the World tools (``compute_corner_consensus_from_model``): of an image of ``2 * size`` pixels a
    side, the four crops of ``size + padding`` pixels in its corners are labelled, and the labels held against each
    other in the square of ``2 * padding`` pixels in the middle, which all of them see.

    Args:
        labels: Of the square, by each crop, ``(4, h, w)``.
    """
    return float((labels == labels[:1]).all(0).double().mean())


def _lead(probs: Tensor) -> Tensor:
    """Return by how much the most probable class leads the next, ``(...)``."""
    first, second = probs.topk(2, dim=0).values
    return first - second
