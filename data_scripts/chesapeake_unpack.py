"""Unpack and check Chesapeake Land Cover (Robinson et al., CVPR 2019), whole or some states of it.

What to download by hand, once:

    1. cvpr_chesapeake_landcover.zip, by the links at https://lila.science/datasets/chesapeakelandcover
       (torchgeo: https://lilawildlife.blob.core.windows.net/lila-wildlife/lcmcvpr2019/cvpr_chesapeake_landcover.zip)
    2. For torchgeo's own data set only: cvpr_chesapeake_landcover_prior_extension.zip, from
       https://zenodo.org/records/5866525
    3. python data_scripts/chesapeake_unpack.py DOWNLOADS data --states md

This makes data/cvpr_chesapeake_landcover. geonorm needs the layers naip-new (or naip-old) and lc alone; torchgeo's
data set needs all states, all layers and the prior: --states all --layers all. The MD5s that torchgeo knows are
compared, each file's own checksum too. Then every tile of these states in spatial_index.geojson is opened. What is
unpacked already is left as it is: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from _archives import check_md5, unpack_zip
from _script import MOST_NAMES, Parser, run
from torchgeo.datasets import ChesapeakeCVPR, DatasetNotFoundError
from tqdm import tqdm

from geonorm.data.chesapeake import STATES
from geonorm.errors import DatasetError, RasterError, name_some
from geonorm.raster.read import open_raster

FOLDER = "cvpr_chesapeake_landcover"
INDEX = "spatial_index.geojson"
LAYERS = ChesapeakeCVPR.valid_layers
PRIOR = LAYERS[-1]
_BANDS = {"naip-new": 4, "naip-old": 4, "lc": 1}


def main(argv: Sequence[str] | None = None) -> int:
    """Unpack and check."""
    parser = Parser(__doc__)
    parser.add_argument("downloads", type=Path, help="folder with the zip files")
    parser.add_argument("out", type=Path, help=f"folder in which {FOLDER} is made, or lies")
    parser.add_argument("--states", nargs="+", choices=[*STATES, "all"], default=["md"], help="states to unpack")
    parser.add_argument(
        "--layers",
        nargs="+",
        choices=[*LAYERS, "all"],
        default=["naip-new", "naip-old", "lc"],
        metavar="LAYER",
        help=f"layers to unpack: {', '.join(LAYERS)}, or all",
    )
    parser.add_argument("--check", action="store_true", help="only check what lies in OUT")
    parser.add_argument("--no_checksum", action="store_true", help="do not compare the MD5 of the zips (saves minutes)")
    return run(_work, parser, argv)


def _work(options: argparse.Namespace) -> None:
    states = list(STATES) if "all" in options.states else list(options.states)
    layers = list(LAYERS) if "all" in options.layers else list(options.layers)
    folder = options.out / FOLDER
    if not options.check and _lacks(folder, states, layers):
        for subset in ("base", "prior_extension") if PRIOR in layers else ("base",):
            archive = options.downloads / ChesapeakeCVPR.filenames[subset]
            if not archive.is_file():
                raise DatasetError(f"{options.downloads} holds no {archive.name}. --help says what to download.")
            if not options.no_checksum:
                check_md5(archive, ChesapeakeCVPR.md5s[subset])
            new = unpack_zip(archive, folder, _placer(states, layers))
            print(f"{new} files of {archive.name} unpacked into {folder}.")
    tiles = check_tiles(folder, states, layers)
    for split, count in sorted(tiles.items()):
        print(f"{split}: {count} tiles with {', '.join(layers)}")
    print(_what_torchgeo_says(folder, sorted(tiles)))


def check_tiles(folder: Path, states: Sequence[str], layers: Sequence[str]) -> Counter[str]:
    """Open every file of these states and layers that the index names, and return how many tiles each split has.

    Raises:
        DatasetError: Files are missing, cannot be read, or do not fit together; all counted, the first named.
    """
    tiles = list(_tiles(folder, states))
    missing = [tile[layer] for tile in tiles for layer in layers if not (folder / tile[layer]).exists()]
    if missing:
        raise DatasetError(
            f"{folder} lacks {len(missing)} of {len(tiles) * len(layers)} files: {name_some(missing, MOST_NAMES)}. "
            "Unpack it again."
        )
    wrong = []
    for tile in tqdm(tiles, desc="checking", unit="tile"):
        grids = {}
        for layer in layers:
            try:
                with open_raster(folder / tile[layer]) as raster:
                    grids[layer] = raster.grid
                    if raster.count != _BANDS.get(layer, raster.count):
                        wrong.append(f"{tile[layer]} ({raster.count} bands instead of {_BANDS[layer]})")
            except RasterError as error:
                wrong.append(f"{tile[layer]} ({error})")
        if len({(grid.height, grid.width, grid.transform) for grid in grids.values()}) > 1:
            wrong.append(f"{tile[layers[0]]} (its layers lie on different grids)")
    if wrong:
        raise DatasetError(
            f"{len(wrong)} files in {folder} are not as they should be: {name_some(wrong, MOST_NAMES)}. Delete them, "
            "and unpack again."
        )
    return Counter(tile["split"] for tile in tiles)


def _tiles(folder: Path, states: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield split and files of the tiles of some states, as the index has them.

    Raises:
        DatasetError: There is no index, or it has no such tiles.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        tiles = [feature["properties"] for feature in index["features"]]
    except FileNotFoundError as error:
        raise DatasetError(f"{folder} has no {INDEX}. Unpack it first, without --check.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{folder / INDEX} is no index of tiles: {error}. Delete it, and unpack again.") from error
    for state in states:
        own = [tile for tile in tiles if str(tile.get("split")).startswith(f"{state}-")]
        if not own:
            raise DatasetError(f"{folder / INDEX} names no tiles of {state}. Choose other states.")
        for tile in own:
            # The index does not know the prior, which came later; its files are named after the land cover's.
            yield {**tile, PRIOR: str(tile.get("lc")).replace("lc.tif", f"{PRIOR}.tif")}


def _lacks(folder: Path, states: Sequence[str], layers: Sequence[str]) -> bool:
    """Return whether anything is still to be unpacked."""
    if not (folder / INDEX).exists():
        return True
    return any(not (folder / str(tile[layer])).exists() for tile in _tiles(folder, states) for layer in layers)


def _placer(states: Sequence[str], layers: Sequence[str]) -> Callable[[str], str | None]:
    """Return what says where a member belongs under the folder, None where it is of another state or layer."""
    folders = re.compile(rf"({'|'.join(states)})_1m_\d{{4}}_extended-debuffered-(train|val|test)_tiles")
    endings = tuple(f"_{layer}.tif" for layer in layers)

    def place(member: str) -> str | None:
        path = PurePosixPath(member)
        if path.name == INDEX:
            return INDEX
        fits = folders.fullmatch(path.parent.name) and path.name.endswith(endings)
        return f"{path.parent.name}/{path.name}" if fits else None

    return place


def _what_torchgeo_says(folder: Path, splits: Sequence[str]) -> str:
    try:
        ChesapeakeCVPR(str(folder), splits=splits)
    except DatasetNotFoundError:
        return "geonorm can use it; torchgeo's own data set needs all states, all layers and the prior."
    return "geonorm and torchgeo can use it."


if __name__ == "__main__":
    raise SystemExit(main())
