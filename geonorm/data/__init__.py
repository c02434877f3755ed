"""Images and labels: what is true of each data set, and how its samples are read."""

from geonorm.data.inria import InriaDataModule
from geonorm.data.spec import DatasetSpec

__all__ = ["DatasetSpec", "InriaDataModule"]
