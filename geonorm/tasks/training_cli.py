"""fit, validate and test: LightningCLI with geonorm's task, and the data module's facts handed to it."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torchgeo.datamodules import BaseDataModule

import geonorm.data.inria  # noqa: F401 - so that the parser knows InriaDataModule by its bare name
from geonorm.data.augment import Augmentations
from geonorm.data.spec import DatasetSpec
from geonorm.data.torchgeo_facts import DataFacts
from geonorm.data.torchgeo_module import TorchgeoData
from geonorm.errors import CheckpointError, InvalidConfigError, geonorm_error_in
from geonorm.tasks import BatchAverage, PictureLogger, RatioLogger, SegmentationTask
from geonorm.tasks.averaging import check_averaging
from geonorm.tasks.checkpoint import load_checkpoint
from geonorm.tasks.parser_words import in_words
from geonorm.tasks.training_words import made_by, without_advertisements

DEFAULT_ROOT = "runs"


def run_training(arguments: list[str]) -> None:
    """Run ``fit``, ``validate`` or ``test`` with the arguments that follow.

    Raises:
        InvalidConfigError: An unknown key, class or value, on the command line or in a YAML.
    """
    # Lightning 2.6 uses a function that torch 2.14 deprecates, at every step; nothing a user can do.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # Scores are counts of all processes, summed before they are logged.
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log.'(val|test)/.*sync_dist")
    if arguments[0] != "fit":
        # Scores go to a version folder of their own, where no checkpoint is kept.
        warnings.filterwarnings("ignore", message="The dirpath has changed from")
    try:
        with without_advertisements():
            TrainingCLI(
                SegmentationTask,
                LightningDataModule,
                subclass_mode_data=True,
                seed_everything_default=0,
                # Without a logger there is no numbered folder, and config.yaml lies where the last run left it.
                save_config_kwargs={"overwrite": True},
                # LightningCLI warns of arguments that the command line has too.
                args=None if arguments == sys.argv[1:] else arguments,
                parser_kwargs={command: {"exit_on_error": False} for command in TrainingCLI.subcommands()}
                | {"exit_on_error": False, "prog": "geonorm"},
            )
    except ArgumentError as error:
        raise InvalidConfigError(in_words(str(error), arguments)) from error
    except SystemExit as error:
        # Lightning ends the process itself when it is interrupted.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    except ValueError as error:
        # The parser wraps what a data module raises while its facts are handed over.
        ours = geonorm_error_in(error) or _missing_package_in(error) or _one_value_in(error)
        if ours is None:
            raise
        raise ours from None


class TrainingCLI(LightningCLI):
    """LightningCLI whose model takes bands, classes and scale from the data module."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the Trainer's methods that are commands; ``geonorm predict`` is our own."""
        return {name: LightningCLI.subcommands()[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Hand the data's facts to the model, so that nobody types the class count twice; add our callbacks."""
        parser.add_lightning_class_args(BatchAverage, "batch_average")
        parser.add_lightning_class_args(PictureLogger, "pictures")
        parser.add_argument(
            "--compare", type=_as_it_is, default=None, help="what geonorm compare varies; else of no effect"
        )
        parser.add_class_arguments(DataFacts, "data_facts")
        parser.add_class_arguments(Augmentations, "augment")
        parser.link_arguments("data", "model.spec", compute_fn=self._spec_of, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and look at the checkpoint to start from before anything is made."""
        super().parse_arguments(parser, args)
        callbacks = self.config[self.config.subcommand].trainer.callbacks
        several = callbacks if isinstance(callbacks, list) else [callbacks]
        # By name: the parser cannot make Lightning's older one with its own defaults.
        check_averaging(getattr(callback, "class_path", "") for callback in several)
        path = self.config[self.config.subcommand].ckpt_path
        if path and path not in ("best", "last", "hpc"):
            content = load_checkpoint(Path(path))
            if self.config.subcommand == "fit" and "optimizer_states" not in content:
                raise CheckpointError(
                    f"{path} holds weights alone, so no training can resume from it. Start from its weights with "
                    "--model.init_from (with --model.localize_px if they are those of local norms)."
                )

    def instantiate_classes(self) -> None:
        """Make the Trainer, the data module and the model; a data module of torchgeo comes as `TorchgeoData`."""
        self._torchgeo: TorchgeoData | None = None
        super().instantiate_classes()
        if self._torchgeo is not None:
            self.datamodule = self._torchgeo
        augment: Augmentations = self._get(self.config_init, "augment")
        if augment.transforms:
            self._add(augment)

    def after_fit(self) -> None:
        """Say what the training made, and how to use it."""
        if self.trainer.is_global_zero:
            for line in made_by(self.trainer):
                print(line)

    def _add(self, augment: Augmentations) -> None:
        """Let the data module change training samples."""
        if not hasattr(self.datamodule, "augment"):
            raise InvalidConfigError(
                f"{type(self.datamodule).__name__} takes no augmentations. Leave --augment out, or use a data module "
                "of geonorm.data or torchgeo.datamodules."
            )
        augment.check(len(self.model.spec.bands))
        self.datamodule.augment = augment

    def _spec_of(self, data: LightningDataModule) -> DatasetSpec:
        """Return the facts of a data module."""
        stage = self.config.subcommand
        spec = getattr(data, "spec", None)
        if isinstance(spec, DatasetSpec):
            return spec
        if isinstance(data, BaseDataModule):
            facts = DataFacts(**self.config[stage].data_facts.as_dict())
            self._torchgeo = TorchgeoData(data, stage=stage, facts=facts)
            return self._torchgeo.spec
        raise InvalidConfigError(
            f"{type(data).__name__} does not say its bands and classes (attribute spec, a "
            "geonorm.data.DatasetSpec). Use a data module of geonorm.data or torchgeo.datamodules."
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a Trainer that logs to CSV and TensorBoard, keeps the best and the last checkpoint, and logs ratios."""
        settings = self._get(self.config_init, "trainer")
        root = settings.default_root_dir or DEFAULT_ROOT
        csv = CSVLogger(root)
        loggers: list[Logger] = [csv, TensorBoardLogger(root, version=csv.version)]
        callbacks: list[Callback] = [RatioLogger()]
        if settings.enable_checkpointing is not False:
            callbacks += [
                ModelCheckpoint(filename="best", monitor="val/iou", mode="max", enable_version_counter=False),
                # Not save_last of the one above: it keeps the last only where that is the best as well.
                ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
            ]
        if settings.logger is None:
            kwargs["logger"] = loggers
        if settings.logger is not False:
            callbacks.append(LearningRateMonitor())
        self.trainer_defaults = {"callbacks": callbacks}
        return super().instantiate_trainer(**kwargs)


def _as_it_is(value: Any) -> Any:
    """Return a setting of any kind: what it names is not made."""
    return value


def _missing_package_in(error: ValueError) -> InvalidConfigError | None:
    """Return what to install where Lightning says that a logger or callback needs it."""
    missing = re.search(r"Problem with given class_path '([\w.]+)':\s*Requirement '([\w-]+)", str(error))
    if missing is None:
        return None
    package = "geonorm[wandb]" if missing[2] == "wandb" else missing[2]
    return InvalidConfigError(f"{missing[1]} needs {missing[2]}, which is not installed: pip install '{package}'.")


def _one_value_in(error: ValueError) -> InvalidConfigError | None:
    """Return what to do where a network's own Batch Norm says that its map has one value per channel."""
    alone = re.match(r"Expected more than 1 value per channel when training, got input size .*\[(.+)\]", str(error))
    if alone is None:
        return None
    return InvalidConfigError(
        "The network's own Batch Norm (norm: null) cannot train on one value per channel, got a map of "
        f"({alone[1]}): it has no variance. Take a larger batch (--data.batch_size), larger patches, or another norm, "
        "such as --model.norm geonorm.norms.GroupNorm."
    )
