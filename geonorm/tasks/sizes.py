"""Batches of any size for networks that take only some."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from geonorm.data.spec import IGNORE_LABEL
from geonorm.models import TileGeometry


def fitted(image: Tensor, labels: Tensor, geometry: TileGeometry) -> tuple[Tensor, Tensor]:
    """Return image and labels extended, down and right, to the next size that a network takes.

    The image goes on as its reflection, which does not repeat the edge, as in tiles; the labels as `IGNORE_LABEL`, so
    that what is added neither trains nor counts.

    Args:
        image: ``(N, C, H, W)``.
        labels: ``(N, H, W)``.
        geometry: Of the network.
    """
    rows, cols = (geometry.read_px(side) - side for side in image.shape[-2:])
    if not rows and not cols:
        return image, labels
    for dim, extra in ((-2, rows), (-1, cols)):
        image = image.index_select(dim, _reflected(image.shape[dim], extra).to(image.device))
    return image, pad(labels, (0, cols, 0, rows), value=IGNORE_LABEL)


def middle_that_fits(image: Tensor, geometry: TileGeometry) -> Tensor:
    """Return the middle of images, of the largest size that a network of valid convolutions takes.

    Other networks take the images as they are; one that is too small for any size is left for the network to refuse.

    Args:
        image: ``(N, C, H, W)``.
        geometry: Of the network.
    """
    if not geometry.margin_px:
        return image
    sides = [side - (side - geometry.least_px) % geometry.stride_px for side in image.shape[-2:]]
    if min(sides) < geometry.least_px:
        return image
    row, col = ((whole - side) // 2 for whole, side in zip(image.shape[-2:], sides, strict=True))
    return image[..., row : row + sides[0], col : col + sides[1]]


def _reflected(side: int, extra: int) -> Tensor:
    """Return the indices of ``side`` cells and ``extra`` further ones.

    Example:
        >>> _reflected(3, 4)
        tensor([0, 1, 2, 1, 0, 1, 2])
    """
    return torch.from_numpy(np.pad(np.arange(side), (0, extra), mode="reflect"))
