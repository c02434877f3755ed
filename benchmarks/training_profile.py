"""How much of a training's time goes elsewhere than into forward, backward and optimizer?

python benchmarks/training_profile.py                                      drawn cities, BN and LCN
python benchmarks/training_profile.py --threads 2 --workers 1 --steps 100

Time by the clock of one epoch after the first 10 steps. The ratio is that of a whole step, from the end of the one
before, to forward, backward and optimizer alone; `elsewhere` is the share outside them, `waiting` that between the end
of a step and the next batch's arrival. The limit is that of the convolutions, at the most operations this machine
computes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _limits import flops_of, limit_of_flops
from _lines import print_line
from _options import option_parser, parse
from lightning.pytorch import Callback, LightningModule, Trainer

from geonorm.data import InriaDataModule
from geonorm.data.drawn import write_inria_layout
from geonorm.models import UNet
from geonorm.norms import BatchNorm, LocalContextNorm, NormFactory
from geonorm.tasks import SegmentationTask

NORMS: dict[str, NormFactory] = {"BN": BatchNorm, "LCN": partial(LocalContextNorm, window_px=31)}
WARM_UP = 10
PATCHES = (4, 3, 192, 192)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    threads: int = 1
    """Of torch."""
    workers: int = 0
    """Of the data loader."""
    steps: int = 40
    """That count."""


class Stopwatch(Callback):
    """Times every step from the end of the one before: waiting for the batch, optimizer step, the rest."""

    def __init__(self) -> None:
        """Start with nothing measured."""
        self.total: list[float] = []
        self.waiting: list[float] = []
        self.stepping: list[float] = []
        self._ended: float | None = None
        self._step_began = 0.0
        self.steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time the optimizer's step, which calls forward and backward."""
        module: Any = pl_module
        step = module.optimizer_step

        def timed(*args: Any, **how: Any) -> None:
            began = time.monotonic()
            step(*args, **how)
            if self.steps >= WARM_UP:
                self.stepping.append(time.monotonic() - began)

        module.optimizer_step = timed

    def on_train_batch_start(self, *args: Any) -> None:
        """Note how long the batch was waited for."""
        if self._ended is not None and self.steps >= WARM_UP:
            self.waiting.append(time.monotonic() - self._ended)

    def on_train_batch_end(self, *args: Any) -> None:
        """End a step."""
        now = time.monotonic()
        if self._ended is not None and self.steps >= WARM_UP:
            self.total.append(now - self._ended)
        self._ended = now
        self.steps += 1


def main(case: Case) -> None:
    """Print two JSON lines for each norm."""
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory(prefix="geonorm_profile_") as name:
        write_inria_layout(Path(name), cities=("alder", "brack", "corvel"), tiles_per_city=2, size_px=512, seed=0)
        for norm in NORMS:
            _measure(norm, Path(name), case)


def _measure(norm: str, root: Path, case: Case) -> None:
    batch_size, _, patch_px, _ = PATCHES
    data = InriaDataModule(
        root=root,
        val_names=["alder2"],
        patch_px=patch_px,
        batch_size=batch_size,
        patches_per_epoch=batch_size * (case.steps + WARM_UP),
        num_workers=case.workers,
    )
    task = SegmentationTask(NORMS[norm], data.spec, partial(UNet, depth=3, width=16))
    watch = Stopwatch()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(task, datamodule=data)
    flops = flops_of(lambda: task.network(torch.rand(PATCHES)).sum().backward())
    limit = limit_of_flops(flops, by_the_clock=True)
    steps = f"{norm}, {' x '.join(map(str, PATCHES))}, {case.workers} workers"
    alone, whole = "forward, backward, optimizer", "whole step"
    ratios = [a / b for a, b in zip(watch.total, watch.stepping, strict=True)]
    print_line("training_profile", steps, alone, statistics.median(watch.stepping), "s", limit=limit)
    print_line(
        "training_profile",
        steps,
        whole,
        statistics.median(watch.total),
        "s",
        ratios=ratios,
        peer="these alone",
        limit=limit,
        norm=norm,
        workers=case.workers,
        elsewhere=round(1 - sum(watch.stepping) / sum(watch.total), 4),
        waiting=round(sum(watch.waiting) / sum(watch.total), 4),
    )


if __name__ == "__main__":
    main(parse(option_parser(__doc__, Case()), Case, sys.argv[1:], quick={"steps": 10})[0])
