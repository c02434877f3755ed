"""How often do tiles compute a pixel, and what does a stream of rows hold? A picture of a plan and of a stream.

python benchmarks/rows_picture.py docs/pictures/rows.png

On the left how often each pixel of a raster of 3072 x 4096 px goes through the network, in tiles with the exact halo
and in rows. On the right some rows of all maps of the network, operator by operator, while an image goes by: those that
are forgotten, those that are kept, and those to come.
"""

from __future__ import annotations

import argparse
import json
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from numpy.typing import NDArray

from geonorm.models import UNet, tile_geometry
from geonorm.models.row_predictor import RowPredictor
from geonorm.norms import LocalContextNorm
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.plan import Plan

HEIGHT, WIDTH = 3072, 4096
DEPTH, WINDOW_PX = 4, 31
SEEN, STEP = 2048, 64
"""Rows of the image that have come in, and at a time."""
FORGOTTEN, KEPT, TO_COME = "#d9d9d9", "#0072b2", "#ffffff"


def main(target: Path) -> None:
    """Draw the picture."""
    network = UNet(3, 2, norm=partial(LocalContextNorm, window_px=WINDOW_PX), depth=DEPTH, width=4).eval()
    geometry = tile_geometry(network)
    assert geometry.core_halo_px is not None
    plan = Plan(height=HEIGHT, width=WIDTH, halo_px=geometry.core_halo_px, network=network_of(geometry))
    times = _times(plan)

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.8))
    in_tiles = f"Tiles of {plan.core_px} px, halo of {plan.halo_px} px:\neach pixel {times.mean():.1f} times"
    _heat(left, times, in_tiles)
    shown = _heat(middle, np.ones_like(times), "Rows:\neach pixel once")
    figure.colorbar(shown, ax=[left, middle], label="times computed", location="bottom", shrink=0.6)
    _stream(right, RowPredictor(network, geometry, torch.device("cpu")))
    figure.savefig(target, dpi=80)


def _times(plan: Plan) -> NDArray[np.float64]:
    """Return how often the network sees each pixel; what is made up beyond the raster does not count."""
    sides = []
    for axis, length in zip(plan.axes, (plan.height, plan.width), strict=True):
        seen = np.zeros(length)
        for span in axis.spans():
            for read in span.reads:
                seen[max(0, read.start) : read.stop] += 1
        sides.append(seen)
    return np.multiply.outer(*sides)


def _heat(axes: Axes, times: NDArray[np.float64], title: str) -> AxesImage:
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(times[::8, ::8], vmin=1, vmax=9, cmap="YlOrRd")


def _stream(axes: Axes, predictor: RowPredictor) -> None:
    stream = predictor.rows.stream(HEIGHT)
    with torch.no_grad():
        for _ in range(0, SEEN, STEP):
            stream.push(torch.zeros(1, 3, STEP, 32))
    strides = [Fraction(1)]
    for operator in predictor.rows.operators:
        strides.append(strides[operator.sources[0]] * operator.taps.step[0])
    for place, (stride, rows) in enumerate(zip(strides, stream.rows(), strict=True)):
        forgotten, made, height = (float(row * stride) for row in rows)
        for first, end, color in ((0, forgotten, FORGOTTEN), (forgotten, made, KEPT), (made, height, TO_COME)):
            axes.bar(place, end - first, bottom=first, width=1.0, color=color, linewidth=0)
    axes.set_ylim(SEEN + 2 * STEP, SEEN - 8 * STEP)
    axes.set_xlim(-1, len(strides))
    axes.axhline(SEEN, color="#d55e00", linewidth=1)
    axes.text(len(strides) - 1, SEEN + STEP / 2, "the image has been read so far", color="#d55e00", ha="right")
    title = f"U-Net of depth {DEPTH}, windows of {WINDOW_PX} px:\nthe rows of its maps that are kept"
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("operators, from the image (left) to the logits (right)")
    axes.set_ylabel("row of the image")
    axes.legend(
        handles=[
            Patch(facecolor=FORGOTTEN, label="computed, and forgotten"),
            Patch(facecolor=KEPT, label="kept"),
            Patch(facecolor=TO_COME, edgecolor="#999999", label="to come"),
        ],
        fontsize=8,
        loc="upper right",
    )


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _parser.add_argument("target", nargs="?", type=Path)
    _options = _parser.parse_args(sys.argv[1:])
    if _options.target is None:
        print(json.dumps({"benchmark": "rows_picture", "skipped": "give a picture to write"}))
    else:
        main(_options.target)
