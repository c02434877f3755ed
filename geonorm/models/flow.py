"""What a model does to an image, operator by operator, told so that images of two sizes can be compared.

A halo that was found at one size holds at every other only if the model does the same there: the same operators, the
same weights, the same numbers. Lengths of maps may differ, as far as they follow the image's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from geonorm.models.operators import Taps

aten = torch.ops.aten

FAR_PX = 2048
"""From this side on one size is looked for, since a model may do something else to large images."""
PRIMES = (2, 3, 5)
"""Remainders of the sides by these should differ, and be 0 at one of them."""


def further_sizes(side: int, stride_px: int) -> list[tuple[int, int]]:
    """Return heights and widths that tell most beside ``side`` and one stride more, the best first; none is square.

    Example:
        >>> further_sizes(256, 16)
        [(2640, 2160), (960, 480)]
    """

    def told(width: int) -> int:
        remainders = [{known % prime for known in (side, side + stride_px, width)} for prime in PRIMES]
        return sum(len(those) + (0 in those) for those in remainders)

    starts = [max(2, -(-(FAR_PX - side) // stride_px)), 2]
    widths = [max((side + more * stride_px for more in range(start, start + 30)), key=told) for start in starts]
    return [(width + 30 * stride_px, width) for width in widths]  # with the same remainders


@dataclass(frozen=True)
class Step:
    """One call of an operator."""

    name: str
    """Module and operator."""
    call: tuple[object, ...]
    """All that is to be the same at every size."""
    uses: tuple[int, ...]
    """The steps whose results it uses, in the order of its arguments; 0 is the image."""


def first_difference(one: Sequence[Step], other: Sequence[Step]) -> str | None:
    """Return the name of the first step in which two sizes differ; None if in none."""
    return next((a.name if a else b.name for a, b in zip_longest(one, other) if a != b), None)


class Flow:
    """Writes down what is called while a model runs.

    Attributes:
        size: Height and width of the image.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        """Begin with the image."""
        self.size: tuple[int, int] = (image.shape[-2], image.shape[-1])
        self._steps: list[Step] = []
        self._results: Any = WeakIdKeyDictionary({image: (0, 0)})
        self._weights = {_storage(value): name for name, value in (*model.named_parameters(), *model.named_buffers())}

    def add(
        self,
        name: str,
        func: Any,
        args: Mapping[str, Any],
        results: Iterable[object],
        *,
        taps: Taps | None = None,
        stride: tuple[Fraction, Fraction] | None = None,
    ) -> None:
        """Write a call down.

        Args:
            name: Module and operator.
            func: The operator.
            args: Its arguments by name.
            results: What it gave, in place or not.
            taps: What it uses of its maps; None where it works on none.
            stride: Pixels of the image that a cell of its result spans, where this is a map.
        """
        uses: list[int] = []
        left_out = {"self"} if func is aten.copy_.default else set()  # it is overwritten
        tensors = [value for value in results if isinstance(value, Tensor)]
        call: list[object] = [str(func)]
        if taps is not None and stride is not None:
            left_out |= LENGTHS
            call += [(taps.rows, taps.cols, taps.step), self._lengths(tensors[0], stride)]
        call += [(key, self._plain(value, uses)) for key, value in args.items() if key not in left_out]
        self._write(Step(name, tuple(call), tuple(uses)), tensors)

    def given(self, name: str, values: object, result: Tensor) -> None:
        """Write down that a tensor was made of values."""
        self._write(Step(name, (self._plain(values, []),), ()), [result])

    def shares_storage(self, value: Tensor) -> bool:
        """Whether there is another tensor that changes with this one."""
        mine = _storage(value)
        return any(other is not value and _storage(other) == mine for other in self._results)

    def to(self, output: Tensor) -> list[Step]:
        """Return the steps that an output follows from, in their order."""
        last, _ = self._results.get(output, (0, 0))
        used = {0, last}
        for index in range(last, 0, -1):
            if index in used:
                used.update(self._steps[index - 1].uses)
        places = {old: new for new, old in enumerate(sorted(used))}
        steps = [self._steps[index - 1] for index in sorted(used) if index]
        return [replace(step, uses=tuple(places[use] for use in step.uses)) for step in steps]

    def _write(self, step: Step, results: Iterable[Tensor]) -> None:
        self._steps.append(step)
        for which, result in enumerate(results):
            self._results[result] = (len(self._steps), which)

    def _lengths(self, cells: Tensor, stride: tuple[Fraction, Fraction]) -> object:
        """Return the shape of a map: of its rows and columns what lacks of the image's."""
        lacking = [side / step - num for side, step, num in zip(self.size, stride, cells.shape[-2:], strict=True)]
        return (*cells.shape[:-2], *lacking)

    def _plain(self, value: object, uses: list[int]) -> object:
        """Return an argument as something to compare; add the steps that it comes from."""
        if isinstance(value, list | tuple):
            return tuple(self._plain(item, uses) for item in value)
        if isinstance(value, np.ndarray):
            return str(value.dtype), value.shape, value.tobytes()
        if not isinstance(value, Tensor):
            return repr(value)  # a NaN, too, is to be the same
        if value in self._results:
            index, which = self._results[value]
            uses.append(index)
            return "result", which
        if (weight := self._weights.get(_storage(value))) is not None:
            return weight, value.shape, value.stride(), value.storage_offset()
        if value.is_meta:
            return object()  # nobody can tell what it holds: equal to nothing
        return str(value.dtype), value.shape, value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


class MadeOfValues(TorchFunctionMode):
    """Tells a flow of the tensors that are made of values, which a tensor without values does not show."""

    def __init__(self, flow: Flow, where: Sequence[str]) -> None:
        """Take the flow, and the names of the modules that run, the last one innermost."""
        super().__init__()
        self._flow = flow
        self._where = where

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch; if it makes a tensor of values, write it down."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in MAKERS:
            values = args[-1] if args else kwargs.get("data", kwargs.get("obj"))
            if not isinstance(values, Tensor):
                self._flow.given(f"{name_of(self._where)}: {func.__name__}", values, result)
        return result


MAKERS = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
LENGTHS = {"size", "output_size", "end"}
"""Arguments that hold lengths of a map: its shape tells them."""


def name_of(where: Sequence[str]) -> str:
    """Return the name of the module that runs."""
    return where[-1] if where else "model"


def _storage(value: Tensor) -> int:
    """Return what tensors share whose values lie in the same place."""
    return value.untyped_storage()._cdata
