"""Strips of labels -> Cloud-Optimized GeoTIFF; arrays -> plain GeoTIFF. What appears, appears whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
import rasterio.shutil
import rasterio.windows
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint as ControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from geonorm.errors import InvalidConfigError, RasterError, TargetExistsError
from geonorm.raster.read import CACHE_BYTES, GDAL_ERRORS, Grid, check_readable, gdal_said, is_local

Color = tuple[int, int, int]


class LabelWriter:
    """Writes the labels of a raster from top to bottom, as a Cloud-Optimized GeoTIFF.

    Use it in a ``with`` statement. The target appears at its end, whole, if every row was written. After an
    exception there is no trace of the attempt, and a file that was to be replaced is as it was.

    Until then the labels lie in a folder beside the target, named ``.<target>.<letters>.tmp``. Memory holds
    one row of blocks, however high the raster is.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        grid: Grid,
        *,
        class_names: Sequence[str],
        class_colors: Sequence[Color],
        tags: Mapping[str, str],
        nodata: int = 255,
        overwrite: bool = False,
        block_px: int = 512,
        source: str | os.PathLike[str] | None = None,
    ) -> None:
        """Check all that can be checked before work.

        Args:
            target: The file to make.
            grid: Where its pixels lie.
            class_names: Name of each label, from 0; the tag ``class_names`` holds them as JSON.
            class_colors: Red, green and blue of each label, 0 to 255.
            tags: What else is to be known about the file, such as its provenance.
            nodata: Label of the pixels without data.
            overwrite: Replace an existing target.
            block_px: Side of the blocks in which the file is stored, a multiple of 16.
            source: The raster that is labelled, which the target must not replace.
        """
        if len(class_names) != len(class_colors):
            raise InvalidConfigError(
                f"every class needs one name and one colour, got {len(class_names)} name(s) and "
                f"{len(class_colors)} colour(s)."
            )
        if not len(class_names) <= nodata <= 255:
            raise InvalidConfigError(
                f"nodata must be in [number of classes, 255], to be no class, got nodata={nodata} with "
                f"{len(class_names)} classes. 255 suits up to 255 classes."
            )
        self.target = check_target(target, overwrite=overwrite, source=source)
        self.grid = grid
        self._tags = {**tags, "class_names": json.dumps(list(class_names), ensure_ascii=False)}
        self._class_colors = class_colors
        self._nodata = nodata
        self._block_px = block_px
        self._next_row = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # undone here if a step fails, else by __exit__
            self._folder = stack.enter_context(folder_beside(self.target))
            with failing_as(self.target):
                self._dataset = _create(
                    self._folder / "strips.tif",
                    (1, self.grid.height, self.grid.width),
                    "uint8",
                    crs=self.grid.crs,
                    transform=self.grid.transform,
                    # Read once, to make the target; the quickest compression keeps empty areas small.
                    options={**_blocks(self._block_px), "compress": "deflate", "zlevel": 1},
                )
                stack.callback(self._dataset.close)
                if self.grid.gcps:
                    points = [ControlPoint(p.row, p.col, p.x, p.y, p.z) for p in self.grid.gcps]
                    self._dataset.gcps = (points, self.grid.gcps_crs)
                _describe(self._dataset, nodata=self._nodata, colors=self._class_colors, tags=self._tags)
            # One row of blocks: a block that is handed to GDAL whole is compressed once.
            self._pending = np.empty((self._block_px, self.grid.width), dtype=np.uint8)
            self._stack = stack.pop_all()
        return self

    def write(self, row: int, labels: NDArray[np.uint8]) -> None:
        """Take the next rows of labels.

        Args:
            row: Row of the raster at which they begin: the first that is still missing.
            labels: Class numbers and nodata, shape (rows, W).
        """
        rows, width = labels.shape
        if labels.dtype != np.uint8 or width != self.grid.width:
            raise ValueError(f"labels must be uint8 and {self.grid.width} wide, got {labels.dtype} and {width}")
        if row != self._next_row or row + rows > self.grid.height:
            raise ValueError(f"row {self._next_row} of {self.grid.height} is next, got rows {row} to {row + rows - 1}")
        while len(labels):
            filled = self._next_row % self._block_px
            part = labels[: self._block_px - filled]
            self._pending[filled : filled + len(part)] = part
            self._next_row += len(part)
            labels = labels[len(part) :]
            if self._next_row % self._block_px == 0 or self._next_row == self.grid.height:
                self._write_pending(filled + len(part))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is not None:
                return
            if self._next_row != self.grid.height:
                raise ValueError(f"only {self._next_row} of {self.grid.height} rows were written")
            strips, cog = self._folder / "strips.tif", self._folder / "cog.tif"
            with failing_as(self.target):
                self._dataset.close()
                # GDAL's own driver reads block by block and builds the overviews on the disk; its bytes do
                # not depend on the number of threads.
                rasterio.shutil.copy(
                    strips,
                    cog,
                    driver="COG",
                    compress="deflate",
                    blocksize=self._block_px,
                    overview_resampling="mode",
                    bigtiff="if_safer",
                    num_threads="all_cpus",
                )
                publish(cog, self.target)

    def _write_pending(self, rows: int) -> None:
        area = rasterio.windows.Window(0, self._next_row - rows, self.grid.width, rows)
        with failing_as(self.target):
            self._dataset.write(self._pending[:rows], 1, window=area)


