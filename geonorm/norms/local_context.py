"""Local Context Normalization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from geonorm.errors import InvalidConfigError
from geonorm.norms import compiled, gpu, portable
from geonorm.norms.base import Norm, memory_format_of, wide_dtype
from geonorm.norms.compiled import loops_for
from geonorm.norms.group import check_group_size
from geonorm.norms.moments import box_sum_adjoint, local_moments, share_of_window, source_rows

Border = Literal["nearest", "clip"]

CHUNK_VALUES = 2**19
"""Values worked through at once: 2 MiB of float32 stay in the cache from the first step to the last."""


class LocalContextNorm(Norm):
    """Normalize each group of consecutive channels over a window around each cell.

    ``y = (x - mean) / sqrt(var + eps) * weight_c + bias_c`` with mean and biased variance over ``group_size``
    channels and p x q cells centred on the cell (an even window has its extra cell after). An axis shorter than
    its window is covered whole; if both are, this is GroupNorm of the same group size. The output at a cell
    depends on nothing beyond its window, and every cell is computed by the same tree of operations: in float32
    on the CPU a crop gives bit for bit what the whole map gives, at cells whose windows lie inside the crop.

    Source: Ortiz et al., CVPR 2020, equations (6) to (9).
    Differs from the released layer: the window is centred (there: one cell right and down), gradients flow
    through the statistics, the input is not overwritten, each axis falls back by itself, and sums are put together
    from sums of fewer cells (integral images lose all digits at large means): up to float32, on the CPU by compiled
    loops in float64 (`geonorm.norms.loops`), on a GPU by Triton kernels (`geonorm.norms.gpu_kernels`), else by doubling
    and Chan's formula (`geonorm.norms.moments`).

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; turns ``window_px`` into cells.
        window_cells: Window in cells of this map, one number or (rows, cols): the same at every level, as in the
            paper. Give this or ``window_px``.
        window_px: Window in pixels of the input image: ``2 * max(1, window_px // (2 * stride)) + 1`` cells.
        group_size: Channels per group; must divide C.
        border: Near the border use the nearest window inside the map (``"nearest"``, the authors' rule) or the
            part of the window inside it (``"clip"``).
        eps: Added to the variance.
        compat: ``"authors"`` computes what the released layer does, to load and compare its networks: the window
            lies one cell right and down, the first and last window serve more cells, no gradient flows through the
            statistics; and where the window covers either axis, both axes are covered, with unbiased variance and a
            gradient. Takes ``border="nearest"`` only.

    Raises:
        InvalidConfigError: Not exactly one window, a window below 1, a group size that does not divide C, or
            ``compat`` with another border.
    """

    def __init__(
        self,
        num_features: int,
        *,
        stride: int = 1,
        window_cells: int | tuple[int, int] | None = None,
        window_px: int | None = None,
        group_size: int = 4,
        border: Border = "nearest",
        eps: float = 1e-5,
        compat: Literal["authors"] | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps)
        if border not in get_args(Border):
            raise InvalidConfigError(f'border must be "nearest" or "clip", got {border!r}.')
        if stride < 1:
            raise InvalidConfigError(f"stride must be at least 1, got {stride}.")
        if compat not in (None, "authors") or (compat is not None and border != "nearest"):
            raise InvalidConfigError(
                f'compat must be None, or "authors" with border="nearest", got {compat!r} with border={border!r}.'
            )
        self.stride = stride
        self.window_px = window_px
        self.window = window_in_cells(window_cells, window_px, stride)
        self.group_size = check_group_size(num_features, group_size)
        self.border: Border = border
        self.compat = compat

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize a checked input with autocast off."""
        if self.compat == "authors":
            return self._as_released(x)
        if portable.plain_operators_wanted():
            return portable.local_context_norm(
                x, self.weight, self.bias, self.group_size, list(self.window), self.border, self.eps
            )
        learns = torch.is_grad_enabled() and any(v.requires_grad for v in (x, self.weight, self.bias))
        y, _, _ = local_context_norm(
            x, self.weight, self.bias, self.group_size, list(self.window), self.border, self.eps, learns
        )
        return y

    def _as_released(self, x: Tensor) -> Tensor:
        groups = x.to(wide_dtype(x.dtype)).unflatten(1, (-1, self.group_size))
        rows, cols = self.window
        if rows >= x.shape[2] or cols >= x.shape[3]:
            var, mean = torch.var_mean(groups.contiguous(), dim=(2, 3, 4), correction=1, keepdim=True)
        else:
            # The first window of the released layer begins at the second row and column.
            rest = x.detach()[:, :, 1:, 1:]
            moved = [(0, 1) if size % 2 else (1, 0) for size in (cols, rows)]
            mean, var = (
                pad(planes, (*moved[0], *moved[1]), mode="replicate")[:, :, None]
                for planes in statistics_of(rest, self.group_size, [rows, cols], "nearest")
            )
            mean, var = mean.to(groups.dtype), var.to(groups.dtype)
        y = ((groups - mean) * torch.rsqrt(var + self.eps)).flatten(1, 2)
        weight, bias = (values.to(y.dtype)[:, None, None] for values in (self.weight, self.bias))
        return (y * weight + bias).to(x.dtype).contiguous(memory_format=memory_format_of(x))

    def extra_repr(self) -> str:
        """Return the settings that ``print(model)`` shows."""
        rows, cols = self.window
        return (
            f"{self.num_features}, window={rows}x{cols} cells, stride={self.stride}, "
            f"group_size={self.group_size}, border={self.border!r}, eps={self.eps}"
            + (f", compat={self.compat!r}" if self.compat else "")
        )


def window_in_cells(
    window_cells: int | tuple[int, int] | None, window_px: int | None, stride: int, *, layer: str = "LocalContextNorm"
) -> tuple[int, int]:
    """Return rows and columns of a window that is given in cells, or in input pixels at a stride."""
    if (window_cells is None) == (window_px is None):
        raise InvalidConfigError(
            f"{layer} takes window_px (in pixels of the input image) or window_cells (in cells of each "
            f"map), got window_px={window_px} and window_cells={window_cells}. window_px=31 is a good start."
        )
    if window_px is not None:
        if window_px < 1:
            raise InvalidConfigError(f"window_px must be at least 1, got {window_px}.")
        side = 2 * max(1, window_px // (2 * stride)) + 1
        return side, side
    rows, cols = (window_cells, window_cells) if isinstance(window_cells, int) else tuple(window_cells or ())
    if rows < 1 or cols < 1:
        raise InvalidConfigError(f"window_cells must be at least 1, got {window_cells}.")
    return rows, cols


def statistics_of(x: Tensor, group_size: int, window: list[int], border: str) -> tuple[Tensor, Tensor]:
    """Return what `local_statistics` does, in operators of torch alone where these are wanted."""
    if portable.plain_operators_wanted():
        return portable.local_statistics(x, group_size, window, border)
    return local_statistics(x, group_size, window, border)


# One opaque operator: the geometry tracer and torch.compile see a window, not a hundred slices.
@torch.library.custom_op("geonorm::local_context_norm", mutates_args=())
def local_context_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    group_size: int,
    window: list[int],
    border: str,
    eps: float,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalized map, and mean and reciprocal deviation of each group, ``(N, groups, H, W)``.

    The latter two only if ``keep``; they are empty otherwise.
    """
    size = (window[0], window[1])
    loops = loops_for(x)
    if loops is not None:
        kept = loops.MEAN_AND_RSTD if keep else loops.NOTHING
        return compiled.forward(loops, x, weight, bias, group_size, size, border, eps, keep=kept)
    kernels = gpu.kernels_for(x, size)
    if kernels is not None:
        return gpu.forward(kernels, x, weight, bias, group_size, size, border, eps, keep=keep)
    wide = wide_dtype(x.dtype)
    y = torch.empty_like(x)
    mean, rstd = _empty_planes(x, group_size, keep), _empty_planes(x, group_size, keep)

    for sample, groups, rows in _chunks(x, group_size, size, border):
        channels = slice(groups.start * group_size, groups.stop * group_size)
        block, first = _block_of(x, sample, groups, rows, group_size, size, border)
        local_mean, local_var = local_moments(block, window=size, border=border, height=x.shape[2], rows=rows)
        local_rstd = local_var.add_(eps).rsqrt_()
        centre = block[:, :, rows.start - first : rows.stop - first]
        out = (centre - local_mean[:, None]).mul_(local_rstd[:, None])
        out.mul_(_per_channel(weight, channels, group_size, wide))
        out.add_(_per_channel(bias, channels, group_size, wide))

        where = (slice(rows.start, rows.stop), slice(None))
        y[(sample, channels, *where)] = out.flatten(0, 1)
        if keep:
            mean[(sample, groups, *where)] = local_mean
            rstd[(sample, groups, *where)] = local_rstd
    return y, mean, rstd


def local_context_norm_of_rows(
    rows: range,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    group_size: int,
    window: list[int],
    border: str,
    eps: float,
) -> Tensor:
    """Return some rows of the normalized map, ``(N, C, len(rows), W)``, with the bits that they have in all of it.

    Their windows reach beyond them, so those rows of x are there too, but they are not normalized. Without gradients.
    """
    loops = loops_for(x)
    if loops is None:
        y = local_context_norm(x, weight, bias, group_size, window, border, eps, keep=False)[0]
    else:
        size = (window[0], window[1])
        y = compiled.forward(loops, x, weight, bias, group_size, size, border, eps, keep=loops.NOTHING, wanted=rows)[0]
    return y[:, :, rows.start : rows.stop]


@local_context_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    group_size: int,
    window: list[int],
    border: str,
    eps: float,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), _empty_planes(x, group_size, keep), _empty_planes(x, group_size, keep)


@torch.library.custom_op("geonorm::local_context_norm_backward", mutates_args=())
def local_context_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    group_size: int,
    window: list[int],
    border: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, ``weight`` and ``bias``.

    With ``g = grad * weight``, ``z`` the normalized values, ``r`` the reciprocal deviation, sums over the group's
    channels, and ``box`` the sum over the windows that hold a cell, divided by their number of values:
    ``dx = g r - box(r sum(g) - (mean - c) q) - (x - c) box(q)``, ``q = r^2 sum(g z)``, for any constant c.
    """
    size = (window[0], window[1])
    loops = loops_for(x)
    if loops is not None:
        return compiled.backward(loops, grad, x, weight, mean, rstd, group_size, size, border)
    kernels = gpu.kernels_for(x, size)
    if kernels is not None:
        return gpu.backward(kernels, grad, x, weight, mean, rstd, group_size, size, border)
    wide = wide_dtype(x.dtype)
    share = share_of_window((x.shape[2], x.shape[3]), group_size, window=size, border=border, like=mean)
    grad_x = torch.empty_like(x)
    grad_weight = torch.zeros_like(weight, dtype=wide)
    grad_bias = torch.zeros_like(weight, dtype=wide)

    for sample, groups, _ in _chunks(x, group_size, size, border, split_rows=False):
        channels = slice(groups.start * group_size, groups.stop * group_size)
        block = x[sample, channels].to(wide).contiguous().unflatten(0, (-1, group_size))
        upstream = grad[sample, channels].to(wide).contiguous().unflatten(0, (-1, group_size))
        local_mean, local_rstd = mean[sample, groups], rstd[sample, groups]

        normalized = (block - local_mean[:, None]).mul_(local_rstd[:, None])
        grad_bias[channels] += upstream.sum((2, 3)).flatten()
        grad_weight[channels] += (upstream * normalized).sum((2, 3)).flatten()
        scaled = upstream * _per_channel(weight, channels, group_size, wide)
        q = normalized.mul_(scaled).sum(1).mul_(local_rstd).mul_(local_rstd)
        level = _level(local_mean)
        p = scaled.sum(1).mul_(local_rstd).sub_((local_mean - level).mul_(q))
        box_p = box_sum_adjoint(p.mul_(share), window=size, border=border)
        box_q = box_sum_adjoint(q.mul_(share), window=size, border=border)
        out = scaled.mul_(local_rstd[:, None]).sub_(box_p[:, None])
        out.sub_((block - level[:, None]).mul_(box_q[:, None]))
        grad_x[sample, channels] = out.flatten(0, 1)
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


@local_context_norm_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    group_size: int,
    window: list[int],
    border: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, ctx.group_size, ctx.window, ctx.border, *_ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, mean, rstd = ctx.saved_tensors
    if mean.shape[0] != x.shape[0]:
        raise RuntimeError("local_context_norm was traced or called without gradients, so it kept nothing for them.")
    grads = local_context_norm_backward(grad, x, weight, mean, rstd, ctx.group_size, ctx.window, ctx.border)
    return (*grads, None, None, None, None, None)


local_context_norm.register_autograd(_backward, setup_context=_save_for_backward)


@torch.library.custom_op("geonorm::local_statistics", mutates_args=())
def local_statistics(x: Tensor, group_size: int, window: list[int], border: str) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each group in the window of each cell, ``(N, groups, H, W)``."""
    size = (window[0], window[1])
    loops = loops_for(x)
    if loops is not None:
        one = x.new_ones(x.shape[1])
        _, mean, var = compiled.forward(loops, x, one, one, group_size, size, border, 0.0, keep=loops.MEAN_AND_VAR)
        return mean, var
    kernels = gpu.kernels_for(x, size)
    if kernels is not None:
        return gpu.statistics(kernels, x, group_size, size, border)
    mean, var = _empty_planes(x, group_size), _empty_planes(x, group_size)
    for sample, groups, rows in _chunks(x, group_size, size, border):
        where = (sample, groups, slice(rows.start, rows.stop))
        block, _ = _block_of(x, sample, groups, rows, group_size, size, border)
        mean[where], var[where] = local_moments(block, window=size, border=border, height=x.shape[2], rows=rows)
    return mean, var


@local_statistics.register_fake
def _(x: Tensor, group_size: int, window: list[int], border: str) -> tuple[Tensor, Tensor]:
    return _empty_planes(x, group_size), _empty_planes(x, group_size)


@torch.library.custom_op("geonorm::local_statistics_backward", mutates_args=())
def local_statistics_backward(
    grad_mean: Tensor, grad_var: Tensor, x: Tensor, mean: Tensor, group_size: int, window: list[int], border: str
) -> Tensor:
    """Return the gradient of ``x``.

    ``dx = box(grad_mean - 2 (mean - c) grad_var) + 2 (x - c) box(grad_var)`` for any constant c, with ``box`` the
    sum over the windows that hold a cell, divided by their number of values.
    """
    size = (window[0], window[1])
    share = share_of_window((x.shape[2], x.shape[3]), group_size, window=size, border=border, like=mean)
    grad_x = torch.empty_like(x)
    for sample, groups, _ in _chunks(x, group_size, size, border, split_rows=False):
        channels = slice(groups.start * group_size, groups.stop * group_size)
        block = x[sample, channels].to(mean.dtype).contiguous().unflatten(0, (-1, group_size))
        level = _level(mean[sample, groups])
        of_var = grad_var[sample, groups] * 2
        of_mean = grad_mean[sample, groups] - (mean[sample, groups] - level) * of_var
        box_mean = box_sum_adjoint(of_mean * share, window=size, border=border)
        box_var = box_sum_adjoint(of_var * share, window=size, border=border)
        out = (block - level[:, None]).mul_(box_var[:, None]).add_(box_mean[:, None])
        grad_x[sample, channels] = out.flatten(0, 1)
    return grad_x


@local_statistics_backward.register_fake
def _(
    grad_mean: Tensor, grad_var: Tensor, x: Tensor, mean: Tensor, group_size: int, window: list[int], border: str
) -> Tensor:
    return torch.empty_like(x)


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.group_size, ctx.window, ctx.border = inputs
    ctx.save_for_backward(x, output[0])


def _statistics_backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor | None, ...]:
    x, mean = ctx.saved_tensors
    grad = local_statistics_backward(grad_mean, grad_var, x, mean, ctx.group_size, ctx.window, ctx.border)
    return grad, None, None, None


local_statistics.register_autograd(_statistics_backward, setup_context=_save_statistics)


def _block_of(
    x: Tensor, sample: int, groups: slice, rows: range, group_size: int, window: tuple[int, int], border: str
) -> tuple[Tensor, int]:
    """Return what the windows of some rows reach, ``(groups, group_size, source rows, W)``, and its first row."""
    source = source_rows(window[0], border, x.shape[2], rows)
    channels = slice(groups.start * group_size, groups.stop * group_size)
    block = x[sample, channels, source.start : source.stop].to(wide_dtype(x.dtype)).contiguous()
    return block.unflatten(0, (-1, group_size)), source.start


def _level(mean: Tensor) -> Tensor:
    """Return a level of the map, ``(groups, 1, 1)``: any constant will do, this one keeps two terms from cancelling.

    A NaN or infinite cell must not reach beyond its windows by way of the level.
    """
    return mean.nanmean((1, 2)).nan_to_num(0.0, 0.0, 0.0)[:, None, None]


def _chunks(
    x: Tensor, group_size: int, window: tuple[int, int], border: str, *, split_rows: bool = True
) -> Iterator[tuple[int, slice, range]]:
    """Yield (sample, groups, rows) to be worked through one after the other; none changes another's numbers."""
    num, channels, height, width = x.shape
    num_groups = channels // group_size
    # In channels_last one read from memory brings neighbouring channels along: take 16 of them at least.
    least_groups = 1 if x.is_contiguous() else min(num_groups, max(1, 16 // group_size))
    at_once = min(num_groups, max(least_groups, CHUNK_VALUES // max(1, group_size * height * width)))
    row_values = at_once * group_size * width
    at_once_rows = max(2 * min(window[0], height), CHUNK_VALUES // row_values) if split_rows else height
    for sample in range(num):
        for group in range(0, num_groups, at_once):
            for row in range(0, height, at_once_rows):
                groups = slice(group, min(num_groups, group + at_once))
                yield sample, groups, range(row, min(height, row + at_once_rows))


def _per_channel(values: Tensor, channels: slice, group_size: int, dtype: torch.dtype) -> Tensor:
    return values[channels].to(dtype).view(-1, group_size, 1, 1)


def _empty_planes(x: Tensor, group_size: int, keep: bool = True) -> Tensor:
    num, channels, height, width = x.shape
    shape = (num, channels // group_size, height, width) if keep else (0, 0, 0, 0)
    return x.new_empty(shape, dtype=wide_dtype(x.dtype))
