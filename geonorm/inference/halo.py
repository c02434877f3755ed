"""Which halo a prediction reads: the exact one, a measured one, or the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from geonorm.errors import InvalidConfigError, name_some
from geonorm.models import TileGeometry
from geonorm.tiling.engine import Predict, predict_tile
from geonorm.tiling.plan import Plan
from geonorm.tiling.supply import Read

Halo = int | Literal["auto", "exact", "measured"]

AFFORDABLE_OVERHEAD = 4.0
"""``halo="auto"`` takes the exact halo while the network computes at most so many pixels for each it writes."""
MISMATCH_TOLERANCE = 1e-4
"""Share of labels that a measured halo may change against a much larger one."""
SAMPLED_CORES = 3
LADDER_PX = (0, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Halos that are tried; the largest is the one the others are held against where no exact one is known."""


@dataclass(frozen=True, kw_only=True)
class HaloChoice:
    """A halo, and why it was taken."""

    halo_px: int
    kind: Literal["exact", "measured", "given"]
    mismatch: float | None
    """Share of labels that differ from those of `reference_px`, on some cores of this raster; None: not measured."""
    reference_px: int | None
    """The much larger halo that was compared with."""
    why: str
    """One sentence for the user."""

    @property
    def met(self) -> bool:
        """False if even the largest halo tried missed the tolerance."""
        return self.mismatch is None or self.mismatch <= MISMATCH_TOLERANCE


def choose_halo(
    halo: Halo,
    geometry: TileGeometry,
    plan: Plan,
    *,
    read: Read,
    predict: Predict,
    fill: Tensor,
    on_cores: Callable[[int], None] = lambda cores: None,
) -> HaloChoice:
    """Return the halo to read.

    Args:
        halo: Pixels, ``"exact"``, ``"measured"``, or ``"auto"``: the exact one where it costs at most 4 times the
            compute, else a measured one.
        geometry: What the network sees.
        plan: The tiles, with any halo.
        read: Gives the pixels of a window of this raster.
        predict: The network.
        fill: What pixels without data hold.
        on_cores: Called as cores are measured.

    Raises:
        InvalidConfigError: ``"exact"`` where something sees everything, or a number below 0.
    """
    exact_px = geometry.core_halo_px
    if isinstance(halo, int):
        return _given(halo, geometry)
    check_halo(halo)
    if halo == "exact" and exact_px is None:
        raise InvalidConfigError(
            f"There is no exact halo: {name_some(geometry.unbounded)} see the whole input, so the labels depend on the "
            "tiles. Use halo=measured or a number, or train with LocalContextNorm or BatchNorm."
        )
    if exact_px is not None and halo != "measured":
        with_exact = replace(plan, halo_px=exact_px)
        cost = f"{with_exact.overhead:.1f} times the compute at core {plan.core_px}"
        if halo == "exact" or with_exact.overhead <= AFFORDABLE_OVERHEAD:
            return HaloChoice(
                halo_px=exact_px,
                kind="exact",
                mismatch=None,
                reference_px=None,
                why=f"exact halo of {exact_px} px ({cost})",
            )
    return _measure(geometry, plan, read=read, predict=predict, fill=fill, on_cores=on_cores)


def check_halo(halo: Halo) -> None:
    """Raise `InvalidConfigError` unless it is one of the words or a number."""
    if not isinstance(halo, int) and halo not in get_args(get_args(Halo)[1]):
        raise InvalidConfigError(f'halo must be "auto", "exact", "measured" or a number of pixels, got {halo!r}.')


def _given(halo_px: int, geometry: TileGeometry) -> HaloChoice:
    if halo_px < 0:
        raise InvalidConfigError(f"halo must not be negative, got {halo_px}.")
    exact_px = geometry.core_halo_px
    if exact_px is not None and halo_px >= exact_px:
        why = f"given halo of {halo_px} px, at least the exact one of {exact_px} px"
        return HaloChoice(halo_px=halo_px, kind="exact", mismatch=None, reference_px=None, why=why)
    short = "no halo is exact for this network" if exact_px is None else f"less than the exact one of {exact_px} px"
    return HaloChoice(
        halo_px=halo_px,
        kind="given",
        mismatch=None,
        reference_px=None,
        why=f"given halo of {halo_px} px, {short}",
    )


