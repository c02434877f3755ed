"""A checkpoint and a raster -> a map of its labels."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from geonorm.data.spec import DatasetSpec
from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.inference.halo import Halo, HaloChoice
from geonorm.inference.job import Job, as_trained, prepare
from geonorm.inference.journal import Journal
from geonorm.models.predictor import Orientations, Precision
from geonorm.raster.area import Area, AreaOnGrid
from geonorm.raster.grid import Grid
from geonorm.raster.mosaic import Mosaic, group_neighbours
from geonorm.raster.polygons import LabelRows, write_polygons
from geonorm.raster.read import NodataRule, RasterSource, open_raster
from geonorm.raster.sources import find_sources, target_names
from geonorm.raster.window import Window
from geonorm.raster.write import LabelWriter, check_target
from geonorm.tasks.checkpoint import TrainedModel
from geonorm.tiling.blending import Blend
from geonorm.tiling.engine import labels_of
from geonorm.tiling.plan import Plan

Path = str | os.PathLike[str]

NODATA_LABEL = 255
RESOLUTION_FACTOR = 1.5
"""Beyond this factor between the raster's resolution and the training one, a warning is due."""


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
    valid_pixels: int
    """Pixels that were labelled."""
    class_pixels: tuple[int, ...]
    """Pixels of each class."""
    vectors: str | None = None
    """The file of polygons, which neighbours share."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a map is made; what each means is said at `predict_raster`."""

    core_px: int = 512
    halo: Halo = "auto"
    grid_offset_px: tuple[int, int] = (0, 0)
    blend: Blend = "none"
    tta: Orientations = "none"
    batch_size: int = 1
    device: str = "cpu"
    precision: Precision = "32-true"
    compile: bool = False
    bands: tuple[int, ...] | None = None
    nodata: float | None = None
    nodata_rule: NodataRule = "all"
    area: Area | None = None
    vectors: Literal["gpkg", "parquet"] | None = None
    min_area_px: int = 0
    simplify_px: float = 0.0
    overwrite: bool = False
    restart: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        for name, allowed in (
            ("blend", ("none", "linear", "hann")),
            ("tta", ("none", "d4")),
            ("precision", ("32-true", "bf16-mixed", "16-mixed")),
            ("vectors", (None, "gpkg", "parquet")),
        ):
            if getattr(self, name) not in allowed:
                choices = ", ".join(str(choice) for choice in allowed)
                raise InvalidConfigError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")


