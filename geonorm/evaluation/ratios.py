"""What the ratios of Switchable Norm say: divergences, choices, averages over depth. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geonorm.models.geometry import SeenMap
from geonorm.tasks.ratio_log import LayerRatios

Ratios = NDArray[np.float64]

RANGES_PX: tuple[tuple[str, int], ...] = (("<49", 0), ("49-99", 49), ("99-199", 99), ("199-299", 199), (">299", 299))
"""Ranges of receptive fields as the papers name them, and the first pixel count of each.

Source: Luo et al., "Do Normalization Layers in a Deep ConvNet Really Need to Be Distinct?", figure 3. A bound belongs
to the range above it: ResNet50 has a layer of 299 px, which the paper counts to its last range, 299 to 427."""

PARTS = ("encoder", "bottleneck", "decoder", "head", "other")
"""Parts of a network, in the order they run."""

TIE = 1e-6
"""Where the two largest ratios are closer than this nothing is chosen, as at the first step."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One Switchable Norm of a network."""

    name: str
    """Its name within the network."""
    part: str
    """One of `PARTS`."""
    receptive_px: int | None
    """Receptive field of its input, in input pixels; None where it is not known."""
    stride_px: int | None
    """Input pixels that one of its cells spans."""
    ratios: LayerRatios
    """What it mixes."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """The mean over some layers, each of the same weight."""

    layers: int
    """How many they are, at least 1."""
    mean: dict[str, float]
    """Share of each normalizer in the means."""
    var: dict[str, float]
    """Share of each normalizer in the variances."""
    divergence: float
    """Mean divergence between the ratios of means and variances; infinite where one layer's is."""
    differing: float
    """Share of layers whose mean and variance choose different normalizers, 0 to 1."""


def divergence(p: Ratios, q: Ratios) -> Ratios:
    """Return the symmetric divergence of distributions along the last axis, in nats.

    ``D(p || q) = KL(p || q) + KL(q || p) = sum_k (p_k - q_k) (ln p_k - ln q_k)``; infinite where one of them is zero
    and the other is not, as two hard choices that differ.

    Source: Luo et al., "Do Normalization Layers in a Deep ConvNet Really Need to Be Distinct?", section 4.1.1,
    figure 3 (c); in the journal paper on Switchable Norm section 4.1.4, figure 7 (c).

    Args:
        p: Ratios ``(..., K)``, not negative, summing to 1.
        q: The others, of the same shape.

    Returns:
        Divergences ``(...)``, 0 or more.

    Example:
        >>> divergence(np.array([0.5, 0.5]), np.array([0.8, 0.2])).round(4)
        np.float64(0.4159)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = (p - q) * (np.log(p) - np.log(q))
    result: Ratios = np.where(p == q, 0.0, terms).sum(-1)
    return result


def own_divergence(ratios: LayerRatios) -> float:
    """Return the divergence between a layer's ratios of means and variances, the mean over its channel groups."""
    return float(divergence(ratios.mean, ratios.var).mean())


def between_runs(one: LayerRatios, other: LayerRatios) -> dict[str, float]:
    """Return the divergences between the ratios of a layer in two trainings: of the means, and of the variances.

    Source: the same paper, figure 5.
    """
    return {
        "mean": float(divergence(one.mean, other.mean).mean()),
        "var": float(divergence(one.var, other.var).mean()),
    }


def choices(table: Ratios, pool: Sequence[str]) -> tuple[str, ...]:
    """Return the normalizer with the largest ratio for each channel group; empty where two are as large.

    Args:
        table: Ratios ``(G, K)``.
        pool: Names of the K normalizers.
    """
    return tuple(pool[row.argmax()] if _lead(row) > TIE else "" for row in table)


def differing_share(ratios: LayerRatios) -> float:
    """Return the share of channel groups whose mean and variance choose different normalizers, 0 to 1."""
    pairs = zip(choices(ratios.mean, ratios.pool), choices(ratios.var, ratios.pool), strict=True)
    return float(np.mean([bool(mean and var and mean != var) for mean, var in pairs]))


def average(layers: Iterable[LayerRatios]) -> Average:
    """Return the mean over layers of what each of them has; a normalizer that is not in a layer's pool counts as 0."""
    layers = list(layers)
    names = dict.fromkeys(name for ratios in layers for name in ratios.pool)
    return Average(
        layers=len(layers),
        mean={name: float(np.mean([_share(ratios, ratios.mean, name) for ratios in layers])) for name in names},
        var={name: float(np.mean([_share(ratios, ratios.var, name) for ratios in layers])) for name in names},
        divergence=float(np.mean([own_divergence(ratios) for ratios in layers])),
        differing=float(np.mean([differing_share(ratios) for ratios in layers])),
    )


def by_range(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Return the layers of each range of receptive fields, without the ranges that have none."""
    return _grouped(layers, [name for name, _ in RANGES_PX], lambda layer: range_of(layer.receptive_px))


def by_part(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Return the layers of each part of the network, without the parts that have none."""
    return _grouped(layers, PARTS, lambda layer: layer.part)


def range_of(receptive_px: int | None) -> str | None:
    """Return the range that a receptive field lies in, by its name in `RANGES_PX`; None where it is not known."""
    if receptive_px is None:
        return None
    return next(name for name, first in reversed(RANGES_PX) if receptive_px >= first)


def parts_of(maps: Mapping[str, SeenMap | None]) -> dict[str, str]:
    """Return the part of the network that each layer stands in, by the names of the modules around it.

    ``encoder``, ``bottom`` (the bottleneck) and ``decoder`` are those of `geonorm.models.UNet`. Networks of smp have
    no bottom: there the bottleneck is what their encoder does at its greatest stride.

    Args:
        maps: What each layer gets as its input, by its name; None where that is not known.
    """
    words = {name: name.removeprefix("network.").partition(".")[0] for name in maps}
    named = {"bottom": "bottleneck", "encoder": "encoder", "decoder": "decoder", "segmentation_head": "head"}
    parts = {name: named.get(word, "other") for name, word in words.items()}
    if "bottleneck" not in parts.values():
        strides = {name: seen.stride_px for name, seen in maps.items() if seen and parts[name] == "encoder"}
        if len(set(strides.values())) > 1:
            deepest = max(strides.values())
            parts.update({name: "bottleneck" for name, stride in strides.items() if stride == deepest})
    return parts


def _grouped(
    layers: Iterable[Layer], keys: Iterable[str], key: Callable[[Layer], str | None]
) -> dict[str, list[Layer]]:
    layers = list(layers)
    groups = {name: [layer for layer in layers if key(layer) == name] for name in keys}
    return {name: members for name, members in groups.items() if members}


def _share(ratios: LayerRatios, table: Ratios, name: str) -> float:
    return float(table[:, ratios.pool.index(name)].mean()) if name in ratios.pool else 0.0


def _lead(row: Ratios) -> float:
    """Return by how much the largest ratio leads the next."""
    *_, second, first = [0.0, *sorted(row)]
    return float(first - second)
