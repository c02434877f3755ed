"""What does a norm cost beside torch's GroupNorm, forward and backward, on the CPU?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from _alternate import alternate, print_ratios
from torch import Tensor, nn

from geonorm.norms import GroupNorm, LocalContextNorm, SwitchableNorm

SHAPES = ((4, 64, 256, 256), (1, 32, 1024, 1024))
GROUP_SIZE = 4
ROUNDS = 7


def main() -> None:
    """Print one JSON line per shape, direction and norm."""
    torch.set_num_threads(1)
    for shape in SHAPES:
        channels = shape[1]
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        layers: dict[str, nn.Module] = {
            "torch_GroupNorm": nn.GroupNorm(channels // GROUP_SIZE, channels),
            "GroupNorm": GroupNorm(channels, group_size=GROUP_SIZE),
            "SwitchableNorm": SwitchableNorm(channels),
            "LocalContextNorm_31": LocalContextNorm(channels, window_cells=31, group_size=GROUP_SIZE),
            "LocalContextNorm_91": LocalContextNorm(channels, window_cells=91, group_size=GROUP_SIZE),
        }
        for direction, run in (("forward", forward), ("forward+backward", forward_backward)):
            ways: dict[str, Callable[[], object]] = {name: partial(run, layer, x) for name, layer in layers.items()}
            seconds = alternate(ways, rounds=ROUNDS)
            print_ratios(seconds, to="torch_GroupNorm", benchmark="norm_layer", shape=shape, direction=direction)


@torch.no_grad()
def forward(layer: nn.Module, x: Tensor) -> None:
    """Run the layer."""
    layer(x)


def forward_backward(layer: nn.Module, x: Tensor) -> None:
    """Run the layer, and back from the sum of its output weighted by its input."""
    leaf = x.detach().requires_grad_()
    (layer(leaf) * x).sum().backward()


if __name__ == "__main__":
    main()
