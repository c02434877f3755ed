"""The scores and costs of a comparison's trainings: of each run, and of each norm over its seeds."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geonorm.errors import InvalidConfigError, name_some
from geonorm.evaluation.comparison_plan import Run
from geonorm.tasks.record import COST_FILE, SCORE_FILE
from geonorm.tasks.scores import iou_of

OVERALL = "overall"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one training reached and took."""

    norm: str
    seed: int
    iou: Mapping[str, float]
    """IoU, the mean over the scored classes, of each group, each pool and `OVERALL`; 0 to 1, NaN where none occurs."""
    accuracy: Mapping[str, float]
    """Share of the pixels that are right, likewise."""
    class_iou: Mapping[str, float]
    """IoU of each scored class over all groups."""
    parameters: int
    seconds_per_step: float | None
    peak_memory_bytes: int | None
    steps: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean and deviation over the seeds of one norm."""

    norm: str
    runs: tuple[Result, ...]

    def spread(self, value: Callable[[Result], float | None]) -> tuple[float, float]:
        """Return the mean and the sample deviation (NaN for a single seed) of a figure of each run."""
        found = [one for one in map(value, self.runs) if one is not None and not math.isnan(one)]
        if not found:
            return math.nan, math.nan
        return statistics.mean(found), statistics.stdev(found) if len(found) > 1 else math.nan


def gather(runs: Sequence[Run], pools: Mapping[str, Sequence[str]]) -> list[Summary]:
    """Return the results of the finished trainings, norm by norm in their order.

    Raises:
        InvalidConfigError: A pool names a group that nothing was scored for.
    """
    results = [read_result(run, pools) for run in runs if (run.folder / SCORE_FILE).is_file()]
    names = dict.fromkeys(result.norm for result in results)
    return [Summary(norm=name, runs=tuple(one for one in results if one.norm == name)) for name in names]


def read_result(run: Run, pools: Mapping[str, Sequence[str]]) -> Result:
    """Return what a finished training left in its folder."""
    scores = json.loads((run.folder / SCORE_FILE).read_text(encoding="utf-8"))
    cost = json.loads((run.folder / COST_FILE).read_text(encoding="utf-8"))
    groups = {name: torch.tensor(counts) for name, counts in scores["counts"].items()}
    parts = dict(groups) if len(groups) > 1 else {}
    for pool, members in pools.items():
        unknown = [name for name in members if name not in groups]
        if unknown:
            raise InvalidConfigError(
                f"compare.pools: {pool} names {name_some(unknown)}; there are scores for {name_some([*groups], 12)}."
            )
        parts[pool] = torch.stack([groups[name] for name in members]).sum(0)
    parts[OVERALL] = torch.stack([*groups.values()]).sum(0)
    scored = scores["scored_classes"]
    each = iou_of(parts[OVERALL])
    return Result(
        norm=run.norm,
        seed=run.seed,
        iou={name: iou_of(counts)[scored].nanmean().item() for name, counts in parts.items()},
        accuracy={name: _accuracy(counts) for name, counts in parts.items()},
        class_iou={scores["class_names"][one]: each[one].item() for one in scored},
        parameters=cost["parameters"],
        seconds_per_step=cost["seconds_per_step"],
        peak_memory_bytes=cost["peak_memory_bytes"],
        steps=cost["steps"],
    )


def markdown(summaries: Sequence[Summary], *, missing: Sequence[Run] = ()) -> str:
    """Return the tables: scores in the layout of the LCN paper's Tables 7 and 8, classes, and what it took."""
    if not summaries:
        return "No training is finished yet.\n"
    first = summaries[0].runs[0]
    parts = list(first.iou)
    blocks = [_scores(summaries, parts)]
    if len(first.class_iou) > 1:
        blocks.append(_classes(summaries, list(first.class_iou)))
    blocks.append(_costs(summaries))
    seeds = sorted({run.seed for summary in summaries for run in summary.runs})
    said = f"Percent, from summed pixel counts; mean ± sample deviation over the seeds {', '.join(map(str, seeds))}."
    if len(seeds) == 1:
        said = f"Percent, from summed pixel counts; one seed ({seeds[0]}), so nothing is known of the spread."
    if missing:
        said += f" Missing: {name_some([run.name for run in missing], 8)}."
    return "\n\n".join([*blocks, said]) + "\n"


