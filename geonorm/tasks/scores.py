"""IoU and accuracy from summed pixel counts, never from means over samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from geonorm.data.spec import IGNORE_LABEL
from geonorm.norms.synchronized import several_processes

SPREAD = 512
"""Counters of each pair of classes."""


class Scores:
    """Confusion counts of each group (city), and what follows from them."""

    def __init__(self, num_classes: int, scored_classes: Sequence[int]) -> None:
        self.num_classes = num_classes
        self.scored_classes = list(scored_classes)
        self.counts: dict[str, Tensor] = {}

    def update(self, group: str, predicted: Tensor, labels: Tensor) -> None:
        """Count pixels where they are; labels of `IGNORE_LABEL` do not count. Both tensors have the same shape."""
        counts = confusion(predicted, labels, self.num_classes)
        self.counts[group] = self.counts.get(group, 0) + counts

    def gather(self) -> None:
        """Fetch the counts, and add those of all other processes; each has them all afterwards."""
        self.counts = {group: counts.cpu() for group, counts in self.counts.items()}
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
    """Return how often each label was called each class, ``(K, K)``, int64, on the device of both.

    Nothing is fetched from the device, so a GPU goes on with what comes next.
    """
    ignored = num_classes**2
    pairs = torch.where(labels == IGNORE_LABEL, ignored, labels.long() * num_classes + predicted.long()).flatten()
    # Many counters of each pair: pixels that add to the same number wait for one another on a GPU.
    places = torch.arange(len(pairs), device=pairs.device) % SPREAD * (ignored + 1) + pairs
    counts = torch.zeros(SPREAD * (ignored + 1), dtype=torch.int64, device=pairs.device)
    counts.scatter_add_(0, places, torch.ones_like(places))
    return counts.view(SPREAD, -1).sum(0)[:ignored].view(num_classes, num_classes)


def iou_of(counts: Tensor) -> Tensor:
    """Return the IoU of each class, ``(K,)``, float64; NaN for a class that neither occurs nor is predicted."""
    both = counts.diagonal().double()
    return both / (counts.sum(0) + counts.sum(1) - both)
