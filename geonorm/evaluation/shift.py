"""Does the map depend on the tiles? Rasters labelled in several ways, network against network, in one report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm import tqdm

from geonorm import __version__
from geonorm.data.labels import BUILDINGS, LabelRules, open_labels
from geonorm.data.spec import IGNORE_LABEL, DatasetSpec
from geonorm.errors import InvalidConfigError, name_some
from geonorm.evaluation.consistency_page import write_consistency_page
from geonorm.evaluation.grids import Way
from geonorm.evaluation.places import scenes_of
from geonorm.evaluation.shift_maps import Report
from geonorm.evaluation.shift_run import measure
from geonorm.evaluation.shift_settings import Measuring, Subject, check_settings
from geonorm.evaluation.shift_tables import as_csv, as_markdown
from geonorm.evaluation.subjects import File, models_by_name, paired, short_names
from geonorm.files import make_folder, only_one, write_text
from geonorm.inference.halo import Halo
from geonorm.inference.options import check_batch_size
from geonorm.inference.views import Views
from geonorm.models.predictor import Precision
from geonorm.raster.read import NodataRule, open_raster
from geonorm.tasks.checkpoint import TrainedModel, load_model
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.plan import Plan

Measure = Literal["moves", "cores", "crops", "whole", "neighbours", "corners", "train"]

FORMAT = 2
MEASURES: tuple[Measure, ...] = get_args(Measure)
SHIFTS_PX = (32, 64, 128, 1, 3, 7, 13)
CORES_PX = (256, 1024)
CROPS_PX = ((3, 5), (1, 13), (7, 2))


def shift_consistency(
    checkpoints: Sequence[File | TrainedModel] | Mapping[str, File | TrainedModel],
    sources: Sequence[File],
    out_dir: File,
    *,
    labels: Sequence[File] = (),
    measures: Collection[Measure] = MEASURES,
    shifts_px: Sequence[int] | None = None,
    cores_px: Sequence[int] = CORES_PX,
    crops_px: Sequence[tuple[int, int]] = CROPS_PX,
    core_px: int = 512,
    halo: Halo = "auto",
    tta: Sequence[str] = ("none",),
    grid_offset_px: tuple[int, int] = (0, 0),
    batch_size: int = 1,
    device: str = "cpu",
    precision: Precision = "32-true",
    nodata_rule: NodataRule = "all",
    label_values: Sequence[Sequence[int]] | None = None,
    ignored_values: Sequence[int] = (),
    trust: bool = False,
    restart: bool = False,
    progress: bool = False,
) -> Report:
    """Label each raster in several ways with each network, and measure how its labels change.

    Every way is held against the grid at rest. Moves of the grid by multiples of the network's stride show the effect
    of normalization and halo; other moves also shift the phase of the pooling, which no halo cures: the two are never
    mixed. Writes ``report.json``, ``report.csv``, ``report.md``, ``report.html`` and a folder of GeoTIFFs for each
    network and raster, from which every figure can be made again. What is done is kept at once: the same call goes on
    where an earlier one was interrupted, and measures what was added to it.

    Args:
        checkpoints: Checkpoints or loaded models; by the names they are to have in the report, or without.
        sources: Rasters, or folders with ``images/`` and ``gt/``.
        out_dir: Folder for the report; made if need be.
        labels: True labels of the sources, in the same order: rasters on the same grid, or polygons.
        measures: What is measured: ``"moves"`` of the grid, other ``"cores"``, ``"crops"`` of the raster, the
            ``"whole"`` image in one pass where it fits half the free memory, ``"neighbours"``: what tiles say of the
            pixels of the tile beside, ``"corners"``: corner consensus as the Fields of the World tools define it,
            ``"train"``: norms as in training.
        shifts_px: Moves of the grid, down and to the right; None: those of `SHIFTS_PX` that move it.
        cores_px: Sides of cores to be held against ``core_px``.
        crops_px: Rows and columns that are cut off; compared where no pixel can see the cut.
        core_px: Side of the square that one network call writes.
        halo: See `geonorm.inference.predict_raster`; chosen once per raster and used for every grid. ``"auto"`` is the
            exact one wherever a network has it, whatever it costs, else a measured one.
        tta: See there; each is measured by itself.
        grid_offset_px: Place of the grid at rest.
        batch_size: Tiles per network call.
        device: Device to compute on.
        precision: See there.
        nodata_rule: A pixel has no data where ``"all"`` or ``"any"`` of its bands have none.
        label_values: Values of the true labels that are class 0, 1, ...; None: 0 and 1 or 255 for two classes, else
            the numbers of the classes.
        ignored_values: Values of the true labels that do not count.
        trust: Load networks of any module.
        restart: Measure anew what is there.
        progress: Show progress bars.

    Returns:
        What ``report.json`` holds: ``{"format", "version", "settings", "runs": [...]}``, one run per network, raster
        and tta; see docs/shift.md.

    Raises:
        InvalidConfigError: A setting that cannot work, or figures of other settings in ``out_dir``.
        RasterError: A raster that cannot be read.
        DatasetError: Labels that do not fit, or a full disk.
    """
    _check_measures(measures)
    cores_px = [side for side in dict.fromkeys(cores_px) if side != core_px] if "cores" in measures else []
    crops_px = list(dict.fromkeys(crops_px)) if "crops" in measures else []
    if any(min(crop) < 0 or not any(crop) for crop in crops_px):
        raise InvalidConfigError(f"crops_px cut off at least one row or column, got {crops_px}. Try 3,5.")
    if shifts_px is None:
        shifts_px = [shift for shift in SHIFTS_PX if shift % core_px]
    elif "moves" in measures:
        check_shifts(shifts_px, core_px)
    shifts_px = list(dict.fromkeys(shifts_px))
    check_batch_size(batch_size)
    named = models_by_name(checkpoints)
    names = list(named)
    models = [one if isinstance(one, TrainedModel) else load_model(one, trust=trust) for one in named.values()]
    _check_classes(dict(zip(names, models, strict=True)))
    tta = list(dict.fromkeys(tta))
    pairs = paired(sources, labels)
    rules = _rules(models[0].spec, label_values, ignored_values)
    for model in models:
        _check_model(model, pairs, rules, cores_px=[core_px, *cores_px], tta=tta, nodata_rule=nodata_rule)
    folder = make_folder(out_dir)
    places = short_names([source for source, _ in pairs])
    report: Report = {
        "format": FORMAT,
        "version": __version__,
        "settings": {
            "measures": [name for name in MEASURES if name in measures],
            "shifts_px": list(shifts_px),
            "cores_px": list(cores_px),
            "crops_px": [list(crop) for crop in crops_px],
            "core_px": core_px,
            "halo": halo,
            "grid_offset_px": list(grid_offset_px),
            "device": device,
            "precision": precision,
            "nodata_rule": nodata_rule,
        },
        "runs": [],
    }
    how = Measuring(
        core_px=core_px,
        halo=halo,
        grid_offset_px=grid_offset_px,
        batch_size=batch_size,
        device=device,
        precision=precision,
        nodata_rule=nodata_rule,
        rules=rules,
        progress=progress,
    )
    chosen = [
        (model, (name, place, one), pair)
        for pair, place in zip(pairs, places, strict=True)
        for model, name in zip(models, names, strict=True)
        for one in tta
    ]
    folders = _folders([parts for _, parts, _ in chosen])
    subjects = [
        _subject(model, parts, pair, folder / own) for (model, parts, pair), own in zip(chosen, folders, strict=True)
    ]
    with only_one(folder):
        if restart:
            for subject in subjects:
                shutil.rmtree(subject.folder, ignore_errors=True)
        for subject in subjects:
            check_settings(subject, how)
        for subject in tqdm(subjects, unit="run", desc="measuring", disable=not progress or len(subjects) < 2):
            ways = ways_of(subject, measures=measures, shifts_px=shifts_px, cores_px=cores_px, crops_px=crops_px)
            corners = "corners" in measures and subject.tta == "none"
            report["runs"].append(measure(subject, ways, corners=corners, how=how))
        write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
        write_text(folder / "report.csv", as_csv(report))
        write_text(folder / "report.md", as_markdown(report))
        write_consistency_page(folder / "report.html", report, scenes_of(report, folder))
    return report


def _subject(model: TrainedModel, parts: tuple[str, str, str], files: tuple[str, str | None], folder: Path) -> Subject:
    """Return a network on a raster: names of the network, the raster and the tta; raster and labels."""
    name, _, tta = parts
    return Subject(
        model=model,
        label=name if tta == "none" else f"{name}, {tta}",
        checkpoint=model.name,
        source=files[0],
        truth=files[1],
        tta=tta,
        folder=folder,
    )


def _folders(parts: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return a folder for each network, raster and tta: no two are one, on any file system."""
    names: list[str] = []
    for name, place, tta in parts:
        plain = "_".join(map(_plain_name, (name, place) if tta == "none" else (name, place, tta)))
        taken = {one.casefold() for one in names}
        number = 2
        own = plain
        while own.casefold() in taken:
            own, number = f"{plain}-{number}", number + 1
        names.append(own)
    return names


