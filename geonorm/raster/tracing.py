"""Chunks of a label map -> the polygons of the whole map."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Self

import numpy as np
import rasterio.features
import shapely  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray


def trace_polygons(rows: Iterable[LabelRows], *, width: int, wanted: NDArray[np.bool_]) -> Iterator[Polygons]:
    """Yield the polygons of a label map as soon as a chunk shows that they are finished.

    They are exactly those of the whole map in a normal form, in the order of their last rows and of their first
    column there. Where the chunks are cut decides only how many come at a time.

    Args:
        rows: The map from the top, in consecutive chunks whose memory is not reused.
        width: Columns of the map.
        wanted: Whether each label becomes polygons, shape (256,).
    """
    above = _BorderRow(np.zeros(width, np.uint8), np.full(width, -1), {})
    for chunk in rows:
        pieces, rings = _trace_pieces(chunk, wanted)
        first, last = (_pieces_along(rings, row, width) for row in (chunk.row, chunk.row + len(chunk.labels)))
        at_border = np.zeros(len(pieces.label), dtype=bool)
        at_border[first[first >= 0]] = at_border[last[last >= 0]] = True
        groups = {index: _Group(pieces, index) for index in np.flatnonzero(at_border).tolist()}
        _join_touching(above, _BorderRow(chunk.labels[0], first, groups))
        candidates = {group.root() for group in chain(above.groups.values(), groups.values())}
        reaching = {index: groups[index] for index in np.unique(last[last >= 0]).tolist()}
        above = _BorderRow(chunk.labels[-1], last, reaching)
        yield _in_order(pieces[~at_border], candidates - _roots(above))
    yield _in_order(Polygons.none(), _roots(above))


@dataclass(frozen=True)
class LabelRows:
    """Some rows of a label map; ``confidence`` is the probability of each label, 255 = 1."""

    row: int
    labels: NDArray[np.uint8]  # (rows, W)
    confidence: NDArray[np.uint8] | None = None  # (rows, W)

    def part(self, start: int, end: int) -> Self:
        """Return a copy of some of the rows, counted from the first one here."""
        confidence = None if self.confidence is None else self.confidence[start:end].copy()
        return type(self)(self.row + start, self.labels[start:end].copy(), confidence)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return consecutive rows as one chunk."""
        confidence = [part.confidence for part in parts if part.confidence is not None]
        labels = np.concatenate([part.labels for part in parts])
        return cls(parts[0].row, labels, np.concatenate(confidence) if confidence else None)


@dataclass(frozen=True)
class Polygons:
    """Polygons of a label map in pixel coordinates: x is the column, y the row, and (0, 0) the corner."""

    geometry: NDArray[np.object_]
    label: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    confidence_sum: NDArray[np.float64]  # whole numbers, or NaN without confidence

    def __getitem__(self, index: NDArray[Any] | slice) -> Self:
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return all of them, one after the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def none(cls) -> Self:
        """Return no polygons."""
        return cls(np.zeros(0, dtype=object), np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True)
class _Rings:
    """Closed rings of the pieces of a chunk, the exterior of each piece first."""

    vertices: NDArray[np.int64]  # (V, 2) as (x, y)
    starts: NDArray[np.int64]  # of each ring in the vertices, and where the last one ends
    piece_starts: NDArray[np.int64]  # of each piece in the rings, and where the last one ends


class _Group:
    """Pieces of one polygon that is not finished, or a pointer to the group that took them over."""

    def __init__(self, pieces: Polygons, index: int) -> None:
        self.label = pieces.label[index]
        self.geometries = [pieces.geometry[index]]
        self.pixels = pieces.pixels[index]
        self.confidence_sum = pieces.confidence_sum[index]
        self._joined_to: _Group | None = None

    def root(self) -> _Group:
        """Return the group that holds the pieces of this one."""
        group = self
        while group._joined_to is not None:
            if group._joined_to._joined_to is not None:
                group._joined_to = group._joined_to._joined_to  # so that the next search is half as long
            group = group._joined_to
        return group

    def join(self, other: _Group) -> None:
        """Make one group of two roots."""
        if self is other:
            return
        into, gone = (self, other) if len(self.geometries) >= len(other.geometries) else (other, self)
        into.geometries += gone.geometries
        into.pixels += gone.pixels
        into.confidence_sum += gone.confidence_sum
        gone._joined_to, gone.geometries = into, []


