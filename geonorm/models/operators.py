"""What cells of its input each operator uses: the rules behind `tile_geometry` and behind rows in a stream.

A rule says for one call which cells of the maps it is given a cell of its result depends on. An operator without a rule
may see everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

import geonorm.norms  # noqa: F401 - registers the operators that the last rules name

aten = torch.ops.aten


class SeesEverythingError(Exception):
    """An operator whose result depends on the whole map, or whose reach no rule tells."""


ONE = (Fraction(1), Fraction(1))


@dataclass(frozen=True)
class Taps:
    """Cells ``floor(i * step) + tap`` of its maps that cell ``i`` of a result uses, along rows and columns."""

    rows: range = range(1)
    cols: range = range(1)
    step: tuple[Fraction, Fraction] = ONE
    only: Tensor | None = None
    """The one argument whose cells it uses; None: all of them."""
    full: bool = False
    """Whether there must be a full window, if the map has one: near a border it may move inward, and what is shorter
    would be taken for a map shorter than the window."""

    @property
    def is_same(self) -> bool:
        """Whether every cell uses the same cell of its maps and no other."""
        return self.rows == self.cols == range(1) and self.step == ONE


SAME = Taps()


@dataclass(frozen=True)
class Call:
    """One call of an operator."""

    output: Tensor
    args: Mapping[str, Any]
    """The arguments by name, defaults included."""
    is_map: Callable[[Tensor], bool]
    """Whether a tensor follows from the image, cell by cell."""

    def __getitem__(self, name: str) -> Any:
        """Return an argument."""
        return self.args[name]

    @property
    def image(self) -> Tensor:
        """The map that the operator works on."""
        image: Tensor = next(self.args[name] for name in ("input", "self", "x") if name in self.args)
        return image


def named_args(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, defaults included."""
    named = {arg.name: arg.default_value for arg in func._schema.arguments if arg.has_default_value()}
    named.update(zip((arg.name for arg in func._schema.arguments), args, strict=False))
    return {**named, **kwargs}


def taps_of(func: Any, call: Call) -> Taps:
    """Return what a call uses.

    Raises:
        SeesEverythingError: Possibly everything.
    """
    rule = RULES.get(func.overloadpacket)
    if rule is None or _writes_into_a_view(func, call.output):
        raise SeesEverythingError
    return rule(call)


