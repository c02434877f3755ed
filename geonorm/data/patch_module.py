"""Random patches for training and whole scenes for validation, from images and labels on disk."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from statistics import median
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchgeo.datamodules import NonGeoDataModule

from geonorm.data.augment import Augmentations
from geonorm.data.checking import Checked, check_pairs
from geonorm.data.checking_findings import Finding, Findings
from geonorm.data.pairs import Pair
from geonorm.data.patches import PatchLoader, PatchNumbers, RandomPatches, WholeShare, turned, unpacked
from geonorm.data.spec import DatasetSpec
from geonorm.data.statistics import Statistics, cached_statistics
from geonorm.errors import MOST_NAMES, GeonormWarning, InvalidConfigError, name_some
from geonorm.raster.grid import Grid


class PatchDataModule(NonGeoDataModule):
    """What data modules of images and labels on disk have in common; a subclass says which (`find`, `facts`).

    Training patches are random windows read straight from the files, flipped and turned by right angles on the device.

    Args:
        dataset_class: Of torchgeo, where there is one.
        patch_px: Side of a training patch.
        batch_size: Patches per step.
        patches_per_epoch: Patches per epoch.
        num_workers: Processes that read patches.
        seed: Chooses the patches and their turns.
    """

    def __init__(
        self,
        dataset_class: Any,
        *,
        patch_px: int,
        batch_size: int,
        patches_per_epoch: int,
        num_workers: int,
        seed: int,
    ) -> None:
        for name, value, least in (
            ("patch_px", patch_px, 1),
            ("batch_size", batch_size, 1),
            ("patches_per_epoch", patches_per_epoch, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise InvalidConfigError(f"{name} must be at least {least}, got {value}.")
        super().__init__(dataset_class, batch_size, num_workers)
        self.patch_px = patch_px
        self.patches_per_epoch = patches_per_epoch
        self.seed = seed
        self.augment: Augmentations | None = None
        self._numbers = PatchNumbers(patches_per_epoch, batch_size=batch_size)
        self._told: list[Finding] = []

    @abstractmethod
    def find(self, findings: Findings) -> dict[str, list[Pair]]:
        """Return images and labels of the splits ``"train"`` and ``"val"``, and of ``"test"`` where there is one.

        Args:
            findings: Take what is wrong; what is not goes on, so that all of it can be told.
        """

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """Images and labels of the splits."""
        findings = Findings(strict=True)
        pairs = self.find(findings)
        self._told = findings.found
        return pairs

    @property
    @abstractmethod
    def facts(self) -> DatasetSpec:
        """Bands and classes; resolution and statistics are measured where they are missing."""

    @cached_property
    def checked(self) -> Checked:
        """What the files say of themselves: every header, and some windows of pixels.

        Raises:
            DatasetError: Training could not work; the first of the reasons, and how many more there are.
        """
        pairs = self.pairs
        findings = Findings(found=list(self._told))
        checked = check_pairs(pairs, self.facts.class_names, patch_px=self.patch_px, findings=findings)
        checked.findings.raise_errors()
        if getattr(rank_zero_only, "rank", 0) == 0:
            checked.findings.log_warnings()
        return checked

    @cached_property
    def grids(self) -> dict[str, list[Grid]]:
        """The grids of the images of each split."""
        grids = {header.pair.image: header.grid for header in self.checked.headers}
        return {split: [grids[pair.image] for pair in pairs] for split, pairs in self.pairs.items()}

    @cached_property
    def spec(self) -> DatasetSpec:
        """Bands, classes and scale, with statistics and class shares measured on the training images."""
        facts, measured = self.facts, self.statistics
        if facts.band_means is None or facts.band_deviations is None:
            facts = facts.with_statistics(measured.means, measured.deviations)
        if facts.class_shares is None:
            facts = replace(facts, class_shares=measured.class_shares)
        if facts.resolution_m is None:
            resolutions = [grid.resolution_m for grid in self.grids["train"] if grid.resolution_m]
            facts = replace(facts, resolution_m=median(resolutions) if resolutions else None)
        return facts

    @cached_property
    def statistics(self) -> Statistics:
        """Band statistics and class shares of the training images, from the cache where they were measured before."""
        return cached_statistics(
            self.pairs["train"], self.grids["train"], num_classes=len(self.facts.class_names), seed=self.seed
        )

    def setup(self, stage: str) -> None:
        """Find and check the files of the splits, so that what is wrong with them is said before training."""
        splits, checked = self.pairs, self.checked
        if stage == "fit":
            self._patches = RandomPatches(
                splits["train"],
                self.grids["train"],
                patch_px=self.patch_px,
                seed=self.seed,
                as_float=checked.mixes_types,
            )
            rank, processes = self._place()
            self._numbers = PatchNumbers(
                self.patches_per_epoch, batch_size=self.batch_size, rank=rank, processes=processes
            )
            if not self._numbers.steps:
                raise InvalidConfigError(
                    f"patches_per_epoch must hold a batch of every process, got {self.patches_per_epoch} for "
                    f"{processes} of {self.batch_size}."
                )

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return random patches, new ones in each epoch; several processes share every step's."""
        return PatchLoader(self._patches, self._numbers, num_workers=self.num_workers)

    def state_dict(self) -> dict[str, int]:
        """Return which patch comes next: a checkpoint keeps it, so that a resumed run sees what remained."""
        return {"next": self._numbers.next}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on with the patch that comes next."""
        self._numbers.next = state_dict["next"]

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the files of whole scenes, one at a time; the task reads them by windows."""
        return self._whole("val")

    def _whole(self, split: str) -> DataLoader[Any]:
        tiles = WholeTiles(self.pairs[split])
        rank, processes = self._place()
        share = WholeShare(len(tiles), rank=rank, processes=processes)
        return DataLoader(tiles, batch_size=1, sampler=share, collate_fn=_only)

    def _place(self) -> tuple[int, int]:
        """Return the number of this process and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the files of the test scenes; those of validation where there are none, which is said."""
        if self.pairs.get("test"):
            return self._whole("test")
        if self._place()[0] == 0:
            names = name_some([pair.name for pair in self.pairs["val"]], MOST_NAMES)
            warnings.warn(
                f"there are no test images, so the test scores are those of the validation images: {names}. They say "
                "less where these chose the checkpoint or the settings.",
                GeonormWarning,
                stacklevel=2,
            )
        return self._whole("val")

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turn the patches, put the training mean where they have no data, and change them as `augment` says."""
        if "turn" not in batch:
            return batch
        spec = self.spec
        means = torch.tensor(spec.band_means, device=batch["image"].device)[:, None, None]
        valid = unpacked(batch["valid"], batch["image"].shape[1])
        image = batch["image"].to(torch.float32)
        if not valid.all():  # rare, and as dear as reading
            image = torch.where(valid, image, means)
        turns = batch["turn"].tolist()
        image, labels = _turned(image, turns), _turned(batch["mask"], turns)
        if self.augment is not None:
            assert spec.band_means is not None
            assert spec.band_deviations is not None
            image, labels = self.augment(
                image,
                labels,
                _turned(valid, turns),
                numbers=batch["number"].tolist(),
                means=spec.band_means,
                deviations=spec.band_deviations,
                eight_bit=batch["image"].dtype == torch.uint8,
            )
        return {"image": image, "mask": labels}


class WholeTiles(Dataset[dict[str, Pair]]):
    """Names the files of whole tiles."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Pair]:
        """Return a pair."""
        return {"pair": self.pairs[index]}


def _turned(images: Tensor, turns: Sequence[int]) -> Tensor:
    """Return each image of a batch turned as its number says."""
    return torch.stack([turned(image, turn) for image, turn in zip(images, turns, strict=True)])


def _only(samples: list[dict[str, Pair]]) -> dict[str, Pair]:
    return samples[0]
