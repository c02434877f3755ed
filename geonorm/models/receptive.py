"""What each norm of a network gets to see: the receptive field of its input."""

from __future__ import annotations

from torch import nn

from geonorm.models.geometry import SeenMap, seen_maps
from geonorm.models.replace import replace_norms
from geonorm.norms import NoNorm


def norm_maps(model: nn.Module) -> dict[str, SeenMap]:
    """Return what each norm gets as its input, by name, in the order they run.

    Receptive fields are those of the convolutions and poolings before the norm: the other norms, which may look at
    the whole map, count as if they were not there. Squeeze and excitation, too, counts as if it saw one cell only.
    After bilinear interpolation the figure may be too large by up to one stride.

    Source: Luo et al., "Do Normalization Layers in a Deep ConvNet Really Need to Be Distinct?", figures 2 to 4.

    Raises:
        InvalidConfigError: The network has no norm over maps, or takes no square image.
    """
    plain, _ = replace_norms(model, NoNorm)
    return seen_maps(plain, lambda module: isinstance(module, NoNorm))
