"""Rewrite GeoTIFFs in square blocks, so that training and labelling read windows of them quickly.

    python data_scripts/retile.py data/AerialImageDataset fast/AerialImageDataset
    python data_scripts/retile.py ortho fast --compress zstd --index fast/table.csv --index_labels '../gt/{name}.tif'

A file in strips of rows is read over its whole width for every window. Every .tif and .tiff under SOURCE, in folders
too, is copied to the same place under TARGET: the same pixels, CRS, transform, control points, nodata values, masks,
colour tables, tags and band meanings, in blocks. Each copy is read back and compared with its source, value by value,
before it appears. The same command goes on after an interruption; files that are there, in these blocks and no older
than their source, are skipped. A file that fails is named at the end, the others are done.

--index writes a table (CSV) of the copies: image, group (the city a name begins with), name, crs, bounds, size. With
--index_labels it also has the column labels, and RastersDataModule takes it: --data.table fast/table.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from _script import MOST_NAMES, Parser, run
from rasterio.windows import Window
from tqdm import tqdm

from geonorm.errors import DatasetError, GeonormError, InvalidConfigError, RasterError, name_some
from geonorm.files import check_space, written_whole
from geonorm.raster.read import GDAL_ERRORS, gdal_said
from geonorm.raster.write import lying_nowhere

COMPRESSIONS = ("none", "deflate", "zstd", "lzw")
SUFFIXES = {".tif", ".tiff"}
_COLUMNS = ("group", "name", "crs", "left", "bottom", "right", "top", "height", "width", "bands", "dtype")
_CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class Layout:
    """How copies are stored."""

    block_px: int
    compress: str


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite all files of a folder."""
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, help="folder of GeoTIFFs")
    parser.add_argument("target", type=Path, help="folder for the copies, not inside SOURCE")
    parser.add_argument("--block_px", type=int, default=256, help="side of a block, a multiple of 16")
    parser.add_argument("--compress", choices=COMPRESSIONS, default="none", help="all are without loss")
    parser.add_argument("--processes", type=int, default=1, help="files at a time")
    parser.add_argument("--index", type=Path, metavar="CSV", help="write a table of the copies")
    parser.add_argument("--index_images", metavar="GLOB", default="*", help="names of the images in the table")
    parser.add_argument(
        "--index_labels",
        metavar="PATTERN",
        help="label file of an image, from the image's folder; {name} is the image's",
    )
    return run(_work, parser, argv)


def _work(options: argparse.Namespace) -> None:
    source, target = options.source, options.target
    if options.block_px < 16 or options.block_px % 16:
        raise InvalidConfigError(f"--block_px must be a multiple of 16, got {options.block_px}. 256 is usual.")
    if options.processes < 1:
        raise InvalidConfigError(f"--processes must be at least 1, got {options.processes}.")
    if not source.is_dir():
        raise DatasetError(f"there is no folder {source}. Check the name.")
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise DatasetError(f"{target} lies in {source}, and its copies would be copied again. Choose another folder.")
    names = sorted(
        path.relative_to(source)
        for path in source.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _is_hidden(path.relative_to(source))
    )
    if not names:
        raise DatasetError(f"{source} holds no GeoTIFF (.tif, .tiff).")
    layout = Layout(options.block_px, options.compress)
    todo = [name for name in names if not is_done(source / name, target / name, layout)]
    check_space(target, sum(map(_raw_bytes, (source / name for name in todo))), what=f"{len(todo)} copies, at most,")
    failed = _retile_all(source, target, todo, layout, options.processes)
    print(f"{target}: {len(todo) - len(failed)} written, {len(names) - len(todo)} were there.")
    if options.index:
        done = [target / name for name in names if (target / name).exists()]
        rows = write_index(options.index, done, images=options.index_images, labels=options.index_labels)
        print(f"{options.index}: {rows} images.")
    if failed:
        raise DatasetError(f"{len(failed)} of {len(names)} files were not copied: {name_some(failed, MOST_NAMES)}")


def retile(source: Path, target: Path, layout: Layout) -> None:
    """Copy one GeoTIFF into blocks, and compare the copy with it.

    Raises:
        RasterError: The source cannot be read, or the copy differs.
    """
    with written_whole(target) as made:
        try:
            with lying_nowhere(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_CACHEMAX=_CACHE_BYTES):
                with rasterio.open(source) as dataset:
                    rasterio.shutil.copy(dataset, made, driver="GTiff", **_creation(dataset, layout))
                with rasterio.open(source) as before, rasterio.open(made) as after:
                    difference = next(_differences(before, after), None)
        except GDAL_ERRORS as error:
            raise RasterError(f"{source} cannot be copied: {gdal_said(error)}") from error
        if difference:
            raise RasterError(f"{source} would not be the same as its copy: {difference}.")


def is_done(source: Path, target: Path, layout: Layout) -> bool:
    """Return whether a copy is there that needs no renewal; it was compared before it appeared."""
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        return False
    try:
        with lying_nowhere(), rasterio.open(target) as copy:
            compress = copy.compression.name if copy.compression else "none"
            return (*copy.block_shapes[0], compress) == (layout.block_px, layout.block_px, layout.compress)
    except GDAL_ERRORS:
        return False


