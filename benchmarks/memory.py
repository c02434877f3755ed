"""How much memory does a large raster take, is it what a dry run says, and does it grow with the raster's height?

python benchmarks/memory.py                                                       a small case, in a minute
python benchmarks/memory.py --width-px 100000 --heights-px 20000 40000            wide
python benchmarks/memory.py --width-px 100000 --heights-px 20000 40000 --outputs labels probabilities

A drawn raster with data in some columns of every row and nodata in all others is labelled from the file
to the map, strips and putting together included, in a process of its own for each height.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window

from geonorm.inference import predict_raster
from geonorm.inference.forecast import forecast
from geonorm.inference.job import as_trained, prepare
from geonorm.inference.outputs import Kept
from geonorm.models import UNet
from geonorm.norms import BatchNorm
from geonorm.raster.read import open_raster

BLOCK_PX = 512


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is common to all heights; each field is an option of the command line."""

    width_px: int = 12_000
    """Columns of the raster."""
    data_px: int = 2048
    """Columns with data, in the middle."""
    bands: int = 3
    """Bands of the raster."""
    core_px: int = 512
    """Side of the square that one call writes."""
    width: int = 8
    """Channels of the first block of the U-Net."""
    depth: int = 2
    """How often its map is halved."""


def main(case: Case, heights_px: list[int], outputs: list[str]) -> None:
    """Print one JSON line for each height."""
    first: dict[str, Any] | None = None
    for height_px in heights_px:
        line = {"benchmark": "memory", **vars(case), "outputs": outputs, "height_px": height_px}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            draw(folder / "source.tif", case, height_px)
            line |= _measured(case, outputs, folder)
        if first is None:
            first = line
        else:
            pixels = (height_px - first["height_px"]) * case.width_px
            line["bytes_per_further_px"] = round((line["peak_bytes"] - first["peak_bytes"]) / pixels, 4)
        print(json.dumps(line), flush=True)


def draw(path: Path, case: Case, height_px: int) -> None:
    """Write a raster whose blocks without data take no place in the file."""
    shape = {"count": case.bands, "height": height_px, "width": case.width_px, "dtype": "uint8", "nodata": 0}
    place = {"crs": "EPSG:32633", "transform": Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)}
    stored = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "bigtiff": "if_safer"}
    left = (case.width_px - case.data_px) // 2 // BLOCK_PX * BLOCK_PX
    values = np.random.default_rng(0).integers(1, 256, (case.bands, BLOCK_PX, case.data_px), np.uint8)
    with rasterio.open(path, "w", driver="GTiff", sparse_ok=True, **shape, **place, **stored) as new:
        for row in range(0, height_px, BLOCK_PX):
            rows = min(BLOCK_PX, height_px - row)
            new.write(np.roll(values, row, axis=2)[:, :rows], window=Window(left, row, case.data_px, rows))


def label(case: Case, outputs: tuple[Any, ...], source: Path, target: Path) -> None:
    """Label a raster in this process, and print a JSON line: what it held, and what it was to hold at most."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = as_trained(UNet(case.bands, 2, norm=BatchNorm, width=case.width, depth=case.depth))
    base = peak_bytes()
    with open_raster(source) as reader:  # as a dry run does
        job = prepare(model, reader, core_px=case.core_px, halo="exact")
        told = forecast(job, kept_bytes_per_px=Kept(model.spec, outputs).bytes_per_px)
    began = time.monotonic()
    predict_raster(
        model,
        source,
        target,
        core_px=case.core_px,
        halo="exact",
        outputs=outputs,
        progress=sys.stderr.isatty(),
    )
    figures = {
        "base_bytes": base,
        "peak_bytes": peak_bytes(),
        "bound_bytes": told.memory_bytes,
        "bound_of": dict(told.memory),
        "seconds": round(time.monotonic() - began, 1),
        "disk_bound_bytes": told.disk_bytes,
    }
    print(json.dumps(figures))


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage counts the peak of the parent too, up to the moment it started us
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _measured(case: Case, outputs: list[str], folder: Path) -> dict[str, Any]:
    """Return what a process of its own says, and the most that lay in its folder, looked at every second."""
    source, results = folder / "source.tif", folder / "results"
    results.mkdir()
    options = chain.from_iterable((f"--{name.replace('_', '-')}", str(value)) for name, value in vars(case).items())
    words = [*options, "--outputs", *outputs, "--one", str(source), str(results / "map.tif")]
    process = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        most = max(most, _stored_bytes(results))
        time.sleep(1)
    if process.returncode:
        raise SystemExit(process.returncode)
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(process.stdout.read().splitlines()[-1])
    above = line["peak_bytes"] - line["base_bytes"]
    return {**line, "above_base_bytes": above, "disk_bytes": most, "map_bytes": _stored_bytes(results)}


def _stored_bytes(folder: Path) -> int:
    """Return the sizes of the files in a folder, which may come and go meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):  # it passes over a folder that is gone; Path.rglob does not
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _parse(words: list[str]) -> tuple[Case, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Case):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    parser.add_argument("--heights-px", type=int, nargs="+", default=[2000, 4000], help="rows of the rasters")
    parser.add_argument("--outputs", nargs="+", default=["labels"], help="as geonorm predict has them")
    parser.add_argument("--one", nargs=2, metavar=("RASTER", "MAP"), help="label a raster here, for the peak")
    given = parser.parse_args(words)
    case = Case(**{field.name: getattr(given, field.name) for field in fields(Case)})
    if case.data_px > case.width_px:
        parser.error("--data-px must be at most --width-px")
    return case, given


if __name__ == "__main__":
    case, given = _parse(sys.argv[1:])
    if given.one:
        label(case, tuple(given.outputs), *map(Path, given.one))
    else:
        main(case, given.heights_px, given.outputs)