def ways_of(
    subject: Subject,
    *,
    measures: Collection[Measure],
    shifts_px: Sequence[int],
    cores_px: Sequence[int],
    crops_px: Sequence[tuple[int, int]],
) -> list[Way]:
    """Return in which ways a raster is labelled beside the grid at rest; without cores or crops, not by these."""
    stride_px = subject.model.geometry.stride_px
    ways: list[Way] = []
    if "moves" in measures:
        moved = [Way(kind="unaligned" if shift % stride_px else "aligned", by_px=shift) for shift in shifts_px]
        ways += sorted(moved, key=lambda way: way.kind)
    ways += [Way(kind="core", by_px=side) for side in cores_px]
    if "whole" in measures:
        ways.append(Way(kind="whole"))
    ways += [Way(kind="crop", by_px=(rows, cols)) for rows, cols in crops_px]
    if "neighbours" in measures:
        ways.append(Way(kind="neighbour"))
    if "train" in measures and subject.tta == "none":
        ways.append(Way(kind="train"))
    return ways


def check_shifts(shifts_px: Sequence[int], core_px: int) -> None:
    """Raise `InvalidConfigError` unless every shift moves a grid of such cores."""
    idle = [shift for shift in shifts_px if shift % core_px == 0]
    if not shifts_px or idle:
        problem = f"{idle[0]} px leaves a grid of {core_px}-px cores where it is" if idle else "none was given"
        raise InvalidConfigError(f"shifts_px must move the grid: {problem}. Try {core_px // 4} and 3.")


