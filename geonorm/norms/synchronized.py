"""Statistics over a batch, and over the batches of several processes as if they were one."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


def synchronize_norms(network: nn.Module, *, on: bool = True) -> int:
    """Let every norm with batch statistics take them over all processes while it trains; return how many do.

    The backward pass is synchronized too: several processes with a part of the batch each compute the outputs,
    running statistics and gradients of one process with the whole batch. The parts may differ in size. Works with
    every backend of ``torch.distributed``, gloo on the CPU included; without other processes nothing changes.

    Source: SyncBN as in Peng et al., CVPR 2018 (MegDet); SyncSN of Luo et al., section 3.
    """
    found = [module for module in network.modules() if hasattr(module, "synchronized")]
    for module in found:
        setattr(module, "synchronized", on)  # noqa: B010 - BN, BatchRenorm and SN know of this module, not it of them
    return len(found)


def batch_moments(mean: Tensor, var: Tensor, *, cells: int, synchronized: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the statistics of single samples to those of the batch, in the centred form of equation (4) of SN.

    Args:
        mean: Mean of each channel of each sample, ``(N, C)``.
        var: Biased variance of the same, ``(N, C)``.
        cells: Values that each was taken from.
        synchronized: Merge over all processes; the gradient flows back to all of them.

    Returns:
        Mean ``(C,)``, biased variance ``(C,)``, and the number of values behind each, a scalar.
    """
    count = mean.new_full((), mean.shape[0] * cells)  # no Python number: exported programs take any size
    if not (synchronized and several_processes()):
        spread, batch_mean = torch.var_mean(mean, dim=0, correction=0)
        return batch_mean, var.mean(dim=0) + spread, count
    from torch.distributed.nn.functional import all_reduce  # not in every build of torch

    count = all_reduce(count)
    batch_mean = all_reduce(mean.sum(dim=0) * cells) / count
    deviations = (var + (mean - batch_mean).square()).sum(dim=0) * cells
    return batch_mean, all_reduce(deviations) / count, count


@torch.no_grad()
def move_running(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, *, momentum: float) -> None:
    """Move running statistics towards those of a batch."""
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_(var.to(running_var.dtype), momentum)


@torch.no_grad()
def unbiased(var: Tensor, count: Tensor) -> Tensor:
    """Return the variance as torch's Batch Norm keeps it, from the biased one and the values behind it."""
    return var * (count / (count - 1).clamp(min=1))


def several_processes() -> bool:
    """Say whether this process is one of several that work together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
