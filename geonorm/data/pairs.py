"""An image and its labels on disk, read by windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from geonorm.data.labels import BUILDINGS, LabelRules, OpenLabels, open_labels
from geonorm.raster.facts import RasterFacts, facts_of
from geonorm.raster.read import Grid, NodataRule, Pixels, Reader, open_raster
from geonorm.raster.window import Window


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The files of one scene, and how they are read."""

    image: str
    """Path of the image."""
    labels: str
    """Path of its labels: a raster, or a file of polygons."""
    group: str = ""
    """What scores are summed over beside the whole: the city."""
    bands: tuple[int, ...] = (1, 2, 3)
    """Bands of the image, counted from 1, in the order the model takes them."""
    bands_chosen: bool = False
    """Whether these bands were named, so that others are left out on purpose."""
    rules: LabelRules = BUILDINGS
    """What the values of the labels mean."""
    nodata: float | None = None
    """Value of the image without data, beside what it declares."""
    nodata_rule: NodataRule = "all"
    """A pixel has no data where ``"all"`` or ``"any"`` of its bands have none."""

    @property
    def name(self) -> str:
        """Name of the image file without its suffix."""
        return Path(self.image).stem

    def to(self, *args: Any, **options: Any) -> Self:
        """Return the pair as it is: Lightning moves what batches hold to the device, and would take it apart."""
        return self


def draw_names(names: Iterable[str], count: int, *, seed: int) -> set[str]:
    """Return so many names drawn at random, the same whatever their order."""
    return {*np.random.default_rng(seed).permutation(sorted(names))[:count].tolist()}


class OpenPair:
    """An open image with its labels."""

    def __init__(self, pair: Pair, image: Reader, labels: OpenLabels) -> None:
        self.pair = pair
        self._image = image
        self._labels = labels

    @property
    def image(self) -> Reader:
        """The image."""
        return self._image

    @property
    def grid(self) -> Grid:
        """The grid of the image."""
        return self._image.grid

    @property
    def facts(self) -> RasterFacts:
        """What the header of the image says."""
        return facts_of(self._image)

    @property
    def block_shape(self) -> tuple[int, int]:
        """Rows and columns of the blocks in which the image is stored."""
        return self._image.block_shape

    @property
    def labels(self) -> OpenLabels:
        """The labels, on the grid of the image."""
        return self._labels

    def read(self, window: Window) -> Pixels:
        """Return the image inside ``window``."""
        return self._image.read(window)

    def read_labels(self, window: Window) -> NDArray[np.uint8]:
        """Return the labels inside ``window``, ``(rows, cols)``."""
        return self._labels.read(window)


@contextmanager
def open_pair(pair: Pair) -> Iterator[OpenPair]:
    """Open both files of a pair for reading.

    Raises:
        RasterError: One of them cannot be read.
        DatasetError: They do not fit together.
    """
    with (
        open_raster(pair.image, bands=pair.bands, nodata_rule=pair.nodata_rule, nodata=pair.nodata) as image,
        open_labels(pair.labels, pair.rules, image) as labels,
    ):
        yield OpenPair(pair, image, labels)
