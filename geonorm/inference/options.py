"""How a map is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from geonorm.errors import InvalidConfigError
from geonorm.inference.engines import Engine
from geonorm.inference.halo import Halo
from geonorm.inference.outputs import Output
from geonorm.inference.shards import WHOLE, Shard
from geonorm.inference.views import Views
from geonorm.models.predictor import Backend, Precision
from geonorm.raster.area import Area
from geonorm.raster.polygons import check_generalization
from geonorm.raster.read import NodataRule
from geonorm.tiling.blending import Blend

Vectors = Literal["gpkg", "parquet"]
OutputGrid = Literal["source", "model"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a map is made: the settings of `predict_raster`.

    Raises:
        InvalidConfigError: A setting is none of those that are possible.
    """

    core_px: int | Literal["auto"] = 512
    """Side of the square that one network call writes, a multiple of the network's stride; ``"auto"``: by the memory
    there is and what the exact halo costs."""
    halo: Halo = "auto"
    """Pixels read beyond the core: ``"exact"``, ``"measured"``, a number, or ``"auto"``."""
    engine: Engine = "auto"
    """``"tiles"``: every tile is read with a halo of its own. ``"rows"``: the raster goes through the network in one
    stream, in which every row is computed once; for networks with an exact halo. ``"auto"``: whichever computes less
    with the exact halo. With that the labels are the same."""
    global_stats: bool = False
    """Give Group, Layer and Instance Norm the statistics of the whole raster, so that no label depends on a tile: they
    are gathered before, in one pass over the raster where it fits into memory, else in a pass for each norm."""
    grid_offset_px: tuple[int, int] = (0, 0)
    """Rows and columns by which the grid is moved from the origin of the CRS."""
    blend: Blend = "none"
    """For networks without an exact halo: the logits of tiles that overlap are averaged, with weights that fall in a
    straight line (``"linear"``) or as a ``"hann"`` window does. This hides seams, it does not make the labels
    independent of the tiles. The whole width of a strip's logits is then held in memory."""
    tta: str = "none"
    """``"d4"``: average the logits over the eight mirrored and turned copies of each tile. ``"phases"``: over all
    phases of the pooling, after which the grid may lie anywhere; ``"phases:16"``: over 16 of them, 4 along each axis.
    ``"d4+phases:4"``: over both."""
    batch_size: int = 1
    """Tiles per network call; halved, with a warning, when the device's memory is full."""
    device: str = "cpu"
    """Device to compute on; of several GPUs, shards of one machine take one each where it says ``"cuda"``."""
    precision: Precision = "32-true"
    """``"bf16-mixed"`` or ``"16-mixed"`` for speed: labels then follow from the tiles within the rounding."""
    compile: bool = False
    """Compile the network with torch."""
    backend: Backend = "torch"
    """What computes the network: ``"openvino"`` is faster on a CPU; not with Local Context Norm."""
    bands: tuple[int, ...] | None = None
    """Bands of the raster, counted from 1, in the order the model takes them; the first ones where None."""
    nodata: float | None = None
    """Value without data, beside what the raster itself declares."""
    nodata_rule: NodataRule = "all"
    """A pixel has no data where ``"all"`` or ``"any"`` of its bands have none."""
    area: Area | None = None
    """The part of the raster to label; the map covers its bounding box. The network sees what lies around it."""
    resolution_m: float | Literal["auto"] | None = None
    """Size in metres of the pixels that the network sees; ``"auto"``: that of its training; None: as they are."""
    output_grid: OutputGrid = "source"
    """The grid of the map of a resampled raster: that of the ``"source"``, or that of the pixels the network saw."""
    outputs: tuple[Output, ...] = ("labels",)
    """What to write: ``"labels"``, ``"probabilities"`` (of 8 bits: value / 254, 255 without data) or ``"logits"``
    (float32, NaN without data). The first gets the name of the target, the others theirs beside it."""
    vectors: Vectors | None = None
    """Write polygons, too, beside the target: a GeoPackage or a GeoParquet file of the classes that are scored, with
    class, name, pixels, area and mean probability."""
    min_area_px: int = 0
    """Polygons of fewer pixels are left out."""
    simplify_px: float = 0.0
    """By how much the outline of a polygon may move, in pixels."""
    shard: Shard = WHOLE
    """Which part of the strips is made here; the last process to finish puts them together."""
    overwrite: bool = False
    """Replace existing files."""
    restart: bool = False
    """Discard the strips that an earlier run left, even one with other settings."""
    dry_run: bool = False
    """Say what would be done, and what it takes: memory, disk and time. Nothing is written."""
    progress: bool = False
    """Show a progress bar with rate and time left."""

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        Views.parse(self.tta)
        for name, allowed in (
            ("engine", get_args(Engine)),
            ("blend", get_args(Blend)),
            ("precision", get_args(Precision)),
            ("backend", get_args(Backend)),
            ("nodata_rule", get_args(NodataRule)),
            ("vectors", (None, *get_args(Vectors))),
            ("output_grid", get_args(OutputGrid)),
        ):
            if getattr(self, name) not in allowed:
                choices = ", ".join(str(choice) for choice in allowed)
                raise InvalidConfigError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")
        outputs, known = tuple(self.outputs), get_args(Output)
        if not outputs or len({*outputs}) < len(outputs) or not {*outputs} <= {*known}:
            raise InvalidConfigError(
                f"outputs must be some of {', '.join(known)}, each once, got {', '.join(outputs) or 'none'}."
            )
        if isinstance(self.resolution_m, (int, float)) and not 0 < self.resolution_m < math.inf:
            raise InvalidConfigError(f"resolution_m must be more than 0 metres, got {self.resolution_m}.")
        if self.global_stats and self.tta != "none":
            raise InvalidConfigError(f"global_stats goes with tta=none only, got tta={self.tta}.")
        check_generalization(min_area_px=self.min_area_px, simplify_px=self.simplify_px)


def check_batch_size(batch_size: int) -> None:
    """Raise `InvalidConfigError` unless a batch holds a tile."""
    if batch_size < 1:
        raise InvalidConfigError(f"batch_size must be at least 1, got {batch_size}.")
