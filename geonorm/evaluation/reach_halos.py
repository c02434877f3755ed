"""What the answer of a core loses when less than the exact halo is read around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geonorm.evaluation.measures import Disagreement, disagreement
from geonorm.evaluation.reach_places import spans_at
from geonorm.inference.halo import MISMATCH_TOLERANCE
from geonorm.raster.window import Window
from geonorm.tiling.engine import Predict, predict_tile
from geonorm.tiling.plan import Plan
from geonorm.tiling.supply import Read

TOLERANCES = (0.0, 1e-5, MISMATCH_TOLERANCE, 1e-3, 1e-2)
"""Shares of the labels that may differ from the reference's."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one halo gives."""

    halo_px: int
    overhead: float
    """Pixels computed for each that is written."""
    found: Disagreement
    """From the reference, over all cores."""

    @property
    def flips_share(self) -> float:
        """Share of the labels that differ."""
        return self.found.flips / max(1, self.found.pixels)


@dataclass(frozen=True, kw_only=True)
class Bargain:
    """What a tolerance buys."""

    tolerance: float
    halo_px: int | None
    """The least halo from which on no more labels differ; None where none of those tried will do."""
    overhead: float | None


def core_differences(
    read: Read, predict: Predict, plan: Plan, core: tuple[int, int], *, halos_px: Sequence[int], fill: Tensor
) -> list[Disagreement]:
    """Return how the answer of a core with each halo differs from that with the plan's.

    Args:
        read: Gives the pixels of a window inside the raster.
        predict: The network.
        plan: The raster, its cores, and the halo that the others are held against.
        core: First row and column of the core.
        halos_px: Halos to try.
        fill: What pixels without data hold.
    """
    spans = row, col = spans_at(plan, core)
    window = Window(row.core_start, col.core_start, row.core_stop - row.core_start, col.core_stop - col.core_start)
    valid = torch.tensor(read(window).valid)
    reference = _logits(read, predict, plan, core, fill)
    found = []
    for halo_px in halos_px:
        with_halo = replace(plan, halo_px=halo_px)
        same = spans_at(with_halo, core) == spans  # the whole raster, both times
        logits = reference if same else _logits(read, predict, with_halo, core, fill)
        found.append(disagreement(reference, logits, valid))
    return found


def _logits(read: Read, predict: Predict, plan: Plan, core: tuple[int, int], fill: Tensor) -> Tensor:
    row, col = spans_at(plan, core)
    return predict_tile(read, predict, plan, row, col, fill=fill, finish=lambda logits: logits)


def bargains(steps: Sequence[Step], tolerances: Sequence[float] = TOLERANCES) -> list[Bargain]:
    """Return the least halo for each tolerance, of steps whose halos rise."""
    return [_bargain(steps, tolerance) for tolerance in tolerances]


def _bargain(steps: Sequence[Step], tolerance: float) -> Bargain:
    least: Step | None = None
    for step in reversed(steps):
        if step.flips_share > tolerance:
            break
        least = step
    if least is None:
        return Bargain(tolerance=tolerance, halo_px=None, overhead=None)
    return Bargain(tolerance=tolerance, halo_px=least.halo_px, overhead=least.overhead)
