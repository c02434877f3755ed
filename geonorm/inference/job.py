"""A raster, a model and a plan, ready to run."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from geonorm import __version__
from geonorm.data.spec import DatasetSpec
from geonorm.errors import GeonormWarning, name_some
from geonorm.inference.engines import Rows
from geonorm.inference.halo import Halo, HaloChoice, choose_halo
from geonorm.inference.views import Views
from geonorm.models import TileGeometry, tile_geometry
from geonorm.models.predictor import Backend, Precision, predictor
from geonorm.models.rescale import rescale_of
from geonorm.models.row_predictor import RowPredictor
from geonorm.raster.read import RasterSource
from geonorm.raster.resample import Resampled
from geonorm.tasks.checkpoint import TrainedModel, load_model
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.blending import Blend
from geonorm.tiling.engine import Counts, Predict, Strip, labels_of, predict_strips, predict_whole, shape_of
from geonorm.tiling.plan import Plan
from geonorm.tiling.rows import predict_rows
from geonorm.tiling.supply import Supply

Path = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A raster, a model and a plan, ready to run."""

    model: TrainedModel
    reader: RasterSource
    geometry: TileGeometry
    plan: Plan
    halo: HaloChoice
    predict: Predict
    fill: Tensor
    blend: Blend = "none"
    tta: str = "none"
    counts: Counts | None = None
    rounding: tuple[str, ...] = ()
    """What makes the logits of a pixel follow from the tiles within rounding, such as half precision."""
    precision: Precision = "32-true"
    rows: Rows | None = None
    """How the raster goes through in one stream; None: in tiles."""
    engine: str = ""
    """Why that way, for the user; empty where there was no choice."""

    @property
    def is_resampled(self) -> bool:
        """Whether the network sees pixels of another size than the file's."""
        return isinstance(self.reader, Resampled)

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
        to_do, unit = self._to_do(skip)
        bar = tqdm(total=to_do, unit=unit, desc=title, disable=not (progress and to_do))
        # A reader of its own for the thread that reads ahead.
        with self.reader.reopen() as ahead, bar:
            supply = Supply(
                [ahead.read],
                self.plan,
                block_rows=ahead.block_shape[0],
                dtype=ahead.dtype,
                fill=self.fill,
                holds_data=ahead.holds_data,
            )
            with supply:
                if self.rows is not None:
                    yield from predict_rows(
                        supply,
                        self.rows.network,
                        self.plan,
                        self.rows.plan,
                        blank=lambda height: self._blank(finish, height),
                        finish=finish,
                        skip=skip,
                        counts=self.counts,
                        on_rows=bar.update,
                    )
                    return
                yield from predict_strips(
                    self.reader.read,
                    self.predict,
                    self.plan,
                    fill=self.fill,
                    finish=finish,
                    batch_size=batch_size,
                    skip=skip,
                    blend=self.blend,
                    counts=self.counts,
                    supply=supply,
                    on_tiles=bar.update,
                )

    def _to_do(self, skip: Collection[int]) -> tuple[int, str]:
        """Return the number of pieces of work, and what they are."""
        rows, cols = self.plan.axes
        to_do = [row for row in rows.spans() if row.core_start not in skip]
        if self.rows is None:
            return cols.num_cores * len(to_do), "tile"
        return sum(row.core_stop - row.core_start for row in to_do), "row"

    def _blank(self, finish: Callable[[Tensor], Tensor], height: int) -> Tensor:
        """Return what rows without a pixel of data hold."""
        shape, dtype = shape_of(self.predict, self.plan, self.fill, finish)
        return torch.zeros((*shape, height, self.plan.width), dtype=dtype)

    def whole(self, *, finish: Callable[[Tensor], Tensor] = labels_of) -> Strip:
        """Return the whole-image pass, for rasters small enough."""
        return predict_whole(self.reader.read, self.predict, self.plan, fill=self.fill, finish=finish)

    def moved(self, shift_px: int, reader: RasterSource) -> Job:
        """Return the same job with its grid moved down and to the right, reading through another reader."""
        row, col = self.plan.grid_offset_px
        return replace(self, reader=reader, plan=replace(self.plan, grid_offset_px=(row + shift_px, col + shift_px)))

    def renewed(self) -> Job:
        """Return the same job of a network whose weights have changed since."""
        if self.rows is None:
            return self
        network, device = self.model.network, rescale_of(self.model.network).mean.device
        by_rows = RowPredictor(network, self.geometry, device, precision=self.precision)
        return replace(self, rows=replace(self.rows, network=by_rows))

    def in_words(self) -> str:
        """Return the plan as text for a user."""
        plan, (rows, cols) = self.plan, self.plan.axes
        local_px = self.model.localized_px
        source = self.reader
        copies = Views.parse(self.tta).copies
        return "\n".join(
            [
                *([] if local_px is None else [f"network  localized: norms over windows of {local_px} px"]),
                f"source   {source.path}: {plan.height} rows x {plan.width} columns, {len(source.bands)} bands, "
                f"{source.dtype}{f', resampled to {source.resolution:.3g} m' if self.is_resampled else ''}",
                f"tiles    {rows.num_cores} x {cols.num_cores} cores of {plan.core_px} px, reading {plan.read_px} px, "
                f"{copies * plan.compute:.2f} times the compute"
                if self.rows is None
                else self._rows_in_words(self.rows),
                *([f"engine   {self.engine}"] if self.engine else []),
                f"halo     {self.halo.why}",
                *self._phases_in_words(),
                f"labels   {self._dependence_in_words()}",
                f"grid     anchored to the CRS at multiples of {plan.anchor_px} px; "
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
            **({"geonorm_resolution_m": f"{self.reader.resolution:.6g}"} if self.is_resampled else {}),
            **({} if self.blend == "none" else {"geonorm_blend": self.blend}),
            **({} if self.tta == "none" else {"geonorm_tta": self.tta}),
            **({"geonorm_rounding": ", ".join(self.rounding)} if self.rounding else {}),
            "geonorm_tile_independent": self._tile_independent(),
        }

    def _rows_in_words(self, rows: Rows) -> str:
        blocks = rows.plan.blocks([*self.plan.axes[1].spans()])
        across = (
            f" in {len(blocks)} blocks of up to {rows.plan.widest_px(self.plan)} columns" if len(blocks) > 1 else ""
        )
        return (
            f"rows     {rows.plan.step_px} at a time through the network{across}, in strips of {self.plan.core_px}; "
            f"{rows.why}"
        )

    def _phases_in_words(self) -> list[str]:
        plan = self.plan
        if plan.phases == 1:
            return []
        return [f"phases   the mean over {plan.num_phases} of the pooling's {plan.network.stride_px**2}"]

    def _dependence_in_words(self) -> str:
        inexact = [*self.rounding, *([f"{self.blend} blending"] if self.blend != "none" else [])]
        return {
            "yes": "do not depend on the tiles",
            "no": "may depend on the tiles",
            "within rounding": f"depend on the tiles within the rounding ({', '.join(inexact)})",
        }[self._tile_independent()]

    def _tile_independent(self) -> str:
        if self.halo.kind != "exact":
            return "no"
        return "within rounding" if self.rounding or self.blend != "none" else "yes"


def prepare(
    model: TrainedModel,
    reader: RasterSource,
    *,
    core_px: int = 512,
    halo: Halo = "auto",
    known_halo: HaloChoice | None = None,
    grid_offset_px: tuple[int, int] = (0, 0),
    device: str = "cpu",
    precision: Precision = "32-true",
    tta: str = "none",
    compile: bool = False,
    backend: Backend = "torch",
    blend: Blend = "none",
    counts: Counts | None = None,
    rows: Rows | None = None,
    engine: str = "",
    progress: bool = False,
) -> Job:
    """Return the job of labelling an open raster; choose its halo, and warn where labels depend on the tiles.

    What the settings mean is said at `geonorm.inference.options.Options`.

    Args:
        model: The network.
        reader: The raster.
        core_px: See there, as for the settings that follow.
        halo: See there.
        known_halo: What an earlier run of the same settings has measured.
        grid_offset_px: See there.
        device: Where to compute.
        precision: See there.
        tta: See there.
        compile: See there.
        backend: See there.
        blend: See there.
        counts: Which pixels are wanted; all where None.
        rows: How the raster goes through in one stream; None: in tiles.
        engine: Why that way, for the user.
        progress: Show a progress bar while a halo is measured.
    """
    geometry = model.geometry
    plan = plan_without_halo(reader, geometry, core_px=core_px, grid_offset_px=grid_offset_px)
    fill = rescale_of(model.network).mean.detach().cpu()
    views = Views.parse(tta)
    phased = replace(plan, phases=views.phases_of(geometry.stride_px))
    predict = predictor(
        model.network,
        torch.device(device),
        precision=precision,
        tta=views.orientations,
        compile=compile,
        backend=backend,
    )
    choice = known_halo if rows is None else rows.halo(halo, geometry)
    if choice is None:  # measured at one phase: how far the network sees is much the same at all
        with tqdm(unit="core", desc="measuring the halo", disable=not progress, leave=False, delay=1) as bar:

            def on_cores(cores: int, most: int) -> None:
                bar.total = most
                bar.update(cores)

            choice = choose_halo(halo, geometry, plan, read=reader.read, predict=predict, fill=fill, on_cores=on_cores)
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
        plan=replace(phased, halo_px=choice.halo_px),
        halo=choice,
        predict=predict,
        fill=fill,
        blend=blend,
        tta=tta,
        counts=counts,
        rounding=(
            *((precision,) if precision != "32-true" else ()),
            *(("compiled",) if compile else ()),
            *((backend,) if backend != "torch" else ()),
        ),
        precision=precision,
        rows=rows,
        engine=engine,
    )


