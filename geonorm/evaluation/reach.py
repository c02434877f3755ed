"""How far an output pixel really sees, beside how far it can see, and how many labels a smaller halo changes."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from geonorm import __version__
from geonorm.errors import InvalidConfigError
from geonorm.evaluation.localization import BAR
from geonorm.evaluation.measures import no_disagreement
from geonorm.evaluation.reach_gradient import Mass, MassSum, gradient_sizes
from geonorm.evaluation.reach_halos import Step, bargains, core_differences
from geonorm.evaluation.reach_pictures import draw_reach
from geonorm.evaluation.reach_places import spans_at
from geonorm.evaluation.reach_plan import (
    Ladder,
    Place,
    Scene,
    choose_ladder,
    choose_reach,
    core_has_data,
    notes,
    pixel_has_data,
    scene_of,
    spread,
)
from geonorm.evaluation.shift_maps import Report
from geonorm.evaluation.shift_tables import in_columns
from geonorm.files import make_folder, write_text, written_whole
from geonorm.inference.halo import MISMATCH_TOLERANCE
from geonorm.inference.job import as_trained
from geonorm.models.predictor import predictor
from geonorm.models.rescale import rescale_of
from geonorm.norms import LocalContextNorm
from geonorm.raster.read import NodataRule, open_raster
from geonorm.raster.sources import find_sources
from geonorm.tasks.checkpoint import TrainedModel, load_model
from geonorm.tiling.engine import view_of

FORMAT = 1
SHARES = (0.99, 0.999, 0.9999)
"""Of the gradient: within which distance they lie is told."""
FORWARD_AND_BACK = 3
"""Cost of a gradient, in multiples of an answer."""


def effective_reach(
    model: nn.Module | TrainedModel | str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    pixels: int = 32,
    reach_px: int | None = None,
    cores: int = 8,
    core_px: int | None = None,
    halos_px: Sequence[int] | None = None,
    device: str = "cpu",
    nodata_rule: NodataRule = "all",
    trust: bool = False,
    progress: bool = False,
) -> Report:
    """Measure on real pixels how far a network sees, and how many labels a smaller halo changes.

    Two measures. The gradient of the answer at some output pixels says where the input lies that it depends on, and how
    strongly. A ladder of halos says how many labels of some cores differ from those with the exact halo. Writes
    ``reach.json``, ``reach.csv`` (the gradient by distance), ``halos.csv`` and ``reach.png``.

    Args:
        model: A checkpoint, or a network that takes raw band values.
        sources: Rasters, folders of rasters, or lists of them (``.txt``).
        out_dir: Folder for the report; made if need be.
        pixels: Output pixels whose gradient is taken, shared out among the rasters.
        reach_px: How far around them to read, at most the exact halo; None: the exact halo, 256 where there is none,
            or less if memory is short.
        cores: Cores labelled with each halo, shared out among the rasters that are large enough.
        core_px: Side of the cores; None: 512, or less where all rasters are small.
        halos_px: Halos to try; None: some from 0 to 512, as far as the exact halo or, where there is none, the rasters
            go.
        device: Device to compute on.
        nodata_rule: A pixel has no data where ``"all"`` or ``"any"`` of its bands have none.
        trust: Load networks of any module.
        progress: Show a progress bar.

    Returns:
        What ``reach.json`` holds.

    Raises:
        CheckpointError: The checkpoint is not one of geonorm.
        InvalidConfigError: A setting that cannot work, rasters too small for it, or no pixel with data.
        RasterError: A source that cannot be read, or lacks bands.
    """
    _check_numbers(pixels=pixels, cores=cores, reach_px=reach_px, core_px=core_px, halos_px=halos_px)
    paths = find_sources(sources)
    trained = as_trained(model if isinstance(model, nn.Module | TrainedModel) else load_model(model, trust=trust))
    bands = range(1, len(trained.spec.bands) + 1)
    with ExitStack() as files:
        readers = [files.enter_context(open_raster(path, bands=bands, nodata_rule=nodata_rule)) for path in paths]
        scenes = [scene_of(reader, trained) for reader in readers]
        trained.network.to(device)
        ladder, large = choose_ladder(trained, scenes, core_px=core_px, halos_px=halos_px, device=device)
        halo_px = choose_reach(trained, scenes, reach_px, device=device)
        around = [scene.reading(core_px=trained.geometry.stride_px, halo_px=halo_px) for scene in scenes]
        at_pixels = spread(around, pixels, has_data=pixel_has_data)
        in_cores = [scene.reading(core_px=ladder.core_px, halo_px=ladder.reference_px) for scene in large]
        at_cores = spread(in_cores, cores, has_data=core_has_data)
        folder = make_folder(out_dir)
        work = FORWARD_AND_BACK * sum(place.read_px for place in at_pixels) + sum(
            place.with_halo(halo).read_px for place in at_cores for halo in {*ladder.halos_px, ladder.reference_px}
        )
        with tqdm(total=math.ceil(work / 1e5) / 10, unit="Mpx", bar_format=BAR, disable=not progress) as bar:
            bar.set_description("gradients")
            mass = _gradients(trained, at_pixels, halo_px, on_px=lambda px: bar.update(px / 1e6))
            bar.set_description("halos")
            steps = _steps(trained, at_cores, ladder, device=device, on_px=lambda px: bar.update(px / 1e6))
    report: Report = {
        "format": FORMAT,
        "version": __version__,
        **_network(trained),
        "sources": [_source(scene, at_pixels, at_cores) for scene in scenes],
        "gradient": _gradient_figures(mass, at_pixels),
        "halos": _halo_figures(ladder, steps, at_cores),
        "notes": [*notes(trained, scenes, ladder, at_pixels, halo_px, mass.radius_px)],
    }
    _write(report, mass, folder)
    return report


def _check_numbers(*, pixels: int, cores: int, **lengths: int | Sequence[int] | None) -> None:
    for name, number in (("pixels", pixels), ("cores", cores)):
        if number < 1:
            raise InvalidConfigError(f"{name} must be at least 1, got {number}.")
    for name, given in lengths.items():
        values = [] if given is None else [given] if isinstance(given, int) else list(given)
        least = 0 if name == "halos_px" else 1
        if any(value < least for value in values) or (given is not None and not values):
            raise InvalidConfigError(f"{name} must be at least {least}, got {given}.")


def _gradients(model: TrainedModel, places: Sequence[Place], halo_px: int, *, on_px: Callable[[int], object]) -> Mass:
    """Return the mean gradient around some pixels."""
    geometry = model.geometry
    sees_all = geometry.core_halo_px is not None and halo_px >= geometry.core_halo_px
    radius_px = geometry.halo_px if sees_all and geometry.halo_px is not None else halo_px
    found, fill = MassSum(radius_px), rescale_of(model.network).mean.detach().cpu()
    for place in places:
        plan = place.scene.plan
        spans = row, col = spans_at(plan, place.core)
        image = view_of(place.scene.reader.read, plan, row, [col], fill=fill).tiles(row.reads[0], [col.reads[0]])
        at_row, at_col = (at - span.reads[0].start for at, span in zip(place.pixel, spans, strict=True))
        margin_px = plan.network.margin_px
        found.add(gradient_sizes(model.network, image, (at_row - margin_px, at_col - margin_px)), at_row, at_col)
        on_px(FORWARD_AND_BACK * place.read_px)
    return found.mean()


def _steps(
    model: TrainedModel, places: Sequence[Place], ladder: Ladder, *, device: str, on_px: Callable[[int], object]
) -> list[Step]:
    """Return what each halo gives over all cores."""
    predict = predictor(model.network, torch.device(device))
    fill = rescale_of(model.network).mean.detach().cpu()
    found = [no_disagreement(len(model.spec.class_names)) for _ in ladder.halos_px]
    for place in places:
        read, plan = place.scene.reader.read, place.scene.plan
        ones = core_differences(read, predict, plan, place.core, halos_px=ladder.halos_px, fill=fill)
        found = [total + one for total, one in zip(found, ones, strict=True)]
        on_px(sum(place.with_halo(halo).read_px for halo in {*ladder.halos_px, ladder.reference_px}))
    plan = places[0].scene.plan
    overheads = [replace(plan, halo_px=halo).overhead for halo in ladder.halos_px]
    return [
        Step(halo_px=halo, overhead=overhead, found=one)
        for halo, overhead, one in zip(ladder.halos_px, overheads, found, strict=True)
    ]


# The report


def _network(model: TrainedModel) -> dict[str, Any]:
    geometry = model.geometry
    local = [module for module in model.network.modules() if isinstance(module, LocalContextNorm)]
    return {
        "model": model.name,
        "norm": model.norm_path,
        "localized_px": model.localized_px,
        "stride_px": geometry.stride_px,
        "exact_reach_px": geometry.halo_px,
        "exact_halo_px": geometry.core_halo_px,
        "unbounded": list(geometry.unbounded),
        "windows_px": sorted({max(module.window) * module.stride for module in local}),
    }


def _source(scene: Scene, pixels: Sequence[Place], cores: Sequence[Place]) -> dict[str, Any]:
    return {
        "source": scene.reader.path,
        "height": scene.plan.height,
        "width": scene.plan.width,
        "pixels": sum(place.scene.reader is scene.reader for place in pixels),
        "cores": sum(place.scene.reader is scene.reader for place in cores),
    }


def _gradient_figures(mass: Mass, places: Sequence[Place]) -> dict[str, Any]:
    return {
        "pixels": len(places),
        "radius_px": mass.radius_px,
        "total": float(mass.by_offset.sum()),
        "shares": [
            {"share": share, "distance_px": mass.distance_px(share), "furthest_px": mass.furthest_px(share)}
            for share in SHARES
        ],
    }


def _halo_figures(ladder: Ladder, steps: Sequence[Step], places: Sequence[Place]) -> dict[str, Any]:
    return {
        "core_px": ladder.core_px,
        "cores": len(places),
        "pixels": steps[0].found.pixels,
        "reference_px": ladder.reference_px,
        "reference_overhead": replace(places[0].scene.plan, halo_px=ladder.reference_px).overhead,
        "is_exact": ladder.is_exact,
        "steps": [
            {
                "halo_px": step.halo_px,
                "overhead": step.overhead,
                "flips": step.found.flips,
                "flips_share": step.flips_share,
                "ties": step.found.ties,
                "change_max": step.found.change_max,
                "change_mean": step.found.change_mean,
            }
            for step in steps
        ],
        "tolerances": [asdict(bargain) for bargain in bargains(steps)],
    }


def _write(report: Report, mass: Mass, folder: Path) -> None:
    steps = report["halos"]["steps"]
    distances = zip(
        range(mass.radius_px + 1), mass.by_distance.mean(0).tolist(), mass.share_beyond.tolist(), strict=True
    )
    _write_csv(folder / "reach.csv", ("distance_px", "mass", "share_beyond"), distances)
    _write_csv(folder / "halos.csv", tuple(steps[0]), (step.values() for step in steps))
    with written_whole(folder / "reach.png") as made:
        draw_reach(mass, report, made)
    write_text(folder / "reach.json", json.dumps(report, indent=2) + "\n")


def _write_csv(target: Path, head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with written_whole(target) as made, made.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


# For the terminal


def in_words(report: Report) -> str:
    """Return the report as text and tables for the terminal."""
    return "\n".join(
        [*_gradient_lines(report), "", *_halo_lines(report), "", *_tolerance_lines(report), "", *report["notes"]]
    ).rstrip()


def _gradient_lines(report: Report) -> Iterator[str]:
    found, exact_px = report["gradient"], report["exact_reach_px"]
    sees = "can see everything" if exact_px is None else f"can see {exact_px} px far"
    yield (
        f"A pixel {sees}. Where its answer's gradient lies, over {found['pixels']} pixels of "
        f"{len(report['sources'])} raster{'s' if len(report['sources']) > 1 else ''}, looked at to "
        f"{found['radius_px']} px:"
    )
    if found["total"] == 0:
        yield "nowhere: the answer does not change with small changes of the input."
        return
    rows = [["share of the gradient", "within", "of the pixel that sees furthest"]]
    rows += [
        [f"{100 * one['share']:g} %", f"{one['distance_px']} px", f"{one['furthest_px']} px"] for one in found["shares"]
    ]
    yield in_columns(rows)


def _halo_lines(report: Report) -> Iterator[str]:
    found = report["halos"]
    against = "the exact halo" if found["is_exact"] else "the largest tried"
    yield (
        f"Labels of {found['cores']} cores of {found['core_px']} px ({found['pixels']:,} pixels), held against "
        f"{found['reference_px']} px, {against}:"
    )
    rows = [["halo", "compute", "labels that differ", "largest change", "mean change"]]
    rows += [
        [
            f"{step['halo_px']} px",
            f"{step['overhead']:.2f} x",
            f"{100 * step['flips_share']:.4f} %",
            f"{step['change_max']:.2g}",
            f"{step['change_mean']:.2g}",
        ]
        for step in found["steps"]
    ]
    yield in_columns(rows)


def _tolerance_lines(report: Report) -> Iterator[str]:
    found = report["halos"]
    rows = [["labels that may differ", "halo", "compute"]]
    rows += [
        [
            f"{100 * one['tolerance']:g} %" if one["tolerance"] else "none",
            f"over {found['steps'][-1]['halo_px']} px" if one["halo_px"] is None else f"{one['halo_px']} px",
            "-" if one["halo_px"] is None else f"{one['overhead']:.2f} x",
        ]
        for one in found["tolerances"]
    ]
    yield in_columns(rows)
    [one] = (one for one in found["tolerances"] if one["tolerance"] == MISMATCH_TOLERANCE)
    if one["halo_px"] is not None and one["halo_px"] < found["reference_px"]:
        yield (
            f"A tolerance of {100 * MISMATCH_TOLERANCE:g} % of the labels takes a halo of {one['halo_px']} px instead "
            f"of {found['reference_px']} px: {one['overhead']:.1f} instead of {found['reference_overhead']:.1f} times "
            "the compute."
        )
