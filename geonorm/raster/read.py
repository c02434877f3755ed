"""A window of a raster file -> raw band values, and where they count."""

from __future__ import annotations

import math
import os
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from types import TracebackType
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
import rasterio
import rasterio.windows
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.raster.closing import Closing
from geonorm.raster.grid import Grid as Grid  # whoever opens a raster finds the type of its grid here
from geonorm.raster.grid import GroundControlPoint
from geonorm.raster.palette import Palette
from geonorm.raster.window import Window

NodataRule = Literal["all", "any"]

# In bytes: rasterio hands the number to GDALSetCacheMax64, so 64 would mean 64 bytes, although GDAL itself
# reads small values of this option as megabytes.
CACHE_BYTES = 64 * 2**20

# Some of rasterio's functions let GDAL's own errors through, which have no public name.
GDAL_ERRORS = (RasterioError, CPLE_BaseError)

ALPHA = 4  # the band of a colour that says how opaque it is

_MAX_CHECKED_BLOCKS = 4096  # at 2 microseconds for each of the two tags: 20 ms


class RasterSource(Protocol):
    """What gives the pixels of a raster: one file, several, or one at another resolution.

    It belongs to one thread: another takes one of its own from `reopen`. What it says of itself, `reopen` included,
    still holds when it is closed.
    """

    @property
    def path(self) -> str:
        """Name for messages."""

    @property
    def grid(self) -> Grid:
        """Where its pixels lie."""

    @property
    def bands(self) -> tuple[int, ...]:
        """The bands that are read, counted from 1."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    @property
    def count(self) -> int:
        """Number of bands there are."""

    @property
    def block_shape(self) -> tuple[int, int]:
        """Rows and columns of the blocks in which the pixels are stored."""

    @property
    def resolution(self) -> float | None:
        """Ground size of a pixel in metres, as ``grid.resolution_m``."""

    def read(self, window: Window) -> Pixels:
        """Return what ``window`` holds; it must lie inside the raster."""

    def holds_data(self, window: Window) -> bool:
        """Whether a pixel of ``window`` may be valid; False only where that is sure without reading."""

    def reopen(self) -> RasterSource:
        """Return an independent source of the same pixels, for another thread."""

    def close(self) -> None:
        """Close its files."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_raster(
    path: str | os.PathLike[str],
    *,
    bands: Sequence[int] | None = None,
    nodata_rule: NodataRule = "all",
    nodata: float | None = None,
) -> Reader:
    """Return a reader of the raster at ``path``.

    A value is invalid where the mask of the file or of its band says so, where it is ``nodata``, or where it is NaN
    or infinite. An alpha band is a mask unless it is among ``bands``: a band that is read is data, whatever its tag
    says.

    A single band with a colour table gives its own values as band 1. Where ``bands`` ask for more, it gives the red,
    green, blue and alpha of the table as bands 1 to 4.

    Args:
        path: The raster file.
        bands: Bands to read, counted from 1, in any order; all of them by default.
        nodata_rule: A pixel is invalid if "all" or "any" of its values that are read are.
        nodata: A value that does not count, besides those of which the file itself says so.
    """
    return Reader(os.fspath(path), bands=bands, nodata_rule=nodata_rule, nodata=nodata)


def check_readable(path: str | os.PathLike[str]) -> None:
    """Raise `RasterError` for a file that can be seen to be broken without decoding it."""
    dataset, _ = _open_checked(os.fspath(path))
    dataset.close()


