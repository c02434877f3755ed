"""Batch Normalization."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from geonorm.errors import InvalidConfigError
from geonorm.norms.base import Norm, memory_format_of, wide_dtype
from geonorm.norms.synchronized import batch_moments, move_running, unbiased


class BatchNorm(Norm):
    """Normalize each channel over the batch; in evaluation by the running statistics.

    ``y = (x - mean_c) / sqrt(var_c + eps) * weight_c + bias_c``

    In evaluation this is one affine map per channel, so what a pixel is called does not depend on its tile.

    Source: Ioffe and Szegedy, ICML 2015, algorithms 1 and 2.
    Differs: statistics in float32 whatever autocast says; synchronized over processes on every device
    (`synchronize_norms`, or the Trainer's ``sync_batchnorm``), where ``torch.nn.SyncBatchNorm`` needs a GPU.
    State dicts of ``torch.nn.BatchNorm2d`` load.

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; not used.
        eps: Added to the variance.
        momentum: Share of the newest batch in the running statistics.

    Raises:
        InvalidConfigError: One value per channel in training (a batch of one sample, a map of one cell).
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, *, stride: int = 1, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps)
        self.momentum = momentum
        self.synchronized = False
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize a checked input with autocast off."""
        wide = wide_dtype(x.dtype)
        values = x.to(wide)
        mean, var = self.running_mean.to(wide), self.running_var.to(wide)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        if self.training:
            if not self.synchronized and values.shape[0] * values.shape[2] * values.shape[3] == 1:
                raise InvalidConfigError(
                    f"BatchNorm({self.num_features}) cannot train on one value per channel, got a map of "
                    f"{tuple(x.shape)}: it has no variance. Take a larger batch (--data.batch_size), larger "
                    "patches, or another norm, such as geonorm.norms.GroupNorm."
                )
            # torch's channels_last kernel on the CPU loses the variance of large means.
            values = values.contiguous()
            self.num_batches_tracked.add_(1)
        if self.training and self.synchronized:
            y = self._over_processes(values, weight, bias)
        else:
            y = batch_norm(values, mean, var, weight, bias, self.training, self.momentum, self.eps)
            if self.training and wide != self.running_mean.dtype:
                self.running_mean.copy_(mean)
                self.running_var.copy_(var)
        return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))

    def _over_processes(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, dim=(2, 3), correction=0)
        mean, var, count = batch_moments(mean, var, cells=x.shape[2] * x.shape[3], synchronized=True)
        move_running(self.running_mean, self.running_var, mean, unbiased(var, count), momentum=self.momentum)
        scale = torch.rsqrt(var + self.eps) * weight
        return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]

    def extra_repr(self) -> str:
        """Return the settings that ``print(model)`` shows."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"
