"""Which halo a prediction reads: the exact one, a measured one, or the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from itertools import count
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
SAMPLED_CORES = 8
"""Cores on which a halo is measured."""
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
    on_cores: Callable[[int, int], None] = lambda cores, most: None,
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
        on_cores: Called as cores are measured, with their number and that of all at most.

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
            f"tiles. Take --halo measured or a number{_or_global_stats(geometry)}, or train with LocalContextNorm or "
            "BatchNorm."
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


def _or_global_stats(geometry: TileGeometry) -> str:
    """Return the advice for networks whose norms can have the statistics of the whole raster."""
    able = ("(GroupNorm)", "(LayerNorm", "(InstanceNorm")
    return ", or --global_stats" if all(any(norm in name for norm in able) for name in geometry.unbounded) else ""


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
    on_cores: Callable[[int, int], None],
) -> HaloChoice:
    """Return a step more than the smallest halo that keeps the tolerance on the cores looked at."""
    exact_px = geometry.core_halo_px
    reference_px = LADDER_PX[-1] if exact_px is None else min(exact_px, LADDER_PX[-1])
    steps = steps_below(reference_px, plan)
    cores = list(sampled_cores(plan))
    most = len(cores) * (len(steps) + 2)

    def labels(halo_px: int) -> Iterator[Tensor]:
        with_halo = replace(plan, halo_px=halo_px)
        rows, cols = ([*axis.spans()] for axis in with_halo.axes)
        for row, col in cores:
            found = predict_tile(read, predict, with_halo, rows[row], cols[col], fill=fill)
            on_cores(1, most)
            yield found

    def keeps_tolerance(halo_px: int) -> bool:
        """Whether few enough labels differ; as soon as too many do, the other cores are passed over."""
        differ = 0
        for number, (one, other) in enumerate(zip(labels(halo_px), reference, strict=True), 1):
            differ += int((one != other).sum())
            if differ > allowed:
                on_cores(len(cores) - number, most)
                return False
        return True

    reference = [*labels(reference_px)]
    allowed = MISMATCH_TOLERANCE * sum(one.numel() for one in reference)
    smallest = next((step for step in steps if keeps_tolerance(step)), None)
    if smallest is not None:
        larger = [step for step in steps if step > smallest]
        # Nothing larger than the reference is known unless that is exact.
        halo_px = larger[0] if larger else reference_px if reference_px == exact_px else smallest
    else:
        halo_px = geometry.local_halo_px if geometry.local_halo_px is not None else LADDER_PX[4]
        halo_px = min(halo_px, reference_px)
    compared_px = halo_px
    if steps and halo_px == reference_px != exact_px:  # held against itself it would tell nothing
        compared_px = steps[-1]
    mismatch = 0.0 if compared_px == reference_px else mismatch_of([*labels(compared_px)], reference)
    return HaloChoice(
        halo_px=halo_px,
        kind="exact" if halo_px == exact_px else "measured",
        mismatch=mismatch,
        reference_px=reference_px,
        why=_measured_in_words(geometry, plan, halo_px, compared_px, reference_px, mismatch, len(cores)),
    )


def _measured_in_words(
    geometry: TileGeometry,
    plan: Plan,
    halo_px: int,
    compared_px: int,
    reference_px: int,
    mismatch: float,
    num_cores: int,
) -> str:
    looked_at = "the one core" if num_cores == 1 else f"the {num_cores} cores"
    if halo_px == geometry.core_halo_px:
        return (
            f"measured halo of {halo_px} px, the exact one: on {looked_at} looked at no smaller one left room under "
            f"the tolerance of {100 * MISMATCH_TOLERANCE} %"
        )
    verdict = "under" if mismatch <= MISMATCH_TOLERANCE else "NOT under"
    whose = "" if compared_px == halo_px else f" with {compared_px} px"
    return (
        f"measured halo of {halo_px} px: on {looked_at} looked at {100 * mismatch:.3f} % of the labels{whose} "
        f"differ from those with {reference_px} px ({verdict} the tolerance of {100 * MISMATCH_TOLERANCE} %), "
        f"elsewhere it may be more{_cheaper(geometry, plan, halo_px)}"
    )


def steps_below(reference_px: int, plan: Plan) -> list[int]:
    """Return the halos that are tried: those that read less than the reference, and each less than the next."""

    def read_px(halo_px: int) -> int:
        return replace(plan, halo_px=halo_px).axes[0].aligned_halo_px

    steps = {read_px(step): step for step in reversed(LADDER_PX)}
    return sorted(step for px, step in steps.items() if px < read_px(reference_px))


def _cheaper(geometry: TileGeometry, plan: Plan, halo_px: int) -> str:
    exact_px = geometry.core_halo_px
    if exact_px is None:
        overhead = replace(plan, halo_px=halo_px).overhead
        if overhead <= AFFORDABLE_OVERHEAD:
            return ""
        larger = replace(plan, halo_px=halo_px, core_px=2 * plan.core_px)
        return (
            f"; that is {overhead:.1f} times the compute, with --core_px {larger.core_px} {larger.overhead:.1f} times"
        )
    overhead = replace(plan, halo_px=exact_px).overhead
    core_px = affordable_core_px(geometry, plan)
    return (
        f"; the exact halo of {exact_px} px would cost {overhead:.1f} times the compute, "
        f"with --core_px {core_px} {replace(plan, halo_px=exact_px, core_px=core_px).overhead:.1f} times"
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


def sampled_cores(plan: Plan, most: int = SAMPLED_CORES) -> Iterator[tuple[int, int]]:
    """Yield some cores spread over the raster, by their place in the grid; whole ones before any that its edge cuts."""
    rows, cols = ([span.core_stop - span.core_start for span in axis.spans()] for axis in plan.axes)
    whole_rows, whole_cols = ([place for place, px in enumerate(sides) if px == plan.core_px] for sides in (rows, cols))
    if len(whole_rows) * len(whole_cols) <= most:
        every = ((row, col) for row in range(len(rows)) for col in range(len(cols)))
        # A grid with few whole cores has few others, unless it is long and narrow.
        yield from nlargest(most, every, key=lambda core: rows[core[0]] * cols[core[1]])
        return
    seen = set()
    for number in count(1):
        core = (
            whole_rows[int(_van_der_corput(number, 2) * len(whole_rows))],
            whole_cols[int(_van_der_corput(number, 3) * len(whole_cols))],
        )
        if core not in seen:
            seen.add(core)
            yield core
        if len(seen) == most:
            return


def _van_der_corput(number: int, base: int) -> float:
    """Return the digits of a number behind the point in reverse: the first numbers fill 0 to 1 evenly, at any length.

    Two bases together (Halton 1960) fill a square.
    """
    value, place = 0.0, 1.0
    while number:
        place /= base
        number, digit = divmod(number, base)
        value += digit * place
    return value
