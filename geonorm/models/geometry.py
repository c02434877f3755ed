"""How far an output pixel sees, found by one pass over the operators of a model.

Every tensor that the pass meets carries, for each of its cells, the range of input pixels the cell depends on.
A rule per operator says how the ranges of its result follow. Cells repeat every ``stride_px`` pixels, so ranges are
kept for the cells of one such block. An operator without a rule makes the model unbounded, by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import lcm
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from geonorm.errors import InvalidConfigError
from geonorm.models.flow import Flow, MadeOfValues, first_difference, further_sizes, name_of
from geonorm.models.operators import (
    ONE,
    Call,
    SeesEverythingError,
    Taps,
    as_usual,
    named_args,
    naming,
    taps_of,
    tensors_in,
)
from geonorm.models.rescale import Rescale

aten = torch.ops.aten

SIDES_PX = (*range(256, 1025, 256), *range(4, 2049, 4))
"""Sides of the images on which a model is tried, in this order."""


@dataclass(frozen=True, kw_only=True)
class TileGeometry:
    """What tiling has to know of a model."""

    stride_px: int
    """Tiles must begin at multiples of this, counted from the first pixel of the whole image."""
    halo_px: int | None
    """How far an output pixel can see beyond itself; None where something sees everything."""
    core_halo_px: int | None
    """How far a core that begins and ends at multiples of ``stride_px`` sees beyond its edge."""
    margin_px: int
    """Pixels that the output lacks on each side (valid convolutions)."""
    unbounded: tuple[str, ...]
    """Modules and operators that see the whole input; empty where the halo is exact."""
    local_halo_px: int | None
    """`core_halo_px` if the unbounded were not there; None where that cannot be told."""
    least_px: int
    """The smallest side the model takes; others are this plus multiples of ``stride_px``."""

    def read_px(self, needed_px: int) -> int:
        """Return the smallest side that the model takes and that is at least ``needed_px``."""
        return self.least_px + max(0, -(-(needed_px - self.least_px) // self.stride_px)) * self.stride_px

    def without_exact_halo(self, *names: str) -> TileGeometry:
        """Return the geometry of a model that turns out to see the whole input, by name."""
        return replace(self, halo_px=None, core_halo_px=None, unbounded=names)


# In inference mode, which a Trainer validates in, operators come undecomposed and would not be known.
@torch.inference_mode(mode=False)
def tile_geometry(model: nn.Module) -> TileGeometry:
    """Return stride, halo, margin and size rule of a model ``(N, C, H, W) -> (N, K, H', W')``.

    Parameters are not touched: the pass runs on a copy without values, in evaluation mode.

    Args:
        model: The model; its first `Rescale` or convolution tells the number of bands.

    Raises:
        InvalidConfigError: The model takes no square image of at most 2048 px.
    """
    ghost = _ghost(model)
    bands, side = _bands(ghost), SIDES_PX[0]
    traced = _tried(ghost, bands, side)
    if traced is None:
        side = _a_side_it_takes(ghost, bands)
        traced = _traced(ghost, bands, side)
    geometry = _summary(*traced, side=side)
    least = _least_side(ghost, bands, side % geometry.stride_px, geometry.stride_px, upto=side)
    geometry = replace(geometry, least_px=least)
    return geometry if geometry.unbounded else _if_any_size(geometry, ghost, bands, side, traced)


def _if_any_size(
    geometry: TileGeometry, ghost: nn.Module, bands: int, side: int, traced: tuple[_Trace, Tensor]
) -> TileGeometry:
    """Return the geometry, without a halo if the model does something else to an image of another size."""
    steps = traced[0].flow.to(traced[1])
    next_px = side + geometry.stride_px
    for sizes in ([(next_px, next_px)], further_sizes(side, geometry.stride_px)):
        other = next((found for size in sizes if (found := _tried(ghost, bands, size[1], height=size[0]))), None)
        if other is None and sizes[0] == (next_px, next_px):
            why = f"size of the input ({side} px is taken, but {next_px} px is not)"
            return geometry.without_exact_halo(why)
        if other is None:
            continue
        trace, output = other
        if (name := first_difference(steps, trace.flow.to(output))) is not None:
            return geometry.without_exact_halo(f"{name} (depends on the size of the input)")
        if replace(_summary(trace, output, side=trace.flow.size[1]), least_px=geometry.least_px) != geometry:
            return geometry.without_exact_halo(f"size of the input (not of {side} px, it gives another geometry)")
    return geometry


def trial(model: nn.Module) -> tuple[nn.Module, Tensor]:
    """Return a copy of a model without values, in evaluation mode, and an image without values that it takes."""
    ghost = _ghost(model)
    bands = _bands(ghost)
    side = _a_side_it_takes(ghost, bands)
    return ghost, torch.empty(1, bands, side, side, device="meta")


def _ghost(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("meta", torch.float32).eval()


@dataclass(frozen=True, kw_only=True)
class SeenMap:
    """The map that a module gets as its input."""

    shape: tuple[int, ...]
    """Its shape for a trial image."""
    stride_px: int
    """Input pixels that one of its cells spans."""
    receptive_px: int | None
    """Side of the square of input pixels that one cell depends on, the largest of all cells and of both axes; None
    where that cannot be told."""


@torch.inference_mode(mode=False)
def seen_maps(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> dict[str, SeenMap]:
    """Return what the modules that are wanted get as input, by name, in the order they run; found by the same pass."""
    ghost, image = trial(model)
    bands, side = image.shape[1], image.shape[-1]
    seen: dict[str, SeenMap] = {}

    def look(trace: _Trace) -> None:
        for name, module in ghost.named_modules():
            if wanted(module):
                module.register_forward_pre_hook(partial(note, trace, name))

    def note(trace: _Trace, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        reach = trace.reach_of(x)
        # A map without a reach comes after something that sees everything: go by its size.
        cells = x.shape[-1] if x.dim() == 4 else 1
        stride = reach.stride[0] if reach is not None else Fraction(side, max(1, cells))
        seen[name] = SeenMap(shape=tuple(x.shape), stride_px=max(1, round(stride)), receptive_px=_receptive_px(reach))

    _traced(ghost, bands, side, look)
    return seen


def _receptive_px(reach: Reach | None) -> int | None:
    if reach is None:
        return None
    return int(max((hi - lo).max() for lo, hi in zip(reach.lo, reach.hi, strict=True))) + 1


def _traced(
    ghost: nn.Module,
    bands: int,
    side: int,
    look: Callable[[_Trace], None] = lambda trace: None,
    *,
    height: int | None = None,
) -> tuple[_Trace, Tensor]:
    """Run the model once under a trace; once more where a block turns out not to hold whole cells."""
    block = 64
    while True:
        image = torch.empty(1, bands, height or side, side, device="meta")
        trace = _Trace(block, Flow(ghost, image))
        look(trace)
        with ExitStack() as stack:
            made_of_values = MadeOfValues(trace.flow, trace.where)
            for context in (torch.no_grad(), as_usual(), naming(ghost, trace.where), _Quick(), trace, made_of_values):
                stack.enter_context(context)
            trace.start(image)
            output = ghost(image)
        if trace.needed_block == block:
            return trace, output
        block = trace.needed_block


def _tried(ghost: nn.Module, bands: int, side: int, *, height: int | None = None) -> tuple[_Trace, Tensor] | None:
    """Return what `_traced` does, or None for a size that the model does not take."""
    try:
        trace, output = _traced(ghost, bands, side, height=height)
    except Exception:  # noqa: BLE001 - as in _takes
        return None
    return (trace, output) if _is_map(output) else None


@dataclass(frozen=True)
class Reach:
    """What the cells of one tensor depend on, per axis (rows, columns).

    ``lo[axis][i]`` and ``hi[axis][i]`` are the first and last input pixel that cell ``i`` depends on, for the cells
    of one block; cell ``i + len`` depends on the same range moved by one block.
    """

    stride: tuple[Fraction, Fraction]
    lo: tuple[np.ndarray, np.ndarray]
    hi: tuple[np.ndarray, np.ndarray]


def _summary(trace: _Trace, output: Tensor, *, side: int) -> TileGeometry:
    """Return what a trace of a square image of this side says; the least side is not known from it."""
    reach = trace.reach_of(output)
    margin, odd = divmod(side - output.shape[-1], 2)
    if reach is not None and (odd or margin < 0 or reach.stride != ONE):
        trace.unbounded.append(f"output of {output.shape[-1]} px for an input of {side} px")
        reach = None
    if reach is None and not trace.unbounded:
        trace.unbounded.append("output (follows from the image in no known way)")
    stride = lcm(*(s.numerator for s in trace.strides))

    halo = core_halo = None
    if reach is not None:
        ranges = [_beyond(reach, axis, margin, stride) for axis in (0, 1)]
        halo = max(pixel for pixel, _ in ranges)
        core_halo = max(core for _, core in ranges)
    exact = not trace.unbounded
    return TileGeometry(
        stride_px=stride,
        halo_px=halo if exact else None,
        core_halo_px=core_halo if exact else None,
        margin_px=max(0, margin),
        unbounded=_names(trace.unbounded),
        local_halo_px=core_halo,
        least_px=side,
    )


def _names(unbounded: list[str]) -> tuple[str, ...]:
    """Return each name once; of a module that is named, its operators are not named as well."""
    names = dict.fromkeys(unbounded)
    return tuple(name for name in names if name.partition(": ")[0] == name or name.partition(": ")[0] not in names)


def _beyond(reach: Reach, axis: int, margin: int, stride: int) -> tuple[int, int]:
    """Return how far one pixel, and one block of ``stride`` pixels, see beyond their own edges."""
    # Output index i stands at input pixel i + margin.
    at = np.arange(len(reach.lo[axis])) + margin
    lo, hi = reach.lo[axis], reach.hi[axis]
    pixel = max((at - lo).max(), (hi - at).max())
    first = at - (at - margin) % stride
    core = max((first - lo).max(), (hi - (first + stride - 1)).max())
    return max(0, int(pixel)), max(0, int(core))


def _bands(model: nn.Module) -> int:
    for module in model.modules():
        if isinstance(module, Rescale):
            return len(module.mean)
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def _takes(ghost: nn.Module, bands: int, side: int) -> bool:
    try:
        with torch.no_grad(), _Quick():
            output = ghost(torch.empty(1, bands, side, side, device="meta"))
    except Exception:  # noqa: BLE001 - whatever a foreign model raises for a size it does not take
        return False
    return _is_map(output)


def _is_map(output: object) -> bool:
    return isinstance(output, Tensor) and output.dim() == 4


def _a_side_it_takes(ghost: nn.Module, bands: int) -> int:
    for side in SIDES_PX:
        if _takes(ghost, bands, side):
            return side
    raise InvalidConfigError(
        f"The model takes no square image of {bands} bands and up to 2048 px; check that it maps (N, C, H, W) to "
        "logits (N, K, H, W)."
    )


def _least_side(ghost: nn.Module, bands: int, remainder: int, stride: int, *, upto: int) -> int:
    for side in range(remainder or stride, upto, stride):
        if _takes(ghost, bands, side):
            return side
    return upto


class _Quick(TorchDispatchMode):
    """Answers itself for what torch does in Python where tensors have no values: three quarters of a U-Net's pass."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is aten.relu.default:
            return torch.empty_like(args[0])
        if func is aten.native_batch_norm.default:
            x = args[0]
            return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
        return func(*args, **(kwargs or {}))


