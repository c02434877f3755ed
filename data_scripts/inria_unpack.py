"""Unpack and check the INRIA Aerial Image Labeling data set.

What to download by hand, once, behind a form where the terms of use are to be accepted:

    1. Open https://project.inria.fr/aerialimagelabeling/ and fill in the form under Download.
    2. Save the five parts into one folder: aerialimagelabeling.7z.001, .002, .003, .004, .005
       (or NEW2-AerialImageDataset.zip, which they hold, where a mirror offers that).
    3. python data_scripts/inria_unpack.py DOWNLOADS data

This makes data/AerialImageDataset with train/images, train/gt and test/images: 360 images of 75 MB and 180 masks. The
7z archive needs the program 7z, or py7zr (pip install 'geonorm[archives]'). The MD5 that torchgeo knows of
NEW2-AerialImageDataset.zip is compared, each file's own checksum too. Then all tiles are looked for by name (36 of each
of 5 cities to train on and 5 to test on) and opened. What is unpacked already is left as it is: the same command goes
on after an interruption. Afterwards the downloads can be deleted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from _archives import check_md5, find_parts, unpack_7z, unpack_zip
from _script import MOST_NAMES, Parser, run
from torchgeo.datasets import InriaAerialImageLabeling
from tqdm import tqdm

from geonorm.errors import DatasetError, RasterError, name_some
from geonorm.raster.read import open_raster

PARTS_NAME, PARTS = "aerialimagelabeling.7z", 5
TRAIN_CITIES = ("austin", "chicago", "kitsap", "tyrol-w", "vienna")
TEST_CITIES = ("bellingham", "bloomington", "innsbruck", "sfo", "tyrol-e")
RESOLUTION_M = (0.28, 0.32)
"""Between these lies the size of a pixel on the ground, measured on the ellipsoid: 0.3 m in the grid of the file."""
_FOLDERS = {("train", "images"), ("train", "gt"), ("test", "images")}


def main(argv: Sequence[str] | None = None) -> int:
    """Unpack and check."""
    parser = Parser(__doc__)
    parser.add_argument("downloads", type=Path, help="folder with the parts or the zip, or the zip itself")
    parser.add_argument("out", type=Path, help="folder in which AerialImageDataset is made, or lies")
    parser.add_argument("--check", action="store_true", help="only check what lies in OUT")
    parser.add_argument("--no_checksum", action="store_true", help="do not compare the MD5 of the zip (saves minutes)")
    parser.add_argument("--tiles_per_city", type=int, default=36, help="of a subset: fewer")
    parser.add_argument("--size_px", type=int, default=5000, help="side of a tile")
    return run(_work, parser, argv)


def _work(options: argparse.Namespace) -> None:
    folder = options.out / InriaAerialImageLabeling.directory
    if not options.check and any(not (folder / name).exists() for name in expected_files(options.tiles_per_city)):
        options.out.mkdir(parents=True, exist_ok=True)
        archive = _find_zip(options.downloads, options.out)
        if not options.no_checksum:
            check_md5(archive, InriaAerialImageLabeling.md5)
        new = unpack_zip(archive, folder, _place)
        print(f"{new} files unpacked into {folder}; {archive} is no longer needed.")
    check_layout(folder, tiles_per_city=options.tiles_per_city, size_px=options.size_px)
    count = options.tiles_per_city
    print(
        f"{folder} is complete: {count} tiles of {options.size_px} x {options.size_px} px of each of "
        f"{', '.join(TRAIN_CITIES)} with masks, and of {', '.join(TEST_CITIES)} without."
    )


def expected_files(tiles_per_city: int) -> Iterator[str]:
    """Yield the paths of all files under ``AerialImageDataset``."""
    for part, cities in (("train/images", TRAIN_CITIES), ("train/gt", TRAIN_CITIES), ("test/images", TEST_CITIES)):
        for city in cities:
            yield from (f"{part}/{city}{number}.tif" for number in range(1, tiles_per_city + 1))


def check_layout(folder: Path, *, tiles_per_city: int, size_px: int) -> None:
    """Look for every tile by name and open it.

    Raises:
        DatasetError: Tiles are missing, or cannot be read, or are of another size; all counted, the first named.
    """
    names = list(expected_files(tiles_per_city))
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise DatasetError(
            f"{folder} lacks {len(missing)} of {len(names)} files: {name_some(missing, MOST_NAMES)}. Unpack it again."
        )
    wrong = []
    for name in tqdm(names, desc="checking", unit="file"):
        problem = _problem(folder / name, bands=1 if "/gt/" in name else 3, size_px=size_px)
        if problem:
            wrong.append(f"{name} ({problem})")
    if wrong:
        raise DatasetError(
            f"{len(wrong)} of {len(names)} files in {folder} are not as they should be: "
            f"{name_some(wrong, MOST_NAMES)}. Delete them, and unpack again."
        )


def _problem(path: Path, *, bands: int, size_px: int) -> str:
    """Return what is wrong with a tile, nothing if it is right."""
    try:
        with open_raster(path) as raster:
            grid = raster.grid
            if (grid.height, grid.width) != (size_px, size_px):
                return f"{grid.height} x {grid.width} px instead of {size_px} x {size_px}"
            if raster.count != bands:
                return f"{raster.count} bands instead of {bands}"
            if raster.dtype.name != "uint8":
                return f"{raster.dtype.name} instead of uint8"
            low, high = RESOLUTION_M
            if grid.resolution_m is not None and not low < grid.resolution_m < high:
                return f"{grid.resolution_m:.2f} m a pixel instead of 0.3 m"
    except RasterError as error:
        return str(error)
    return ""


def _find_zip(downloads: Path, out: Path) -> Path:
    """Return the zip, which is unpacked from its parts where it is not there."""
    name = InriaAerialImageLabeling.filename
    if not downloads.exists():
        raise DatasetError(f"there is no {downloads}. Give the folder of the downloads; --help says what to download.")
    if downloads.is_file() and downloads.suffix == ".zip":
        return downloads
    downloads = downloads.parent if downloads.is_file() else downloads  # one of the parts
    for folder in (downloads, out):
        if (folder / name).is_file():
            return folder / name
    parts = find_parts(downloads, PARTS_NAME, PARTS)
    if not parts:
        raise DatasetError(
            f"{downloads} holds neither {PARTS_NAME}.001 to .{PARTS:03d} nor {name}. --help says what to download."
        )
    unpack_7z(parts, name, out / name)
    return out / name


def _place(member: str) -> str | None:
    """Return the path of a member under ``AerialImageDataset``, None for what is no tile.

    Example:
        >>> _place("AerialImageDataset/train/gt/austin1.tif"), _place("../train/notes.txt")
        ('train/gt/austin1.tif', None)
    """
    path = PurePosixPath(member)
    if len(path.parts) < 3 or path.parts[-3:-1] not in _FOLDERS or path.suffix != ".tif":
        return None
    return "/".join(path.parts[-3:])


if __name__ == "__main__":
    raise SystemExit(main())
