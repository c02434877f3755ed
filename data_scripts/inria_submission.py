"""Make the zip that the INRIA contest takes from label maps of its 180 test tiles, or check one.

    geonorm predict best.ckpt data/AerialImageDataset/test/images maps/
    python data_scripts/inria_submission.py maps submission.zip
    python data_scripts/inria_submission.py --check submission.zip

The zip holds one GeoTIFF for each test tile (bellingham, bloomington, innsbruck, sfo and tyrol-e, 1 to 36), named as
the tile, in no folder: one band of 8 bits, 5000 x 5000, 255 = building, 0 = not. Maps hold 1 and 0, as predict writes
them, or 255 and 0. Pixels without data, which predict marks with the map's nodata value, become 0, not building: the
contest scores every pixel and has no third value. Their number is printed. What is wrong is looked for in all maps
before anything is written, and the zip appears when it is whole and has been read back.
"""

from __future__ import annotations

import argparse
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from _script import MOST_NAMES, Parser, run
from inria_unpack import TEST_CITIES
from numpy.typing import NDArray
from tqdm import tqdm

from geonorm.errors import DatasetError, InvalidConfigError, name_some, one_line
from geonorm.files import check_space, written_whole
from geonorm.raster.read import GDAL_ERRORS
from geonorm.raster.write import lying_nowhere, write_image

BUILDING = 255
_CHUNK_ROWS = 512


@dataclass(frozen=True)
class Contest:
    """What a submission must hold."""

    cities: tuple[str, ...]
    tiles_per_city: int
    size_px: int

    @property
    def names(self) -> list[str]:
        """Names of the files."""
        return [f"{city}{number}.tif" for city in self.cities for number in range(1, self.tiles_per_city + 1)]


def main(argv: Sequence[str] | None = None) -> int:
    """Make or check a submission."""
    parser = Parser(__doc__)
    parser.add_argument("maps", type=Path, nargs="?", help="folder of the label maps, NAME.tif each")
    parser.add_argument("target", type=Path, nargs="?", help="the zip to make; one that exists is replaced")
    parser.add_argument("--check", type=Path, metavar="ZIP", help="only check this zip")
    parser.add_argument("--cities", nargs="+", default=list(TEST_CITIES), help="cities of the test tiles")
    parser.add_argument("--tiles_per_city", type=int, default=36, help="tiles of each, counted from 1")
    parser.add_argument("--size_px", type=int, default=5000, help="side of a tile")
    return run(_work, parser, argv)


def _work(options: argparse.Namespace) -> None:
    contest = Contest(tuple(options.cities), options.tiles_per_city, options.size_px)
    if (options.check is None) == (options.maps is None or options.target is None):
        raise InvalidConfigError("give the folder of maps and the zip to make, or --check ZIP alone.")
    if options.check is not None:
        buildings = check_submission(options.check, contest)
        print(f"{options.check} is as the contest wants it: {len(contest.names)} files, {buildings:.1%} building.")
        return
    buildings, empty = write_submission(options.maps, options.target, contest)
    print(f"{options.target}: {len(contest.names)} files, {buildings:.1%} building; read back and found right.")
    if empty:
        print(f"{empty} pixels without data count as not building.")


