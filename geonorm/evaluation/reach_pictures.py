"""The reach of a network as a picture: where the gradient lies, how it falls, what halos give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from geonorm.evaluation.reach_gradient import Mass

EXACT, WINDOW, DARK, LIGHT = "#cc79a7", "#00e5ff", "#333333", "#9a9a9a"
FLIPS, LARGEST, MEAN = "#d55e00", "#0072b2", "#009e73"
DECADES = 8
"""Of the gradient, from the strongest pixel down."""
LONGEST_SIDE = 512
"""Cells along a side of the map, at most."""
DPI = 130


def draw_reach(mass: Mass, report: Mapping[str, Any], target: Path) -> None:
    """Write a PNG: the gradient around an output pixel, its share beyond each distance, labels against the halo."""
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    figure.suptitle(_title(report))
    around, beyond, halos = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    _draw_map(figure, around, mass, report)
    _draw_shares(beyond, mass, report)
    _draw_halos(halos, report["halos"])
    figure.savefig(target, dpi=DPI)


def _title(report: Mapping[str, Any]) -> str:
    norm = report["norm"].get("class_path", "").rpartition(".")[-1]
    exact_px = report["exact_halo_px"]
    halo = "no exact halo" if exact_px is None else f"exact halo {exact_px} px"
    return ", ".join(filter(None, [report["model"], norm, halo]))


def _draw_map(figure: Figure, axis: Axes, mass: Mass, report: Mapping[str, Any]) -> None:
    cells, cell_px = in_cells(mass.by_offset)
    highest = cells.max()
    edge = cell_px * len(cells) / 2
    shown = axis.imshow(
        np.maximum(cells, highest * 10.0**-DECADES),
        norm=LogNorm(highest * 10.0**-DECADES, highest) if highest > 0 else None,
        cmap="magma",
        extent=(-edge, edge, edge, -edge),
        interpolation="nearest",
    )
    figure.colorbar(shown, ax=axis, shrink=0.85, label="gradient (logits per deviation of a band)", extend="min")
    if windows := report["windows_px"]:
        sides = " to ".join(str(side_px) for side_px in sorted({windows[0], windows[-1]}))
        _square(axis, windows[-1] / 2, WINDOW, "-", f"norm windows, {sides} px")
    if report["exact_reach_px"] is not None:
        _square(axis, report["exact_reach_px"] + 0.5, EXACT, "-", f"can see, {report['exact_reach_px']} px")
    within = report["gradient"]["shares"][0]
    if within["distance_px"] is not None:
        _square(axis, within["distance_px"] + 0.5, "white", "--", f"{100 * within['share']:g} % of the gradient")
    limit = 1.04 * max(edge, report["exact_reach_px"] or 0)
    axis.set_xlim(-limit, limit)
    axis.set_ylim(limit, -limit)
    axis.set_facecolor("black")
    axis.set_xlabel("columns from the output pixel (px)")
    axis.set_ylabel("rows from the output pixel (px)")
    axis.set_title(f"what {report['gradient']['pixels']} pixels see, on average")
    if axis.patches:
        axis.legend(loc="upper right", fontsize=8, facecolor="black", labelcolor="white", framealpha=0.6)


def _square(axis: Axes, half_px: float, color: str, style: str, label: str) -> None:
    axis.add_patch(
        Rectangle((-half_px, -half_px), 2 * half_px, 2 * half_px, fill=False, color=color, ls=style, label=label)
    )


def _draw_shares(axis: Axes, mass: Mass, report: Mapping[str, Any]) -> None:
    beyond = mass.share_beyond
    axis.plot(np.arange(len(beyond)), np.where(beyond > 0, beyond, np.nan), color=DARK, lw=1.8)
    for one in report["gradient"]["shares"]:
        if one["distance_px"] is not None:
            at = one["distance_px"], 1 - one["share"]
            axis.plot(*at, "o", color=DARK, ms=5)
            text = f"{100 * one['share']:g} %: {one['distance_px']} px"
            late = at[0] > 0.6 * mass.radius_px
            side = {"xytext": (-7, -4), "ha": "right", "va": "top"} if late else {"xytext": (7, 4)}
            axis.annotate(text, at, textcoords="offset points", fontsize=9, **side)
    if report["exact_reach_px"] is not None:
        _line(axis, report["exact_reach_px"], f"can see, {report['exact_reach_px']} px")
        axis.legend(loc="lower left", fontsize=8)
    axis.set_yscale("log")
    axis.set_ylim(1e-7, 1.5)
    axis.set_xlim(left=0)
    axis.set_xlabel("distance from the output pixel (px)")
    axis.set_ylabel("share of the gradient beyond")
    axis.set_title("how the gradient falls")
    axis.grid(alpha=0.3)


def _draw_halos(axis: Axes, found: Mapping[str, Any]) -> None:
    """Draw the differences against the halo; those that are 0 stand open at the bottom."""
    steps = found["steps"]
    halos = np.array([step["halo_px"] for step in steps])
    curves = {
        "share of labels that differ": (FLIPS, np.array([step["flips_share"] for step in steps])),
        "largest change of probability": (LARGEST, np.array([step["change_max"] for step in steps])),
        "mean change of probability": (MEAN, np.array([step["change_mean"] for step in steps])),
    }
    floor = min([1 / found["pixels"], *(value for _, values in curves.values() for value in values if value > 0)]) / 10
    for label, (color, values) in curves.items():
        axis.plot(halos, np.maximum(values, floor), "-", color=color, lw=1.2)
        axis.plot(halos[values > 0], values[values > 0], "o", color=color, ms=5, label=label)
        axis.plot(halos[values == 0], np.full((values == 0).sum(), floor), "o", color=color, mfc="white", ms=5)
    axis.axhline(1 / found["pixels"], color=LIGHT, lw=1, ls="--", label=f"one label of {found['pixels']:,}")
    kind = "exact halo" if found["is_exact"] else "held against"
    _line(axis, found["reference_px"], f"{kind}, {found['reference_px']} px")
    axis.set_yscale("log")
    axis.set_ylim(floor / 2, 2)
    ticks = [(level, f"$10^{{{round(np.log10(level))}}}$") for level in 10.0 ** np.arange(0, np.log10(floor * 1.5), -2)]
    axis.set_yticks([floor, *(level for level, _ in ticks)], ["none", *(label for _, label in ticks)])
    axis.set_yticks([], minor=True)
    axis.set_xlabel("halo (px)")
    axis.set_title(f"smaller halos, on {found['cores']} cores of {found['core_px']} px")
    axis.grid(alpha=0.3)
    axis.legend(loc="best", fontsize=8, framealpha=0.95)


def _line(axis: Axes, at_px: float, label: str) -> None:
    axis.axvline(at_px, color=EXACT, lw=1.2, label=label)


def in_cells(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Return a square map as means of square cells around its middle, few enough to be drawn, and their side.

    The map ``(2 * r + 1, 2 * r + 1)`` is extended by zeros to a whole, odd number of cells; each has an odd side.
    """
    length = len(values)
    cell_px = max(1, -(-length // LONGEST_SIDE))
    cell_px += 1 - cell_px % 2
    count = -(-length // cell_px)
    count += 1 - count % 2
    extra = (count * cell_px - length) // 2
    padded = np.pad(values, extra)
    return padded.reshape(count, cell_px, count, cell_px).mean((1, 3)), cell_px
