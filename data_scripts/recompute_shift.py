"""Are the figures of a consistency report those of its maps? Made again with numpy, and nothing of geonorm.

    python data_scripts/recompute_shift.py OUT_DIR

Prints one line for each way of labelling and each figure that differs; ends with 1 if one does. Holds maps whole.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

Part = dict[str, Any]
"""Of the report."""
Map = Any
"""An array of numpy."""


def main(folder: Path) -> int:
    """Compare the report in a folder with its maps."""
    report = json.loads((folder / "report.json").read_text())
    checked = wrong = 0
    for run in report["runs"]:
        rest = _read(folder, run["files"]["map"])
        truth = _read(folder, run["files"]["labels"]) if run["labels"] else None
        figures: Part = {"pixels": (rest != 255).sum()}
        if truth is not None:
            figures |= _scores(rest, truth, rest != 255, run["scored_classes"], prefix="scores")
        consensus = run["corner_consensus"]
        if consensus and consensus["mean"] is not None:
            figures["corner_consensus.mean"] = _consensus(folder, consensus)
        results = [(run, figures, f"{run['model']} on {run['source']}")]
        means: list[Any] = [figures.get("scores.mean_iou")]
        for way in run["comparisons"]:
            if not way["skipped"]:
                found = _figures(folder, run, way, rest, truth)
                if way["kind"] in ("aligned", "unaligned", "core", "whole"):
                    means.append(found.get("scores.mean_iou"))
                results.append((way, found, f"{run['model']} on {run['source']}, {way['name']}"))
        if truth is not None:
            known = [mean for mean in means if mean is not None]
            figures["iou_spread"] = max(known) - min(known) if known else None
        for said, made, name in results:
            different = [key for key, value in made.items() if not _same(_get(said, key), value)]
            checked += len(made)
            wrong += len(different)
            for key in different:
                print(f"{name}: {key} is {_get(said, key)!r} in the report, {made[key]!r} on the map")
    print(f"{checked} figures made again, {wrong} differ")
    return int(wrong > 0)


def _figures(folder: Path, run: Part, way: Part, rest: Map, truth: Map | None) -> Part:
    """Return the figures of one way of labelling, by their names in the report."""
    other, flips = (_read(folder, way["files"]["map"], band) for band in (1, 2))
    change = _read(folder, way["files"]["change"]).astype(np.float64)
    here = flips != 255
    differs = here & (rest != other)
    distance = _distance(run, way)
    edges = [*way["curve"]["from_px"], math.inf]
    classes = [here & (distance >= low) & (distance < high) for low, high in itertools.pairwise(edges)]
    on, off = classes[0], here & ~classes[0]
    energy = None
    if on.any() and (differs & off).any():
        energy = (differs & on).sum() / on.sum() / ((differs & off).sum() / off.sum())
    figures = {
        "pixels": here.sum(),
        "flips": differs.sum(),
        "flips_percent": 100 * differs.sum() / max(1, here.sum()),
        "ties": (flips == 2).sum(),
        "change_max": change[here].max() if here.any() else 0.0,
        "change_mean": change[here].mean() if here.any() else 0.0,
        "seam.energy": energy,
        "seam.flips_on": (differs & on).sum(),
        "seam.pixels_on": on.sum(),
        "seam.flips_off": (differs & off).sum(),
        "seam.pixels_off": off.sum(),
        "curve.pixels": [one.sum() for one in classes],
        "curve.flips": [(one & differs).sum() for one in classes],
        "curve.change_sum": [change[one].sum() for one in classes],
        "curve.change_max": [change[one].max() if one.any() else 0.0 for one in classes],
        "iou_between_maps": [_iou(rest == k, other == k, here) for k in range(len(run["class_names"]))],
    }
    if truth is not None:
        counts = here & (truth != 255)
        right = counts & (rest == truth) & (other == truth)
        figures["consistent_and_correct_percent"] = 100 * right.sum() / counts.sum() if counts.any() else None
        figures |= _scores(other, truth, here, run["scored_classes"], prefix="scores")
        figures |= _scores(rest, truth, here, run["scored_classes"], prefix="scores_at_rest")
    return figures


def _scores(labels: Map, truth: Map, here: Map, scored: list[int], *, prefix: str) -> Part:
    counts = here & (truth != 255)
    ious = [_iou(labels == k, truth == k, counts) for k in range(max(scored, default=-1) + 1)]
    known = [iou for iou in (ious[k] for k in scored) if iou is not None]
    return {
        f"{prefix}.mean_iou": sum(known) / len(known) if known else None,
        f"{prefix}.accuracy": (labels == truth)[counts].mean() if counts.any() else None,
    }


def _distance(run: Part, way: Part) -> Map:
    """Return how far each pixel lies from the nearest border of a core of either grid, 1 beside it."""
    grids = [(run["core_px"], 0)]
    grids += [(run["core_px"], way["by_px"])] if way["kind"] in ("aligned", "unaligned") else []
    grids += [(way["by_px"], 0)] if way["kind"] == "core" else []
    axes = []
    for axis, length in enumerate((run["height"], run["width"])):
        nearest = np.full(length, np.inf)
        for core, by in grids:
            index = run["first_index"][axis] - run["grid_offset_px"][axis] - by
            for line in range(1, length):
                if (line + index) % core == 0:
                    pixels = np.arange(length)
                    nearest = np.minimum(nearest, np.where(pixels >= line, pixels - line + 1, line - pixels))
        axes.append(nearest)
    return np.minimum(axes[0][:, None], axes[1][None])


def _consensus(folder: Path, consensus: Part) -> float:
    bands = np.stack([_read(folder, consensus["files"]["map"], band) for band in (1, 2, 3, 4)])
    seen = bands[0] != 255
    return (bands == bands[:1]).all(0)[seen].mean()


def _iou(one: Map, other: Map, here: Map) -> float | None:
    union = ((one | other) & here).sum()
    return (one & other & here).sum() / union if union else None


def _read(folder: Path, name: str, band: int = 1) -> Map:
    with rasterio.open(folder / name) as dataset:
        return dataset.read(band)


def _get(content: Any, name: str) -> Any:
    for part in name.split("."):
        content = content[part]
    return content


def _same(said: Any, made: Any) -> bool:
    if isinstance(made, list):
        return len(said) == len(made) and all(map(_same, said, made))
    return said is made if made is None or said is None else math.isclose(said, made, rel_tol=1e-9, abs_tol=1e-12)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
