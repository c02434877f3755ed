"""Training and scoring of a segmentation network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR

from geonorm.data.pairs import OpenPair, open_pair
from geonorm.data.spec import IGNORE_LABEL, DatasetSpec
from geonorm.errors import InvalidConfigError
from geonorm.models import Rescale, TileGeometry, UNet, localize_norms, tile_geometry
from geonorm.models.compiled import compiled
from geonorm.models.predictor import predictor
from geonorm.models.rescale import rescale_of
from geonorm.models.unet import centre
from geonorm.norms import NormFactory, synchronize_norms
from geonorm.norms.factory import class_behind
from geonorm.raster.window import Window
from geonorm.tasks.averaging import check_averaging, keep_constants, scale_of, set_scale_back
from geonorm.tasks.checkpoint import KEPT_NORM, KEY, PREFIX, describe, describe_factory, localized_px_of
from geonorm.tasks.losses import CrossEntropy, check_loss, weigh_classes
from geonorm.tasks.optimize import OptimizerFactory, Schedule, check_optimizer, follow, make_optimizer, steps_of
from geonorm.tasks.scores import Scores
from geonorm.tasks.single_logit import silence_first_logit, with_first_logit_fixed
from geonorm.tasks.sizes import fitted, middle_that_fits
from geonorm.tasks.transfer import take_weights
from geonorm.tiling.engine import predict_strips
from geonorm.tiling.plan import Network, Plan


class NetworkFactory(Protocol):
    """Anything that makes a network: `geonorm.models.UNet`, a ``functools.partial`` of it, another class."""

    def __call__(self, in_channels: int, num_classes: int, *, norm: Any) -> nn.Module:
        """Make a network from raw band values to logits."""
        ...


class SegmentationTask(LightningModule):
    """Trains a network on patches and scores it on whole tiles.

    Args:
        norm: Makes the norms, e.g. ``geonorm.norms.LocalContextNorm`` with its ``window_px``; None keeps those that a
            network of smp has.
        spec: Facts of the data: bands, classes, scale. On the command line the data module gives it.
        network: Makes the network, called with bands, classes and ``norm``.
        learning_rate: Of the optimizer; where a schedule changes it, the largest.
        lr_milestones: Epochs after which the learning rate falls to a tenth; the simple form of a ``schedule``.
        ratio_weight_decay: Weight decay of the control parameters of Switchable Norm (the papers: 1e-4), whatever that
            of the optimizer is for the rest.
        loss: What is made small, one of `geonorm.tasks.losses` or a module like them; None: `CrossEntropy`.
        single_logit: Keep the logit of the first class at 0, so that the others learn as their differences from it: of
            two classes the second as the single logit of a binary network would. Maps and checkpoints are as ever.
        optimizer: Makes the optimizer, e.g. ``torch.optim.SGD`` with its ``momentum``.
        schedule: How the learning rate changes from step to step: `Steps`, `Poly` or `Cosine`, with their warm-up.
        compile_network: Let torch compile the network for the steps of training, which needs a C++ compiler on the CPU.
            Scores, checkpoints and maps are those of the network as it is.
        eval_core_px: Side of the square that one network call labels when whole tiles are scored.
        init_from: Checkpoint or state dict to start the weights from; its norm and classes may differ. What fits by
            name and shape is taken, its scaling included, the rest starts anew.
        localize_px: Let GN, IN and LN take their statistics over windows of so many input pixels, once the weights are
            there: a network trained over whole patches becomes consistent between tiles, and is trained on. Patches
            must be larger than the window, which else is the norm it was.
        band_means: Raw value of each band that becomes 0; else that of the weights to start from, else the data's.
        band_deviations: Raw values of each band that become 1 unit; else as ``band_means``.

    Raises:
        InvalidConfigError: A norm or network that a checkpoint could not name, or that cannot be made.
        CheckpointError: Nothing in ``init_from`` fits.
    """

    def __init__(
        self,
        norm: NormFactory | None,
        spec: DatasetSpec,
        network: NetworkFactory = UNet,
        *,
        learning_rate: float = 1e-3,
        lr_milestones: list[int] | None = None,
        ratio_weight_decay: float = 0.0,
        loss: nn.Module | None = None,
        single_logit: bool = False,
        optimizer: OptimizerFactory = Adam,
        schedule: Schedule | None = None,
        compile_network: bool = False,
        eval_core_px: int = 512,
        init_from: str | None = None,
        localize_px: int | None = None,
        band_means: list[float] | None = None,
        band_deviations: list[float] | None = None,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise InvalidConfigError(f"learning_rate must be greater than 0, got {learning_rate}.")
        if ratio_weight_decay < 0:
            raise InvalidConfigError(f"ratio_weight_decay must not be negative, got {ratio_weight_decay}.")
        if eval_core_px < 1:
            raise InvalidConfigError(f"eval_core_px must be at least 1, got {eval_core_px}.")
        if schedule is not None and lr_milestones:
            raise InvalidConfigError(
                f"lr_milestones {lr_milestones} and a schedule cannot both set the learning rate. Give the milestones "
                "to geonorm.tasks.Steps, or leave them out."
            )
        check_optimizer(optimizer)
        loss = CrossEntropy() if loss is None else loss
        weights = weigh_classes(loss, spec.class_shares, spec.class_names)
        for rule, numbers in weights.items():
            named = zip(spec.class_names, numbers, strict=True)
            rank_zero_info(f"Class weights ({rule}): {', '.join(f'{name} {weight:.4g}' for name, weight in named)}.")
        check_loss(loss, len(spec.class_names))
        self.learning_rate = learning_rate
        self.lr_milestones = list(lr_milestones or [])
        self.ratio_weight_decay = ratio_weight_decay
        self.loss = loss
        self.single_logit = single_logit
        self.optimizer = optimizer
        self.schedule = schedule
        self.compile_network = compile_network
        self.eval_core_px = eval_core_px
        if norm is None and class_behind(network)[0] is UNet:
            raise InvalidConfigError(
                "norm: null keeps the norms that a network has, and UNet has none of its own. Name a norm, "
                "geonorm.norms.NoNorm for none, or take geonorm.models.SmpNetwork."
            )
        made_by = (
            describe_factory(network, role="network"),
            KEPT_NORM if norm is None else describe_factory(norm, role="norm"),
        )
        self.network = network(len(spec.bands), len(spec.class_names), norm=norm)
        # From the weakest to the strongest: each overwrites the one before.
        set_scale(self.network, spec)
        if init_from is not None:
            rank_zero_info(take_weights(self.network, init_from).in_words())
        _set_given_scale(self.network, len(spec.bands), band_means, band_deviations)
        self.spec = spec_scaled_as(self.network, spec)
        if localize_px is not None:
            self.network, _ = localize_norms(self.network, localize_px)
        self.description = describe(*made_by, self.spec, localized_px=localize_px)
        if weights:
            self.description["class_weights"] = weights
        self.scores = self._no_scores()
        self._scale: dict[str, Tensor] = {}

    @functools.cached_property
    def geometry(self) -> TileGeometry:
        """What tiling has to know of the network."""
        return tile_geometry(self.network)

    def setup(self, stage: str) -> None:
        """Let batch statistics be those of all processes where the Trainer was told ``sync_batchnorm``."""
        check_averaging(type(callback).__name__ for callback in getattr(self.trainer, "callbacks", []))
        if getattr(self.trainer.strategy, "_layer_sync", None) is not None:
            synchronize_norms(self.network)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(N, K, H', W')`` for raw band values ``(N, C, H, W)``."""
        return self.network(image)

    @functools.cached_property
    def _compiled(self) -> Callable[[Tensor], Tensor]:
        """The network compiled: a cached property, so that it is no module of the task and in no state dict."""
        return compiled(self.network)

    def __getstate__(self) -> dict[str, Any]:
        """Return the task without what is compiled: a copy, such as one of averaged weights, has its own network."""
        state = super().__getstate__()
        state.pop("_compiled", None)
        return state

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss over the pixels that count; 0 where none does."""
        image = middle_that_fits(batch["image"], self.geometry)
        image, labels = fitted(image, centre(batch["mask"], like=image), self.geometry)
        logits = self._compiled(image) if self.compile_network else self(image)
        labels = centre(labels, like=logits).long()
        if self.single_logit:
            logits = with_first_logit_fixed(logits)
        # Sums over millions of pixels do not fit into half precision.
        loss = self.loss(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score one batch of patches of any size, or one whole tile that is named by its files."""
        if "pair" not in batch:
            image, labels = fitted(batch["image"], batch["mask"], self.geometry)
            logits = self(image)
            labels = centre(labels, like=logits)
            self.scores.update("all", logits.argmax(1), labels)
            return
        with open_pair(batch["pair"]) as files:
            self._score_whole(files, files.pair.group)

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of the last epoch."""
        set_scale_back(self.network, self._scale)
        self.scores = self._no_scores()

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all tiles, and of each city."""
        self._log_scores("val")

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """Log the scores of all tiles, and of each city."""
        self._log_scores("test")

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the schedule of its learning rate, as Lightning takes them."""
        optimizer = make_optimizer(
            self.optimizer, self, learning_rate=self.learning_rate, ratio_weight_decay=self.ratio_weight_decay
        )
        if self.schedule is None:
            return [optimizer], [MultiStepLR(optimizer, self.lr_milestones, gamma=0.1)]
        scheduler = follow(self.schedule, optimizer, **steps_of(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the checkpoint complete without configuration or data."""
        checkpoint[KEY] = self.description
        keep_constants(checkpoint, self.network, PREFIX)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of a network whose norms look elsewhere: their names and shapes would fit."""
        theirs, ours = (localized_px_of(facts) for facts in (checkpoint.get(KEY, {}), self.description))
        if theirs != ours:
            wanted = "without localize_px" if theirs is None else f"with --model.localize_px {theirs}"
            raise InvalidConfigError(
                f"The checkpoint holds a network {_in_words(theirs)}, the settings make one {_in_words(ours)}. "
                f"Run it {wanted}, or start from its weights with --model.init_from."
            )

    def on_train_start(self) -> None:
        """Let the data module fill pixels without data with the values that become 0, as prediction does."""
        if self.single_logit:
            silence_first_logit(self.network, len(self.spec.class_names))
        data: Any = getattr(self.trainer, "datamodule", None)
        spec = getattr(data, "spec", None)
        if isinstance(spec, DatasetSpec):
            data.spec = spec_scaled_as(self.network, spec)
        self._scale = scale_of(self.network)

    def on_train_end(self) -> None:
        """Take back what averaging of weights did to the scale."""
        set_scale_back(self.network, self._scale)
        self._scale = {}

    def _no_scores(self) -> Scores:
        return Scores(len(self.spec.class_names), self.spec.scored_classes)

    def _log_scores(self, stage: str) -> None:
        self.scores.gather()
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
    """Give the network's `Rescale` the band statistics of the data, where they are known and it has no better ones."""
    rescale = rescale_of(network)
    for name, values in (("mean", spec.band_means), ("deviation", spec.band_deviations)):
        if values is not None and name not in rescale.given:
            rescale.get_buffer(name).copy_(torch.tensor(values))


def spec_scaled_as(network: nn.Module, spec: DatasetSpec) -> DatasetSpec:
    """Return the facts with the numbers that the network scales by, where those are not the data's."""
    rescale, data = rescale_of(network), Rescale(len(spec.bands), mean=spec.band_means, deviation=spec.band_deviations)
    if torch.equal(rescale.mean.cpu(), data.mean) and torch.equal(rescale.deviation.cpu(), data.deviation):
        return spec
    return spec.with_statistics(tuple(rescale.mean.tolist()), tuple(rescale.deviation.tolist()))


def _set_given_scale(
    network: nn.Module, num_bands: int, means: Sequence[float] | None, deviations: Sequence[float] | None
) -> None:
    given = Rescale(num_bands, mean=means, deviation=deviations)
    for name in given.given:
        rescale_of(network).get_buffer(name).copy_(given.get_buffer(name))


def _in_words(localized_px: int | None) -> str:
    return "without local windows" if localized_px is None else f"with local windows of {localized_px} px"
