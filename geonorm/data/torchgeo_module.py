"""A data module of torchgeo whose batches hold raw band values, and what its Normalize said of their scale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datamodules import BaseDataModule
from torchgeo.datamodules.utils import MisconfigurationException
from torchgeo.datasets import DatasetNotFoundError

from geonorm.data.augment import Augmentations
from geonorm.data.spec import IGNORE_LABEL, DatasetSpec
from geonorm.data.torchgeo_facts import DataFacts, Labels, facts_of, mask_key_of, spec_of
from geonorm.data.torchgeo_transforms import Scale, Transforms, lift, with_room_to_crop
from geonorm.errors import DatasetError, InvalidConfigError, one_line

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
Batch = dict[str, Any]


class TorchgeoData(LightningDataModule):
    """Give what a data module of torchgeo gives, as geonorm takes it.

    Its data sets, splits, samplers and geometric transforms are torchgeo's. What is different: the `Normalize` in
    front of the model is taken out, and its numbers become the scale of `spec`; images are raw band values
    ``(N, C, H, W)``, masks are labels ``(N, H, W)``, uint8, counted from 0, `IGNORE_LABEL` where a value does not count
    or a transform filled in what it does not know. Filled pixels, NaN and infinities hold the mean.

    Args:
        module: The data module, changed in place: it normalizes no more.
        stage: What it is wanted for first: ``"fit"``, ``"validate"`` or ``"test"``; a sample of that stage tells the
            number of bands.
        facts: What its data set does not say, or says otherwise.

    Raises:
        DatasetError: No data, or no images with masks.
        InvalidConfigError: Classes that are not known, or an intensity transform that no scale can stand for.
    """

    def __init__(self, module: BaseDataModule, *, stage: str = "fit", facts: DataFacts | None = None) -> None:
        super().__init__()
        self.module = module
        self.stage = stage
        self.called = type(module).__name__
        self.augment: Augmentations | None = None
        self._given = facts or DataFacts()
        kwargs = getattr(module, "kwargs", {})
        if kwargs.get("transforms") is not None:
            place = f"transforms of {self.called}"
            kwargs["transforms"] = with_room_to_crop(kwargs["transforms"], place=place)
        self._mask_key = mask_key_of(module, self._given)
        self._is_set_up: set[str] = set()
        self._labels: Labels | None = None

    @cached_property
    def spec(self) -> DatasetSpec:
        """Bands, classes and scale."""
        if getattr(self.module, "kwargs", {}).get("download") and getattr(rank_zero_only, "rank", 0) == 0:
            self.module.prepare_data()
        self.setup(self.stage)
        dataset, sample = self._first_sample()
        num_bands = self._bands_of(sample)
        facts = facts_of(self.module, dataset, num_bands=num_bands, given=self._given)
        self._labels = Labels(values=tuple(facts.label_values or ()), ignored=tuple(facts.ignored_values or ()))
        scale = self._lift(num_bands)
        if scale is None and self.stage == "fit":
            scale = self._measured()
        spec = spec_of(facts)
        return spec if scale is None else spec.with_statistics(scale.means, scale.deviations)

    @property
    def labels(self) -> Labels:
        """How the values of its masks become labels."""
        _ = self.spec
        assert self._labels is not None
        return self._labels

    def prepare_data(self) -> None:
        """Download what the data module is told to download."""
        with self._told_in_one_line():
            self._with_trainer().prepare_data()

    def setup(self, stage: str) -> None:
        """Let the data module find its files, once for each stage."""
        if stage not in self._is_set_up:
            with self._told_in_one_line():
                self._with_trainer().setup(stage)
            self._is_set_up.add(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the data module's batches for training."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the data module's batches for validation."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the data module's batches for testing."""
        return self._loader("test")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move what can be moved."""
        return self._with_trainer().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Let the data module transform a batch, without its Normalize."""
        if self._mask_key not in batch:
            raise DatasetError(
                f"{self.called} gives images without masks here. Its labels may not be public; take another stage."
            )
        batch = self._with_trainer().on_after_batch_transfer(batch, dataloader_idx)
        image, labels = batch["image"], batch["mask"]
        if self.augment is not None and self.trainer is not None and self.trainer.training:
            image, labels = self._augmented(self.augment, image, labels)
        return {"image": image, "mask": labels}

    def state_dict(self) -> dict[str, Any]:
        """Return what the data module keeps in checkpoints."""
        return self.module.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the data module go on from there."""
        self.module.load_state_dict(state_dict)

    def teardown(self, stage: str) -> None:
        """Let the data module clean up."""
        self.module.teardown(stage)

    def _augmented(self, augment: Augmentations, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        trainer, bands = self.trainer, len(self.spec.bands)
        assert trainer is not None
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        first = (batches * trainer.world_size + trainer.global_rank) * len(image)
        return augment(
            image,
            labels,
            torch.ones_like(image, dtype=torch.bool),
            numbers=range(first, first + len(image)),
            means=self.spec.band_means or [0.0] * bands,
            deviations=self.spec.band_deviations or [1.0] * bands,
        )

    def _with_trainer(self) -> BaseDataModule:
        self.module.trainer = self.trainer
        return self.module

    def _loader(self, split: str) -> DataLoader[Any]:
        with self._told_in_one_line():
            return getattr(self._with_trainer(), f"{split}_dataloader")()

    @contextmanager
    def _told_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except (DatasetNotFoundError, FileNotFoundError) as error:
            raise DatasetError(
                f"{self.called} finds no data: {one_line(error, 300)} Say where they lie, e.g. "
                "--data.dict_kwargs.root FOLDER."
            ) from error
        except MisconfigurationException as error:
            raise DatasetError(
                f"{self.called} has no labelled data for this ({one_line(error)}). Labels of test images are often not "
                "public: use geonorm validate."
            ) from error
        except (AssertionError, TypeError) as error:
            raise InvalidConfigError(f"{self.called} does not take these settings: {one_line(error, 300)}") from error

    def _first_sample(self) -> tuple[Any, Any]:
        """Return a data set of the stage and one sample of it."""
        for split in SPLITS[self.stage]:
            dataset = getattr(self.module, f"{split}_dataset", None) or self.module.dataset
            for sample in self._samples(split, 1):
                return dataset, sample
        raise DatasetError(
            f"{self.called} has no labelled data for {self.stage}. Check the folder; labels of test images are often "
            "not public: use geonorm validate."
        )

    def _samples(self, split: str, most: int) -> list[Any]:
        """Return some samples as the data set gives them, in its order or as its sampler chooses."""
        module: Any = self.module
        dataset = getattr(module, f"{split}_dataset", None) or module.dataset
        if dataset is None or len(dataset) == 0:
            return []
        places = [f"{split}_batch_sampler", f"{split}_sampler", "batch_sampler", "sampler"]
        sampler = next((found for place in places if (found := getattr(module, place, None)) is not None), None)
        # What is looked at here must not change what is drawn in training.
        with torch.random.fork_rng(devices=[]), self._told_in_one_line():
            if sampler is None:
                chosen: Any = range(0, len(dataset), -(-len(dataset) // most))
            else:
                chosen = (one for query in sampler for one in (query if isinstance(query, list) else [query]))
            return [dataset[one] for one in islice(chosen, most)]

    def _measured(self, most: int = 32) -> Scale:
        """Return mean and deviation of each band over some training samples."""
        count, total, squares = 0.0, torch.zeros(()), torch.zeros(())
        for sample in self._samples("train", most):
            values = sample["image"].double().flatten(1)
            known = values[:, torch.isfinite(values).all(0)]
            count += known.shape[1]
            total, squares = total + known.sum(1), squares + (known**2).sum(1)
        if not count:
            raise DatasetError(
                f"{self.called} has no training images to measure the scale on; their pixels are not finite."
            )
        means = total / count
        deviations = (squares / count - means**2).clamp(min=1e-12).sqrt()
        return Scale(means=tuple(means.tolist()), deviations=tuple(deviations.tolist()))

    def _bands_of(self, sample: Any) -> int:
        image = sample.get("image") if isinstance(sample, dict) else None
        if not isinstance(image, Tensor) or self._mask_key not in sample:
            keys = ", ".join(map(str, sample)) if isinstance(sample, dict) else type(sample).__name__
            raise DatasetError(
                f"{self.called} gives no image with a mask (its samples hold {keys}): it is not for segmentation of "
                "single images, and geonorm cannot train on it."
            )
        if image.dim() != 3:
            raise DatasetError(
                f"{self.called} gives several images of a place at once, {tuple(image.shape)}, as for change "
                "detection. geonorm segments single images (C, H, W)."
            )
        return image.shape[0]

    def _lift(self, num_bands: int) -> Scale | None:
        """Take every Normalize out of the data module; return what they said, None where there was none."""
        lifted: dict[str, Transforms] = {}
        for split in ("train", "val", "test"):
            name = f"{split}_aug" if getattr(self.module, f"{split}_aug", None) is not None else "aug"
            if name not in lifted:
                is_training = name == "train_aug"
                augmentation = getattr(self.module, name)
                lifted[name] = lift(augmentation, num_bands, place=f"{self.called}.{name}", training=is_training)
        scales = {name: transforms.scale for name, transforms in lifted.items()}
        if len(set(scales.values())) > 1:
            raise InvalidConfigError(
                f"{self.called} normalizes differently in {' and '.join(scales)}; a network has one scale. Give it the "
                "same mean and std in all of them."
            )
        for name, transforms in lifted.items():
            setattr(self.module, name, transforms.between(self._raw, self._shown))
        return next(iter(scales.values()))

    def _raw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return image ``(N, C, H, W)`` and labels ``(N, H, W)`` as the data module handed them to its transforms."""
        image = batch["image"].to(torch.float32)
        return image, self.labels.of(_flat(batch[self._mask_key], len(image), self.called))

    def _shown(self, image: Tensor, labels: Tensor, filled: Tensor, batch: Batch) -> Batch:
        """Return the batch: the mean where there are no values, no label where there is no image."""
        means = torch.tensor(self.spec.band_means or [0.0] * image.shape[1], device=image.device)[:, None, None]
        known = torch.isfinite(image)
        labels = labels.masked_fill(filled | ~known.any(1), IGNORE_LABEL)
        image = torch.where(known & ~filled[:, None], image, means)
        return {**batch, "image": image, "mask": labels}


def _flat(mask: Tensor, num_images: int, name: str) -> Tensor:
    """Return masks as ``(N, H, W)``."""
    if mask.dim() == 3 and len(mask) == num_images:
        return mask
    if mask.dim() == 4 and mask.shape[:2] == (num_images, 1):
        return mask[:, 0]
    # torchgeo's INRIA module puts the axis before the batch.
    if mask.dim() == 4 and mask.shape[:2] == (1, num_images):
        return mask[0]
    raise DatasetError(
        f"{name} gives masks of shape {tuple(mask.shape)} for {num_images} images; geonorm takes one mask an image."
    )
