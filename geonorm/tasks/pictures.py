"""A callback: what the network makes of a few validation windows, as a picture, while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from geonorm.data.pairs import Pair, open_pair
from geonorm.data.patches import read_sample, unpacked
from geonorm.data.spec import IGNORE_LABEL, DatasetSpec
from geonorm.errors import InvalidConfigError
from geonorm.models.rescale import rescale_of
from geonorm.models.unet import centre
from geonorm.raster.window import Window
from geonorm.tasks.sizes import fitted

GAP_PX = 4
WRONG, RIGHT, IGNORED = (214, 20, 20), (24, 24, 24), (128, 128, 128)
Rgb = NDArray[np.uint8]
"""``(H, W, 3)``."""


class PictureLogger(Callback):
    """Write a picture of a few fixed validation windows: image, labels, prediction, errors, one window a row.

    It goes to ``pictures/`` in the log folder as a PNG, and to TensorBoard where that is logged to; runs without a
    logger leave none. The windows lie in the middle of validation tiles spread over the data set (or are its first
    patches), the same in every epoch; what is predicted is what is scored, averaged weights included.

    Args:
        every_n_epochs: Epochs between two pictures, drawn as they are scored (check_val_every_n_epoch); 0 draws none.
        num_windows: Rows of the picture.
        window_px: Side of a window; enlarged to one that the network takes.
    """

    def __init__(self, every_n_epochs: int = 0, num_windows: int = 4, window_px: int = 256) -> None:
        if every_n_epochs < 0:
            raise InvalidConfigError(f"every_n_epochs must not be negative, got {every_n_epochs}.")
        if num_windows < 1 or window_px < 1:
            raise InvalidConfigError(
                f"num_windows and window_px must be at least 1, got {num_windows} and {window_px}."
            )
        self.every_n_epochs = every_n_epochs
        self.num_windows = num_windows
        self.window_px = window_px
        self._rows: list[Rgb] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rows of the last picture."""
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the windows of a batch that are part of the picture."""
        if not self._is_due(trainer) or not trainer.is_global_zero or dataloader_idx:
            return
        task: Any = pl_module
        if "pair" not in batch:
            missing = max(0, self.num_windows - len(self._rows))
            samples = [(batch["image"][i : i + 1], batch["mask"][i : i + 1]) for i in range(len(batch["image"]))]
            samples = samples[:missing]
        elif batch_idx in spread(self.num_windows, int(sum(trainer.num_val_batches))):
            samples = [self._window_of(batch["pair"], task)]
        else:
            return
        self._rows += [drawn(*sample, task) for sample in samples]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture."""
        if not self._is_due(trainer):
            return
        folder = trainer.log_dir if trainer.loggers else None  # a collective call: every process makes it
        if not self._rows or folder is None or not trainer.is_global_zero:
            return
        picture = stacked(self._rows)
        target = Path(folder) / "pictures" / f"step-{trainer.global_step:06d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/pictures", picture, trainer.global_step, dataformats="HWC")

    def _is_due(self, trainer: Trainer) -> bool:
        """Say whether this scoring belongs to a training, and to an epoch that gets a picture."""
        if not self.every_n_epochs or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return False
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _window_of(self, pair: Pair, task: Any) -> tuple[Tensor, Tensor]:
        """Return image ``(1, C, h, w)`` and labels ``(1, h, w)`` of the middle of a tile."""
        side_px = task.geometry.read_px(self.window_px)
        with open_pair(pair) as files:
            height, width = files.grid.height, files.grid.width
            rows, cols = min(side_px, height), min(side_px, width)
            sample = read_sample(files, Window((height - rows) // 2, (width - cols) // 2, rows, cols), side_px)
        fill = rescale_of(task.network).mean[:, None, None].cpu()
        valid = unpacked(sample["valid"], len(sample["image"]))
        return torch.where(valid, sample["image"].to(torch.float32), fill)[None], sample["mask"][None]


def spread(count: int, total: int) -> list[int]:
    """Return ``count`` numbers below ``total``, as far apart as can be; all of them where there are no more.

    Example:
        >>> spread(4, 36), spread(4, 3)
        ([4, 13, 22, 31], [0, 1, 2])
    """
    return sorted({(2 * i + 1) * total // (2 * count) for i in range(count)}) if count < total else list(range(total))


def drawn(image: Tensor, labels: Tensor, task: Any) -> Rgb:
    """Return one row of the picture for an image ``(1, C, h, w)`` and labels ``(1, h, w)``."""
    spec: DatasetSpec = task.spec
    image, labels = fitted(image, labels, task.geometry)
    logits = task(image.to(task.device))
    shown, truth = (centre(part, like=logits)[0].cpu().numpy() for part in (image, labels))
    predicted = logits[0].argmax(0).cpu().numpy()
    errors = np.where((predicted == truth)[..., None], RIGHT, WRONG)
    errors = np.where((truth != IGNORE_LABEL)[..., None], errors, IGNORED).astype(np.uint8)
    parts = [stretched(shown), colored(truth, spec), colored(predicted, spec), errors]
    return np.concatenate([part for one in parts for part in (one, _gap(one.shape[0], GAP_PX))][:-1], axis=1)


def stretched(image: NDArray[np.floating[Any]]) -> Rgb:
    """Return the first three bands, or the first in grey, of ``(C, H, W)``: 2 to 98 % of each band as 0 to 255."""
    bands = image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0)
    low, high = np.percentile(bands, (2, 98), axis=(1, 2), keepdims=True)
    share = (bands - low) / np.maximum(high - low, 1e-6)
    return (share.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def colored(labels: NDArray[np.integer[Any]], spec: DatasetSpec) -> Rgb:
    """Return the colours of the classes, grey where no label is."""
    table = np.full((256, 3), IGNORED, dtype=np.uint8)
    table[: len(spec.class_colors)] = spec.class_colors
    return table[labels]


def stacked(rows: Sequence[Rgb]) -> Rgb:
    """Return rows below one another, with gaps between them; narrower ones end in white."""
    width = max(row.shape[1] for row in rows)
    wide = [np.concatenate([row, _gap(row.shape[0], width - row.shape[1])], axis=1) for row in rows]
    return np.concatenate([part for row in wide for part in (row, _gap(GAP_PX, width))][:-1], axis=0)


def _gap(height: int, width: int) -> Rgb:
    return np.full((height, width, 3), 255, dtype=np.uint8)
