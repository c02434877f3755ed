"""Follows what every cell of every map depends on, as a model runs once on an image without values.

Every tensor that the pass meets carries, for each of its cells, the range of input pixels the cell depends on.
A rule per operator says how the ranges of its result follow. Cells repeat every ``stride_px`` pixels, so ranges are
kept for the cells of one such block. An operator without a rule makes the model unbounded, by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from geonorm.models.flow import Flow, name_of
from geonorm.models.operators import Call, SeesEverythingError, Taps, named_args, taps_of, tensors_in

aten = torch.ops.aten


@dataclass(frozen=True)
class Reach:
    """What the cells of one tensor depend on, per axis (rows, columns).

    ``lo[axis][i]`` and ``hi[axis][i]`` are the first and last input pixel that cell ``i`` depends on, for the cells
    of one block; cell ``i + len`` depends on the same range moved by one block.
    """

    stride: tuple[Fraction, Fraction]
    lo: tuple[np.ndarray, np.ndarray]
    hi: tuple[np.ndarray, np.ndarray]


class Quick(TorchDispatchMode):
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


class Trace(TorchDispatchMode):
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


def _taps(trace: Trace, source: Reach, taps: Taps) -> Reach | None:
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


def _at(trace: Trace, ranges: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return the ends of the ranges of any cells; beyond the block they repeat, moved by one block."""
    blocks, within = np.divmod(cells, len(ranges))
    return ranges[within] + blocks * trace.block
