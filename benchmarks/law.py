"""Is the tiled map the whole-image pass, bit for bit? On a real raster, for several cores, grids and threads.

python benchmarks/law.py RASTER CHECKPOINT [CHECKPOINT ...]
python benchmarks/law.py RASTER CHECKPOINT --backend openvino --precision bf16-mixed
python benchmarks/law.py RASTER CHECKPOINT --engine rows      in one stream, instead of tiles

The figure is how many labels differ. Its bound is no speed of a machine but the promise: none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _lines import Limit, print_line, print_skipped
from affine import Affine
from torch import Tensor

from geonorm.inference.engines import Engine, Wish, choose_rows
from geonorm.inference.job import Job, prepare
from geonorm.models import tile_geometry
from geonorm.raster.read import Reader, open_raster
from geonorm.raster.window import Window
from geonorm.raster.write import write_image
from geonorm.tasks.checkpoint import TrainedModel, load_model

HEIGHT, WIDTH = 2048, 4096
NONE = Limit(0, "the law of tiling")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of tiling."""

    core_px: int
    offset_px: tuple[int, int]
    threads: int


def main(raster: str, checkpoints: list[str], **how: Any) -> None:
    """Print one JSON line per checkpoint and way of tiling; ``how`` the network is computed."""
    with tempfile.TemporaryDirectory() as folder, open_raster(raster, bands=[1, 2, 3]) as reader:
        height, width = min(HEIGHT, reader.grid.height), min(WIDTH, reader.grid.width)
        part = _copy(reader, Window(0, 0, height, width), Path(folder) / "part.tif")
        crop = _copy(reader, Window(3, 5, height - 3, width - 5), Path(folder) / "crop.tif")
        for path in checkpoints:
            _check(load_model(path), path, part, crop, how)


def _check(model: TrainedModel, path: str, part: Path, crop: Path, how: dict[str, Any]) -> None:
    with open_raster(part, bands=[1, 2, 3]) as reader:
        row, col = reader.grid.first_index
        cases = [
            Case(core_px=256, offset_px=(0, 0), threads=2),
            Case(core_px=512, offset_px=(0, 0), threads=2),
            Case(core_px=1024, offset_px=(0, 0), threads=2),
            Case(core_px=512, offset_px=(0, 0), threads=1),
            Case(core_px=512, offset_px=(128, 64), threads=2),
            # The first core holds a single pixel of the raster: the one before the grid's next line.
            Case(core_px=512, offset_px=(row + 1, col + 1), threads=2),
        ]
        whole: dict[tuple[int, int], Tensor] = {}
        for case in cases:
            torch.set_num_threads(case.threads)
            job = _job(model, reader, core_px=case.core_px, grid_offset_px=case.offset_px, **how)
            stride = job.plan.network.stride_px
            phase = (case.offset_px[0] % stride, case.offset_px[1] % stride)
            if phase not in whole:
                whole.clear()  # one whole-image pass takes gigabytes
                whole[phase] = job.whole(finish=_logits).output
            began = time.monotonic()
            tiled = torch.cat([strip.output for strip in job.strips(finish=_logits)], dim=1)
            _print(path, case, job, whole[phase], tiled, seconds=time.monotonic() - began)

        torch.set_num_threads(2)
        full = _job(model, reader, core_px=512, **how)
        with open_raster(crop, bands=[1, 2, 3]) as cropped:
            job = _job(model, cropped, core_px=512, **how)
            inner = job.halo.halo_px + 3 * job.plan.network.stride_px
            both = [
                torch.cat([strip.output for strip in one.strips()], dim=0)[top:, left:]
                for one, top, left in ((full, 3, 5), (job, 0, 0))
            ]
        a, b = (labels[inner:-inner, inner:-inner] for labels in both)
        flips = int((a != b).sum())
        print_line(
            "law", _title(path, a), "cropped by 3, 5", flips, "labels differ", bound=NONE, interior_px=list(a.shape)
        )


def _job(model: TrainedModel, reader: Reader, *, engine: Engine, **settings: Any) -> Job:
    job = prepare(model, reader, halo=_halo(model), **settings)
    wish = Wish(engine=engine, precision=settings.get("precision", "32-true"))
    rows, _ = choose_rows(model.network, model.geometry, job.plan, wish=wish, device="cpu")
    return replace(job, rows=rows)


def _title(path: str, labels: Tensor) -> str:
    return f"{Path(path).stem}, {labels.shape[-2]} x {labels.shape[-1]}"


def _halo(model: TrainedModel) -> int:
    geometry = tile_geometry(model.network)
    return geometry.core_halo_px if geometry.core_halo_px is not None else (geometry.local_halo_px or 0)


def _print(path: str, case: Case, job: Job, whole: Tensor, tiled: Tensor, *, seconds: float) -> None:
    way = "core" if job.rows is None else "rows, strips of"
    print_line(
        "law",
        _title(path, whole),
        f"{way} {case.core_px}, grid {case.offset_px[0]}, {case.offset_px[1]}, {case.threads} threads",
        int((whole.max(0).indices != tiled.max(0).indices).sum()),
        "labels differ",
        bound=NONE,
        core_px=case.core_px,
        grid_offset_px=list(case.offset_px),
        halo_px=job.halo.halo_px,
        first_core_px=[next(axis.spans()).core_stop for axis in job.plan.axes],
        bitwise=torch.equal(whole, tiled),
        largest_difference=float((whole - tiled).abs().max()),
        seconds=round(seconds, 1),
    )


def _copy(reader: Reader, window: Window, target: Path) -> Path:
    transform = reader.grid.transform @ Affine.translation(window.col, window.row)
    write_image(target, reader.read(window).values, crs=reader.grid.crs, transform=transform, tiled=True)
    return target


def _logits(logits: Tensor) -> Tensor:
    return logits


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _parser.add_argument("raster", nargs="?")
    _parser.add_argument("checkpoints", nargs="*")
    _parser.add_argument("--backend", default="torch")
    _parser.add_argument("--precision", default="32-true")
    _parser.add_argument("--engine", choices=("tiles", "rows"), default="tiles")
    _options = _parser.parse_args(sys.argv[1:])
    if not _options.checkpoints:
        print_skipped("law", "", "give a raster and checkpoints")
    else:
        main(
            _options.raster,
            _options.checkpoints,
            backend=_options.backend,
            precision=_options.precision,
            engine=_options.engine,
        )
