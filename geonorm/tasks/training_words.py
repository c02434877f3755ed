"""What a training says of itself: what it made, and not what Lightning advertises."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.callbacks.model_summary")
_ADVERTISEMENT = re.compile(r"Tip: .*lit(logger|models)", re.DOTALL)
_FLOPS = re.compile(r"\n\S+(?: \S)?\s+Total Flops")
"""Lightning counts them only where it gets an example of the input: they are always 0 here."""


def made_by(trainer: Trainer) -> list[str]:
    """Return in a line or two what a training left behind, and the command that uses it; none where it kept nothing."""
    kept = [
        one
        for one in trainer.checkpoint_callbacks
        if isinstance(one, ModelCheckpoint) and os.path.isfile(one.best_model_path)
    ]
    if not kept:
        return []
    scored = [one for one in kept if one.monitor is not None]
    files = [_in_words(one) for one in (*scored, *(one for one in kept if one.monitor is None))]
    best = (scored or kept)[0].best_model_path
    # Not `trainer.log_dir`: that is a collective call, and files are looked for by one process.
    where = getattr(trainer.logger, "log_dir", None) or os.path.dirname(best)
    return [
        f"Written: {_from_here(where)} with {', '.join(files)}",
        f"Next: geonorm predict {_from_here(best)} image.tif labels.tif",
    ]


def _from_here(path: str) -> str:
    """Return a path as it is typed in the folder of the command, whole where it lies elsewhere."""
    try:
        return str(Path(path).absolute().relative_to(Path.cwd()))
    except ValueError:
        return path


def _in_words(checkpoint: ModelCheckpoint) -> str:
    name = os.path.basename(checkpoint.best_model_path)
    if checkpoint.monitor is None or checkpoint.best_model_score is None:
        return name
    return f"{name} ({checkpoint.monitor} {float(checkpoint.best_model_score):.4f})"


@contextmanager
def without_advertisements() -> Iterator[None]:
    """Leave out, inside, what Lightning logs of other products, and its count of operations."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_shown)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_shown)


def _shown(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if _FLOPS.search(message):
        record.msg, record.args = _FLOPS.sub("", message), ()
    return _ADVERTISEMENT.search(message) is None
