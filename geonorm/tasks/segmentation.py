"""Training and scoring of a segmentation network."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from geonorm.data.pairs import OpenPair, Pair, open_pair
from geonorm.data.spec import IGNORE_LABEL, DatasetSpec
from geonorm.errors import InvalidConfigError
from geonorm.models import TileGeometry, UNet, tile_geometry
from geonorm.models.bitwise import predictor
from geonorm.models.rescale import rescale_of
from geonorm.models.unet import centre
from geonorm.norms import NormFactory
from geonorm.raster.window import Window
from geonorm.tasks.checkpoint import KEY, describe, describe_factory
from geonorm.tasks.scores import Scores
from geonorm.tiling.engine import predict_strips
from geonorm.tiling.plan import Network, Plan


class NetworkFactory(Protocol):
    """Anything that makes a network: `geonorm.models.UNet`, a ``functools.partial`` of it, another class."""

    def __call__(self, in_channels: int, num_classes: int, *, norm: NormFactory) -> nn.Module:
        """Make a network from raw band values to logits."""
        ...


class SegmentationTask(LightningModule):
    """Trains a network on patches and scores it on whole tiles.

    Args:
        norm: Makes the norms, e.g. ``geonorm.norms.LocalContextNorm`` with its ``window_px``.
        spec: Facts of the data: bands, classes, scale. On the command line the data module gives it.
        network: Makes the network, called with bands, classes and ``norm``.
        learning_rate: Of Adam.
        lr_milestones: Epochs after which the learning rate falls to a tenth.
        eval_core_px: Side of the square that one network call labels when whole tiles are scored.

    Raises:
        InvalidConfigError: A norm or network that a checkpoint could not name, or that cannot be made.
    """

    def __init__(
        self,
        norm: NormFactory,
        spec: DatasetSpec,
        network: NetworkFactory = UNet,
        *,
        learning_rate: float = 1e-3,
        lr_milestones: list[int] | None = None,
        eval_core_px: int = 512,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise InvalidConfigError(f"learning_rate must be greater than 0, got {learning_rate}.")
        if eval_core_px < 1:
            raise InvalidConfigError(f"eval_core_px must be at least 1, got {eval_core_px}.")
        self.spec = spec
        self.learning_rate = learning_rate
        self.lr_milestones = list(lr_milestones or [])
        self.eval_core_px = eval_core_px
        self.description = describe(
            describe_factory(network, role="network"), describe_factory(norm, role="norm"), spec
        )
        self.network = network(len(spec.bands), len(spec.class_names), norm=norm)
        set_scale(self.network, spec)
        self.scores = self._no_scores()

    @functools.cached_property
    def geometry(self) -> TileGeometry:
        """What tiling has to know of the network."""
        return tile_geometry(self.network)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(N, K, H', W')`` for raw band values ``(N, C, H, W)``."""
        return self.network(image)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy over the pixels that count."""
        logits = self(batch["image"])
        labels = centre(batch["mask"], like=logits).long()
        loss = cross_entropy(logits, labels, ignore_index=IGNORE_LABEL)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score one batch of patches, or one whole tile that is named by its files."""
        if isinstance(batch["image"], Tensor):
            logits = self(batch["image"])
            labels = centre(batch["mask"], like=logits)
            self.scores.update("all", logits.argmax(1), labels)
            return
        pair = Pair(**batch)
        with open_pair(pair, bands=range(1, len(self.spec.bands) + 1)) as files:
            self._score_whole(files, pair.group)

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of the last epoch."""
        self.scores = self._no_scores()

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all tiles, and of each city."""
        self._log_scores("val")

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """Log the scores of all tiles, and of each city."""
        self._log_scores("test")

    def configure_optimizers(self) -> tuple[list[Optimizer], list[MultiStepLR]]:
        """Return Adam, and the steps of its learning rate."""
        optimizer = Adam(self.parameters(), lr=self.learning_rate)
        return [optimizer], [MultiStepLR(optimizer, self.lr_milestones, gamma=0.1)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the checkpoint complete without configuration or data."""
        checkpoint[KEY] = self.description

    def _no_scores(self) -> Scores:
        return Scores(len(self.spec.class_names), self.spec.scored_classes)

    def _log_scores(self, stage: str) -> None:
        if not self.scores.counts:
            return
        self.log(f"{stage}/iou", self.scores.iou(), prog_bar=True)
        self.log(f"{stage}/accuracy", self.scores.accuracy())
        if len(self.scores.counts) > 1:
            for group in sorted(self.scores.counts):
                self.log(f"{stage}/iou/{group}", self.scores.iou(group))
                self.log(f"{stage}/accuracy/{group}", self.scores.accuracy(group))

    def _score_whole(self, files: OpenPair, group: str) -> None:
        grid, geometry = files.grid, self.geometry
        plan = Plan(
            height=grid.height,
            width=grid.width,
            core_px=-(-self.eval_core_px // geometry.stride_px) * geometry.stride_px,
            halo_px=geometry.local_halo_px or 0,
            network=network_of(geometry),
            first_index=grid.first_index,
        )
        fill = rescale_of(self.network).mean.cpu()
        strips = predict_strips(files.read, predictor(self.network, self.device), plan, fill=fill)
        for strip in strips:
            labels = files.read_labels(Window(strip.row, 0, strip.rows, grid.width))
            labels = np.where(strip.valid, labels, IGNORE_LABEL)
            self.scores.update(group, strip.output, torch.from_numpy(labels))


def network_of(geometry: TileGeometry) -> Network:
    """Return what a plan has to know of a model."""
    return Network(stride_px=geometry.stride_px, margin_px=geometry.margin_px, least_px=geometry.least_px)


def set_scale(network: nn.Module, spec: DatasetSpec) -> None:
    """Give the network's `Rescale` the band statistics of the data, where they are known."""
    rescale = rescale_of(network)
    for buffer, values in ((rescale.mean, spec.band_means), (rescale.deviation, spec.band_deviations)):
        if values is not None:
            _copy(buffer, values)


def _copy(buffer: Tensor, values: Sequence[float]) -> None:
    buffer.copy_(torch.tensor(values))
