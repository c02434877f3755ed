"""Norms that take no statistics while they train: frozen Batch Norm, and none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from geonorm.norms.base import Norm, memory_format_of, wide_dtype


class FrozenBatchNorm(Norm):
    """Apply Batch Norm by statistics that never change (BN*): one affine map per channel, in training too.

    ``y = (x - running_mean_c) / sqrt(running_var_c + eps) * weight_c + bias_c``

    ``weight`` and ``bias`` learn; set ``requires_grad_(False)`` to freeze them as well. State dicts of
    ``torch.nn.BatchNorm2d`` load. Without loaded statistics it is the affine map alone.

    Source: Wu and He, ECCV 2018, section 4.2 (BN*); He et al., CVPR 2016.

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; not used.
        eps: Added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, stride: int = 1, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize a checked input with autocast off."""
        wide = wide_dtype(x.dtype)
        scale = torch.rsqrt(self.running_var.to(wide) + self.eps) * self.weight.to(wide)
        y = (x.to(wide) - self.running_mean.to(wide)[:, None, None]) * scale[:, None, None]
        y = y + self.bias.to(wide)[:, None, None]
        return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class NoNorm(nn.Identity):
    """Return the input: a network without normalization, to compare with.

    Args:
        num_features: Channels C; not used.
        stride: Input pixels per cell of this map; not used.
    """

    def __init__(self, num_features: int, *, stride: int = 1) -> None:
        super().__init__()