class Reader(Closing):
    """An open raster that gives windows; `open_raster` makes it. Close it, or use it in a ``with`` statement.

    Attributes:
        path: The file, as it was given.
        grid: Where its pixels lie.
        bands: The bands that are read, counted from 1.
        dtype: Type of the values.
        count: Number of bands in the file, or of the colours to which its one band is expanded.
        block_shape: Rows and columns of the blocks in which the file is stored.
        alpha_band: The band whose zeros make a pixel invalid, counted from 1, if there is one that is not read.
    """

    def __init__(
        self, path: str, *, bands: Sequence[int] | None, nodata_rule: NodataRule, nodata: float | None
    ) -> None:
        if nodata_rule not in get_args(NodataRule):
            raise InvalidConfigError(f"nodata_rule must be 'all' or 'any', got {nodata_rule!r}.")
        self.path = path
        self._nodata_rule = nodata_rule
        self._nodata = nodata
        self._dataset, self.grid = _open_checked(path)
        try:
            self._choose_bands(bands)
            self._find_masks()
        except BaseException:
            self._dataset.close()
            raise

    @property
    def resolution(self) -> float | None:
        """Ground size of a pixel in metres, as ``grid.resolution_m``."""
        return self.grid.resolution_m

    def read(self, window: Window) -> Pixels:
        """Return what ``window`` holds; it must lie inside the raster."""
        window.check_inside(self.grid.height, self.grid.width)
        area = rasterio.windows.Window(window.col, window.row, window.width, window.height)
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
                stored = self._dataset.read(self._stored_bands, window=area)
                pixel_valid = self._pixel_valid(area)
                value_valid = self._value_valid(stored, area)
        except GDAL_ERRORS as error:
            raise RasterError(
                f"cannot read rows {window.row} to {window.row_end - 1}, columns {window.col} to "
                f"{window.col_end - 1} of {self.path}: {gdal_said(error)} "
                "The file is probably damaged; copy or download it again."
            ) from error
        values = stored
        if self._palette is not None:
            values = self._palette.expand(stored[0], self.bands)
            if ALPHA not in self.bands:
                pixel_valid = pixel_valid & self._palette.visible(stored[0])
        if value_valid is None:
            valid = np.broadcast_to(pixel_valid, values.shape[1:])
            return Pixels(values, np.broadcast_to(valid, values.shape), valid)
        value_valid &= pixel_valid
        reduce = np.logical_or if self._nodata_rule == "all" else np.logical_and
        return Pixels(values, np.broadcast_to(value_valid, values.shape), reduce.reduce(value_valid, axis=0))

    def holds_data(self, window: Window) -> bool:
        """Return True: what a file holds is not known without reading it."""
        return True

    def reopen(self) -> Reader:
        """Return an independent reader of the same file, for another thread."""
        return Reader(self.path, bands=self.bands, nodata_rule=self._nodata_rule, nodata=self._nodata)

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def _choose_bands(self, bands: Sequence[int] | None) -> None:
        """Find out which bands of the file are read, and what becomes of their values."""
        dataset = self._dataset
        self.count: int = dataset.count
        self.bands = tuple(range(1, self.count + 1)) if bands is None else tuple(bands)
        self._palette = _palette(dataset) if max(self.bands, default=0) > 1 else None
        if self._palette is not None:
            self.count = ALPHA
        if not self.bands or min(self.bands) < 1 or max(self.bands) > self.count:
            raise RasterError(
                f"{self.path} has {self.count} band(s), but bands {list(self.bands)} are asked for. "
                f"Bands are counted from 1: choose among 1 to {self.count}, or take another raster."
            )
        self._stored_bands = self.bands if self._palette is None else (1,)
        dtypes = sorted({dataset.dtypes[band - 1] for band in self._stored_bands})
        if len(dtypes) > 1:
            raise RasterError(
                f"{self.path} has bands of different types ({', '.join(dtypes)}), and one type is needed. "
                "Convert it with gdal_translate -ot, or choose bands of one type."
            )
        _check_nodata(self._nodata, np.dtype(dtypes[0]), self.path)
        self.dtype: np.dtype[Any] = np.dtype(dtypes[0]) if self._palette is None else self._palette.colors.dtype
        self.block_shape: tuple[int, int] = dataset.block_shapes[self._stored_bands[0] - 1]

    def _find_masks(self) -> None:
        """Find out once what can make a value or a pixel invalid."""
        bands = self._stored_bands
        flags = [set(self._dataset.mask_flag_enums[band - 1]) for band in bands]
        # One mask for the whole file, inside it or beside it. (For GDAL an alpha band is another.)
        whole = [MaskFlags.per_dataset in flag and MaskFlags.alpha not in flag for flag in flags]
        self._mask_band = bands[whole.index(True)] if any(whole) else None
        alphas = [band for band, tag in enumerate(self._dataset.colorinterp, 1) if tag == ColorInterp.alpha]
        self.alpha_band: int | None = alphas[0] if alphas and not set(alphas) & set(bands) else None
        # What is left is a band's own mask: a nodata value, as a rule.
        others = {MaskFlags.all_valid, MaskFlags.per_dataset, MaskFlags.alpha}
        self._own_masks = [index for index, flag in enumerate(flags) if not flag & others]

    def _pixel_valid(self, area: Any) -> NDArray[np.bool_]:
        """Return what holds for all bands at once: (H, W), or () where every pixel counts."""
        valid: NDArray[np.bool_] = np.array(True)
        if self._mask_band is not None:
            valid = self._dataset.read_masks(self._mask_band, window=area) != 0
        if self.alpha_band is not None:
            valid = valid & (self._dataset.read(self.alpha_band, window=area) != 0)
        return valid

    def _value_valid(self, stored: NDArray[Any], area: Any) -> NDArray[np.bool_] | None:
        """Return what holds for each band by itself (C, H, W), or None where every value counts."""
        if stored.dtype.kind != "f" and not self._own_masks and self._nodata is None:
            return None
        valid = np.isfinite(stored)
        if self._nodata is not None:
            valid &= stored != stored.dtype.type(self._nodata)
        with warnings.catch_warnings():
            # With a nodata value, this mask says nothing of an alpha band: right, that is looked at apart.
            warnings.simplefilter("ignore", NodataShadowWarning)
            for index in self._own_masks:
                valid[index] &= self._dataset.read_masks(self._stored_bands[index], window=area) != 0
        return valid


