"""Networks: raw band values in, logits out."""

from geonorm.models.fold import fold_norms
from geonorm.models.geometry import TileGeometry, tile_geometry
from geonorm.models.replace import localize_norms, replace_norms
from geonorm.models.rescale import Rescale
from geonorm.models.smp import SmpNetwork, build_smp
from geonorm.models.unet import UNet

__all__ = [
    "Rescale",
    "SmpNetwork",
    "TileGeometry",
    "UNet",
    "build_smp",
    "fold_norms",
    "localize_norms",
    "replace_norms",
    "tile_geometry",
]
