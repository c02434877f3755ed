"""What the values of a label file mean, and the labels that follow from them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import shapely  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray

from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import MOST_NAMES, DatasetError, InvalidConfigError, name_some
from geonorm.raster.area import Area, AreaMissesError, AreaOnGrid
from geonorm.raster.facts import RasterFacts, facts_of
from geonorm.raster.footprint import footprint
from geonorm.raster.grid import Grid
from geonorm.raster.mosaic import same_grid
from geonorm.raster.read import RasterSource, Reader, open_raster
from geonorm.raster.warped import Warped
from geonorm.raster.window import Window

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".parquet")

Value = float | str


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """What the values of a label file mean.

    Raises:
        InvalidConfigError: A value is given twice, or a class has none.
    """

    classes: tuple[tuple[Value, ...], ...]
    """The values of class 0, 1, ...; in a vector file those of ``attribute``."""
    ignored: tuple[Value, ...] = ()
    """Values that no loss and no score counts."""
    ignore_others: bool = False
    """Whether values that are not named are ignored, too, instead of being an error."""
    attribute: str | None = None
    """Of a vector file, whose missing values are ``""``; where None, every polygon is of class ``shapes``."""
    layer: str | None = None
    """Of a vector file with several."""
    shapes: int = 1
    """Class of the polygons of a vector file without ``attribute``."""
    background: int = 0
    """Class of the pixels under no polygon; `IGNORE_LABEL` leaves them out."""
    any_grid: bool = False
    """Whether a raster may lie on another grid than its image; it is brought to it by the nearest."""

    def __post_init__(self) -> None:
        values = [*self.ignored, *(value for values in self.classes for value in values)]
        doubles = sorted({str(value) for value in values if values.count(value) > 1})
        if doubles:
            raise InvalidConfigError(f"each value means one class, got {name_some(doubles)} twice.")
        for name in ("shapes", "background"):
            label = getattr(self, name)
            if not (0 <= label < len(self.classes) or (name == "background" and label == IGNORE_LABEL)):
                raise InvalidConfigError(f"{name} must be a class from 0 to {len(self.classes) - 1}, got {label}.")

    def labels_of(self, values: NDArray[np.generic], valid: NDArray[np.bool_], *, name: str) -> NDArray[np.uint8]:
        """Return the label of each value; `IGNORE_LABEL` where there is none.

        Args:
            values: As they are in the file.
            valid: Where the file has values; a value that is named counts even where it has none.
            name: The file, for messages.

        Raises:
            DatasetError: A value means nothing.
        """
        labels, unknown = self.counted(values, valid)
        if unknown:
            raise DatasetError(self.unknown_in_words(unknown, name=name))
        return labels

    def counted(
        self, values: NDArray[np.generic], valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.uint8], dict[Value, int]]:
        """Return the label of each value, and how many pixels have which value that means nothing; see `labels_of`."""
        if values.dtype in (np.uint8, np.uint16):
            image = _table(self, values.dtype.str)[values]
        else:
            found, places = np.unique(values, return_inverse=True)
            image = np.array([self._label_of(value) for value in found.tolist()], dtype=np.int16)[places]
            image = image.reshape(values.shape)
        unknown: dict[Value, int] = {}
        strange = (image < 0) & valid
        if not self.ignore_others and strange.any():
            wrong, times = np.unique(values[strange], return_counts=True)
            unknown = dict(zip(wrong.tolist(), times.tolist(), strict=True))
        return np.where(image < 0, IGNORE_LABEL, image).astype(np.uint8), unknown

    def unknown_in_words(self, unknown: Mapping[Value, int], *, name: str) -> str:
        """Return what is wrong with a file in which values mean nothing."""
        several = sum(unknown.values()) > 0  # how often is not known of the values of an attribute
        values = [
            f"{_short(value)} ({times} pixel{'s' * (times != 1)})" if several else repr(_short(value))
            for value, times in unknown.items()
        ]
        hint = "Correct the labels, or name it in classes or ignored (RastersDataModule)."
        if any(isinstance(value, float) and not value.is_integer() for value in unknown):
            hint = "Fractions come of labels that were resampled: use the nearest pixel."
        return f"{name} holds the value {name_some(values, MOST_NAMES)}; {self.in_words()} {hint}"

    def label_of(self, value: Value, *, name: str) -> int:
        """Return the label of one value; see `labels_of`."""
        label = self._label_of("" if value is None else value)
        if label < 0 and not self.ignore_others:
            raise DatasetError(self.unknown_in_words({value: 0}, name=name))
        return IGNORE_LABEL if label < 0 else label

    def knows(self, value: Value | None) -> bool:
        """Whether a value means a class, or to be ignored."""
        return self._label_of("" if value is None else value) >= 0

    def in_words(self) -> str:
        """Return which values mean what."""
        classes = ", ".join(
            f"{' or '.join(map(_short, values))} is class {label}" for label, values in enumerate(self.classes)
        )
        ignored = f", {' and '.join(map(_short, self.ignored))} ignored" if self.ignored else ""
        return f"{classes}{ignored}."

    def _label_of(self, value: Value) -> int:
        """Return the label of a value, -1 where it has none."""
        for label, values in enumerate(self.classes):
            if value in values:
                return label
        return IGNORE_LABEL if value in self.ignored else -1


@lru_cache(maxsize=16)
def _table(rules: LabelRules, dtype: str) -> NDArray[np.int16]:
    """Return the label of every value of a small type, -1 where it has none."""
    return np.array([rules._label_of(value) for value in range(np.iinfo(dtype).max + 1)], dtype=np.int16)


BUILDINGS = LabelRules(classes=((0,), (1, 255)))
"""Masks of 0/255 or 0/1."""


class OpenLabels(Protocol):
    """An open label file."""

    facts: RasterFacts | None
    """What the header of a raster says; None of polygons."""
    own_grid: Grid | None
    """Where the pixels of a raster lie; None of polygons."""

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the labels inside a window of the image, ``(rows, cols)``; `IGNORE_LABEL` where there are none."""

    def counted(self, window: Window) -> tuple[NDArray[np.uint8], dict[Value, int]]:
        """Return the same, and how many pixels have which value that means nothing, instead of raising."""


