"""What do geonorm's tiles cost beside MONAI's and TerraTorch's: CPU time around the model, and memory?

python benchmarks/peers.py                                                      small cases, in seconds
python benchmarks/peers.py --only time --size-px 4096 --rounds 7                around a model that is nearly free
python benchmarks/peers.py --only time --size-px 4096 --rounds 7 --model unet   all of it, with a ResNet-34 U-Net
python benchmarks/peers.py --only memory --memory-px 4096 8192                  peaks, and bytes for each further pixel

The peers are MONAI and TerraTorch (packages monai and terratorch); one that is missing is skipped. All ways read the
same file, call the same network on tiles of core + 2 halo pixels every core pixels, and write the same kind of map.
The limit: the larger of the network's operations at the most this machine computes, and of the bytes that no way can do
without (pixels read, as float32 to the network, logits, labels) at the speed of a copy.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import torch
from _alternate import alternate
from _limits import flops_of, limit_of_bytes, limit_of_flops
from _lines import Limit, print_line, print_ratios, print_skipped
from _memory import peak_bytes
from _options import option_parser, parse, words_of
from _rasters import BLOCK_PX, draw_scene
from affine import Affine
from rasterio.windows import Window
from torch import Tensor, nn

from geonorm.inference import predict_raster
from geonorm.models import Rescale, build_smp
from geonorm.models.predictor import predictor

PEERS = {"MONAI": ("monai", "monai.inferers"), "TerraTorch": ("terratorch", "terratorch.tasks.tiled_inference")}
CLASSES = {"near-free": 6, "unet": 2}
CACHE_BYTES = 64 * 2**20  # geonorm's bound of GDAL's cache; GDAL's own is 5 % of the machine's memory
DISTINCT_TILES = 32  # so many that none is still in the processor's cache when its turn comes again

Shapes = list[tuple[int, ...]]
"""Of the inputs of the network, call by call."""
Way = Callable[[Path, Path], Shapes]
"""Reads a raster, writes its map, and says what the network was called with."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is common to all ways; each field is an option of the command line."""

    model: str = "near-free"
    """A single 3 x 3 convolution, or "unet"."""
    classes: int = 0
    """Classes; 0 for 6 (near-free) or 2 (unet)."""
    size_px: int = 1024
    """Side of the raster."""
    origin_px: int = 0
    """Pixels between the raster's corner and a line of geonorm's grid, which lies where the CRS says."""
    core_px: int = 512
    """Distance of the tiles."""
    halo_px: int = 64
    """By which a tile is larger on each side."""
    batch_size: int = 1
    """Tiles per call of the network."""
    threads: int = 1
    """Of torch; GDAL compresses the last copy with all there are."""
    rounds: int = 2
    """Of measuring time."""
    memory_px: tuple[int, ...] = (1024, 2048)
    """Sides of the rasters for memory."""

    @property
    def tile_px(self) -> int:
        """Side of what the network sees."""
        return self.core_px + 2 * self.halo_px

    @property
    def num_classes(self) -> int:
        """Classes of the network."""
        return self.classes or CLASSES[self.model]


MEASURES = ("time", "memory")
QUICK = {"memory_px": (1024, 1536)}


def main(case: Case) -> None:
    """Print JSON lines: of the whole, of what is beside the network, each against geonorm."""
    network = _network(case)
    ways = dict(_ways(case, network))
    seen: dict[str, Shapes] = {}
    wall: dict[str, list[float]] = {name: [] for name in ways}

    def whole(name: str) -> None:
        began = time.monotonic()
        seen[name] = ways[name](source, _map(folder, name))
        wall[name].append(time.monotonic() - began)

    def alone(name: str) -> None:
        _model_alone(name, network, tiles, seen[name])

    with _raster(case, case.size_px) as (folder, source):
        tiles = _tiles(source, case)
        runs: dict[str, Callable[[], object]] = {}
        for name in ways:
            runs[name] = partial(whole, name)
            runs[f"{name} model"] = partial(alone, name)
        seconds = alternate(runs, rounds=case.rounds)
        unlike = {name: _share_unlike(_map(folder, name), _map(folder, "geonorm")) for name in ways}

    total = {name: seconds[name] for name in ways}
    model = {name: seconds[f"{name} model"] for name in ways}
    around = {name: [a - b for a, b in zip(total[name], model[name], strict=True)] for name in ways}
    title = f"{case.model}, {case.size_px} px, core {case.core_px}, halo {case.halo_px}"
    each = {
        name: {
            "version": _version(name),
            "tiles": sum(shape[0] for shape in seen[name]),
            "computed_per_pixel": round(sum(n * h * w for n, _, h, w in seen[name]) / case.size_px**2, 3),
            "seconds_model": round(statistics.median(model[name]), 3),
            "seconds_beside_it": round(statistics.median(around[name]), 3),
            "wall_seconds": round(statistics.median(wall[name][1:]), 3),
            "labels_unlike_geonorm": unlike[name],
        }
        for name in ways
    }
    title = f"{case.model}, {case.size_px} px, core {case.core_px}, halo {case.halo_px}"
    facts: dict[str, Any] = {"to": "geonorm", "benchmark": "peers", **_facts(case)}
    print_ratios(total, each, case=title, limit=_limit(case, network), **facts)
    if case.model == "near-free":  # else what is beside the model is less than the noise of the two it is between
        print_ratios(around, each, case=f"{title}, without the network", limit=_limit(case), **facts)


