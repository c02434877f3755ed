"""Pictures of where labels flip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from geonorm.raster.read import read_overview

LONGEST_SIDE = 1024
"""Cells along the longer side of a picture."""


class FlipPicture:
    """Flips and labels of a raster, summed over square cells so that a picture of any raster stays small."""

    def __init__(self, height: int, width: int, titles: Sequence[str]) -> None:
        self.cell_px = max(1, -(-max(height, width) // LONGEST_SIDE))
        shape = (-(-height // self.cell_px), -(-width // self.cell_px))
        self.titles = list(titles)
        self.flips = np.zeros((len(titles), *shape))
        self.labels = np.zeros(shape)
        self._valid = np.zeros(shape)

    def add_rows(self, row: int, labels: Sequence[Tensor], valid: Tensor) -> None:
        """Count the rows from ``row`` on: labels ``(rows, W)`` of the grid at rest and of every moved one."""
        base, *others = labels
        for which, other in enumerate(others):
            self.add(which, row, (base != other) & valid)
        self.add_labels(row, base, valid)

    def add(self, which: int, row: int, flipped: Tensor) -> None:
        """Count flips, bool ``(rows, W)``, of the rows from ``row`` on."""
        self._sum(self.flips[which], row, flipped)

    def add_labels(self, row: int, labels: Tensor, valid: Tensor) -> None:
        """Count the labels above 0 of the rows from ``row`` on."""
        self._sum(self.labels, row, (labels > 0) & valid)
        self._sum(self._valid, row, valid)

    def label_share(self) -> NDArray[np.float64]:
        """Return the share of pixels of each cell whose label is above 0; NaN where there is no data."""
        return np.where(self._valid > 0, self.labels / np.maximum(self._valid, 1), np.nan)

    def _sum(self, cells: NDArray[np.float64], row: int, pixels: Tensor) -> None:
        rows, cols = np.nonzero(torch.as_tensor(pixels).numpy())
        np.add.at(cells, ((rows + row) // self.cell_px, cols // self.cell_px), 1)


def draw_flips(picture: FlipPicture, target: Path, *, source: str | os.PathLike[str], title: str) -> None:
    """Write a PNG: the image, its labels, and for each moved grid the pixels whose label flipped, in red."""
    image = read_overview(source, longest_side=LONGEST_SIDE)
    panels = 2 + len(picture.titles)
    height, width = picture.labels.shape
    across = panels if height >= width else min(2, panels)
    down = -(-panels // across)
    size = 5.0
    figure = Figure(figsize=(size * across, size * down * height / width + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = np.ravel(figure.subplots(down, across, squeeze=False))
    extent = (0, width * picture.cell_px, height * picture.cell_px, 0)
    axes[0].imshow(image, extent=extent)
    axes[0].set_title("image")
    axes[1].imshow(picture.label_share(), vmin=0, vmax=1, cmap="magma", extent=extent, interpolation="nearest")
    axes[1].set_title("labels above 0")
    for which, name in enumerate(picture.titles):
        axis = axes[2 + which]
        axis.imshow(_with_flips(image, picture.flips[which] > 0), extent=extent, interpolation="nearest")
        axis.set_title(f"{name}: {int(picture.flips[which].sum()):,} flips")
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(target, dpi=110)


def _with_flips(image: NDArray[np.uint8], flipped: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the image in faint grey with the flipped cells in red, at the cells' resolution."""
    rows = np.linspace(0, image.shape[0] - 1, flipped.shape[0]).round().astype(int)
    cols = np.linspace(0, image.shape[1] - 1, flipped.shape[1]).round().astype(int)
    grey = 160 + image[rows][:, cols].mean(-1, keepdims=True) * 0.35
    return np.where(flipped[..., None], np.array([214, 20, 20]), grey).astype(np.uint8)