def _plain_name(text: str) -> str:
    """Return a name that every file system takes."""
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in text)


def _rules(
    spec: DatasetSpec, label_values: Sequence[Sequence[int]] | None, ignored_values: Sequence[int]
) -> LabelRules:
    """Return what the values of true labels mean."""
    num_classes = len(spec.class_names)
    numbers: Sequence[Sequence[Any]] = [[label] for label in range(num_classes)]
    usual = BUILDINGS.classes if num_classes == len(BUILDINGS.classes) else numbers
    values = usual if label_values is None else label_values
    if len(values) != num_classes:
        raise InvalidConfigError(
            f"label_values need the values of each of {num_classes} classes ({', '.join(spec.class_names)}), got "
            f"{len(values)}."
        )
    ignored = {*ignored_values, *([] if any(IGNORE_LABEL in some for some in values) else [IGNORE_LABEL])}
    return LabelRules(classes=tuple(map(tuple, values)), ignored=tuple(sorted(ignored)))


def _check_measures(measures: Collection[str]) -> None:
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        raise InvalidConfigError(f"measures must be some of {', '.join(MEASURES)}, got {', '.join(unknown) or 'none'}.")


def _check_classes(models: Mapping[str, TrainedModel]) -> None:
    """Raise unless all networks tell the same classes apart."""
    (first, known), *others = models.items()
    for name, model in others:
        if model.spec.class_names != known.spec.class_names:
            raise InvalidConfigError(
                f"{name} has the classes {name_some(model.spec.class_names)}, {first} has "
                f"{name_some(known.spec.class_names)}: they cannot stand in one report. Measure them apart."
            )


def _check_model(
    model: TrainedModel,
    pairs: Sequence[tuple[str, str | None]],
    rules: LabelRules,
    *,
    cores_px: Sequence[int],
    tta: Sequence[str],
    nodata_rule: NodataRule,
) -> None:
    """Open what the work will need, and make every plan, so that what cannot work is said before it."""
    for source, truth in pairs:
        bands = range(1, len(model.spec.bands) + 1)
        with open_raster(source, bands=bands, nodata_rule=nodata_rule) as reader:
            for core_px, one in product(cores_px, tta):
                Plan(
                    height=reader.grid.height,
                    width=reader.grid.width,
                    core_px=core_px,
                    network=network_of(model.geometry),
                    phases=Views.parse(one).phases_of(model.geometry.stride_px),
                )
            if truth is not None:
                with open_labels(truth, rules, reader):
                    pass