@dataclass(frozen=True)
class _BorderRow:
    """The first or the last row of a chunk: label and piece of each column, -1 where there is none."""

    labels: NDArray[np.uint8]
    pieces: NDArray[np.int64]
    groups: Mapping[int, _Group]  # by piece


def _trace_pieces(chunk: LabelRows, wanted: NDArray[np.bool_]) -> tuple[Polygons, _Rings]:
    """Return the polygons of a chunk by itself, in coordinates of the map."""
    flat = array("d")  # tuples of Python would take ten times as much memory
    ring_sizes, piece_sizes, labels = [0], [0], []
    for shape, label in rasterio.features.shapes(chunk.labels, mask=wanted[chunk.labels], connectivity=4):
        for ring in shape["coordinates"]:
            flat.extend(chain.from_iterable(ring))
            ring_sizes.append(len(ring))
        piece_sizes.append(len(shape["coordinates"]))
        labels.append(label)
    vertices = np.asarray(flat).reshape(-1, 2) + np.array([0, chunk.row])
    rings = _Rings(vertices.astype(np.int64), np.cumsum(ring_sizes), np.cumsum(piece_sizes))
    pieces = Polygons(
        shapely.from_ragged_array(shapely.GeometryType.POLYGON, vertices, (rings.starts, rings.piece_starts)),
        np.array(labels, dtype=np.uint8),
        _sums_inside(rings, rings.vertices.prod(axis=1)),
        _confidence_sums(rings, chunk),
    )
    return pieces, rings


def _confidence_sums(rings: _Rings, chunk: LabelRows) -> NDArray[np.float64]:
    if chunk.confidence is None:
        return np.full(len(rings.piece_starts) - 1, math.nan)
    table = np.zeros((len(chunk.labels) + 1, chunk.labels.shape[1] + 1), dtype=np.int64)
    np.cumsum(chunk.confidence, axis=0, out=table[1:, 1:])
    np.cumsum(table, axis=1, out=table)
    x, y = rings.vertices.T
    return _sums_inside(rings, table[y - chunk.row, x]).astype(np.float64)


