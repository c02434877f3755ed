"""A raster at another ground resolution."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.raster.closing import Closing
from geonorm.raster.grid import Grid
from geonorm.raster.read import NodataRule, Pixels, RasterSource, open_raster
from geonorm.raster.window import Window

Resampling = Literal["auto", "nearest", "bilinear", "cubic", "average"]

PARTS = 10**9  # of a pixel: positions are whole numbers of them, so that every crop has the very same weights
PHASE_PARTS = 10**6  # to which the position of the raster is rounded, a thousandth of a pixel
MAX_FACTOR = 1000  # a pixel is made of the square of it
MAX_SIDE_PX = 2**31 - 1
LEAST_WEIGHT = 1e-6  # with less than this share of a pixel, the values under it say nothing of it
CHUNK_PX = 1024  # side of the square that is computed at once


def open_resampled(
    path: str | os.PathLike[str],
    resolution_m: float,
    *,
    bands: Sequence[int] | None = None,
    nodata_rule: NodataRule = "all",
    nodata: float | None = None,
    resampling: Resampling = "auto",
) -> Resampled:
    """Return a reader of the raster at ``path`` with pixels of ``resolution_m`` metres.

    Args:
        path: The raster file.
        resolution_m: Ground size of the new pixels.
        bands: See `open_raster`, as for the two that follow.
        nodata_rule: See there.
        nodata: See there.
        resampling: See `Resampled`.
    """
    source = open_raster(path, bands=bands, nodata_rule=nodata_rule, nodata=nodata)
    try:
        return Resampled(source, resolution_m, resampling=resampling)
    except BaseException:
        source.close()
        raise


class Resampled(Closing):
    """A raster, or a mosaic, whose pixels have another size; it closes what it is made of.

    A value is the weighted mean of the values under it that are valid, as GDAL's warper has it. Averages are valid
    where a value under them is, other pixels where the one is that holds their centre. Every pixel is a function of
    its place on the ground alone: whatever window is read, whatever crop of the raster, it is the same.

    Attributes:
        path: That of the raster.
        grid: Where the new pixels lie, see `resampled_grid`.
        bands: The bands that are read, counted from 1.
        dtype: Type of the values, that of the raster.
        count: Number of bands of the raster.
        block_shape: Rows and columns of the new pixels that come from one of the raster's blocks.
    """

    def __init__(self, source: RasterSource, resolution_m: float, *, resampling: Resampling = "auto") -> None:
        """Take a raster and how to resample it.

        Args:
            source: The raster.
            resolution_m: Ground size of the new pixels.
            resampling: "average" over the area of a new pixel, "bilinear", "cubic" or "nearest". "auto" is "average"
                for larger pixels and "bilinear" for smaller ones.
        """
        if resampling not in get_args(Resampling):
            raise InvalidConfigError(
                f"resampling must be one of {', '.join(get_args(Resampling))}, got {resampling!r}."
            )
        self._source = source
        self._resolution_m = resolution_m
        self._asked = resampling
        scaling = _scaling(source.grid, resolution_m, source.path)
        if resampling == "auto":
            resampling = "average" if scaling.factor > 1 else "bilinear"
        self._resampling = resampling
        self._scaling = scaling
        self.grid = scaling.grid
        self.path, self.bands, self.dtype, self.count = source.path, source.bands, source.dtype, source.count
        rows, cols = (max(1, round(side / scaling.factor)) for side in source.block_shape)
        self.block_shape = rows, cols
        self._chunk_px = max(1, min(CHUNK_PX, math.floor(CHUNK_PX / scaling.factor)))

    @property
    def resolution(self) -> float | None:
        """Ground size of a pixel in metres, as ``grid.resolution_m``."""
        return self.grid.resolution_m

    def read(self, window: Window) -> Pixels:
        """Return what ``window`` holds; it must lie inside the raster."""
        window.check_inside(self.grid.height, self.grid.width)
        shape = len(self.bands), window.height, window.width
        pixels = Pixels(np.empty(shape, self.dtype), np.empty(shape, dtype=bool), np.empty(shape[1:], dtype=bool))
        for part in _chunks(window, self._chunk_px):
            top, left = part.row - window.row, part.col - window.col
            at = np.s_[..., top : top + part.height, left : left + part.width]
            pixels.values[at], pixels.value_valid[at], pixels.valid[at] = self._resample(part)
        return pixels

    def holds_data(self, window: Window) -> bool:
        """Whether a pixel of ``window`` may be valid; False only where that is sure without reading."""
        rows, cols = self._weights(window)
        return self._source.holds_data(Window(rows.first, cols.first, rows.length, cols.length))

    def reopen(self) -> Resampled:
        """Return an independent one of the same pixels, for another thread."""
        return Resampled(self._source.reopen(), self._resolution_m, resampling=self._asked)

    def close(self) -> None:
        """Close the raster."""
        self._source.close()

    def _weights(self, window: Window) -> tuple[_Weights, _Weights]:
        """Return what the rows and the columns of a window are made of."""
        rows = _weights(self._scaling.rows, window.row, window.row_end, self._scaling.pixel, self._resampling)
        return rows, _weights(self._scaling.cols, window.col, window.col_end, self._scaling.pixel, self._resampling)

    def _resample(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return values, where they are valid, and where the pixel is."""
        rows, cols = self._weights(window)
        under = self._source.read(Window(rows.first, cols.first, rows.length, cols.length))
        counts = under.value_valid & under.valid
        if (counts == under.valid).all():
            counts = under.valid[None]  # one mask for all bands, as a rule
        weight = _sum_weights(counts, rows, cols)
        total = _sum(np.where(counts, under.values, 0).astype(np.float64), rows, cols)
        found = weight > LEAST_WEIGHT
        pixel_found = found[0] if len(found) == 1 else _sum_weights(under.valid, rows, cols) > LEAST_WEIGHT
        if self._resampling != "average":
            found = found & _at_centers(counts, rows, cols)
            pixel_found = pixel_found & _at_centers(under.valid, rows, cols)
        found = np.broadcast_to(found, total.shape)
        values = np.divide(total, weight, out=np.zeros_like(total), where=found)
        return self._rounded(values), found, pixel_found

    def _rounded(self, values: NDArray[np.float64]) -> NDArray[Any]:
        if self.dtype.kind == "f":
            return values.astype(self.dtype)
        limits = np.iinfo(self.dtype)
        return np.clip(np.floor(values + 0.5), limits.min, limits.max).astype(self.dtype)


