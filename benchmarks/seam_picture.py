"""What does the map look like where four tiles meet: with Group Norm and no halo, and with an exact halo?

python benchmarks/seam_picture.py demo/large.tif seams.png --checkpoints GN.ckpt LCN.ckpt

Labels the raster with every checkpoint, the first without a halo, the others with an exact one, and draws the square
around the tile corner where the first map differs most from its own whole-image pass: the image, the whole-image pass
and the tiled map of each network at 1:1, what differs in red, borders of the cores as lines. `geonorm demo` makes
a raster and checkpoints.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geonorm.inference.halo import Halo
from geonorm.inference.job import as_trained, prepare
from geonorm.raster.read import open_raster
from geonorm.raster.window import Window

ZOOM = 3  # screen pixels for each pixel of the map


@dataclass(frozen=True)
class Maps:
    """Labels of one network, (H, W)."""

    title: str
    whole: NDArray[np.uint8]
    tiled: NDArray[np.uint8]


def main(source: str, target: Path, checkpoints: list[str], core_px: int, side_px: int) -> None:
    """Draw the picture."""
    maps = []
    for number, checkpoint in enumerate(checkpoints):
        halo: Halo = "exact" if number else 0
        with open_raster(source) as reader, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that labels depend on the tiles is what is to be seen
            job = prepare(as_trained(checkpoint), reader, core_px=core_px, halo=halo)
            tiled = np.concatenate([strip.output.numpy() for strip in job.strips(progress=True)])
            whole = job.whole().output.numpy()
            image = reader.read(Window(0, 0, reader.grid.height, reader.grid.width)).values[:3].transpose(1, 2, 0)
        rows, cols = ([span.core_start for span in axis.spans()][1:] for axis in job.plan.axes)
        norm = str(job.model.norm_path.get("class_path", "")).rpartition(".")[-1]
        maps.append(Maps(f"{norm}, halo {job.plan.halo_px} px", whole, tiled))
        print(json.dumps({"norm": norm, "halo_px": job.plan.halo_px, "differ": int((tiled != whole).sum())}))
    row, col = worst_corner(maps[0].tiled != maps[0].whole, rows, cols, side_px)
    draw(target, image, maps, Window(row, col, side_px, side_px), rows, cols)


def worst_corner(differs: NDArray[np.bool_], rows: list[int], cols: list[int], side_px: int) -> tuple[int, int]:
    """Return the upper left pixel of the square around the tile corner where most labels differ."""
    height, width = differs.shape
    squares = [
        (min(max(0, row - side_px // 2), height - side_px), min(max(0, col - side_px // 2), width - side_px))
        for row in rows
        for col in cols
    ]
    return max(squares, key=lambda at: int(differs[at[0] : at[0] + side_px, at[1] : at[1] + side_px].sum()))


def draw(
    target: Path, image: NDArray[np.uint8], maps: list[Maps], window: Window, rows: list[int], cols: list[int]
) -> None:
    """Draw image and maps of a window, a row for each network."""
    at = np.s_[window.row : window.row_end, window.col : window.col_end]
    side_in = ZOOM * window.width / 100
    figure = Figure(figsize=(4 * side_in, len(maps) * (side_in + 0.35)), layout="constrained")
    axes = figure.subplots(len(maps), 4, squeeze=False)
    for line, one in zip(axes, maps, strict=True):
        whole, tiled = one.whole[at], one.tiled[at]
        wrong = int((whole != tiled).sum())
        colors = np.array([[32, 32, 40], [255, 196, 0]], dtype=np.uint8)
        panels = (
            ("image", image[at]),
            (f"{one.title}: whole image at once", colors[whole]),
            ("in tiles", colors[tiled]),
            (f"{wrong:,} pixels differ", np.where((whole != tiled)[..., None], (214, 20, 20), colors[whole] // 3)),
        )
        for axis, (title, pixels) in zip(line, panels, strict=True):
            axis.imshow(pixels, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
            for row in rows:
                if window.row < row < window.row_end:
                    axis.axhline(row - window.row - 0.5, color="white", linewidth=0.8, linestyle=(0, (4, 4)))
            for col in cols:
                if window.col < col < window.col_end:
                    axis.axvline(col - window.col - 0.5, color="white", linewidth=0.8, linestyle=(0, (4, 4)))
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="raster to label")
    parser.add_argument("target", type=Path, help="picture to write")
    parser.add_argument("--checkpoints", nargs="+", required=True, help="the first one gets no halo")
    parser.add_argument("--core-px", type=int, default=256)
    parser.add_argument("--side-px", type=int, default=160, help="side of the square to draw")
    options = parser.parse_args()
    main(options.source, options.target, options.checkpoints, options.core_px, options.side_px)