def _limit(case: Case, network: nn.Module | None = None) -> Limit:
    """Return the seconds that no way can do without, with the network or beside it."""
    pixels, of_tiles = case.size_px**2, (case.tile_px / case.core_px) ** 2
    # Read from the file and written as float32 for each tile; logits read, labels written.
    count = pixels * (3 * (1 + 4 * of_tiles) + 4 * case.num_classes + 1)
    if network is None:
        return limit_of_bytes(count, f"{count / pixels:.0f} bytes a pixel")
    count += pixels * of_tiles * 4 * (3 + case.num_classes)  # the network reads tiles and writes logits
    moved = limit_of_bytes(count, f"{count / pixels:.0f} bytes a pixel")
    with torch.no_grad():
        flops = flops_of(lambda: network(torch.zeros(1, 3, case.tile_px, case.tile_px)))
    return max(moved, limit_of_flops(flops * pixels / case.core_px**2))


def measure_memory(case: Case) -> None:
    """Print one JSON line a way: by how much the peaks of processes of its own grow from the first size to the last."""
    names = [name for name, _ in _ways(case, nn.Identity(), silent=True)]
    peaks: dict[str, list[int]] = {}
    for size_px in case.memory_px:
        with _raster(case, size_px) as (folder, source):
            for name in names:
                command = [sys.executable, __file__, *words_of(case), "--one", name, source, _map(folder, name)]
                done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
                peaks.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    first_px, last_px = case.memory_px[0], case.memory_px[-1]
    for name, values in peaks.items():
        print_line(
            "peers",
            f"memory from {first_px} to {last_px} px, {case.model}",
            name,
            (values[-1] - values[0]) / max(1, last_px**2 - first_px**2),
            "B a further pixel",
            ratios=None if name == "geonorm" else [values[-1] / peaks["geonorm"][-1]],
            peer="geonorm's peak",
            limit=Limit(0, "a stream keeps none"),
            version=_version(name),
            peak_bytes=values,
        )


def run_one(case: Case, name: str, source: Path, target: Path) -> None:
    """Run one way, and print the peak of this process."""
    dict(_ways(case, _network(case), among=[name]))[name](source, target)
    print(json.dumps(peak_bytes()))


def _ways(
    case: Case, network: nn.Module, *, among: Collection[str] = ("geonorm", *PEERS), silent: bool = False
) -> Iterator[tuple[str, Way]]:
    """Yield geonorm and the peers that are there; print a line for one that is not, unless it was printed before."""
    if "geonorm" in among:
        yield "geonorm", partial(_geonorm, case, network)
    for name, (package, module) in PEERS.items():
        if name not in among:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                peer = import_module(module)
        except ImportError as error:
            if not silent:
                print_skipped("peers", name, f"{package} cannot be imported: {str(error).splitlines()[0]}")
            continue
        tiled = {"MONAI": _monai, "TerraTorch": _terratorch}[name]
        yield name, partial(_in_memory, network, partial(tiled, peer, case))


def _geonorm(case: Case, network: nn.Module, source: Path, target: Path) -> Shapes:
    done = predict_raster(
        network,
        source,
        target,
        core_px=case.core_px,
        halo=case.halo_px,
        batch_size=case.batch_size,
        overwrite=True,
    )
    rows, cols = done.plan.axes
    full, rest = divmod(cols.num_cores, case.batch_size)
    batches = [case.batch_size] * full + [rest] * bool(rest)
    shapes: Shapes = [(n, 3, done.plan.read_px, done.plan.read_px) for n in batches]
    return shapes * rows.num_cores


def _in_memory(
    network: nn.Module, tiled: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor], source: Path, target: Path
) -> Shapes:
    """Do what a user of a library from tensor to tensor does about it."""
    shapes: Shapes = []

    def predict(tiles: Tensor) -> Tensor:
        shapes.append(tuple(tiles.shape))
        return network(tiles)

    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), torch.no_grad():
        with rasterio.open(source) as dataset:
            place = {"crs": dataset.crs, "transform": dataset.transform}
            image = torch.from_numpy(dataset.read()).to(torch.float32)[None]
        logits = tiled(predict, image)
        # max is several times faster than argmax over this dimension on the CPU.
        labels = logits.max(dim=1).indices[0].to(torch.uint8).numpy()
        del image, logits
        height, width = labels.shape
        blocks = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "compress": "deflate", "zlevel": 1}
        plain = target.with_suffix(".plain.tif")
        size = {"count": 1, "height": height, "width": width, "dtype": "uint8", "nodata": 255}
        with rasterio.open(plain, "w", driver="GTiff", bigtiff="if_safer", **size, **place, **blocks) as made:
            made.write(labels, 1)
        # The options of geonorm's own maps.
        rasterio.shutil.copy(
            plain,
            target,
            driver="COG",
            compress="deflate",
            blocksize=BLOCK_PX,
            overview_resampling="mode",
            bigtiff="if_safer",
            num_threads="all_cpus",
        )
        plain.unlink()
    return shapes


