"""Feature maps and layers with values that give nothing away: no symmetry, no ones, no zeros."""

from typing import TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


def random_map(
    samples: int,
    channels: int,
    height: int,
    width: int,
    *,
    mean: float = 0.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Tensor:
    """Return noise of unit deviation around `mean`, the same values for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, channels, height, width, generator=generator, dtype=torch.float64)
    return (noise + mean).to(dtype)


def scene(channels: int, height: int, width: int, *, mean: float = 0.0) -> Tensor:
    """Return one sample of unit noise on gentle slopes around `mean`, float32."""
    rows = torch.linspace(0, 3, height, dtype=torch.float64)[:, None]
    cols = torch.linspace(0, 5, width, dtype=torch.float64)
    noise = random_map(1, channels, height, width, dtype=torch.float64)
    return (noise + rows.sin() * cols.cos() + mean).float()


def with_random_state(layer: Layer, *, seed: int = 1) -> Layer:
    """Fill weights, biases, control parameters and running statistics with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(layer.state_dict().items()):
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(noise + 0.5 if name in {"weight", "running_var"} else noise - 0.5)
    return layer


def relative_rms(value: Tensor, *, expected: Tensor) -> float:
    """Return the root mean square of the error, relative to that of the expected values."""
    return float((value.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt())
