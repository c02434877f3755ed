"""Switchable Normalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geonorm.norms.base import Norm, memory_format_of, wide_dtype


class SwitchableNorm(Norm):
    """Mix the statistics of Instance, Layer and Batch Norm by learned ratios.

    ``y = (x - sum_k w_k mean_k) / sqrt(sum_k w'_k var_k + eps) * weight_c + bias_c``, k in (IN, LN, BN), with
    ``w = softmax(mean_weight)`` and ``w' = softmax(var_weight)``. In evaluation BN's statistics are the running
    ones; IN's and LN's are still taken over the map, so a pixel's answer depends on its tile.

    Source: Luo et al., ICLR 2019 (journal version: equations (3) to (5)).
    Differs: the variances of LN and BN come from IN's in the centred form, ``var_ln = mean_c(var_in) +
    var_c(mean_in)``, because equation (4) as printed cancels for large means; variances are biased throughout;
    the running variance starts at 1 and ``momentum`` is torch's (the share of the newest batch).

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; not used.
        eps: Added to the variance.
        momentum: Share of the newest batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, stride: int = 1, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps)
        self.momentum = momentum
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize a checked input with autocast off."""
        wide = wide_dtype(x.dtype)
        values = x.to(wide)

        mean, var = self._mixed_statistics(values)
        scale = torch.rsqrt(var + self.eps) * self.weight.to(wide)
        y = (values - mean[..., None, None]) * scale[..., None, None] + self.bias.to(wide)[:, None, None]

        return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))

    def _mixed_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, each ``(N, C)``."""
        # Statistics of a contiguous copy: torch's reduction over channels_last maps loses accuracy.
        var_in, mean_in = torch.var_mean(x.contiguous(), dim=(2, 3), correction=0)

        spread, mean_ln = torch.var_mean(mean_in, dim=1, correction=0, keepdim=True)
        var_ln = var_in.mean(dim=1, keepdim=True) + spread

        if self.training:
            spread, mean_bn = torch.var_mean(mean_in, dim=0, correction=0)
            var_bn = var_in.mean(dim=0) + spread
            self._update_running(mean_bn, var_bn)
        else:
            mean_bn, var_bn = self.running_mean.to(x.dtype), self.running_var.to(x.dtype)

        mean_ratio = self.mean_weight.to(x.dtype).softmax(0)
        var_ratio = self.var_weight.to(x.dtype).softmax(0)
        mean = mean_ratio[0] * mean_in + mean_ratio[1] * mean_ln + mean_ratio[2] * mean_bn
        var = var_ratio[0] * var_in + var_ratio[1] * var_ln + var_ratio[2] * var_bn
        return mean, var

    def _update_running(self, mean: Tensor, var: Tensor) -> None:
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)

    def extra_repr(self) -> str:
        """Return the settings that ``print(model)`` shows."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"
