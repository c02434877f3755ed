"""A network as ONNX: its operators by torch's exporter, those of geonorm's own by the functions below.

Windows of local norms are sums of whole rows and columns in float64, and differences of two of them, as in
`geonorm.norms.portable`: a dozen operators for any window and any size of map.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from geonorm.errors import InvalidConfigError, one_line
from geonorm.models.exported import Output, Portable, exported, quiet
from geonorm.norms.compiled import plain_torch
from geonorm.norms.moments import before

INPUT = "image"
AXES = ("batch", "height", "width")
"""Names of the axes that take any size."""
FLOAT, DOUBLE = 1, 11
"""ONNX's numbers for types."""


def require_onnx(name: str) -> Any:
    """Return a module of the extra ``onnx``, or raise `InvalidConfigError`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidConfigError(
            f"ONNX needs the package {name}: {one_line(error)}. pip install 'geonorm[onnx]', or export a .pt2."
        ) from error


def as_onnx(
    network: nn.Module, shape: tuple[int, ...], *, output: Output = "logits", any_size: bool = True, margin_px: int = 0
) -> Any:
    """Return a network as an ``onnx.ModelProto``: ``image (batch, bands, height, width)`` in, ``output`` out.

    Args:
        network: In evaluation, on the CPU: raw band values in, logits out.
        shape: Bands, rows and columns of an image that the network takes.
        output: What comes out, see `geonorm.models.exported.Portable`.
        any_size: Whether images may have any size that the network takes, or the one of ``shape``.
        margin_px: Pixels that the output lacks on each side.

    Raises:
        InvalidConfigError: No package onnxscript, or an operator that ONNX has no word for.
    """
    require_onnx("onnxscript")
    try:
        with quiet(), plain_torch():
            program = exported(Portable(network, output=output), shape, any_size=any_size)
            made = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=[output],
                custom_translation_table=_translations(),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # exporters fail in many ways, some derived from nothing
        raise InvalidConfigError(
            f"This network cannot be written as ONNX: {one_line(error)}. A .pt2 keeps torch's own operators."
        ) from error
    assert made is not None  # as without a file to write to
    model = made.model_proto
    _tidy(model)
    _name_axes(model, shape, any_size=any_size, margin_px=margin_px)
    return model


def _tidy(model: Any) -> None:
    """Take out what says where and how the file was made rather than what it computes."""
    for part in (model.graph, *model.functions):
        part.ClearField("doc_string")
        del part.value_info[:]  # of sizes that runtimes find out by themselves, and some take at their word
        del part.metadata_props[:]
        for node in part.node:
            node.ClearField("doc_string")
            del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    del model.metadata_props[:]


def _name_axes(model: Any, shape: tuple[int, ...], *, any_size: bool, margin_px: int) -> None:
    """Call the axes by their names, in place of the exporter's ``s77``."""
    lost = f" - {2 * margin_px}" if margin_px else ""
    for value, less in ((model.graph.input[0], ""), (model.graph.output[0], lost)):
        axes = value.type.tensor_type.shape.dim
        axes[0].dim_param = AXES[0]
        for axis, name, pixels in zip(axes[2:], AXES[1:], shape[1:], strict=True):
            if any_size:
                axis.dim_param = name + less
            else:
                axis.dim_value = pixels - (2 * margin_px if less else 0)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return how geonorm's own operators are said in ONNX."""
    geonorm = torch.ops.geonorm
    return {
        geonorm.local_context_norm.default: _local_context_norm,
        geonorm.local_statistics.default: _local_statistics,
    }


