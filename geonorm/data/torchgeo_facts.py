"""Bands, classes and label values of torchgeo's data modules: what its data sets say, what they leave out, the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchgeo.datamodules import BaseDataModule

from geonorm.data.spec import IGNORE_LABEL, INRIA, DatasetSpec
from geonorm.errors import DatasetError, InvalidConfigError

RGB = ("red", "green", "blue")
RGBN = (*RGB, "near infrared")
UNKNOWN_LABEL = 254
"""Stands for a value of the masks that no class has, until it is told."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Facts of a torchgeo data module: what is given here comes before what its data set says.

    Args:
        bands: Names of the bands, in the order of the images.
        class_names: Names of the classes, in the order of ``label_values``.
        label_values: Value of each class in the masks; 0, 1, 2 ... where nothing is known.
        ignored_values: Values of the masks that neither train nor count, beside 255.
        class_colors: Red, green and blue of each class on a map, 0 to 255.
        scored_classes: Numbers of the classes, from 0, whose mean IoU is the score; all where nothing is known.
        resolution_m: Ground size of a pixel in metres.
        mask_key: What the samples call the mask, where that is not ``mask``.
    """

    bands: list[str] | None = None
    class_names: list[str] | None = None
    label_values: list[int] | None = None
    ignored_values: list[int] | None = None
    class_colors: list[list[int]] | None = None
    scored_classes: list[int] | None = None
    resolution_m: float | None = None
    mask_key: str | None = None

    def over(self, other: DataFacts) -> DataFacts:
        """Return these facts, and those of ``other`` where these say nothing."""
        said = {name: value for name, value in vars(self).items() if value is not None}
        return DataFacts(**{**vars(other), **said})


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How the values of masks become labels."""

    values: tuple[int, ...]
    """Value of each class."""
    ignored: tuple[int, ...]
    """Values that do not count."""

    def __post_init__(self) -> None:
        named = (*self.values, *self.ignored)
        if len(set(named)) != len(named) or any(not 0 <= value <= IGNORE_LABEL for value in named):
            raise InvalidConfigError(
                f"label_values {list(self.values)} and ignored_values {list(self.ignored)} must be different numbers "
                f"from 0 to {IGNORE_LABEL}."
            )

    def of(self, mask: Tensor) -> Tensor:
        """Return labels, `IGNORE_LABEL` where a value is ignored, for masks of any shape.

        Raises:
            DatasetError: A value that is neither a class nor ignored.
        """
        table = torch.full((IGNORE_LABEL + 2,), UNKNOWN_LABEL, dtype=torch.uint8)
        table[IGNORE_LABEL] = IGNORE_LABEL
        table[list(self.ignored)] = IGNORE_LABEL
        table[list(self.values)] = torch.arange(len(self.values), dtype=torch.uint8)
        values = mask.long()
        # Beyond the table is as unknown as between its values.
        values = torch.where((values < 0) | (values > IGNORE_LABEL), IGNORE_LABEL + 1, values)
        labels = table.to(mask.device)[values]
        unknown = labels == UNKNOWN_LABEL
        if bool(unknown.any()):
            found = sorted(set(mask[unknown].long().tolist()))
            raise DatasetError(
                f"The masks hold {', '.join(map(str, found[:8]))}, which is no class ({list(self.values)}). Name the "
                "values of the classes in --data_facts.label_values, others in --data_facts.ignored_values."
            )
        return labels


def facts_of(module: BaseDataModule, dataset: Dataset[Any], *, num_bands: int, given: DataFacts) -> DataFacts:
    """Return all facts of a data module but its scale, none of them missing except the resolution.

    Args:
        module: Data module of torchgeo, set up.
        dataset: Its data set.
        num_bands: Bands of its images.
        given: What the user says.

    Raises:
        InvalidConfigError: The classes are not known, or what is given does not fit.
    """
    facts = given.over(_published(module)).over(_said(dataset, num_bands))
    names = facts.class_names
    if names is None and facts.label_values is not None:
        names = [f"class {value}" for value in facts.label_values]
    if names is None:
        raise InvalidConfigError(
            f"{type(module).__name__} does not name its classes. Name them, in the order of the mask's values: "
            "--data_facts.class_names '[background, field]'."
        )
    values = facts.label_values if facts.label_values is not None else list(range(len(names)))
    if given.class_names is not None and given.label_values is None and len(values) != len(names):
        values = list(range(len(names)))
    bands = facts.bands if facts.bands is not None else [f"band {band + 1}" for band in range(num_bands)]
    for name, count, expected in (
        ("bands", len(bands), num_bands),
        ("label_values", len(values), len(names)),
    ):
        if count != expected:
            raise InvalidConfigError(f"data_facts.{name} must be {expected} of {type(module).__name__}, got {count}.")
    colors = facts.class_colors
    if colors is None or (given.class_colors is None and len(colors) != len(names)):
        colors = _colors(len(names))
    scored = list(range(len(names))) if facts.scored_classes is None else facts.scored_classes
    if not scored or not all(0 <= number < len(names) for number in scored):
        raise InvalidConfigError(
            f"data_facts.scored_classes must be numbers from 0 to {len(names) - 1}, got {scored}; the classes are "
            f"{', '.join(names)}."
        )
    return DataFacts(
        bands=list(bands),
        class_names=list(names),
        label_values=list(values),
        ignored_values=[value for value in facts.ignored_values or () if value not in values],
        class_colors=[list(color) for color in colors],
        scored_classes=list(scored),
        resolution_m=facts.resolution_m,
        mask_key=facts.mask_key or "mask",
    )


