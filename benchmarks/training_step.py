"""What does a training step of the configuration run/cpu.yaml cost with each norm, beside Batch Norm?

python benchmarks/training_step.py

The limit is that of the convolutions, forward and back, at the most operations this machine computes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from _alternate import alternate
from _limits import flops_of, limit_of_flops
from _lines import print_ratios
from _options import option_parser, parse
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


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    side_px: int = 192
    """Of the patches."""
    rounds: int = 7
    """Of measuring."""
    threads: int = 1
    """Of torch."""


def main(case: Case) -> None:
    """Print one JSON line per norm."""
    torch.set_num_threads(case.threads)
    norms: dict[str, NormFactory] = {
        "BN": BatchNorm,
        "GN": GroupNorm,
        "IN": InstanceNorm,
        "LN": LayerNorm,
        "SN": SwitchableNorm,
        "LCN_31px": partial(LocalContextNorm, window_px=31),
    }
    patches = (4, 3, case.side_px, case.side_px)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(patches, generator=generator) * 255
    labels = torch.randint(0, 2, (patches[0], *patches[2:]), generator=generator)
    ways: dict[str, Callable[[], object]] = {}
    for name, norm in norms.items():
        network = UNet(3, 2, norm=norm, depth=3, width=16)
        network.rescale.mean.fill_(127.5)
        network.rescale.deviation.fill_(70.0)
        ways[name] = partial(step, network, Adam(network.parameters()), image, labels)
    seconds = alternate(ways, rounds=case.rounds)
    print_ratios(
        seconds,
        to="BN",
        benchmark="training_step",
        case=f"{' x '.join(map(str, patches))}, U-Net depth 3 width 16",
        limit=limit_of_flops(flops_of(ways["BN"])),
        shape=patches,
    )


def step(network: UNet, optimizer: Optimizer, image: Tensor, labels: Tensor) -> None:
    """Train one step."""
    optimizer.zero_grad()
    cross_entropy(network(image), labels).backward()
    optimizer.step()


if __name__ == "__main__":
    main(parse(option_parser(__doc__, Case()), Case, sys.argv[1:], quick={"rounds": 3})[0])
