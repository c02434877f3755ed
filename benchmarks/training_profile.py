"""How much of a training's time goes elsewhere than into forward, backward and optimizer?

python benchmarks/training_profile.py                                      drawn cities, BN and LCN
python benchmarks/training_profile.py --threads 2 --workers 1 --steps 100

Time by the clock of one epoch after the first 10 steps: `elsewhere` is the share outside the optimizer's steps, which
hold forward and backward; `waiting` that between the end of a step and the next batch's arrival.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from geonorm.data import InriaDataModule
from geonorm.data.drawn import write_inria_layout
from geonorm.models import UNet
from geonorm.norms import BatchNorm, LocalContextNorm, NormFactory
from geonorm.tasks import SegmentationTask

NORMS: dict[str, NormFactory] = {"BN": BatchNorm, "LCN": partial(LocalContextNorm, window_px=31)}
WARM_UP = 10


class Stopwatch(Callback):
    """Times every step from the end of the one before: waiting for the batch, optimizer step, the rest."""

    def __init__(self) -> None:
        """Start with nothing measured."""
        self.total = self.waiting = self.stepping = 0.0
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
                self.stepping += time.monotonic() - began

        module.optimizer_step = timed

    def on_train_batch_start(self, *args: Any) -> None:
        """Note how long the batch was waited for."""
        if self._ended is not None and self.steps >= WARM_UP:
            self.waiting += time.monotonic() - self._ended

    def on_train_batch_end(self, *args: Any) -> None:
        """End a step."""
        now = time.monotonic()
        if self._ended is not None and self.steps >= WARM_UP:
            self.total += now - self._ended
        self._ended = now
        self.steps += 1


def main(options: argparse.Namespace) -> None:
    """Print one JSON line for each norm."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="geonorm_profile_") as name:
        write_inria_layout(Path(name), cities=("alder", "brack", "corvel"), tiles_per_city=2, size_px=512, seed=0)
        for norm in NORMS:
            _measure(norm, Path(name), options)


def _measure(norm: str, root: Path, options: argparse.Namespace) -> None:
    data = InriaDataModule(
        root=root,
        val_names=["alder2"],
        patch_px=192,
        batch_size=4,
        patches_per_epoch=4 * (options.steps + WARM_UP),
        num_workers=options.workers,
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
        callbacks=[watch],
    )
    trainer.fit(task, datamodule=data)
    line = {
        "benchmark": "training_profile",
        "norm": norm,
        "threads": options.threads,
        "workers": options.workers,
        "steps": watch.steps - WARM_UP,
        "seconds_per_step": round(watch.total / (watch.steps - WARM_UP), 4),
        "elsewhere": round(1 - watch.stepping / watch.total, 4),
        "waiting": round(watch.waiting / watch.total, 4),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _parser.add_argument("--threads", type=int, default=1)
    _parser.add_argument("--workers", type=int, default=0)
    _parser.add_argument("--steps", type=int, default=40)
    main(_parser.parse_args(sys.argv[1:]))
