"""A network as a program that runs without geonorm."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from geonorm.models.rescale import rescale_of

Output = Literal["logits", "probabilities"]


class Portable(nn.Module):
    """A network as others run it: raw band values in, NaN where there is no data; logits or probabilities out.

    A pixel with a band that is not finite enters the network as the training mean in all bands, as pixels without data
    do everywhere in geonorm; what comes out there means nothing.

    Args:
        network: Raw band values in, logits out; its first module is a `geonorm.models.Rescale`.
        output: ``"probabilities"`` are those of the classes, by softmax.
    """

    def __init__(self, network: nn.Module, *, output: Output = "logits") -> None:
        super().__init__()
        self.network = network
        self.output = output

    def forward(self, image: Tensor) -> Tensor:
        """Return ``(N, K, H, W)`` of an image ``(N, C, H, W)``."""
        known = image.isfinite().all(dim=1, keepdim=True)
        mean = rescale_of(self.network).mean[:, None, None]
        logits: Tensor = self.network(torch.where(known, image, mean))
        return logits.softmax(1) if self.output == "probabilities" else logits


def exported(network: nn.Module, shape: tuple[int, ...], *, any_size: bool) -> torch.export.ExportedProgram:
    """Return a network's operators, for any number of images, of one size or of all that the network takes.

    Args:
        network: In evaluation, on the CPU.
        shape: Bands, rows and columns of an image that the network takes.
        any_size: Whether the program takes other sizes too, as far as the network's code allows.
    """
    size = torch.export.Dim.AUTO
    axes = {0: size, 2: size, 3: size} if any_size else {0: size}
    # Two images, because one would be taken for a number that never changes.
    example = torch.zeros(2, *shape)
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=(axes,))


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what exporters and converters say to those who work on them."""
    last = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(last)
