"""A label map that is too large for memory -> a file of the polygons of its classes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import shapely  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray

from geonorm.errors import InvalidConfigError, RasterError, name_some
from geonorm.raster.grid import Grid
from geonorm.raster.tracing import LabelRows as LabelRows  # whoever writes polygons finds the type of the rows here
from geonorm.raster.tracing import Polygons, trace_polygons
from geonorm.raster.vector_file import PolygonWriter

_CHUNK_PX = 2**22  # what is polygonized at once: 32 MiB of sums, and few seams to close
_BATCH_VERTICES = 2**18  # finished polygons are written when they have as many: 4 MiB of coordinates


def write_polygons(
    target: str | os.PathLike[str],
    rows: Iterable[LabelRows],
    grid: Grid,
    *,
    class_names: Sequence[str],
    classes: Sequence[int] | None = None,
    nodata: int = 255,
    min_area_px: int = 0,
    min_area_m2: float = 0.0,
    simplify_px: float = 0.0,
    layer: str = "labels",
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Write the polygons of a label map and return their number.

    Pixels of one class that share a side are one polygon, pixels that share a corner only are not. Each has the
    columns ``class`` (its label), ``name``, ``pixels``, ``area_m2`` (null where the ground size of a pixel is
    unknown) and ``probability`` (the mean over its pixels, null without confidence). The geometries are of type
    Polygon, in the CRS of the grid, exteriors counter-clockwise.

    The file depends on the map alone, not on the heights of its chunks: the polygons come in the order of their
    last rows, within one from left to right. Memory holds a chunk, the polygons that reach its last row and a
    bounded number of finished ones. What was at ``target`` is replaced, once all is written.

    Args:
        target: The file to make, ``.gpkg`` (GeoPackage) or ``.parquet`` (GeoParquet, needs pyarrow).
        rows: The map from the top, in chunks of any heights; all or none of them with confidence.
        grid: Where its pixels lie.
        class_names: Name of each label, from 0.
        classes: Labels that become polygons; all by default.
        nodata: Label of the pixels without data, which become no polygons.
        min_area_px: Polygons of fewer pixels are left out.
        min_area_m2: Polygons of fewer square metres are left out, too.
        simplify_px: Corners may move by this many pixels to save vertices. Each polygon is simplified by itself,
            so neighbours may part or overlap by as much. ``pixels`` and ``area_m2`` stay those of the map.
        layer: Name of the layer.
        metadata: What else is to be known about the layer, such as its provenance.
    """
    wanted = _wanted_labels(classes, nodata=nodata, num_classes=len(class_names))
    pixel_m2 = math.nan if grid.resolution_m is None else grid.resolution_m**2
    check_generalization(min_area_px=min_area_px, min_area_m2=min_area_m2, simplify_px=simplify_px)
    min_px = _min_pixels(min_area_px, min_area_m2, pixel_m2)
    if grid.transform.is_degenerate:
        raise RasterError(f"the transform of the raster puts all pixels on one line: {tuple(grid.transform)[:6]}.")
    names = np.array([*class_names, *[""] * 256], dtype=object)
    num_polygons = 0
    with PolygonWriter(target, grid.crs, layer=layer, metadata=metadata) as file:
        checked = _checked(rows, grid, known=len(class_names), nodata=nodata)
        chunks = _even(checked, at_once=max(64, _CHUNK_PX // grid.width))
        traced = trace_polygons(chunks, width=grid.width, wanted=wanted)
        for batch in _batches(part[part.pixels >= min_px] for part in traced):
            columns = {
                "class": batch.label.astype(np.int32),
                "name": names[batch.label],
                "pixels": batch.pixels,
                "area_m2": batch.pixels * pixel_m2,
                "probability": batch.confidence_sum / (255.0 * batch.pixels),
            }
            file.write(_placed(batch.geometry, grid, simplify_px=simplify_px), columns)
            num_polygons += len(batch.label)
    return num_polygons


def check_generalization(*, min_area_px: int, min_area_m2: float = 0.0, simplify_px: float) -> None:
    """Raise `InvalidConfigError` if polygons cannot be chosen or simplified like that."""
    if min_area_px < 0 or not 0 <= min_area_m2 < math.inf:
        raise InvalidConfigError(
            f"an area must be 0 or more, got min_area_px={min_area_px} and min_area_m2={min_area_m2}."
        )
    if not 0 <= simplify_px < math.inf:
        raise InvalidConfigError(f"simplify_px must be 0 or more pixels, got {simplify_px}. 1 removes most stairs.")


def _wanted_labels(classes: Sequence[int] | None, *, nodata: int, num_classes: int) -> NDArray[np.bool_]:
    """Return whether each label becomes polygons, shape (256,)."""
    if num_classes > 256:
        raise InvalidConfigError(f"labels are of 8 bits, so there can be 256 classes at most, got {num_classes}.")
    chosen = [label for label in range(num_classes) if label != nodata] if classes is None else list(classes)
    wrong = [str(label) for label in chosen if label == nodata or not 0 <= label < num_classes]
    if wrong:
        raise InvalidConfigError(
            f"classes must be labels in [0, {num_classes - 1}] other than nodata={nodata}, got {name_some(wrong)}."
        )
    wanted = np.zeros(256, dtype=bool)
    wanted[chosen] = True
    return wanted


def _min_pixels(min_area_px: int, min_area_m2: float, pixel_m2: float) -> int:
    """Return how many pixels a polygon needs to be written."""
    if min_area_m2 == 0:
        return min_area_px
    if math.isnan(pixel_m2):
        raise InvalidConfigError(
            f"min_area_m2={min_area_m2} needs the ground size of a pixel, which is unknown here: the raster has no "
            "CRS or no transform. Use min_area_px."
        )
    # 100 pixels of 0.3 m are to be 9 square metres, though 0.3**2 is not quite 0.09.
    return max(min_area_px, math.ceil(min_area_m2 / pixel_m2 * (1 - 1e-9)))


def _checked(rows: Iterable[LabelRows], grid: Grid, *, known: int, nodata: int) -> Iterator[LabelRows]:
    """Yield the rows if they are those of the whole map, and hold labels with a name."""
    next_row, with_confidence = 0, None
    for chunk in rows:
        height = len(chunk.labels)
        arrays = [chunk.labels] if chunk.confidence is None else [chunk.labels, chunk.confidence]
        if any(values.dtype != np.uint8 or values.shape != (height, grid.width) for values in arrays):
            raise ValueError(
                f"labels and confidence must be uint8 and {grid.width} wide, got "
                + " and ".join(f"{values.dtype} of shape {values.shape}" for values in arrays)
            )
        if chunk.row != next_row or chunk.row + height > grid.height:
            raise ValueError(
                f"row {next_row} of {grid.height} is next, got rows {chunk.row} to {chunk.row + height - 1}"
            )
        if with_confidence not in (None, len(arrays) == 2):
            raise ValueError("all chunks must have confidence, or none")
        unknown = sorted({*np.unique(chunk.labels).tolist()} - {*range(known), nodata})
        if unknown:
            raise InvalidConfigError(
                f"the map holds label {name_some([str(label) for label in unknown])}, but class_names has {known} "
                f"name(s), for labels from 0, and nodata is {nodata}. Give every label a name."
            )
        next_row, with_confidence = next_row + height, len(arrays) == 2
        yield chunk
    if next_row != grid.height:
        raise ValueError(f"only {next_row} of {grid.height} rows came")


def _even(rows: Iterable[LabelRows], *, at_once: int) -> Iterator[LabelRows]:
    """Yield the same rows in chunks of ``at_once`` to twice as many, but for the last one.

    Tall chunks would take much memory, and each one costs time by itself. What is yielded are copies, so whoever
    gives the rows may reuse the memory.
    """
    waiting: list[LabelRows] = []
    for chunk in rows:
        for start in range(0, len(chunk.labels), at_once):
            waiting.append(chunk.part(start, start + at_once))
            if sum(len(part.labels) for part in waiting) >= at_once:
                yield LabelRows.joined(waiting)
                waiting = []
    if waiting:
        yield LabelRows.joined(waiting)


def _batches(parts: Iterable[Polygons]) -> Iterator[Polygons]:
    """Yield all polygons in batches of bounded size that depend on the polygons alone; at least one."""
    waiting = Polygons.none()
    for part in parts:
        waiting = Polygons.joined([waiting, part])
        ends = np.cumsum(shapely.get_num_coordinates(waiting.geometry))
        while len(ends) and ends[-1] >= _BATCH_VERTICES:
            size = int(np.searchsorted(ends, _BATCH_VERTICES)) + 1
            yield waiting[:size]
            waiting, ends = waiting[size:], ends[size:] - ends[size - 1]
    yield waiting


def _placed(geometry: NDArray[np.object_], grid: Grid, *, simplify_px: float) -> NDArray[np.object_]:
    """Return polygons of pixels as valid ones in the CRS."""
    exact = _to_crs(geometry, grid)
    if simplify_px == 0 or not len(exact):
        return exact
    simple = _to_crs(shapely.simplify(geometry, simplify_px, preserve_topology=True), grid)
    for index in np.flatnonzero(~shapely.is_valid(simple) | shapely.is_empty(simple)):
        simple[index] = _largest_polygon(simple[index]) or exact[index]
    return shapely.orient_polygons(simple)


def _to_crs(geometry: NDArray[np.object_], grid: Grid) -> NDArray[np.object_]:
    t = grid.transform

    def place(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = vertices.T
        return np.stack([x * t.a + y * t.b + t.c, x * t.d + y * t.e + t.f], axis=1)

    return shapely.orient_polygons(shapely.transform(geometry, place))


def _largest_polygon(geometry: Any) -> Any:
    """Return the largest polygon of what an invalid one makes, None if it is but lines."""
    parts = shapely.get_parts(shapely.make_valid(geometry, method="structure", keep_collapsed=False))
    return max((part for part in parts if part.area > 0), key=lambda part: part.area, default=None)
