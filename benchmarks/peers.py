"""What do geonorm's tiles cost beside MONAI's and TerraTorch's: CPU time around the model, and memory?

python benchmarks/peers.py                                          a small case, in seconds
python benchmarks/peers.py --size-px 4096 --rounds 7                around a model that costs next to nothing
python benchmarks/peers.py --size-px 4096 --rounds 7 --model unet   all of it, with a ResNet-34 U-Net
python benchmarks/peers.py --memory 4096 8192                       peaks, and bytes for each further pixel

The peers are the extra "bench"; one that is missing is skipped. All ways read the same file, call the same network on
tiles of core + 2 halo pixels every core pixels, and write the same kind of map.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
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
from _alternate import alternate, print_ratios
from affine import Affine
from rasterio.windows import Window
from torch import Tensor, nn

from geonorm.inference import predict_raster
from geonorm.models import Rescale, build_smp
from geonorm.models.predictor import predictor

PEERS = {"MONAI": ("monai", "monai.inferers"), "TerraTorch": ("terratorch", "terratorch.tasks.tiled_inference")}
CLASSES = {"near-free": 6, "unet": 2}
CACHE_BYTES = 64 * 2**20  # geonorm's bound of GDAL's cache; GDAL's own is 5 % of the machine's memory
BLOCK_PX = 512
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

    @property
    def tile_px(self) -> int:
        """Side of what the network sees."""
        return self.core_px + 2 * self.halo_px


def main(case: Case) -> None:
    """Print JSON lines: ratios of CPU time to geonorm's, then a summary of each way."""
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
    facts = {"benchmark": "peers", **_facts(case)}
    print_ratios(total, to="geonorm", quantity="all", **facts)
    if case.model == "near-free":  # else what is around the model is less than the noise of the two it is between
        print_ratios(around, to="geonorm", quantity="around the model", **facts)
    for name in ways:
        num_tiles = sum(shape[0] for shape in seen[name])
        line = {
            **facts,
            "way": name,
            "version": _version(name),
            "tiles": num_tiles,
            "computed_per_pixel": round(sum(n * h * w for n, _, h, w in seen[name]) / case.size_px**2, 3),
            "cpu_seconds": round(statistics.median(total[name]), 3),
            "cpu_seconds_model": round(statistics.median(model[name]), 3),
            "cpu_seconds_around": round(statistics.median(around[name]), 3),
            "around_ms_per_tile": round(1000 * statistics.median(around[name]) / num_tiles, 2),
            "wall_seconds": round(statistics.median(wall[name][1:]), 3),
            "labels_unlike_geonorm": unlike[name],
        }
        print(json.dumps(line), flush=True)


def measure_memory(case: Case, sizes_px: list[int]) -> None:
    """Print one JSON line a way: the peaks of processes of its own, and the growth from the first size to the last."""
    names = [name for name, _ in _ways(case, nn.Identity())]
    peaks: dict[str, list[float]] = {}
    bases: dict[str, float] = {}
    for size_px in sizes_px:
        with _raster(case, size_px) as (folder, source):
            for name in names:
                options = [f"--{key.replace('_', '-')}={value}" for key, value in vars(case).items()]
                command = [sys.executable, __file__, *options, "--one", name, str(source), str(_map(folder, name))]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                bases[name], peak = json.loads(done.stdout.splitlines()[-1])
                peaks.setdefault(name, []).append(peak)
    for name, values in peaks.items():
        further = sizes_px[-1] ** 2 - sizes_px[0] ** 2
        line = {
            "benchmark": "peers",
            "quantity": "memory",
            **{key: value for key, value in _facts(case).items() if key != "size_px"},
            "sizes_px": sizes_px,
            "way": name,
            "version": _version(name),
            "base_mib": bases[name],
            "peak_mib": values,
            "bytes_per_further_pixel": round((values[-1] - values[0]) * 2**20 / further, 2) if further else None,
        }
        print(json.dumps(line), flush=True)


def run_one(case: Case, name: str, source: Path, target: Path) -> None:
    """Run one way, and print the peaks of this process in MiB before and after."""
    way = dict(_ways(case, _network(case), among=[name]))[name]
    base = _peak_mib()
    way(source, target)
    print(json.dumps([base, _peak_mib()]))


