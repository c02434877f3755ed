"""Weights averaged over the steps or epochs of a training, by Lightning's `WeightAveraging` and what derives from it.

While tiles are scored the network holds the averaged weights, and checkpoints hold them under ``state_dict``, so scores
and maps are those of the average. The running statistics of norms are averaged with the weights, or taken anew for the
averaged weights where `BatchAverage` is on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError
from geonorm.models import Rescale


class EpochAverage(WeightAveraging):
    """Average the weights that the epochs end with, all alike (stochastic weight averaging).

    Until the first epoch to be averaged has ended, scores and checkpoints are those of the network as it is. The
    learning rate is the schedule's: the paper averages over epochs of a constant or cyclical one.

    Source: Izmailov et al., UAI 2018, algorithm 1.
    Differs: running statistics of norms are averaged too, where the paper takes them anew with a pass over the training
    data; ``--batch_average.num_batches`` does that.

    Args:
        first_epoch: First epoch whose end is part of the average, counted from 0.
    """

    def __init__(self, first_epoch: int = 0) -> None:
        if first_epoch < 0:
            raise InvalidConfigError(f"first_epoch must not be negative, got {first_epoch}.")
        super().__init__()
        self.first_epoch = first_epoch
        self._at_end = False

    @property
    def started(self) -> bool:
        """Whether there is an average yet."""
        return self._latest_update_step > 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Say whether the weights after a step are part of the average: before its epoch is scored, not after."""
        return step_idx is not None and self._at_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the weights into the average at the end of an epoch."""
        self._at_end = trainer.is_last_batch and trainer.current_epoch >= self.first_epoch
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    # Lightning's would score, save and leave behind the weights from before the training where there is no average.

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the network."""
        if self.started:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the average out of the network."""
        if self.started:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint hold the average, and beside it the weights to train on with."""
        if self.started:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take both back, where there are both."""
        if "current_model_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the network."""
        if self.started:
            super().on_train_end(trainer, pl_module)


def check_averaging(class_names: Iterable[str]) -> None:
    """Refuse a callback that averages past geonorm's norms and checkpoints.

    Args:
        class_names: Names of the classes of the Trainer's callbacks, with or without their modules.

    Raises:
        InvalidConfigError: Lightning's older ``StochasticWeightAveraging`` is among them.
    """
    if any(name.rpartition(".")[2] == StochasticWeightAveraging.__name__ for name in class_names):
        raise InvalidConfigError(
            "Lightning's StochasticWeightAveraging puts the average into the network after the last checkpoint was "
            "written, beside running statistics of other weights. Use geonorm.tasks.EpochAverage, which does neither."
        )


def keep_constants(checkpoint: dict[str, Any], network: nn.Module, prefix: str) -> None:
    """Give the averaged weights of a checkpoint the network's scale and counters.

    An exponential average of a number that never changes drifts by rounding: in float32 by 1e-5 of it at decay 0.999,
    by 2e-4 at 0.9999. One of a whole number stays where it was.

    Args:
        checkpoint: As Lightning saves it; without averaged weights it is left as it is.
        network: Whose scale it is.
        prefix: What the names of its weights begin with in the checkpoint.
    """
    constants = {f"{prefix}{name}" for name in scale_names(network)}
    for name, value in checkpoint.get("current_model_state", {}).items():
        if name in constants or not value.is_floating_point():
            checkpoint["state_dict"][name] = value


def scale_names(network: nn.Module) -> list[str]:
    """Return the names of the tensors that a network scales its input by."""
    scales = [name for name, module in network.named_modules() if isinstance(module, Rescale)]
    return [f"{name}.{part}" for name in scales for part in ("mean", "deviation")]


def scale_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the tensors that a network scales its input by."""
    return {name: network.get_buffer(name).clone() for name in scale_names(network)}


@torch.no_grad()
def set_scale_back(network: nn.Module, scale: dict[str, Tensor]) -> None:
    """Put a copy that `scale_of` made back in place."""
    for name, value in scale.items():
        network.get_buffer(name).copy_(value)