class RasterLabels:
    """Labels of a raster on the grid of its image."""

    def __init__(self, source: Reader, rules: LabelRules) -> None:
        self.facts: RasterFacts | None = facts_of(source)
        self.own_grid: Grid | None = source.grid
        self._source = source
        self._rules = rules

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the labels inside a window."""
        pixels = self._source.read(window)
        return self._rules.labels_of(pixels.values[0], pixels.valid, name=self._source.path)

    def counted(self, window: Window) -> tuple[NDArray[np.uint8], dict[Value, int]]:
        """Return the labels inside a window, and which values mean nothing."""
        pixels = self._source.read(window)
        return self._rules.counted(pixels.values[0], pixels.valid)


class WarpedLabels:
    """Labels of a raster on another grid than its image, by the nearest."""

    def __init__(self, source: Warped, rules: LabelRules, facts: RasterFacts, own_grid: Grid) -> None:
        self.facts: RasterFacts | None = facts
        self.own_grid: Grid | None = own_grid
        self._source = source
        self._rules = rules

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the labels inside a window."""
        values, valid = self._source.read(window)
        labels = self._rules.labels_of(values, valid, name=self._source.path)
        return np.where(valid, labels, IGNORE_LABEL).astype(np.uint8)

    def counted(self, window: Window) -> tuple[NDArray[np.uint8], dict[Value, int]]:
        """Return the labels inside a window, and which values mean nothing."""
        values, valid = self._source.read(window)
        labels, unknown = self._rules.counted(values, valid)
        return np.where(valid, labels, IGNORE_LABEL).astype(np.uint8), unknown


