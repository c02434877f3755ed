"""A comparison as a picture: the score of every run, norm beside norm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geonorm.evaluation.comparison_table import Summary
from geonorm.evaluation.ratio_pictures import COLORS

OTHER_COLORS = ("#56b4e9", "#7f7f7f", "#f0e442", "#000000")
MOST_PANELS = 12
DPI = 130


def draw_comparison(summaries: Sequence[Summary], path: Path) -> None:
    """Draw the IoU of every run as a dot and the mean of each norm as a bar, a panel for each group and one for all."""
    several = len(summaries[0].runs[0].class_iou) > 1
    # What holds more comes first: all, then the pools, then the groups.
    panels = list(summaries[0].runs[0].iou)[::-1][:MOST_PANELS]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    width = max(3.0, 0.55 * len(summaries) + 1.6)
    figure = Figure(figsize=(width * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, part in zip(axes.flat, panels, strict=False):
        _panel(axis, summaries, part)
    for row in axes:
        row[0].set_ylim(bottom=max(0.0, row[0].get_ylim()[0]))
        row[0].set_ylabel(f"{'mean IoU' if several else 'IoU'} (%)")
    figure.savefig(path, dpi=DPI)


def _panel(axis: Axes, summaries: Sequence[Summary], part: str) -> None:
    spare = iter(OTHER_COLORS * len(summaries))
    for at, summary in enumerate(summaries):
        color = COLORS.get(summary.norm) or next(spare)
        values = 100 * np.array([run.iou[part] for run in summary.runs])
        offsets = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
        axis.plot(at + offsets, values, "o", color=color, markersize=5, alpha=0.75, zorder=3)
        mean = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
        axis.hlines(mean, at - 0.32, at + 0.32, color=color, linewidth=2.5)
        axis.annotate(
            f"{mean:.1f}",
            (at + 0.34, mean),
            (1, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#333333",
        )
    axis.set_title(part, fontsize=10)
    axis.set_xticks(range(len(summaries)), [summary.norm for summary in summaries], fontsize=9)
    axis.set_xlim(-0.6, len(summaries) - 0.2)
    axis.margins(y=0.1)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
