"""Convolutions on the CPU whose results do not depend on the size of the map, the batch or the threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MAX_PRODUCTS = 256 * 3 * 3
"""Products of input channels and kernel that oneDNN adds up in one go, whatever the size of the map."""


class BitwiseConvolutions(TorchFunctionMode):
    """Within this context every float32 convolution on the CPU gives a pixel the same bits in any crop.

    torch picks another kernel for small inputs at batch 1, and for 1 x 1 convolutions another with the number of
    threads; each rounds differently. Here oneDNN's operator is called directly, in channels_last. Convolutions it
    cannot take (another device or dtype, gradients wanted) are left alone.

    Example:
        >>> image, layer = torch.ones(1, 3, 8, 8), torch.nn.Conv2d(3, 4, 3)
        >>> with torch.no_grad(), BitwiseConvolutions():
        ...     layer(image).shape
        torch.Size([1, 4, 6, 6])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace ``conv2d``; call everything else as it stands."""
        if func is torch.conv2d and torch.backends.mkldnn.is_available():
            call = _conv2d_arguments(*args, **(kwargs or {}))
            if call is not None:
                return _convolved(*call)
        return func(*args, **(kwargs or {}))


def _convolved(input: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """Return what oneDNN makes of it, some input channels at a time.

    Of more channels it adds up parts, whose number depends on the size of the map.
    """
    channels, kernel = input.shape[1], weight.shape[2] * weight.shape[3]
    parts = -(-channels * kernel // MAX_PRODUCTS)
    if how[-1] > 1 or parts == 1:
        return torch.ops.aten.mkldnn_convolution(input, weight, bias, *how)
    some = -(-channels // parts)  # about as many each: never a single one, which oneDNN treats in a way of its own
    total: Tensor | None = None
    for image, layer in zip(input.split(some, dim=1), weight.split(some, dim=1), strict=True):
        part = torch.ops.aten.mkldnn_convolution(_channels_last(image), _channels_last(layer), bias, *how)
        total, bias = part if total is None else total.add_(part), None
    assert total is not None
    return total


def _conv2d_arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | list[int] = 1,
    padding: int | list[int] | str = 0,
    dilation: int | list[int] = 1,
    groups: int = 1,
) -> tuple[Any, ...] | None:
    """Return the operator's arguments, or None where it does not apply."""
    plain = input.device.type == "cpu" and input.dtype == weight.dtype == torch.float32
    if not plain or input.dim() != 4 or isinstance(padding, str) or torch.is_grad_enabled():
        return None
    stride, padding, dilation = (
        [value, value] if isinstance(value, int) else list(value) for value in (stride, padding, dilation)
    )
    if input.shape[1] == 1:
        # With a single input channel oneDNN picks kernels by the size of the map; an empty second channel keeps it
        # from that, and adds nothing.
        two = [torch.cat([x, torch.zeros_like(x)], dim=1) for x in (input, weight)]
        return (*map(_channels_last, two), bias, padding, stride, dilation, groups)
    return (_channels_last(input), _channels_last(weight), bias, padding, stride, dilation, groups)


def _channels_last(x: Tensor) -> Tensor:
    """Return ``x`` in channels_last, unmistakably so with one channel too, where torch sees no difference."""
    channels, height, width = x.shape[1:]
    x = x.contiguous(memory_format=torch.channels_last)
    strides = (height * width * channels, 1, width * channels, channels)
    return x if x.stride() == strides else x.as_strided(x.shape, strides)
