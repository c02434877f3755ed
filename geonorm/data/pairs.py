"""An image and its labels on disk, read by windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import DatasetError
from geonorm.raster.read import Grid, Pixels, Reader, open_raster
from geonorm.raster.window import Window


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The files of one scene."""

    image: str
    """Path of the image."""
    labels: str
    """Path of its labels: one band on the same grid."""
    group: str
    """What scores are summed over beside the whole: the city."""

    @property
    def name(self) -> str:
        """Name of the image file without its suffix."""
        return Path(self.image).stem


class OpenPair:
    """An open image with its labels."""

    def __init__(self, pair: Pair, image: Reader, labels: Reader) -> None:
        self.pair = pair
        self._image = image
        self._labels = labels
        if (image.grid.height, image.grid.width) != (labels.grid.height, labels.grid.width):
            raise DatasetError(
                f"{pair.labels} is {labels.grid.height} x {labels.grid.width} pixels, but its image {pair.image} is "
                f"{image.grid.height} x {image.grid.width}. Labels must lie on the grid of their image."
            )

    @property
    def grid(self) -> Grid:
        """The grid of the image."""
        return self._image.grid

    def read(self, window: Window) -> Pixels:
        """Return the image inside ``window``."""
        return self._image.read(window)

    def read_labels(self, window: Window) -> NDArray[np.uint8]:
        """Return the labels inside ``window``, ``(rows, cols)``: 0 and 1 from masks of 0/255 or 0/1."""
        labels = self._labels.read(window).values[0]
        wrong = ~np.isin(labels, (0, 1, IGNORE_LABEL))
        if wrong.any():
            raise DatasetError(
                f"{self.pair.labels} holds the value {labels[wrong][0]}; a building mask holds 0 and 255, or 0 and 1."
            )
        return (labels > 0).astype(np.uint8)


@contextmanager
def open_pair(pair: Pair, *, bands: Sequence[int]) -> Iterator[OpenPair]:
    """Open both files of a pair for reading."""
    with open_raster(pair.image, bands=bands) as image, open_raster(pair.labels, bands=[1]) as labels:
        yield OpenPair(pair, image, labels)
