"""The norms as their papers define them, slow and obvious.

Every oracle works in the precision of its input (the tests give float64), is written without looking at
geonorm, and can be differentiated by autograd, so that one definition checks numbers and gradients.
"""

import math
from typing import Literal

import torch
from torch import Tensor

EPS = 1e-5
Border = Literal["nearest", "clip"]
Span = tuple[int, int]  # first cell, cell after the last


def batch_norm(x: Tensor, *, weight: Tensor, bias: Tensor, eps: float = EPS) -> Tensor:
    """Return `x` standardized over samples and cells: the training mode."""
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
    return scaled((x - mean) / torch.sqrt(variance + eps), weight=weight, bias=bias)


def frozen_batch_norm(
    x: Tensor, *, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float = EPS
) -> Tensor:
    """Return `x` standardized with the given statistics of each channel: the evaluation mode."""
    centred = x - mean.reshape(1, -1, 1, 1)
    return scaled(centred / torch.sqrt(variance.reshape(1, -1, 1, 1) + eps), weight=weight, bias=bias)


def batch_renorm(
    x: Tensor,
    *,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    r_max: float,
    d_max: float,
    eps: float = EPS,
) -> Tensor:
    """Return the training mode of Batch Renorm (Ioffe, algorithm 1) where r and d have these bounds."""
    channels = []
    for channel, old_mean, old_var in zip(x.unbind(dim=1), running_mean, running_var, strict=True):
        mean = channel.mean()
        deviation = torch.sqrt((channel - mean).square().mean() + eps)
        old_deviation = math.sqrt(old_var.item() + eps)
        # Numbers, not tensors: no gradient flows through them.
        r = min(max(deviation.item() / old_deviation, 1 / r_max), r_max)
        d = min(max((mean.item() - old_mean.item()) / old_deviation, -d_max), d_max)
        channels.append((channel - mean) / deviation * r + d)
    return scaled(torch.stack(channels, dim=1), weight=weight, bias=bias)


def instance_norm(x: Tensor, *, weight: Tensor, bias: Tensor, eps: float = EPS) -> Tensor:
    """Return `x` standardized over the cells of each channel of each sample."""
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    return scaled((x - mean) / torch.sqrt(variance + eps), weight=weight, bias=bias)


def layer_norm(x: Tensor, *, weight: Tensor, bias: Tensor, eps: float = EPS) -> Tensor:
    """Return `x` standardized over the channels and cells of each sample."""
    variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    return scaled((x - mean) / torch.sqrt(variance + eps), weight=weight, bias=bias)


def group_norm(x: Tensor, *, weight: Tensor, bias: Tensor, group_size: int, eps: float = EPS) -> Tensor:
    """Return `x` standardized over `group_size` consecutive channels and all cells of each sample."""
    normal = []
    for group in x.split(group_size, dim=1):
        variance, mean = torch.var_mean(group, dim=(1, 2, 3), correction=0, keepdim=True)
        normal.append((group - mean) / torch.sqrt(variance + eps))
    return scaled(torch.cat(normal, dim=1), weight=weight, bias=bias)


def positional_norm(x: Tensor, *, weight: Tensor, bias: Tensor, eps: float = EPS) -> Tensor:
    """Return `x` standardized over the channels of each cell of each sample (Li et al.)."""
    mean = x.sum(dim=1, keepdim=True) / x.shape[1]
    variance = (x - mean).square().sum(dim=1, keepdim=True) / x.shape[1]
    return scaled((x - mean) / torch.sqrt(variance + eps), weight=weight, bias=bias)


def local_contrast_norm(x: Tensor, *, weight: Tensor, bias: Tensor, window: int, eps: float = EPS) -> Tensor:
    """Return `x` less the Gaussian mean around each cell, over the Gaussian deviation there (Jarrett et al.).

    Mean and deviation are over all channels. No cell is divided by less than the mean deviation of its sample.
    """
    height, width = x.shape[2:]
    means, deviations = [], []
    for row in range(height):
        for col in range(width):
            share = gaussian(height, row, window)[:, None] * gaussian(width, col, window) / x.shape[1]
            mean = (x * share).sum(dim=(1, 2, 3), keepdim=True)
            means.append(mean)
            deviations.append(torch.sqrt(((x - mean).square() * share).sum(dim=(1, 2, 3), keepdim=True) + eps))
    mean = torch.cat(means, dim=3).reshape(-1, 1, height, width)
    deviation = torch.cat(deviations, dim=3).reshape(-1, 1, height, width)
    least = deviation.mean(dim=(2, 3), keepdim=True)
    return scaled((x - mean) / torch.maximum(deviation, least), weight=weight, bias=bias)


