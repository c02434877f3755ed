"""The released LCN and SN layers, written anew from what is known of them, to be measured against."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, pad


class ReleasedLocalContextNorm(nn.Module):
    """Integral images over all channels, four corners by a dilated convolution, groups by another, group by group.

    The statistics have no gradient, and the input is written to, as in the released layer.
    """

    def __init__(self, num_features: int, *, window: int, group_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.window, self.group_size, self.eps = window, group_size, eps
        self.weight = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_features, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, which is overwritten."""
        window, size = self.window, self.group_size
        height, width = x.shape[2:]
        if window >= height or window >= width:
            groups = x.view(x.shape[0], -1, size * height * width)
            mean, var = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True)
            return ((groups - mean) / (var + self.eps).sqrt()).view(x.shape) * self.weight + self.bias
        with torch.no_grad():
            mean, square = self._box_means(x), self._box_means(x * x)
            var = square - mean * mean
            rows, cols = height - mean.shape[2], width - mean.shape[3]
            sides = (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2)
            mean, var = (pad(planes, sides, mode="replicate") for planes in (mean, var))
        for group in range(mean.shape[1]):
            channels = slice(group * size, (group + 1) * size)
            deviation = (var[:, group : group + 1] + self.eps).sqrt()
            x[:, channels] = (x[:, channels] - mean[:, group : group + 1]) / deviation
        return x * self.weight + self.bias

    def _box_means(self, x: Tensor) -> Tensor:
        integral = x.cumsum(2).cumsum(3)[:, None]
        corners = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).reshape(1, 1, 1, 2, 2)
        boxes = conv3d(integral, corners, dilation=(1, self.window, self.window))
        ones = torch.ones(1, 1, self.group_size, 1, 1)
        sums = conv3d(boxes, ones, stride=(self.group_size, 1, 1))[:, 0]
        return sums / (self.group_size * self.window**2)


class ReleasedSwitchNorm(nn.Module):
    """Each statistic and each mix an operation of its own on maps ``(N, C, H * W)``."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-5, momentum: float = 0.9) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.zeros(1, num_features, 1))
        self.register_buffer("running_var", torch.zeros(1, num_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` by statistics of the batch."""
        flat = x.view(*x.shape[:2], -1)
        mean_in, var_in = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True)
        second = var_in + mean_in**2
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = second.mean(1, keepdim=True) - mean_ln**2
        mean_bn = mean_in.mean(0, keepdim=True)
        var_bn = second.mean(0, keepdim=True) - mean_bn**2
        self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * mean_bn.detach())
        self.running_var.mul_(self.momentum).add_((1 - self.momentum) * var_bn.detach())
        for_mean, for_var = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean = for_mean[0] * mean_in + for_mean[1] * mean_ln + for_mean[2] * mean_bn
        var = for_var[0] * var_in + for_var[1] * var_ln + for_var[2] * var_bn
        return ((flat - mean) / (var + self.eps).sqrt()).view(x.shape) * self.weight + self.bias
