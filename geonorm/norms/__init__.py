"""Normalization layers, called alike: ``Norm(num_features, *, stride=1, ...)``."""

from geonorm.norms.batch import BatchNorm
from geonorm.norms.factory import NormFactory, make_norm
from geonorm.norms.group import GroupNorm, InstanceNorm, LayerNorm
from geonorm.norms.local_context import LocalContextNorm
from geonorm.norms.switchable import SwitchableNorm

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LocalContextNorm",
    "NormFactory",
    "SwitchableNorm",
    "make_norm",
]