def write_index(path: Path, rasters: Sequence[Path], *, images: str, labels: str | None) -> int:
    """Write a table of images, where they lie and how large they are; return its rows.

    Args:
        path: The CSV file; its paths count from its folder.
        rasters: What may be listed.
        images: Pattern of the names that are.
        labels: Pattern of the label files, see ``--index_labels``.
    """
    from geonorm.data.inria import city_of  # brings torchgeo, which takes seconds that every process would pay

    listed = [raster for raster in rasters if raster.match(images)]
    label_of = {}
    if labels is not None:
        label_of = {
            raster: Path(os.path.normpath(raster.parent / labels.format(name=raster.stem))) for raster in listed
        }
        # A label file may fit the pattern of the images, and has no labels of its own.
        listed = [raster for raster in listed if raster not in {*label_of.values()}]
        lonely = [raster.name for raster in listed if not label_of[raster].exists()]
        if lonely:
            raise DatasetError(
                f"{len(lonely)} of {len(listed)} images have no label file {labels}: {name_some(lonely, MOST_NAMES)}. "
                "Say which are images with --index_images."
            )
    if not listed:
        raise DatasetError(f"no raster is named {images}, so {path} would be empty. Change --index_images.")
    with written_whole(path) as made, open(made, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", *(["labels"] if labels else []), *_COLUMNS])
        for raster in tqdm(listed, desc="listing", unit="file"):
            paths = [raster, *([label_of[raster]] if labels else [])]
            with lying_nowhere(), rasterio.open(raster) as dataset:
                table.writerow(
                    [os.path.relpath(one, path.parent) for one in paths]
                    + [city_of(raster.stem), raster.stem, dataset.crs.to_string() if dataset.crs else ""]
                    + [*dataset.bounds, dataset.height, dataset.width, dataset.count, dataset.dtypes[0]]
                )
    return len(listed)


def _retile_all(source: Path, target: Path, names: Sequence[Path], layout: Layout, processes: int) -> list[str]:
    """Copy the files, several at a time, and return what failed, each in words."""
    failed = []
    with tqdm(total=len(names), desc="rewriting", unit="file") as bar:
        if processes == 1:
            for name in names:
                failed += _attempt(source / name, target / name, layout)
                bar.update()
            return failed
        # Fresh processes: GDAL's state does not survive a fork while threads run.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(_attempt, source / name, target / name, layout) for name in names]
            try:
                for job in as_completed(jobs):
                    failed += job.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return sorted(failed)


def _attempt(source: Path, target: Path, layout: Layout) -> list[str]:
    try:
        retile(source, target, layout)
    except GeonormError as error:
        return [str(error)]
    return []


def _creation(dataset: rasterio.DatasetReader, layout: Layout) -> dict[str, Any]:
    side = layout.block_px
    options: dict[str, Any] = {"tiled": True, "blockxsize": side, "blockysize": side, "bigtiff": "if_safer"}
    if layout.compress != "none":
        options["compress"] = layout.compress
        options["predictor"] = 3 if np.dtype(dataset.dtypes[0]).kind == "f" else 2
    return options


def _differences(before: rasterio.DatasetReader, after: rasterio.DatasetReader) -> Iterator[str]:
    """Yield in words what is not the same in a copy."""
    facts = ("count", "dtypes", "shape", "crs", "transform", "gcps", "nodatavals", "colorinterp", "descriptions")
    for fact in (*facts, "scales", "offsets", "units"):
        if getattr(before, fact) != getattr(after, fact) and str(getattr(before, fact)) != str(getattr(after, fact)):
            yield f"its {fact} would be {getattr(after, fact)}, not {getattr(before, fact)}"
    for band in before.indexes:
        if _colours(before, band) != _colours(after, band):
            yield f"the colour table of band {band}"
    rows = after.block_shapes[0][0]
    for row in range(0, before.height, rows):
        window = Window(0, row, before.width, min(rows, before.height - row))
        if before.read(window=window).tobytes() != after.read(window=window).tobytes():
            yield f"values in rows {row} to {row + window.height - 1}"
        if (before.read_masks(window=window) != after.read_masks(window=window)).any():
            yield f"the mask in rows {row} to {row + window.height - 1}"


def _colours(dataset: rasterio.DatasetReader, band: int) -> dict[int, tuple[int, ...]] | None:
    try:
        return dict(dataset.colormap(band))
    except ValueError:  # there is none
        return None


def _is_hidden(path: Path) -> bool:
    """Return whether a file, or a folder it lies in, is hidden: what was being written when a process was killed."""
    return any(part.startswith(".") for part in path.parts)


def _raw_bytes(path: Path) -> int:
    """Return how large a raster is without compression; 0 where it cannot be opened, which is told later."""
    try:
        with lying_nowhere(), rasterio.open(path) as dataset:
            return sum(dataset.height * dataset.width * np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    except GDAL_ERRORS:
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
