"""Land cover in the layout of Chesapeake Land Cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path

from torchgeo.datasets import ChesapeakeCVPR

from geonorm.data.checking_findings import Findings
from geonorm.data.labels import LabelRules
from geonorm.data.pairs import Pair
from geonorm.data.patch_module import PatchDataModule
from geonorm.data.spec import CHESAPEAKE, DatasetSpec
from geonorm.errors import MOST_NAMES, InvalidConfigError, name_some
from geonorm.raster.facts import facts_of
from geonorm.raster.read import open_raster

STATES = ("de", "md", "ny", "pa", "va", "wv")
SPLITS = ("train", "val", "test")
BANDS = (1, 2, 3, 4)
FOUR_CLASSES = LabelRules(classes=((1,), (2,), (3,), (4, 5, 6)), ignored=(0, 15))
"""Water, forest, field, and all that is barren or built; pixels without a label (0, 15) do not count."""
_FOLDER = "{state}_1m_*_extended-debuffered-{split}_tiles"

NAIP = ("naip-new", "naip-old")
SUFFIXES = (".tif", ".vrt")


class ChesapeakeDataModule(PatchDataModule):
    """Random patches of the training tiles of some states, whole tiles of others for validation and testing.

    Windows are drawn by pixel in each tile's own UTM grid, so every pixel of a tile is as likely as any other, and a
    tile is scored whole. The four bands of an image are data, whatever their tags say. Scores are summed over the tiles
    of a state.

    Source: Robinson et al., CVPR 2019; protocol of Ortiz et al., CVPR 2020, section 4.5.

    Args:
        root: Folder ``cvpr_chesapeake_landcover``, or its parent.
        train_states: States to train on: ``de``, ``md``, ``ny``, ``pa``, ``va``, ``wv``.
        val_states: States to validate on; the same where None.
        test_states: States to test on; the same where None. Others show how well a network generalizes.
        imagery: ``"naip-new"`` (2013 or 2014) or ``"naip-old"`` (2011 or 2012), four bands; or another layer, of which
            all bands are taken: ``"landsat-leaf-on"``, or a stack of layers that ``data_scripts/stack_layers.py`` made,
            such as ``"naip-new+nlcd"``.
        patch_px: Side of a training patch.
        batch_size: Patches per step.
        patches_per_epoch: Patches per epoch.
        num_workers: Processes that read patches.
        seed: Chooses the patches and their turns.

    Raises:
        InvalidConfigError: A state that is not among the six.
        DatasetError: Tiles or their labels are missing.
    """

    def __init__(
        self,
        root: Path,
        *,
        train_states: list[str] | None = None,
        val_states: list[str] | None = None,
        test_states: list[str] | None = None,
        imagery: str = "naip-new",
        patch_px: int = 256,
        batch_size: int = 96,
        patches_per_epoch: int = 50_000,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(
            ChesapeakeCVPR,
            patch_px=patch_px,
            batch_size=batch_size,
            patches_per_epoch=patches_per_epoch,
            num_workers=num_workers,
            seed=seed,
        )
        self.root = Path(root)
        trained = train_states or ["md"]
        self.states = {"train": trained, "val": val_states or trained, "test": test_states or trained}
        self.imagery = imagery
        for split, states in self.states.items():
            unknown = sorted({*states} - {*STATES})
            if unknown:
                raise InvalidConfigError(
                    f"{split}_states must be some of {', '.join(STATES)}, got {name_some(unknown)}."
                )

    @property
    def facts(self) -> DatasetSpec:
        """Four bands or those of the layers, four classes."""
        return replace(CHESAPEAKE, bands=self._band_names)

    @cached_property
    def _band_names(self) -> tuple[str, ...]:
        if self.imagery in NAIP:
            return CHESAPEAKE.bands
        images = (_images(self.root, state, "train", self.imagery)[1] for state in self.states["train"])
        image = next(chain.from_iterable(images), None)
        if image is None:
            return CHESAPEAKE.bands  # what is missing is told where tiles are looked for
        with open_raster(str(image)) as reader:
            said = facts_of(reader).descriptions
        return tuple(name or f"band {at}" for at, name in enumerate(said, start=1))

    def find(self, findings: Findings) -> dict[str, list[Pair]]:
        """Images and land cover of the splits."""
        return {
            split: [
                pair
                for state in self.states[split]
                for pair in find_tiles(
                    self.root, state, split, self.imagery, findings, bands=range(1, len(self._band_names) + 1)
                )
            ]
            for split in SPLITS
        }


def find_tiles(
    root: Path,
    state: str,
    split: str,
    imagery: str,
    findings: Findings | None = None,
    *,
    bands: Sequence[int] = BANDS,
) -> Sequence[Pair]:
    """Return the tiles of a state and a split with their land cover, by name.

    Args:
        root: Folder ``cvpr_chesapeake_landcover``, or its parent.
        state: Of the six.
        split: ``train``, ``val`` or ``test``.
        imagery: As of `ChesapeakeDataModule`.
        findings: Take what is wrong; raised where None.
        bands: Bands of the images, counted from 1.

    Raises:
        DatasetError: There are none, or one has no land cover.
    """
    findings = Findings(strict=True) if findings is None else findings
    folders, images = _images(root, state, split, imagery)
    if not images:
        pattern = _FOLDER.format(state=state, split=split)
        problem = f"has no folder {pattern}" if not folders else f"has no *_{imagery}.tif in {folders[0].name}"
        findings.error(
            "no images",
            str(root),
            f"{root} {problem if root.exists() else 'does not exist'}. Give cvpr_chesapeake_landcover or its parent.",
        )
        return []
    labels = [path.with_name(f"{path.stem.removesuffix(f'_{imagery}')}_lc.tif") for path in images]
    lonely = [path for path, label in zip(images, labels, strict=True) if not label.exists()]
    if lonely:
        findings.error(
            "no labels",
            list(map(str, lonely)),
            f"{len(lonely)} of {len(images)} images in {folders[0]} have no land cover (*_lc.tif): "
            f"{name_some([path.name for path in lonely], MOST_NAMES)}.",
        )
    return [
        Pair(image=str(image), labels=str(label), group=state, bands=tuple(bands), rules=FOUR_CLASSES)
        for image, label in zip(images, labels, strict=True)
        if image not in lonely
    ]


def _images(root: Path, state: str, split: str, imagery: str) -> tuple[Sequence[Path], Sequence[Path]]:
    """Return the folders of a state and a split, and the images in them, by name."""
    pattern = _FOLDER.format(state=state, split=split)
    folders = [folder for part in ("cvpr_chesapeake_landcover", "") for folder in sorted((root / part).glob(pattern))]
    found = [path for folder in folders for suffix in SUFFIXES for path in folder.glob(f"*_{imagery}{suffix}")]
    return folders, sorted(found)
