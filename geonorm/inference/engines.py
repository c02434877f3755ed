"""Tiles, each with a halo of its own, or rows in one stream: which way a raster goes through the network, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from geonorm.errors import InvalidConfigError, name_some
from geonorm.inference.activations import stream_bytes
from geonorm.inference.halo import Halo, HaloChoice, check_halo
from geonorm.inference.memory import available_memory
from geonorm.inference.views import Views
from geonorm.models import TileGeometry
from geonorm.models.predictor import Backend, Precision
from geonorm.models.row_predictor import DiffersByRowsError, RowPredictor
from geonorm.models.rows import NotByRowsError
from geonorm.raster.window import Window
from geonorm.tiling.blending import Blend
from geonorm.tiling.engine import Counts
from geonorm.tiling.plan import Plan
from geonorm.tiling.rows import RowPlan
from geonorm.tiling.supply import Read

Engine = Literal["auto", "tiles", "rows"]

STEP_PX, GPU_STEP_PX = 128, 512
"""Rows that go in at a time, at most: enough to keep the processor busy."""
LEAST_STEP_PX = 32
STEP_PIXELS = 2**17
"""Pixels that go in at a time on a CPU, in no fewer than LEAST_STEP_PX rows, so that their maps stay in the caches."""
SAMPLES = 6
"""Along each axis, to tell how much of a raster holds data."""
ROWS_SHARE = 1 / 3
"""Of the free memory, what the rows that are kept may take."""
MOST_BLOCKS = 64
"""Into so many blocks of columns a raster is cut at most."""
WORTH_IT = 0.95
"""``engine="auto"`` takes rows where they cost less than this share of what exact tiles do."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How a raster goes through a network in one stream."""

    plan: RowPlan
    network: RowPredictor
    peak_bytes: int
    """What the rows take that are kept, and those being made."""
    heap_bytes: int
    """The same, of small tensors alone."""
    why: str
    """For the user."""

    def halo(self, halo: Halo, geometry: TileGeometry) -> HaloChoice:
        """Return the halo that is read where strips are taken up again."""
        check_halo(halo)
        halo_px = max(halo if isinstance(halo, int) else 0, geometry.core_halo_px or 0)
        kind = "exact" if halo_px == geometry.core_halo_px else "given"
        why = f"{kind} halo of {halo_px} px, read only above and below strips that are labelled together"
        if self.plan.block_px is not None:
            why += ", and beside blocks of columns"
        return HaloChoice(halo_px=halo_px, kind="exact", mismatch=None, reference_px=None, why=why)

    def as_plain(self) -> dict[str, Any]:
        """Return what another run needs to go on in the same way."""
        return {
            "step_px": self.plan.step_px,
            "block_px": self.plan.block_px,
            "bytes": [self.peak_bytes, self.heap_bytes],
            "why": self.why,
        }


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asks for, as far as it decides on the engine."""

    engine: Engine = "auto"
    halo: Halo = "exact"
    blend: Blend = "none"
    phases: int = 1
    tta: str = "none"
    compile: bool = False
    backend: Backend = "torch"
    precision: Precision = "32-true"

    def obstacle(self, geometry: TileGeometry) -> str | None:
        """Return what asks for tiles, if anything does."""
        if geometry.unbounded:
            return f"{name_some(geometry.unbounded)} see the whole input"
        exact_px = geometry.core_halo_px or 0
        if self.halo == "measured" or (isinstance(self.halo, int) and self.halo < exact_px):
            return f"rows have the exact halo of {exact_px} px, and --halo {self.halo} asks for another"
        for asked, why in (
            (self.blend != "none", f"--blend {self.blend} averages tiles"),
            (self.phases > 1, f"--tta {self.tta} reads every tile at several phases"),
            (Views.parse(self.tta).orientations != "none", f"--tta {self.tta} turns tiles"),
            (self.compile, "--compile compiles the network for tiles"),
            (self.backend != "torch", f"--backend {self.backend} runs the network as a whole"),
        ):
            if asked:
                return why
        return None


def choose_rows(
    network: nn.Module,
    geometry: TileGeometry,
    plan: Plan,
    *,
    wish: Wish,
    device: str,
    share: Callable[[], float] = lambda: 1.0,
) -> tuple[Rows | None, str]:
    """Return how a raster is to go through in rows, None where tiles are taken; and why.

    Args:
        network: Raw band values in, logits out.
        geometry: What it sees.
        plan: The tiles, with any halo.
        wish: What the user asks for.
        device: Where it is computed.
        share: Tells what share of the raster holds data: tiles without any are passed over, rows are not.

    Raises:
        InvalidConfigError: ``engine="rows"`` where that cannot be.
        DiffersByRowsError: With ``engine="auto"``, a network whose halo is not exact in tiles either, since by rows it
            gives something else than at once.
    """
    if wish.engine == "tiles":
        return None, ""
    obstacle = wish.obstacle(geometry)
    predictor = None
    exact = replace(plan, halo_px=geometry.core_halo_px or 0)
    tiles = exact.compute
    if obstacle is None and wish.engine == "auto":
        cost = RowPlan(geometry.stride_px).overhead(exact)
        if cost > WORTH_IT * tiles:
            return None, f"tiles, since rows cost as much ({_compared(cost, tiles)})"
    if obstacle is None:
        try:
            predictor = RowPredictor(network, geometry, torch.device(device), precision=wish.precision)
        except DiffersByRowsError as error:
            if wish.engine == "auto":
                raise
            obstacle = str(error)
        except NotByRowsError as error:
            obstacle = str(error)
    if predictor is None:
        if wish.engine == "rows":
            raise InvalidConfigError(f"--engine rows cannot be: {obstacle}. Take --engine tiles or auto.")
        return None, f"tiles, since {obstacle}"
    memory_bytes = available_memory(device)
    found = _fitting(predictor, geometry, exact, most_bytes=round(ROWS_SHARE * memory_bytes), device=device)
    if found is None:
        why = f"the rows it keeps do not fit into a third of the {memory_bytes / 1e9:.1f} GB of free memory"
        if wish.engine == "rows":
            raise InvalidConfigError(f"--engine rows cannot be: {why}. Take --engine tiles.")
        return None, f"tiles, since {why}"
    row_plan, (peak_bytes, heap_bytes) = found
    cost = row_plan.overhead(exact)
    compared = _compared(cost, tiles)
    if wish.engine == "auto" and cost > WORTH_IT * tiles:
        return None, f"tiles, since rows cost as much ({compared})"
    if wish.engine == "auto" and cost > WORTH_IT * tiles * (part := share()):
        return None, f"tiles, since about {part:.0%} of the raster hold data, and rows go over all of it ({compared})"
    return Rows(plan=row_plan, network=predictor, peak_bytes=peak_bytes, heap_bytes=heap_bytes, why=compared), ""


def data_share(read: Read, plan: Plan, counts: Counts | None) -> float:
    """Return about what share of a raster counts, from some of its pixels; 1 for a small one, of which none is read.

    Args:
        read: Gives the pixels of a window.
        plan: The tiles.
        counts: Which pixels are wanted; all where None.
    """
    if plan.num_tiles < SAMPLES**2:
        return 1.0
    found = []
    for row in range(SAMPLES):
        for col in range(SAMPLES):
            place = [(2 * at + 1) * length // (2 * SAMPLES) for at, length in ((row, plan.height), (col, plan.width))]
            window = Window(place[0], place[1], 1, 1)
            valid = read(window).valid
            found.append((valid if counts is None else valid & counts(window)).all())
    return sum(found) / len(found)


def known_rows(
    known: dict[str, Any], network: nn.Module, geometry: TileGeometry, *, precision: Precision, device: str
) -> Rows:
    """Return what an earlier run has chosen."""
    return Rows(
        plan=RowPlan(known["step_px"], known["block_px"]),
        network=RowPredictor(network, geometry, torch.device(device), precision=precision),
        peak_bytes=known["bytes"][0],
        heap_bytes=known["bytes"][1],
        why=known["why"],
    )


def whole_strides(px: int, stride_px: int) -> int:
    """Return at most so many pixels, in whole strides of a network, but at least one."""
    return max(stride_px, px // stride_px * stride_px)


def usual_step_px(width_px: int, window_px: int, device: torch.device) -> int:
    """Return how many rows go in at a time, where memory is no concern.

    On a CPU few enough for their maps to stay in the caches, but no fewer than the largest window of a norm, whose
    other rows are summed up each time.
    """
    if device.type != "cpu":
        return GPU_STEP_PX
    return min(STEP_PX, max(LEAST_STEP_PX, window_px, STEP_PIXELS // width_px))


def _compared(rows: float, tiles: float) -> str:
    return f"{rows:.2f} times the compute, exact tiles {tiles:.2f} times"


def _fitting(
    predictor: RowPredictor, geometry: TileGeometry, plan: Plan, *, most_bytes: int, device: str
) -> tuple[RowPlan, tuple[int, int]] | None:
    """Return the widest and highest steps whose rows fit into some memory, and what they take."""
    for parts in range(1, MOST_BLOCKS + 1):
        block_px = None if parts == 1 else -(-plan.width // parts // plan.core_px) * plan.core_px
        widest_px = RowPlan(STEP_PX, block_px).widest_px(plan)
        usual = usual_step_px(widest_px, predictor.rows.largest_window, torch.device(device))
        for step in dict.fromkeys(whole_strides(px, geometry.stride_px) for px in (usual, usual // 2, usual // 4)):
            rows = RowPlan(step, block_px)
            taken = stream_bytes(predictor, geometry, width_px=rows.widest_px(plan), step_px=step)
            if taken[0] <= most_bytes:
                return rows, taken
        if block_px == plan.core_px:
            break
    return None
