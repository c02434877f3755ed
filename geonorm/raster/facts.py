"""What the header of a raster says of its bands."""

from __future__ import annotations

from dataclasses import dataclass

from geonorm.raster.read import Reader


@dataclass(frozen=True, kw_only=True)
class RasterFacts:
    """What the header of a raster says of its bands."""

    count: int
    """Number of bands in the file."""
    dtype: str
    """Type of the bands that are read."""
    interpretations: tuple[str, ...]
    """What each band is tagged as: ``red``, ``alpha``, ``palette`` ..."""
    nodata: float | None
    """Value without data of the first band that is read."""
    descriptions: tuple[str, ...]
    """What each band is called in the file; empty where it does not say."""

    @property
    def count_without_alpha(self) -> int:
        """Number of bands but for those tagged alpha."""
        return sum(tag != "alpha" for tag in self.interpretations)

    @property
    def has_palette(self) -> bool:
        """Whether the values of the first band are numbers of colours."""
        return self.interpretations[0] == "palette"


def facts_of(reader: Reader) -> RasterFacts:
    """Return what the header of an open raster says."""
    dataset = reader._dataset
    band = min(reader.bands[0], dataset.count)
    return RasterFacts(
        count=dataset.count,
        dtype=str(dataset.dtypes[band - 1]),
        interpretations=tuple(tag.name for tag in dataset.colorinterp),
        nodata=dataset.nodatavals[band - 1],
        descriptions=tuple(said or "" for said in dataset.descriptions),
    )
