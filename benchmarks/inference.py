"""How near does `geonorm predict` come to the bare network on tiles in memory, and how does its cost grow?

python benchmarks/inference.py                                      a drawn raster of 2048 px, BN and LCN
python benchmarks/inference.py --threads 2 --size-px 4096 --norms BN
python benchmarks/inference.py --growth 1 4 16 64 100 400           megapixels; a straight line through the seconds

`share` is the time of the bare network over that of reading, labelling and writing, by the clock, round by round;
`cpu_share` is that of the processor time, in which what the threads beside the network do counts as if it hid nothing.
For the growth each raster is labelled in a process of its own; `seconds` is processor time, `line_error` how far the
worst is from the straight line.
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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window

from geonorm.inference import predict_raster
from geonorm.models import UNet, tile_geometry
from geonorm.models.predictor import predictor
from geonorm.norms import BatchNorm, LocalContextNorm, NormFactory
from geonorm.raster.read import open_raster
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.plan import Plan

BLOCK_PX = 512
NORMS: dict[str, NormFactory] = {"BN": BatchNorm, "LCN_31px": partial(LocalContextNorm, window_px=31)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is common to all measurements."""

    size_px: int
    core_px: int
    depth: int
    width: int
    threads: int
    rounds: int


def main(case: Case, norms: list[str], megapixels: list[int]) -> None:
    """Print JSON lines."""
    torch.set_num_threads(case.threads)
    if megapixels:
        _growth(case, megapixels)
        return
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source.tif"
        draw(source, case.size_px, case.size_px)
        for norm in norms:
            _throughput(case, norm, source, Path(name) / "map.tif")


def _throughput(case: Case, norm: str, source: Path, target: Path) -> None:
    """Print how the bare network and the whole command take turns."""
    network = drawn_network(case, norm)
    geometry = tile_geometry(network)
    assert geometry.core_halo_px is not None
    with open_raster(source, bands=(1, 2, 3)) as reader:
        plan = Plan(
            height=reader.grid.height,
            width=reader.grid.width,
            core_px=case.core_px,
            halo_px=geometry.core_halo_px,
            network=network_of(geometry),
            first_index=reader.grid.first_index,
        )
    answer = predictor(network, torch.device("cpu"))
    tiles = [torch.randint(0, 255, (1, 3, *size), dtype=torch.uint8) for size in _read_sizes(plan)]

    def bare() -> None:
        for tile in tiles:
            answer(tile)

    def whole() -> None:
        predict_raster(network, source, target, core_px=case.core_px, halo="exact", overwrite=True)

    ways: dict[str, Callable[[], None]] = {"bare": bare, "whole": whole}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu_seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(case.rounds + 1):
        for way, run in ways.items():
            began, cpu_began = time.monotonic(), time.process_time()
            run()
            if turn:
                seconds[way].append(time.monotonic() - began)
                cpu_seconds[way].append(time.process_time() - cpu_began)
    low, middle, high = _shares(seconds)
    line = {
        "benchmark": "inference",
        **vars(case),
        "norm": norm,
        "tiles": len(tiles),
        "read_px": plan.read_px,
        "bare_seconds": round(statistics.median(seconds["bare"]), 3),
        "whole_seconds": round(statistics.median(seconds["whole"]), 3),
        "share": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "cpu_share": round(_shares(cpu_seconds)[1], 3),
        "cpu_quartiles": [round(share, 3) for share in _shares(cpu_seconds)[::2]],
    }
    print(json.dumps(line), flush=True)


def _shares(seconds: dict[str, list[float]]) -> list[float]:
    """Return the quartiles of the bare network's part of the whole, round by round."""
    return statistics.quantiles([a / b for a, b in zip(seconds["bare"], seconds["whole"], strict=True)], n=4)


def _read_sizes(plan: Plan) -> list[tuple[int, int]]:
    """Return rows and columns of what is read for each tile."""
    rows, cols = ([read.px for span in axis.spans() for read in span.reads] for axis in (plan.axes[0], plan.axes[1]))
    return [(height, width) for height in rows for width in cols]


def _growth(case: Case, megapixels: list[int]) -> None:
    """Print one line for each size, and one for the straight line through them."""
    points = []
    for size in megapixels:
        words = [sys.executable, __file__, "--one", str(size), "--threads", str(case.threads)]
        words += ["--core-px", str(case.core_px), "--depth", str(case.depth), "--width", str(case.width)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        line = json.loads(done.stdout.splitlines()[-1])
        points.append((line["pixels"], line["seconds"]))
        print(json.dumps(line), flush=True)
    pixels, seconds = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    # Relative errors count, so that the small rasters do too.
    slope, start = np.polyfit(pixels, seconds, 1, w=1 / seconds)
    errors = np.abs(slope * pixels + start - seconds) / seconds
    line = {
        "benchmark": "inference, growth",
        "seconds_per_megapixel": round(slope * 1e6, 4),
        "start_seconds": round(start, 3),
        "line_error": round(float(errors.max()), 3),
    }
    print(json.dumps(line), flush=True)


def _one(case: Case, megapixels: int) -> None:
    torch.set_num_threads(case.threads)
    side = round((megapixels * 1e6) ** 0.5)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source.tif"
        draw(source, side, side)
        network = drawn_network(case, "BN")
        before = time.process_time()
        predict_raster(network, source, Path(name) / "map.tif", core_px=case.core_px, halo="exact")
        seconds = time.process_time() - before
    line = {
        "benchmark": "inference, growth",
        **{key: value for key, value in vars(case).items() if key not in ("size_px", "rounds")},
        "pixels": side**2,
        "seconds": round(seconds, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(line))


def drawn_network(case: Case, norm: str) -> UNet:
    """Return the network of a norm, with random weights."""
    torch.manual_seed(0)
    network = UNet(3, 2, norm=NORMS[norm], depth=case.depth, width=case.width)
    network.rescale.mean.fill_(127.5)
    network.rescale.deviation.fill_(70.0)
    return network.eval()


def draw(path: Path, height: int, width: int) -> None:
    """Write a raster of noise over slopes, deflated in blocks."""
    generator = np.random.default_rng(0)
    block = generator.integers(0, 60, (3, BLOCK_PX, BLOCK_PX), dtype=np.uint8)
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32637", "height": height, "width": width}
    profile |= {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "compress": "deflate"}
    with rasterio.open(path, "w", transform=Affine(0.3, 0, 0, 0, -0.3, 0), **profile) as raster:
        for row in range(0, height, BLOCK_PX):
            for col in range(0, width, BLOCK_PX):
                rows, cols = min(BLOCK_PX, height - row), min(BLOCK_PX, width - col)
                level = np.uint8((row // 7 + col // 5) % 190)
                raster.write(block[:, :rows, :cols] + level, window=Window(col, row, cols, rows))


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-px", type=int, default=2048)
    parser.add_argument("--core-px", type=int, default=512)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--norms", choices=NORMS, nargs="+", default=[*NORMS])
    parser.add_argument("--growth", type=int, nargs="+", default=[], metavar="MEGAPIXELS")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(words)


if __name__ == "__main__":
    _options = _parse(sys.argv[1:])
    _case = Case(**{name: getattr(_options, name) for name in Case.__dataclass_fields__})
    if _options.one is None:
        main(_case, _options.norms, _options.growth)
    else:
        _one(_case, _options.one)
