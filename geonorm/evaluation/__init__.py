"""How much labels depend on the tiles, norm against norm, how far networks see, and what Switchable Norm chose."""

from geonorm.evaluation.comparison import compare
from geonorm.evaluation.localization import localize
from geonorm.evaluation.ratio_report import switchable_ratios
from geonorm.evaluation.reach import effective_reach
from geonorm.evaluation.shift import shift_consistency

__all__ = ["compare", "effective_reach", "localize", "shift_consistency", "switchable_ratios"]
