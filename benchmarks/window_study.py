"""Which window for Local Context Norm? Accuracy, exact halo and compute, from a comparison of windows.

    geonorm compare OUT --config configs/paper/inria-val.yaml --budget small --config configs/study/windows.yaml
    python benchmarks/window_study.py OUT windows.png

Prints a table and draws a picture: IoU in each pool of cities, and pixels computed for each that is written.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geonorm.tasks.checkpoint import load_model

POOLS = ("seen cities", "unseen cities")
CORES_PX = (512, 1024)


class Row(NamedTuple):
    """One norm: IoU of each seed in each pool, exact halo in pixels (None: there is none), compute for each core."""

    norm: str
    iou: dict[str, list[float]]
    halo_px: int | None
    compute: tuple[float, ...]

    @property
    def window(self) -> tuple[int, str] | None:
        """Size and unit of the window, as in the name `LCN 31 px`."""
        words = self.norm.split()
        return (int(words[1]), words[2]) if len(words) == 3 else None


def main(out_dir: str, picture: str) -> None:
    """Print the table and write the picture."""
    rows = sorted(_rows(Path(out_dir)), key=lambda row: (row.window is None, row.window and row.window[::-1]))
    print("| norm | " + " | ".join(POOLS) + " | exact halo | " + " | ".join(f"core {core}" for core in CORES_PX) + " |")
    print("|---" * (3 + len(POOLS) + len(CORES_PX) - 1) + "|")
    for row in rows:
        cells = [row.norm, *(" / ".join(f"{value:.1f}" for value in row.iou[pool]) for pool in POOLS)]
        cells += ["none"] if row.halo_px is None else [f"{row.halo_px} px"]
        print("| " + " | ".join([*cells, *(f"{times:.1f} x" for times in row.compute)]) + " |")
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_accuracy(left, rows)
    _draw_compute(right, rows)
    figure.savefig(picture, dpi=110)


def _rows(folder: Path) -> list[Row]:
    with (folder / "runs.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["figure"] == "iou" and line["part"] in POOLS]
    rows = []
    for norm in dict.fromkeys(line["norm"] for line in lines):
        iou = {
            pool: [100 * float(r["value"]) for r in lines if (r["norm"], r["part"]) == (norm, pool)] for pool in POOLS
        }
        checkpoints = (folder / "runs" / norm).glob("seed_*/lightning_logs/version_*/checkpoints/last.ckpt")
        geometry = load_model(min(checkpoints)).geometry
        halo = geometry.core_halo_px
        compute = tuple(((core + 2 * halo) / core) ** 2 for core in CORES_PX) if halo is not None else ()
        rows.append(Row(norm, iou, halo, compute))
    return rows


def _draw_accuracy(axes: Axes, rows: Sequence[Row]) -> None:
    for pool, colour in zip(POOLS, ("tab:blue", "tab:orange"), strict=True):
        for unit, line in (("px", "-"), ("cells", "--")):
            some = [row for row in rows if row.window and row.window[1] == unit]
            sizes = [row.window[0] for row in some if row.window]
            label = f"{pool}, window in {unit}"
            axes.plot(
                sizes, [statistics.mean(row.iou[pool]) for row in some], line, color=colour, marker="o", label=label
            )
            for row, size in zip(some, sizes, strict=True):
                axes.plot([size] * len(row.iou[pool]), row.iou[pool], ".", color=colour, alpha=0.5)
        for row, style in zip([row for row in rows if row.window is None], (":", "-."), strict=False):
            mean = statistics.mean(row.iou[pool])
            axes.axhline(mean, linestyle=style, color=colour, linewidth=1, label=f"{pool}, {row.norm}")
    axes.set_xscale("log", base=2)
    axes.set_xticks([15, 31, 63, 127, 255], ["15", "31", "63", "127", "255"])
    axes.set_xlabel("side of the window")
    axes.set_ylabel("IoU of buildings, %")
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=4, fontsize=7)


def _draw_compute(axes: Axes, rows: Sequence[Row]) -> None:
    for place, (core, colour) in enumerate(zip(CORES_PX, ("tab:green", "tab:purple"), strict=True)):
        for unit, line in (("px", "-"), ("cells", "--")):
            some = [row for row in rows if row.window and row.window[1] == unit]
            sizes = [row.window[0] for row in some if row.window]
            label = f"core {core} px, window in {unit}"
            axes.plot(sizes, [row.compute[place] for row in some], line, color=colour, marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([15, 31, 63, 127, 255], ["15", "31", "63", "127", "255"])
    axes.set_yticks([1, 2, 4, 10, 20, 50, 100], ["1", "2", "4", "10", "20", "50", "100"])
    axes.set_xlabel("side of the window")
    axes.set_ylabel("pixels computed for each written, exact halo")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(
            json.dumps(
                {"benchmark": "window_study", "skipped": "give the folder of a comparison and a picture to write"}
            )
        )
    else:
        main(*sys.argv[1:])
