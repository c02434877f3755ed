"""Building masks in the layout of INRIA Aerial Image Labeling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torchgeo.datasets import InriaAerialImageLabeling

from geonorm.data.checking_findings import Findings
from geonorm.data.pairs import Pair, draw_names
from geonorm.data.patch_module import PatchDataModule
from geonorm.data.spec import INRIA, DatasetSpec
from geonorm.errors import MOST_NAMES, name_some

RASTER_SUFFIXES = {".tif", ".tiff"}
FOLDER = "AerialImageDataset"
"""As INRIA is distributed; drawn scenes and samples of it lie in a folder of this name, too."""
TRAINING_CITIES = ("austin", "chicago", "kitsap", "tyrol-w", "vienna")
OFFICIAL = 5
"""The first tiles of each city, which the contest page proposes for validation."""
OWN_SHARE = 0.2
"""Share of other images that validate where none are named."""


class InriaDataModule(PatchDataModule):
    """Random patches for training, whole tiles for validation, from folders of images and building masks.

    A folder is ``AerialImageDataset`` or its parent (``train/images``, ``train/gt``, as distributed), or any folder
    with ``images/NAME.tif`` and ``gt/NAME.tif``, of any size; masks hold 0/255 or 0/1. Training patches are random
    windows read straight from the files, flipped and turned by right angles on the device.

    Source: Maggiori et al., IGARSS 2017; protocol of Ortiz et al., CVPR 2020, section 4.4.

    Args:
        root: One folder or several.
        val_names: Names (without suffix) of the images kept for validation; None: tiles 1 to 5 of each city of INRIA
            (or in a folder ``AerialImageDataset``), of other images a fifth, which is announced.
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

    def find(self, findings: Findings) -> dict[str, list[Pair]]:
        """Images and masks of the splits ``"train"`` and ``"val"``."""
        pairs = [pair for folder in self.root for pair in find_pairs(folder, findings)]
        check_names(pairs, findings)
        chosen, reason = self._for_validation(pairs, findings)
        splits = {
            "train": [pair for pair in pairs if self.train_on_all or pair.name not in chosen],
            "val": [pair for pair in pairs if pair.name in chosen],
        }
        names = name_some(sorted(pair.name for pair in pairs), MOST_NAMES)
        missing = set(self.val_names or ()) - {pair.name for pair in pairs}
        if missing:
            findings.error(
                "names of a split",
                _names(self.root),
                f"val_names: no image is named {', '.join(sorted(missing))} in {_names(self.root)}. There: {names}.",
            )
        for split, members in splits.items():
            if not members and pairs:
                findings.error(
                    "empty split",
                    _names(self.root),
                    f"No image is left for {split} in {_names(self.root)}; there are {names}. {reason}"
                    "Name the images to validate on with --data.val_names.",
                )
        return splits

    def _for_validation(self, pairs: Sequence[Pair], findings: Findings) -> tuple[set[str], str]:
        """Return the names of the images for validation, and the rule that chose them in words, if it was ours."""
        if self.val_names is not None:
            return set(self.val_names), ""
        if all(_is_of_inria(pair) for pair in pairs):
            rule = f"Without val_names, tiles 1 to {OFFICIAL} of each city are for validation. "
            return {pair.name for pair in pairs if _official_split(pair.name)}, rule
        names = {pair.name for pair in pairs}
        # Not by the seed: trainings with several seeds are compared on the same images.
        chosen = draw_names(names, max(1, round(OWN_SHARE * len(names))), seed=0)
        if len(names) > 1:
            some = ", ".join(sorted(chosen)) if len(chosen) <= MOST_NAMES else name_some(sorted(chosen))
            findings.warning(
                "validation by lot",
                _names(self.root),
                f"val_names is not given, so {len(chosen)} of the {len(names)} images in {_names(self.root)} are drawn "
                f"for validation: {some}. Name them with --data.val_names to keep or change them.",
            )
        return chosen, ""

    @property
    def facts(self) -> DatasetSpec:
        """Three bands, two classes."""
        return INRIA