def _monai(peer: Any, case: Case, predict: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    overlap = 1 - case.core_px / case.tile_px
    return peer.sliding_window_inference(image, case.tile_px, case.batch_size, predict, overlap=overlap)


def _terratorch(peer: Any, case: Case, predict: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    # delta is what it discards on each side: geonorm's halo.
    lengths = {"crop": case.tile_px, "stride": case.core_px, "delta": case.halo_px}
    return peer.tiled_inference(predict, image, **lengths, batch_size=case.batch_size)


def _model_alone(name: str, network: nn.Module, tiles: Mapping[str, list[Tensor]], shapes: Shapes) -> None:
    """Call the network as that way did, as often, on tiles that are ready."""
    if name == "geonorm":
        call, ready = predictor(network, torch.device("cpu")), cycle(tiles["channels_last"])
    else:
        call, ready = network, cycle(tiles["contiguous"])
    with torch.no_grad():
        for shape in shapes:
            batch = [next(ready) for _ in range(shape[0])]
            call(batch[0] if len(batch) == 1 else torch.cat(batch))


def _tiles(source: Path, case: Case) -> dict[str, list[Tensor]]:
    """Return tiles from anywhere in the raster, ``(1, C, h, w)``, as geonorm and as the peers hand them over."""
    draw = np.random.default_rng(1)
    contiguous = []
    with rasterio.open(source) as dataset:
        for row, col in draw.integers(0, case.size_px - case.tile_px, (DISTINCT_TILES, 2), endpoint=True).tolist():
            values = dataset.read(window=Window(col, row, case.tile_px, case.tile_px))
            contiguous.append(torch.from_numpy(values).to(torch.float32)[None])
    return {
        "contiguous": contiguous,
        "channels_last": [tile.contiguous(memory_format=torch.channels_last) for tile in contiguous],
    }


def _network(case: Case) -> nn.Module:
    torch.manual_seed(0)
    num_classes = case.num_classes
    if case.model == "near-free":
        rescale = Rescale(3, mean=[128.0] * 3, deviation=[50.0] * 3)
        return nn.Sequential(rescale, nn.Conv2d(3, num_classes, 3, padding=1)).eval()
    network = build_smp("unet", "resnet34", in_channels=3, num_classes=num_classes, norm=None)
    network.rescale.mean.fill_(128.0)
    network.rescale.deviation.fill_(50.0)
    return network.eval()


@contextmanager
def _raster(case: Case, size_px: int) -> Iterator[tuple[Path, Path]]:
    """Draw a raster into a folder that goes at the end."""
    # Pixels of 1 m; the corner lies that far from a multiple of the core.
    corner = Affine.translation(case.core_px * 1000 + case.origin_px, case.core_px * 10000 - case.origin_px)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "raster.tif"
        draw_scene(source, size_px, transform=corner @ Affine.scale(1, -1))
        yield Path(name), source


def _map(folder: Path, name: str) -> Path:
    return folder / f"{name}.tif"


def _share_unlike(one: Path, other: Path) -> float:
    with rasterio.open(one) as a, rasterio.open(other) as b:
        return float((a.read(1) != b.read(1)).mean())


def _facts(case: Case) -> dict[str, Any]:
    left_out = ("rounds", "threads", "memory_px")
    return {**{key: value for key, value in vars(case).items() if key not in left_out}, "classes": case.num_classes}


def _version(name: str) -> str:
    return version(PEERS[name][0] if name in PEERS else "geonorm")


if __name__ == "__main__":
    _parser = option_parser(__doc__, Case(), choices={"model": list(CLASSES)})
    _parser.add_argument("--only", choices=MEASURES, help="one of them")
    _parser.add_argument(
        "--one", nargs=3, metavar=("WAY", "RASTER", "MAP"), help="one way, for the peak of its process"
    )
    _case, _given = parse(_parser, Case, sys.argv[1:], quick=QUICK)
    if min(_case.size_px, *_case.memory_px) <= _case.tile_px:
        _parser.error(f"rasters must be larger than a tile of {_case.tile_px} px")
    torch.set_num_threads(_case.threads)
    if _given.one:
        run_one(_case, _given.one[0], Path(_given.one[1]), Path(_given.one[2]))
    else:
        if _given.only != "memory":
            main(_case)
        if _given.only != "time":
            measure_memory(_case)
