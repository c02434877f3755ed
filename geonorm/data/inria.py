"""Building masks in the layout of INRIA Aerial Image Labeling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import InriaAerialImageLabeling

from geonorm.data.pairs import Pair, open_pair
from geonorm.data.patches import PatchLoader, PatchNumbers, RandomPatches, WholeShare, turned
from geonorm.data.spec import INRIA, DatasetSpec
from geonorm.errors import DatasetError, InvalidConfigError, name_some
from geonorm.raster.read import Grid, open_raster
from geonorm.raster.window import Window

RASTER_SUFFIXES = {".tif", ".tiff"}
BANDS = (1, 2, 3)
MOST_NAMES = 8
"""So many files are named in a message."""


class InriaDataModule(NonGeoDataModule):
    """Random patches for training, whole tiles for validation, from folders of images and building masks.

    A folder is ``AerialImageDataset`` or its parent (``train/images``, ``train/gt``, as distributed), or any folder
    with ``images/NAME.tif`` and ``gt/NAME.tif``, of any size; masks hold 0/255 or 0/1. Training patches are random
    windows read straight from the files, flipped and turned by right angles on the device.

    Source: Maggiori et al., IGARSS 2017; protocol of Ortiz et al., CVPR 2020, section 4.4.

    Args:
        root: One folder or several.
        val_names: Names (without suffix) of the images kept for validation; None: tiles 1 to 5 of each city.
        patch_px: Side of a training patch.
        batch_size: Patches per step.
        patches_per_epoch: Patches per epoch.
        num_workers: Processes that read patches.
        seed: Chooses the patches and their turns.

    Raises:
        DatasetError: No images, images without masks, or a split with nothing in it.
    """

    def __init__(
        self,
        root: Path | list[Path],
        *,
        val_names: list[str] | None = None,
        patch_px: int = 572,
        batch_size: int = 12,
        patches_per_epoch: int = 8000,
        num_workers: int = 2,
        seed: int = 0,
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
        super().__init__(InriaAerialImageLabeling, batch_size, num_workers)
        self.root = [Path(folder) for folder in (root if isinstance(root, list) else [root])]
        self.val_names = val_names
        self.patch_px = patch_px
        self.patches_per_epoch = patches_per_epoch
        self.seed = seed
        self._numbers = PatchNumbers(patches_per_epoch, batch_size=batch_size)

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """Images and masks of the splits ``"train"`` and ``"val"``."""
        pairs = [pair for folder in self.root for pair in find_pairs(folder)]
        is_val = _official_split if self.val_names is None else set(self.val_names).__contains__
        splits = {
            "train": [pair for pair in pairs if not is_val(pair.name)],
            "val": [pair for pair in pairs if is_val(pair.name)],
        }
        names = name_some(sorted(pair.name for pair in pairs), MOST_NAMES)
        missing = set(self.val_names or ()) - {pair.name for pair in pairs}
        if missing:
            raise DatasetError(
                f"val_names: no image is named {', '.join(sorted(missing))} in {_names(self.root)}. There: {names}."
            )
        for split, members in splits.items():
            if not members:
                raise DatasetError(
                    f"No image is left for {split} in {_names(self.root)}; there are {names}. "
                    "Name the images to validate on with --data.val_names."
                )
        return splits

    @cached_property
    def grids(self) -> dict[str, list[Grid]]:
        """The grids of the images of each split."""
        return {split: [_grid(pair) for pair in pairs] for split, pairs in self.pairs.items()}

    @cached_property
    def spec(self) -> DatasetSpec:
        """Bands, classes and scale, with statistics measured on the training images."""
        means, deviations = self._measure()
        resolutions = [grid.resolution_m for grid in self.grids["train"] if grid.resolution_m]
        spec = replace(INRIA, resolution_m=median(resolutions) if resolutions else None)
        return spec.with_statistics(means, deviations)

    def setup(self, stage: str) -> None:
        """Find the files of the splits, so that what is wrong with them is said before training."""
        splits = self.pairs
        if stage == "fit":
            self._patches = RandomPatches(
                splits["train"], self.grids["train"], bands=BANDS, patch_px=self.patch_px, seed=self.seed
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
        """Return the files of whole tiles, one at a time; the task reads them by windows."""
        tiles = WholeTiles(self.pairs["val"])
        rank, processes = self._place()
        share = WholeShare(len(tiles), rank=rank, processes=processes)
        return DataLoader(tiles, batch_size=1, sampler=share, collate_fn=_only)

    def _place(self) -> tuple[int, int]:
        """Return the number of this process and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the validation tiles: the labels of INRIA's own test cities are withheld."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turn the patches, and put the training mean where they have no data."""
        if "turn" not in batch:
            return batch
        means = torch.tensor(self.spec.band_means, device=batch["image"].device)[:, None, None]
        valid = batch["valid"][:, None]
        valid = valid & batch.get("value_valid", valid)
        image = torch.where(valid, batch["image"].to(torch.float32), means)
        labels = batch["mask"]
        turns = batch["turn"].tolist()
        return {
            "image": torch.stack([turned(one, turn) for one, turn in zip(image, turns, strict=True)]),
            "mask": torch.stack([turned(one, turn) for one, turn in zip(labels, turns, strict=True)]),
        }

    def _measure(self, windows: int = 64, side_px: int = 256) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation of each band over some windows of the training images."""
        draw = np.random.default_rng(self.seed)
        count, total, squares = (np.zeros(len(BANDS)) for _ in range(3))
        areas = np.array([grid.height * grid.width for grid in self.grids["train"]], dtype=float)
        for which in draw.choice(len(areas), size=windows, p=areas / areas.sum()):
            grid = self.grids["train"][which]
            height, width = min(side_px, grid.height), min(side_px, grid.width)
            row, col = draw.integers(grid.height - height + 1), draw.integers(grid.width - width + 1)
            with open_pair(self.pairs["train"][which], bands=BANDS) as pair:
                pixels = pair.read(Window(int(row), int(col), height, width))
            valid = pixels.value_valid & pixels.valid
            values = np.where(valid, pixels.values, 0).astype(np.float64)
            count += valid.sum((1, 2))
            total += values.sum((1, 2))
            squares += (values**2).sum((1, 2))
        if not count.all():
            raise DatasetError(f"The training images in {_names(self.root)} hold a band with no valid pixel.")
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
        return tuple(mean.tolist()), tuple(deviation.tolist())


class WholeTiles(Dataset[dict[str, str]]):
    """Names the files of whole tiles."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, str]:
        """Return the fields of a `Pair`."""
        pair = self.pairs[index]
        return {"image": pair.image, "labels": pair.labels, "group": pair.group}


