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
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from geonorm.errors import InvalidConfigError, RasterError, TargetExistsError
from geonorm.raster.read import CACHE_BYTES, GDAL_ERRORS, Grid, check_readable, gdal_said, is_local

Color = tuple[int, int, int]


class LabelWriter:
    """Writes the labels of a raster from the top to the bottom, as a Cloud-Optimized GeoTIFF.

    Use it in a ``with`` statement. The target appears at its end, whole, if every row was written; after
    an exception there is no trace of the attempt, and a file that was to be replaced is as it was.

    Until then the labels lie in a folder beside the target, named ``.<target>.<letters>.tmp``. Memory holds
    one row of blocks, whatever the height of the raster.
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
        """Check everything that can be checked before work.

        Args:
            target: The file to make.
            grid: Where its pixels lie.
            class_names: Name of each label, from 0.
            class_colors: Red, green and blue of each label, 0 to 255.
            tags: What else is to be known about the file, such as its provenance.
            nodata: Label of the pixels without data.
            overwrite: Replace an existing target.
            block_px: Side of the blocks in which the file is stored, a multiple of 16.
            source: The raster that is labelled, which the target must not replace.
        """
        if len(class_names) != len(class_colors):
            raise InvalidConfigError(
                f"every class needs one colour, got {len(class_names)} name(s) and {len(class_colors)} colour(s)."
            )
        if not len(class_names) <= nodata <= 255:
            raise InvalidConfigError(
                f"nodata must lie in [number of classes, 255] to be no class, got nodata={nodata} with "
                f"{len(class_names)} classes. 255 suits all maps of up to 255 classes."
            )
        self.target = check_target(target, overwrite=overwrite, source=source)
        self.grid = grid
        self._tags = {**tags, "class_names": json.dumps(list(class_names), ensure_ascii=False)}
        self._colors = dict(enumerate(class_colors))
        self._nodata = nodata
        self._block_px = block_px
        self._next_row = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # undone here if a step fails, else by __exit__
            self._folder = stack.enter_context(_folder_beside(self.target))
            profile = {
                **_profile(1, "uint8", self.grid.height, self.grid.width),
                **_georeference(self.grid.crs, self.grid.transform),
                **_blocks(self._block_px),
                # Read once, by the step to the COG; the cheapest compression that keeps empty areas small.
                "compress": "deflate",
                "zlevel": 1,
                "nodata": self._nodata,
            }
            with _speaking_of(self.target):
                self._dataset = rasterio.open(self._folder / "strips.tif", "w", **profile)
                stack.callback(self._dataset.close)
                _describe(self._dataset, self._colors, self._tags, self._nodata)
            self._stack = stack.pop_all()
        # One row of blocks: a block that is handed over whole is compressed once.
        self._pending = np.empty((self._block_px, self.grid.width), dtype=np.uint8)
        return self

    def write(self, row: int, labels: NDArray[np.uint8]) -> None:
        """Take the next rows of labels.

        Args:
            row: Row of the raster at which they begin: the first that is still missing.
            labels: Class numbers and nodata, shape (rows, W), uint8.
        """
        rows, width = labels.shape
        if labels.dtype != np.uint8 or width != self.grid.width:
            raise ValueError(
                f"labels must be uint8 of width {self.grid.width}, got {labels.dtype} of {width}"
            )
        if row != self._next_row or row + rows > self.grid.height:
            raise ValueError(
                f"rows must come in order: {self._next_row} of {self.grid.height} is next, got {row} to {row + rows}"
            )
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
            with _speaking_of(self.target):
                self._dataset.close()
                cog = self._folder / "cog.tif"
                _to_cog(self._folder / "strips.tif", cog, block_px=self._block_px)
                _publish(cog, self.target)

    def _write_pending(self, rows: int) -> None:
        area = rasterio.windows.Window(0, self._next_row - rows, self.grid.width, rows)
        with _speaking_of(self.target):
            self._dataset.write(self._pending[:rows], 1, window=area)


def write_image(
    path: str | os.PathLike[str],
    image: NDArray[Any],
    *,
    crs: CRS | None = None,
    transform: Affine | None = None,
    nodata: float | None = None,
    tiled: bool = False,
    block_px: int = 256,
    compress: str | None = "deflate",
    colors: Sequence[Color] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write an array as a plain GeoTIFF, replacing what is there once it is complete.

    No band is tagged as alpha, also not the fourth.

    Args:
        path: The file to make.
        image: Band values, shape (C, H, W) or (H, W); bool becomes uint8.
        crs: Coordinate system of the pixels.
        transform: From (col, row) to coordinates; none is written where it is None or the identity.
        nodata: Value of the pixels without data.
        tiled: Store square blocks rather than strips of rows.
        block_px: Side of the blocks, a multiple of 16.
        compress: GDAL's name of the compression; None for none.
        colors: Red, green and blue of the values from 0, for a single band of uint8.
        tags: What else is to be known about the file.
    """
    bands = image[None] if image.ndim == 2 else image
    bands = bands.astype(np.uint8) if bands.dtype == np.bool_ else bands
    target = check_target(path, overwrite=True)
    profile = {
        **_profile(*_shape_first(bands)),
        **_georeference(crs, transform),
        **(_blocks(block_px) if tiled else {}),
        **({"compress": compress} if compress else {}),
        # GDAL takes the fourth band of 8 bits for an alpha band, which near infrared is not.
        **({"alpha": "unspecified"} if len(bands) > 1 else {}),
        "nodata": nodata,
    }
    with _folder_beside(target) as folder, _speaking_of(target):
        with rasterio.open(folder / "image.tif", "w", **profile) as dataset:
            _describe(dataset, dict(enumerate(colors or ())), tags or {}, nodata)
            dataset.write(bands)
        _publish(folder / "image.tif", target)


