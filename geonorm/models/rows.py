"""A network that takes an image row by row, and computes every row of every map once.

The network runs once on a small image, and every operator it calls is written down. From then on each operator keeps
those rows of its input that rows to come need: two for a 3 x 3 convolution, a window for a local norm, those of the
delay of the deeper path for a skip connection. It makes the rows that can be made, and forgets the rest. At the top,
the bottom and the sides of the image every operator does what it does to the whole image.

Which rows an operator uses is what `geonorm.models.operators` says, as for `tile_geometry`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from geonorm.errors import InvalidConfigError, name_some
from geonorm.models.operators import (
    Call,
    SeesEverythingError,
    Taps,
    as_usual,
    call_of,
    naming,
    pair,
    taps_of,
    tensors_in,
)

aten = torch.ops.aten


class NotByRowsError(InvalidConfigError):
    """A network that cannot take an image row by row."""


@dataclass(frozen=True)
class RowNetwork:
    """What a network does to an image, operator by operator."""

    operators: tuple[Operator, ...]
    """In the order of their calls; the last one makes the output."""

    @classmethod
    def of(cls, network: nn.Module, image: Tensor) -> RowNetwork:
        """Write down what a network does to an image.

        Args:
            network: Maps ``(1, C, H, W)`` to ``(1, K, H', W')``.
            image: An image that it takes. Its size decides nothing.

        Raises:
            NotByRowsError: An operator that sees the whole map, or has no rule, by name.
        """
        recorder = _Recorder(image)
        with ExitStack() as stack:
            for context in (torch.no_grad(), as_usual(), naming(network, recorder.where), recorder):
                stack.enter_context(context)
            output = network(image)
        return cls(recorder.operators_of(output))

    def stream(self, height: int) -> RowStream:
        """Begin an image of so many rows."""
        return RowStream(self, height)

    def tensor_bytes(self, height: int, width: int, step: int, image_row_bytes: int) -> Iterator[tuple[int, ...]]:
        """Yield the bytes of all tensors that there are, operator by operator, as an image goes by in steps."""
        strides = [Fraction(1)]
        row_bytes = [image_row_bytes]
        for operator in self.operators:
            strides.append(strides[operator.sources[0]] * operator.taps.step[1])
            cells = ceil(width / strides[-1])  # a few fewer where convolutions do not pad
            channels = operator.result[..., 0, 0].numel()
            row_bytes.append(channels * cells * operator.result.element_size())
        yield from self.stream(height).sizes(step, row_bytes)


class RowStream:
    """One image on its way through a network."""

    def __init__(self, network: RowNetwork, height: int) -> None:
        """Take a network and the rows of the image; its columns show with the first rows."""
        self._operators = network.operators
        self._heights = [height]
        for operator in self._operators:
            heights = {self._heights[source] for source in operator.sources}
            if len(heights) > 1:
                raise NotByRowsError(f"the network does not take an image of {height} rows")
            self._heights.append(operator.height(*heights))
        self._made = [0] * len(self._heights)
        self._kept = [_Kept() for _ in self._heights]
        self._users: list[list[int]] = [[] for _ in self._heights]
        for index, operator in enumerate(self._operators, start=1):
            for source in operator.sources:
                self._users[source].append(index)

    @property
    def height(self) -> int:
        """Rows of the output."""
        return self._heights[-1]

    def rows(self) -> list[tuple[int, int, int]]:
        """Return of the image and of each operator's result: rows that are forgotten, that were made, and of all."""
        kept = (made - one.num_rows for made, one in zip(self._made, self._kept, strict=True))
        return [*zip(kept, self._made, self._heights, strict=True)]

    def push(self, rows: Tensor) -> Tensor | None:
        """Take the next rows of the image, ``(1, C, h, W)``; return those of the output that are complete by them."""
        self._kept[0].add(rows)
        self._made[0] += rows.shape[-2]
        last = len(self._operators)
        complete: Tensor | None = None
        for index, operator in enumerate(self._operators, start=1):
            due = self._due(index)
            if due is not None:
                parts = [self._kept[source].rows(due.start, due.stop) for source in operator.sources]
                made = operator.make(due.first, due.end, parts, due.start, self._heights[operator.sources[0]])
                if made.shape[-2] != due.end - due.first:
                    raise NotByRowsError(f"{operator.func.overloadpacket.__name__} gives other rows than it should")
                del parts
                self._made[index] = due.end
                if index == last:
                    complete = made
                else:
                    self._kept[index].add(made)
                del made
            for source in operator.sources:
                self._kept[source].forget(self._first_needed(source))
        return complete

    def sizes(self, step: int, row_bytes: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Yield the bytes of all tensors that there are, operator by operator, as the image goes by in steps.

        Args:
            step: Rows that go in at a time.
            row_bytes: Bytes of a row of the image and of each operator's result.
        """
        kept: list[list[tuple[int, int]]] = [[] for _ in self._heights]  # rows of each piece: left, held in memory
        for begin in range(0, self._heights[0], step):
            rows = min(step, self._heights[0] - begin)
            self._made[0] += rows
            kept[0].append((rows, rows))
            for index, operator in enumerate(self._operators, start=1):
                due = self._due(index)
                if due is not None:
                    joined = [(due.stop - due.start) * row_bytes[source] for source in operator.sources]
                    if isinstance(operator, Convolution) and (due.first == 0 or due.end == self._heights[index]):
                        joined *= 2  # with the rows of zeros around the image
                    made = due.end - due.first
                    there = [held * row_bytes[one] for one, pieces in enumerate(kept) for _, held in pieces]
                    held = made
                    if isinstance(operator, Windowed):  # with what is cut off
                        held = max(made, int((due.stop - due.start) / operator.taps.step[0]))
                    yield (*there, *joined, held * row_bytes[index])
                    self._made[index] = due.end
                    kept[index].append((made, held))
                for source in operator.sources:
                    kept[source] = _trimmed(kept[source], self._made[source] - self._first_needed(source))
            kept[-1].clear()

    def _due(self, index: int) -> _Due | None:
        """Return the rows that an operator can make by now, if any."""
        operator = self._operators[index - 1]
        height = self._heights[operator.sources[0]]
        first = self._made[index]
        end = operator.ready(min(self._made[source] for source in operator.sources), height, self._heights[index])
        return _Due(first, end, *operator.needs(first, end, height)) if end > first else None

    def _first_needed(self, index: int) -> int:
        """Return the first row of a map that somebody will still need."""
        first = self._made[index]
        for user in self._users[index]:
            made = self._made[user]
            if made < self._heights[user]:
                first = min(first, self._operators[user - 1].needs(made, made + 1, self._heights[index])[0])
        return first


class _Due(NamedTuple):
    """Rows of an operator's result, and those of its sources that they need."""

    first: int
    end: int
    start: int
    stop: int


def _trimmed(pieces: list[tuple[int, int]], left: int) -> list[tuple[int, int]]:
    """Return the pieces that hold the last rows, as `_Kept` keeps them."""
    found: list[tuple[int, int]] = []
    for rows, held in reversed(pieces):
        if left <= 0:
            break
        some = min(rows, left)
        found.insert(0, (some, some if 2 * some < held else held))
        left -= some
    return found


class _Kept:
    """Rows of a map, those first that came first."""

    def __init__(self) -> None:
        self._pieces: deque[Tensor] = deque()
        self._first = 0

    @property
    def num_rows(self) -> int:
        return sum(piece.shape[-2] for piece in self._pieces)

    def add(self, rows: Tensor) -> None:
        self._pieces.append(rows)

    def rows(self, start: int, end: int) -> Tensor:
        parts, first = [], self._first
        for piece in self._pieces:
            stop = first + piece.shape[-2]
            if first < end and stop > start:
                parts.append(piece[..., max(start, first) - first : min(end, stop) - first, :])
            first = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

    def forget(self, first: int) -> None:
        """Forget the rows before one."""
        while self._pieces and self._first + self._pieces[0].shape[-2] <= first:
            self._first += self._pieces.popleft().shape[-2]
        if self._pieces and first > self._first:
            piece = self._pieces[0]
            left = piece[..., first - self._first :, :]
            # A few rows of many are copied, so that the others' memory is free.
            if 2 * left.numel() < piece.untyped_storage().nbytes() // piece.element_size():
                left = left.clone()
            self._pieces[0] = left
            self._first = first


# --- operators --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Value:
    """Stands for the result of an operator among the arguments of another; 0 is the image."""

    index: int


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One call of an operator, and how it is done for some rows of its result."""

    func: Any
    args: Mapping[str, Any]
    """Its arguments by name, maps as `_Value`."""
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
        if self.func.overloadpacket in KEEPS_ITS_HEIGHT:
            return source
        # Its arguments hold no other tensor: an operator with weights has a class of its own.
        return self._called([torch.empty(*self.shape[:2], source, self.shape[3], device="meta")]).shape[-2]

    def make(self, first: int, end: int, parts: Sequence[Tensor], start: int, source: int) -> Tensor:
        """See `Operator.make`."""
        before = int(start / self.taps.step[0])
        return self._called(parts)[..., first - before : end - before, :]


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


KEEPS_ITS_HEIGHT = {torch.ops.geonorm.local_context_norm}

WINDOWED = {
    aten.avg_pool2d,
    aten.constant_pad_nd,
    aten.max_pool2d,
    aten.max_pool2d_with_indices,
    aten.pixel_shuffle,
    aten.replication_pad2d,
    torch.ops.geonorm.local_context_norm,
}
UPSAMPLED = {aten.upsample_nearest2d, aten._upsample_nearest_exact2d, aten.upsample_bilinear2d}
SIZED = {aten.view, aten._unsafe_view, aten.expand}
"""Operators whose arguments hold the size of the map: taken where they leave it as it is."""
PADS = {aten.constant_pad_nd, aten.replication_pad2d}


def _class_of(func: Any, call: Call, taps: Taps) -> type[Operator] | None:
    """Return how an operator is done for some rows; None where nobody knows."""
    packet = func.overloadpacket
    if packet is aten.convolution:
        return TransposedConvolution if call["transposed"] else Convolution
    if packet is aten.slice:
        return Operator if call["dim"] % call["self"].dim() < 2 else Cut
    if packet in WINDOWED:
        return Windowed
    if packet in UPSAMPLED:
        return Upsampled
    if packet in SIZED:
        return Unchanged if call.output.shape == call["self"].shape else None
    if packet in PADS and taps.rows.start > 0:  # it cuts rows off instead
        return None
    return Operator if taps.is_same and taps.only is None else None


class _Recorder(TorchDispatchMode):
    """Writes down the operators that are called on what follows from an image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.where: list[str] = []
        self._operators: list[Operator] = []
        self._values: Any = WeakIdKeyDictionary({image: 0})
        self._others: Any = WeakIdKeyDictionary()  # further results of an operator, such as indices
        self._faults: list[str] = []

    def operators_of(self, output: object) -> tuple[Operator, ...]:
        """Return the operators that an output follows from."""
        if self._faults:
            raise NotByRowsError(
                f"this network cannot take an image row by row: there is no rule for "
                f"{name_some(list(dict.fromkeys(self._faults)))}"
            )
        last = self._values.get(output) if isinstance(output, Tensor) else None
        if not last:
            raise NotByRowsError("the network's output does not follow from the image")
        used = {0, last}
        for index in range(last, 0, -1):
            if index in used:
                used.update(self._operators[index - 1].sources)
        places = {old: new for new, old in enumerate(sorted(used))}
        return tuple(_renumbered(self._operators[index - 1], places) for index in sorted(used) if index)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Before the call, since an operator that works in place hands back its own argument.
        maps = {value: self._values[value] for value in tensors_in(args, kwargs) if value in self._values}
        odd = any(value in self._others for value in tensors_in(args, kwargs))
        result = func(*args, **kwargs)
        outputs = result if isinstance(result, tuple | list) else (result,)
        if not (maps or odd) or not isinstance(outputs[0], Tensor):
            return result
        operator = None if odd else self._operator(func, args, kwargs, outputs[0], maps)
        if operator is None:
            where = self.where[-1] if self.where else "model"
            self._faults.append(f"{where}: {func.overloadpacket.__name__}")
        else:
            self._operators.append(operator)
        self._values[outputs[0]] = len(self._operators)
        for other in outputs[1:]:
            if isinstance(other, Tensor):
                self._others[other] = True
        return result

    def _operator(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor, maps: Mapping[Tensor, int]
    ) -> Operator | None:
        """Return what is written down of a call; None where no rule tells what it does to rows."""
        call = call_of(func, args, kwargs, output, lambda value: value in maps)
        try:
            taps = taps_of(func, call)
        except SeesEverythingError:
            return None
        kind = _class_of(func, call, taps)
        if kind is None or output.dim() < 4:  # of stacked maps more
            return None
        return kind(
            func=_out_of_place(func),
            args=_mapped(call.args, lambda value: _Value(maps[value]) if value in maps else value),
            sources=tuple(sorted({*maps.values()})),
            taps=replace(taps, only=None),
            shape=next(iter(maps)).shape,
            result=torch.empty_like(output, device="meta"),
        )


def _inside(start: int, stop: int, length: int) -> tuple[int, int]:
    """Return the part of a range that lies inside, or the row next to it if none does, in what is made up around."""
    start = min(max(0, start), length - 1)
    return start, max(min(max(0, stop), length), start + 1)


def _out_of_place(func: Any) -> Any:
    """Return the operator that makes a new map of what one makes in place."""
    packet, overload = func.overloadpacket, func._overloadname
    if not func._schema.is_mutable:
        return func
    return getattr(getattr(aten, packet.__name__.rstrip("_")), overload)


def _renumbered(operator: Operator, places: Mapping[int, int]) -> Operator:
    def moved(value: object) -> object:
        return _Value(places[value.index]) if isinstance(value, _Value) else value

    sources = tuple(places[source] for source in operator.sources)
    return replace(operator, args=_mapped(operator.args, moved), sources=sources)


def _filled(args: Mapping[str, Any], values: Mapping[int, Tensor]) -> dict[str, Any]:
    """Return arguments with the maps in their places."""
    return _mapped(args, lambda value: values[value.index] if isinstance(value, _Value) else value)


def _mapped(args: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return arguments with each value changed, those in lists included."""
    return {
        name: [change(item) for item in value] if isinstance(value, list | tuple) else change(value)
        for name, value in args.items()
    }