def find_pairs(root: Path) -> list[Pair]:
    """Return the images of a folder with their masks, by name."""
    folder = next(
        (root / part for part in ("AerialImageDataset/train", "train", "") if (root / part / "images").is_dir()),
        None,
    )
    if folder is None:
        problem = "does not exist" if not root.exists() else "has no folder images/ (with gt/ beside it)"
        raise DatasetError(
            f"{root} {problem}. Give AerialImageDataset or its parent, or a folder with images/ and gt/ of equal names."
        )
    images = {path.stem: path for path in _rasters(folder / "images")}
    masks = {path.stem: path for path in _rasters(folder / "gt")}
    if not images:
        raise DatasetError(f"{folder / 'images'} holds no GeoTIFF (.tif, .tiff).")
    lonely = sorted(set(images) - set(masks))
    if lonely:
        raise DatasetError(
            f"{len(lonely)} of {len(images)} images in {folder / 'images'} have no mask of the same name in "
            f"{folder / 'gt'}: {name_some(lonely, MOST_NAMES)}."
        )
    return [
        Pair(image=str(path), labels=str(masks[stem]), group=city_of(stem)) for stem, path in sorted(images.items())
    ]


def city_of(stem: str) -> str:
    """Return the city that a tile's name begins with.

    Example:
        >>> city_of("tyrol-w12"), city_of("austin3_45"), city_of("somewhere")
        ('tyrol-w', 'austin', 'somewhere')
    """
    match = re.match(r"(\D+)\d", stem)
    return match[1].rstrip("-_") if match else stem


def _official_split(stem: str) -> bool:
    """Say whether a tile is among the first five of its city (the contest page's validation set)."""
    match = re.fullmatch(r"\D+(\d+)", stem)
    return match is not None and int(match[1]) <= 5


def _rasters(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in RASTER_SUFFIXES)


def _grid(pair: Pair) -> Grid:
    with open_raster(pair.image, bands=BANDS) as reader:
        return reader.grid


def _only(samples: list[dict[str, str]]) -> dict[str, str]:
    return samples[0]


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))
