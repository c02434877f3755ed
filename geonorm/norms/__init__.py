"""Normalization layers, called alike: ``Norm(num_features, *, stride=1, ...)``."""

from geonorm.norms.batch import BatchNorm
from geonorm.norms.batch_average import average_batches
from geonorm.norms.batch_renorm import BatchRenorm
from geonorm.norms.factory import NormFactory, make_norm
from geonorm.norms.frozen import FrozenBatchNorm, NoNorm
from geonorm.norms.group import GroupNorm, InstanceNorm, LayerNorm
from geonorm.norms.local_context import LocalContextNorm
from geonorm.norms.local_contrast import LocalContrastNorm
from geonorm.norms.positional import PositionalNorm
from geonorm.norms.switchable import SwitchableNorm, harden
from geonorm.norms.synchronized import synchronize_norms

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "FrozenBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LocalContextNorm",
    "LocalContrastNorm",
    "NoNorm",
    "NormFactory",
    "PositionalNorm",
    "SwitchableNorm",
    "average_batches",
    "harden",
    "make_norm",
    "synchronize_norms",
]