def predict_raster(
    model_or_checkpoint: nn.Module | TrainedModel | Path,
    source: Path,
    target: Path,
    *,
    core_px: int = 512,
    halo: Halo = "auto",
    grid_offset_px: tuple[int, int] = (0, 0),
    blend: Blend = "none",
    tta: Orientations = "none",
    batch_size: int = 1,
    device: str = "cpu",
    precision: Precision = "32-true",
    compile: bool = False,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    nodata_rule: NodataRule = "all",
    area: Area | None = None,
    vectors: Literal["gpkg", "parquet"] | None = None,
    min_area_px: int = 0,
    simplify_px: float = 0.0,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool = False,
    on_plan: Callable[[str], None] = lambda text: None,
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
        core_px: Side of the square that one network call writes, a multiple of the network's stride.
        halo: Pixels read beyond the core: ``"exact"``, ``"measured"``, a number, or ``"auto"``.
        grid_offset_px: Rows and columns by which the grid is moved from the origin of the CRS.
        blend: For networks without an exact halo: the logits of tiles that overlap are averaged, with weights that fall
            in a straight line (``"linear"``) or as a ``"hann"`` window does. This hides seams, it does not make the
            labels independent of the tiles. The whole width of a strip's logits is then held in memory.
        tta: ``"d4"``: average the logits over the eight mirrored and turned copies of each tile.
        batch_size: Tiles per network call; halved, with a warning, when the device's memory is full.
        device: Device to compute on.
        precision: ``"32-true"``, or ``"bf16-mixed"`` or ``"16-mixed"`` for speed: labels then follow from the tiles
            within the rounding.
        compile: Compile the network with torch.
        bands: Bands of the raster, counted from 1, in the order the model takes them; the first ones where None.
        nodata: Value without data, beside what the raster itself declares.
        nodata_rule: A pixel has no data where ``"all"`` or ``"any"`` of its bands have none.
        area: The part of the raster to label; the map covers its bounding box. The network sees what lies around it.
        vectors: Write polygons, too, beside the target: a GeoPackage or a GeoParquet file of the classes that are
            scored, with class, name, pixels, area and mean probability.
        min_area_px: Polygons of fewer pixels are left out.
        simplify_px: By how much the outline of a polygon may move, in pixels.
        overwrite: Replace an existing target.
        restart: Discard the strips that an earlier run left, even one with other settings.
        progress: Show a progress bar with rate and time left.
        on_plan: Called with the plan in words before the work begins.

    Raises:
        RasterError: The source cannot be read, the target not be written, or another process is making it.
        TargetExistsError: The target exists and ``overwrite`` is off.
        CheckpointError: The checkpoint is not one of geonorm.
        InvalidConfigError: A setting that cannot work with this model, or strips of a run with other settings.
    """
    options = Options(
        core_px=core_px,
        halo=halo,
        grid_offset_px=grid_offset_px,
        blend=blend,
        tta=tta,
        batch_size=batch_size,
        device=device,
        precision=precision,
        compile=compile,
        bands=None if bands is None else tuple(bands),
        nodata=nodata,
        nodata_rule=nodata_rule,
        area=area,
        vectors=vectors,
        min_area_px=min_area_px,
        simplify_px=simplify_px,
        overwrite=overwrite,
        restart=restart,
        progress=progress,
    )
    check_target(target, overwrite=overwrite or Journal.is_publishing(FilePath(target)), source=source)
    model = as_trained(model_or_checkpoint)
    with _open(model, source, options) as reader:
        return _label(model, reader, [source], [target], options, on_plan=on_plan)[0]


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
    if not os.path.isdir(out_dir):
        raise InvalidConfigError(
            f"{os.fspath(out_dir)} must be a folder, for the maps of {len(names)} rasters. Make it."
        )
    targets = target_names(names, out_dir)
    model = as_trained(model_or_checkpoint)
    readers = []
    for name in names:
        with _open(model, name, options) as reader:
            readers.append(reader)
    done = []
    for group in group_neighbours(readers):
        files, maps = [names[index] for index in group], [targets[index] for index in group]
        source = readers[group[0]].reopen() if len(group) == 1 else Mosaic([readers[index] for index in group])
        with source:
            done += _label(model, source, files, maps, options, on_plan=on_plan)
    if not done:
        raise InvalidConfigError(f"none of the {len(names)} rasters meets the area. Check its coordinates.")
    return done


def _open(model: TrainedModel, source: Path, options: Options) -> RasterSource:
    bands = options.bands or range(1, len(model.spec.bands) + 1)
    if len(bands) != len(model.spec.bands):
        raise InvalidConfigError(
            f"the model takes {len(model.spec.bands)} bands ({', '.join(model.spec.bands)}), got bands {list(bands)}."
        )
    return open_raster(source, bands=bands, nodata_rule=options.nodata_rule, nodata=options.nodata)


@dataclass(frozen=True)
class _Piece:
    """A map to be made of a part of what is labelled."""

    source: Path
    target: Path
    window: Window
    """Where it lies in what is labelled."""
    grid: Grid
    """The file's own, cut to the area: that of a mosaic may differ in the last digit."""


def _label(
    model: TrainedModel,
    reader: RasterSource,
    sources: Sequence[Path],
    targets: Sequence[Path],
    options: Options,
    *,
    on_plan: Callable[[str], None],
) -> list[Prediction]:
    """Make the maps of one raster, or of several that lie side by side."""
    area = None if options.area is None else options.area.on(reader.grid)
    pieces = _pieces(reader, sources, targets, area)
    if not pieces:
        return []
    vectors = None if options.vectors is None else FilePath(pieces[0].target).with_suffix(f".{options.vectors}")
    publishing = not options.restart and Journal.is_publishing(FilePath(pieces[0].target))
    for piece in pieces:
        check_target(piece.target, overwrite=options.overwrite or publishing, source=piece.source)
    if vectors is not None:
        check_target(vectors, overwrite=options.overwrite or publishing)
    _warn_of_resolution(reader, model.spec)
    job = prepare(
        model,
        reader,
        core_px=options.core_px,
        halo=options.halo,
        grid_offset_px=options.grid_offset_px,
        device=options.device,
        precision=options.precision,
        tta=options.tta,
        compile=options.compile,
        blend=options.blend,
        counts=None if area is None else area.inside,
        progress=options.progress,
    )
    bounds = _bounds([piece.window for piece in pieces])
    spans = list(job.plan.axes[0].spans())
    needed = [span.core_start for span in spans if span.core_start < bounds.row_end and span.core_stop > bounds.row]
    unneeded = {span.core_start for span in spans} - {*needed}
    facts = _facts(job, sources, options)
    with Journal(FilePath(pieces[0].target), facts, num_strips=len(needed), restart=options.restart) as journal:
        done = journal.rows
        going_on = f"\nresumed  {len(done)} of {journal.num_strips} strips are done" if done else ""
        on_plan(job.in_words() + going_on)
        finish = labels_of if vectors is None else labels_and_confidence_of
        for strip in job.strips(
            finish=finish, batch_size=options.batch_size, skip=done | unneeded, progress=options.progress
        ):
            kept = strip.output.numpy()
            (kept if vectors is None else kept[0])[~strip.valid] = NODATA_LABEL
            journal.keep(strip.row, kept)
        return _write(job, journal, pieces, overwrite=options.overwrite or publishing, vectors=vectors, options=options)


def labels_and_confidence_of(logits: Tensor) -> Tensor:
    """Return the class of the highest logit and its probability, 255 for 1: ``(N, K, h, w)`` -> ``(N, 2, h, w)``."""
    highest = logits.softmax(dim=1).max(dim=1).values
    return torch.stack([labels_of(logits), (highest * 255).round().to(torch.uint8)], dim=1)


def _pieces(
    reader: RasterSource, sources: Sequence[Path], targets: Sequence[Path], area: AreaOnGrid | None
) -> list[_Piece]:
    """Return the maps to make, without those that the area of interest leaves nothing of."""
    places, grids = [Window(0, 0, reader.grid.height, reader.grid.width)], [reader.grid]
    if isinstance(reader, Mosaic):
        places, grids = list(reader.places), [source.grid for source in reader.sources]
    pieces = []
    for source, target, place, grid in zip(sources, targets, places, grids, strict=True):
        window = place if area is None else place.intersection(area.window)
        if window.height and window.width:
            own = grid.cropped(window.shifted(-place.row, -place.col))
            pieces.append(_Piece(source, target, window, own))
    return pieces


def _bounds(windows: Sequence[Window]) -> Window:
    row, col = min(window.row for window in windows), min(window.col for window in windows)
    row_end, col_end = max(window.row_end for window in windows), max(window.col_end for window in windows)
    return Window(row, col, row_end - row, col_end - col)


def _write(
    job: Job,
    journal: Journal,
    pieces: Sequence[_Piece],
    *,
    overwrite: bool,
    vectors: FilePath | None,
    options: Options,
) -> list[Prediction]:
    """Put the strips together; the maps appear last."""
    spec, grid = job.model.spec, job.reader.grid
    class_pixels = {piece: np.zeros(len(spec.class_names), dtype=np.int64) for piece in pieces}
    with ExitStack() as stack:
        writers = {
            piece: stack.enter_context(
                LabelWriter(
                    piece.target,
                    piece.grid,
                    class_names=spec.class_names,
                    class_colors=spec.class_colors,
                    tags=job.provenance(),
                    nodata=NODATA_LABEL,
                    overwrite=overwrite,
                    source=piece.source,
                )
            )
            for piece in pieces
        }
        for row, kept in journal.strips():
            labels = kept if kept.ndim == 2 else kept[0]
            strip = Window(row, 0, labels.shape[0], labels.shape[1])
            for piece, writer in writers.items():
                met = strip.intersection(piece.window)
                if met.height and met.width:
                    part = labels[met.row - row : met.row_end - row, met.col : met.col_end]
                    counted = np.bincount(part.ravel(), minlength=NODATA_LABEL + 1)
                    class_pixels[piece] += counted[: len(spec.class_names)]
                    writer.write(met.row - piece.window.row, part)
        journal.publish()
        if vectors is not None:
            bounds = _bounds([piece.window for piece in pieces])
            write_polygons(
                vectors,
                _label_rows(journal, bounds),
                grid.cropped(bounds),
                class_names=spec.class_names,
                classes=spec.scored_classes,
                nodata=NODATA_LABEL,
                min_area_px=options.min_area_px,
                simplify_px=options.simplify_px,
                metadata=job.provenance(),
            )
    return [
        Prediction(
            target=os.fspath(piece.target),
            plan=job.plan,
            halo=job.halo,
            unbounded=job.geometry.unbounded,
            valid_pixels=int(class_pixels[piece].sum()),
            class_pixels=tuple(class_pixels[piece].tolist()),
            vectors=None if vectors is None else os.fspath(vectors),
        )
        for piece in pieces
    ]


def _label_rows(journal: Journal, bounds: Window) -> Iterator[LabelRows]:
    """Yield labels and confidence of a window, from the top."""
    for row, kept in journal.strips():
        met = Window(row, bounds.col, kept.shape[-2], bounds.width).intersection(bounds)
        part = kept[:, met.row - row : met.row_end - row, met.col : met.col_end]
        yield LabelRows(met.row - bounds.row, part[0], part[1])


def _facts(job: Job, sources: Sequence[Path], options: Options) -> dict[str, Any]:
    """Return what every label follows from: two runs that agree in it may share their strips."""
    weights = hashlib.sha256()
    for name, value in sorted(job.model.network.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    plan, grid = job.plan, job.reader.grid
    files = [os.stat(source) if os.path.exists(source) else None for source in sources]
    return {
        "source": [
            os.path.abspath(source) if file else os.fspath(source) for source, file in zip(sources, files, strict=True)
        ],
        "source bytes": [file and file.st_size for file in files],
        "source's time": [file and file.st_mtime_ns for file in files],
        "size": [plan.height, plan.width],
        "transform": list(grid.transform)[:6],
        "weights": weights.hexdigest(),
        "core_px": plan.core_px,
        "halo_px": plan.halo_px,
        "grid_offset_px": list(plan.grid_offset_px),
        "blend": options.blend,
        "tta": options.tta,
        "precision": options.precision,
        "compile": options.compile,
        "batch_size": options.batch_size,
        "bands": list(job.reader.bands),
        "nodata": None if options.nodata is None else str(options.nodata),
        "nodata_rule": options.nodata_rule,
        "area": None if options.area is None else options.area.fingerprint(),
        "vectors": [options.vectors, options.min_area_px, options.simplify_px],
        "device": options.device,
        "provenance": job.provenance(),
        "torch": torch.__version__,
    }


def check_batch_size(batch_size: int) -> None:
    """Raise `InvalidConfigError` unless a batch holds a tile."""
    if batch_size < 1:
        raise InvalidConfigError(f"batch_size must be at least 1, got {batch_size}.")


def _warn_of_resolution(reader: RasterSource, spec: DatasetSpec) -> None:
    trained, found = spec.resolution_m, reader.resolution
    if trained and found and not 1 / RESOLUTION_FACTOR <= found / trained <= RESOLUTION_FACTOR:
        warnings.warn(
            f"{reader.path} has pixels of {found:.3g} m, the model was trained on {trained:.3g} m: expect poor labels. "
            f"Resample it first (gdalwarp -tr), or train at that resolution.",
            GeonormWarning,
            stacklevel=3,
        )
