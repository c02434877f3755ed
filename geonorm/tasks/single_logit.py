"""A network of several logits whose first one stays at 0: the others learn as in a network that does not have it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError


def with_first_logit_fixed(logits: Tensor) -> Tensor:
    """Return the same logits ``(N, K, H, W)``, through the first of which nothing learns."""
    return torch.cat([logits[:, :1].detach(), logits[:, 1:]], dim=1)


@torch.no_grad()
def silence_first_logit(network: nn.Module, num_classes: int) -> None:
    """Subtract the first row of the last convolution from every row, in place: labels and probabilities stay.

    The first logit is 0 from then on, and stays 0 where nothing learns through it (`with_first_logit_fixed`).

    Raises:
        InvalidConfigError: The network's last convolution does not give the logits.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    last = convolutions[-1] if convolutions else None
    if last is None or last.out_channels != num_classes or last.groups != 1:
        raise InvalidConfigError(
            f"single_logit needs a network whose last convolution gives the {num_classes} logits, and that of "
            f"{type(network).__name__} {'is missing' if last is None else f'gives {last.out_channels} channels'}. "
            "Leave single_logit out."
        )
    for rows in (last.weight, last.bias):
        if rows is not None:
            rows.sub_(rows[:1].clone())
