"""What a training costs and how it scored, as two small files that other programs read."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from geonorm.errors import InvalidConfigError
from geonorm.tasks.scores import Scores

COST_FILE = "cost.json"
SCORE_FILE = "scores.json"

_FIRST_STEPS = 3
"""Steps that are not timed: the first ones allocate and choose kernels."""
_MOST_STEPS = 2000
"""Of the steps before, only so many are remembered."""
_INTERVAL_S = 1.0


class RunRecord(Callback):
    """Write ``cost.json`` while training and ``scores.json`` after a test into a folder.

    ``cost.json`` holds the steps done and to do, the median seconds of a step (forward, backward and optimizer, without
    waiting for data; on the clock and of the processor), the peak memory in bytes (allocated on a GPU, else resident)
    and the number of parameters. ``scores.json`` holds the summed confusion counts of each group, rows by label. Both
    are replaced as a whole, so that whoever reads them meanwhile finds them complete.

    Args:
        folder: Where the files go; made if it is not there.

    Raises:
        InvalidConfigError: Another process writes there.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._seconds: deque[tuple[float, float]] = deque(maxlen=_MOST_STEPS)
        self._began = (0.0, 0.0)
        self._to_skip = _FIRST_STEPS
        self._written = 0.0
        self._lock = FileLock(self.folder / "record.lock", timeout=0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep others out of the folder."""
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise InvalidConfigError(f"another training writes to {self.folder}. Wait for it, or stop it.") from error

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let others in."""
        self._lock.release()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the steps of an earlier training."""
        self._seconds.clear()
        self._to_skip = _FIRST_STEPS
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._began = _clock(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock, and write from time to time."""
        now = _clock(pl_module)
        if self._to_skip:
            self._to_skip -= 1
        else:
            self._seconds.append((now[0] - self._began[0], now[1] - self._began[1]))
        if now[0] - self._written > _INTERVAL_S:
            self._write_cost(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the whole training took."""
        self._write_cost(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the counts of every group."""
        scores = getattr(pl_module, "scores", None)
        spec = getattr(pl_module, "spec", None)
        if not trainer.is_global_zero or not isinstance(scores, Scores) or spec is None:
            return
        _replace(
            self.folder / SCORE_FILE,
            {
                "class_names": list(spec.class_names),
                "scored_classes": list(spec.scored_classes),
                "counts": {group: counts.tolist() for group, counts in sorted(scores.counts.items())},
            },
        )

    def _write_cost(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._written = time.perf_counter()
        if not trainer.is_global_zero:
            return
        clock, processor = zip(*self._seconds, strict=True) if self._seconds else ((), ())
        _replace(
            self.folder / COST_FILE,
            {
                "steps": trainer.global_step,
                "of": _steps_in_all(trainer),
                "seconds_per_step": statistics.median(clock) if clock else None,
                "processor_seconds_per_step": statistics.median(processor) if processor else None,
                "peak_memory_bytes": _peak_memory_bytes(pl_module),
                "parameters": sum(one.numel() for one in pl_module.parameters()),
                "device": pl_module.device.type,
            },
        )


def _clock(module: LightningModule) -> tuple[float, float]:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return time.perf_counter(), time.process_time()


def _steps_in_all(trainer: Trainer) -> int | None:
    steps = trainer.estimated_stepping_batches
    return int(steps) if steps != float("inf") else None


def _peak_memory_bytes(module: LightningModule) -> int | None:
    if module.device.type == "cuda":
        return torch.cuda.max_memory_allocated(module.device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _replace(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, path)
