"""The plain U-Net with a norm of choice."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, pixel_shuffle

from geonorm.errors import InvalidConfigError
from geonorm.models.rescale import Rescale
from geonorm.norms import NormFactory, make_norm

Padding = Literal["same", "valid"]
NormAt = Literal["every", "block", "ends"]
Downsample = Literal["max", "maxblur"]


class UNet(nn.Module):
    """Map raw band values ``(N, C, H, W)`` to logits ``(N, K, H, W)``.

    Two 3 x 3 convolutions per block, 2 x 2 max pooling down, 2 x 2 up-convolutions and concatenated skips up,
    a 1 x 1 convolution at the end; channels double at each level. The first module is `Rescale`.

    Source: Ronneberger et al., MICCAI 2015, figure 1.
    Differs: norm and pooling are a choice, and ``padding="same"`` keeps the size.

    Args:
        in_channels: Bands C.
        num_classes: Classes K, at least 2.
        norm: Makes the norms, called as ``norm(num_features, stride=...)``.
        depth: How often the map is halved, at least 1.
        width: Channels of the first block.
        padding: ``"same"`` takes sides that are multiples of ``2 ** depth``; ``"valid"`` loses `margin_px` on all
            sides (572 -> 388 at depth 4, 632 -> 388 with blurs).
        norm_at: Where norms stand: after ``"every"`` convolution, after the last one of each ``"block"``, or after
            the last one of the first and the last block (``"ends"``, the land-cover network of the LCN authors).
            Each local norm adds half its window to the halo.
        downsample: ``"max"``: the maximum of 2 x 2 cells. ``"maxblur"``: `max_blur_pool`, with which the logits change
            less when the image moves by a few pixels. It has no weights, and adds ``2 ** depth - 1`` px to the halo.

    Raises:
        InvalidConfigError: A setting out of range, or a norm that does not fit the channels.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        norm: NormFactory,
        depth: int = 4,
        width: int = 32,
        padding: Padding = "same",
        norm_at: NormAt = "every",
        downsample: Downsample = "max",
    ) -> None:
        super().__init__()
        _check_settings(
            {
                "in_channels": (in_channels, 1),
                "num_classes": (num_classes, 2),
                "depth": (depth, 1),
                "width": (width, 1),
            },
            {"padding": (padding, Padding), "norm_at": (norm_at, NormAt), "downsample": (downsample, Downsample)},
        )
        self.depth = depth
        self.padding: Padding = padding
        self.downsample: Downsample = downsample

        def block(channels: int, level: int, *, at_end: bool) -> Block:
            normed = (norm_at == "every", norm_at != "ends" or at_end)
            return Block(
                channels,
                width * 2**level,
                norm=norm,
                stride=2**level,
                normed=normed,
                padded=padding == "same",
            )

        self.rescale = Rescale(in_channels)
        self.encoder = nn.ModuleList(
            block(in_channels if level == 0 else width * 2 ** (level - 1), level, at_end=level == 0)
            for level in range(depth)
        )
        self.bottom = block(width * 2 ** (depth - 1), depth, at_end=False)
        levels = range(depth - 1, -1, -1)
        self.upsample = nn.ModuleList(UpConv(width * 2 ** (level + 1), width * 2**level) for level in levels)
        self.decoder = nn.ModuleList(block(width * 2 ** (level + 1), level, at_end=level == 0) for level in levels)
        self.head = nn.Conv2d(width, num_classes, kernel_size=1)

    @property
    def margin_px(self) -> int:
        """Pixels that the output lacks on each side."""
        if self.padding == "same":
            return 0
        # A convolution takes one cell of its level on each side, a blur one of the level below.
        return 6 * 2**self.depth - 4 + (2 * 2**self.depth - 2 if self.downsample == "maxblur" else 0)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(N, K, H, W)`` for raw band values ``(N, C, H, W)``."""
        self._check_size(image)
        x = self.rescale(image)

        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
            x = max_pool2d(x, 2) if self.downsample == "max" else max_blur_pool(x, padded=self.padding == "same")
        x = self.bottom(x)
        for upsample, block, skip in zip(self.upsample, self.decoder, reversed(skips), strict=True):
            x = upsample(x)
            x = block(torch.cat([centre(skip, like=x), x], dim=1))
        return self.head(x)

    def extra_repr(self) -> str:
        """Return the settings that ``print(model)`` shows."""
        return f"depth={self.depth}, padding={self.padding!r}, downsample={self.downsample!r}"

    def _check_size(self, image: Tensor) -> None:
        multiple = 2**self.depth
        least = 2 * self.margin_px + (4 if self.padding == "valid" else multiple)
        for side in image.shape[-2:]:
            if side < least or (side - least) % multiple:
                below = max(least, side - (side - least) % multiple)
                raise InvalidConfigError(
                    f'A U-Net of depth {self.depth} with padding="{self.padding}" takes sides of {least} px plus any '
                    f"multiple of {multiple}, got {tuple(image.shape[-2:])}. Try {below} or {below + multiple}."
                )


class Block(nn.Sequential):
    """Two 3 x 3 convolutions, each with its norm if it has one, and its ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: NormFactory,
        stride: int,
        normed: tuple[bool, bool],
        padded: bool,
    ) -> None:
        layers: list[nn.Module] = []
        for channels, has_norm in zip((in_channels, out_channels), normed, strict=True):
            # A norm brings its own bias.
            layers.append(nn.Conv2d(channels, out_channels, 3, padding=int(padded), bias=not has_norm))
            if has_norm:
                layers.append(make_norm(norm, out_channels, stride=stride))
            layers.append(nn.ReLU(inplace=False))
        super().__init__(*layers)


