"""A checkpoint and a raster in, a map out."""

from geonorm.inference.assembly import merge
from geonorm.inference.options import Options
from geonorm.inference.predict import Prediction, predict_raster, predict_rasters

__all__ = ["Options", "Prediction", "merge", "predict_raster", "predict_rasters"]
