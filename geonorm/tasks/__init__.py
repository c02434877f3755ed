"""What a network is trained and scored for."""

from geonorm.tasks.segmentation import SegmentationTask

__all__ = ["SegmentationTask"]
