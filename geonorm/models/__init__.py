"""Networks: raw band values in, logits out."""

from geonorm.models.geometry import TileGeometry, tile_geometry
from geonorm.models.rescale import Rescale
from geonorm.models.unet import UNet

__all__ = ["Rescale", "TileGeometry", "UNet", "tile_geometry"]