def resampled_grid(grid: Grid, resolution_m: float, *, name: str = "the raster") -> Grid:
    """Return the grid of a raster whose pixels are brought to a ground size of ``resolution_m`` metres.

    It covers the raster, has its CRS and its directions, and its sides are multiplied by one factor. Its pixels are
    counted from the origin of the CRS, so that crops of a raster share a grid (where the ground size of pixels
    depends on the latitude: if that does not differ between them). A factor of 1 leaves the grid as it is.

    Args:
        grid: That of the raster.
        resolution_m: Ground size of the new pixels.
        name: What messages call the raster.
    """
    return _scaling(grid, resolution_m, name).grid


@dataclass(frozen=True)
class _Axis:
    """The pixels of one axis, in parts of the raster's pixels.

    ``start`` is where the first of ``num_new`` pixels begins, counted from the first of the raster's ``num_old``.
    """

    start: int
    num_new: int
    num_old: int


@dataclass(frozen=True)
class _Scaling:
    """``pixel`` is the side of a new pixel, in parts of the raster's."""

    grid: Grid
    pixel: int
    rows: _Axis
    cols: _Axis

    @property
    def factor(self) -> float:
        return self.pixel / PARTS


def _scaling(grid: Grid, resolution_m: float, name: str) -> _Scaling:
    if not (math.isfinite(resolution_m) and resolution_m > 0):
        raise InvalidConfigError(f"resolution_m must be a number of metres above 0, got {resolution_m}.")
    known_m = grid.resolution_m
    if known_m is None:
        raise RasterError(
            f"{name} has no known ground resolution, so it cannot be brought to {resolution_m:g} m: it lacks a CRS on "
            "the earth or a transform. Give it both with gdal_translate -a_srs -a_ullr, or read it as it is."
        )
    pixel = round(resolution_m / known_m * PARTS)
    if abs(pixel - PARTS) <= PARTS // 10**6:
        return _Scaling(grid, PARTS, _Axis(0, grid.height, grid.height), _Axis(0, grid.width, grid.width))
    if not PARTS / MAX_SIDE_PX < pixel <= MAX_FACTOR * PARTS:
        raise _too_far(name, known_m, resolution_m)
    origin = ~grid.transform
    (row, rows), (col, cols) = (
        _new_pixels(-zero, length, pixel) for zero, length in ((origin.f, grid.height), (origin.c, grid.width))
    )
    if max(rows.num_new, cols.num_new) > MAX_SIDE_PX:
        raise _too_far(name, known_m, resolution_m)
    a, b, d, e = (
        side * (pixel / PARTS) for side in (grid.transform.a, grid.transform.b, grid.transform.d, grid.transform.e)
    )
    transform = Affine(a, b, a * col + b * row, d, e, d * col + e * row)
    return _Scaling(replace(grid, height=rows.num_new, width=cols.num_new, transform=transform), pixel, rows, cols)


def _too_far(name: str, known_m: float, resolution_m: float) -> InvalidConfigError:
    return InvalidConfigError(
        f"resolution_m must be within a factor of {MAX_FACTOR} of the {known_m:.3g} m of {name}, and give at most "
        f"{MAX_SIDE_PX} pixels a side, got {resolution_m:g}. Is it in metres?"
    )


