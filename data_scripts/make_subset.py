"""Take a small part of INRIA Aerial Image Labeling or Chesapeake Land Cover, in the same layout.

    python data_scripts/make_subset.py data small --tiles 4 --val_tiles 1 --test_tiles 1 --crop_px 1024
    geonorm fit --config configs/data/inria.yaml --data.root small ...

DATA is the folder that holds AerialImageDataset or cvpr_chesapeake_landcover, or one of these; drawn data sets will do.
From every city (or state) and split so many tiles are taken, spread over the share of buildings (or of built and barren
ground): with 4, one from each quarter of the tiles in order of that share. Validation tiles of INRIA are numbers 1 to 5
of each city, as in training. With --crop_px, a square of each tile is taken whose share is nearest the whole tile's,
else the tile as it is. Names stay, so the same configuration runs on it. Nothing is drawn at random: the same options
take the same pixels. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from _script import Parser, run
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.windows import Window
from tqdm import tqdm

from geonorm.data.inria import city_of
from geonorm.errors import DatasetError, InvalidConfigError, RasterError, name_some
from geonorm.files import check_space, written_whole
from geonorm.raster.read import GDAL_ERRORS, gdal_said
from geonorm.raster.write import lying_nowhere, write_image

INRIA, CHESAPEAKE = "AerialImageDataset", "cvpr_chesapeake_landcover"
INDEX = "spatial_index.geojson"
LAST_VAL_NUMBER = 5
BUILDINGS, UNMARKED = (1, 255), ()
BUILT, UNMAPPED = (4, 5, 6), (0, 15)


@dataclass(frozen=True)
class Scene:
    """The files of one tile, of which the last may be its labels."""

    group: str
    """Split and city, or split and state: tiles are taken from each."""
    split: str
    files: tuple[str, ...]
    """Paths under the data set's folder."""
    labels: str | None


@dataclass(frozen=True)
class Choice:
    """A scene that is taken, and which square of it; None takes it whole."""

    scene: Scene
    window: Window | None


def main(argv: Sequence[str] | None = None) -> int:
    """Take the subset."""
    parser = Parser(__doc__)
    parser.add_argument("data", type=Path, help="the data set, or the folder that holds it")
    parser.add_argument("out", type=Path, help="folder in which the data set's own is made")
    parser.add_argument("--tiles", type=int, default=4, help="training tiles of each city or state")
    parser.add_argument("--val_tiles", type=int, default=1, help="validation tiles of each")
    parser.add_argument("--test_tiles", type=int, default=1, help="test tiles of each")
    parser.add_argument("--crop_px", type=int, default=0, help="side of the square taken of a tile; 0: all of it")
    return run(_work, parser, argv)


def _work(options: argparse.Namespace) -> None:
    counts = {"train": options.tiles, "val": options.val_tiles, "test": options.test_tiles}
    if min(*counts.values(), options.crop_px) < 0:
        raise InvalidConfigError("--tiles, --val_tiles, --test_tiles and --crop_px must be 0 or more.")
    folder = _find_folder(options.data)
    values, ignored = (BUILDINGS, UNMARKED) if folder.name == INRIA else (BUILT, UNMAPPED)
    scenes = inria_scenes(folder) if folder.name == INRIA else chesapeake_scenes(folder)
    target = options.out / folder.name
    if target.resolve() == folder.resolve():
        raise DatasetError(f"{target} is the data set itself. Choose another folder.")
    choices = choose(folder, scenes, counts, crop_px=options.crop_px, values=values, ignored=ignored)
    wanted = {target / file for choice in choices for file in choice.scene.files}
    others = sorted(path for path in target.rglob("*.tif") if path not in wanted and not _hidden(path, target))
    if others:
        raise DatasetError(
            f"{target} holds {len(others)} tiles that are not of this subset: {name_some([p.name for p in others])}. "
            "Delete them, or choose another folder."
        )
    taken = [(choice, file) for choice in choices for file in choice.scene.files]
    check_space(target, sum(_bytes(folder / file, choice.window) for choice, file in taken), what="the subset")
    for choice, file in tqdm(taken, desc="taking", unit="file"):
        if not _is_there(folder / file, target / file, choice.window):
            _take(folder / file, target / file, choice.window)
    if folder.name == CHESAPEAKE and (folder / INDEX).exists():
        _write_index(folder, target, wanted)
    print(f"{target}: {len(choices)} tiles of {len({choice.scene.group for choice in choices})} groups.")