def find_pairs(root: Path, findings: Findings | None = None) -> list[Pair]:
    """Return the images of a folder with their masks, by name.

    Args:
        root: The folder.
        findings: Take what is wrong; raised where None.

    Raises:
        DatasetError: There is no image, or images have no mask.
    """
    findings = Findings(strict=True) if findings is None else findings
    folder = next(
        (root / part for part in (f"{FOLDER}/train", "train", "") if (root / part / "images").is_dir()),
        None,
    )
    if folder is None:
        problem = "does not exist" if not root.exists() else "has no folder images/ (with gt/ beside it)"
        findings.error(
            "no images",
            str(root),
            f"{root} {problem}. Give AerialImageDataset or its parent, or a folder with images/ and gt/ of equal "
            "names.",
        )
        return []
    images, masks = (_by_stem(folder / part, findings) for part in ("images", "gt"))
    if not images:
        findings.error("no images", str(folder / "images"), f"{folder / 'images'} holds no GeoTIFF (.tif, .tiff).")
    lonely = sorted(set(images) - set(masks))
    if lonely:
        findings.error(
            "no labels",
            [str(images[stem]) for stem in lonely],
            f"{len(lonely)} of {len(images)} images in {folder / 'images'} have no mask of the same name in "
            f"{folder / 'gt'}: {name_some(lonely, MOST_NAMES)}.",
        )
    return [
        Pair(image=str(path), labels=str(masks[stem]), group=city_of(stem))
        for stem, path in sorted(images.items())
        if stem in masks
    ]


def _by_stem(folder: Path, findings: Findings) -> dict[str, Path]:
    """Return the rasters of a folder by their names without suffix; those that share one are told."""
    by_stem: dict[str, list[Path]] = {}
    for path in _rasters(folder, findings):
        by_stem.setdefault(path.stem.casefold(), []).append(path)
    for paths in by_stem.values():
        if len(paths) > 1:
            findings.error(
                "names twice",
                [str(path) for path in paths],
                f"{' and '.join(map(str, paths))} have one name but for their suffix or case, and names tell images "
                "apart. Rename or remove one.",
            )
    return {path.stem: path for paths in by_stem.values() for path in paths[:1]}


def check_names(pairs: Sequence[Pair], findings: Findings) -> None:
    """Say which images of several folders share a name: ``val_names`` means all of them."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        other = first.setdefault(pair.name.casefold(), pair)
        if other is not pair:
            findings.warning(
                "names twice",
                (pair.image, other.image),
                f"{pair.image} and {other.image} have one name, so val_names means both. Rename one to tell them "
                "apart.",
            )


def city_of(stem: str) -> str:
    """Return the city that a tile's name begins with.

    Example:
        >>> city_of("tyrol-w12"), city_of("austin3_45"), city_of("somewhere")
        ('tyrol-w', 'austin', 'somewhere')
    """
    match = re.match(r"(\D+)\d", stem)
    return match[1].rstrip("-_") if match else stem


def _is_of_inria(pair: Pair) -> bool:
    """Say whether an image lies as INRIA's are distributed, or has the name of one of its tiles."""
    folder = Path(pair.image).absolute().parent
    is_tile = re.fullmatch(rf"({'|'.join(TRAINING_CITIES)})\d+", pair.name) is not None
    return is_tile or folder.parts[-3:] == (FOLDER, "train", "images")


def _official_split(stem: str) -> bool:
    """Say whether a tile is among the first five of its city (the contest page's validation set)."""
    match = re.fullmatch(r"\D+(\d+)", stem)
    return match is not None and int(match[1]) <= OFFICIAL


def _rasters(folder: Path, findings: Findings) -> Sequence[Path]:
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        findings.error("no images", str(folder), f"{folder} cannot be read: {error.strerror}. Check who may read it.")
        return []
    # Hidden files are not images: macOS leaves a ._NAME.tif beside each file on foreign disks.
    return [path for path in paths if path.suffix.lower() in RASTER_SUFFIXES and not path.name.startswith(".")]


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))
