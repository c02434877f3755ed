"""IoU and accuracy from summed pixel counts, never from means over samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from geonorm.data.spec import IGNORE_LABEL
from geonorm.norms.synchronized import several_processes


class Scores:
    """Confusion counts of each group (city), and what follows from them."""

    def __init__(self, num_classes: int, scored_classes: Sequence[int]) -> None:
        self.num_classes = num_classes
        self.scored_classes = list(scored_classes)
        self.counts: dict[str, Tensor] = {}

    def update(self, group: str, predicted: Tensor, labels: Tensor) -> None:
        """Count pixels; labels of `IGNORE_LABEL` do not count. Both tensors have the same shape."""
        counts = confusion(predicted, labels, self.num_classes)
        self.counts[group] = self.counts.get(group, 0) + counts

    def gather(self) -> None:
        """Add the counts of all other processes; each has them all afterwards."""
        if not several_processes():
            return
        parts: list[dict[str, Tensor]] = [{}] * distributed.get_world_size()
        distributed.all_gather_object(parts, self.counts)
        groups = sorted({group for part in parts for group in part})
        self.counts = {group: torch.stack([part[group] for part in parts if group in part]).sum(0) for group in groups}

    def total(self, group: str | None = None) -> Tensor:
        """Return the counts of one group or of all, ``(K, K)``, rows by label, columns by prediction, int64."""
        if group is not None:
            return self.counts[group]
        return torch.stack(list(self.counts.values())).sum(0)

    def iou(self, group: str | None = None) -> float:
        """Return the mean IoU of the scored classes that occur, 0 to 1; NaN where none does."""
        return iou_of(self.total(group))[self.scored_classes].nanmean().item()

    def accuracy(self, group: str | None = None) -> float:
        """Return the share of pixels that are right, 0 to 1."""
        counts = self.total(group)
        return (counts.diagonal().sum() / counts.sum()).item()


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return how often each label was called each class, ``(K, K)``, int64, on the CPU."""
    counts = labels != IGNORE_LABEL
    pairs = labels[counts].long() * num_classes + predicted[counts].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).cpu()


def iou_of(counts: Tensor) -> Tensor:
    """Return the IoU of each class, ``(K,)``, float64; NaN for a class that neither occurs nor is predicted."""
    both = counts.diagonal().double()
    return both / (counts.sum(0) + counts.sum(1) - both)