def write_submission(maps: Path, target: Path, contest: Contest) -> tuple[float, int]:
    """Write the zip; return the share of buildings and the number of pixels without data.

    Raises:
        DatasetError: Maps are missing or are no maps of buildings; all counted, the first named. Nothing is written.
    """
    check_space(target.parent, len(contest.names) * contest.size_px**2 // 8, what=f"{target.name} at worst")
    problems = []
    for name in tqdm(contest.names, desc="looking at maps", unit="map"):
        problems += [f"{name} ({problem})" for problem in _map_problems(maps / name, contest)]
    _raise(problems, f"{maps} cannot be submitted")
    empty = 0
    with written_whole(target) as made:
        with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:  # the files in it are compressed
            tile = made.with_name("tile.tif")
            for name in tqdm(contest.names, desc="packing", unit="map"):
                labels, missing, place = _read_map(maps / name)
                empty += missing
                write_image(tile, labels, compress="lzw", **place)
                archive.write(tile, name)
            tile.unlink(missing_ok=True)
        buildings = check_submission(made, contest)
    return buildings, empty


def check_submission(path: Path, contest: Contest) -> float:
    """Read a submission to the last pixel, and return the share of buildings.

    Raises:
        DatasetError: It breaks a rule of the contest; all violations counted, the first named.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = Counter(info.filename for info in archive.infolist())
            damaged = archive.testzip()
    except FileNotFoundError as error:
        raise DatasetError(f"there is no file {path}. Check the name.") from error
    except zipfile.BadZipFile as error:
        raise DatasetError(f"{path} is no zip file, or a damaged one: {one_line(error)}. Make it again.") from error
    wanted = contest.names
    problems = [f"{name} (missing)" for name in wanted if name not in held]
    problems += [f"{name} (not a tile of the contest)" for name in held if name not in wanted]
    problems += [f"{name} ({count} times)" for name, count in held.items() if count > 1]
    problems += [f"{damaged} (damaged)"] if damaged else []
    buildings = 0
    for name in tqdm([name for name in wanted if name in held and name != damaged], desc="checking", unit="map"):
        found, count = _file_problems(f"/vsizip/{{{path.absolute()}}}/{name}", contest)
        problems += [f"{name} ({problem})" for problem in found]
        buildings += count
    _raise(problems, f"{path} is not as the contest wants it")
    return buildings / (len(wanted) * contest.size_px**2)


def _raise(problems: Sequence[str], what: str) -> None:
    if problems:
        raise DatasetError(f"{what}, {len(problems)} violation(s): {name_some(problems, MOST_NAMES)}.")


def _map_problems(path: Path, contest: Contest) -> Iterator[str]:
    """Yield what keeps a map from being submitted."""
    if not path.exists():
        yield "missing"
        return
    try:
        with lying_nowhere(), rasterio.open(path) as dataset:
            yield from _shape_problems(dataset, contest)
            others: set[float] = set()
            for stored, valid in _chunks(dataset):
                others |= {*np.unique(stored[valid]).tolist()} - {0, 1, BUILDING}
            if others:
                named = name_some([f"{value:g}" for value in sorted(others)])
                yield f"values {named}, where 0 and 1 (or 0 and 255) are labels: is it a map of labels?"
    except GDAL_ERRORS as error:
        yield f"cannot be read: {one_line(error)}"


def _shape_problems(dataset: rasterio.DatasetReader, contest: Contest) -> Iterator[str]:
    if dataset.count != 1:
        yield f"{dataset.count} bands instead of 1"
    if dataset.dtypes[0] != "uint8":
        yield f"{dataset.dtypes[0]} instead of uint8"
    if dataset.shape != (contest.size_px, contest.size_px):
        yield f"{dataset.height} x {dataset.width} px instead of {contest.size_px} x {contest.size_px}"


def _file_problems(path: str, contest: Contest) -> tuple[list[str], int]:
    """Return what is wrong with a file of a submission, and its pixels of buildings."""
    buildings, others = 0, set[float]()
    try:
        with lying_nowhere(), rasterio.open(path) as dataset:
            problems = list(_shape_problems(dataset, contest))
            for stored, _ in _chunks(dataset):
                buildings += int((stored == BUILDING).sum())
                others |= {*np.unique(stored).tolist()} - {0, BUILDING}
    except GDAL_ERRORS as error:
        return [f"cannot be read: {one_line(error)}"], 0
    if others:
        problems.append(f"values {name_some([f'{value:g}' for value in sorted(others)])} beside 0 and 255")
    return problems, buildings


def _chunks(dataset: rasterio.DatasetReader) -> Iterator[tuple[NDArray[np.generic], NDArray[np.bool_]]]:
    """Yield the first band of a raster by runs of rows, and where it is valid."""
    for row in range(0, dataset.height, _CHUNK_ROWS):
        window = rasterio.windows.Window(0, row, dataset.width, min(_CHUNK_ROWS, dataset.height - row))
        yield dataset.read(1, window=window), dataset.read_masks(1, window=window) != 0


def _read_map(path: Path) -> tuple[NDArray[np.uint8], int, Mapping[str, Any]]:
    """Return a map in the contest's values, its pixels without data, and where it lies."""
    with lying_nowhere(), rasterio.open(path) as dataset:
        stored, valid = dataset.read(1), dataset.read_masks(1) != 0
        place = {"crs": dataset.crs, "transform": dataset.transform}
    return np.where(valid & (stored > 0), np.uint8(BUILDING), np.uint8(0)), int((~valid).sum()), place


if __name__ == "__main__":
    raise SystemExit(main())
