"""How each operator of a network is done for some rows of its result, from the rows of its maps that they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from geonorm.models.operators import Call, Taps, pair
from geonorm.norms.local_context import local_context_norm_of_rows

aten = torch.ops.aten


@dataclass(frozen=True)
class Value:
    """Stands for the result of an operator among the arguments of another; 0 is the image."""

    index: int


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One call of an operator, and how it is done for some rows of its result."""

    func: Any
    args: Mapping[str, Any]
    """Its arguments by name, maps as `Value`."""
    sources: tuple[int, ...]
    """Which results it uses."""
    taps: Taps
    """Which of their cells."""
    shape: torch.Size
    """Of the map that it worked on as it was written down."""
    result: Tensor
    """Its result then, without values."""

    def height(self, source: int) -> int:
        """Return how many rows the result has, of a source of so many."""
        return source

    def needs(self, first: int, end: int, source: int) -> tuple[int, int]:
        """Return the first and last but one row of the source that some rows of the result use."""
        step, rows = self.taps.step[0], self.taps.rows
        start, stop = floor(first * step) + rows.start, floor((end - 1) * step) + rows.stop
        if self.taps.full:
            window = min(len(rows), source)
            start, stop = min(start, source - window), max(stop, window)
        start, stop = _inside(start, stop, source)
        return start - start % step.numerator, stop

    def ready(self, given: int, source: int, height: int) -> int:
        """Return how many rows of the result follow from the first rows of the source."""
        if given == source:
            return height
        if given == 0:
            return 0
        if self.taps.full and given < len(self.taps.rows):
            return 0
        return min(height, max(0, ceil((given - self.taps.rows.stop + 1) / self.taps.step[0])))

    def make(self, first: int, end: int, parts: Sequence[Tensor], start: int, source: int) -> Tensor:
        """Return some rows of the result.

        Args:
            first: The first of them.
            end: The last but one.
            parts: The rows of each source that they need.
            start: The first of those.
            source: How many rows the sources have.
        """
        return self._called(parts)

    def _called(self, parts: Sequence[Tensor], **other: Any) -> Tensor:
        values = dict(zip(self.sources, parts, strict=True))
        result = self.func(**_filled({**self.args, **other}, values))
        return result[0] if isinstance(result, tuple | list) else result


class Unchanged(Operator):
    """Gives back what it gets."""

    def make(self, first: int, end: int, parts: Sequence[Tensor], start: int, source: int) -> Tensor:
        """See `Operator.make`."""
        return parts[0]


class Windowed(Operator):
    """Done to all rows that the result needs; what the ends of these make, where the image goes on, is cut off."""

    def height(self, source: int) -> int:
        """See `Operator.height`."""
        # Its arguments hold no other tensor: an operator with weights has a class of its own.
        return self._called([torch.empty(*self.shape[:2], source, self.shape[3], device="meta")]).shape[-2]

    def make(self, first: int, end: int, parts: Sequence[Tensor], start: int, source: int) -> Tensor:
        """See `Operator.make`."""
        before = int(start / self.taps.step[0])
        return self._called(parts)[..., first - before : end - before, :]


class LocalNorm(Windowed):
    """Windowed, but only the rows of the result are made."""

    def height(self, source: int) -> int:
        """See `Operator.height`."""
        return source

    def make(self, first: int, end: int, parts: Sequence[Tensor], start: int, source: int) -> Tensor:
        """See `Operator.make`."""
        args = {name: value for name, value in self.args.items() if name != "keep"}
        given = _filled(args, dict(zip(self.sources, parts, strict=True)))
        return local_context_norm_of_rows(range(first - start, end - start), **given)


class Upsampled(Windowed):
    """Windowed, to a size that goes with the rows."""

    def height(self, source: int) -> int:
        """See `Operator.height`."""
        return int(source / self.taps.step[0])

    def _called(self, parts: Sequence[Tensor], **other: Any) -> Tensor:
        size = [int(length / step) for length, step in zip(parts[0].shape[-2:], self.taps.step, strict=True)]
        return super()._called(parts, **({} if self.args["output_size"] is None else {"output_size": size}))