def inria_scenes(folder: Path) -> list[Scene]:
    """Return the tiles of a folder ``AerialImageDataset``; those to test on have no labels, where it has none."""
    scenes = []
    for part in ("train", "test"):
        for path in sorted((folder / part / "images").glob("*.tif")):
            number = re.search(r"(\d+)$", path.stem)
            is_val = part == "train" and number is not None and int(number[1]) <= LAST_VAL_NUMBER
            split = "val" if is_val else part
            image, mask = f"{part}/images/{path.name}", f"{part}/gt/{path.name}"
            labels = mask if (folder / mask).exists() else None
            if part == "train" and labels is None:
                raise DatasetError(f"{folder / image} has no mask {mask}. Complete the data set first.")
            files = (image, mask) if labels else (image,)
            scenes.append(Scene(f"{split} {city_of(path.stem)}", split, files, labels))
    return _some(scenes, folder)


def chesapeake_scenes(folder: Path) -> list[Scene]:
    """Return the tiles of a folder ``cvpr_chesapeake_landcover``, each with all its layers."""
    scenes = []
    for labels in sorted(folder.glob("*_extended-debuffered-*_tiles/*_lc.tif")):
        state, split = labels.parent.name[:2], labels.parent.name.split("-")[-1].removesuffix("_tiles")
        layers = sorted(labels.parent.glob(f"{labels.name.removesuffix('lc.tif')}*.tif"))
        files = tuple(path.relative_to(folder).as_posix() for path in layers)
        scenes.append(Scene(f"{split} {state}", split, files, labels.relative_to(folder).as_posix()))
    return _some(scenes, folder)


def choose(
    folder: Path,
    scenes: Sequence[Scene],
    counts: dict[str, int],
    *,
    crop_px: int,
    values: Sequence[int],
    ignored: Sequence[int],
) -> list[Choice]:
    """Return the tiles to take, spread over the shares of a class in each group.

    Args:
        folder: Where the scenes lie.
        scenes: All there are.
        counts: Tiles of each group, by split.
        crop_px: Side of the square taken of each, 0 for all of it.
        values: Label values of the class that is looked at.
        ignored: Label values that do not count.
    """
    crops = {}
    shares = {}
    wanted = [scene for scene in scenes if counts[scene.split]]
    for scene in tqdm(wanted, desc="looking", unit="tile"):
        shares[scene], crops[scene] = _share_and_window(folder, scene, crop_px, values, ignored)
    groups: dict[str, list[Scene]] = {}
    for scene in wanted:
        groups.setdefault(scene.group, []).append(scene)
    choices = []
    for group, members in sorted(groups.items()):
        count = counts[members[0].split]
        if len(members) < count:
            raise DatasetError(f"{group} has {len(members)} tiles in {folder}, {count} are asked for. Take fewer.")
        ordered = sorted(members, key=lambda scene: (shares[scene], scene.files))
        middles = [int((number + 0.5) * len(members) / count) for number in range(count)]
        choices += [Choice(ordered[middle], crops[ordered[middle]]) for middle in middles]
    return choices