def write_image(
    path: str | os.PathLike[str],
    image: NDArray[Any],
    *,
    crs: CRS | str | None = None,
    transform: Affine | None = None,
    nodata: float | None = None,
    tiled: bool = False,
    block_px: int = 256,
    compress: str | None = "deflate",
    colors: Sequence[Color] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write an array as a plain GeoTIFF; what is there already is replaced once the new file is whole.

    No band is tagged as alpha, not even the fourth.

    Args:
        path: The file to make.
        image: Band values, shape (C, H, W) or (H, W); bool becomes uint8.
        crs: Coordinate system of the pixels.
        transform: From (col, row) to coordinates; none is written where it is None or the identity.
        nodata: Value of the pixels without data.
        tiled: Store square blocks rather than strips of rows.
        block_px: Side of the blocks, a multiple of 16.
        compress: GDAL's name of the compression, or None.
        colors: Red, green and blue of the values from 0, for one band of uint8.
        tags: What else is to be known about the file.
    """
    bands = image[None] if image.ndim == 2 else image
    bands = bands.astype(np.uint8) if bands.dtype == np.bool_ else bands
    options = _blocks(block_px) if tiled else {}
    if compress:
        options["compress"] = compress
    if len(bands) > 1:
        options["alpha"] = "unspecified"  # else GDAL tags the fourth band of 8 bits, near infrared, as alpha
    target = check_target(path, overwrite=True)
    with folder_beside(target) as folder, failing_as(target):
        made = folder / "image.tif"
        with _create(made, bands.shape, bands.dtype.name, crs=crs, transform=transform, options=options) as new:
            _describe(new, nodata=nodata, colors=colors or (), tags=tags or {})
            new.write(bands)
        publish(made, target)


def check_target(
    target: str | os.PathLike[str], *, overwrite: bool, source: str | os.PathLike[str] | None = None
) -> Path:
    """Return ``target`` if a file can be made there, else raise in one line; nothing is touched.

    Args:
        target: The file to make.
        overwrite: A file that exists may be replaced.
        source: A file that must not be.
    """
    path, name = Path(target), os.fspath(target)
    if not is_local(name):
        raise RasterError(
            f"{name} is not a local file, and only those can be renamed into place once they are complete. "
            "Name a local file, and copy it when it is there."
        )
    if os.path.isdir(path):
        raise RasterError(f"{path} is a folder, a file is needed. Try {path / 'labels.tif'}.")
    exists = os.path.exists(path)
    if exists and source is not None and os.path.exists(source) and os.path.samefile(path, source):
        raise RasterError(f"{path} is the raster to be read, it cannot be the target too. Choose another name.")
    if exists and not overwrite:
        raise TargetExistsError(f"{path} exists. Choose another name, or replace it with --overwrite.")
    if not os.path.isdir(path.parent):
        raise RasterError(f"there is no folder {path.parent} for {path.name}. Make it, or check the name.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise RasterError(f"the folder {path.parent} cannot be written to. Choose another one.")
    return path


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Make a folder beside the target, where renaming is atomic, and remove it at the end."""
    try:
        # A name holds 255 bytes and a character takes up to 4.
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:50]}.", suffix=".tmp"))
    except OSError as error:
        raise RasterError(
            f"the folder {target.parent} cannot be written to: {error.strerror}. Choose another one."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def failing_as(target: Path) -> Iterator[None]:
    """Bound GDAL's cache, and turn its errors into one line about the target."""
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
            # A map of a raster without a transform has none either: nothing to warn of.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    except RasterError:
        raise  # an OSError too, and clear already
    except (*GDAL_ERRORS, OSError) as error:
        raise RasterError(
            f"cannot write {target}: {gdal_said(error)} Is the disk full, or the folder protected?"
        ) from error


def _create(
    path: Path,
    shape: tuple[int, ...],
    dtype: str,
    *,
    crs: CRS | str | None,
    transform: Affine | None,
    options: Mapping[str, Any],
) -> Any:
    """Return a new GeoTIFF of shape (C, H, W)."""
    count, height, width = shape
    place = {} if transform is None or transform == Affine.identity() else {"transform": transform}
    size = {"count": count, "height": height, "width": width, "dtype": dtype}
    return rasterio.open(path, "w", driver="GTiff", bigtiff="if_safer", crs=crs, **size, **place, **options)


def _blocks(block_px: int) -> dict[str, Any]:
    return {"tiled": True, "blockxsize": block_px, "blockysize": block_px}


def _describe(dataset: Any, *, nodata: float | None, colors: Sequence[Color], tags: Mapping[str, str]) -> None:
    """Add what GDAL wants to know before the first value."""
    if nodata is not None:
        dataset.nodata = nodata
    if colors:
        dataset.write_colormap(1, {value: (*color, 255) for value, color in enumerate(colors)})
    dataset.update_tags(**tags)


def publish(made: Path, target: Path) -> None:
    """Put a finished file in the place of the target; even a power cut leaves one or the other."""
    try:
        check_readable(made)  # GDAL may keep silent when the disk is full at the very end
    except RasterError as error:
        raise RasterError(f"{target} could be written in part only. Free space and try again.") from error
    with made.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(made, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
