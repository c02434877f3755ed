"""A network as torch compiles it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError, one_line


def compiled(network: nn.Module, *, any_size: bool = True) -> Callable[[Tensor], Tensor]:
    """Return a network that torch compiles when it is first called; the network itself stays as it is.

    Args:
        network: Raw band values in, logits out.
        any_size: Compile for any size where a second one comes, instead of once for each.

    Raises:
        InvalidConfigError: When first called: torch cannot compile it, such as without a C++ compiler on the CPU.
    """
    from torch._dynamo.exc import TorchDynamoException  # importing torch leaves it out, and it takes seconds

    run = torch.compile(network, dynamic=None if any_size else False)

    def answer(image: Tensor) -> Tensor:
        try:
            return run(image)
        except TorchDynamoException as error:  # inductor's errors are of that kind
            raise InvalidConfigError(f"torch cannot compile this network here: {one_line(error)}.") from error

    return answer
