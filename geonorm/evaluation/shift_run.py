"""One network on one raster: labelled at rest and in every other way, each way's maps and figures kept as files."""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geonorm.data.labels import OpenLabels, open_labels
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import GeonormError, GeonormWarning, one_line
from geonorm.evaluation.grids import Way, borders_of, cut_reach_px, rows_of
from geonorm.evaluation.measures import (
    Curve,
    Disagreement,
    Fidelity,
    border_distance,
    class_of,
    curve_of,
    difference,
    disagreement_of,
    distance_classes,
    fidelity_of,
    no_disagreement,
)
from geonorm.evaluation.resting import Resting, at_rest, blocks_of
from geonorm.evaluation.shift_maps import CORNERS, Report, measured_corners, writing_way
from geonorm.evaluation.shift_settings import Measuring, Subject
from geonorm.files import check_space, size_in_words, write_text
from geonorm.inference.activations import activations
from geonorm.inference.halo import HaloChoice
from geonorm.inference.job import Job, prepare
from geonorm.inference.memory import available_memory
from geonorm.inference.outputs import labels_layer
from geonorm.inference.views import Views
from geonorm.models.rescale import rescale_of
from geonorm.raster.read import Reader, open_raster
from geonorm.raster.rows import writing_rows
from geonorm.raster.window import Window
from geonorm.tasks.scores import confusion, iou_of

REST, TRUTH, HALO = "rest", "truth", "halo"
SPREAD_OVER = ("aligned", "unaligned", "core", "whole")
"""Ways whose scores are those of the whole raster."""
WHOLE_SHARE = 1 / 2
"""Of the free memory, what a whole-image pass may take."""


