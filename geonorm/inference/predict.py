"""A checkpoint and a raster -> a map of its labels."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from geonorm import __version__
from geonorm.data.spec import DatasetSpec
from geonorm.errors import GeonormWarning, InvalidConfigError, name_some
from geonorm.inference.halo import Halo, HaloChoice, choose_halo
from geonorm.inference.journal import Journal
from geonorm.models import TileGeometry, tile_geometry
from geonorm.models.predictor import predictor
from geonorm.models.rescale import rescale_of
from geonorm.raster.read import NodataRule, Reader, open_raster
from geonorm.raster.write import LabelWriter, check_target
from geonorm.tasks.checkpoint import TrainedModel, load_model
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.engine import Predict, Strip, labels_of, predict_strips, predict_whole
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


def predict_raster(
    model_or_checkpoint: nn.Module | TrainedModel | Path,
    source: Path,
    target: Path,
    *,
    core_px: int = 512,
    halo: Halo = "auto",
    grid_offset_px: tuple[int, int] = (0, 0),
    batch_size: int = 1,
    device: str = "cpu",
    nodata_rule: NodataRule = "all",
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
        batch_size: Tiles per network call.
        device: Device to compute on.
        nodata_rule: A pixel has no data where ``"all"`` or ``"any"`` of its bands have none.
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
    check_batch_size(batch_size)
    place = check_target(target, overwrite=overwrite, source=source)
    model = as_trained(model_or_checkpoint)
    with open_raster(source, bands=range(1, len(model.spec.bands) + 1), nodata_rule=nodata_rule) as reader:
        _warn_of_resolution(reader, model.spec)
        job = prepare(
            model,
            reader,
            core_px=core_px,
            halo=halo,
            grid_offset_px=grid_offset_px,
            device=device,
            progress=progress,
        )
        class_pixels = torch.zeros(len(model.spec.class_names), dtype=torch.int64)
        map_writer = LabelWriter(
            target,
            reader.grid,
            class_names=model.spec.class_names,
            class_colors=model.spec.class_colors,
            tags=job.provenance(),
            nodata=NODATA_LABEL,
            overwrite=overwrite,
            source=source,
        )
        facts = _facts(job, source, nodata_rule=nodata_rule, batch_size=batch_size, device=device)
        with Journal(place, facts, num_strips=job.plan.axes[0].num_cores, restart=restart) as journal:
            done = journal.rows
            going_on = f"\nresumed  {len(done)} of {journal.num_strips} strips are done" if done else ""
            on_plan(job.in_words() + going_on)
            for strip in job.strips(batch_size=batch_size, skip=done, progress=progress):
                labels = strip.output.numpy()
                labels[~strip.valid] = NODATA_LABEL
                journal.keep(strip.row, labels)
            with map_writer as writer:
                for row, labels in journal.strips():
                    counted = np.bincount(labels.ravel(), minlength=NODATA_LABEL + 1)
                    class_pixels += torch.from_numpy(counted[: len(class_pixels)])
                    writer.write(row, labels)
    return Prediction(
        target=os.fspath(target),
        plan=job.plan,
        halo=job.halo,
        unbounded=job.geometry.unbounded,
        valid_pixels=int(class_pixels.sum()),
        class_pixels=tuple(class_pixels.tolist()),
    )


def _facts(job: Job, source: Path, *, nodata_rule: NodataRule, batch_size: int, device: str) -> dict[str, Any]:
    """Return what every label follows from: two runs that agree in it may share their strips."""
    weights = hashlib.sha256()
    for name, value in sorted(job.model.network.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    plan, grid = job.plan, job.reader.grid
    file = os.stat(source) if os.path.exists(source) else None
    return {
        "source": os.path.abspath(source) if file else os.fspath(source),
        "source bytes": file.st_size if file else None,
        "source's time": file.st_mtime_ns if file else None,
        "size": [plan.height, plan.width],
        "transform": list(grid.transform)[:6],
        "weights": weights.hexdigest(),
        "core_px": plan.core_px,
        "halo_px": plan.halo_px,
        "grid_offset_px": list(plan.grid_offset_px),
        "batch_size": batch_size,
        "nodata_rule": nodata_rule,
        "device": device,
        "provenance": job.provenance(),
        "torch": torch.__version__,
    }


def check_batch_size(batch_size: int) -> None:
    """Raise `InvalidConfigError` unless a batch holds a tile."""
    if batch_size < 1:
        raise InvalidConfigError(f"batch_size must be at least 1, got {batch_size}.")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A raster, a model and a plan, ready to run."""

    model: TrainedModel
    reader: Reader
    geometry: TileGeometry
    plan: Plan
    halo: HaloChoice
    predict: Predict
    fill: Tensor

    def strips(
        self,
        *,
        finish: Callable[[Tensor], Tensor] = labels_of,
        batch_size: int = 1,
        skip: Collection[int] = (),
        progress: bool = False,
        title: str = "labelling",
    ) -> Iterator[Strip]:
        """Yield the raster's strips from the top; see `geonorm.tiling.engine.predict_strips`."""
        done = len(skip) * self.plan.axes[1].num_cores
        bar = tqdm(total=self.plan.num_tiles, initial=done, unit="tile", desc=title, disable=not progress)
        with bar:
            yield from predict_strips(
                self.reader.read,
                self.predict,
                self.plan,
                fill=self.fill,
                finish=finish,
                batch_size=batch_size,
                skip=skip,
                on_tiles=bar.update,
            )

    def whole(self, *, finish: Callable[[Tensor], Tensor] = labels_of) -> Strip:
        """Return the whole-image pass, for rasters small enough."""
        return predict_whole(self.reader.read, self.predict, self.plan, fill=self.fill, finish=finish)

    def moved(self, shift_px: int, reader: Reader) -> Job:
        """Return the same job with its grid moved down and to the right, reading through another reader."""
        row, col = self.plan.grid_offset_px
        return replace(self, reader=reader, plan=replace(self.plan, grid_offset_px=(row + shift_px, col + shift_px)))

    def in_words(self) -> str:
        """Return the plan as text for a user."""
        plan, (rows, cols) = self.plan, self.plan.axes
        local_px = self.model.localized_px
        return "\n".join(
            [
                *([] if local_px is None else [f"network  localized: norms over windows of {local_px} px"]),
                f"source   {self.reader.path}: {plan.height} x {plan.width} px, {len(self.reader.bands)} bands, "
                f"{self.reader.dtype}",
                f"tiles    {rows.num_cores} x {cols.num_cores} cores of {plan.core_px} px, reading {plan.read_px} px, "
                f"{plan.overhead:.2f} times the compute",
                f"halo     {self.halo.why}",
                f"grid     anchored to the CRS at multiples of {plan.network.stride_px} px; "
                f"first pixel at row {plan.first_index[0]}, column {plan.first_index[1]}",
            ]
        )

    def provenance(self) -> dict[str, str]:
        """Return what the map's tags say of its making; no time, no host."""
        return {
            "geonorm_version": __version__,
            "geonorm_checkpoint": self.model.name,
            "geonorm_network": json.dumps(self.model.network_path),
            "geonorm_norm": json.dumps(self.model.norm_path),
            **({} if self.model.localized_px is None else {"geonorm_localized_px": str(self.model.localized_px)}),
            "geonorm_core_px": str(self.plan.core_px),
            "geonorm_halo_px": str(self.plan.axes[0].aligned_halo_px),
            "geonorm_halo_kind": self.halo.kind,
            "geonorm_stride_px": str(self.plan.network.stride_px),
            "geonorm_grid_offset_px": json.dumps(list(self.plan.grid_offset_px)),
            "geonorm_tile_independent": "yes" if self.halo.kind == "exact" else "no",
        }