def plan_without_halo(
    reader: RasterSource, geometry: TileGeometry, *, core_px: int, grid_offset_px: tuple[int, int] = (0, 0)
) -> Plan:
    """Return the grid of a raster for a network; its halo is still to be chosen."""
    return Plan(
        height=reader.grid.height,
        width=reader.grid.width,
        core_px=core_px,
        network=network_of(geometry),
        first_index=reader.grid.first_index,
        grid_offset_px=grid_offset_px,
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
    trained = TrainedModel(
        network=model,
        spec=numbered_spec(bands, num_classes),
        network_path={"class_path": f"{type(model).__module__}.{type(model).__qualname__}", "init_args": {}},
        norm_path={},
        name="",
        version=__version__,
    )
    vars(trained)["geometry"] = geometry  # where its `cached_property` looks
    return trained


def numbered_spec(num_bands: int, num_classes: int) -> DatasetSpec:
    """Return facts for a network that nothing else is known of."""
    hues = [round(255 * label / max(1, num_classes - 1)) for label in range(num_classes)]
    return DatasetSpec(
        bands=tuple(f"band {band + 1}" for band in range(num_bands)),
        class_names=tuple(f"class {label}" for label in range(num_classes)),
        class_colors=tuple((hue, hue, 255 - hue) for hue in hues),
        scored_classes=tuple(range(num_classes)),
    )
