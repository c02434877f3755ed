"""How much labels depend on the tiles, and what Switchable Norm chose."""

from geonorm.evaluation.localization import localize
from geonorm.evaluation.ratio_report import switchable_ratios
from geonorm.evaluation.shift import shift_consistency

__all__ = ["localize", "shift_consistency", "switchable_ratios"]