def _ways(case: Case, network: nn.Module, *, among: Collection[str] = ("geonorm", *PEERS)) -> Iterator[tuple[str, Way]]:
    """Yield geonorm and the peers that are there; print a line for one that is not."""
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
            skipped = f"{package} cannot be imported: {str(error).splitlines()[0]}"
            print(json.dumps({"benchmark": "peers", "way": name, "skipped": skipped}), flush=True)
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
    num_classes = case.classes or CLASSES[case.model]
    if case.model == "near-free":
        rescale = Rescale(3, mean=[128.0] * 3, deviation=[50.0] * 3)
        return nn.Sequential(rescale, nn.Conv2d(3, num_classes, 3, padding=1)).eval()
    network = build_smp("unet", "resnet34", in_channels=3, num_classes=num_classes, norm=None)
    network.rescale.mean.fill_(128.0)
    network.rescale.deviation.fill_(50.0)
    return network.eval()


@contextmanager
def _raster(case: Case, size_px: int) -> Iterator[tuple[Path, Path]]:
    """Draw a raster into a folder that goes at the end: fields that change slowly, round things, and some grain."""
    draw = np.random.default_rng(0)
    steps = np.arange(size_px)
    waves = draw.uniform((0.002, 0.002, 0, 10), (0.02, 0.02, 6.3, 30), (3, 4, 4))  # of rows, of columns; phase; height
    blobs = draw.uniform((0, 0, 6), (size_px, size_px, 60), (size_px**2 // 8192, 3))
    colors = draw.integers(20, 235, (len(blobs), 3), dtype=np.uint8)
    size = {"count": 3, "height": size_px, "width": size_px, "dtype": "uint8", "compress": "deflate"}
    blocks = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "interleave": "pixel"}
    # Pixels of 1 m; the corner lies that far from a multiple of the core.
    corner = Affine.translation(case.core_px * 1000 + case.origin_px, case.core_px * 10000 - case.origin_px)
    place = {"crs": "EPSG:32633", "transform": corner @ Affine.scale(1, -1)}
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "raster.tif"
        with rasterio.open(source, "w", driver="GTiff", **size, **blocks, **place) as dataset:
            for top in range(0, size_px, BLOCK_PX):
                rows = steps[top : top + BLOCK_PX]
                values = np.full((3, len(rows), size_px), 128.0, dtype=np.float32)
                for band, parts in zip(values, waves, strict=True):
                    for slow, fast, phase, height in parts:
                        band += np.outer(height * np.sin(slow * rows + phase), np.sin(fast * steps - phase))
                for (row, col, radius), color in zip(blobs, colors, strict=True):
                    if not top - radius < row < top + len(rows) + radius:
                        continue
                    near = steps[max(0, int(col - radius)) : int(col + radius) + 1]
                    inside = (rows[:, None] - row) ** 2 + (near - col) ** 2 < radius**2
                    values[:, :, near[0] : near[-1] + 1][:, inside] = color[:, None]
                values += draw.normal(0, 4, values.shape)
                image = values.clip(0, 255).astype(np.uint8)
                dataset.write(image, window=Window(0, top, size_px, len(rows)))
        yield Path(name), source


def _map(folder: Path, name: str) -> Path:
    return folder / f"{name}.tif"


def _share_unlike(one: Path, other: Path) -> float:
    with rasterio.open(one) as a, rasterio.open(other) as b:
        return float((a.read(1) != b.read(1)).mean())


def _facts(case: Case) -> dict[str, Any]:
    facts = {**vars(case), "classes": case.classes or CLASSES[case.model]}
    return {key: value for key, value in facts.items() if key not in ("rounds", "threads")}


def _version(name: str) -> str:
    return version(PEERS[name][0] if name in PEERS else "geonorm")


def _peak_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage counts the peak of the parent too, up to the moment it started us
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)


def _parse(words: list[str]) -> tuple[Case, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Case):
        choices = list(CLASSES) if field.name == "model" else None
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, choices=choices)
    parser.add_argument("--memory", type=int, nargs="+", metavar="SIZE_PX", help="measure memory at these sizes")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "RASTER", "MAP"), help="one way, for the peak of its process")
    given = parser.parse_args(words)
    case = Case(**{field.name: getattr(given, field.name) for field in fields(Case)})
    if min(given.memory or [case.size_px]) <= case.tile_px:
        parser.error(f"the raster must be larger than a tile of {case.tile_px} px")
    return case, given


if __name__ == "__main__":
    case, given = _parse(sys.argv[1:])
    torch.set_num_threads(case.threads)
    if given.one:
        run_one(case, given.one[0], Path(given.one[1]), Path(given.one[2]))
    elif given.memory:
        measure_memory(case, given.memory)
    else:
        main(case)
