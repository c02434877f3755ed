"""How fast are training patches read from large tiles, beside torchgeo, and how much memory does a worker take?

python benchmarks/sampling.py                                           both layouts
python benchmarks/sampling.py --layouts inria                           5000 x 5000 px, striped as distributed
python benchmarks/sampling.py --layouts inria --block-px 512            the same tiles, re-tiled
python benchmarks/sampling.py --layouts chesapeake                      6000 x 7000 px of four bands

Patches are read, put together to batches and prepared as for a training step, in one process and by turns; CPU seconds
a patch. Then one worker reads while its unique memory is looked at, beside that of a worker that reads nothing.
torchgeo's INRIA module reads a tile for every patch, and its Chesapeake module a window of three times the side. The
limit: bytes of a patch's pixels and labels read once, and written once as the step gets them, at the speed of a copy;
for the memory of a worker, a batch of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _alternate import alternate
from _limits import limit_of_bytes
from _lines import Limit, print_line, print_ratios
from _memory import unique_bytes
from _options import option_parser, parse, words_of
from _rasters import new_raster
from affine import Affine
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geonorm.data import ChesapeakeDataModule, InriaDataModule

INRIA_PATCH_PX, CHESAPEAKE_PATCH_PX = 572, 256
PAPER_BATCH = {"inria": 12, "chesapeake": 96}
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    layouts: tuple[str, ...] = ("inria", "chesapeake")
    """Of the files."""
    tiles: int = 3
    """To train on."""
    side_px: int = 0
    """Side of the tiles; 0 for those of the data set."""
    block_px: int = 0
    """Side of the blocks; 0 for strips (INRIA) or 512 px (Chesapeake)."""
    batch_size: int = 2
    """Of the patches that are timed."""
    batches: int = 3
    """Read in each round."""
    rounds: int = 7
    """Of measuring."""
    memory_batches: int = 30
    """Read by the worker whose memory is looked at."""


QUICK = {"tiles": 2, "batches": 1, "rounds": 2, "memory_batches": 5}


def main(case: Case) -> None:
    """Print JSON lines for each layout: each way of reading, and the memory of a worker."""
    if len(case.layouts) > 1:  # a worker inherits what its process has read before
        for layout in case.layouts:
            subprocess.run([sys.executable, __file__, *words_of(replace(case, layouts=(layout,)))], check=True)
        return
    # torchgeo takes the first letters with digits behind them, anywhere in a path, for a tile's name.
    with _folder_without_digits() as root:
        _measure(case.layouts[0], root, case)


def _measure(layout: str, root: Path, case: Case) -> None:
    make = {"inria": _inria, "chesapeake": _chesapeake}[layout]
    ways = make(root, case)
    blocks = f"blocks of {case.block_px} px" if case.block_px else "as distributed"
    facts: dict[str, Any] = {"layout": layout, "block_px": case.block_px, "tiles": case.tiles}
    # First: a worker is a copy of this process, and what it inherits and then changes is its own.
    size = PAPER_BATCH[layout]
    idle, reading = _worker_memory(ways["geonorm"], batch_size=size, batches=case.memory_batches)
    patch_bytes, read_bytes = _patch_bytes(next(_batches(ways["geonorm"])))
    seconds = alternate({way: _reader(data, case.batches) for way, data in ways.items()}, rounds=case.rounds)
    print_ratios(
        {way: [value / (case.batches * case.batch_size) for value in values] for way, values in seconds.items()},
        to="geonorm",
        benchmark="sampling",
        case=f"{layout}, {blocks}, a patch",
        limit=limit_of_bytes(patch_bytes + read_bytes, f"{(patch_bytes + read_bytes) / 1e6:.1f} MB"),
        batch_size=case.batch_size,
        **facts,
    )
    print_line(
        "sampling",
        f"{layout}, {blocks}, a worker",
        "geonorm",
        reading - idle,
        "B above an idle one",
        limit=Limit(size * read_bytes, f"the {size} patches of a batch"),
        batch_size=size,
        idle_worker_bytes=idle,
        **facts,
    )


def _patch_bytes(batch: dict[str, Tensor]) -> tuple[int, int]:
    """Return the bytes of a patch as the step gets it, and as it lies in the files: one for each value."""
    made, values = 0, 0
    for key in ("image", "mask"):
        made += batch[key][0].nbytes
        values += batch[key][0].numel()
    return made, values


@contextmanager
def _folder_without_digits() -> Iterator[Path]:
    root = Path(tempfile.gettempdir()) / f"geonorm_sampling_{os.getpid()}"
    root.mkdir()
    try:
        yield root
    finally:
        shutil.rmtree(root)


def _inria(root: Path, case: Case) -> dict[str, Any]:
    folder = root / "AerialImageDataset" / "train"
    names = [f"austin{number}" for number in range(1, case.tiles + 6)]  # five to validate on
    draw = np.random.default_rng(0)
    for name in names:
        size = (case.side_px or 5000) if int(name[6:]) > 5 else 600
        place: dict[str, Any] = {"epsg": 26914, "pixel_m": 0.3, "west": 600_000 + 1500 * int(name[6:])}
        image = draw.integers(0, 256, (3, size, size), dtype=np.uint8)
        _write(folder / "images" / f"{name}.tif", image, block_px=case.block_px or None, **place)
        mask = np.kron(draw.integers(0, 2, (size // 50, size // 50)), np.ones((50, 50))).astype(np.uint8) * 255
        _write(folder / "gt" / f"{name}.tif", mask[None], block_px=case.block_px or None, **place)
    (root / "AerialImageDataset" / "test" / "images").mkdir(parents=True)
    from torchgeo.datamodules import InriaAerialImageLabelingDataModule

    ours = InriaDataModule(
        root, patch_px=INRIA_PATCH_PX, batch_size=case.batch_size, patches_per_epoch=10_000, num_workers=0
    )
    theirs = InriaAerialImageLabelingDataModule(
        batch_size=case.batch_size, patch_size=INRIA_PATCH_PX, num_workers=0, root=str(root)
    )
    return _set_up({"geonorm": ours, "torchgeo": theirs})


def _chesapeake(root: Path, case: Case) -> dict[str, Any]:
    """Write tiles with the names, the grids and the index of Chesapeake Land Cover."""
    from torchgeo.datamodules import ChesapeakeCVPRDataModule
    from torchgeo.datasets import ChesapeakeCVPR

    folder = root / "cvpr_chesapeake_landcover"
    draw = np.random.default_rng(0)
    features = []
    for split in SPLITS:
        part = folder / f"md_1m_2013_extended-debuffered-{split}_tiles"
        for number in range(case.tiles):
            height, width = (case.side_px or 6000, case.side_px or 7000)
            stem = f"m_{3907000 + number}_nw_18_1"
            place: dict[str, Any] = {"epsg": 26918, "pixel_m": 1.0, "west": 330_000 + 7500 * number, "north": 4_330_000}
            image = draw.integers(0, 256, (4, height, width), dtype=np.uint8)
            _write(part / f"{stem}_naip-new.tif", image, block_px=case.block_px or 512, **place)
            labels = np.kron(draw.integers(1, 7, (height // 50, width // 50)), np.ones((50, 50))).astype(np.uint8)
            _write(part / f"{stem}_lc.tif", labels[None], block_px=case.block_px or 512, **place)
            features.append(_feature(part, stem, split, place, height, width))
    for name in ChesapeakeCVPR._files:  # torchgeo looks for the folders of all states before it reads one
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.touch()
        else:
            path.mkdir(exist_ok=True)
    index = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
        "features": features,
    }
    (folder / "spatial_index.geojson").write_text(json.dumps(index), encoding="utf-8")
    ours = ChesapeakeDataModule(
        root, patch_px=CHESAPEAKE_PATCH_PX, batch_size=case.batch_size, patches_per_epoch=10_000, num_workers=0
    )
    theirs = ChesapeakeCVPRDataModule(
        train_splits=["md-train"],
        val_splits=["md-val"],
        test_splits=["md-test"],
        batch_size=case.batch_size,
        patch_size=CHESAPEAKE_PATCH_PX,
        length=10_000,
        num_workers=0,
        class_set=5,
        root=str(folder),
    )
    return _set_up({"geonorm": ours, "torchgeo": theirs})


def _feature(part: Path, stem: str, split: str, place: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    from rasterio.warp import transform_geom

    west, north = place["west"], place["north"]
    corners = [(west, north), (west + width, north), (west + width, north - height), (west, north - height)]
    outline = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
    files = {layer: f"{part.name}/{stem}_{layer}.tif" for layer in ("naip-new", "lc")}
    others = ("naip-old", "landsat-leaf-on", "landsat-leaf-off", "nlcd", "buildings")
    files |= {layer: f"{part.name}/{stem}_{layer}.tif" for layer in others}
    return {
        "type": "Feature",
        "properties": {**files, "split": f"md-{split}"},
        "geometry": transform_geom(f"EPSG:{place['epsg']}", "EPSG:3857", outline),
    }


def _write(
    path: Path,
    values: np.ndarray[Any, Any],
    *,
    block_px: int | None,
    epsg: int,
    pixel_m: float,
    west: float = 620_000,
    north: float = 3_350_000,
) -> None:
    count, height, width = values.shape
    place: dict[str, Any] = {"crs": f"EPSG:{epsg}", "transform": Affine(pixel_m, 0, west, 0, -pixel_m, north)}
    with new_raster(path, bands=count, height=height, width=width, block_px=block_px, **place) as raster:
        raster.write(values)


def _set_up(ways: dict[str, Any]) -> dict[str, Any]:
    class Training:  # what torchgeo asks its trainer about
        training = True
        validating = testing = predicting = sanity_checking = False
        global_rank, world_size = 0, 1

    for data in ways.values():
        data.setup("fit")
        data.trainer = Training()
    return ways


def _batches(data: Any, *, workers: int = 0) -> Iterator[Any]:
    data.num_workers = workers
    for batch in data.train_dataloader():
        moved = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
        yield data.on_after_batch_transfer(moved, 0)


def _reader(data: Any, batches: int) -> Callable[[], object]:
    source: list[Iterator[Any]] = []

    def read() -> None:
        left = batches
        while left:
            new = not source
            if new:
                source.append(_batches(data))
            taken = sum(1 for _ in islice(source[0], left))
            if new and not taken:
                raise SystemExit("an epoch has no batch: more tiles than patches in a batch, please")
            if taken < left:
                source.clear()  # the epoch of a few tiles is over
            left -= taken

    return read


class _Nothing(Dataset[torch.Tensor]):
    """What a worker reads that does nothing."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(1)


def _worker_memory(data: Any, *, batch_size: int, batches: int) -> tuple[int, int]:
    """Return the most memory that one worker held for itself, idle and while it read batches of some size."""
    usual = data.batch_size
    data.batch_size = batch_size
    data.setup("fit")
    idle = _most_bytes(iter(DataLoader(_Nothing(batches), num_workers=1)), batches)
    reading = _most_bytes(_batches(data, workers=1), batches)
    data.batch_size = usual
    data.setup("fit")
    return idle, reading


def _most_bytes(batches: Iterator[Any], count: int) -> int:
    most, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.02):
            with suppress(OSError):
                most[0] = max([most[0], *map(unique_bytes, _children(os.getpid()))])

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in islice(batches, count):
        time.sleep(0.05)
    stop.set()
    watcher.join()
    return most[0]


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _parser = option_parser(__doc__, Case(), choices={"layouts": ("inria", "chesapeake")})
    main(parse(_parser, Case, sys.argv[1:], quick=QUICK)[0])
