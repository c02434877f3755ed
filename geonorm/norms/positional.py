"""Positional Normalization: statistics over the channels of each cell."""

from __future__ import annotations

import torch
from torch import Tensor

from geonorm.norms.base import Norm, memory_format_of, wide_dtype


class PositionalNorm(Norm):
    """Normalize each cell over its channels.

    ``y = (x - mean_nhw) / sqrt(var_nhw + eps) * weight_c + bias_c``, biased variance. A cell's answer depends on
    nothing beside it, so this norm adds nothing to the halo.

    Source: Li et al., NeurIPS 2019, equations (1) and (2).
    Differs: the affine map is per channel, for maps of any size (there: per cell of a fixed map, or none), and the
    variance is biased.

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; not used.
        eps: Added to the variance.
    """

    def __init__(self, num_features: int, *, stride: int = 1, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize a checked input with autocast off."""
        wide = wide_dtype(x.dtype)
        values = x.to(wide)
        var, mean = torch.var_mean(values, dim=1, correction=0, keepdim=True)
        y = (values - mean) * torch.rsqrt(var + self.eps)
        y = y * self.weight.to(wide)[:, None, None] + self.bias.to(wide)[:, None, None]
        return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))
