"""Building masks in the layout of INRIA Aerial Image Labeling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from torchgeo.datasets import InriaAerialImageLabeling

from geonorm.data.pairs import Pair
from geonorm.data.patch_module import PatchDataModule
from geonorm.data.spec import INRIA, DatasetSpec
from geonorm.errors import DatasetError, name_some

RASTER_SUFFIXES = {".tif", ".tiff"}
MOST_NAMES = 8
"""So many files are named in a message."""


class InriaDataModule(PatchDataModule):
    """Random patches for training, whole tiles for validation, from folders of images and building masks.

    A folder is ``AerialImageDataset`` or its parent (``train/images``, ``train/gt``, as distributed), or any folder
    with ``images/NAME.tif`` and ``gt/NAME.tif``, of any size; masks hold 0/255 or 0/1. Training patches are random
    windows read straight from the files, flipped and turned by right angles on the device.

    Source: Maggiori et al., IGARSS 2017; protocol of Ortiz et al., CVPR 2020, section 4.4.

    Args:
        root: One folder or several.
        val_names: Names (without suffix) of the images kept for validation; None: tiles 1 to 5 of each city.
        train_on_all: Train on these as well, as for the contest: their scores are then those of training.
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
        train_on_all: bool = False,
        patch_px: int = 572,
        batch_size: int = 12,
        patches_per_epoch: int = 8000,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(
            InriaAerialImageLabeling,
            patch_px=patch_px,
            batch_size=batch_size,
            patches_per_epoch=patches_per_epoch,
            num_workers=num_workers,
            seed=seed,
        )
        self.root = [Path(folder) for folder in (root if isinstance(root, list) else [root])]
        self.val_names = val_names
        self.train_on_all = train_on_all

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """Images and masks of the splits ``"train"`` and ``"val"``."""
        pairs = [pair for folder in self.root for pair in find_pairs(folder)]
        is_val = _official_split if self.val_names is None else set(self.val_names).__contains__
        splits = {
            "train": [pair for pair in pairs if self.train_on_all or not is_val(pair.name)],
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

    @property
    def facts(self) -> DatasetSpec:
        """Three bands, two classes."""
        return INRIA


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


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))