def mask_key_of(module: BaseDataModule, given: DataFacts) -> str:
    """Return what the samples of a data module call the mask."""
    return given.over(_published(module)).mask_key or "mask"


def spec_of(facts: DataFacts) -> DatasetSpec:
    """Return complete facts in the form that travels to the model, without a scale."""
    return DatasetSpec(
        bands=tuple(facts.bands or ()),
        class_names=tuple(facts.class_names or ()),
        class_colors=tuple((color[0], color[1], color[2]) for color in facts.class_colors or ()),
        scored_classes=tuple(facts.scored_classes or ()),
        resolution_m=facts.resolution_m,
    )


# What is true of published data sets, and torchgeo's data sets do not say.


def _published(module: BaseDataModule) -> DataFacts:
    """Return what is published of the data set behind a data module, by the name of its class or of a base of it."""
    for base in type(module).__mro__:
        if base.__name__ in PUBLISHED:
            return PUBLISHED[base.__name__]
    if any(base.__name__ == "ChesapeakeCVPRDataModule" for base in type(module).__mro__):
        return _chesapeake(getattr(module, "class_set", 7))
    return DataFacts()


def _chesapeake(class_set: int) -> DataFacts:
    """Return the classes of Chesapeake Land Cover (Robinson et al., CVPR 2019): 0 and 15 are no data."""
    names = ["water", "tree canopy", "low vegetation", "barren", "impervious", "impervious road"]
    colors = [[0, 197, 255], [38, 115, 0], [163, 255, 115], [255, 170, 0], [156, 156, 156], [60, 60, 60]]
    if class_set == 5:
        # torchgeo counts both kinds of impervious as 4 then, beside what was barren.
        names, colors = [*names[:3], "impervious or barren"], [*colors[:3], colors[4]]
    return DataFacts(
        bands=list(RGBN),
        class_names=names,
        label_values=list(range(1, len(names) + 1)),
        ignored_values=[0, 15],
        class_colors=colors,
        resolution_m=1.0,
    )