@dataclass(frozen=True)
class Pixels:
    """What a window of a raster holds.

    ``values`` are the raw band values, shape (C, H, W), dtype of the file. ``value_valid`` (C, H, W) is True
    where a value counts, ``valid`` (H, W) where the pixel does by the reader's nodata rule; both may be
    read-only views that repeat one value.
    """

    values: NDArray[Any]
    value_valid: NDArray[np.bool_]
    valid: NDArray[np.bool_]


def read_tags(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the tags of a raster; none where the file is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                return dict(dataset.tags())
    except GDAL_ERRORS:
        return {}


def files_of(path: str | os.PathLike[str]) -> list[str]:
    """Return the files on the disk that a raster is read from: masks, overviews, archives and parts of a VRT, too."""
    dataset, _ = _open_checked(os.fspath(path))
    with dataset:
        files = [_on_disk(file) for file in dataset.files]
    return [*dict.fromkeys(file for file in files if os.path.isfile(file))]


def _on_disk(file: str) -> str:
    """Return the file that one of GDAL's virtual files lies in, such as an archive; "" where there is none."""
    if not file.startswith("/vsi"):
        return file
    inside = PurePath(file.split("/", 2)[-1])
    return next((str(path) for path in (inside, *inside.parents) if os.path.isfile(path)), "")


def gdal_said(error: BaseException) -> str:
    """Return what GDAL had to say about ``error``, as one short sentence."""
    said = " ".join(str(error.__cause__ or error).split())  # rasterio's own text often only points at the cause
    return textwrap.shorten(said, 200, placeholder=" ...").rstrip(".") + "."


def is_local(path: str) -> bool:
    """Whether ``path`` names a file of this machine rather than a URL or one of GDAL's virtual files."""
    return re.match(r"/vsi|[A-Za-z][A-Za-z0-9+.-]+:/", path) is None


def _open_checked(path: str) -> tuple[Any, Grid]:
    """Return an open dataset that looks whole, and where its pixels lie."""
    if is_local(path):
        if not os.path.exists(path):
            raise RasterError(f"there is no file {path}. Check the name and the folder.")
        if os.path.isdir(path):
            raise RasterError(f"{path} is a folder, a raster file is needed. Name one of the files in it.")
        if os.path.getsize(path) == 0:
            raise RasterError(f"{path} is empty (0 bytes), a raster is needed. Copy or download it again.")
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings(record=True) as caught:
            # A raster without a transform is fine, and no news to its owner. The warning is the one sure sign
            # of it: the transform of a PNM file, for one, is whatever the memory held before.
            warnings.simplefilter("always", NotGeoreferencedWarning)
            dataset = rasterio.open(path)
    except GDAL_ERRORS as error:
        raise RasterError(
            f"{path} does not open as a raster: {gdal_said(error)} "
            "A whole GeoTIFF is needed; copy or download it again, or see what gdalinfo says."
        ) from error
    try:
        if dataset.count == 0:
            raise RasterError(f"{path} has no bands of its own. Name one of its subdatasets (see gdalinfo).")
        if any(dtype.startswith("complex") for dtype in dataset.dtypes):
            raise RasterError(
                f"{path} holds complex numbers ({dataset.dtypes[0]}), real ones are needed. "
                "Convert it to amplitudes first."
            )
        if dataset.driver == "GTiff" and is_local(path):
            _check_blocks(dataset, path)
    except BaseException:
        dataset.close()
        raise
    nowhere = any(warning.category is NotGeoreferencedWarning for warning in caught)
    transform = Affine.identity() if nowhere else dataset.transform
    grid = Grid(dataset.height, dataset.width, dataset.crs, transform)
    return dataset, grid if grid.has_transform else _with_gcps(grid, dataset)


def _with_gcps(grid: Grid, dataset: Any) -> Grid:
    points, crs = dataset.gcps
    gcps = tuple(GroundControlPoint(point.row, point.col, point.x, point.y, point.z) for point in points)
    return replace(grid, gcps=gcps, gcps_crs=crs or None) if gcps else grid


def _palette(dataset: Any) -> Palette | None:
    """Return the colours of a raster that is a single band of their numbers."""
    dtype = np.dtype(dataset.dtypes[0])
    if dataset.count > 1 or dataset.colorinterp[0] != ColorInterp.palette or dtype.name not in ("uint8", "uint16"):
        return None
    return Palette.of(dataset.colormap(1), dtype)


def _check_nodata(nodata: float | None, dtype: np.dtype[Any], path: str) -> None:
    """Raise if no pixel can have the value that the user says means nodata."""
    if nodata is None:
        return
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # a decimal of the least float32 may be a little less than it
            possible = bool(np.isfinite(dtype.type(nodata))) or not math.isfinite(nodata)
    else:
        possible = limits.min <= nodata <= limits.max and nodata == int(nodata)
    if not possible:
        raise InvalidConfigError(
            f"nodata must be a value that {path} can hold, {dtype} from {limits.min} to {limits.max}, got {nodata}. "
            "Leave it out unless pixels without data have one value that the file does not declare (see gdalinfo)."
        )


def _check_blocks(dataset: Any, path: str) -> None:
    """Raise if the block table points beyond the end of the file: then the file was cut off."""
    num_bytes = os.path.getsize(path)
    for band, row, col in _blocks_to_check(dataset):
        offset, size = (
            int(dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=band) or 0)  # None: not stored
            for what in ("OFFSET", "SIZE")
        )
        if offset + size > num_bytes:
            raise RasterError(
                f"{path} is cut off: the block in row {row}, column {col} of band {band} ends at byte "
                f"{offset + size}, the file at {num_bytes}. Copy or download it again."
            )


