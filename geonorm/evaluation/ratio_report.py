"""What Switchable Norm chose: tables, divergences, a summary and pictures of one or several runs."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from geonorm import __version__
from geonorm.evaluation.ratio_pictures import draw_pictures
from geonorm.evaluation.ratio_runs import Run, load_runs
from geonorm.evaluation.ratios import (
    Average,
    Layer,
    average,
    between_runs,
    by_part,
    by_range,
    choices,
    differing_share,
    own_divergence,
)
from geonorm.evaluation.shift_maps import Report
from geonorm.evaluation.shift_tables import in_columns
from geonorm.files import make_folder

FORMAT = 1
PLACE = ("depth", "layer", "part", "receptive_px", "stride_px")
RATIO_HEAD = ("run", "when", "step", *PLACE, "statistic", "group", "normalizer", "ratio")
DIVERGENCE_HEAD = ("run", "other", "when", "step", *PLACE, "between", "divergence")


def switchable_ratios(
    source: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    compare: Sequence[str | os.PathLike[str]] = (),
    trust: bool = False,
) -> Report:
    """Write what the Switchable Norm layers of trained networks chose.

    A log folder is a version folder of ``geonorm fit``: its ``checkpoints/last.ckpt`` (else ``best.ckpt``) holds the
    network and the ratios at the end, its ``ratios.csv`` those over training. Without a checkpoint the end is the last
    logged step, and receptive fields are not known. Writes ``ratios.csv``, ``divergences.csv``, ``summary.json`` and
    pictures; infinite divergences, of hard choices that differ, are ``inf`` in the tables and null in the summary.

    Args:
        source: A checkpoint or a log folder.
        out_dir: Folder for the report; made if need be.
        compare: Further ones of the same layers, held against the first.
        trust: Load networks of any module.

    Returns:
        What ``summary.json`` holds.

    Raises:
        CheckpointError: No such file, or a network without Switchable Norm.
        InvalidConfigError: A folder without log and checkpoint, or runs whose layers do not correspond.
    """
    first, *others = runs = load_runs([source, *compare], trust=trust)
    folder = make_folder(out_dir)
    _write_csv(folder / "ratios.csv", RATIO_HEAD, (row for run in runs for row in _ratio_rows(run)))
    _write_csv(folder / "divergences.csv", DIVERGENCE_HEAD, _divergence_rows(first, others))
    report: Report = {
        "format": FORMAT,
        "version": __version__,
        "runs": [_run(run) for run in runs],
        "comparisons": [_comparison(first, other) for other in others],
        "pictures": draw_pictures(runs, folder),
    }
    (folder / "summary.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def table(report: Report) -> str:
    """Return the averages of every run as a table for the terminal."""
    pool = list(dict.fromkeys(name for run in report["runs"] for name in run["all"]["mean"]))
    head = ("run", "where", "layers", *(f"mean {k}" for k in pool), *(f"var {k}" for k in pool), "D(mean||var)")
    rows: list[tuple[str, ...]] = [(*head, "choices differ")]
    for run in report["runs"]:
        ranges = {f"RF {name} px": found for name, found in run["ranges"].items()}
        for where, found in {**ranges, **run["parts"], "all": run["all"]}.items():
            shares = [f"{found[which].get(k, 0):.2f}" for which in ("mean", "var") for k in pool]
            tail = (_number(found["divergence"]), f"{100 * found['differing']:.0f} %")
            rows.append((run["label"], where, str(found["layers"]), *shares, *tail))
    lines = [in_columns(rows)]
    for found in report["comparisons"]:
        mean, var = _number(found["all"]["mean"]), _number(found["all"]["var"])
        lines.append(f"D({found['run']}||{found['other']})  {mean} for means, {var} for variances, over all layers")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3f}"


# Tables


def _ratio_rows(run: Run) -> Iterator[tuple[object, ...]]:
    for when, step, snapshot in run.moments():
        for depth, layer in enumerate(run.layers):
            ratios = snapshot[layer.name]
            for statistic, shares in (("mean", ratios.mean), ("var", ratios.var)):
                for (group, k), ratio in np.ndenumerate(shares):
                    yield run.label, when, step, *_place(depth, layer), statistic, group, ratios.pool[k], f"{ratio:.9g}"


def _divergence_rows(first: Run, others: Sequence[Run]) -> Iterator[tuple[object, ...]]:
    """Yield the divergences within each run, then those of each further run from the first."""
    for run in (first, *others):
        for when, step, snapshot in run.moments():
            for depth, layer in enumerate(run.layers):
                value = own_divergence(snapshot[layer.name])
                yield run.label, "", when, step, *_place(depth, layer), "mean and var", f"{value:.9g}"
    for other in others:
        for depth, (one, two) in enumerate(zip(first.layers, other.ordered_like(first), strict=True)):
            for statistic, value in between_runs(one.ratios, two.ratios).items():
                yield first.label, other.label, "end", other.step, *_place(depth, one), statistic, f"{value:.9g}"


def _place(depth: int, layer: Layer) -> tuple[object, ...]:
    return depth, layer.name, layer.part, layer.receptive_px, layer.stride_px


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


# The summary


def _run(run: Run) -> dict[str, Any]:
    over_training = [(step, average(snapshot.values())) for step, snapshot in run.history.items()]
    return {
        "label": run.label,
        "source": run.source,
        "end": run.end,
        "step": run.step,
        "layers": [_layer(layer) for layer in run.layers],
        "all": _average(run.layers),
        "ranges": {name: _average(layers) for name, layers in by_range(run.layers).items()},
        "parts": {name: _average(layers) for name, layers in by_part(run.layers).items()},
        "training": [{"step": step, **_plain(found)} for step, found in over_training],
    }


def _layer(layer: Layer) -> dict[str, Any]:
    ratios = layer.ratios
    return {
        "name": layer.name,
        "part": layer.part,
        "receptive_px": layer.receptive_px,
        "stride_px": layer.stride_px,
        "pool": list(ratios.pool),
        "mean": ratios.mean.tolist(),
        "var": ratios.var.tolist(),
        "mean_choices": list(choices(ratios.mean, ratios.pool)),
        "var_choices": list(choices(ratios.var, ratios.pool)),
        "divergence": _finite(own_divergence(ratios)),
        "differing": differing_share(ratios),
    }


def _average(layers: Iterable[Layer]) -> dict[str, Any]:
    return _plain(average(layer.ratios for layer in layers))


def _plain(found: Average) -> dict[str, Any]:
    return {
        "layers": found.layers,
        "mean": found.mean,
        "var": found.var,
        "divergence": _finite(found.divergence),
        "differing": found.differing,
    }


def _comparison(first: Run, other: Run) -> dict[str, Any]:
    pairs = list(zip(first.layers, other.ordered_like(first), strict=True))
    found = {one.name: between_runs(one.ratios, two.ratios) for one, two in pairs}

    def mean_over(layers: Iterable[Layer]) -> dict[str, float | None]:
        values = [found[layer.name] for layer in layers]
        return {statistic: _finite(float(np.mean([value[statistic] for value in values]))) for statistic in values[0]}

    return {
        "run": first.label,
        "other": other.label,
        "layers": [
            {"name": name, **{key: _finite(value) for key, value in one.items()}} for name, one in found.items()
        ],
        "all": mean_over(first.layers),
        "ranges": {name: mean_over(layers) for name, layers in by_range(first.layers).items()},
        "parts": {name: mean_over(layers) for name, layers in by_part(first.layers).items()},
    }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