def _measure(
    geometry: TileGeometry,
    plan: Plan,
    *,
    read: Read,
    predict: Predict,
    fill: Tensor,
    on_cores: Callable[[int], None],
) -> HaloChoice:
    exact_px = geometry.core_halo_px
    reference_px = LADDER_PX[-1] if exact_px is None else min(exact_px, LADDER_PX[-1])
    cores = list(sampled_cores(plan))

    def labels(halo_px: int) -> list[Tensor]:
        with_halo = replace(plan, halo_px=halo_px)
        rows, cols = ([*axis.spans()] for axis in with_halo.axes)
        found = []
        for row, col in cores:
            found.append(predict_tile(read, predict, with_halo, rows[row], cols[col], fill=fill))
            on_cores(1)
        return found

    reference = labels(reference_px)
    mismatch = 1.0
    halo_px = 0
    for halo_px in (step for step in LADDER_PX if step < reference_px):
        mismatch = mismatch_of(labels(halo_px), reference)
        if mismatch <= MISMATCH_TOLERANCE:
            break
    else:
        halo_px = geometry.local_halo_px if geometry.local_halo_px is not None else LADDER_PX[4]
        halo_px = min(halo_px, reference_px)
        mismatch = mismatch_of(labels(halo_px), reference)
    verdict = "under" if mismatch <= MISMATCH_TOLERANCE else "NOT under"
    why = (
        f"measured halo of {halo_px} px: on {len(cores)} cores of this raster {100 * mismatch:.3f} % of the labels "
        f"differ from those with {reference_px} px ({verdict} the tolerance of {100 * MISMATCH_TOLERANCE} %)"
    )
    return HaloChoice(
        halo_px=halo_px,
        kind="measured",
        mismatch=mismatch,
        reference_px=reference_px,
        why=f"{why}{_cheaper(geometry, plan, halo_px)}",
    )


def _cheaper(geometry: TileGeometry, plan: Plan, halo_px: int) -> str:
    exact_px = geometry.core_halo_px
    if exact_px is None:
        overhead = replace(plan, halo_px=halo_px).overhead
        if overhead <= AFFORDABLE_OVERHEAD:
            return ""
        larger = replace(plan, halo_px=halo_px, core_px=2 * plan.core_px)
        return f"; that is {overhead:.1f} times the compute, with core_px={larger.core_px} {larger.overhead:.1f} times"
    overhead = replace(plan, halo_px=exact_px).overhead
    core_px = affordable_core_px(geometry, plan)
    return (
        f"; the exact halo of {exact_px} px would cost {overhead:.1f} times the compute, "
        f"with core_px={core_px} {replace(plan, halo_px=exact_px, core_px=core_px).overhead:.1f} times"
    )


def affordable_core_px(geometry: TileGeometry, plan: Plan) -> int:
    """Return the smallest core, in steps of 128 px or the stride, whose exact halo costs at most 4 times."""
    step = -(-128 // geometry.stride_px) * geometry.stride_px
    core_px = step
    while replace(plan, halo_px=geometry.core_halo_px or 0, core_px=core_px).overhead > AFFORDABLE_OVERHEAD:
        core_px += step
    return core_px


def mismatch_of(labels: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return the share of labels that differ, over all cores."""
    differ = sum(int((one != other).sum()) for one, other in zip(labels, reference, strict=True))
    return differ / sum(one.numel() for one in labels)


def sampled_cores(plan: Plan) -> Iterator[tuple[int, int]]:
    """Yield some cores spread over the raster's diagonal, by their place in the grid."""
    rows, cols = (axis.num_cores for axis in plan.axes)
    seen = set()
    for step in range(SAMPLED_CORES):
        where = ((2 * step + 1) * rows // (2 * SAMPLED_CORES), (2 * step + 1) * cols // (2 * SAMPLED_CORES))
        if where not in seen:
            seen.add(where)
            yield where
