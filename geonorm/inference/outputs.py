"""What is kept of the logits: labels, probabilities of 8 bits, the logits themselves, or several of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geonorm.data.spec import DatasetSpec
from geonorm.raster.layer import Layer
from geonorm.tiling.engine import labels_of

Output = Literal["labels", "probabilities", "logits"]

NODATA_LABEL = 255
PROBABILITY_LEVELS = 254
"""A probability of 1; 255 is left for the pixels without data."""
_ROWS = 64  # of float logits that are looked at at a time

CONFIDENCE = "confidence"

_EXP2 = tuple(math.log(2) ** power / math.factorial(power) for power in range(9))
"""Of the series of 2 ** x: right to the last bits of float32 for x in [0, 1)."""


def labels_layer(spec: DatasetSpec) -> Layer:
    """Return what a map of labels holds."""
    return Layer(
        name="labels",
        dtype="uint8",
        band_names=("labels",),
        nodata=NODATA_LABEL,
        class_names=spec.class_names,
        class_colors=spec.class_colors,
    )


class Kept:
    """What the strips of a map hold: the labels always, and what else was asked for.

    Attributes:
        layers: What is kept, the labels first.
    """

    def __init__(self, spec: DatasetSpec, outputs: Sequence[Output], *, with_confidence: bool = False) -> None:
        """Take the classes, what is asked for, and whether the probability of each label is, for polygons."""
        self._has_logits = "logits" in outputs
        self._has_probabilities = "probabilities" in outputs
        self._has_confidence = with_confidence
        layers = [labels_layer(spec)]
        if self._has_probabilities:
            layers.append(
                Layer(
                    name="probabilities",
                    dtype="uint8",
                    band_names=spec.class_names,
                    nodata=255,
                    scale=1 / PROBABILITY_LEVELS,
                )
            )
        if with_confidence:
            layers.append(Layer(name=CONFIDENCE, dtype="uint8", band_names=(CONFIDENCE,), nodata=255))
        if self._has_logits:
            layers.append(Layer(name="logits", dtype="float32", band_names=spec.class_names, nodata=float("nan")))
        self.layers = tuple(layers)

    @property
    def bytes_per_px(self) -> int:
        """What one pixel takes in memory while its strip is made."""
        return sum(layer.bytes_per_px for layer in self.layers)

    def finish(self, logits: Tensor) -> Tensor:
        """Return what a strip gathers, on the device of the logits: ``(N, K, h, w)`` -> ``(N, bands, h, w)``.

        Bytes, one band after the other as `layers` has them; or the logits, which say all the rest, as float32.
        """
        return logits.to(torch.float32) if self._has_logits else self._bytes_of(logits)

    def split(self, gathered: Tensor, valid: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """Return a strip layer by layer, each ``(bands, rows, W)``.

        Args:
            gathered: What `finish` gave, ``(bands, rows, W)``.
            valid: Which pixels have data, ``(rows, W)``; the others get the layer's nodata.
        """
        parts = gathered
        if self._has_logits:
            parts = torch.cat([self._bytes_of(part[None])[0] for part in gathered.split(_ROWS, dim=1)], dim=1)
        layers, band = {}, 0
        for layer in self.layers:
            values = gathered.numpy() if layer.name == "logits" else parts[band : band + len(layer.band_names)].numpy()
            band += len(layer.band_names)
            np.copyto(values, layer.nodata, where=~valid)  # an index would take 16 bytes for each pixel
            layers[layer.name] = values
        return layers

    def _bytes_of(self, logits: Tensor) -> Tensor:
        bands = [labels_of(logits)[:, None]]
        if self._has_probabilities or self._has_confidence:
            probabilities = softmax(logits.to(torch.float32))
            if self._has_probabilities:
                bands.append((probabilities * PROBABILITY_LEVELS).round().to(torch.uint8))
            if self._has_confidence:
                bands.append((probabilities.max(dim=1, keepdim=True).values * 255).round().to(torch.uint8))
        return torch.cat(bands, dim=1)


def softmax(logits: Tensor) -> Tensor:
    """Return probabilities ``(N, K, h, w)``, float32, that follow from the logits of their pixel to the last bit.

    torch's own differ in it by where a pixel lies in memory: whole vectors go through another exponential function than
    what is left over. This one is made of operations that IEEE 754 rounds correctly, wherever they run.
    """
    powers = (logits - logits.max(dim=1, keepdim=True).values).mul_(math.log2(math.e)).clamp_(min=-126)
    whole = powers.floor()
    part = powers.sub_(whole)  # 2 ** power = 2 ** whole * 2 ** part
    exponentials = torch.full_like(part, _EXP2[-1])
    for coefficient in reversed(_EXP2[:-1]):
        exponentials.mul_(part).add_(coefficient)
    exponentials.mul_(whole.to(torch.int32).add_(127).bitwise_left_shift_(23).view(torch.float32))
    total = exponentials[:, :1].clone()
    for band in range(1, logits.shape[1]):
        total.add_(exponentials[:, band : band + 1])
    return exponentials.div_(total)
