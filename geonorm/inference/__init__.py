"""A checkpoint and a raster in, a map out."""

from geonorm.inference.assembly import merge
from geonorm.inference.export import Exported, export_model
from geonorm.inference.options import Options
from geonorm.inference.predict import Prediction, predict_raster, predict_rasters

__all__ = ["Exported", "Options", "Prediction", "export_model", "merge", "predict_raster", "predict_rasters"]
