"""Local Contrast Normalization with a Gaussian window."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from geonorm.errors import InvalidConfigError
from geonorm.norms.base import Norm, memory_format_of, wide_dtype


class LocalContrastNorm(Norm):
    """Subtract the Gaussian mean around each cell and divide by the Gaussian deviation, over all channels.

    ``v = x - mean_hw``; ``dev_hw = sqrt(var_hw + eps)`` in the same window, whose weights fall with a deviation of
    a quarter of its side and sum to 1; ``y = v / max(c, dev_hw) * weight_c + bias_c`` with ``c`` the mean of ``dev``
    over the map. That mean makes the answer depend on the whole tile.

    Source: Jarrett et al., ICCV 2009, section 3; Ortiz et al., CVPR 2020, equation (1).
    Differs: beyond the border the weights of the cells inside are renormalized (there: zeros), the deviation is
    around the window's own mean, and eps is added to the variance.

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; not used.
        window_cells: Side of the window, odd.
        eps: Added to the variance.

    Raises:
        InvalidConfigError: A window that is even or below 1.
    """

    def __init__(self, num_features: int, *, stride: int = 1, window_cells: int = 9, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)
        if window_cells < 1 or window_cells % 2 == 0:
            raise InvalidConfigError(f"window_cells must be odd and at least 1, got {window_cells}. 9 is usual.")
        self.window_cells = window_cells

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize a checked input with autocast off."""
        wide = wide_dtype(x.dtype)
        # A constant added to the map cancels before anything is squared.
        level = x.to(wide).mean(dim=(1, 2, 3), keepdim=True)
        values = x.to(wide) - level
        inside = self._blur(torch.ones(1, 1, *x.shape[2:], dtype=wide, device=x.device))
        mean = self._blur(values.mean(1, keepdim=True)) / inside
        # The mean of squares around the window's own mean, in terms of the deviations of single cells.
        squares = self._blur((values * values).mean(1, keepdim=True)) / inside
        var = (squares - mean * mean).clamp(min=0)
        # eps inside the root: the gradient of a bare root is infinite in a flat patch, such as one without data.
        dev = (var + self.eps).sqrt()
        y = (values - mean) / torch.maximum(dev, dev.mean(dim=(2, 3), keepdim=True))
        y = y * self.weight.to(wide)[:, None, None] + self.bias.to(wide)[:, None, None]
        return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))

    def _blur(self, plane: Tensor) -> Tensor:
        """Return the Gaussian sum around each cell, zeros beyond the border; ``plane`` is ``(N, 1, H, W)``."""
        half = self.window_cells // 2
        weights = [math.exp(-0.5 * (4 * at / self.window_cells) ** 2) for at in range(-half, half + 1)]
        # Sums, not a convolution: cuDNN may round the factors of a float32 convolution to 10 bits (TF32).
        for dim, margins in ((-2, (0, 0, half, half)), (-1, (half, half))):
            padded, length = pad(plane, margins), plane.shape[dim]
            parts = [padded.narrow(dim, start, length) * weight for start, weight in enumerate(weights)]
            plane = torch.stack(parts).sum(dim=0)
        return plane

    def extra_repr(self) -> str:
        """Return the settings that ``print(model)`` shows."""
        return f"{self.num_features}, window_cells={self.window_cells}, eps={self.eps}"
