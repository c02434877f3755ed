"""A network as torch compiles it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError, one_line

ADVICE = " Set TORCHDYNAMO_VERBOSE"
"""What torch's advice to its own developers begins with."""


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a network that torch compiles when it is first called; the network itself stays as it is.

    It is compiled for the size that comes first, and again, for any size, where another one comes.

    Raises:
        InvalidConfigError: When first called: torch cannot compile it, such as without a C++ compiler on the CPU.
    """
    from torch._dynamo.exc import TorchDynamoException  # importing torch leaves it out, and it takes seconds

    run = torch.compile(network)

    def answer(image: Tensor) -> Tensor:
        try:
            return run(image)
        except TorchDynamoException as error:  # inductor's errors are of that kind
            said = one_line(error).partition(ADVICE)[0].removesuffix(".")
            raise InvalidConfigError(f"torch cannot compile this network here: {said}.") from error

    return answer