def _sums_inside(rings: _Rings, sums: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum over the pixels of each piece, exactly and without looking at a pixel.

    Along an edge that goes down a column line, the sum of all that lies left of it is a difference of two sums
    over corners; edges that go up take away what is not inside (Green's theorem).

    Args:
        rings: The pieces.
        sums: Of the pixels above and left of each vertex, shape (V,).
    """
    if len(rings.starts) == 1:
        return np.zeros(0, dtype=np.int64)
    steps = np.zeros_like(sums)
    vertical = rings.vertices[1:, 0] == rings.vertices[:-1, 0]
    steps[:-1][vertical] = np.diff(sums)[vertical]
    steps[rings.starts[1:] - 1] = 0  # from the end of a ring to the start of the next there is no edge
    inside = np.abs(np.add.reduceat(steps, rings.starts[:-1]))
    holes = np.ones(len(inside), dtype=bool)
    holes[rings.piece_starts[:-1]] = False
    inside[holes] *= -1
    return np.add.reduceat(inside, rings.piece_starts[:-1])


def _pieces_along(rings: _Rings, y: int, width: int) -> NDArray[np.int64]:
    """Return the piece with an edge on a border of the chunk, for each column, -1 where there is none."""
    on_line = rings.vertices[:, 1] == y
    edges = np.flatnonzero(on_line[:-1] & on_line[1:])
    ring = np.searchsorted(rings.starts, edges, side="right") - 1
    edges, ring = edges[edges + 1 < rings.starts[ring + 1]], ring[edges + 1 < rings.starts[ring + 1]]
    piece = np.searchsorted(rings.piece_starts, ring, side="right") - 1
    ends = np.sort(np.stack([rings.vertices[edges, 0], rings.vertices[edges + 1, 0]]), axis=0)
    change = np.zeros(width + 1, dtype=np.int64)
    np.add.at(change, ends[0], piece + 1)
    np.subtract.at(change, ends[1], piece + 1)
    return np.cumsum(change)[:-1] - 1


def _join_touching(above: _BorderRow, below: _BorderRow) -> None:
    """Join the groups of pieces that share a side of a pixel."""
    touch = (above.pieces >= 0) & (below.pieces >= 0) & (above.labels == below.labels)
    pairs = np.stack([above.pieces[touch], below.pieces[touch]], axis=1)
    news = np.ones(len(pairs), dtype=bool)
    news[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    for upper, lower in pairs[news].tolist():
        above.groups[upper].root().join(below.groups[lower].root())


def _roots(border: _BorderRow) -> set[_Group]:
    return {group.root() for group in border.groups.values()}


def _in_order(whole: Polygons, groups: Iterable[_Group]) -> Polygons:
    """Return finished polygons in an order and in a form that do not depend on the cuts."""
    polygons = Polygons.joined([whole, _united(list(groups))])
    geometry = shapely.normalize(polygons.geometry)
    vertices, index = shapely.get_coordinates(geometry, return_index=True)
    last_row = shapely.bounds(geometry)[:, 3]
    lowest = vertices[:, 1] == last_row[index]
    first_col = np.full(len(geometry), math.inf)
    np.minimum.at(first_col, index[lowest], vertices[lowest, 0])
    return replace(polygons, geometry=geometry)[np.lexsort((first_col, last_row))]


def _united(groups: Sequence[_Group]) -> Polygons:
    """Return one polygon of each group."""
    geometry = np.array([_union(group.geometries) for group in groups], dtype=object)
    return Polygons(
        _without_straight_vertices(geometry),
        np.array([group.label for group in groups], dtype=np.uint8),
        np.array([group.pixels for group in groups], dtype=np.int64),
        np.array([group.confidence_sum for group in groups], dtype=np.float64),
    )


def _union(pieces: Sequence[Any]) -> Any:
    """Return one polygon of pieces from several chunks.

    A hole of a piece never reaches the border of its chunk, or it would be none. So only the exteriors need to be
    united, which is what makes a forest with many clearings affordable.
    """
    rings, piece = shapely.get_rings(pieces, return_index=True)
    is_hole = np.diff(piece, prepend=-1) == 0
    united = shapely.get_rings(shapely.union_all(shapely.polygons(rings[~is_hole])))
    return shapely.polygons(united[0], holes=np.concatenate([united[1:], rings[is_hole]]))


def _without_straight_vertices(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Return polygons of pixels without the vertices between two edges of one direction, as cuts leave them."""
    if not len(geometry):
        return geometry
    _, vertices, (starts, polygon_starts) = shapely.to_ragged_array(geometry)
    first, last = starts[:-1], starts[1:] - 1  # one and the same vertex of each ring
    before, after = np.roll(vertices, 1, axis=0), np.roll(vertices, -1, axis=0)
    before[first] = vertices[last - 1]
    keep = ~((before == vertices) & (vertices == after)).any(axis=1)
    keep[last] = False
    kept, sizes = vertices[keep], np.add.reduceat(keep, first, dtype=np.int64)
    ends = np.cumsum(sizes)
    closed = np.insert(kept, ends, kept[ends - sizes], axis=0)
    closed_starts = np.concatenate([[0], np.cumsum(sizes + 1)])
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, closed, (closed_starts, polygon_starts))