def measure(subject: Subject, ways: Sequence[Way], *, corners: bool, how: Measuring) -> Report:
    """Return the figures of a network on a raster; what is there from an earlier start is not made again.

    Raises:
        InvalidConfigError: The folder holds figures of other settings.
        RasterError: The raster cannot be read.
        DatasetError: The labels do not fit it, or the disk is too small.
    """
    folder = subject.folder
    for left in folder.glob(".*.tmp"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with ExitStack() as files:
        readers = [files.enter_context(_opened(subject, how)) for _ in range(3)]
        truth = None
        if subject.truth is not None:
            truth = files.enter_context(open_labels(subject.truth, how.rules, readers[2]))
        job = _job(subject, readers[0], how)
        missing = [way for way in ways if _is_missing(way, job, folder)]
        if missing or not _kept(folder, REST):
            pixels = job.plan.height * job.plan.width
            needed = pixels * (4 * len(job.model.spec.class_names) + 7 + 6 * len(missing))
            check_space(folder, needed, what=f"the maps of {subject.source}, at most,")
            title = f"{subject.label}, {Path(subject.source).name}"
            with at_rest(
                job,
                folder / f"{REST}.tif",
                batch_size=how.batch_size,
                progress=how.progress,
                title=f"{title}: at rest",
            ) as rest:
                _keep(folder, REST, _rest_figures(subject, job, rest, truth))
                for number, way in enumerate(missing, 1):
                    name = f"{title}: {way.words} ({number}/{len(missing)})"
                    try:
                        found = _compared(way, job, rest, readers[1], truth, folder, how=how, title=name)
                    except ValueError as error:
                        if way.kind != "train" or isinstance(error, GeonormError):
                            raise
                        # Some norms refuse statistics of a single cell.
                        found = {**_about(way), "skipped": f"the network cannot: {one_line(error)}"}
                    _keep(folder, way.name, found)
        if corners and not _kept(folder, CORNERS):
            _keep(folder, CORNERS, measured_corners(job, readers[1], folder))
    figures = _kept(folder, REST)
    comparisons = [_kept(folder, way.name) for way in ways]
    # Of the ways that label every pixel with the same network.
    alike = [one for one in comparisons if one["kind"] in SPREAD_OVER and not one["skipped"]]
    means = [one["scores"]["mean_iou"] for one in (figures, *alike) if one["scores"] is not None]
    means = [mean for mean in means if mean is not None]
    return {
        **figures,
        "iou_spread": max(means) - min(means) if means else None,
        "corner_consensus": _kept(folder, CORNERS) if corners else None,
        "comparisons": comparisons,
    }


def _is_missing(way: Way, job: Job, folder: Path) -> bool:
    """Whether a way of labelling is to be measured; a whole image that was too large may fit by now."""
    kept = _kept(folder, way.name)
    return not kept or (way.kind == "whole" and kept["skipped"] is not None and too_large(way, job) is None)


def _opened(subject: Subject, how: Measuring) -> Reader:
    bands = range(1, len(subject.model.spec.bands) + 1)
    return open_raster(subject.source, bands=bands, nodata_rule=how.nodata_rule)


def _job(subject: Subject, reader: Reader, how: Measuring) -> Job:
    kept = _kept(subject.folder, HALO)
    # Networks are compared: what a halo saves is not to be taken for what a norm does.
    has_exact = subject.model.geometry.core_halo_px is not None
    with warnings.catch_warnings():
        # That labels depend on the tiles is what is measured.
        warnings.simplefilter("ignore", GeonormWarning)
        job = prepare(
            subject.model,
            reader,
            core_px=how.core_px,
            halo="exact" if how.halo == "auto" and has_exact else how.halo,
            known_halo=HaloChoice(**kept) if kept else None,
            grid_offset_px=how.grid_offset_px,
            device=how.device,
            precision=how.precision,
            tta=subject.tta,
            progress=how.progress,
        )
    _keep(subject.folder, HALO, asdict(job.halo))
    return job


def _about(way: Way) -> Report:
    return {"name": way.name, "kind": way.kind, "by_px": way.by_px, "words": way.words}


def _rest_figures(subject: Subject, job: Job, rest: Resting, truth: OpenLabels | None) -> Report:
    plan, spec = job.plan, job.model.spec
    num_classes, pixels = len(spec.class_names), 0
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    files = {"map": f"{subject.folder.name}/{REST}.tif"}
    with ExitStack() as made:
        if truth is not None:
            files["labels"] = f"{subject.folder.name}/{TRUTH}.tif"
            writer = made.enter_context(
                writing_rows(subject.folder / f"{TRUTH}.tif", labels_layer(spec), job.reader.grid)
            )
        for block in blocks_of(Window(0, 0, plan.height, plan.width)):
            valid = rest.valid(block)
            pixels += int(valid.sum())
            if truth is not None:
                labels = truth.read(block)
                writer.add(labels)
                said = rest.logits(block).max(0).indices
                counts += confusion(said, torch.from_numpy(np.where(valid, labels, IGNORE_LABEL)), num_classes)
    return {
        "model": subject.label,
        "checkpoint": subject.checkpoint,
        "norm": job.model.norm_path,
        "localized_px": job.model.localized_px,
        "source": subject.source,
        "labels": subject.truth,
        "height": plan.height,
        "width": plan.width,
        "pixels": pixels,
        "class_names": list(spec.class_names),
        "class_colors": [list(color) for color in spec.class_colors],
        "scored_classes": list(spec.scored_classes),
        "stride_px": plan.network.stride_px,
        "core_px": plan.core_px,
        "halo_px": job.halo.halo_px,
        "halo_kind": job.halo.kind,
        "halo_why": job.halo.why,
        "read_px": plan.read_px,
        "overhead": plan.overhead * Views.parse(subject.tta).copies * plan.num_phases,
        "phases": plan.num_phases,
        "tta": subject.tta,
        "unbounded": list(job.geometry.unbounded),
        "rounding": list(job.rounding),
        "tile_independent": job.provenance()["geonorm_tile_independent"] == "yes",
        "grid_offset_px": list(plan.grid_offset_px),
        "first_index": list(plan.first_index),
        "seconds": rest.seconds,
        "scores": None if truth is None else _scores(counts, spec.scored_classes),
        "files": files,
    }


def _scores(counts: Tensor, scored_classes: Sequence[int]) -> Report:
    """Return IoU and accuracy of counts ``(K, K)``, rows by truth; None where there is nothing to score."""
    iou = iou_of(counts)
    mean, total = float(iou[list(scored_classes)].nanmean()), int(counts.sum())
    return {
        "iou": [_number(float(value)) for value in iou],
        "mean_iou": _number(mean),
        "accuracy": int(counts.diagonal().sum()) / total if total else None,
    }


def _compared(
    way: Way,
    job: Job,
    rest: Resting,
    reader: Reader,
    truth: OpenLabels | None,
    folder: Path,
    *,
    how: Measuring,
    title: str,
) -> Report:
    """Label the raster in another way, write the maps, and return the figures."""
    about, skipped = _about(way), too_large(way, job)
    if skipped is not None:
        return {**about, "skipped": skipped}
    num_classes, plan = len(job.model.spec.class_names), job.plan
    from_px = distance_classes(max(1, plan.core_px // 2))
    rows, cols = (
        class_of(border_distance(length, borders), from_px)
        for length, borders in zip((plan.height, plan.width), borders_of(way, job), strict=True)
    )
    total, curve = no_disagreement(num_classes), Curve.of_none(len(from_px))
    fidelity: Fidelity | None = None
    began = time.monotonic()
    with writing_way(way, job, folder) as write, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of dropout, where norms are as in training
        for window, logits, counts in rows_of(
            way, job, reader, batch_size=how.batch_size, progress=how.progress, title=title
        ):
            for block in blocks_of(window):
                here = slice(block.row - window.row, block.row_end - window.row)
                found = difference(rest.logits(block), logits[:, here])
                valid = torch.from_numpy(counts[here] & rest.valid(block))
                total += disagreement_of(found, valid, num_classes)
                classes = np.minimum(rows[block.row : block.row_end, None], cols[None, block.col : block.col_end])
                curve += curve_of(found, valid, classes, len(from_px))
                if truth is not None:
                    own = fidelity_of(found, valid, torch.from_numpy(truth.read(block)), num_classes)
                    fidelity = own if fidelity is None else fidelity + own
                write(block, found, valid.numpy())
    figures = _figures(total, curve, from_px, fidelity, job.model.spec.scored_classes)
    files = {"map": f"{folder.name}/{way.name}.tif", "change": f"{folder.name}/{way.name}-change.tif"}
    return {**about, "skipped": None, "seconds": time.monotonic() - began, **figures, "files": files}


def _figures(
    total: Disagreement, curve: Curve, from_px: Sequence[int], fidelity: Fidelity | None, scored: Sequence[int]
) -> Report:
    seam = curve.seam
    return {
        "pixels": total.pixels,
        "flips": total.flips,
        "flips_percent": total.flips_percent,
        "ties": total.ties,
        "change_max": total.change_max,
        "change_mean": total.change_mean,
        "iou_between_maps": [_number(value) for value in total.iou],
        "curve": {
            "from_px": list(from_px),
            "pixels": curve.pixels.tolist(),
            "flips": curve.flips.tolist(),
            "change_sum": curve.change_sum.tolist(),
            "change_max": curve.change_max.tolist(),
        },
        "seam": {**asdict(seam), "energy": seam.energy},
        "scores": None if fidelity is None else _scores(fidelity.counts_other, scored),
        "scores_at_rest": None if fidelity is None else _scores(fidelity.counts, scored),
        "consistent_and_correct_percent": None if fidelity is None else fidelity.percent,
    }


def too_large(way: Way, job: Job) -> str | None:
    """Return why a way of labelling is left out, None where it is not."""
    plan = job.plan
    if way.kind == "neighbour" and (plan.axes[0].aligned_halo_px <= plan.network.margin_px or plan.num_tiles < 2):
        return "tiles do not overlap"
    if way.kind == "crop" and isinstance(way.by_px, tuple):
        reach_px = cut_reach_px(job)
        sides = zip((plan.height, plan.width), way.by_px, strict=True)
        if any(side <= cut + reach_px * bool(cut) for side, cut in sides):
            return f"the raster is not larger than the cut and the {reach_px} px that may see it"
    if way.kind != "whole":
        return None
    height, width = (max(whole.px for whole in axis.wholes) for axis in plan.axes)
    shape = (1, len(job.reader.bands), height, width)
    device = rescale_of(job.model.network).mean.device
    needed = activations(job.predict, shape, torch.uint8, device).peak_bytes
    free = available_memory(str(device))
    if needed > WHOLE_SHARE * free:
        return f"the whole-image pass would take {size_in_words(needed)} of the {size_in_words(free)} of free memory"
    return None


def _figures_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _keep(folder: Path, name: str, figures: Mapping[str, Any]) -> None:
    write_text(_figures_file(folder, name), json.dumps(figures, indent=1) + "\n")


def _kept(folder: Path, name: str) -> Report:
    """Return figures that are there, nothing where there are none."""
    path = _figures_file(folder, name)
    content: Report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
