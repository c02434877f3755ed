"""Which ways of computing a training step are cheaper on the CPU, and do they learn the same?

python benchmarks/training_options.py                        BN and LCN, batch 8 of 192 px, one thread
python benchmarks/training_options.py --norms BN --ways compile

The ratio is processor time beside the step as it is shipped. `loss_change` is the largest difference of the loss to
that way's over the first ten steps, from the same weights on the same patches; these steps take `first_seconds`
by the clock, compiling included. `compile` is what `geonorm fit --model.compile_network true` does. The limit is that
of the convolutions, forward and back, at the most operations this machine computes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from _alternate import alternate
from _limits import flops_of, limit_of_flops
from _lines import print_ratios
from _options import option_parser, parse
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from geonorm.models import UNet
from geonorm.models.compiled import compiled
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
        self.run: Callable[[Tensor], Tensor] = compiled(self.network) if compile else self.network
        self.loss: nn.Module = CrossEntropy()

    def step(self, image: Tensor, labels: Tensor) -> Tensor:
        """Train one step and return its loss."""
        self.optimizer.zero_grad()
        loss = self.loss(self.run(image.contiguous(memory_format=self.format)), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


SHIPPED = "shipped"
WAYS: dict[str, Callable[[NormFactory], Way]] = {
    SHIPPED: Way,
    "channels_last": partial(Way, channels_last=True),
    "fused": partial(Way, fused=True),
    "channels_last and fused": partial(Way, channels_last=True, fused=True),
    "compile": partial(Way, compile=True),
    "compile and channels_last": partial(Way, compile=True, channels_last=True),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    batch_size: int = 8
    """Patches."""
    patch_px: int = 192
    """Their side."""
    norms: tuple[str, ...] = tuple(NORMS)
    """Of the network."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Beside the shipped one."""
    threads: int = 1
    """Of torch."""
    rounds: int = 9
    """Of measuring."""


QUICK = {"batch_size": 4, "rounds": 3, "ways": ("channels_last", "fused", "compile"), "norms": ("BN",)}


def main(case: Case) -> None:
    """Print one JSON line per norm and way."""
    torch.set_num_threads(case.threads)
    shape = (case.batch_size, 3, case.patch_px, case.patch_px)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator) * 255
    labels = (image.mean(1) > 127.5).long()
    for name in case.norms:
        ways = {way: make(NORMS[name]) for way, make in WAYS.items() if way in (SHIPPED, *case.ways)}
        limit = limit_of_flops(flops_of(partial(WAYS[SHIPPED](NORMS[name]).step, image, labels)))
        losses, first = {}, {}
        for way, one in ways.items():
            began = time.monotonic()
            losses[way] = torch.stack([one.step(image, labels) for _ in range(STEPS)])
            first[way] = time.monotonic() - began
        print_ratios(
            alternate({way: partial(one.step, image, labels) for way, one in ways.items()}, rounds=case.rounds),
            {
                way: {
                    "loss_change": float((values - losses[SHIPPED]).abs().max()),
                    "first_seconds": round(first[way], 2),
                }
                for way, values in losses.items()
            },
            to=SHIPPED,
            benchmark="training_options",
            case=f"{name}, {' x '.join(map(str, shape))}",
            limit=limit,
            norm=name,
            shape=shape,
        )


if __name__ == "__main__":
    _parser = option_parser(__doc__, Case(), choices={"norms": list(NORMS), "ways": list(WAYS)})
    main(parse(_parser, Case, sys.argv[1:], quick=QUICK)[0])
