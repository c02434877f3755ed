"""Corner consensus: do four tiles that see the same square from its four corners agree on it?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from geonorm.evaluation.measures import corner_consensus
from geonorm.inference.job import Job
from geonorm.raster.read import RasterSource
from geonorm.raster.window import Window
from geonorm.tiling.engine import labels_of

SIZE_PX, PADDING_PX = 128, 64
"""Those of the Fields of the World tools."""
MOST_PATCHES = 64
"""Patches of a raster that are looked at, spread evenly."""


@dataclass(frozen=True)
class Square:
    """The middle of a patch, as four tiles see it."""

    window: Window
    labels: Tensor
    """By the tiles to the upper left, upper right, lower left and lower right, ``(4, h, w)``, uint8."""

    @property
    def consensus(self) -> float:
        """Share of pixels that all four agree on."""
        return corner_consensus(self.labels)


def why_not(job: Job) -> str | None:
    """Return why corner consensus is not defined for a network, None where it is."""
    side, network = SIZE_PX + PADDING_PX, job.plan.network
    if network.margin_px:
        return "the network gives less than it reads (valid convolutions), and the measure is defined for others"
    if network.side_px(side) != side:
        return f"the network does not take tiles of {side} px"
    if min(job.plan.height, job.plan.width) < 2 * SIZE_PX:
        return f"the raster is smaller than {2 * SIZE_PX} px"
    return None


def squares(job: Job, reader: RasterSource, *, most: int = MOST_PATCHES) -> Iterator[Square]:
    """Yield the middles of patches of ``2 * SIZE_PX`` pixels a side, those with a pixel without data left out.

    Tiles get the pixels of the crop and nothing beside it, as in the Fields of the World tools.

    Args:
        job: Of a network for which `why_not` has nothing to say.
        reader: A reader of the raster.
        most: Patches to look at.
    """
    patch, crop = 2 * SIZE_PX, SIZE_PX + PADDING_PX
    places = [
        (row, col)
        for row in range(0, job.plan.height - patch + 1, patch)
        for col in range(0, job.plan.width - patch + 1, patch)
    ]
    step = max(1.0, len(places) / most)
    for index in range(min(most, len(places))):
        row, col = places[int(index * step)]
        pixels = reader.read(Window(row, col, patch, patch))
        if not (pixels.valid.all() and pixels.value_valid.all()):
            continue
        image = torch.from_numpy(pixels.values.astype("float32"))[None]
        near, far = slice(0, crop), slice(patch - crop, patch)
        crops = [image[..., rows, cols] for rows in (near, far) for cols in (near, far)]
        labels = labels_of(job.predict(torch.cat(crops)))
        inner, outer = slice(patch - crop, crop), slice(0, 2 * PADDING_PX)
        parts = [labels[index, rows, cols] for index, (rows, cols) in enumerate(_pairs(inner, outer))]
        middle = Window(row + patch - crop, col + patch - crop, 2 * PADDING_PX, 2 * PADDING_PX)
        yield Square(middle, torch.stack(parts).cpu())


def _pairs(inner: slice, outer: slice) -> list[tuple[slice, slice]]:
    """Return where the square lies in the crops to the upper left, upper right, lower left and lower right."""
    return [(rows, cols) for rows in (inner, outer) for cols in (inner, outer)]
