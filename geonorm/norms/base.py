"""What every norm does alike: check its input, keep its format, load old weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError


class Norm(nn.Module, ABC):
    """A normalization of ``(N, C, H, W)`` with one ``weight`` and one ``bias`` per channel.

    The result has the shape, dtype and memory format of the input; the input is never written to.
    Autocast is off inside, so statistics are taken in float32 or wider.
    """

    def __init__(self, num_features: int, *, eps: float) -> None:
        super().__init__()
        if num_features < 1:
            raise InvalidConfigError(f"num_features must be at least 1, got {num_features}.")
        if not eps > 0:
            raise InvalidConfigError(f"eps must be greater than 0, got {eps}. 1e-5 is usual.")
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, shape ``(N, C, H, W)``."""
        check_input(x, num_features=self.num_features, layer=type(self).__name__)
        with without_autocast(x):
            return self.normalize(x)

    @abstractmethod
    def normalize(self, x: Tensor) -> Tensor:
        """Normalize a checked input with autocast off."""

    def extra_repr(self) -> str:
        """Return the settings that ``print(model)`` shows."""
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        flatten_affine(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast is off for the device of ``x``, if that device knows it."""
    device = x.device.type
    known = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()


def check_input(x: Tensor, *, num_features: int, layer: str) -> None:
    """Raise `InvalidConfigError` unless ``x`` is ``(N, num_features, H, W)``."""
    if x.dim() != 4 or x.shape[1] != num_features:
        raise InvalidConfigError(f"{layer}({num_features}) takes (N, {num_features}, H, W), got {tuple(x.shape)}.")


def flatten_affine(state_dict: dict[str, Any], prefix: str) -> None:
    """Give ``weight`` and ``bias`` of shape ``(1, C, 1, 1)`` (the released LCN and SN) the shape ``(C,)``."""
    for name in ("weight", "bias"):
        value = state_dict.get(prefix + name)
        if isinstance(value, Tensor) and value.dim() == 4 and value.numel() == value.shape[1]:
            state_dict[prefix + name] = value.flatten()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype statistics of ``dtype`` are taken in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return the memory format a result must have to match ``x``, which may be a slice of a larger tensor."""
    channels_last = x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
