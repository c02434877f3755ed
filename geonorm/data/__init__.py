"""Images and labels: what is true of each data set, and how its samples are read."""

from typing import TYPE_CHECKING, Any

from geonorm.data.spec import DatasetSpec

if TYPE_CHECKING:
    from geonorm.data.inria import InriaDataModule
    from geonorm.data.rasters import RastersDataModule

__all__ = ["DatasetSpec", "InriaDataModule", "RastersDataModule"]


def __getattr__(name: str) -> Any:
    """Import a data module when it is asked for: labelling a raster does without torchgeo, which takes seconds."""
    if name == "InriaDataModule":
        from geonorm.data.inria import InriaDataModule

        return InriaDataModule
    if name == "RastersDataModule":
        from geonorm.data.rasters import RastersDataModule

        return RastersDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