def gaussian(length: int, centre: int, window: int) -> Tensor:
    """Return the weights along one axis of the window around `centre`, 0 outside it; those on the axis sum to 1."""
    away = (torch.arange(length) - centre).double()
    weights = torch.exp(-((away / (window / 4)) ** 2) / 2) * (away.abs() <= window // 2)
    return weights / weights.sum()


def switchable_norm(
    x: Tensor,
    *,
    weight: Tensor,
    bias: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    eps: float = EPS,
) -> Tensor:
    """Return `x` standardized by a mix of the statistics of IN, LN and BN (Luo et al.).

    The statistics of BN are those of the batch, or the running ones where they are given.
    """
    var_in, mean_in = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    var_ln, mean_ln = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    var_bn, mean_bn = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
    if running_mean is not None and running_var is not None:
        mean_bn, var_bn = running_mean.reshape(1, -1, 1, 1), running_var.reshape(1, -1, 1, 1)
    for_mean, for_var = torch.softmax(mean_weight, dim=0), torch.softmax(var_weight, dim=0)
    mean = for_mean[0] * mean_in + for_mean[1] * mean_ln + for_mean[2] * mean_bn
    variance = for_var[0] * var_in + for_var[1] * var_ln + for_var[2] * var_bn
    return scaled((x - mean) / torch.sqrt(variance + eps), weight=weight, bias=bias)


def local_context_norm(
    x: Tensor,
    *,
    weight: Tensor,
    bias: Tensor,
    window: tuple[int, int],
    group_size: int,
    border: Border = "nearest",
    eps: float = EPS,
) -> Tensor:
    """Return `x` standardized over `group_size` consecutive channels and the window of each cell.

    Args:
        x: Feature map, shape `(N, C, H, W)`.
        weight: Factor of each channel, shape `(C,)`.
        bias: Summand of each channel, shape `(C,)`.
        window: Rows and columns of the window, in cells.
        group_size: Channels that share their statistics.
        border: What happens where the window leaves the map, see `spans`.
        eps: Summand of the variance.
    """
    mean, variance = window_moments(x, window=window, group_size=group_size, border=border)
    normal = (x - per_channel(mean, group_size)) / torch.sqrt(per_channel(variance, group_size) + eps)
    return scaled(normal, weight=weight, bias=bias)


def window_moments(x: Tensor, *, window: tuple[int, int], group_size: int, border: Border) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of every cell's window, each `(N, C / group_size, H, W)`."""
    height, width = x.shape[2:]
    moments = [
        torch.stack(torch.var_mean(group[:, :, top:bottom, left:right], dim=(1, 2, 3), correction=0))
        for group in x.split(group_size, dim=1)
        for top, bottom in spans(height, window[0], border)
        for left, right in spans(width, window[1], border)
    ]
    variance, mean = torch.stack(moments, dim=-1).unflatten(-1, (-1, height, width))
    return mean, variance


def box_moments(x: Tensor, *, window: tuple[int, int], group_size: int, border: Border) -> tuple[Tensor, Tensor]:
    """Return what `window_moments` returns, for large maps: running sums in float64, mean removed first."""
    row_spans = torch.tensor(spans(x.shape[2], window[0], border))
    col_spans = torch.tensor(spans(x.shape[3], window[1], border))
    centre = x.double().mean(dim=(1, 2, 3), keepdim=True)
    groups = (x.double() - centre).unflatten(1, (-1, group_size))
    count = group_size * (row_spans[:, 1] - row_spans[:, 0])[:, None] * (col_spans[:, 1] - col_spans[:, 0])
    mean = box_sums(groups.sum(dim=2), row_spans=row_spans, col_spans=col_spans) / count
    square = box_sums(groups.square().sum(dim=2), row_spans=row_spans, col_spans=col_spans) / count
    return mean + centre, square - mean.square()


def box_sums(x: Tensor, *, row_spans: Tensor, col_spans: Tensor) -> Tensor:
    """Return the sum of every cell's window, from differences of running sums."""
    down = torch.nn.functional.pad(x.cumsum(dim=2), (0, 0, 1, 0))
    sums = down[:, :, row_spans[:, 1]] - down[:, :, row_spans[:, 0]]
    right = torch.nn.functional.pad(sums.cumsum(dim=3), (1, 0))
    return right[..., col_spans[:, 1]] - right[..., col_spans[:, 0]]


def spans(length: int, window: int, border: Border) -> list[Span]:
    """Return, for every cell of an axis, the cells that its window holds.

    The window is centred on its cell; an even one has its extra cell after. An axis shorter than the
    window is covered whole. Where a window leaves the axis, `nearest` moves it inside and `clip` cuts it.
    """
    if length < window:
        return [(0, length)] * length
    starts = [cell - (window - 1) // 2 for cell in range(length)]
    if border == "nearest":
        starts = [min(max(start, 0), length - window) for start in starts]
    return [(max(start, 0), min(start + window, length)) for start in starts]


def per_channel(statistic: Tensor, group_size: int) -> Tensor:
    """Return the statistic of each group once for each of its channels."""
    return statistic.repeat_interleave(group_size, dim=1)


def scaled(normal: Tensor, *, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `normal` times weight plus bias, channel by channel."""
    return normal * weight.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
