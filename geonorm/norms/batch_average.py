"""Statistics for evaluation by batch average: after training, over a number of batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from geonorm.errors import InvalidConfigError
from geonorm.norms.batch import BatchNorm
from geonorm.norms.batch_renorm import BatchRenorm
from geonorm.norms.switchable import SwitchableNorm
from geonorm.norms.synchronized import several_processes

KeepsStatistics = BatchNorm | BatchRenorm | SwitchableNorm | _BatchNorm


def layers_with_batch_statistics(network: nn.Module) -> list[KeepsStatistics]:
    """Return the norms of a network whose evaluation uses statistics kept from training batches."""
    kept = [module for module in network.modules() if isinstance(module, KeepsStatistics)]
    return [module for module in kept if getattr(module, "running_mean", None) is not None]


@torch.no_grad()
def average_batches(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set the running statistics of BN, SN and BatchRenorm to their plain average over some batches, in place.

    The parameters are frozen; every batch is normalized by its own statistics, as in training, and these are
    averaged with equal weight, over all processes where there are several. Everything else (dropout) is in
    evaluation mode meanwhile; afterwards every module is in the mode it was in.

    Source: Luo et al., SN journal version, section 3.2 ("batch average").

    Args:
        network: Takes a batch.
        batches: Training batches ``(N, C, H, W)``, on the network's device; at least one.

    Returns:
        How many batches were used; 0 if the network keeps no such statistics (then none is drawn).

    Raises:
        InvalidConfigError: No batch.
    """
    layers = layers_with_batch_statistics(network)
    if not layers:
        return 0
    modes = {module: module.training for module in network.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    steps = {layer: layer.num_batches_tracked.clone() for layer in layers if isinstance(layer, BatchRenorm)}
    used = 0
    try:
        network.eval()
        for layer in layers:
            layer.training = True
        for batch in batches:
            used += 1
            for layer in layers:
                # Moving towards the newest batch by 1, 1/2, 1/3, ... is the average of all.
                layer.momentum = 1 / used
            network(batch)
    finally:
        for module, training in modes.items():
            module.training = training
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for layer, step in steps.items():
            layer.num_batches_tracked.copy_(step)
    if not used:
        raise InvalidConfigError("A batch average needs at least one batch, got none. Is the training data empty?")
    _average_over_processes(layers)
    return used


def _average_over_processes(layers: list[KeepsStatistics]) -> None:
    if not several_processes():
        return
    for layer in layers:
        for name in ("running_mean", "running_var"):
            buffer = layer.get_buffer(name)
            distributed.all_reduce(buffer)
            buffer /= distributed.get_world_size()