class _Trace(TorchDispatchMode):
    """Follows the reach of every tensor through the operators, and names what sees everything."""

    def __init__(self, block: int, flow: Flow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.block = block
        self.needed_block = block
        self.flow = flow
        self.strides: set[Fraction] = {Fraction(1)}
        self.unbounded: list[str] = []
        self._reaches: Any = WeakIdKeyDictionary()
        self.where: list[str] = []

    def start(self, image: Tensor) -> None:
        """Let every pixel of the input depend on itself."""
        pixels = np.arange(self.block)
        self._reaches[image] = Reach((Fraction(1), Fraction(1)), (pixels, pixels), (pixels, pixels))

    def reach_of(self, value: object) -> Reach | None:
        """Return the reach of a tensor; None where it has none (a weight, a pooled value)."""
        return self._reaches.get(value) if isinstance(value, Tensor) else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Before the call, since an operator that works in place hands back its own argument.
        sources = {value: reach for value in tensors_in(args, kwargs) if (reach := self.reach_of(value)) is not None}
        result = func(*args, **kwargs)
        outputs = result if isinstance(result, tuple | list) else (result,)
        named = named_args(func, args, kwargs)
        name = f"{name_of(self.where)}: {func.overloadpacket.__name__}"
        if not sources or not outputs or not isinstance(outputs[0], Tensor):
            if sources and func._schema.is_mutable:  # of lists of maps, all at once
                self.unbounded.append(name)
            self.flow.add(name, func, named, outputs)
            return result

        output, taps = outputs[0], None
        try:
            if func._schema.is_mutable and self.flow.shares_storage(output):  # views that do not hear of it
                raise SeesEverythingError
            taps = taps_of(func, Call(output, named, lambda value: self.reach_of(value) is not None))
            reach = _taps(self, _union([sources[taps.only]] if taps.only is not None else [*sources.values()]), taps)
        except SeesEverythingError:
            operator = func.overloadpacket.__name__
            self.unbounded.append(name_of(self.where) if operator in STATISTICS else name)
            reach = self._as_if_local(args, kwargs, output)
        if reach is not None:
            self.strides.update(reach.stride)
            for other in outputs:  # mean and variance, values and their indices
                if isinstance(other, Tensor) and other.shape[-2:] == output.shape[-2:]:
                    self._reaches[other] = reach
        self.flow.add(name, func, named, outputs, taps=taps, stride=None if reach is None else reach.stride)
        return result

    def _as_if_local(self, args: Any, kwargs: dict[str, Any], output: Tensor) -> Reach | None:
        """Return the reach that the result would have if the operator saw a cell and its neighbours only."""
        for image in tensors_in(args, kwargs):
            reach = self.reach_of(image)
            if reach is None or image.dim() != 4 or output.dim() != 4 or 1 in output.shape[-2:]:
                continue
            steps = [Fraction(image.shape[dim], output.shape[dim]) for dim in (-2, -1)]
            if all(step.numerator == 1 or step.denominator == 1 for step in steps):
                taps = range(1) if steps == [1, 1] else range(-1, 2)
                return _taps(self, reach, Taps(taps, taps, (steps[0], steps[1])))
        return None

    def coarser(self, stride: Fraction) -> bool:
        """Return False, and remember, where a block does not hold whole cells of this stride."""
        if self.block % stride.numerator:
            self.needed_block = lcm(self.needed_block, stride.numerator)
            return False
        return True


STATISTICS = {"native_group_norm", "native_layer_norm", "var_mean", "mean", "native_batch_norm", "plane_moments"}
"""Operators that a module stands for: the module's name says enough."""


def _union(sources: list[Reach]) -> Reach:
    """Return the reach of a result that uses the same cell of several tensors."""
    if len({source.stride for source in sources}) > 1:
        raise SeesEverythingError
    first, *rest = sources
    lo, hi = first.lo, first.hi
    for source in rest:
        lo = (np.minimum(lo[0], source.lo[0]), np.minimum(lo[1], source.lo[1]))
        hi = (np.maximum(hi[0], source.hi[0]), np.maximum(hi[1], source.hi[1]))
    return Reach(first.stride, lo, hi)


def _taps(trace: _Trace, source: Reach, taps: Taps) -> Reach | None:
    """Return the reach of a result that uses some cells of its source."""
    if taps.is_same:
        return source
    step = taps.step
    stride = (source.stride[0] * step[0], source.stride[1] * step[1])
    if not all(trace.coarser(s) for s in stride):
        return None
    lows, highs = [], []
    for axis, used in enumerate((taps.rows, taps.cols)):
        cells = np.arange(int(trace.block / stride[axis]))
        centre = np.floor_divide(cells * step[axis].numerator, step[axis].denominator)
        lows.append(_at(trace, source.lo[axis], centre + used[0]))
        highs.append(_at(trace, source.hi[axis], centre + used[-1]))
    return Reach(stride, (lows[0], lows[1]), (highs[0], highs[1]))


def _at(trace: _Trace, ranges: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return the ends of the ranges of any cells; beyond the block they repeat, moved by one block."""
    blocks, within = np.divmod(cells, len(ranges))
    return ranges[within] + blocks * trace.block