class Convolution(Operator):
    """Done to the rows that it needs, and to rows of zeros beyond the image."""

    def height(self, source: int) -> int:
        """See `Operator.height`."""
        stride, padding, dilation = (pair(self.args[name])[0] for name in ("stride", "padding", "dilation"))
        return (source + 2 * padding - dilation * (self.args["weight"].shape[2] - 1) - 1) // stride + 1

    def needs(self, first: int, end: int, source: int) -> tuple[int, int]:
        """See `Operator.needs`."""
        return _inside(*self._span(first, end), source)

    def _span(self, first: int, end: int) -> tuple[int, int]:
        step, rows = int(self.taps.step[0]), self.taps.rows
        return first * step + rows.start, (end - 1) * step + rows.stop

    def make(self, first: int, end: int, parts: Sequence[Tensor], start: int, source: int) -> Tensor:
        """See `Operator.make`."""
        [part] = parts
        wanted = self._span(first, end)
        above, below = start - wanted[0], wanted[1] - start - part.shape[-2]
        if above or below:
            part = pad(part, (0, 0, above, below))
        weight, bias, stride, padding, dilation, groups = (
            self.args[name] for name in ("weight", "bias", "stride", "padding", "dilation", "groups")
        )
        # Not the operator that was called, but its function, for which `BitwiseConvolutions` looks out.
        return torch.conv2d(part, weight, bias, stride, (0, pair(padding)[1]), dilation, groups)


class TransposedConvolution(Windowed):
    """Windowed, with weights."""

    def height(self, source: int) -> int:
        """See `Operator.height`."""
        stride, padding, dilation, more = (
            pair(self.args[name])[0] for name in ("stride", "padding", "dilation", "output_padding")
        )
        return (source - 1) * stride - 2 * padding + dilation * (self.args["weight"].shape[2] - 1) + more + 1


class Cut(Operator):
    """A part of the rows or of the columns; of what the end cuts off the length counts."""

    def _ends(self) -> tuple[int, int]:
        length = self.shape[self.args["dim"]]
        start, end = self.args["start"] or 0, self.args["end"]
        return start, 0 if end is None else max(0, length - (end if end >= 0 else length + end))

    def height(self, source: int) -> int:
        """See `Operator.height`."""
        return source - sum(self._ends()) if self._is_of_rows else source

    @property
    def _is_of_rows(self) -> bool:
        return self.args["dim"] % len(self.shape) == len(self.shape) - 2

    def make(self, first: int, end: int, parts: Sequence[Tensor], start: int, source: int) -> Tensor:
        """See `Operator.make`."""
        [part] = parts
        before, after = self._ends()
        return part if self._is_of_rows else part[..., before : part.shape[-1] - after]


WINDOWED = {
    aten.avg_pool2d,
    aten.constant_pad_nd,
    aten.max_pool2d,
    aten.max_pool2d_with_indices,
    aten.pixel_shuffle,
    aten.replication_pad2d,
}
UPSAMPLED = {aten.upsample_nearest2d, aten._upsample_nearest_exact2d, aten.upsample_bilinear2d}
SIZED = {aten.view, aten._unsafe_view, aten.expand}
"""Operators whose arguments hold the size of the map: taken where they leave it as it is."""
PADS = {aten.constant_pad_nd, aten.replication_pad2d}


def class_of(func: Any, call: Call, taps: Taps) -> type[Operator] | None:
    """Return how an operator is done for some rows; None where nobody knows."""
    packet = func.overloadpacket
    if packet is aten.convolution:
        return TransposedConvolution if call["transposed"] else Convolution
    if packet is aten.slice:
        return Operator if call["dim"] % call["self"].dim() < 2 else Cut
    if packet is torch.ops.geonorm.local_context_norm:
        return LocalNorm
    if packet in WINDOWED:
        return Windowed
    if packet in UPSAMPLED:
        return Upsampled
    if packet in SIZED:
        return Unchanged if call.output.shape == call["self"].shape else None
    if packet in PADS and taps.rows.start > 0:  # it cuts rows off instead
        return None
    return Operator if taps.is_same and taps.only is None else None


def _inside(start: int, stop: int, length: int) -> tuple[int, int]:
    """Return the part of a range that lies inside, or the row next to it if none does, in what is made up around."""
    start = min(max(0, start), length - 1)
    return start, max(min(max(0, stop), length), start + 1)


def _filled(args: Mapping[str, Any], values: Mapping[int, Tensor]) -> dict[str, Any]:
    """Return arguments with the maps in their places."""
    return mapped(args, lambda value: values[value.index] if isinstance(value, Value) else value)


def mapped(args: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return arguments with each value changed, those in lists included."""
    return {
        name: [change(item) for item in value] if isinstance(value, list | tuple) else change(value)
        for name, value in args.items()
    }