def _new_pixels(position: float, length: int, pixel: int) -> tuple[int, _Axis]:
    """Return the index of the first new pixel, counted from the origin of the CRS, and the axis of all of them.

    Args:
        position: That of the raster's first pixel, counted from there in pixels of the raster.
        length: Number of the raster's pixels.
        pixel: Side of a new one.
    """
    whole = math.floor(position)
    start = whole * PARTS + round((position - whole) * (PARTS // PHASE_PARTS)) * PHASE_PARTS
    end = start + length * PARTS
    least = min(PARTS, pixel) // 100  # a sliver, or the rounding of a transform, needs no pixel
    first, last = (start + least) // pixel, -((least - end) // pixel)
    return first, _Axis(first * pixel - start, max(1, last - first), length)


@dataclass(frozen=True)
class _Weights:
    """What new pixels of one axis are made of: old pixels from ``first`` on, ``length`` in all.

    ``taps`` and ``weights`` (pixels, taps) say which, counted from ``first``, and how much of each; ``centers`` which
    one holds the centre, -1 where none does.
    """

    first: int
    length: int
    taps: NDArray[np.int64]
    weights: NDArray[np.float64]
    centers: NDArray[np.int64]


def _weights(axis: _Axis, first: int, end: int, pixel: int, resampling: Resampling) -> _Weights:
    """Return what some of the new pixels of an axis are made of."""
    begin = axis.start + np.arange(first, end, dtype=np.int64) * pixel
    center = begin + begin + pixel  # in halves, to stay whole
    holds = center // (2 * PARTS)
    scale = max(PARTS, pixel)  # a kernel is as wide as a new pixel, or as an old one if that is wider
    if resampling == "nearest":
        taps = holds[:, None]
        weights = np.ones(taps.shape)
    elif resampling == "average":
        taps = (begin // PARTS)[:, None] + np.arange(-(-pixel // PARTS) + 1)
        shared = np.minimum(begin[:, None] + pixel, (taps + 1) * PARTS) - np.maximum(begin[:, None], taps * PARTS)
        weights = np.maximum(shared, 0) / min(pixel, PARTS)  # 1 for a whole pixel: halves are rounded as they should
    else:
        reach = 1 if resampling == "bilinear" else 2
        taps = (center // 2 - reach * scale)[:, None] // PARTS + np.arange(-(-2 * reach * scale // PARTS) + 1)
        far = np.abs((2 * taps + 1) * PARTS - center[:, None]) / (2 * scale)
        weights = np.maximum(1 - far, 0) if resampling == "bilinear" else _cubic(far)
    weights = np.where((taps >= 0) & (taps < axis.num_old), weights, 0.0)
    taps = taps.clip(0, axis.num_old - 1)
    centers = np.where((holds >= 0) & (holds < axis.num_old), holds - taps.min(), -1)
    return _Weights(int(taps.min()), int(np.ptp(taps)) + 1, taps - taps.min(), weights, centers)


def _cubic(far: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of Catmull and Rom."""
    near = (1.5 * far - 2.5) * far * far + 1
    rest = ((-0.5 * far + 2.5) * far - 4) * far + 2
    return np.where(far <= 1, near, np.where(far < 2, rest, 0.0))


def _sum(values: NDArray[np.float64], rows: _Weights, cols: _Weights) -> NDArray[np.float64]:
    """Return weighted sums over rows, then columns, (..., h, w) -> (..., H, W).

    Tap after tap: the order of summation of a product of matrices depends on their shape.
    """
    down = np.zeros((*values.shape[:-2], len(rows.taps), values.shape[-1]))
    for taps, weights in zip(rows.taps.T, rows.weights.T, strict=True):
        down += values[..., taps, :] * weights[:, None]
    across = np.zeros((*down.shape[:-1], len(cols.taps)))
    for taps, weights in zip(cols.taps.T, cols.weights.T, strict=True):
        across += down[..., taps] * weights
    return across


def _sum_weights(counts: NDArray[np.bool_], rows: _Weights, cols: _Weights) -> NDArray[np.float64]:
    """Return the sums of the weights of what counts, (..., h, w) -> (..., H, W)."""
    if not counts.all():
        return _sum(counts.astype(np.float64), rows, cols)
    down = np.zeros((len(rows.taps), 1))  # the same numbers, bit for bit, for less
    for weights in rows.weights.T:
        down += weights[:, None]
    across = np.zeros((len(rows.taps), len(cols.taps)))
    for weights in cols.weights.T:
        across += down * weights
    return np.broadcast_to(across, (*counts.shape[:-2], *across.shape))


def _at_centers(counts: NDArray[np.bool_], rows: _Weights, cols: _Weights) -> NDArray[np.bool_]:
    """Return whether the old pixel that holds the centre of each new one counts."""
    inside = (rows.centers >= 0)[:, None] & (cols.centers >= 0)
    return counts[..., rows.centers[:, None], cols.centers] & inside


def _chunks(window: Window, side_px: int) -> Iterator[Window]:
    """Yield squares that fill a window."""
    for row in range(window.row, window.row_end, side_px):
        for col in range(window.col, window.col_end, side_px):
            yield Window(row, col, side_px, side_px).intersection(window)
