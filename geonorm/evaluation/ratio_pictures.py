"""The figures of the papers on Switchable Norm, for any network: ratios, hard choices and divergences by depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from geonorm.evaluation.ratio_runs import Run
from geonorm.evaluation.ratios import (
    Layer,
    Ratios,
    average,
    between_runs,
    by_part,
    by_range,
    choices,
    own_divergence,
)
from geonorm.tasks.ratio_log import LayerRatios

COLORS = {"BN": "#009e73", "IN": "#0072b2", "LN": "#d55e00", "GN": "#e69f00", "LCN": "#cc79a7"}
"""Green, blue and red as in the papers, in shades that colour-blind readers tell apart (Okabe and Ito)."""
UNDECIDED = "#d0d0d0"
DARK, LIGHT = "#333333", "#9a9a9a"
STATISTICS = {"mean": r"mean $\lambda^\mu$", "var": r"variance $\lambda^\sigma$"}
DPI = 110


def draw_pictures(runs: Sequence[Run], folder: Path) -> list[str]:
    """Write all pictures of some runs, the first of which the others are held against; return their names."""
    figures: dict[str, Figure] = {"averages.png": _averages(runs)}
    for run in runs:
        figures[f"{run.label}_ratios.png"] = _ratios(run)
        figures[f"{run.label}_choices.png"] = _choices(run)
        figures[f"{run.label}_divergence.png"] = _divergence(run)
        if len(run.history) > 1:
            figures[f"{run.label}_training_mean.png"] = _training_of_shares(run, "mean")
            figures[f"{run.label}_training_var.png"] = _training_of_shares(run, "var")
            figures[f"{run.label}_training_divergence.png"] = _training_of_divergence(run)
    for other in runs[1:]:
        figures[f"{runs[0].label}_{other.label}_divergence.png"] = _comparison(runs[0], other)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DPI)
    return list(figures)


def _ratios(run: Run) -> Figure:
    """Draw the ratios of every layer as stacked bars (Luo et al., figure 9; journal paper figure 5)."""
    figure, axes = _by_depth(run.layers, rows=2, row_in=2.3)
    for axis, (statistic, words) in zip(axes, STATISTICS.items(), strict=True):
        for at, layer in enumerate(run.layers):
            table = _table(layer.ratios, statistic)
            width = 0.86 / len(table)
            for group, shares in enumerate(table):
                _stack(axis, at - 0.43 + width * (group + 0.5), shares, layer.ratios.pool, 0.94 * width)
        axis.set_ylim(0, 1)
        axis.set_ylabel(f"ratios of the {words}")
    _legend(figure, run.layers)
    figure.suptitle(_title(run, "ratios of each layer"))
    return figure


def _choices(run: Run) -> Figure:
    """Draw the largest ratio of every layer at a third, two thirds and the end (Luo et al., figure 2)."""
    end = {layer.name: layer.ratios for layer in run.layers}
    snapshots = [
        *((f"step {step}", run.history[step]) for step in _thirds(run)),
        (", ".join(filter(None, ["end", _step(run)])), end),
    ]
    figure, axes = _by_depth(run.layers, rows=len(snapshots), row_in=1.0)
    for axis, (when, snapshot) in zip(axes, snapshots, strict=True):
        ratios = [snapshot[layer.name] for layer in run.layers]
        for at, one in enumerate(ratios):
            means, variances = choices(one.mean, one.pool), choices(one.var, one.pool)
            width = 0.92 / len(means)
            for group, pair in enumerate(zip(variances, means, strict=True)):
                left = at - 0.46 + width * group
                axis.barh((0, 1), width, left=left, height=0.92, color=[COLORS.get(name, UNDECIDED) for name in pair])
                if all(pair) and pair[0] != pair[1]:
                    axis.plot(left + width / 2, 0.5, "kD", ms=4.5, mec="white")
        axis.set_ylim(1.5, -0.5)
        axis.set_yticks([0, 1], [r"$\lambda^\sigma$", r"$\lambda^\mu$"])
        share = f"{100 * average(ratios).differing:.0f} % of the layers choose differently"
        axis.set_title(f"{when}: {share}", loc="left", fontsize=9, pad=18 if axis is axes[0] else 3)
    differ = Line2D([], [], color="k", marker="D", ls="", ms=4.5, label="differ")
    _legend(figure, run.layers, [Patch(color=UNDECIDED, label="undecided"), differ])
    figure.suptitle(f"{run.label}, largest ratio of each layer")
    return figure


def _divergence(run: Run) -> Figure:
    """Draw the divergence between means and variances of every layer (Luo et al., figure 3 (c), at the end)."""
    figure, [axis] = _by_depth(run.layers, rows=1, row_in=2.4)
    _bars(axis, {DARK: [own_divergence(layer.ratios) for layer in run.layers]})
    axis.set_ylabel(r"$D(\lambda^\mu \,\Vert\, \lambda^\sigma)$, nats")
    figure.suptitle(_title(run, "divergence between the ratios of mean and variance"))
    return figure


def _comparison(first: Run, other: Run) -> Figure:
    """Draw the divergence between two runs of every layer (Luo et al., figure 5, at the end)."""
    figure, [axis] = _by_depth(first.layers, rows=1, row_in=2.4)
    pairs = zip(first.layers, other.ordered_like(first), strict=True)
    found = [between_runs(one.ratios, two.ratios) for one, two in pairs]
    _bars(axis, {DARK: [one["mean"] for one in found], LIGHT: [one["var"] for one in found]})
    axis.set_ylabel(f"D({first.label} || {other.label}), nats", fontsize=9)
    handles = [Patch(color=color, label=STATISTICS[which]) for which, color in (("mean", DARK), ("var", LIGHT))]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    figure.suptitle(f"divergence of the ratios between {first.label} and {other.label}")
    return figure


def _averages(runs: Sequence[Run]) -> Figure:
    """Draw the ratios averaged over receptive fields and parts of the network (Luo et al., figures 4 and 10)."""
    groups = [
        {
            **{f"RF {name} px": layers for name, layers in by_range(run.layers).items()},
            **by_part(run.layers),
            "all": list(run.layers),
        }
        for run in runs
    ]
    most = max(map(len, groups))
    figure = Figure(figsize=(1.6 + 1.15 * most, 0.4 + 2.4 * len(runs)), layout="constrained")
    rows = figure.subplots(len(runs), 1, squeeze=False)[:, 0]
    for axis, run, members in zip(rows, runs, groups, strict=True):
        ticks: dict[float, str] = {}
        for at, (name, layers) in enumerate(members.items()):
            found = average(layer.ratios for layer in layers)
            for offset, sign, shares in ((-0.21, r"$\mu$", found.mean), (0.21, r"$\sigma$", found.var)):
                _stack(axis, at + offset, np.array([*shares.values()]), [*shares], 0.38)
                ticks[at + offset] = sign
            count = f"{len(layers)} layer{'s' if len(layers) > 1 else ''}"
            below = {"xycoords": axis.get_xaxis_transform(), "textcoords": "offset points", "va": "top"}
            axis.annotate(f"{name}\n{count}", (at, 0), (0, -18), ha="center", **below)
        for first in (len(by_range(run.layers)), len(members) - 1):
            axis.axvline(first - 0.5, color=DARK, lw=0.8, ls=":")
        axis.set_xticks([*ticks], [*ticks.values()])
        axis.tick_params(axis="x", length=0)
        axis.set_xlim(-0.6, most - 0.4)
        axis.set_ylim(0, 1)
        axis.set_ylabel("average ratio")
        axis.set_title(_title(run, ""), loc="left", fontsize=10)
    _legend(figure, [layer for run in runs for layer in run.layers])
    return figure


def _training_of_shares(run: Run, statistic: str) -> Figure:
    """Draw the ratios over training, of each layer and averaged (Luo et al., figure 3 (a, b))."""

    def draw(axis: Axes, names: Sequence[str]) -> None:
        pool = list(dict.fromkeys(k for name in names for k in run.history[steps[0]][name].pool))
        found = [average(run.history[step][name] for name in names) for step in steps]
        shares = np.array([[getattr(one, statistic)[k] for one in found] for k in pool])
        axis.stackplot(steps, shares, colors=[COLORS[k] for k in pool], lw=0)
        axis.set_ylim(0, 1)

    steps = [*run.history]
    figure = _over_training(run, draw)
    _legend(figure, run.layers)
    figure.suptitle(f"{run.label}, ratios of the {STATISTICS[statistic]} over training")
    return figure


def _training_of_divergence(run: Run) -> Figure:
    """Draw the divergence between means and variances over training (Luo et al., figure 3 (c))."""

    def draw(axis: Axes, names: Sequence[str]) -> None:
        found = [average(run.history[step][name] for name in names).divergence for step in steps]
        axis.fill_between(steps, 0, found, color=LIGHT, lw=0)
        axis.plot(steps, found, color=DARK, lw=1.2)
        axis.set_ylim(0, 1.05 * highest)

    steps = [*run.history]
    values = [own_divergence(ratios) for snapshot in run.history.values() for ratios in snapshot.values()]
    highest = max([value for value in values if np.isfinite(value) and value > 0], default=1.0)
    figure = _over_training(run, draw)
    figure.suptitle(run.label + r", divergence $D(\lambda^\mu \,\Vert\, \lambda^\sigma)$ over training, nats")
    return figure


def _over_training(run: Run, draw: Callable[[Axes, Sequence[str]], None]) -> Figure:
    """Return one small panel per layer, then one per range of receptive fields and one for all layers."""
    panels = {_panel_title(layer): [layer.name] for layer in run.layers}
    for name, layers in by_range(run.layers).items():
        panels[f"RF {name} px\n{len(layers)} layers"] = [layer.name for layer in layers]
    panels[f"all\n{len(run.layers)} layers"] = [layer.name for layer in run.layers]
    across = min(8, max(4, round(len(panels) ** 0.5) + 1))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(1.75 * across + 0.6, 1.35 * down + 0.8), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for number, (axis, (title, names)) in enumerate(zip(axes, panels.items(), strict=False)):
        draw(axis, names)
        averaged = number >= len(run.layers)
        axis.set_title(title, fontsize=7, pad=2, fontweight="bold" if averaged else "normal")
        axis.set_xlim(min(run.history), max(run.history))
        axis.tick_params(labelsize=7)
        axis.locator_params(axis="x", nbins=3, integer=True)
        # The panel below may be one of those left out.
        axis.tick_params(labelbottom=number + across >= len(panels))
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.supxlabel("step", fontsize=9)
    return figure


# Pieces


def _by_depth(layers: Sequence[Layer], *, rows: int, row_in: float) -> tuple[Figure, list[Axes]]:
    """Return panels below each other with one place per layer, its name and receptive field at the bottom."""
    names = [_axis_label(layer) for layer in layers]
    height = rows * row_in + 0.075 * max(map(len, names)) + 1.0
    figure = Figure(figsize=(max(7.0, 0.27 * len(layers) + 2.2), height), layout="constrained")
    axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for axis in axes:
        axis.set_xlim(-0.6, len(layers) - 0.4)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", length=0)
    axes[-1].set_xticks(range(len(layers)), names, rotation=90, fontsize=8)
    axes[-1].set_xlabel("layer, receptive field of its input")
    _mark_parts(axes, layers)
    return figure, axes


def _mark_parts(axes: Sequence[Axes], layers: Sequence[Layer]) -> None:
    """Name the parts of the network along the top, and draw a line where one begins."""
    first = 0
    top = axes[0].secondary_xaxis("top")
    middles: dict[float, str] = {}
    for part, members in groupby(layers, key=lambda layer: layer.part):
        count = len(list(members))
        middles[first + (count - 1) / 2] = part
        if first:
            for axis in axes:
                axis.axvline(first - 0.5, color=DARK, lw=0.8, ls=":")
        first += count
    top.set_xticks([*middles], [*middles.values()], fontsize=9)
    top.tick_params(length=0, pad=1)
    top.spines["top"].set_visible(False)


def _stack(axis: Axes, at: float, shares: Ratios, pool: Sequence[str], width: float) -> None:
    bottom = 0.0
    for name, share in zip(pool, shares, strict=True):
        axis.bar(at, share, width, bottom=bottom, color=COLORS[name], lw=0)
        bottom += float(share)


def _bars(axis: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """Draw bars of one or more colours side by side; an infinite one reaches the top and is marked."""
    table = np.array([*values.values()])
    highest = table[np.isfinite(table)].max(initial=0.0)
    top = 1.08 * highest if highest > 1e-6 else 1.0  # below that it is rounding
    width = 0.8 / len(table)
    for which, (color, row) in enumerate(zip(values, table, strict=True)):
        places = np.arange(len(row)) - 0.4 + width * (which + 0.5)
        axis.bar(places, np.minimum(row, top), 0.95 * width, color=color)
        for at in places[np.isinf(row)]:
            axis.text(at, 0.98 * top, r"$\infty$", ha="center", va="top", color="white", fontsize=8)
    axis.set_ylim(0, top)


def _legend(figure: Figure, layers: Sequence[Layer], more: Sequence[Patch | Line2D] = ()) -> None:
    names = dict.fromkeys(name for layer in layers for name in layer.ratios.pool)
    handles = [*(Patch(color=COLORS[name], label=name) for name in reversed(names)), *more]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)


def _table(ratios: LayerRatios, statistic: str) -> Ratios:
    return ratios.mean if statistic == "mean" else ratios.var


def _thirds(run: Run) -> list[int]:
    """Return the logged steps nearest to a third and to two thirds of the training."""
    steps = np.array([*run.history])
    if len(steps) < 3:
        return []
    nearest = [int(steps[np.abs(steps - steps[-1] * part).argmin()]) for part in (1 / 3, 2 / 3)]
    return sorted({step for step in nearest if step != steps[-1]})


def _axis_label(layer: Layer) -> str:
    name = layer.name.removeprefix("network.")
    return name if layer.receptive_px is None else f"{name}   {layer.receptive_px} px"


def _panel_title(layer: Layer) -> str:
    name = layer.name.removeprefix("network.")
    return f"{name}\n" + ("" if layer.receptive_px is None else f"RF {layer.receptive_px} px")


def _title(run: Run, what: str) -> str:
    return ", ".join(filter(None, [run.label, what, _step(run)]))


def _step(run: Run) -> str:
    return "" if run.step is None else f"step {run.step}"
