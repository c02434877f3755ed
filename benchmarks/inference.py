"""How near does `geonorm predict` come to the bare network on tiles in memory, and how does its cost grow?

python benchmarks/inference.py                                      a drawn raster of 2048 px, BN and LCN
python benchmarks/inference.py --threads 2 --size-px 4096 --norms BN
python benchmarks/inference.py --growth 1 4 16 64 100 400           megapixels; a straight line through the seconds, BN

The ratio is the time of reading, labelling and writing, in tiles and in rows, over that of the bare network on the same
tiles, round by round; `share` is the inverse of that of tiles. By the clock, and in processor time, in which what other
threads do counts as if it hid nothing. The limit is that of the network's convolutions, at the most operations this
machine computes. For the growth each raster is labelled with the first of the norms, as `predict`
chooses, in a process of its own, in processor time; the worst one's distance from the straight line is the last figure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from _alternate import alternate_both
from _limits import flops_of, limit_of_flops
from _lines import print_line, print_ratios, quartiles
from _memory import peak_bytes
from _options import option_parser, parse
from _rasters import draw_slopes

from geonorm.inference import predict_raster
from geonorm.models import UNet, tile_geometry
from geonorm.models.predictor import predictor
from geonorm.norms import BatchNorm, LocalContextNorm, NormFactory
from geonorm.raster.read import open_raster
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.plan import Plan

NORMS: dict[str, NormFactory] = {"BN": BatchNorm, "LCN_31px": partial(LocalContextNorm, window_px=31)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is common to all measurements."""

    size_px: int = 2048
    """Side of the raster."""
    core_px: int = 512
    """Side of the square that one call writes."""
    depth: int = 3
    """How often the map is halved."""
    width: int = 16
    """Channels of the first block of the U-Net."""
    threads: int = 1
    """Of torch."""
    rounds: int = 5
    """Of measuring."""
    norms: tuple[str, ...] = tuple(NORMS)
    """Of the network."""


QUICK = {"size_px": 1024, "rounds": 2}


def main(case: Case, megapixels: list[int]) -> None:
    """Print JSON lines."""
    torch.set_num_threads(case.threads)
    if megapixels:
        _growth(case, megapixels)
        return
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source.tif"
        draw_slopes(source, case.size_px, case.size_px)
        for norm in case.norms:
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

    def whole(engine: Literal["tiles", "rows"]) -> None:
        predict_raster(network, source, target, core_px=case.core_px, halo="exact", engine=engine, overwrite=True)

    runs: dict[str, Callable[[], None]] = {
        "bare": bare,
        "tiles": partial(whole, "tiles"),
        "rows": partial(whole, "rows"),
    }
    cpu_seconds, seconds = alternate_both(runs, rounds=case.rounds)
    with torch.no_grad():
        flops = flops_of(lambda: [network(tile.float()) for tile in tiles])
    for unit, values in (("s", seconds), ("s CPU", cpu_seconds)):
        shares = [a / b for a, b in zip(values["bare"], values["tiles"], strict=True)]
        print_ratios(
            values,
            to="bare",
            benchmark="inference",
            case=f"{norm}, {case.size_px} px, {len(tiles)} tiles of {plan.read_px} px",
            unit=unit,
            limit=limit_of_flops(flops, by_the_clock=unit == "s"),
            **_facts(case),
            norm=norm,
            tiles=len(tiles),
            read_px=plan.read_px,
            share=round(quartiles(shares)[1], 3),
        )


def _facts(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in ("size_px", "core_px", "depth", "width")}


def _read_sizes(plan: Plan) -> list[tuple[int, int]]:
    """Return rows and columns of what is read for each tile."""
    rows, cols = ([read.px for span in axis.spans() for read in span.reads] for axis in (plan.axes[0], plan.axes[1]))
    return [(height, width) for height in rows for width in cols]


def _growth(case: Case, megapixels: list[int]) -> None:
    """Print one line for each size, and two for the straight line through them."""
    points = []
    for size in megapixels:
        words = [sys.executable, __file__, "--one", str(size), "--threads", str(case.threads)]
        words += ["--core-px", str(case.core_px), "--depth", str(case.depth), "--width", str(case.width)]
        words += ["--norms", case.norms[0]]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        line = json.loads(done.stdout.splitlines()[-1])
        points.append((line["pixels"], line["figure"]))
        print(json.dumps(line), flush=True)
    pixels, seconds = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    # Relative errors count, so that the small rasters do too.
    slope, start = np.polyfit(pixels, seconds, 1, w=1 / seconds)
    errors = np.abs(slope * pixels + start - seconds) / seconds
    print_line(
        "inference", "growth", "straight line", float(slope) * 1e6, "s CPU a megapixel", start_seconds=float(start)
    )
    print_line("inference", "growth", "largest distance from it", float(errors.max()), "of the time")


def _one(case: Case, megapixels: int) -> None:
    torch.set_num_threads(case.threads)
    side = round((megapixels * 1e6) ** 0.5)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source.tif"
        draw_slopes(source, side, side)
        network = drawn_network(case, case.norms[0])
        base, before = peak_bytes(), time.process_time()
        predict_raster(network, source, Path(name) / "map.tif", core_px=case.core_px, halo="exact")
        seconds = time.process_time() - before
    print_line(
        "inference",
        "growth",
        f"{megapixels} megapixels, {case.norms[0]}",
        seconds,
        "s CPU",
        **_facts(replace(case, size_px=side)),
        pixels=side**2,
        extra_mib=round((peak_bytes() - base) / 2**20),
    )


def drawn_network(case: Case, norm: str) -> UNet:
    """Return the network of a norm, with random weights."""
    torch.manual_seed(0)
    network = UNet(3, 2, norm=NORMS[norm], depth=case.depth, width=case.width)
    network.rescale.mean.fill_(127.5)
    network.rescale.deviation.fill_(70.0)
    return network.eval()


if __name__ == "__main__":
    _parser = option_parser(__doc__, Case(), choices={"norms": list(NORMS)})
    _parser.add_argument("--growth", type=int, nargs="+", default=[], metavar="MEGAPIXELS")
    _parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    _case, _options = parse(_parser, Case, sys.argv[1:], quick=QUICK)
    if _options.one is None:
        main(_case, _options.growth)
    else:
        _one(_case, _options.one)
