"""How much labels depend on the tiles."""

from geonorm.evaluation.shift import shift_consistency

__all__ = ["shift_consistency"]
