"""A network that takes an image row by row, and computes every row of every map once.

The network runs once on a small image, and every operator it calls is written down. From then on each operator keeps
those rows of its input that rows to come need: two for a 3 x 3 convolution, a window for a local norm, those of the
delay of the deeper path for a skip connection. It makes the rows that can be made, and forgets the rest. At the top,
the bottom and the sides of the image every operator does what it does to the whole image.

Which rows an operator uses is what `geonorm.models.operators` says, as for `tile_geometry`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from geonorm.errors import InvalidConfigError, name_some
from geonorm.models.operators import (
    Call,
    SeesEverythingError,
    as_usual,
    named_args,
    naming,
    taps_of,
    tensors_in,
)
from geonorm.models.row_operators import Convolution, Operator, Value, Windowed, class_of, mapped

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

    @property
    def largest_window(self) -> int:
        """Rows that one operator looks at, at most, of maps with as many rows as the image."""
        strides, windows = [Fraction(1)], [1]
        for operator in self.operators:
            stride = strides[operator.sources[0]]
            strides.append(stride * operator.taps.step[0])
            if stride == 1:
                windows.append(len(operator.taps.rows))
        return max(windows)

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
        call = Call(output, named_args(func, args, kwargs), lambda value: value in maps)
        try:
            taps = taps_of(func, call)
        except SeesEverythingError:
            return None
        kind = class_of(func, call, taps)
        if kind is None or output.dim() < 4:  # of stacked maps more
            return None
        return kind(
            func=_out_of_place(func),
            args=mapped(call.args, lambda value: Value(maps[value]) if value in maps else value),
            sources=tuple(sorted({*maps.values()})),
            taps=replace(taps, only=None),
            shape=next(iter(maps)).shape,
            result=torch.empty_like(output, device="meta"),
        )


def _out_of_place(func: Any) -> Any:
    """Return the operator that makes a new map of what one makes in place."""
    packet, overload = func.overloadpacket, func._overloadname
    if not func._schema.is_mutable:
        return func
    return getattr(getattr(aten, packet.__name__.rstrip("_")), overload)


def _renumbered(operator: Operator, places: Mapping[int, int]) -> Operator:
    def moved(value: object) -> object:
        return Value(places[value.index]) if isinstance(value, Value) else value

    sources = tuple(places[source] for source in operator.sources)
    return replace(operator, args=mapped(operator.args, moved), sources=sources)
