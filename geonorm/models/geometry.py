"""How far an output pixel sees, found by passes over the operators of a model at several sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import lcm
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError
from geonorm.models.flow import Flow, MadeOfValues, first_difference, further_sizes
from geonorm.models.operators import ONE, as_usual, naming
from geonorm.models.rescale import Rescale
from geonorm.models.trace import Quick, Reach, Trace

SIDES_PX = (*range(256, 1025, 256), *range(4, 2049, 4))
"""Sides of the images on which a model is tried, in this order."""


@dataclass(frozen=True, kw_only=True)
class TileGeometry:
    """What tiling has to know of a model."""

    stride_px: int
    """Tiles must begin at multiples of this, counted from the first pixel of the whole image."""
    halo_px: int | None
    """How far an output pixel can see beyond itself; None where something sees everything."""
    core_halo_px: int | None
    """How far a core that begins and ends at multiples of ``stride_px`` sees beyond its edge."""
    margin_px: int
    """Pixels that the output lacks on each side (valid convolutions)."""
    unbounded: tuple[str, ...]
    """Modules and operators that see the whole input; empty where the halo is exact."""
    local_halo_px: int | None
    """`core_halo_px` if the unbounded were not there; None where that cannot be told."""
    least_px: int
    """The smallest side the model takes; others are this plus multiples of ``stride_px``."""

    def read_px(self, needed_px: int) -> int:
        """Return the smallest side that the model takes and that is at least ``needed_px``."""
        return self.least_px + max(0, -(-(needed_px - self.least_px) // self.stride_px)) * self.stride_px

    def without_exact_halo(self, *names: str) -> TileGeometry:
        """Return the geometry of a model that turns out to see the whole input, by name."""
        return replace(self, halo_px=None, core_halo_px=None, unbounded=names)


# In inference mode, which a Trainer validates in, operators come undecomposed and would not be known.
@torch.inference_mode(mode=False)
def tile_geometry(model: nn.Module) -> TileGeometry:
    """Return stride, halo, margin and size rule of a model ``(N, C, H, W) -> (N, K, H', W')``.

    Parameters are not touched: the pass runs on a copy without values, in evaluation mode.

    Args:
        model: The model; its first `Rescale` or convolution tells the number of bands.

    Raises:
        InvalidConfigError: The model takes no square image of at most 2048 px.
    """
    ghost = _ghost(model)
    bands, side = _bands(ghost), SIDES_PX[0]
    traced = _tried(ghost, bands, side)
    if traced is None:
        side = _a_side_it_takes(ghost, bands)
        traced = _traced(ghost, bands, side)
    geometry = _summary(*traced, side=side)
    least = _least_side(ghost, bands, side % geometry.stride_px, geometry.stride_px, upto=side)
    geometry = replace(geometry, least_px=least)
    return geometry if geometry.unbounded else _if_any_size(geometry, ghost, bands, side, traced)


def _if_any_size(
    geometry: TileGeometry, ghost: nn.Module, bands: int, side: int, traced: tuple[Trace, Tensor]
) -> TileGeometry:
    """Return the geometry, without a halo if the model does something else to an image of another size."""
    steps = traced[0].flow.to(traced[1])
    next_px = side + geometry.stride_px
    following = _tried(ghost, bands, next_px)
    if following is None:
        return geometry.without_exact_halo(f"size of the input ({side} px is taken, but {next_px} px is not)")
    further = (_tried(ghost, bands, width, height=height) for height, width in further_sizes(side, geometry.stride_px))
    taken = next(filter(None, further), None)
    for trace, output in filter(None, (following, taken)):
        if (name := first_difference(steps, trace.flow.to(output))) is not None:
            return geometry.without_exact_halo(f"{name} (depends on the size of the input)")
        if replace(_summary(trace, output, side=trace.flow.size[1]), least_px=geometry.least_px) != geometry:
            return geometry.without_exact_halo(f"size of the input (not of {side} px, it gives another geometry)")
    return geometry


def trial(model: nn.Module) -> tuple[nn.Module, Tensor]:
    """Return a copy of a model without values, in evaluation mode, and an image without values that it takes."""
    ghost = _ghost(model)
    bands = _bands(ghost)
    side = _a_side_it_takes(ghost, bands)
    return ghost, torch.empty(1, bands, side, side, device="meta")


def _ghost(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("meta", torch.float32).eval()


@dataclass(frozen=True, kw_only=True)
class SeenMap:
    """The map that a module gets as its input."""

    shape: tuple[int, ...]
    """Its shape for a trial image."""
    stride_px: int
    """Input pixels that one of its cells spans."""
    receptive_px: int | None
    """Side of the square of input pixels that one cell depends on, the largest of all cells and of both axes; None
    where that cannot be told."""


@torch.inference_mode(mode=False)
def seen_maps(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> dict[str, SeenMap]:
    """Return what the modules that are wanted get as input, by name, in the order they run; found by the same pass."""
    ghost, image = trial(model)
    bands, side = image.shape[1], image.shape[-1]
    seen: dict[str, SeenMap] = {}

    def look(trace: Trace) -> None:
        for name, module in ghost.named_modules():
            if wanted(module):
                module.register_forward_pre_hook(partial(note, trace, name))

    def note(trace: Trace, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        reach = trace.reach_of(x)
        # A map without a reach comes after something that sees everything: go by its size.
        cells = x.shape[-1] if x.dim() == 4 else 1
        stride = reach.stride[0] if reach is not None else Fraction(side, max(1, cells))
        seen[name] = SeenMap(shape=tuple(x.shape), stride_px=max(1, round(stride)), receptive_px=_receptive_px(reach))

    _traced(ghost, bands, side, look)
    return seen


def _receptive_px(reach: Reach | None) -> int | None:
    if reach is None:
        return None
    return int(max((hi - lo).max() for lo, hi in zip(reach.lo, reach.hi, strict=True))) + 1


def _traced(
    ghost: nn.Module,
    bands: int,
    side: int,
    look: Callable[[Trace], None] = lambda trace: None,
    *,
    height: int | None = None,
) -> tuple[Trace, Tensor]:
    """Run the model once under a trace; once more where a block turns out not to hold whole cells."""
    block = 64
    while True:
        image = torch.empty(1, bands, height or side, side, device="meta")
        trace = Trace(block, Flow(ghost, image))
        look(trace)
        with ExitStack() as stack:
            made_of_values = MadeOfValues(trace.flow, trace.where)
            for context in (torch.no_grad(), as_usual(), naming(ghost, trace.where), Quick(), trace, made_of_values):
                stack.enter_context(context)
            trace.start(image)
            output = ghost(image)
        if trace.needed_block == block:
            return trace, output
        block = trace.needed_block


def _tried(ghost: nn.Module, bands: int, side: int, *, height: int | None = None) -> tuple[Trace, Tensor] | None:
    """Return what `_traced` does, or None for a size that the model does not take."""
    try:
        trace, output = _traced(ghost, bands, side, height=height)
    except Exception:  # noqa: BLE001 - as in _takes
        return None
    return (trace, output) if _is_map(output) else None


def _summary(trace: Trace, output: Tensor, *, side: int) -> TileGeometry:
    """Return what a trace of a square image of this side says; the least side is not known from it."""
    reach = trace.reach_of(output)
    margin, odd = divmod(side - output.shape[-1], 2)
    if reach is not None and (odd or margin < 0 or reach.stride != ONE):
        trace.unbounded.append(f"output of {output.shape[-1]} px for an input of {side} px")
        reach = None
    if reach is None and not trace.unbounded:
        trace.unbounded.append("output (follows from the image in no known way)")
    stride = lcm(*(s.numerator for s in trace.strides))

    halo = core_halo = None
    if reach is not None:
        ranges = [_beyond(reach, axis, margin, stride) for axis in (0, 1)]
        halo = max(pixel for pixel, _ in ranges)
        core_halo = max(core for _, core in ranges)
    exact = not trace.unbounded
    return TileGeometry(
        stride_px=stride,
        halo_px=halo if exact else None,
        core_halo_px=core_halo if exact else None,
        margin_px=max(0, margin),
        unbounded=_names(trace.unbounded),
        local_halo_px=core_halo,
        least_px=side,
    )


def _names(unbounded: list[str]) -> tuple[str, ...]:
    """Return each name once; of a module that is named, its operators are not named as well."""
    names = dict.fromkeys(unbounded)
    return tuple(name for name in names if name.partition(": ")[0] == name or name.partition(": ")[0] not in names)


def _beyond(reach: Reach, axis: int, margin: int, stride: int) -> tuple[int, int]:
    """Return how far one pixel, and one block of ``stride`` pixels, see beyond their own edges."""
    # Output index i stands at input pixel i + margin.
    at = np.arange(len(reach.lo[axis])) + margin
    lo, hi = reach.lo[axis], reach.hi[axis]
    pixel = max((at - lo).max(), (hi - at).max())
    first = at - (at - margin) % stride
    core = max((first - lo).max(), (hi - (first + stride - 1)).max())
    return max(0, int(pixel)), max(0, int(core))


def _bands(model: nn.Module) -> int:
    for module in model.modules():
        if isinstance(module, Rescale):
            return len(module.mean)
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def _takes(ghost: nn.Module, bands: int, side: int) -> bool:
    try:
        with torch.no_grad(), Quick():
            output = ghost(torch.empty(1, bands, side, side, device="meta"))
    except Exception:  # noqa: BLE001 - whatever a foreign model raises for a size it does not take
        return False
    return _is_map(output)


def _is_map(output: object) -> bool:
    return isinstance(output, Tensor) and output.dim() == 4


def _a_side_it_takes(ghost: nn.Module, bands: int) -> int:
    for side in SIDES_PX:
        if _takes(ghost, bands, side):
            return side
    raise InvalidConfigError(
        f"The model takes no square image of {bands} bands and up to 2048 px; check that it maps (N, C, H, W) to "
        "logits (N, K, H, W)."
    )


def _least_side(ghost: nn.Module, bands: int, remainder: int, stride: int, *, upto: int) -> int:
    for side in range(remainder or stride, upto, stride):
        if _takes(ghost, bands, side):
            return side
    return upto