def prepare(
    model: TrainedModel,
    reader: Reader,
    *,
    core_px: int = 512,
    halo: Halo = "auto",
    grid_offset_px: tuple[int, int] = (0, 0),
    device: str = "cpu",
    progress: bool = False,
) -> Job:
    """Return the job of labelling an open raster; choose its halo, and warn where labels depend on the tiles."""
    geometry = tile_geometry(model.network)
    plan = Plan(
        height=reader.grid.height,
        width=reader.grid.width,
        core_px=core_px,
        network=network_of(geometry),
        first_index=reader.grid.first_index,
        grid_offset_px=grid_offset_px,
    )
    fill = rescale_of(model.network).mean.detach().cpu()
    predict = predictor(model.network, torch.device(device))
    with tqdm(unit="core", desc="measuring the halo", disable=not progress, leave=False, delay=1) as bar:
        choice = choose_halo(halo, geometry, plan, read=reader.read, predict=predict, fill=fill, on_cores=bar.update)
    if geometry.unbounded:
        warnings.warn(
            f"The labels depend on the tiles, whatever the halo: {name_some(geometry.unbounded)} see the whole input. "
            f"{choice.why[0].upper()}{choice.why[1:]}.",
            GeonormWarning,
            stacklevel=2,
        )
    return Job(
        model=model,
        reader=reader,
        geometry=geometry,
        plan=replace(plan, halo_px=choice.halo_px),
        halo=choice,
        predict=predict,
        fill=fill,
    )


def as_trained(model: nn.Module | TrainedModel | Path) -> TrainedModel:
    """Return a model with its facts; a bare network gets numbered classes."""
    if isinstance(model, TrainedModel):
        return model
    if not isinstance(model, nn.Module):
        return load_model(os.fspath(model))
    bands = len(rescale_of(model).mean)
    geometry = tile_geometry(model)
    with torch.no_grad():
        num_classes = predictor(model, torch.device("cpu"))(
            torch.zeros(1, bands, geometry.least_px, geometry.least_px)
        ).shape[1]
    return TrainedModel(
        network=model,
        spec=numbered_spec(bands, num_classes),
        network_path={"class_path": f"{type(model).__module__}.{type(model).__qualname__}", "init_args": {}},
        norm_path={},
        name="",
        version=__version__,
    )


def numbered_spec(num_bands: int, num_classes: int) -> DatasetSpec:
    """Return facts for a network that nothing else is known of."""
    hues = [round(255 * label / max(1, num_classes - 1)) for label in range(num_classes)]
    return DatasetSpec(
        bands=tuple(f"band {band + 1}" for band in range(num_bands)),
        class_names=tuple(f"class {label}" for label in range(num_classes)),
        class_colors=tuple((hue, hue, 255 - hue) for hue in hues),
        scored_classes=tuple(range(num_classes)),
    )


def _warn_of_resolution(reader: Reader, spec: DatasetSpec) -> None:
    trained, found = spec.resolution_m, reader.resolution
    if trained and found and not 1 / RESOLUTION_FACTOR <= found / trained <= RESOLUTION_FACTOR:
        warnings.warn(
            f"{reader.path} has pixels of {found:.3g} m, the model was trained on {trained:.3g} m: expect poor labels. "
            f"Resample it first (gdalwarp -tr), or train at that resolution.",
            GeonormWarning,
            stacklevel=3,
        )
