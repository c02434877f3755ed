"""What is true of a data set: its bands, classes, colours and scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from math import isfinite
from numbers import Integral, Real
from typing import Any

from geonorm.errors import InvalidConfigError, name_some

IGNORE_LABEL = 255
"""Label of a pixel that no loss and no score counts."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The facts that travel from the data to the model, and with the checkpoint to every map."""

    bands: tuple[str, ...]
    """Names of the bands, in the order the model takes them."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the labels 0, 1, ..."""
    class_colors: tuple[tuple[int, int, int], ...]
    """Red, green and blue of each class on a map, 0 to 255."""
    scored_classes: tuple[int, ...]
    """The classes whose mean IoU is the score (INRIA: the buildings alone)."""
    band_means: tuple[float, ...] | None = None
    """Mean raw value of each band; None: to be measured."""
    band_deviations: tuple[float, ...] | None = None
    """Deviation of each band's raw values; None: to be measured."""
    resolution_m: float | None = None
    """Ground size of a pixel in metres; None: not known."""
    class_shares: tuple[float, ...] | None = None
    """Share of each class among the training pixels that count; None: not measured."""

    def __post_init__(self) -> None:
        for name in ("bands", "class_names"):
            names = getattr(self, name)
            if not (isinstance(names, tuple) and all(isinstance(one, str) for one in names)):
                raise InvalidConfigError(f"{name} must be a tuple of names, got {names!r}.")
        num_classes = len(self.class_names)
        if num_classes < 2 or num_classes > IGNORE_LABEL:
            raise InvalidConfigError(f"A data set needs 2 to {IGNORE_LABEL} classes, got {num_classes}.")
        for name in ("class_colors", "scored_classes", "class_shares", "band_means", "band_deviations"):
            values = getattr(self, name)
            if not isinstance(values, tuple) and (values is not None or name in ("class_colors", "scored_classes")):
                raise InvalidConfigError(f"{name} must be a tuple, got {values!r}.")
        if len(self.class_colors) != num_classes:
            raise InvalidConfigError(f"{num_classes} classes need as many colors, got {len(self.class_colors)}.")
        if self.class_shares is not None and len(self.class_shares) != num_classes:
            raise InvalidConfigError(f"{num_classes} classes need as many class_shares, got {len(self.class_shares)}.")
        for name in ("band_means", "band_deviations"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.bands):
                raise InvalidConfigError(f"{len(self.bands)} bands need as many {name}, got {len(values)}.")
            if values is not None and not all(_is_number(value) for value in values):
                raise InvalidConfigError(f"{name} must be finite numbers, got {values}.")
        if self.resolution_m is not None and not (_is_number(self.resolution_m) and self.resolution_m > 0):
            raise InvalidConfigError(f"resolution_m must be a number of metres above 0, got {self.resolution_m!r}.")
        for label in self.scored_classes:
            if not (isinstance(label, Integral) and 0 <= label < num_classes):
                raise InvalidConfigError(
                    f"scored_classes must be labels from 0 to {num_classes - 1}, got {list(self.scored_classes)}."
                )
        for color in self.class_colors:
            parts = color if isinstance(color, tuple) else ()
            if len(parts) != 3 or not all(isinstance(part, Integral) and 0 <= part <= 255 for part in parts):
                raise InvalidConfigError(
                    f"class_colors must be red, green and blue from 0 to 255 of each class, got {color!r}."
                )

    def with_statistics(self, means: tuple[float, ...], deviations: tuple[float, ...]) -> DatasetSpec:
        """Return the same facts with other band statistics."""
        return replace(self, band_means=means, band_deviations=deviations)

    def as_plain(self) -> dict[str, Any]:
        """Return the facts as lists, numbers and strings, for a checkpoint."""
        return _plain(asdict(self))

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> DatasetSpec:
        """Return the facts that `as_plain` wrote.

        Raises:
            InvalidConfigError: Facts that are missing or unknown, or cannot be.
        """
        facts, needed = {one.name for one in fields(cls)}, {one.name for one in fields(cls) if one.default is MISSING}
        for what, names in (("lacks", needed - {*plain}), ("has the unknown", {*plain} - facts)):
            if names:
                raise InvalidConfigError(f"The description of the data {what} {name_some(sorted(map(str, names)))}.")
        return cls(**{name: _tuples(value) for name, value in plain.items()})


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and isfinite(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


INRIA = DatasetSpec(
    bands=("red", "green", "blue"),
    class_names=("not building", "building"),
    class_colors=((32, 32, 40), (255, 196, 0)),
    scored_classes=(1,),
)
"""INRIA Aerial Image Labeling (Maggiori et al., IGARSS 2017), 0.3 m; statistics are measured."""

CHESAPEAKE = DatasetSpec(
    bands=("red", "green", "blue", "near infrared"),
    class_names=("water", "forest", "field", "built or barren"),
    class_colors=((0, 197, 255), (38, 115, 0), (163, 255, 115), (156, 156, 156)),
    scored_classes=(0, 1, 2, 3),
)
"""Chesapeake Land Cover (Robinson et al., CVPR 2019), 1 m; statistics are measured."""
