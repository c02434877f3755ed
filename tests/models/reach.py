"""How far an output pixel sees, found by trying: one pixel is spoilt, and the outputs that notice are counted."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geonorm.models import TileGeometry


class Seen(NamedTuple):
    """What a network was seen to see."""

    halo_px: int
    core_halo_px: int


def seen_by_nan(network: nn.Module, geometry: TileGeometry, *, bands: int = 3, upto_px: int = 0) -> Seen:
    """Return how far NaN spreads from a pixel, which is how far an operator reads, whatever its weights."""
    image, pixels = _images(geometry, bands, upto_px)
    spoilt = image.clone()
    for sample, (row, col) in enumerate(pixels):
        spoilt[sample, :, row, col] = torch.nan

    with torch.no_grad():
        noticed = _exact(network)(spoilt).isnan()

    return _seen(noticed.any(dim=1), pixels, geometry)


def seen_by_change(network: nn.Module, geometry: TileGeometry, *, bands: int = 3, upto_px: int = 0) -> Seen:
    """Return how far the change of a pixel to a very large number is felt in float64."""
    image, pixels = _images(geometry, bands, upto_px)
    changed = image.clone()
    for sample, (row, col) in enumerate(pixels):
        changed[sample, :, row, col] = 1e12

    with torch.no_grad():
        noticed = _exact(network)(changed) != _exact(network)(image)

    return _seen(noticed.any(dim=1), pixels, geometry)


def _images(geometry: TileGeometry, bands: int, upto_px: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return one image for each phase of the stride, and the pixel of it that is to be spoilt."""
    stride = geometry.stride_px
    reach = max(upto_px, geometry.halo_px or 0)
    reach += min(reach, 64) + stride  # the windows of cells at the border reach farther inwards
    side = geometry.read_px(2 * (reach + geometry.margin_px + stride))
    image = torch.rand(stride, bands, side, side, generator=torch.Generator().manual_seed(0))
    middle = side // 2 // stride * stride
    phases = [(phase, (phase + stride // 2) % stride) for phase in range(stride)]
    return image.double(), [(middle + row, middle + col) for row, col in phases]


def _exact(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).double().eval()


def _seen(noticed: Tensor, pixels: list[tuple[int, int]], geometry: TileGeometry) -> Seen:
    stride, margin = geometry.stride_px, geometry.margin_px
    halo = core_halo = 0
    for sample, where in enumerate(pixels):
        for axis, pixel in enumerate(where):
            outputs = noticed[sample].any(dim=1 - axis).nonzero().flatten()
            assert len(outputs), "no output noticed the pixel"
            core = outputs - outputs % stride + margin  # first pixel of the smallest core that holds it
            outputs = outputs + margin
            halo = max(halo, int((outputs - pixel).abs().max()))
            core_halo = max(core_halo, int((core - pixel).max()), int((pixel - (core + stride - 1)).max()))
    return Seen(halo, core_halo)
