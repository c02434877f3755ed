"""Group, Layer and Instance Normalization: statistics over the whole map."""

from __future__ import annotations

import torch
from torch import Tensor

from geonorm.errors import InvalidConfigError
from geonorm.norms.base import Norm, memory_format_of, wide_dtype


class GroupNorm(Norm):
    """Normalize each group of consecutive channels over the whole map.

    ``y = (x - mean_ng) / sqrt(var_ng + eps) * weight_c + bias_c``, biased variance.

    Source: Wu and He, ECCV 2018, equations (1) to (7).
    Differs: always computed in NCHW, because torch's channels_last kernel on the CPU loses the variance of
    large means (errors above 1000 for mean 1000 and deviation 1); the result has the input's format.

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; not used.
        num_groups: Groups of channels; must divide C. Give this or ``group_size``.
        group_size: Channels per group; must divide C. 4 where neither is given.
        eps: Added to the variance.

    Raises:
        InvalidConfigError: C cannot be divided so.
    """

    def __init__(
        self,
        num_features: int,
        *,
        stride: int = 1,
        num_groups: int | None = None,
        group_size: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(num_features, eps=eps)
        if num_groups is not None and group_size is not None:
            raise InvalidConfigError(
                f"GroupNorm takes num_groups or group_size, got both ({num_groups} and {group_size})."
            )
        if num_groups is None:
            num_groups = num_features // check_group_size(num_features, 4 if group_size is None else group_size)
        elif num_groups < 1 or num_features % num_groups:
            raise InvalidConfigError(
                f"num_groups must divide the channels, got num_groups={num_groups} with {num_features} channels. "
                "group_size=4 fits every width that is a multiple of 4."
            )
        self.num_groups = num_groups

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize a checked input with autocast off."""
        wide = wide_dtype(x.dtype)
        # torch.group_norm, not F.group_norm: the latter refuses maps of one pixel, where the result is the bias.
        y = torch.group_norm(
            x.to(wide).contiguous(), self.num_groups, self.weight.to(wide), self.bias.to(wide), self.eps
        )
        return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))

    def extra_repr(self) -> str:
        """Return the settings that ``print(model)`` shows."""
        return f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}"


class LayerNorm(GroupNorm):
    """Normalize over all channels and the whole map (C, H, W), as the GN and SN papers define LN.

    ``y = (x - mean_n) / sqrt(var_n + eps) * weight_c + bias_c``, biased variance.

    Source: Ba et al., 2016, as used by Wu and He, ECCV 2018, equation (5).
    Differs: ``torch.nn.LayerNorm`` normalizes the last dimensions of a fixed size; this takes any map.

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; not used.
        eps: Added to the variance.
    """

    def __init__(self, num_features: int, *, stride: int = 1, eps: float = 1e-5) -> None:
        super().__init__(num_features, num_groups=1, eps=eps)


class InstanceNorm(GroupNorm):
    """Normalize each channel over the whole map (H, W).

    ``y = (x - mean_nc) / sqrt(var_nc + eps) * weight_c + bias_c``, biased variance.

    Source: Ulyanov et al., 2016, as used by Wu and He, ECCV 2018, equation (6).
    Differs: has a weight and a bias, and takes maps of one pixel (the result is the bias).

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; not used.
        eps: Added to the variance.
    """

    def __init__(self, num_features: int, *, stride: int = 1, eps: float = 1e-5) -> None:
        super().__init__(num_features, num_groups=num_features, eps=eps)


def check_group_size(num_features: int, group_size: int) -> int:
    """Return ``group_size`` if it divides the channels."""
    if group_size < 1 or num_features % group_size:
        sizes = [size for size in range(1, num_features + 1) if num_features % size == 0]
        raise InvalidConfigError(
            f"group_size must divide the channels, got group_size={group_size} with {num_features} channels. "
            f"Possible: {', '.join(map(str, sizes))}."
        )
    return group_size
