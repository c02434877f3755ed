"""Images and labels: what is true of each data set, and how its samples are read."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geonorm.data.spec import DatasetSpec

if TYPE_CHECKING:
    from geonorm.data.augment import Augmentations
    from geonorm.data.chesapeake import ChesapeakeDataModule
    from geonorm.data.drawn import write_inria_layout
    from geonorm.data.drawn_land import write_chesapeake_layout
    from geonorm.data.inria import InriaDataModule
    from geonorm.data.rasters import RastersDataModule
    from geonorm.data.torchgeo_facts import DataFacts
    from geonorm.data.torchgeo_module import TorchgeoData

__all__ = [
    "Augmentations",
    "ChesapeakeDataModule",
    "DataFacts",
    "DatasetSpec",
    "InriaDataModule",
    "RastersDataModule",
    "TorchgeoData",
    "write_chesapeake_layout",
    "write_inria_layout",
]


_MODULES = {
    "Augmentations": "augment",
    "ChesapeakeDataModule": "chesapeake",
    "DataFacts": "torchgeo_facts",
    "InriaDataModule": "inria",
    "RastersDataModule": "rasters",
    "TorchgeoData": "torchgeo_module",
    "write_chesapeake_layout": "drawn_land",
    "write_inria_layout": "drawn",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: labelling a raster does without torchgeo, which takes seconds."""
    if name in _MODULES:
        return getattr(import_module(f"geonorm.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
