"""A network as a function of tiles: where it runs, how it rounds, and in which orientations it looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError
from geonorm.models.bitwise import BitwiseConvolutions
from geonorm.models.compiled import compiled
from geonorm.models.converted import converted

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""Lightning's names; only the first keeps the law of tiling to the last bit."""
Orientations = Literal["none", "d4"]
Backend = Literal["torch", "openvino"]
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def predictor(
    network: nn.Module,
    device: torch.device,
    *,
    precision: Precision = "32-true",
    tta: Orientations = "none",
    compile: bool = False,
    backend: Backend = "torch",
) -> Callable[[Tensor], Tensor]:
    """Return a network as a function of tiles ``(N, C, h, w)`` of raw values of any type, in evaluation.

    In float32, by torch and not compiled, what it says of a pixel does not depend on the tiling.

    Args:
        network: Raw band values in, logits out.
        device: Where it runs; raw values are moved there before they become floating point numbers.
        precision: ``"bf16-mixed"`` and ``"16-mixed"`` compute in half precision where torch's autocast does.
        tta: ``"d4"``: the mean of the logits for all eight mirrored and turned copies of a tile.
        compile: Compile the network with torch; needs a C++ compiler on the CPU.
        backend: What computes the network; ``"openvino"`` on the CPU only.

    Raises:
        InvalidConfigError: OpenVINO cannot be used, or not with these settings.
    """
    network = network.to(device)
    by_torch = backend == "torch"
    if not by_torch:
        _check_for_openvino(device, precision, compile=compile)
    plain = precision == "32-true" and not compile and by_torch
    answer: Callable[[Tensor], Tensor] = network
    if compile:
        answer = compiled(network)
    elif not by_torch:
        answer = converted(network, half=precision != "32-true")

    def predict(tiles: Tensor) -> Tensor:
        bitwise = BitwiseConvolutions() if plain else nullcontext()
        tiles = as_input(tiles, device)
        rounding = rounding_of(precision, device) if by_torch else nullcontext()
        with evaluating(network), torch.no_grad(), bitwise, rounding, plain_float32(device):
            logits = answer(tiles) if tta == "none" else _mean_over_orientations(answer, tiles)
        return logits.to(torch.float32)

    return predict


def as_input(tiles: Tensor, device: torch.device) -> Tensor:
    """Return raw values as the network gets them: on its device, float32, channels_last."""
    return tiles.to(device).to(torch.float32, memory_format=torch.channels_last)


def rounding_of(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a network computes in some precision."""
    return nullcontext() if precision == "32-true" else torch.autocast(device.type, dtype=AUTOCAST[precision])


def _check_for_openvino(device: torch.device, precision: Precision, *, compile: bool) -> None:
    if device.type != "cpu":
        raise InvalidConfigError(f"backend=openvino computes on the CPU, got device={device}.")
    if compile or precision == "16-mixed":
        asked = "compile" if compile else f"precision={precision}"
        raise InvalidConfigError(f"backend=openvino takes precision 32-true or bf16-mixed and no compile, got {asked}.")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation, and every module back into its mode afterwards."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _mean_over_orientations(answer: Callable[[Tensor], Tensor], tiles: Tensor) -> Tensor:
    """Return the mean of the logits over the eight symmetries of the square."""
    total: Tensor | None = None
    for mirrored in (False, True):
        for quarters in range(4):
            seen = torch.rot90(tiles.flip(-1) if mirrored else tiles, quarters, (-2, -1))
            said = answer(seen.contiguous(memory_format=torch.channels_last)).to(torch.float32)
            said = torch.rot90(said, -quarters, (-2, -1))
            said = said.flip(-1) if mirrored else said
            total = said.clone() if total is None else total.add_(said)
    assert total is not None
    return total.div_(8)


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """Keep cuDNN from rounding to TF32 and from choosing kernels by their speed."""
    # By default the flags turn cuDNN off altogether.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with exact if device.type == "cuda" else nullcontext():
        yield
