"""Batch Normalization."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import batch_norm

from geonorm.norms.base import check_input, flatten_affine, memory_format_of, wide_dtype, without_autocast


class BatchNorm(nn.BatchNorm2d):
    """Normalize each channel over the batch; in evaluation by the running statistics.

    ``y = (x - mean_c) / sqrt(var_c + eps) * weight_c + bias_c``

    In evaluation this is one affine map per channel, so what a pixel is called does not depend on its tile.

    Source: Ioffe and Szegedy, ICML 2015, algorithms 1 and 2.
    Differs: statistics in float32 whatever autocast says. It stays a ``torch.nn.BatchNorm2d``, so the
    Trainer's ``sync_batchnorm`` finds it.

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; not used.
        eps: Added to the variance.
        momentum: Share of the newest batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, num_features: int, *, stride: int = 1, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input``, shape ``(N, C, H, W)``."""
        check_input(input, num_features=self.num_features, layer="BatchNorm")
        wide = wide_dtype(input.dtype)
        x = input.to(wide)
        if self.training:
            # torch's channels_last kernel on the CPU loses the variance of large means.
            x = x.contiguous()
            self.num_batches_tracked.add_(1)
        mean, var = self.running_mean.to(wide), self.running_var.to(wide)
        with without_autocast(input):
            weight, bias = self.weight.to(wide), self.bias.to(wide)
            y = batch_norm(x, mean, var, weight, bias, self.training, self.momentum, self.eps)
        if self.training and wide != self.running_mean.dtype:
            self.running_mean.copy_(mean)
            self.running_var.copy_(var)
        return y.to(input.dtype).contiguous(memory_format=memory_format_of(input))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        flatten_affine(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