def _local_context_norm(
    x: Any,
    weight: Any,
    bias: Any,
    group_size: int,
    window: list[int],
    border: str,
    eps: float,
    keep: bool = False,
) -> Any:
    op = _operators()
    groups = op.Reshape(x, _split(op, x, group_size))
    wide, var = _moments(op, groups, window, border)
    mean = op.Cast(wide, to=FLOAT)
    rest = op.Cast(op.Sub(wide, op.Cast(mean, to=DOUBLE)), to=FLOAT)  # what float32 leaves of the mean
    rstd = op.Cast(op.Reciprocal(op.Sqrt(op.Add(var, _double(op, eps)))), to=FLOAT)
    channel = op.Constant(value_ints=[2])
    mean_, rest_, rstd_ = (op.Unsqueeze(plane, channel) for plane in (mean, rest, rstd))
    y = op.Reshape(op.Mul(op.Sub(op.Sub(groups, mean_), rest_), rstd_), op.Shape(x))
    cells = op.Constant(value_ints=[1, 2])
    y = op.Add(op.Mul(y, op.Unsqueeze(weight, cells)), op.Unsqueeze(bias, cells))
    return y, mean, rstd


def _local_statistics(x: Any, group_size: int, window: list[int], border: str) -> Any:
    op = _operators()
    mean, var = _moments(op, op.Reshape(x, _split(op, x, group_size)), window, border)
    return op.Cast(mean, to=FLOAT), op.Cast(var, to=FLOAT)


def _operators() -> Any:
    return require_onnx("onnxscript").opset18


def _double(op: Any, value: float) -> Any:
    ir = require_onnx("onnxscript").ir
    return op.Constant(value=ir.tensor([value], dtype=ir.DataType.DOUBLE))


def _split(op: Any, x: Any, group_size: int) -> Any:
    """Return the shape ``(N, groups, group_size, H, W)``."""
    groups = op.Constant(value_ints=[-1, group_size])
    return op.Concat(op.Shape(x, start=0, end=1), groups, op.Shape(x, start=2, end=4), axis=0)


def _moments(op: Any, groups: Any, window: list[int], border: str) -> tuple[Any, Any]:
    """Return mean and biased variance in float64, ``(N, groups, H, W)``."""
    wide = op.Cast(groups, to=DOUBLE)
    channel = op.Constant(value_ints=[2])
    means = (op.ReduceMean(values, channel, keepdims=0) for values in (wide, op.Mul(wide, wide)))
    planes = op.Concat(*means, axis=1)
    for axis, size in ((2, window[0]), (3, window[1])):
        start, end = _windows(op, op.Shape(planes, start=axis, end=axis + 1), size, border)
        one_before = [0] * 8
        one_before[axis] = 1
        sums = op.Pad(op.CumSum(planes, op.Constant(value_int=axis)), op.Constant(value_ints=one_before))
        planes = op.Sub(op.Gather(sums, end, axis=axis), op.Gather(sums, start, axis=axis))
        cells = op.Cast(op.Sub(end, start), to=DOUBLE)
        planes = op.Div(planes, cells if axis == 3 else op.Unsqueeze(cells, op.Constant(value_ints=[1])))
    mean, square = op.Split(planes, num_outputs=2, axis=1)
    return mean, op.Max(op.Sub(square, op.Mul(mean, mean)), _double(op, 0.0))


def _windows(op: Any, length: Any, size: int, border: str) -> tuple[Any, Any]:
    """Return the first and the last but one cell of each cell's window along an axis of some length."""
    zero, whole = op.Constant(value_ints=[0]), op.Constant(value_ints=[size])
    cells = op.Range(op.Constant(value_int=0), op.Squeeze(length), op.Constant(value_int=1))
    first = op.Sub(cells, op.Constant(value_ints=[before(size)]))
    if border == "nearest":
        start = op.Max(op.Min(first, op.Sub(length, whole)), zero)
        return start, op.Min(op.Add(start, whole), length)
    # An axis shorter than its window is covered whole: the windows are made to reach beyond both of its ends.
    more = op.Where(op.Less(length, whole), whole, zero)
    return op.Max(op.Sub(first, more), zero), op.Min(op.Add(op.Add(first, whole), more), length)