class PolygonLabels:
    """Labels of polygons; where some overlap, the highest class is on top. A pixel is that of its centre."""

    facts: RasterFacts | None = None
    own_grid: Grid | None = None

    def __init__(self, areas: dict[int, list[AreaOnGrid]], background: int) -> None:
        self._areas = areas
        self._background = background

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the labels inside a window."""
        labels = np.full((window.height, window.width), self._background, dtype=np.uint8)
        for label in sorted(self._areas, key=lambda label: (label != IGNORE_LABEL, label)):
            for area in self._areas[label]:
                labels[area.inside(window)] = label
        return labels

    def counted(self, window: Window) -> tuple[NDArray[np.uint8], dict[Value, int]]:
        """Return the labels inside a window; every value has its meaning when the file is opened."""
        return self.read(window), {}


@contextmanager
def open_labels(path: str, rules: LabelRules, image: RasterSource) -> Iterator[OpenLabels]:
    """Open a label file, a raster or one of polygons, on the grid of its image.

    Raises:
        DatasetError: It says nothing of the image, or something that means nothing.
        RasterError: It cannot be read.
    """
    grid = image.grid
    if is_vector(path):
        if not os.path.exists(path):
            raise DatasetError(f"there is no file {path}. Check the name and the folder.")
        yield _polygon_labels(path, os.stat(path).st_mtime_ns, rules, grid)
        return
    with open_raster(path, bands=[1]) as labels:
        if _is_on(labels.grid, grid, any_grid=rules.any_grid):
            yield RasterLabels(labels, rules)
            return
        own, facts = labels.grid, facts_of(labels)
    if not rules.any_grid or own.crs is None or grid.crs is None or not (own.has_transform and grid.has_transform):
        raise DatasetError(
            f"{path} is {own.height} x {own.width} pixels, but its image {image.path} is "
            f"{grid.height} x {grid.width}. Labels must lie on the grid of their image"
            f"{', or both say where they lie (CRS, transform)' if rules.any_grid else ''}."
        )
    with Warped(path, grid) as warped:
        yield WarpedLabels(warped, rules, facts, own)


def _is_on(labels: Grid, image: Grid, *, any_grid: bool) -> bool:
    """Whether labels and image share their pixels; where labels may lie anywhere, their place decides, if known."""
    if (labels.height, labels.width) != (image.height, image.width):
        return False
    lie_somewhere = labels.has_transform and image.has_transform
    return not (any_grid and lie_somewhere) or (same_grid(labels, image) and labels.first_index == image.first_index)


def is_vector(path: str) -> bool:
    """Whether a file holds polygons, by its suffix."""
    return Path(path).suffix.lower() in VECTOR_SUFFIXES


@lru_cache(maxsize=4)  # one file may hold the labels of all images
def areas_of(path: str, changed_ns: int, attribute: str | None, layer: str | None) -> dict[Any, Area]:
    """Return the polygons of a vector file that changed at a time, by the values of an attribute."""
    return Area.by_value(path, attribute, layer=layer)


@lru_cache(maxsize=4)
def _trees_of(path: str, changed_ns: int, attribute: str | None, layer: str | None) -> dict[Any, shapely.STRtree]:
    """Return an index of the polygons of each value."""
    areas = areas_of(path, changed_ns, attribute, layer)
    return {value: shapely.STRtree(area.polygons) for value, area in areas.items()}


def _near(area: Area, tree: shapely.STRtree, grid: Grid) -> Area:
    """Return the polygons that may lie on an image: one file may hold those of a whole country."""
    outline = footprint(grid, None if area.crs is None else area.crs.to_wkt())
    if outline is None or area.crs is None:
        return area
    left, bottom, right, top = outline.bounds
    margin = (right - left + top - bottom) / 20  # an edge of the image may bulge in the CRS of the polygons
    near = tree.query(shapely.box(left - margin, bottom - margin, right + margin, top + margin))
    return Area(area.polygons[np.sort(near)], area.crs, area.name)


@lru_cache(maxsize=64)  # a patch opens its files anew, and a vector file is read whole
def _polygon_labels(path: str, changed_ns: int, rules: LabelRules, grid: Grid) -> PolygonLabels:
    areas: dict[int, list[AreaOnGrid]] = {}
    trees = _trees_of(path, changed_ns, rules.attribute, rules.layer)
    for value, area in areas_of(path, changed_ns, rules.attribute, rules.layer).items():
        label = rules.shapes if rules.attribute is None else rules.label_of(value, name=f"{rules.attribute} of {path}")
        try:
            areas.setdefault(label, []).append(_near(area, trees[value], grid).on(grid))
        except AreaMissesError:
            continue  # an image without one is no mistake
    return PolygonLabels(areas, rules.background)


def _short(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
