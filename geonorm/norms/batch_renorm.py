"""Batch Renormalization."""

from __future__ import annotations

import torch
from torch import Tensor

from geonorm.errors import InvalidConfigError
from geonorm.norms.base import Norm, memory_format_of, wide_dtype
from geonorm.norms.synchronized import batch_moments, move_running, unbiased


class BatchRenorm(Norm):
    """Normalize by the batch's statistics, corrected towards the running ones; in evaluation by the running ones.

    ``y = ((x - mean_c) / dev_c * r_c + d_c) * weight_c + bias_c`` with
    ``r = clip(dev / running_dev, 1 / r_max, r_max)`` and
    ``d = clip((mean - running_mean) / running_dev, -d_max, d_max)``; no gradient flows through r and d.

    For the first ``warmup_steps`` training steps r is 1 and d is 0 (Batch Norm); then the bounds rise linearly and
    reach ``r_max`` and ``d_max`` at the last of ``ramp_steps`` steps. While r and d are within their bounds, a
    pixel's answer in training does not depend on the rest of its batch, so training and evaluation agree.

    Source: Ioffe, NeurIPS 2017, algorithm 1; bounds of Wu and He, ECCV 2018, section 4.1.
    Differs: the variance, not the deviation, is averaged, as in Batch Norm, so that its statistics load.

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; not used.
        r_max: Bound of the scale correction, at least 1.
        d_max: Bound of the shift correction, at least 0.
        warmup_steps: Training steps as plain Batch Norm.
        ramp_steps: Training steps over which the bounds open.
        eps: Added to the variance.
        momentum: Share of the newest batch in the running statistics.

    Raises:
        InvalidConfigError: A bound or a number of steps out of range.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        stride: int = 1,
        r_max: float = 1.5,
        d_max: float = 0.5,
        warmup_steps: int = 500,
        ramp_steps: int = 2000,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps=eps)
        if r_max < 1 or d_max < 0:
            raise InvalidConfigError(f"BatchRenorm needs r_max >= 1 and d_max >= 0, got {r_max} and {d_max}.")
        if warmup_steps < 0 or ramp_steps < 0:
            raise InvalidConfigError(
                f"warmup_steps and ramp_steps must not be negative, got {warmup_steps} and {ramp_steps}."
            )
        self.r_max = r_max
        self.d_max = d_max
        self.warmup_steps = warmup_steps
        self.ramp_steps = ramp_steps
        self.momentum = momentum
        self.synchronized = False
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def bounds(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return the bounds of r and d at the training step to come."""
        ramped = (self.num_batches_tracked + 1 - self.warmup_steps).to(dtype)
        opened = (ramped / max(1, self.ramp_steps)).clamp(0, 1)
        return 1 + opened * (self.r_max - 1), opened * self.d_max

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize a checked input with autocast off."""
        wide = wide_dtype(x.dtype)
        values = x.to(wide).contiguous()
        running_mean = self.running_mean.to(wide)
        running_dev = (self.running_var.to(wide) + self.eps).sqrt()
        if self.training:
            var_in, mean_in = torch.var_mean(values, dim=(2, 3), correction=0)
            cells = values.shape[2] * values.shape[3]
            mean, var, count = batch_moments(mean_in, var_in, cells=cells, synchronized=self.synchronized)
            dev = (var + self.eps).sqrt()
            r_bound, d_bound = self.bounds(wide)
            r = computed_once((dev / running_dev).detach().clamp(1 / r_bound, r_bound))
            d = computed_once(((mean - running_mean) / running_dev).detach().clamp(-d_bound, d_bound))
            scale, shift = r / dev, d
            move_running(self.running_mean, self.running_var, mean, unbiased(var, count), momentum=self.momentum)
            self.num_batches_tracked += 1
        else:
            mean, scale, shift = running_mean, 1 / running_dev, torch.zeros_like(running_mean)
        y = (values - mean[:, None, None]) * scale[:, None, None] + shift[:, None, None]
        y = y * self.weight.to(wide)[:, None, None] + self.bias.to(wide)[:, None, None]
        return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))

    def extra_repr(self) -> str:
        """Return the settings that ``print(model)`` shows."""
        return f"{self.num_features}, r_max={self.r_max}, d_max={self.d_max}, eps={self.eps}, momentum={self.momentum}"


# One opaque operator: torch.compile computes cheap values again in the backward pass, and would take r and d from
# running statistics that have moved on by then (silently wrong gradients, seen with torch 2.14).
@torch.library.custom_op("geonorm::computed_once", mutates_args=())
def computed_once(values: Tensor) -> Tensor:
    """Return a copy that a compiled backward pass takes from the forward pass."""
    return values.clone()


@computed_once.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)