CLOUDS = DataFacts(
    class_names=["cloud shadow", "clear", "thin cloud", "cloud"],
    label_values=[1, 2, 3, 4],
    ignored_values=[0],  # fill
    class_colors=[[60, 60, 90], [90, 160, 70], [180, 200, 220], [255, 255, 255]],
    resolution_m=30.0,
)
BUILDINGS = DataFacts(
    class_names=list(INRIA.class_names), class_colors=[list(c) for c in INRIA.class_colors], scored_classes=[1]
)
LOVEDA = ["background", "building", "road", "water", "barren", "forest", "agriculture"]
DEEPGLOBE = ["urban land", "agriculture land", "rangeland", "forest land", "water", "barren land"]
DFC2020 = ["forest", "shrubland", "savanna", "grassland", "wetlands", "croplands", "urban", "snow", "barren", "water"]
PUBLISHED: dict[str, DataFacts] = {
    "InriaAerialImageLabelingDataModule": DataFacts(bands=list(RGB), resolution_m=0.3).over(BUILDINGS),
    "Potsdam2DDataModule": DataFacts(bands=list(RGBN), resolution_m=0.05),
    # The orthophotos are infrared, red, green.
    "Vaihingen2DDataModule": DataFacts(bands=["near infrared", "red", "green"], resolution_m=0.09),
    # Wang et al., NeurIPS 2021: 0 is no data; torchgeo lists the names from 1 on.
    "LoveDADataModule": DataFacts(
        bands=list(RGB), class_names=LOVEDA, label_values=list(range(1, 8)), ignored_values=[0], resolution_m=0.3
    ),
    "LandCoverAIDataModule": DataFacts(bands=list(RGB)),
    "LandCoverAI100DataModule": DataFacts(bands=list(RGB)),
    # Each polarization is stored as three equal bands; the module scores the flood.
    "ETCI2021DataModule": DataFacts(
        bands=[f"{name} {copy}" for name in ("VV", "VH") for copy in (1, 2, 3)],
        class_names=["not flooded", "flooded"],
        label_values=[0, 1],
        class_colors=[[60, 60, 60], [0, 120, 255]],
        scored_classes=[1],
    ),
    # Demir et al., CVPR Workshops 2018: unknown (6) is not scored.
    "DeepGlobeLandCoverDataModule": DataFacts(
        bands=list(RGB),
        class_names=DEEPGLOBE,
        label_values=list(range(6)),
        ignored_values=[6],
        class_colors=[[0, 255, 255], [255, 255, 0], [255, 0, 255], [0, 255, 0], [0, 0, 255], [255, 255, 255]],
        resolution_m=0.5,
    ),
    # Gourmelon et al., ESSD 2022: zones beside the fronts; 0 is not available.
    "CaFFeDataModule": DataFacts(
        bands=["backscatter"],
        class_names=["rock", "glacier", "ocean or ice melange"],
        label_values=[1, 2, 3],
        ignored_values=[0],
        class_colors=[[120, 80, 50], [211, 211, 211], [0, 0, 255]],
        mask_key="mask_zones",
    ),
    "MMFloodDataModule": DataFacts(
        class_names=["not flooded", "flooded"], class_colors=[[60, 60, 60], [0, 120, 255]], scored_classes=[1]
    ),
    # The module maps to the simplified classes of Yokoya et al., DFC 2020; 0 is none of them.
    "SEN12MSDataModule": DataFacts(
        class_names=DFC2020, label_values=list(range(1, 11)), ignored_values=[0], resolution_m=10.0
    ),
    "L7IrishDataModule": CLOUDS,
    "L8BiomeDataModule": CLOUDS,
    "GID15DataModule": DataFacts(bands=list(RGB)),
    "NAIPChesapeakeDataModule": DataFacts(bands=list(RGBN), ignored_values=[0]),
    # The module counts from 1, and pads with 0.
    "SpaceNetBaseDataModule": DataFacts(label_values=[1, 2], ignored_values=[0]).over(BUILDINGS),
}


# What the data set says of itself.


def whole_dataset(dataset: Any) -> Any:
    """Return the data set that a subset is part of."""
    return whole_dataset(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _said(dataset: Any, num_bands: int) -> DataFacts:
    """Return bands, classes and colours as attributes of a data set, or of the two it is the intersection of, say."""
    parts = _parts(whole_dataset(dataset))
    bands = next((names for part in parts if (names := _bands(part, num_bands)) is not None), None)
    for part in reversed(parts):  # of an intersection the second holds the labels
        names, values, colors = _classes(part)
        if values:
            return DataFacts(bands=bands, class_names=names, label_values=values, class_colors=colors)
    return DataFacts(bands=bands)


def _parts(dataset: Any) -> list[Any]:
    inside = getattr(dataset, "datasets", None)
    return [part for one in inside for part in _parts(one)] if inside else [dataset]


def _bands(dataset: Any, num_bands: int) -> list[str] | None:
    for name in ("bands", "all_bands", "rgb_bands"):
        bands = getattr(dataset, name, None)
        if isinstance(bands, Sequence) and not isinstance(bands, str) and len(bands) == num_bands:
            return [str(band) for band in bands]
    return None


def _classes(dataset: Any) -> tuple[list[str] | None, list[int] | None, list[list[int]] | None]:
    """Return names, values in the masks, and colours of the classes, as far as the data set has them."""
    classes = getattr(dataset, "classes", None)
    table = getattr(dataset, "cmap", None)
    table = table if isinstance(table, Mapping) else {}
    if isinstance(classes, Sequence) and not isinstance(classes, str) and len(classes) > 1:
        # Numbers are those of the product (crops): the masks count them from 0.
        names = [one if isinstance(one, str) else f"class {one}" for one in classes]
        colors = [table.get(i if isinstance(one, str) else one) for i, one in enumerate(classes)]
        if None in colors:
            colors = list(getattr(dataset, "colormap", None) or [])
        return names, list(range(len(names))), _rgb(colors)
    if len(table) > 1:
        return None, list(table), _rgb(list(table.values()))
    return None, None, None


def _rgb(colors: list[Any]) -> list[list[int]] | None:
    plain = all(isinstance(color, Sequence) and not isinstance(color, str) for color in colors)
    return [[int(part) for part in color[:3]] for color in colors] if colors and plain else None


def _colors(count: int) -> list[list[int]]:
    palette = matplotlib.colormaps["tab20"]
    return [[round(255 * part) for part in palette(number % 20)[:3]] for number in range(count)]
