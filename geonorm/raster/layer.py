"""What the bands of a map hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from geonorm.errors import InvalidConfigError
from geonorm.raster.write import Color, describe


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What the bands of a map hold; plain data."""

    name: str
    """Such as ``labels``."""
    dtype: str
    """``uint8`` or ``float32``."""
    band_names: tuple[str, ...]
    """One for each band."""
    nodata: float
    """Value of the pixels without data."""
    class_names: tuple[str, ...] = ()
    """Name of each value from 0, where values are class numbers."""
    class_colors: tuple[Color, ...] = ()
    """Red, green and blue of each class, 0 to 255."""
    scale: float = 1.0
    """What a value is to be multiplied by."""

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.class_colors):
            raise InvalidConfigError(
                f"every class needs one name and one colour, got {len(self.class_names)} name(s) and "
                f"{len(self.class_colors)} colour(s)."
            )
        if self.class_names and not len(self.class_names) <= self.nodata <= 255:
            raise InvalidConfigError(
                f"nodata must be in [number of classes, 255], to be no class, got nodata={self.nodata:g} with "
                f"{len(self.class_names)} classes. 255 suits up to 255 classes."
            )

    @property
    def is_categorical(self) -> bool:
        """Whether the values are class numbers, which have no mean."""
        return bool(self.class_names)

    @property
    def bytes_per_px(self) -> int:
        """What one pixel takes in memory."""
        return len(self.band_names) * np.dtype(self.dtype).itemsize

    def as_plain(self) -> dict[str, Any]:
        """Return the layer as JSON takes it, but for a nodata value that is NaN."""
        return {**asdict(self), "nodata": str(self.nodata)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Return the layer that `as_plain` gave, also after JSON has made lists of its tuples."""
        return cls(
            **{
                **plain,
                "nodata": float(plain["nodata"]),
                "band_names": tuple(plain["band_names"]),
                "class_names": tuple(plain["class_names"]),
                "class_colors": tuple((red, green, blue) for red, green, blue in plain["class_colors"]),
            }
        )

    def describe(self, dataset: Any, tags: Mapping[str, str]) -> None:
        """Tell an open raster what it is going to hold."""
        describe(dataset, nodata=self.nodata, colors=self.class_colors, tags=tags)
        for band, name in enumerate(self.band_names, 1):
            dataset.set_band_description(band, name)
        if self.scale != 1:
            dataset.scales = [self.scale] * len(self.band_names)
