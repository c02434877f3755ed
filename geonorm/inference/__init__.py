"""A checkpoint and a raster in, a map out."""

from geonorm.inference.predict import Options, Prediction, predict_raster, predict_rasters

__all__ = ["Options", "Prediction", "predict_raster", "predict_rasters"]