class UpConv(nn.Module):
    """A 2 x 2 up-convolution: each cell becomes 2 x 2 cells, each by weights of its own.

    A transposed convolution of kernel and stride 2, written as a 1 x 1 convolution whose channels are laid out as
    2 x 2 cells, so that it takes the same bitwise path as every other convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, 2 H, 2 W)``."""
        return pixel_shuffle(self.conv(x), 2)


def max_blur_pool(x: Tensor, *, padded: bool) -> Tensor:
    """Return a map of half the sides: the maximum over 2 x 2 cells at every cell, blurred, then every second cell.

    A plain 2 x 2 maximum changes at random when the image moves by one cell; low-pass filtered, it changes gradually.
    A cell of the result stands where that of a plain maximum does: the blur is centred on its 2 x 2 cells, and sees one
    more on all sides.

    Source: Zhang, ICML 2019 (Making convolutional networks shift-invariant again), section 3.2; the blur is its Tri-3,
    1 2 1 along each axis.
    Differs: the blur is two averages over 2 x 2 cells, which make the same filter; at the border the maximum is that
    of the cells there are, where the released code reflects.

    Args:
        x: A map ``(N, C, H, W)`` of even sides.
        padded: Keep the outermost cells of the result, whose blurs reach beyond the border: ``(N, C, H / 2, W / 2)``;
            they are left out otherwise: ``(N, C, H / 2 - 2, W / 2 - 2)``.

    Example:
        >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8)
        >>> max_blur_pool(ramp, padded=True)[0, 0, 0]
        tensor([1.0000, 3.0000, 5.0000, 6.7500])
    """
    largest = max_pool2d(x, 2, stride=1, padding=1) if padded else max_pool2d(x[..., 1:-1, 1:-1], 2, stride=1)
    return avg_pool2d(avg_pool2d(largest, 2, stride=1), 2)


def centre(x: Tensor, *, like: Tensor) -> Tensor:
    """Return the middle of ``x`` of the height and width of ``like``."""
    row, col = ((x.shape[dim] - like.shape[dim]) // 2 for dim in (-2, -1))
    return x[..., row : row + like.shape[-2], col : col + like.shape[-1]]


def _check_settings(numbers: dict[str, tuple[int, int]], words: dict[str, tuple[str, object]]) -> None:
    """Raise `InvalidConfigError` unless every number is at least its least, and every word one of its choices."""
    for name, (value, least) in numbers.items():
        if value < least:
            raise InvalidConfigError(f"{name} must be at least {least}, got {value}.")
    for name, (choice, choices) in words.items():
        if choice not in get_args(choices):
            raise InvalidConfigError(f"{name} must be one of {', '.join(get_args(choices))}, got {choice!r}.")
