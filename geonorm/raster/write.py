"""Arrays -> GeoTIFF, and what all writing has in common: what appears, appears whole."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from geonorm.errors import RasterError, TargetExistsError
from geonorm.files import folder_beside, put_in_place
from geonorm.raster.read import CACHE_BYTES, GDAL_ERRORS, check_readable, gdal_said, is_local

Color = tuple[int, int, int]


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
    options: dict[str, Any] = {"bigtiff": "if_safer", **(blocks(block_px) if tiled else {})}
    if compress:
        options["compress"] = compress
    if len(bands) > 1:
        options["alpha"] = "unspecified"  # else GDAL tags the fourth band of 8 bits, near infrared, as alpha
    target = check_target(path, overwrite=True)
    with folder_beside(target) as folder, failing_as(target), lying_nowhere():
        made = folder / "image.tif"
        with create(made, bands.shape, bands.dtype.name, crs=crs, transform=transform, options=options) as new:
            describe(new, nodata=nodata, colors=colors or (), tags=tags or {})
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


def check_folder(path: str | os.PathLike[str], *, what: str) -> Path:
    """Return ``path`` as a folder, made if it is not there; its parent must be.

    Args:
        path: The folder.
        what: What it is for, for messages.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise RasterError(f"{folder} is a file, a folder is needed for {what}. Choose another name.")
    if folder.suffix and not folder.exists():
        raise RasterError(f"{folder} looks like a file, a folder is needed for {what}. Name one.")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RasterError(f"the folder {folder} cannot be made: {error.strerror}. Choose another one.") from error
    return folder


@contextmanager
def failing_as(
    target: str | os.PathLike[str], *, errors: tuple[type[BaseException], ...] = GDAL_ERRORS
) -> Iterator[None]:
    """Bound GDAL's cache, and turn what goes wrong in writing into one line about the target.

    Args:
        target: What is being made.
        errors: What the library that writes may raise, beside what the file system says.
    """
    caught: tuple[type[BaseException], ...] = (*errors, OSError)
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
            yield
    except RasterError:
        raise  # an OSError too, and clear already
    except caught as error:
        raise RasterError(
            f"cannot write {os.fspath(target)}: {gdal_said(error)} Is the disk full, or the folder protected?"
        ) from error


@contextmanager
def lying_nowhere() -> Iterator[None]:
    """Let rasters without a transform pass: their maps have none either, and there is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def create(
    path: Path,
    shape: tuple[int, ...],
    dtype: str,
    *,
    crs: CRS | str | None = None,
    transform: Affine | None = None,
    driver: str = "GTiff",
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Return a new raster of shape (C, H, W)."""
    count, height, width = shape
    place = {} if transform is None or transform == Affine.identity() else {"transform": transform}
    size = {"count": count, "height": height, "width": width, "dtype": dtype}
    return rasterio.open(path, "w", driver=driver, crs=crs, **size, **place, **options)


def blocks(block_px: int) -> dict[str, Any]:
    """Return the options of a GeoTIFF that is stored in square blocks."""
    return {"tiled": True, "blockxsize": block_px, "blockysize": block_px}


def describe(dataset: Any, *, nodata: float | None, colors: Sequence[Color], tags: Mapping[str, str]) -> None:
    """Add what GDAL wants to know before the first value."""
    if nodata is not None:
        dataset.nodata = nodata
    if colors:
        dataset.write_colormap(1, {value: (*color, 255) for value, color in enumerate(colors)})
    dataset.update_tags(**tags)


def publish(made: Path, target: Path) -> None:
    """Put a finished raster in the place of the target, if it is whole; see `put_in_place`."""
    try:
        check_readable(made)  # GDAL may keep silent when the disk is full at the very end
    except RasterError as error:
        raise RasterError(f"{target} could be written in part only. Free space and try again.") from error
    put_in_place(made, target)
