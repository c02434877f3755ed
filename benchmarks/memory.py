"""How much memory does a large raster take, is it what a dry run says, and does it grow with the raster's height?

python benchmarks/memory.py                                                       a small case, in a minute
python benchmarks/memory.py --width-px 100000 --heights-px 20000 40000            wide
python benchmarks/memory.py --width-px 100000 --heights-px 20000 40000 --outputs labels probabilities

A drawn raster with data in some columns of every row and nodata in all others is labelled from the file
to the map, strips and putting together included, in a process of its own for each height. The bound, instead of a
limit: the peak may not be more than what `--dry_run` states.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _lines import Limit, print_line
from _memory import peak_bytes
from _options import option_parser, parse, words_of
from _rasters import draw_sparse

from geonorm.inference import predict_raster
from geonorm.inference.forecast import forecast
from geonorm.inference.job import as_trained, prepare
from geonorm.inference.outputs import Kept
from geonorm.models import UNet
from geonorm.norms import BatchNorm
from geonorm.raster.read import open_raster


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
    heights_px: tuple[int, ...] = (2000, 4000)
    """Rows of the rasters."""
    outputs: tuple[str, ...] = ("labels",)
    """As geonorm predict has them."""


QUICK = {"width_px": 4000}


def main(case: Case) -> None:
    """Print one JSON line for each height; the ratio is to the first."""
    first: int | None = None
    for height_px in case.heights_px:
        with tempfile.TemporaryDirectory() as name:
            source = Path(name) / "source.tif"
            draw_sparse(source, height_px, case.width_px, bands=case.bands, data_px=case.data_px)
            told = _measured(case, source, Path(name) / "results")
        peak = told["peak_bytes"]
        print_line(
            "memory",
            f"{case.width_px} columns, core {case.core_px}, {', '.join(case.outputs)}",
            f"{height_px} rows, peak",
            peak,
            "B",
            ratios=None if first is None else [peak / first],
            peer=f"{case.heights_px[0]} rows",
            bound=Limit(told["bound_bytes"], "at most, as the plan says"),
            **{key: value for key, value in vars(case).items() if key != "heights_px"},
            **told,
            height_px=height_px,
        )
        first = first or peak


def label(case: Case, source: Path, target: Path) -> None:
    """Label a raster in this process, and print a JSON line: what it held, and what it was to hold at most."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    outputs: tuple[Any, ...] = case.outputs
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


def _measured(case: Case, source: Path, results: Path) -> dict[str, Any]:
    """Return what a process of its own says, and the most that lay in its folder, looked at every second."""
    results.mkdir()
    words = [*words_of(case), "--one", str(source), str(results / "map.tif")]
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


if __name__ == "__main__":
    _parser = option_parser(__doc__, Case())
    _parser.add_argument("--one", type=Path, nargs=2, metavar=("RASTER", "MAP"), help="label a raster here")
    _case_given, _given = parse(_parser, Case, sys.argv[1:], quick=QUICK)
    if _case_given.data_px > _case_given.width_px:
        _parser.error("--data-px must be at most --width-px")
    if _given.one:
        label(_case_given, *_given.one)
    else:
        main(_case_given)
