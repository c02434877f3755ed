"""A checkpoint and a raster -> a map of its labels."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path as FilePath
from types import TracebackType
from typing import Any, Self

from torch import nn

from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.inference.assembly import assemble
from geonorm.inference.forecast import forecast
from geonorm.inference.job import as_trained
from geonorm.inference.journal import Journal, StripFolder
from geonorm.inference.memory import available_memory
from geonorm.inference.options import Options
from geonorm.inference.outputs import Kept
from geonorm.inference.targets import check_files
from geonorm.inference.work import Prediction as Prediction
from geonorm.inference.work import prepare_work
from geonorm.raster.area import AreaMissesError
from geonorm.raster.mosaic import Mosaic, group_neighbours
from geonorm.raster.read import RasterSource, files_of, open_raster
from geonorm.raster.sources import find_sources, target_names
from geonorm.raster.write import check_folder, check_target
from geonorm.tasks.checkpoint import TrainedModel
from geonorm.tiling.engine import Strip

Path = str | os.PathLike[str]


def predict_raster(
    model_or_checkpoint: nn.Module | TrainedModel | Path,
    source: Path,
    target: Path,
    *,
    on_plan: Callable[[str], None] = lambda text: None,
    **settings: Any,
) -> Prediction:
    """Label a raster of any size and write a Cloud-Optimized GeoTIFF.

    The labels do not depend on the tiling where the halo is exact: they are those of the whole-image pass, bit for
    bit with geonorm's U-Net on the CPU. Memory grows with the raster's width times the core, not with its height.

    Finished strips are kept beside the target until the map is whole. A run that ended early, however it ended, goes on
    from them when it is called again with the same arguments, and the map has the same bytes as if it had never ended.

    Args:
        model_or_checkpoint: A network that maps raw band values to logits, or a checkpoint of it.
        source: The raster; it needs at least as many bands as the model, which takes the first ones.
        target: The map to write: uint8, same grid and CRS, 255 where there is no data.
        on_plan: Called with the plan in words before the work begins.
        settings: The fields of `Options`, which says what they mean.

    Raises:
        RasterError: The source cannot be read, the target not be written, or another process is making it.
        TargetExistsError: The target exists and ``overwrite`` is off.
        CheckpointError: The checkpoint is not one of geonorm.
        InvalidConfigError: A setting that cannot work with this model, or strips of a run with other settings.
    """
    options = Options(**settings)
    going_on = options.shard.count > 1 or StripFolder(FilePath(target)).is_publishing
    check_target(target, overwrite=options.overwrite or going_on, source=source)
    model = as_trained(model_or_checkpoint)
    with _open(model, source, options) as reader:
        _check_files(model_or_checkpoint, [source], [target], options)
        return _label(model, reader, [source], [target], options, on_plan=on_plan)[0]


def _show_settings_of(function: Any) -> None:
    """Let ``help`` and completion show the fields of `Options` as keyword arguments."""
    signature = inspect.signature(function)
    shown = [parameter for parameter in signature.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
    shown += [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(Options)
    ]
    function.__signature__ = signature.replace(parameters=shown)


_show_settings_of(predict_raster)


def predict_rasters(
    model_or_checkpoint: nn.Module | TrainedModel | Path,
    sources: Sequence[Path],
    out_dir: Path,
    options: Options | None = None,
    *,
    on_plan: Callable[[str], None] = lambda text: None,
) -> list[Prediction]:
    """Label several rasters; those of one grid that lie side by side are read as one, so that no seam is between them.

    Args:
        model_or_checkpoint: As for `predict_raster`.
        sources: Rasters, folders of rasters, or text files that list them.
        out_dir: Folder for the maps, one for each raster, under its name; polygons of neighbours share one file.
        options: As the arguments of `predict_raster`.
        on_plan: Called with every plan in words before its work begins.

    Returns:
        One for each raster; those outside the area of interest are left out.
    """
    options = options or Options()
    names = find_sources([os.fspath(source) for source in sources])
    check_folder(out_dir, what=f"the maps of {len(names)} rasters")
    targets = target_names(names, out_dir)
    model = as_trained(model_or_checkpoint)
    readers = []
    for name in names:
        with _open(model, name, options) as reader:
            readers.append(reader)
    _check_files(model_or_checkpoint, names, targets, options)
    done: list[Prediction] = []
    for group in group_neighbours(readers):
        files, maps = [names[index] for index in group], [targets[index] for index in group]
        source = readers[group[0]].reopen() if len(group) == 1 else Mosaic([readers[index] for index in group])
        with source:
            try:
                done += _label(model, source, files, maps, options, on_plan=on_plan)
            except AreaMissesError:
                on_plan(f"source   {source.path}: left out, it lies outside the area")
    if not done:
        raise AreaMissesError(f"none of the {len(names)} rasters meets the area. Check its coordinates and its CRS.")
    return done


def _open(model: TrainedModel, source: Path, options: Options) -> RasterSource:
    bands = options.bands or range(1, len(model.spec.bands) + 1)
    if len(bands) != len(model.spec.bands):
        raise InvalidConfigError(
            f"the model takes {len(model.spec.bands)} bands ({', '.join(model.spec.bands)}), got bands {list(bands)}."
        )
    return open_raster(source, bands=bands, nodata_rule=options.nodata_rule, nodata=options.nodata)


def _check_files(
    model_or_checkpoint: nn.Module | TrainedModel | Path,
    sources: Sequence[Path],
    targets: Sequence[Path],
    options: Options,
) -> None:
    """Raise in one line if a file to be made is another one, too, or one that is read."""
    read = [file for source in sources for file in files_of(source)]
    if options.area is not None:
        read.append(options.area.name)
    if not isinstance(model_or_checkpoint, nn.Module | TrainedModel):
        read.append(os.fspath(model_or_checkpoint))
    check_files([FilePath(target) for target in targets], options.outputs, options.vectors, read=read)


def _label(
    model: TrainedModel,
    source: RasterSource,
    sources: Sequence[Path],
    targets: Sequence[Path],
    options: Options,
    *,
    on_plan: Callable[[str], None],
) -> list[Prediction]:
    """Make the maps of one raster, or of several that lie side by side."""
    work = prepare_work(model, source, sources, targets, options)
    rows = {span.core_start for span in work.job.plan.axes[0].spans()}
    if options.dry_run:
        needs = forecast(
            work.job,
            batch_size=options.batch_size,
            kept_bytes_per_px=work.layers.bytes_per_px,
            skip=rows - {*work.plan.rows},
            more_compute=0.0 if work.stats is None else work.stats.cost,
            progress=options.progress,
        )
        on_plan(f"{work.in_words()}\n{needs.in_words()}")
        free = available_memory()
        if needs.memory_bytes > free:
            warnings.warn(
                f"that may be more memory than there is: {free / 1e9:.1f} GB are free. Take a smaller "
                "--core_px, --batch_size or --halo.",
                GeonormWarning,
                stacklevel=3,
            )
        return work.results
    contiguous = options.blend != "none" or options.engine != "tiles"
    if options.shard.count > 1 and work.is_made():
        # Before this launch or in it, nobody knows: what is to be made anew is, but by shards that make nothing.
        anew = options.overwrite or options.restart
        if not anew or not options.shard.of(work.plan.rows, contiguous=contiguous):
            return work.results
        work.plan.check_targets(work.folder, overwrite=options.overwrite)
    told = False
    if work.stats is not None and not work.statistics:
        on_plan(work.in_words())
        told = True
        work = work.gathered(progress=options.progress)
    overwrite = options.overwrite or (work.strips.is_publishing and not options.restart)
    journal = Journal(
        work.strips.target,
        work.facts,
        rows=work.plan.rows,
        plan={
            "core": work.core,
            "halo": asdict(work.job.halo),
            "stats": work.statistics,
            "engine": [work.job.rows and work.job.rows.as_plain(), work.job.engine],
            "unbounded": list(work.job.geometry.unbounded),
            "assembly": work.plan.as_plain(),
        },
        shard=options.shard,
        contiguous=contiguous,
        restart=options.restart,
    )
    with journal:
        words = [*([] if told else [work.in_words()]), *_progress_in_words(journal)]
        if words:
            on_plan("\n".join(words))
        strips = work.job.strips(
            finish=work.layers.finish,
            batch_size=options.batch_size,
            skip=rows - ({*journal.own_rows} & journal.missing),
            progress=options.progress,
        )
        with _Keeper(journal, work.layers) as keeper:
            for strip in strips:
                keeper.keep(strip)
        if missing := len(journal.missing):
            return [replace(result, missing_strips=missing) for result in work.results]
        with journal.strips.merging() as is_ours:
            if not is_ours:
                return work.results
            class_pixels = assemble(work.plan, journal.strips, overwrite=overwrite, progress=options.progress)
            journal.is_done()
    return [replace(result, class_pixels=counts) for result, counts in zip(work.results, class_pixels, strict=True)]


class _Keeper:
    """Writes finished strips in a thread, one while the next is computed. Use it in a ``with`` statement."""

    def __init__(self, journal: Journal, layers: Kept) -> None:
        self._journal = journal
        self._layers = layers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keep")
        self._last: Future[None] | None = None

    def keep(self, strip: Strip) -> None:
        """Begin to write a strip, as soon as the one before is written; an error of that one is raised here."""
        self._wait()
        self._last = self._thread.submit(self._keep, strip)

    def _keep(self, strip: Strip) -> None:
        layers = self._layers.split(strip.output, strip.valid) if strip.valid.any() else {}
        self._journal.keep(strip.row, [(layer, layers[layer.name]) for layer in self._layers.layers if layers])

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self._wait()


def _progress_in_words(journal: Journal) -> list[str]:
    """Return what is done, and what falls to this process."""
    kept, everything = len(journal.all_rows) - len(journal.missing), len(journal.all_rows)
    lines = [f"resumed  {kept} of {everything} strips are done"] if kept else []
    if len(journal.own_rows) < everything:
        lines.append(f"shard    {len(journal.own_rows)} of {everything} strips are made here")
    return lines
