"""Anybody's own images and labels."""

from __future__ import annotations

import csv
import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from geonorm.data.checking_findings import Findings
from geonorm.data.labels import VECTOR_SUFFIXES, LabelRules, is_vector
from geonorm.data.pairs import Pair, draw_names
from geonorm.data.patch_module import PatchDataModule
from geonorm.data.spec import IGNORE_LABEL, DatasetSpec
from geonorm.errors import MOST_NAMES, DatasetError, InvalidConfigError, name_some
from geonorm.raster.area import Area, AreaMissesError
from geonorm.raster.read import NodataRule, open_raster
from geonorm.raster.sources import RASTER_SUFFIXES
from geonorm.raster.window import Window

SPLITS = ("train", "val", "test")
PALETTE = (
    (32, 32, 40),
    (255, 196, 0),
    (38, 132, 75),
    (46, 116, 199),
    (214, 69, 65),
    (155, 89, 182),
    (230, 126, 34),
    (149, 165, 166),
    (26, 188, 156),
    (243, 156, 190),
)


class RastersDataModule(PatchDataModule):
    """Random patches for training, whole images for validation, from anybody's own files.

    Images are GeoTIFFs, or what else GDAL opens, of any size, type and CRS. Labels are rasters, on the grid of their
    image or on another, or files of polygons. Which image is for training, validation and testing is said in one of
    four ways: by a column of the table, by regions on the ground, by names, or by a share.

    Args:
        images: Folder, pattern (``data/**/*.tif``) or list of files; instead of ``table``.
        labels: Label file of each image: a folder with files of the same name, a pattern in which ``{name}`` stands for
            the image's (``masks/{name}_mask.tif``), or one file of polygons for all images.
        table: CSV file with the columns ``image`` and ``labels``, and, where wanted, ``split`` (train, val, test) and
            ``group`` (what scores are summed over, such as the city). Paths count from its folder.
        classes: The values of each class in the label files, by its name, in the order of the labels 0, 1, ...
        scored_classes: Names of the classes whose mean IoU is the score; all where None.
        colors: Red, green and blue of classes, by name.
        ignored: Values that no loss and no score counts.
        ignore_others: Ignore values that no class has, too, which else are an error.
        attribute: Of files of polygons, whose values ``classes`` names; where None, all polygons are of class 1.
        layer: Of files of polygons with several.
        background: Name of the class under no polygon; ``"ignored"`` leaves these pixels out; None: the first class.
        bands: Bands of the images, counted from 1, in the order the model is to take them; the first three where None.
        band_names: Their names.
        nodata: Value of the images without data, beside what they declare.
        nodata_rule: A pixel has no data where ``"all"`` or ``"any"`` of its bands have none.
        regions: File of polygons with an attribute ``split``; an image belongs to the one that holds its centre.
        val_names: Names (without suffix) of the images for validation.
        test_names: Names of those for testing.
        val_share: Share of the images for validation, drawn with ``seed``.
        patch_px: Side of a training patch.
        batch_size: Patches per step.
        patches_per_epoch: Patches per epoch.
        num_workers: Processes that read patches.
        seed: Chooses the patches and their turns, and the images of ``val_share``.

    Raises:
        DatasetError: Files that are missing or do not fit together, or a split with nothing in it.
        InvalidConfigError: Settings that contradict each other.
    """

    def __init__(
        self,
        classes: dict[str, list[int | float | str]],
        *,
        images: str | list[str] | None = None,
        labels: str | None = None,
        table: str | None = None,
        scored_classes: list[str] | None = None,
        colors: dict[str, list[int]] | None = None,
        ignored: list[int | float | str] | None = None,
        ignore_others: bool = False,
        attribute: str | None = None,
        layer: str | None = None,
        background: str | None = None,
        bands: list[int] | None = None,
        band_names: list[str] | None = None,
        nodata: float | None = None,
        nodata_rule: NodataRule = "all",
        regions: str | None = None,
        val_names: list[str] | None = None,
        test_names: list[str] | None = None,
        val_share: float | None = None,
        patch_px: int = 256,
        batch_size: int = 8,
        patches_per_epoch: int = 2000,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(
            None,
            patch_px=patch_px,
            batch_size=batch_size,
            patches_per_epoch=patches_per_epoch,
            num_workers=num_workers,
            seed=seed,
        )
        if (table is None) == (images is None or labels is None):
            raise InvalidConfigError("give images and labels, or a table with the columns image and labels.")
        if sum(way is not None for way in (regions, val_names, val_share)) > 1:
            raise InvalidConfigError("regions, val_names and val_share each say what to validate on: give one of them.")
        if val_share is not None and not 0 < val_share < 1:
            raise InvalidConfigError(f"val_share must be between 0 and 1, got {val_share}.")
        names = list(classes)
        for setting, given in (("scored_classes", scored_classes), ("colors", colors), ("background", [background])):
            unknown = sorted({*(given or ())} - {*names, None, "ignored" if setting == "background" else None}, key=str)
            if unknown:
                raise InvalidConfigError(
                    f"{setting}: no class is named {name_some(unknown)}; there are {', '.join(names)}."
                )
        self.bands, self._bands_chosen = tuple(bands or (1, 2, 3)), bool(bands)
        if band_names is not None and len(band_names) != len(self.bands):
            raise InvalidConfigError(f"{len(self.bands)} bands need as many band_names, got {len(band_names)}.")
        self.rules = LabelRules(
            classes=tuple(tuple(values) for values in classes.values()),
            ignored=tuple(ignored or ()),
            ignore_others=ignore_others,
            attribute=attribute,
            layer=layer,
            background=IGNORE_LABEL if background == "ignored" else names.index(background or names[0]),
            any_grid=True,
        )
        self._facts = DatasetSpec(
            bands=tuple(band_names or _band_names(self.bands)),
            class_names=tuple(names),
            class_colors=tuple(_color(name, label, colors or {}) for label, name in enumerate(names)),
            scored_classes=tuple(names.index(name) for name in scored_classes or names),
        )
        self.images, self.labels, self.table, self.regions = images, labels, table, regions
        self.val_names, self.test_names, self.val_share = val_names, test_names, val_share
        self.nodata, self.nodata_rule = nodata, nodata_rule

    @property
    def facts(self) -> DatasetSpec:
        """Bands and classes as the settings name them."""
        return self._facts

    def find(self, findings: Findings) -> dict[str, list[Pair]]:
        """Images and labels of the splits."""
        found = list(self._found(findings))
        names = Counter(pair.name.casefold() for pair, _ in found)  # some file systems take no notice of case
        twice = sorted((pair for pair, _ in found if names[pair.name.casefold()] > 1), key=lambda pair: pair.name)
        if twice:
            some = name_some(sorted({pair.name for pair in twice}), MOST_NAMES)
            findings.error(
                "names twice",
                [pair.image for pair in twice],
                f"{len(twice) - len({pair.name.casefold() for pair in twice})} images have the name of another one: "
                f"{some} ({name_some([pair.image for pair in twice], MOST_NAMES)}). Rename them: names tell images "
                "apart in scores and splits.",
            )
        chosen = self._splits([pair for pair, _ in found], findings)
        splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
        for pair, told in found:
            splits[told or chosen.get(pair.image, "train")].append(pair)
        for split in ("train", "val"):
            if not splits[split] and found:
                some = name_some([pair.name for pair, _ in found], MOST_NAMES)
                findings.error(
                    "empty split",
                    self.table or str(self.images),
                    f"no image is left for {split}; there are {some}. Say what to validate on with val_names, "
                    "val_share, regions, or a column split in the table.",
                )
        return splits

    def _found(self, findings: Findings) -> Iterator[tuple[Pair, str | None]]:
        """Yield all pairs, and the split that the table names."""
        if self.table is not None:
            yield from self._of_table(self.table, findings)
            return
        pattern = self.labels or ""
        with findings.catching("no labels", pattern):
            check_labels_setting(pattern)
        if findings.errors:
            return
        for image in find_images(self.images or "", findings):
            labels = None
            with findings.catching("no labels", image):
                labels = label_file(image, pattern)
            if labels is not None:
                yield from self._pair(image, labels, None, findings)

    def _of_table(self, table: str, findings: Findings) -> Iterator[tuple[Pair, str | None]]:
        folder = Path(table).parent
        try:
            with open(table, encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            findings.error("table", table, f"{table} cannot be read as a table (CSV, UTF-8): {error}. Check the file.")
            return
        missing = [column for column in ("image", "labels") if not rows or column not in rows[0]]
        if missing:
            there = ", ".join(filter(None, rows[0])) if rows else "no row"
            findings.error("table", table, f"{table} lacks the column {' and '.join(missing)}; there is {there}.")
            return
        lines: dict[str, int] = {}
        for number, row in enumerate(rows, 2):
            split = (row.get("split") or "").strip() or None
            if split not in (None, *SPLITS):
                findings.error(
                    "table", table, f"line {number} of {table}: split must be train, val or test, got {split!r}."
                )
                continue
            if not (row["image"] and row["labels"]):
                what = "image" if not row["image"] else "labels"
                findings.error("table", table, f"line {number} of {table} names no {what}.")
                continue
            image, labels = (os.path.join(folder, row[column].strip()) for column in ("image", "labels"))
            first = lines.setdefault(os.path.normpath(image), number)
            if first != number:
                findings.error(
                    "table", (table, image), f"lines {first} and {number} of {table} both name {image}. Remove one."
                )
                continue
            yield from self._pair(image, labels, split, findings, group=(row.get("group") or "").strip())

    def _pair(
        self, image: str, labels: str, split: str | None, findings: Findings, *, group: str = ""
    ) -> Iterator[tuple[Pair, str | None]]:
        for kind, what, path in (("no images", "image", image), ("no labels", "label file", labels)):
            if os.path.isdir(path):
                findings.error(kind, path, f"{path} is a folder, not an {what}. Rename it, or name the files in it.")
                return
            if not os.path.isfile(path):
                findings.error(kind, path, f"there is no {what} {path}. Check the names.")
                return
        pair = Pair(
            image=image,
            labels=labels,
            group=group,
            bands=self.bands,
            bands_chosen=self._bands_chosen,
            rules=self.rules,
            nodata=self.nodata,
            nodata_rule=self.nodata_rule,
        )
        yield pair, split

    def _splits(self, pairs: Sequence[Pair], findings: Findings) -> dict[str, str]:
        """Return the split of each image that the table says nothing of."""
        if self.regions is not None:
            return _by_region(pairs, self.regions, findings)
        names = {pair.name for pair in pairs}
        missing = sorted({*(self.val_names or ()), *(self.test_names or ())} - names)
        if missing:
            findings.error(
                "names of a split",
                self.table or str(self.images),
                f"val_names, test_names: no image is named {name_some(missing, MOST_NAMES)}. "
                f"There: {name_some(sorted(names), MOST_NAMES)}.",
            )
        val = {*(self.val_names or ())}
        if self.val_share is not None:
            some = max(1, round(self.val_share * len(pairs)))
            val = draw_names(names - {*(self.test_names or ())}, some, seed=self.seed)
        kind = {**dict.fromkeys(val, "val"), **dict.fromkeys(self.test_names or (), "test")}
        return {pair.image: kind.get(pair.name, "train") for pair in pairs}


def find_images(images: str | Sequence[str], findings: Findings | None = None) -> list[str]:
    """Return the files of a folder, of a pattern, or of a list of both, sorted and each once.

    Args:
        images: What to look for; hidden files are left out.
        findings: Take what is wrong; raised where None.

    Raises:
        DatasetError: Nothing is found.
    """
    findings = Findings(strict=True) if findings is None else findings
    found: list[str] = []
    for entry in [images] if isinstance(images, str) else images:
        some: list[str] = []
        if os.path.isdir(entry):
            try:
                paths = list(Path(entry).iterdir())
            except OSError as error:
                findings.error(
                    "no images", entry, f"images: {entry} cannot be read: {error.strerror}. Check who may read it."
                )
                continue
            # Hidden files are not images: macOS leaves a ._NAME.tif beside each file on foreign disks.
            some = [str(path) for path in paths if path.suffix.lower() in RASTER_SUFFIXES and path.name[0] != "."]
        else:
            some = [path for path in glob.glob(entry, recursive=True) if os.path.isfile(path)]
        if not some:
            findings.error(
                "no images",
                entry,
                f"images: there is no raster at {entry}. Give a folder, files, or a pattern such as a/*.tif.",
            )
        found += some
    return sorted(dict.fromkeys(found))


def check_labels_setting(labels: str) -> None:
    """Raise `DatasetError` unless ``labels`` can name label files; see `RastersDataModule`."""
    if "{name}" not in labels and not os.path.isdir(labels) and not is_vector(labels):
        raise DatasetError(
            f"labels: {labels} is no folder, no file of polygons, and no pattern with {{name}}. Give one of these."
        )


def label_file(image: str, labels: str) -> str:
    """Return the label file of an image; see `RastersDataModule`.

    Raises:
        DatasetError: A folder holds none, or several.
    """
    name = Path(image).stem
    if "{name}" in labels:
        return labels.replace("{name}", name)
    if not os.path.isdir(labels):
        return labels
    suffixes = (*RASTER_SUFFIXES, *VECTOR_SUFFIXES)
    fitting = sorted(path for path in Path(labels).glob(f"{glob.escape(name)}.*") if path.suffix.lower() in suffixes)
    if len(fitting) != 1:
        there = "there is none" if not fitting else f"there are {', '.join(path.name for path in fitting)}"
        raise DatasetError(f"the image {image} needs one label file of its name in {labels}; {there}.")
    return str(fitting[0])


def _by_region(pairs: Sequence[Pair], regions: str, findings: Findings) -> dict[str, str]:
    """Return the split whose polygon holds the centre of each image."""
    areas: dict[Any, Area] = {}
    with findings.catching("regions", regions):
        areas = Area.by_value(regions, "split")
    wrong = sorted(str(value) for value in areas if value not in SPLITS)
    if wrong:
        findings.error(
            "regions",
            regions,
            f"the attribute split of {regions} must be train, val or test, got {name_some(wrong)}.",
        )
    known = {split: area for split, area in areas.items() if split in SPLITS}
    chosen: dict[str, str] = {}
    for pair in pairs if known else ():
        with findings.catching("regions", pair.image):
            chosen[pair.image] = _region_of(pair, known, regions)
    return chosen


def _region_of(pair: Pair, areas: Mapping[str, Area], regions: str) -> str:
    with open_raster(pair.image, bands=pair.bands) as reader:
        grid = reader.grid
    centre = grid.cropped(Window(grid.height // 2, grid.width // 2, 1, 1))
    for split, area in areas.items():
        try:
            area.on(centre)
            return split
        except AreaMissesError:
            continue
    raise DatasetError(f"the centre of {pair.image} lies in no region of {regions}. Add one, or leave the image out.")


def _band_names(bands: Sequence[int]) -> list[str]:
    return ["red", "green", "blue"] if tuple(bands) == (1, 2, 3) else [f"band {band}" for band in bands]


def _color(name: str, label: int, colors: Mapping[str, Any]) -> tuple[int, int, int]:
    given = colors.get(name)
    if given is None:
        return PALETTE[label % len(PALETTE)]
    if len(given) != 3 or not all(0 <= part <= 255 for part in given):
        raise InvalidConfigError(f"colors: {name} must have red, green and blue from 0 to 255, got {given}.")
    red, green, blue = given
    return red, green, blue