def _share_and_window(
    folder: Path, scene: Scene, crop_px: int, values: Sequence[int], ignored: Sequence[int]
) -> tuple[float, Window | None]:
    """Return the share of the class in a tile, and the square whose share is nearest; the middle without labels."""
    path = folder / (scene.labels or scene.files[0])
    try:
        with lying_nowhere(), rasterio.open(path) as dataset:
            height, width = dataset.shape
            if crop_px > min(height, width):
                raise InvalidConfigError(f"{path} is {height} x {width}, less than --crop_px {crop_px}. Take less.")
            labels = dataset.read(1) if scene.labels else None
    except GDAL_ERRORS as error:
        raise RasterError(f"{path} cannot be read: {gdal_said(error)}") from error
    if labels is None:
        middle = Window((width - crop_px) // 2, (height - crop_px) // 2, crop_px, crop_px)
        return 0.0, middle if crop_px else None
    counted, held = ~np.isin(labels, ignored), np.isin(labels, values)
    share = held.sum() / max(1, counted.sum())
    if not crop_px:
        return float(share), None
    pixels, inside = _cells(counted, crop_px), _cells(held, crop_px)
    apart = np.where(pixels >= crop_px**2 / 2, np.abs(inside / np.maximum(pixels, 1) - share), np.inf)
    row, col = np.unravel_index(int(apart.argmin()), apart.shape)
    return float(share), Window(int(col) * crop_px, int(row) * crop_px, crop_px, crop_px)


def _cells(where: NDArray[np.bool_], side: int) -> NDArray[np.int_]:
    """Return how many pixels of each whole square are True."""
    rows, cols = where.shape[0] // side, where.shape[1] // side
    return where[: rows * side, : cols * side].reshape(rows, side, cols, side).sum(axis=(1, 3))


def _take(source: Path, target: Path, window: Window | None) -> None:
    if window is None:
        with written_whole(target) as made:
            shutil.copyfile(source, made)
        return
    try:
        with lying_nowhere(), rasterio.open(source) as dataset:
            values, nodata, crs = dataset.read(window=window), dataset.nodata, dataset.crs
            transform = None if dataset.transform.is_identity else _moved(dataset.transform, window)
    except GDAL_ERRORS as error:
        raise RasterError(f"{source} cannot be read: {gdal_said(error)}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    tiled = window.height >= 256
    write_image(target, values, crs=crs, transform=transform, nodata=nodata, tiled=tiled)


def _is_there(source: Path, target: Path, window: Window | None) -> bool:
    """Return whether a file was taken before, in the same place; what appears is whole."""
    if not target.exists():
        return False
    if window is None:
        return target.stat().st_size == source.stat().st_size
    try:
        with lying_nowhere(), rasterio.open(source) as whole, rasterio.open(target) as part:
            place = whole.transform if whole.transform.is_identity else _moved(whole.transform, window)
            return part.shape == (window.height, window.width) and part.transform.almost_equals(place)
    except GDAL_ERRORS:
        return False


def _moved(transform: Affine, window: Window) -> Affine:
    """Return the transform of a part of a raster; affine 2 and 3 have no product in common that does not warn."""
    t, row, col = transform, window.row_off, window.col_off
    return Affine(t.a, t.b, t.a * col + t.b * row + t.c, t.d, t.e, t.d * col + t.e * row + t.f)


def _write_index(folder: Path, target: Path, wanted: set[Path]) -> None:
    """Write the index of the tiles that were taken, with where they lie now."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    features = []
    for feature in index["features"]:
        place = target / feature["properties"]["lc"]
        if place in wanted:
            features.append({**feature, "geometry": _footprint(place)})
    with written_whole(target / INDEX) as made:
        made.write_text(json.dumps({**index, "features": features}, indent=1) + "\n", encoding="utf-8")


def _footprint(path: Path) -> dict[str, Any]:
    """Return the outline of a raster in web Mercator."""
    with rasterio.open(path) as dataset:
        left, bottom, right, top = dataset.bounds
        to_web = Transformer.from_crs(dataset.crs, 3857, always_xy=True)
    xs, ys = to_web.transform([left, right, right, left, left], [top, top, bottom, bottom, top])
    return {"type": "Polygon", "coordinates": [[[float(x), float(y)] for x, y in zip(xs, ys, strict=True)]]}


def _find_folder(data: Path) -> Path:
    for folder in (data / INRIA, data / CHESAPEAKE, data):
        if folder.is_dir() and folder.absolute().name in (INRIA, CHESAPEAKE):
            return folder.absolute()
    raise DatasetError(f"{data} is neither {INRIA} nor {CHESAPEAKE}, and holds neither. Check the folder.")


def _some(scenes: list[Scene], folder: Path) -> list[Scene]:
    if not scenes:
        raise DatasetError(f"{folder} holds no tiles. Unpack the data set first.")
    return scenes


def _bytes(path: Path, window: Window | None) -> int:
    if window is None:
        return path.stat().st_size
    with lying_nowhere(), rasterio.open(path) as dataset:
        return int(window.height * window.width * sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes))


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


if __name__ == "__main__":
    raise SystemExit(main())
