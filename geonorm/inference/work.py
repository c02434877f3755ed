"""A map to be made: what can be checked before work is, core and halo are chosen, and all of it is planned."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import torch

from geonorm.data.spec import DatasetSpec
from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.inference.assembly import Assembly, Piece, PolygonPlan
from geonorm.inference.engines import Rows, Wish, choose_rows, data_share, known_rows
from geonorm.inference.facts import config_hash, machine_facts, setting_facts, source_facts, source_hash
from geonorm.inference.forecast import USUAL_CORE_PX, choose_core_px
from geonorm.inference.global_stats import GlobalStats, Statistics, plan_global_stats
from geonorm.inference.halo import HaloChoice
from geonorm.inference.job import Job, plan_without_halo, prepare
from geonorm.inference.journal import StripFolder
from geonorm.inference.memory import available_memory
from geonorm.inference.options import Options
from geonorm.inference.outputs import Kept
from geonorm.inference.scale import warn_of_alpha, warn_of_values
from geonorm.inference.targets import is_made
from geonorm.inference.views import Views
from geonorm.models.row_predictor import DiffersByRowsError
from geonorm.raster.area import AreaMissesError, AreaOnGrid
from geonorm.raster.grid import Grid
from geonorm.raster.mosaic import Mosaic
from geonorm.raster.read import RasterSource
from geonorm.raster.resample import Resampled
from geonorm.raster.window import Window
from geonorm.tasks.checkpoint import TrainedModel
from geonorm.tiling.plan import Plan

Path = str | os.PathLike[str]

RESOLUTION_FACTOR = 1.5
"""Beyond this factor between the raster's resolution and the training one, a warning is due."""
SAME_RESOLUTION = 0.01
"""By this share two resolutions may differ and still be one."""
MOST_FINER = 8
"""``resolution_m="auto"`` makes pixels at most so many times finer."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was done to make a map."""

    target: str
    """The map."""
    plan: Plan
    """Its tiles."""
    halo: HaloChoice
    """Why that halo."""
    unbounded: tuple[str, ...]
    """What makes the labels depend on the tiles; empty where nothing does."""
    missing_strips: int = 0
    """Strips that other shards have not finished; the map is not there while any is missing."""
    class_pixels: tuple[int, ...] = ()
    """Pixels of each class; empty where another shard put the map together, or will, and after a dry run."""
    others: tuple[str, ...] = ()
    """Further files of the map: other outputs, and the polygons, which neighbours share."""

    @property
    def valid_pixels(self) -> int:
        """Pixels that were labelled."""
        return sum(self.class_pixels)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A map to be made, checked and planned."""

    job: Job
    plan: Assembly
    layers: Kept
    results: list[Prediction]
    """What is to be returned, as far as it is known before."""
    folder: FilePath
    """Where the maps are to be."""
    facts: dict[str, Any]
    """What the strips follow from."""
    sources: Sequence[Path]
    """The rasters."""
    core: tuple[int, str]
    """The core, and why it was chosen, if it was."""
    stats: GlobalStats | None = None
    """What is gathered before the raster is labelled."""
    statistics: Statistics | None = None
    """What has been gathered of that."""

    @property
    def strips(self) -> StripFolder:
        """The finished strips."""
        return StripFolder(self.folder / self.plan.pieces[0].name)

    def in_words(self) -> str:
        """Return the plan as text for a user."""
        bounds, grid = self.plan.bounds, self.plan.grid
        lines = [self.job.in_words()]
        if (bounds.height, bounds.width) != (grid.height, grid.width):
            lines.append(f"area     {bounds.height} rows x {bounds.width} columns of it")
        if self.stats is not None:
            lines.append(self.stats.in_words())
        if self.core[1]:
            lines.append(f"core     {self.core[1]}")
        return "\n".join(lines)

    def gathered(self, *, progress: bool) -> Work:
        """Return the same with the statistics of the raster gathered.

        Args:
            progress: Show a progress bar.
        """
        assert self.stats is not None
        job = self.job
        statistics = self.stats.gather(job.reader, job.plan, fill=job.fill, precision=job.precision, progress=progress)
        return replace(self, job=job.renewed(), statistics=statistics)

    def is_made(self) -> bool:
        """Whether the map is there, of the same source, network and settings: other shards were quicker."""
        return is_made(self.strips, self.plan.files(self.folder), self.plan.tags, self.sources)


def prepare_work(
    model: TrainedModel, source: RasterSource, sources: Sequence[Path], targets: Sequence[Path], options: Options
) -> Work:
    """Check all that can be checked before work, choose core and halo, and plan."""
    reader = _resampled(source, model.spec, options)
    area = None if options.area is None else options.area.on(reader.grid)
    pieces, files = _pieces(source, reader, sources, targets, area, options)
    folder, layers = (
        FilePath(files[0][1]).parent,
        Kept(model.spec, options.outputs, with_confidence=options.vectors is not None),
    )
    polygons = None
    if options.vectors is not None:
        name = FilePath(pieces[0].name).with_suffix(f".{options.vectors}").name
        polygons = PolygonPlan(name, tuple(model.spec.scored_classes), options.min_area_px, options.simplify_px)
    plan = Assembly(
        rows=(),
        heights=(),
        grid=reader.grid,
        layers=layers.layers,
        outputs=tuple(options.outputs),
        pieces=tuple(pieces),
        tags={},
        polygons=polygons,
    )
    settings = setting_facts(model, reader, options)
    letters = {
        "geonorm_config": config_hash(settings)[:16],
        "geonorm_source": source_hash(sources, settings)[:16],
    }
    strips = StripFolder(folder / pieces[0].name)
    going_on = strips.is_publishing and not options.restart
    is_late = options.shard.count > 1 and is_made(strips, plan.files(folder), letters, sources)
    if options.overwrite or not is_late:
        plan.check_targets(folder, overwrite=options.overwrite or going_on)
    facts = {**source_facts(sources), **settings, **machine_facts(options)}
    known = {} if options.restart else _known(strips, facts)
    device = options.shard.device(options.device)
    stats, statistics = None, known.get("stats")
    if options.global_stats:
        stats = plan_global_stats(
            model,
            plan_without_halo(
                reader,
                model.geometry,
                core_px=model.geometry.stride_px,
                grid_offset_px=options.grid_offset_px,
            ),
            bands=len(reader.bands),
            dtype=torch.float32,
            device=device,
            memory_bytes=available_memory(device),
        )
        model = stats.model
        if statistics:
            stats.fix(statistics)
    stride = model.geometry.stride_px
    core = known.get("core") if options.core_px == "auto" else (options.core_px, "")
    usual_core = core or (-(-USUAL_CORE_PX // stride) * stride, "")
    model, rows, engine = _rows_of(model, reader, usual_core[0], area, options, known, device)
    if rows is not None:
        core = usual_core
    if core is None:
        core = choose_core_px(
            model.geometry,
            network=model.network,
            bands=len(reader.bands),
            memory_bytes=available_memory(device),
            batch_size=options.batch_size,
            phases=Views.parse(options.tta).phases_of(stride),
        )
    job = prepare(
        model,
        reader,
        core_px=core[0],
        halo=options.halo,
        known_halo=HaloChoice(**known["halo"]) if known else None,
        grid_offset_px=options.grid_offset_px,
        device=device,
        precision=options.precision,
        tta=options.tta,
        compile=options.compile,
        backend=options.backend,
        blend=options.blend,
        counts=None if area is None else area.inside,
        rows=rows,
        engine=engine,
        progress=options.progress,
    )
    bounds = plan.bounds
    spans = [
        span for span in job.plan.axes[0].spans() if span.core_start < bounds.row_end and span.core_stop > bounds.row
    ]
    about_stats = {} if stats is None else {"geonorm_statistics": "of the whole raster"}
    tags = {**job.provenance(), **about_stats, "geonorm_model": settings["weights"][:16], **letters}
    plan = replace(
        plan,
        rows=tuple(span.core_start for span in spans),
        heights=tuple(span.core_stop - span.core_start for span in spans),
        tags=tags,
    )
    results = [
        Prediction(
            target=os.fspath(target),
            plan=job.plan,
            halo=job.halo,
            unbounded=job.geometry.unbounded,
            others=tuple(map(str, plan.further_files(folder, piece))),
        )
        for piece, (_, target) in zip(pieces, files, strict=True)
    ]
    return Work(
        job=job,
        plan=plan,
        layers=layers,
        results=results,
        folder=folder,
        facts={**facts, "halo_px": job.plan.halo_px, "provenance": tags},
        sources=sources,
        core=core,
        stats=stats,
        statistics=statistics,
    )


def _rows_of(
    model: TrainedModel,
    reader: RasterSource,
    core_px: int,
    area: AreaOnGrid | None,
    options: Options,
    known: Mapping[str, Any],
    device: str,
) -> tuple[TrainedModel, Rows | None, str]:
    """Return how the raster goes through in rows, None where it goes in tiles; and why.

    The model comes back without an exact halo if rows show that it has none.
    """
    if known:
        earlier, why = known["engine"]
        model = _without_exact_halo(model, *known["unbounded"])
        if earlier is None:
            return model, None, why
        rows = known_rows(earlier, model.network, model.geometry, precision=options.precision, device=device)
        return model, rows, why
    plan = plan_without_halo(reader, model.geometry, core_px=core_px, grid_offset_px=options.grid_offset_px)
    wish = Wish(
        engine=options.engine,
        halo=options.halo,
        blend=options.blend,
        phases=Views.parse(options.tta).phases_of(model.geometry.stride_px),
        tta=options.tta,
        compile=options.compile,
        backend=options.backend,
        precision=options.precision,
    )
    try:
        found = choose_rows(
            model.network,
            model.geometry,
            plan,
            wish=wish,
            device=device,
            share=lambda: data_share(reader.read, plan, None if area is None else area.inside),
        )
    except DiffersByRowsError as error:
        return _without_exact_halo(model, error.name), None, f"tiles, since {error}"
    return model, *found


def _without_exact_halo(model: TrainedModel, *names: str) -> TrainedModel:
    """Return a model that is known to see the whole input by what is named, if anything is."""
    if not names:
        return model
    geometry, model = model.geometry.without_exact_halo(*names), replace(model)
    vars(model)["geometry"] = geometry  # where its `cached_property` looks
    return model


def _resampled(source: RasterSource, spec: DatasetSpec, options: Options) -> RasterSource:
    """Return the raster at the resolution that the network is to see."""
    warn_of_alpha(source)
    warn_of_values(source, spec)
    wanted = spec.resolution_m if options.resolution_m == "auto" else options.resolution_m
    if options.resolution_m == "auto" and wanted is None:
        raise InvalidConfigError(
            "the checkpoint does not say at what resolution it was trained. Name one: --resolution_m 0.3."
        )
    found = source.resolution
    if options.resolution_m == "auto" and found and wanted and found > MOST_FINER * wanted:
        raise InvalidConfigError(
            f"{source.path} has pixels of {found:.3g} m, the network knows {wanted:.3g} m: --resolution_m auto "
            f"refines at most {MOST_FINER} times, since finer pixels show nothing more. Find finer imagery, or name a "
            f"resolution, such as --resolution_m {found / MOST_FINER:.3g}."
        )
    if wanted is not None and not (found and abs(found / wanted - 1) <= SAME_RESOLUTION):
        return Resampled(source, wanted)
    _warn_of_resolution(source, spec)
    return source


def _pieces(
    source: RasterSource,
    reader: RasterSource,
    sources: Sequence[Path],
    targets: Sequence[Path],
    area: AreaOnGrid | None,
    options: Options,
) -> tuple[list[Piece], list[tuple[Path, Path]]]:
    """Return the maps to make, and their source and target; without those that the area leaves nothing of."""
    places, grids = [Window(0, 0, source.grid.height, source.grid.width)], [source.grid]
    if isinstance(source, Mosaic):
        places, grids = list(source.places), [part.grid for part in source.sources]
    wanted = area if options.area is None or reader is source else options.area.on(source.grid)
    pieces, files = [], []
    for file, target, place, grid in zip(sources, targets, places, grids, strict=True):
        window = place if wanted is None else place.intersection(wanted.window)
        if not (window.height and window.width):
            continue
        own, on_grid = grid.cropped(window.shifted(-place.row, -place.col)), None
        if reader is not source:
            window = _window_on(reader.grid, own)
            own, on_grid = reader.grid.cropped(window), own if options.output_grid == "source" else None
        pieces.append(Piece(FilePath(target).name, window, own, on_grid))
        files.append((file, target))
    if not pieces:
        raise AreaMissesError(f"the area misses {source.path}. Check its coordinates.")
    return pieces, files


def _window_on(grid: Grid, other: Grid) -> Window:
    """Return the pixels of a grid that hold another one of the same directions, and one more on each side."""
    t = ~grid.transform @ other.transform  # of one direction, so it only moves and scales
    left, top, right, bottom = t.c, t.f, t.c + t.a * other.width, t.f + t.e * other.height
    row, col = math.floor(round(top, 3)) - 1, math.floor(round(left, 3)) - 1
    row_end, col_end = math.ceil(round(bottom, 3)) + 1, math.ceil(round(right, 3)) + 1
    window = Window(row, col, row_end - row, col_end - col)
    return window.intersection(Window(0, 0, grid.height, grid.width))


def _known(strips: StripFolder, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an earlier run with the same settings has chosen and found out."""
    earlier, facts = strips.read_plan(), json.loads(json.dumps(facts))
    if earlier is None or any(earlier["facts"].get(name) != fact for name, fact in facts.items()):
        return {}
    return {name: earlier[name] for name in ("core", "halo", "engine", "stats", "unbounded")}


def _warn_of_resolution(reader: RasterSource, spec: DatasetSpec) -> None:
    trained, found = spec.resolution_m, reader.resolution
    if trained and found and not 1 / RESOLUTION_FACTOR <= found / trained <= RESOLUTION_FACTOR:
        warnings.warn(
            f"{reader.path} has pixels of {found:.3g} m, the model was trained on {trained:.3g} m: expect poor labels. "
            + (
                "Let the network see what it knows with --resolution_m auto."
                if found < trained
                else "Find finer imagery, or train at that resolution."
            ),
            GeonormWarning,
            stacklevel=4,
        )
