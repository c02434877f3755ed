"""Let several layers of Chesapeake Land Cover be read as one image, so that a network takes all of their bands.

    python data_scripts/stack_layers.py cvpr_chesapeake_landcover --layers naip-new landsat-leaf-on landsat-leaf-off
    geonorm fit ... --data.imagery naip-new+landsat-leaf-on+landsat-leaf-off

Beside the files of every tile in ROOT a file TILE_LAYER+LAYER.vrt is written, a few lines of XML that GDAL reads as one
raster; no pixel is copied, so the layers must stay where they are. geonorm predict takes such a file as its source.
Any layer will do that lies beside the tile: naip-new, naip-old, landsat-leaf-on, landsat-leaf-off, nlcd, buildings, or
one of your own named TILE_LAYER.tif. All must have the grid of the first. Files that are there are written anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
from _script import MOST_NAMES, Parser, run
from tqdm import tqdm

from geonorm.errors import DatasetError, InvalidConfigError, RasterError, name_some
from geonorm.files import written_whole
from geonorm.raster.read import GDAL_ERRORS, gdal_said

NAIP_BANDS = ("red", "green", "blue", "near infrared")
_TYPES = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32"}
_TYPES |= {"float32": "Float32", "float64": "Float64"}

Place = tuple[int, int, Any, Any]
"""Width, height, CRS and transform."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write a stack for every tile."""
    parser = Parser(__doc__)
    parser.add_argument("root", type=Path, help="folder cvpr_chesapeake_landcover, or one of its folders of tiles")
    parser.add_argument("--layers", nargs="+", required=True, metavar="LAYER", help="in the order of the bands")
    return run(_work, parser, argv)


def _work(options: argparse.Namespace) -> None:
    root, layers = options.root, options.layers
    if len(layers) < 2 or len({*layers}) < len(layers):
        raise InvalidConfigError(f"--layers must name two layers or more, each once, got {' '.join(layers)}.")
    first = f"_{layers[0]}.tif"
    tiles = sorted(root.rglob(f"*{first}"))
    if not tiles:
        problem = f"holds no tile (*{first})" if root.is_dir() else "is not there"
        raise DatasetError(f"{root} {problem}. Give cvpr_chesapeake_landcover.")
    stems = [tile.with_name(tile.name.removesuffix(first)) for tile in tiles]
    files = [[stem.with_name(f"{stem.name}_{layer}.tif") for layer in layers] for stem in stems]
    missing = [str(file) for stack in files for file in stack if not file.is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} layers are not there: {name_some(missing, MOST_NAMES)}.")
    for stem, stack in tqdm([*zip(stems, files, strict=True)], unit="tile"):
        text = stacked(stack, layers)
        with written_whole(stem.with_name(f"{stem.name}_{'+'.join(layers)}.vrt")) as made:
            made.write_text(text, encoding="utf-8")


def stacked(files: Sequence[Path], layers: Sequence[str]) -> str:
    """Return a GDAL VRT of all bands of some files of one folder, in their order and of a type that holds them all.

    Raises:
        RasterError: One cannot be read.
        DatasetError: One lies on another grid than the first.
    """
    grids, bands = [], []
    for file, layer in zip(files, layers, strict=True):
        try:
            with rasterio.open(file) as dataset:
                grids.append((dataset.width, dataset.height, dataset.crs, dataset.transform))
                bands += [(file.name, at, dataset.dtypes[at - 1], _name(layer, at)) for at in dataset.indexes]
        except GDAL_ERRORS as error:
            raise RasterError(f"{file} cannot be read: {gdal_said(error)}") from error
        if not _same(grids[0], grids[-1]):
            raise DatasetError(
                f"{file} has another grid than {files[0].name}: {_said(grids[-1])}, not {_said(grids[0])}."
            )
    width, height, crs, transform = grids[0]
    dtype = np.result_type(*(one for _, _, one, _ in bands)).name
    if dtype not in _TYPES:
        raise DatasetError(f"{files[0]} and its layers are of type {dtype}, which GDAL has no name for.")
    root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    if crs:
        ElementTree.SubElement(root, "SRS").text = crs.to_wkt()
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(map(repr, transform.to_gdal()))
    for number, (name, at, _, words) in enumerate(bands, start=1):
        band = ElementTree.SubElement(root, "VRTRasterBand", dataType=_TYPES[dtype], band=str(number))
        ElementTree.SubElement(band, "Description").text = words
        source = ElementTree.SubElement(band, "SimpleSource")
        ElementTree.SubElement(source, "SourceFilename", relativeToVRT="1").text = name
        ElementTree.SubElement(source, "SourceBand").text = str(at)
    return ElementTree.tostring(root, encoding="unicode")


def _name(layer: str, at: int) -> str:
    return f"{layer} {NAIP_BANDS[at - 1]}" if layer.startswith("naip") and at <= len(NAIP_BANDS) else f"{layer} {at}"


def _same(one: Place, other: Place) -> bool:
    return one[:3] == other[:3] and one[3].almost_equals(other[3], 1e-6)


def _said(grid: Place) -> str:
    return f"{grid[0]} x {grid[1]} px from {grid[3].c:g}, {grid[3].f:g} in {grid[2]}"


if __name__ == "__main__":
    raise SystemExit(main())
