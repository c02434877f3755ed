"""Does the map depend on where the tile grid lies? The same raster labelled under moved grids."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geonorm import __version__
from geonorm.errors import InvalidConfigError
from geonorm.evaluation.measures import Disagreement, disagreement, no_disagreement
from geonorm.evaluation.pictures import FlipPicture, draw_flips
from geonorm.files import make_folder
from geonorm.inference.halo import Halo
from geonorm.inference.job import Job, prepare
from geonorm.inference.options import check_batch_size
from geonorm.raster.read import NodataRule, check_readable, open_raster
from geonorm.tasks.checkpoint import TrainedModel, load_model
from geonorm.tiling.engine import Strip

Report = dict[str, Any]

FORMAT = 1


def shift_consistency(
    checkpoints: Sequence[str | os.PathLike[str] | TrainedModel],
    sources: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    shifts_px: Sequence[int] = (128, 3),
    core_px: int = 512,
    halo: Halo = "auto",
    grid_offset_px: tuple[int, int] = (0, 0),
    batch_size: int = 1,
    device: str = "cpu",
    nodata_rule: NodataRule = "all",
    trust: bool = False,
    progress: bool = False,
) -> Report:
    """Label each raster under moved tile grids and measure how the labels change.

    Moves by multiples of the network's stride show the effect of normalization and halo; other moves also shift the
    phase of the pooling, which no halo cures: the two are never mixed. Writes ``shift.json`` and one picture per
    checkpoint and raster. All grids are run side by side, strip by strip, so no map is held whole.

    Args:
        checkpoints: Checkpoints or loaded models.
        sources: Rasters.
        out_dir: Folder for the report; made if need be.
        shifts_px: Moves of the grid, down and to the right.
        core_px: Side of the square that one network call writes.
        halo: See `geonorm.inference.predict_raster`; chosen once per raster and used for every grid.
        grid_offset_px: Place of the grid that the others are held against.
        batch_size: Tiles per network call.
        device: Device to compute on.
        nodata_rule: A pixel has no data where ``"all"`` or ``"any"`` of its bands have none.
        trust: Load networks of any module.
        progress: Show a progress bar.

    Returns:
        What ``shift.json`` holds: ``{"format", "version", "runs": [...]}``, one run per checkpoint and raster.

    Raises:
        InvalidConfigError: No shift, or one that leaves the grid where it is.
    """
    check_shifts(shifts_px, core_px)
    check_batch_size(batch_size)
    for source in sources:
        check_readable(source)
    models = [item if isinstance(item, TrainedModel) else load_model(item, trust=trust) for item in checkpoints]
    labels = short_names([os.fspath(item) if not isinstance(item, TrainedModel) else item.name for item in checkpoints])
    folder = make_folder(out_dir)
    report: Report = {"format": FORMAT, "version": __version__, "runs": []}
    for model, label in zip(models, labels, strict=True):
        for source in sources:
            with ExitStack() as files:
                readers = [
                    files.enter_context(
                        open_raster(source, bands=range(1, len(model.spec.bands) + 1), nodata_rule=nodata_rule)
                    )
                    for _ in range(len(shifts_px) + 1)
                ]
                job = prepare(
                    model,
                    readers[0],
                    core_px=core_px,
                    halo=halo,
                    grid_offset_px=grid_offset_px,
                    device=device,
                    progress=progress,
                )
                jobs = [job.moved(shift, reader) for shift, reader in zip((0, *shifts_px), readers, strict=True)]
                picture = FlipPicture(job.plan.height, job.plan.width, [f"grid moved by {s} px" for s in shifts_px])
                found = compare_grids(
                    jobs, on_rows=picture.add_rows, batch_size=batch_size, progress=progress, title=label
                )
            name = f"{label}_{Path(source).stem}.png"
            draw_flips(picture, folder / name, source=source, title=f"{label} on {Path(source).name}")
            report["runs"].append(_run(job, label, source, shifts_px, found, picture=name))
    (folder / "shift.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def probabilities(logits: Tensor) -> Tensor:
    """Return the probabilities of the classes, ``(K, rows, W)``.

    Taken after the rows of all grids are cut alike: the exponential function rounds differently in the tail of a row
    than in its body, so equal logits in arrays of different shapes could get unequal probabilities.
    """
    return logits.float().contiguous().softmax(0)


def rows_together(streams: Sequence[Iterator[Strip]]) -> Iterator[tuple[int, list[Tensor], Tensor]]:
    """Yield the rows that all streams have finished: first row, the output of each, validity.

    The strips of different grids end at different rows; each is cut where another ends.
    """
    strips = [next(stream, None) for stream in streams]
    row = 0
    while all(strip is not None for strip in strips):
        held = [strip for strip in strips if strip is not None]
        stop = min(strip.row + strip.rows for strip in held)
        parts = [strip.output[..., row - strip.row : stop - strip.row, :] for strip in held]
        valid = torch.tensor(held[0].valid[row - held[0].row : stop - held[0].row])
        yield row, parts, valid
        row = stop
        strips = [
            next(stream, None) if strip.row + strip.rows == stop else strip
            for strip, stream in zip(held, streams, strict=True)
        ]


def table(report: Report) -> str:
    """Return the report as a table for the terminal."""
    head = ("model", "raster", "move", "kind", "flips %", "max change", "mean change", "IoU of maps", "halo")
    rows: list[tuple[str, ...]] = [head]
    rows += [_table_row(run, moved) for run in report["runs"] for moved in run["shifts"]]
    return in_columns(rows)


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _table_row(run: dict[str, Any], moved: dict[str, Any]) -> tuple[str, ...]:
    local_px = run["localized_px"]
    return (
        run["model"] if local_px is None else f"{run['model']} (localized, {local_px} px)",
        Path(run["source"]).name,
        f"{moved['shift_px']} px",
        "aligned" if moved["aligned"] else "unaligned",
        f"{moved['flips_percent']:.4f}",
        f"{moved['change_max']:.2g}",
        f"{moved['change_mean']:.2g}",
        "/".join("-" if value is None else f"{value:.4f}" for value in moved["iou_between_maps"]),
        f"{run['halo_px']} px {run['halo_kind']}",
    )


def compare_grids(
    jobs: Sequence[Job],
    *,
    on_rows: Callable[[int, list[Tensor], Tensor], None],
    batch_size: int = 1,
    progress: bool = False,
    title: str = "labelling",
) -> list[Disagreement]:
    """Return how far the maps of the other jobs are from that of the first, run side by side.

    Args:
        jobs: The same raster under several grids, each with a reader of its own.
        on_rows: Called with rows that all jobs have finished: first row, labels ``(rows, W)`` of each job, validity.
        batch_size: Tiles per network call.
        progress: Show a progress bar.
        title: What the bar is called.
    """
    found = [no_disagreement(len(jobs[0].model.spec.class_names)) for _ in jobs[1:]]
    streams = [
        job.strips(
            finish=lambda logits: logits,
            batch_size=batch_size,
            progress=progress and index == 0,
            title=f"{title}, {len(jobs)} grids",
        )
        for index, job in enumerate(jobs)
    ]
    for row, logits, valid in rows_together(streams):
        probs = [*map(probabilities, logits)]
        for which, other in enumerate(probs[1:]):
            found[which] += disagreement(probs[0], other, valid)
        on_rows(row, [one.max(0).indices for one in probs], valid)
    return found


def _run(
    job: Job,
    label: str,
    source: str | os.PathLike[str],
    shifts_px: Sequence[int],
    found: Sequence[Disagreement],
    *,
    picture: str,
) -> dict[str, Any]:
    return {
        "model": label,
        "norm": job.model.norm_path,
        "localized_px": job.model.localized_px,
        "source": os.fspath(source),
        "height": job.plan.height,
        "width": job.plan.width,
        "stride_px": job.plan.network.stride_px,
        "core_px": job.plan.core_px,
        "halo_px": job.halo.halo_px,
        "halo_kind": job.halo.kind,
        "overhead": job.plan.overhead,
        "unbounded": list(job.geometry.unbounded),
        "picture": picture,
        "shifts": [
            {
                "shift_px": shift,
                "aligned": shift % job.plan.network.stride_px == 0,
                "pixels": one.pixels,
                "flips": one.flips,
                "flips_percent": one.flips_percent,
                "ties": one.ties,
                "change_max": one.change_max,
                "change_mean": one.change_mean,
                "iou_between_maps": [None if math.isnan(value) else value for value in one.iou],
            }
            for shift, one in zip(shifts_px, found, strict=True)
        ],
    }


def check_shifts(shifts_px: Sequence[int], core_px: int) -> None:
    """Raise `InvalidConfigError` unless every shift moves a grid of such cores."""
    idle = [shift for shift in shifts_px if shift % core_px == 0]
    if not shifts_px or idle:
        problem = f"{idle[0]} px leaves a grid of {core_px}-px cores where it is" if idle else "none was given"
        raise InvalidConfigError(f"shifts_px must move the grid: {problem}. Try {core_px // 4} and 3.")


def short_names(paths: Sequence[str]) -> list[str]:
    """Return a short name for each checkpoint: the folders and file names in which their paths differ."""
    parts = [Path(path or "model").with_suffix("").parts[::-1] for path in paths]
    if len(parts) == 1:
        return [parts[0][0]]
    differing = [at for at in range(min(map(len, parts))) if len({path[at] for path in parts}) > 1]
    for most in range(1, len(differing) + 1):
        names = ["-".join(path[at] for at in reversed(differing[:most])) for path in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path[0]}-{number}" for number, path in enumerate(parts, start=1)]