def check_target(
    target: str | os.PathLike[str], *, overwrite: bool, source: str | os.PathLike[str] | None = None
) -> Path:
    """Return ``target`` if a file can be made there, else raise in one line; nothing is touched.

    Args:
        target: The file to make.
        overwrite: An existing file may be replaced.
        source: A file that must not be.
    """
    name = os.fspath(target)
    if not is_local(name):
        raise RasterError(
            f"{name} is not a local file, and only those can be renamed when they are complete. "
            "Write to a local folder and copy the result."
        )
    path = Path(name)
    if path.is_dir():
        raise RasterError(
            f"{path} is a folder, the name of a file is needed: {path / 'labels.tif'}, for instance."
        )
    if source is not None and path.exists() and os.path.exists(source) and path.samefile(source):
        raise RasterError(
            f"{path} is the raster that is read, and cannot be the target too. Choose another name."
        )
    if path.exists() and not overwrite:
        raise TargetExistsError(f"{path} exists. Choose another name, or replace it with --overwrite.")
    if not path.parent.is_dir():
        raise RasterError(
            f"there is no folder {path.parent} for {path.name}. Make it first, or check the name."
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise RasterError(
            f"the folder {path.parent} cannot be written to. Choose another one, or ask for the rights."
        )
    return path


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """Make a folder beside the target (renaming is atomic within a file system) and remove it at the end."""
    try:
        # Names hold 255 bytes, a character up to 4.
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:50]}.", suffix=".tmp"))
    except OSError as error:
        raise RasterError(
            f"cannot write to the folder {target.parent}: {error.strerror}. Choose another one for {target.name}."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _speaking_of(target: Path) -> Iterator[None]:
    """Bound GDAL's cache, and turn its failures into one line about the target."""
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
            # Labels of a raster without a transform have none either: nothing to warn of.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    except RasterError:
        raise
    except (*GDAL_ERRORS, OSError) as error:
        raise RasterError(
            f"cannot write {target}: {gdal_said(error)} Check the free space of the disk and the rights of the folder."
        ) from error


def _profile(count: int, dtype: str, height: int, width: int) -> dict[str, Any]:
    shape = {"count": count, "dtype": dtype, "height": height, "width": width}
    return {"driver": "GTiff", "bigtiff": "if_safer", **shape}


def _shape_first(bands: NDArray[Any]) -> tuple[int, str, int, int]:
    count, height, width = bands.shape
    return count, bands.dtype.name, height, width


def _georeference(crs: CRS | None, transform: Affine | None) -> dict[str, Any]:
    has_transform = transform is not None and transform != Affine.identity()
    return {"crs": crs, **({"transform": transform} if has_transform else {})}


def _blocks(block_px: int) -> dict[str, Any]:
    return {"tiled": True, "blockxsize": block_px, "blockysize": block_px}


def _describe(
    dataset: Any, colors: Mapping[int, Color], tags: Mapping[str, str], nodata: float | None
) -> None:
    """Add colour table and tags, which GDAL wants before the first value."""
    if colors:
        transparent = {} if nodata is None else {int(nodata): (0, 0, 0, 0)}
        dataset.write_colormap(
            1, {**{value: (*color, 255) for value, color in colors.items()}, **transparent}
        )
    dataset.update_tags(**tags)


def _to_cog(strips: Path, cog: Path, *, block_px: int) -> None:
    """Convert with GDAL's own driver, which reads block by block and keeps its overviews on the disk."""
    rasterio.shutil.copy(
        strips,
        cog,
        driver="COG",
        compress="deflate",
        blocksize=block_px,
        overview_resampling="mode",
        bigtiff="if_safer",
        num_threads="all_cpus",  # more threads compress, the bytes are the same
    )


def _publish(made: Path, target: Path) -> None:
    """Put a finished file in place of the target, so that even a power cut leaves one or the other."""
    try:
        check_readable(made)  # GDAL does not always report a full disk when it closes a file
    except RasterError as error:
        raise RasterError(f"only a part of {target} could be written. Free some space and try again.") from error
    with made.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(made, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
