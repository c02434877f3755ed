"""A checkpoint and a raster in, a map out."""

from geonorm.inference.predict import Prediction, predict_raster

__all__ = ["Prediction", "predict_raster"]