def write_tables(summaries: Sequence[Summary], folder: Path, *, missing: Sequence[Run] = ()) -> list[Path]:
    """Write ``table.md``, ``summary.csv`` (a line for each norm and figure) and ``runs.csv`` (for each run)."""
    (folder / "table.md").write_text(markdown(summaries, missing=missing), encoding="utf-8")
    with (folder / "runs.csv").open("w", encoding="utf-8", newline="") as file:
        runs = csv.writer(file)
        runs.writerow(["norm", "seed", "figure", "part", "value"])
        for summary in summaries:
            for one in summary.runs:
                runs.writerows([one.norm, one.seed, *row] for row in _figures(one))
    with (folder / "summary.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["norm", "figure", "part", "mean", "deviation", "seeds"])
        for summary in summaries:
            for at, (figure, part, _) in enumerate(_figures(summary.runs[0])):
                mean, deviation = summary.spread(lambda run, at=at: _figures(run)[at][2])  # type: ignore[misc]
                table.writerow([summary.norm, figure, part, mean, deviation, len(summary.runs)])
    return [folder / name for name in ("table.md", "summary.csv", "runs.csv")]


def _figures(run: Result) -> list[tuple[str, str, float | None]]:
    return [
        *(("iou", part, value) for part, value in run.iou.items()),
        *(("accuracy", part, value) for part, value in run.accuracy.items()),
        *(("class_iou", name, value) for name, value in run.class_iou.items()),
        ("parameters", "", run.parameters),
        ("steps", "", run.steps),
        ("seconds_per_step", "", run.seconds_per_step),
        ("peak_memory_bytes", "", run.peak_memory_bytes),
    ]


def _scores(summaries: Sequence[Summary], parts: Sequence[str]) -> str:
    several = len(summaries[0].runs[0].class_iou) > 1
    head = ["Method"]
    for part in parts:
        head += [f"{part} {'mIoU' if several else 'IoU'}", f"{part} Acc."]
    rows = [
        [
            summary.norm,
            *(
                _percent(summary.spread(lambda run, of=of, part=part: getattr(run, of)[part]))  # type: ignore[misc]
                for part in parts
                for of in ("iou", "accuracy")
            ),
        ]
        for summary in summaries
    ]
    return _table(head, rows)


def _classes(summaries: Sequence[Summary], names: Sequence[str]) -> str:
    rows = [
        [
            summary.norm,
            *(_percent(summary.spread(lambda run, name=name: run.class_iou[name])) for name in names),  # type: ignore[misc]
        ]
        for summary in summaries
    ]
    return _table(["Method", *(f"IoU {name}" for name in names)], rows)


def _costs(summaries: Sequence[Summary]) -> str:
    rows = []
    for summary in summaries:
        seconds, seconds_spread = summary.spread(lambda run: run.seconds_per_step)
        memory, _ = summary.spread(lambda run: run.peak_memory_bytes)
        spread = "" if math.isnan(seconds_spread) else f" ± {seconds_spread:.2g}"
        rows.append(
            [
                summary.norm,
                f"{summary.runs[0].parameters:,}",
                f"{summary.runs[0].steps:,}",
                "-" if math.isnan(seconds) else f"{seconds:.3g}{spread}",
                "-" if math.isnan(memory) else f"{memory / 2**30:.2f}",
            ]
        )
    return _table(["Method", "parameters", "steps", "s per step", "peak memory (GiB)"], rows)


def _accuracy(counts: Tensor) -> float:
    return (counts.diagonal().sum() / counts.sum()).item()


def _percent(spread: tuple[float, float]) -> str:
    mean, deviation = spread
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.2f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.2f}")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