def _blocks_to_check(dataset: Any) -> Iterator[tuple[int, int, int]]:
    """Yield (band, row, col) of blocks: the last of each band, then all or an even sample."""
    block_rows, block_cols = dataset.block_shapes[0]
    rows, cols = -(-dataset.height // block_rows), -(-dataset.width // block_cols)
    bands = 1 if dataset.interleaving == Interleaving.pixel else dataset.count
    for band in range(bands, 0, -1):
        yield band, rows - 1, cols - 1
    num_blocks = bands * rows * cols
    for index in range(0, num_blocks, -(-num_blocks // _MAX_CHECKED_BLOCKS)):
        yield index // (rows * cols) + 1, index // cols % rows, index % cols


def read_overview(path: str | os.PathLike[str], *, longest_side: int) -> NDArray[np.uint8]:
    """Return a small picture of a raster, ``(rows, cols, 3)``: its first three bands, or its first one in grey.

    Bands that are not uint8 are stretched from their 2nd to their 98th percentile.
    """
    with open_raster(path) as reader:
        height, width = reader.grid.height, reader.grid.width
        scale = min(1.0, longest_side / max(height, width))
        bands = reader.bands[:3] if reader.count >= 3 else reader.bands[:1] * 3
        shape = (3, max(1, round(height * scale)), max(1, round(width * scale)))
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
                values = reader._dataset.read(bands, out_shape=shape, masked=True)
        except GDAL_ERRORS as error:
            raise RasterError(f"cannot read {path}: {gdal_said(error)} Copy or download it again.") from error
    return as_picture(values.data, ~np.ma.getmaskarray(values))


def as_picture(values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return three bands as a picture, ``(rows, cols, 3)``.

    uint8 is shown as it is; other values are stretched from the 2nd to the 98th percentile of each band.

    Args:
        values: Band values, ``(3, rows, cols)``.
        valid: Which of them count, likewise.
    """
    if values.dtype == np.uint8:
        return np.moveaxis(values, 0, -1)
    counting = np.where(valid & np.isfinite(values), values, np.nan).astype(np.float64)
    if np.isnan(counting).all((1, 2)).any():
        return np.zeros((*values.shape[1:], 3), np.uint8)
    low, high = (np.nanpercentile(counting, percent, axis=(1, 2), keepdims=True) for percent in (2, 98))
    stretched = np.clip((counting - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.moveaxis(np.nan_to_num(stretched * 255).astype(np.uint8), 0, -1)
