"""What a network is trained and scored for."""

from geonorm.tasks.averaging import EpochAverage
from geonorm.tasks.batch_average import BatchAverage
from geonorm.tasks.optimize import Cosine, Poly, Steps
from geonorm.tasks.pictures import PictureLogger
from geonorm.tasks.ratio_log import RatioLogger
from geonorm.tasks.record import RunRecord
from geonorm.tasks.segmentation import SegmentationTask

__all__ = [
    "BatchAverage",
    "Cosine",
    "EpochAverage",
    "PictureLogger",
    "Poly",
    "RatioLogger",
    "RunRecord",
    "SegmentationTask",
    "Steps",
]
