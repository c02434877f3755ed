"""How far two maps of the same raster differ: pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from geonorm.tasks.scores import iou_of

TIE_TOLERANCE = 1e-4
"""A flip where the two highest probabilities are closer than this in both maps is counted as a tie, too."""


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


def disagreement(probs: Tensor, other: Tensor, valid: Tensor) -> Disagreement:
    """Return how two maps differ.

    Args:
        probs: Probabilities ``(K, H, W)``.
        other: Those of the other map.
        valid: True where the pixel counts, ``(H, W)``, bool.
    """
    num_classes = len(probs)
    probs, other = probs[:, valid].double(), other[:, valid].double()
    labels, labels_other = probs.max(0).indices, other.max(0).indices
    flipped = labels != labels_other
    change = (probs - other).abs().sum(0) / 2
    tied = flipped & (_lead(probs) < TIE_TOLERANCE) & (_lead(other) < TIE_TOLERANCE)
    counts = torch.bincount(labels * num_classes + labels_other, minlength=num_classes**2)
    return Disagreement(
        pixels=len(labels),
        flips=int(flipped.sum()),
        ties=int(tied.sum()),
        change_sum=float(change.sum()),
        change_max=float(change.max()) if len(labels) else 0.0,
        counts=counts.view(num_classes, num_classes),
    )


def no_disagreement(num_classes: int) -> Disagreement:
    """Return the sums before the first pixel."""
    zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    return Disagreement(pixels=0, flips=0, ties=0, change_sum=0.0, change_max=0.0, counts=zeros)


def _lead(probs: Tensor) -> Tensor:
    """Return by how much the most probable class leads the next, ``(...)``."""
    first, second = probs.topk(2, dim=0).values
    return first - second
