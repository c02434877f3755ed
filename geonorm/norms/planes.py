"""Mean and variance of each channel of each sample, and one affine map for each, with their gradients.

On the CPU, up to float32, in compiled loops: the map is read once for its statistics and once to normalize it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geonorm.norms.compiled import in_large_pages, plane_loops_for, share_out_planes


def with_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x``, and mean and biased variance of its channels, ``(N, C)``.

    Go on with the ``x`` that is returned, and give it to `plane_affine` alone: its gradient, which nobody else holds
    then, and that of the statistics are taken in one go.
    """
    values, mean, var = _Moments.apply(x)
    return values, mean, var


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = plane_moments(x)
        ctx.save_for_backward(x, mean)
        return x.view_as(x), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted
            cells = x.shape[2] * x.shape[3]
            middle = x.mean((2, 3), keepdim=True)
            through_var = (x - middle) * (2 * grad_var / cells)[..., None, None]
            return grad + (grad_mean / cells)[..., None, None] + through_var
        grad = grad.contiguous() if grad._base is None else grad.clone(memory_format=torch.contiguous_format)
        add_moments_backward(grad, x, mean, grad_mean, grad_var)
        return grad


@torch.library.custom_op("geonorm::plane_moments", mutates_args=())
def plane_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of the channels of float32 maps, ``(N, C)``."""
    mean, var = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    _share_out("moments", [x], [mean, var])
    return mean, var


@plane_moments.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])


@torch.library.custom_op("geonorm::add_moments_backward", mutates_args=("grad",))
def add_moments_backward(grad: Tensor, x: Tensor, mean: Tensor, grad_mean: Tensor, grad_var: Tensor) -> None:
    """Add to ``grad``, a contiguous map, what comes by way of mean and variance."""
    _share_out("add_moments_backward", [grad, x], [mean, grad_mean, grad_var])


@torch.library.custom_op("geonorm::plane_affine", mutates_args=())
def plane_affine(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return ``(x - mean) * scale + bias`` of float32 maps; the others are ``(N, C)``."""
    y = in_large_pages(_contiguous(x))
    _share_out("affine", [x], [mean, scale, bias], [y])
    return y


@plane_affine.register_fake
def _(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return _contiguous(x)


@torch.library.custom_op("geonorm::plane_affine_backward", mutates_args=())
def plane_affine_backward(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, scale and bias."""
    grad_x = in_large_pages(_contiguous(x))
    grad_scale, grad_bias = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    _share_out("affine_backward", [grad, x], [mean, scale], [grad_x], [grad_scale, grad_bias])
    return grad_x, grad_scale, grad_bias


@plane_affine_backward.register_fake
def _(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _contiguous(x), x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _affine_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    x, mean, scale = ctx.saved_tensors
    if torch.is_grad_enabled():  # a gradient of the gradient is wanted
        grad_bias = grad.sum((2, 3))
        grad_scale = (grad * (x - mean[..., None, None])).sum((2, 3))
        return grad * scale[..., None, None], -scale * grad_bias, grad_scale, grad_bias
    grad_x, grad_scale, grad_bias = plane_affine_backward(grad, x, mean, scale)
    return grad_x, -scale * grad_bias, grad_scale, grad_bias


plane_affine.register_autograd(_affine_backward, setup_context=_save)


def _contiguous(x: Tensor) -> Tensor:
    """Return space for a map of this shape, contiguous whatever the map is."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _share_out(name: str, *arguments: list[Tensor]) -> None:
    """Call one of the loops with maps as planes and ``(N, C)`` as rows, spread over torch's threads."""
    maps = arguments[0][0]  # inputs may be copied where they are not contiguous; results are made contiguous
    loops = plane_loops_for(maps)
    assert loops is not None, "whoever calls these operators has asked first"
    planes = maps.shape[0] * maps.shape[1]
    arrays = [
        tensor.detach().contiguous().reshape((planes, -1) if tensor.dim() == 4 else (planes,)).numpy()
        for tensors in arguments
        for tensor in tensors
    ]
    share_out_planes(lambda part: getattr(loops, name)(*arrays, part), planes, values=maps.numel())