def tensors_in(args: Any, kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of a call, those in lists included."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))


@contextmanager
def as_usual() -> Iterator[None]:
    """Turn torch's deterministic mode off for a while: it takes upsampling apart into operators that gather."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


@contextmanager
def naming(model: nn.Module, where: list[str]) -> Iterator[None]:
    """Know, while the model runs, which module is running: the last one of the list."""
    handles = []
    for name, module in model.named_modules():
        label = f"{name or 'model'} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: where.append(label)))
        handles.append(module.register_forward_hook(lambda *_: where.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _writes_into_a_view(func: Any, output: Tensor) -> bool:
    """Say whether an operator works in place on a part or a view of a map, so that the map does not hear of it."""
    if not func._schema.is_mutable:
        return False
    return output._is_view() or output.untyped_storage().nbytes() > output.numel() * output.element_size()


def pair(value: Any) -> tuple[int, int]:
    """Return a number for the rows and one for the columns."""
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _whole(numbers: tuple[int, int]) -> tuple[Fraction, Fraction]:
    return Fraction(numbers[0]), Fraction(numbers[1])


def _pointwise(call: Call) -> Taps:
    for value in tensors_in((), call.args):
        # A map that comes from nowhere, such as a ramp, knows where in the tile a pixel lies.
        if not call.is_map(value) and max(value.shape[-2:], default=1) > 1:
            raise SeesEverythingError
        # Of a map that is spread over another one, such as its first row, every pixel sees the same cells.
        if call.is_map(value) and value.shape[-2:] != call.output.shape[-2:]:
            raise SeesEverythingError
    return SAME


def _check_only_map(call: Call) -> None:
    """Raise if anything beside the map that an operator works on follows from the image, such as its weight."""
    if any(call.is_map(value) and value is not call.image for value in tensors_in((), call.args)):
        raise SeesEverythingError


def _plane_affine(call: Call) -> Taps:
    """One affine map per channel; where its numbers come from is the matter of other operators."""
    _check_only_map(call)
    return SAME


def _copied(call: Call) -> Taps:
    if not call.is_map(call["src"]) or call["src"].shape[-2:] != call.output.shape[-2:]:
        raise SeesEverythingError
    return Taps(only=call["src"])


def _concatenated(call: Call) -> Taps:
    if call["dim"] % call.output.dim() >= call.output.dim() - 2:
        raise SeesEverythingError
    return _pointwise(call)


def _over_channels(call: Call) -> Taps:
    dim, ndim = call.args.get("dim"), call["self"].dim()
    dims = {d % ndim for d in ([dim] if isinstance(dim, int) else dim or range(ndim))}
    # Over the batch a tile would see those that happen to go with it. (Of five axes the first is that of stacked maps.)
    if dims & {ndim - 1, ndim - 2} or (ndim == 4 and 0 in dims):
        raise SeesEverythingError
    return SAME


def _convolution(call: Call) -> Taps:
    if not call.is_map(call["input"]):  # the weight is what follows from the image
        raise SeesEverythingError
    _check_only_map(call)
    kernel = call["weight"].shape[-2:]
    stride, padding, dilation = (pair(call[name]) for name in ("stride", "padding", "dilation"))
    if not call["transposed"]:
        return Taps(*_window_taps(kernel, padding, dilation), _whole(stride), only=call["input"])
    # Output cell i uses the input cells (i + padding - dilation * tap) / stride, where that is whole.
    rows, cols = (
        range(-((d * (k - 1) - p) // s), (s - 1 + p) // s + 1)
        for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True)
    )
    return Taps(rows, cols, (Fraction(1, stride[0]), Fraction(1, stride[1])), only=call["input"])


def _pool(call: Call) -> Taps:
    kernel, padding = pair(call["kernel_size"]), pair(call["padding"])
    stride = pair(call["stride"] or call["kernel_size"])
    dilation = pair(call.args.get("dilation", 1))
    return Taps(*_window_taps(kernel, padding, dilation), _whole(stride))


def _window_taps(kernel: Any, padding: Any, dilation: Any) -> tuple[range, range]:
    rows, cols = (range(-p, d * (k - 1) - p + 1) for k, p, d in zip(kernel, padding, dilation, strict=True))
    return rows, cols


def _upsample(call: Call) -> Taps:
    factors = [Fraction(call.output.shape[dim], call.image.shape[dim]) for dim in (-2, -1)]
    if call.args.get("align_corners") or any(factor.denominator > 1 for factor in factors):
        raise SeesEverythingError
    nearest = "align_corners" not in call.args
    taps = range(1) if nearest else range(-1, 2)
    return Taps(taps, taps, (1 / factors[0], 1 / factors[1]))


def _pixel_shuffle(call: Call) -> Taps:
    step = Fraction(1, call["upscale_factor"])
    return Taps(step=(step, step))


def _same_cells(call: Call) -> Taps:
    # In row-major order the last two axes keep their cells if they keep their lengths.
    if call.output.shape[-2:] != call["self"].shape[-2:]:
        raise SeesEverythingError
    return SAME


def _slice(call: Call) -> Taps:
    ndim = call["self"].dim()
    dim = call["dim"] % ndim
    if dim < ndim - 2:
        return SAME
    start = call["start"] or 0
    if call["step"] != 1 or start < 0:
        raise SeesEverythingError
    first = range(start, start + 1)
    return Taps(rows=first) if dim == ndim - 2 else Taps(cols=first)


def _pad(call: Call) -> Taps:
    given = call["pad"] if "pad" in call.args else call["padding"]
    pads = [*given, 0, 0, 0, 0][:4]
    return Taps(range(-pads[2], -pads[2] + 1), range(-pads[0], -pads[0] + 1))


def _batch_norm(call: Call) -> Taps:
    if call.args.get("training", False):
        raise SeesEverythingError
    _check_only_map(call)
    return SAME


def _local_context_norm(call: Call) -> Taps:
    _check_only_map(call)
    rows, cols = (range(-((size - 1) // 2), size - (size - 1) // 2) for size in call["window"])
    return Taps(rows, cols, full=True)


_POINTWISE = [
    "abs",
    "add",
    "add_",
    "addcmul",
    "alias",
    "clamp",
    "clamp_",
    "clamp_min",
    "clone",
    "contiguous",
    "detach",
    "div",
    "div_",
    "dropout",
    "elu",
    "elu_",
    "exp",
    "gelu",
    "hardsigmoid",
    "hardsigmoid_",
    "hardswish",
    "hardswish_",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "lift_fresh",
    "maximum",
    "minimum",
    "mul",
    "mul_",
    "neg",
    "pow",
    "relu",
    "relu_",
    "rsqrt",
    "rsub",
    "sigmoid",
    "sigmoid_",
    "silu",
    "silu_",
    "softplus",
    "sqrt",
    "sub",
    "sub_",
    "tanh",
    "tanh_",
    "where",
    "_prelu_kernel",
    "_to_copy",
]

RULES: dict[Any, Callable[[Call], Taps]] = {
    **{getattr(aten, name): _pointwise for name in _POINTWISE if hasattr(aten, name)},
    aten.cat: _concatenated,
    aten.copy_: _copied,
    aten._softmax: _over_channels,
    aten._log_softmax: _over_channels,
    aten.mean: _over_channels,
    aten.var_mean: _over_channels,
    aten.sum: _over_channels,
    aten.amax: _over_channels,
    aten.stack: _concatenated,
    aten.convolution: _convolution,
    aten.max_pool2d_with_indices: _pool,
    aten.max_pool2d: _pool,
    aten.avg_pool2d: _pool,
    aten.upsample_nearest2d: _upsample,
    aten._upsample_nearest_exact2d: _upsample,
    aten.upsample_bilinear2d: _upsample,
    aten.pixel_shuffle: _pixel_shuffle,
    aten.slice: _slice,
    aten.view: _same_cells,
    aten._unsafe_view: _same_cells,
    aten.unsqueeze: _same_cells,
    aten.expand: _same_cells,
    aten.constant_pad_nd: _pad,
    aten.native_batch_norm: _batch_norm,
    aten.cudnn_batch_norm: _batch_norm,
    aten.miopen_batch_norm: _batch_norm,
    aten._native_batch_norm_legit: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.replication_pad2d: _pad,
    torch.ops.geonorm.local_context_norm: _local_context_norm,
    torch.ops.geonorm.local_statistics: _local_context_norm,
    torch.ops.geonorm.plane_affine: _plane_affine,
}
"""Operator -> rule. What is not here is unbounded."""
