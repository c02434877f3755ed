"""Which ways of computing a training step are cheaper on the CPU, and do they learn the same?

python benchmarks/training_options.py                        BN and LCN, batch 8 of 192 px, one thread

`ratio_to_shipped` is processor time. `loss_change` is the largest difference of the loss to that of the shipped way
over the first ten steps, from the same weights on the same patches.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial

import torch
from _alternate import alternate, print_ratios
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from geonorm.models import UNet
from geonorm.norms import BatchNorm, LocalContextNorm, NormFactory
from geonorm.tasks.losses import CrossEntropy

NORMS: dict[str, NormFactory] = {"BN": BatchNorm, "LCN_31px": partial(LocalContextNorm, window_px=31)}
STEPS = 10


class Way:
    """A network, its optimizer and how it sees its patches."""

    def __init__(
        self, norm: NormFactory, *, channels_last: bool = False, fused: bool = False, compile: bool = False
    ) -> None:
        """Start from the same weights as every other way."""
        torch.manual_seed(0)
        self.network = UNet(3, 2, norm=norm, depth=3, width=16)
        self.network.rescale.mean.fill_(127.5)
        self.network.rescale.deviation.fill_(70.0)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = self.network.to(memory_format=self.format)
        self.optimizer: Optimizer = Adam(self.network.parameters(), lr=1e-3, fused=fused or None)
        self.run: Callable[[Tensor], Tensor] = torch.compile(self.network) if compile else self.network
        self.loss: nn.Module = CrossEntropy()

    def step(self, image: Tensor, labels: Tensor) -> Tensor:
        """Train one step and return its loss."""
        self.optimizer.zero_grad()
        loss = self.loss(self.run(image.contiguous(memory_format=self.format)), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def main(options: argparse.Namespace) -> None:
    """Print one JSON line per norm and way."""
    torch.set_num_threads(options.threads)
    shape = (options.batch_size, 3, options.patch_px, options.patch_px)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator) * 255
    labels = (image.mean(1) > 127.5).long()
    for name, norm in NORMS.items():
        ways = {
            "shipped": Way(norm),
            "channels_last": Way(norm, channels_last=True),
            "fused": Way(norm, fused=True),
            "channels_last and fused": Way(norm, channels_last=True, fused=True),
            "compile": Way(norm, compile=True),
            "compile and channels_last": Way(norm, compile=True, channels_last=True),
        }
        losses = {way: torch.stack([one.step(image, labels) for _ in range(STEPS)]) for way, one in ways.items()}
        seconds = alternate({way: partial(one.step, image, labels) for way, one in ways.items()}, rounds=options.rounds)
        changes = {way: float((values - losses["shipped"]).abs().max()) for way, values in losses.items()}
        facts = {"benchmark": "training_options", "norm": name, "shape": shape}
        print(json.dumps({**facts, "loss_change": changes}), flush=True)
        print_ratios(seconds, to="shipped", **facts)


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _parser.add_argument("--batch-size", type=int, default=8)
    _parser.add_argument("--patch-px", type=int, default=192)
    _parser.add_argument("--threads", type=int, default=1)
    _parser.add_argument("--rounds", type=int, default=9)
    main(_parser.parse_args(sys.argv[1:]))
