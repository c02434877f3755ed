"""What does a training step of the configuration run/cpu.yaml cost with each norm, beside Batch Norm?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from _alternate import alternate, print_ratios
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer

from geonorm.models import UNet
from geonorm.norms import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalContextNorm,
    NormFactory,
    SwitchableNorm,
)

PATCHES = (4, 3, 192, 192)
ROUNDS = 7


def main() -> None:
    """Print one JSON line per norm."""
    torch.set_num_threads(1)
    norms: dict[str, NormFactory] = {
        "BN": BatchNorm,
        "GN": GroupNorm,
        "IN": InstanceNorm,
        "LN": LayerNorm,
        "SN": SwitchableNorm,
        "LCN_31px": partial(LocalContextNorm, window_px=31),
    }
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(PATCHES, generator=generator) * 255
    labels = torch.randint(0, 2, (PATCHES[0], *PATCHES[2:]), generator=generator)
    ways: dict[str, Callable[[], object]] = {}
    for name, norm in norms.items():
        network = UNet(3, 2, norm=norm, depth=3, width=16)
        network.rescale.mean.fill_(127.5)
        network.rescale.deviation.fill_(70.0)
        ways[name] = partial(step, network, Adam(network.parameters()), image, labels)
    seconds = alternate(ways, rounds=ROUNDS)
    print_ratios(seconds, to="BN", benchmark="training_step", shape=PATCHES, network="UNet depth 3 width 16")


def step(network: UNet, optimizer: Optimizer, image: Tensor, labels: Tensor) -> None:
    """Train one step."""
    optimizer.zero_grad()
    cross_entropy(network(image), labels).backward()
    optimizer.step()


if __name__ == "__main__":
    main()
