"""The consistency report as tables: for the terminal, as CSV, as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geonorm.evaluation.consistency_words import name_of, percent
from geonorm.evaluation.shift_maps import Report

CSV_HEAD = (
    *("model", "source", "tta", "tile_independent", "overhead", "way", "kind", "by_px", "pixels", "flips"),
    *("flips_percent", "ties", "change_max", "change_mean", "seam_energy", "iou_between_maps", "mean_iou", "accuracy"),
    *("consistent_and_correct_percent", "seconds", "skipped"),
)
KINDS = {
    "aligned": "aligned moves",
    "unaligned": "unaligned moves",
    "core": "other cores",
    "whole": "whole image",
    "crop": "crops",
    "neighbour": "tile beside",
    "train": "as in training",
}
"""Columns of the Markdown table: the most flips over all ways of a kind."""


def as_csv(report: Report) -> str:
    """Return one line for each way of labelling, the grid at rest included."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for run in report["runs"]:
        about = [run["model"], run["source"], run["tta"], run["tile_independent"], run["overhead"]]
        rest = {"name": "rest", "kind": "rest", "pixels": run["pixels"], **run}
        for way in (rest, *run["comparisons"]):
            scores, by_px = way.get("scores") or {}, way.get("by_px")
            row = [
                *about,
                way["name"],
                way["kind"],
                " ".join(map(str, by_px)) if isinstance(by_px, list) else by_px,
                *(way.get(key) for key in ("pixels", "flips", "flips_percent", "ties", "change_max", "change_mean")),
                (way.get("seam") or {}).get("energy"),
                " ".join("-" if value is None else f"{value:.6f}" for value in way.get("iou_between_maps") or []),
                scores.get("mean_iou"),
                scores.get("accuracy"),
                *(way.get(key) for key in ("consistent_and_correct_percent", "seconds", "skipped")),
            ]
            writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def as_markdown(report: Report) -> str:
    """Return a table of networks by measures for each raster; of several ways of a kind the one with most flips."""
    parts = ["# Does the map depend on the tiles?"]
    for source in dict.fromkeys(run["source"] for run in report["runs"]):
        runs = [run for run in report["runs"] if run["source"] == source]
        kinds = [kind for kind in KINDS if any(one["kind"] == kind for run in runs for one in run["comparisons"])]
        head = ["model", "IoU", *(KINDS[kind] for kind in kinds), "corner consensus", "halo", "compute"]
        rows = [[name_of(run), *_cells(run, kinds)] for run in runs]
        lines = [head, ["---"] * len(head), *rows]
        about = f"{runs[0]['height']:,} x {runs[0]['width']:,} px, {runs[0]['pixels']:,} with data, core "
        parts += [
            f"## {Path(source).name}",
            f"{about}{runs[0]['core_px']} px. Labels that differ from those of the grid at rest; of several "
            "ways of a kind the most.",
            "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines),
        ]
    return "\n\n".join(parts) + "\n"


def table(report: Report) -> str:
    """Return the report as a table for the terminal."""
    head = ("model", "raster", "way", "kind", "flips", "max change", "mean change", "IoU of maps", "seam", "halo")
    rows = [head, *(_row(run, way) for run in report["runs"] for way in run["comparisons"])]
    return in_columns(rows)


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(run: Report, way: Report) -> tuple[str, ...]:
    about = (name_of(run), Path(run["source"]).name, way["words"], way["kind"])
    halo = f"{run['halo_px']} px {run['halo_kind']}"
    if way["skipped"]:
        return (*about, "-", "-", "-", "-", "-", halo)
    energy = way["seam"]["energy"]
    return (
        *about,
        _flips(way),
        f"{way['change_max']:.2g}",
        f"{way['change_mean']:.2g}",
        "/".join("-" if value is None else f"{value:.4f}" for value in way["iou_between_maps"]),
        "-" if energy is None else f"{energy:.2f}",
        halo,
    )


def _cells(run: Report, kinds: Sequence[str]) -> list[str]:
    most = [_most(run, kind) for kind in kinds]
    consensus = run["corner_consensus"]
    return [
        _or_dash(run["scores"], lambda scores: f"{scores['mean_iou']:.4f}" if scores["mean_iou"] is not None else "-"),
        *("-" if way is None else _flips(way) for way in most),
        "-" if consensus is None or consensus["mean"] is None else f"{consensus['mean']:.4f}",
        f"{run['halo_px']} px {run['halo_kind']}",
        f"{run['overhead']:.2f} x",
    ]


def _most(run: Report, kind: str) -> Report | None:
    """Return the way of a kind with the largest share of flips."""
    ways = [way for way in run["comparisons"] if way["kind"] == kind and not way["skipped"]]
    return max(ways, key=lambda way: float(way["flips_percent"]), default=None)


def _flips(way: Report) -> str:
    """Return the share of labels that differ; a dash where none was compared."""
    return percent(100 * way["flips"] / way["pixels"]) if way["pixels"] else "-"


def _or_dash(value: Any, words: Callable[[Any], str]) -> str:
    return "-" if value is None else words(value)
