"""A callback: evaluate with statistics averaged over training batches instead of the moving average."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from geonorm.errors import InvalidConfigError
from geonorm.norms import average_batches
from geonorm.tasks.sizes import fitted


class BatchAverage(Callback):
    """Before each scoring in training, set the running statistics of BN, SN and BatchRenorm to a batch average.

    The scores, and the checkpoints written after them, then hold statistics of the present weights, averaged with
    equal weight over ``num_batches`` training batches, where the moving average lags behind. Training goes on as
    before: it does not use these statistics (BatchRenorm does, for its corrections), and sees the same patches.

    Source: Luo et al., SN journal version, section 3.2.

    Args:
        num_batches: Batches to average over; 0 keeps the moving average.
    """

    def __init__(self, num_batches: int = 0) -> None:
        if num_batches < 0:
            raise InvalidConfigError(f"num_batches must not be negative, got {num_batches}.")
        self.num_batches = num_batches

    # Not on_validation_start: averaged weights are put into the network after it.
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average, unless this is the check before training or no training at all."""
        if not self.num_batches or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        with trainer.precision_plugin.forward_context():
            average_batches(pl_module, islice(_batches(trainer), self.num_batches))


def _batches(trainer: Trainer) -> Iterator[Tensor]:
    """Yield the images of training batches as the network gets them, and leave the data module where it was."""
    data: Any = getattr(trainer, "datamodule", None)
    task: Any = trainer.lightning_module
    loader: Any = trainer.train_dataloader if data is None else data.train_dataloader()
    place = {} if data is None else dict(data.state_dict())
    try:
        for batch in loader:
            batch = trainer.strategy.batch_to_device(batch)
            yield fitted(batch["image"], batch["mask"], task.geometry)[0]
    finally:
        if place:
            data.load_state_dict(place)
