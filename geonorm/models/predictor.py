"""A network as a function of tiles: where it runs, how it rounds, and in which orientations it looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError, name_some, one_line
from geonorm.models.bitwise import BitwiseConvolutions
from geonorm.models.converted import converted
from geonorm.models.geometry import TileGeometry
from geonorm.models.rescale import rescale_of
from geonorm.models.rows import NotByRowsError, RowNetwork, RowStream

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
        answer = _compiled(network)
    elif not by_torch:
        answer = converted(network, half=precision != "32-true")

    def predict(tiles: Tensor) -> Tensor:
        bitwise = BitwiseConvolutions() if plain else nullcontext()
        tiles = _as_input(tiles, device)
        rounding = _rounding(precision, device) if by_torch else nullcontext()
        with evaluating(network), torch.no_grad(), bitwise, rounding, _plain_float32(device):
            logits = answer(tiles) if tta == "none" else _mean_over_orientations(answer, tiles)
        return logits.to(torch.float32)

    return predict


class RowPredictor:
    """A network that takes an image row by row, with the result that `predictor` has of the whole image."""

    def __init__(
        self, network: nn.Module, geometry: TileGeometry, device: torch.device, *, precision: Precision = "32-true"
    ) -> None:
        """Write down what a network does, and try it on a small image.

        Args:
            network: Raw band values in, logits out.
            geometry: Its geometry.
            device: Where it runs.
            precision: See `predictor`.

        Raises:
            NotByRowsError: An operator that sees the whole map or has no rule, by name, or that does something else to
                some rows than to all.
        """
        if geometry.unbounded:
            raise NotByRowsError(f"{name_some(geometry.unbounded)} see the whole input, so there are no rows to keep.")
        self._network = network.to(device)
        self._device = device
        self._precision: Precision = precision
        image = _trial_image(network, geometry, TRIAL_STRIDES)
        with evaluating(network), _rounding(precision, device), _plain_float32(device):
            self.rows = RowNetwork.of(network, _as_input(image, device))
        self._try(_trial_image(network, geometry, tuple(2 * strides for strides in TRIAL_STRIDES)), geometry.stride_px)

    def __call__(self, height: int) -> RowRun:
        """Begin an image of so many rows."""
        return RowRun(self.rows.stream(height), self._network, self._device, self._precision)

    def tensor_bytes(self, height: int, width: int, step: int) -> Iterator[tuple[int, ...]]:
        """Yield the bytes of all tensors that there are, operator by operator, as an image goes by in steps."""
        bands = len(rescale_of(self._network).mean)
        return self.rows.tensor_bytes(height, width, step, bands * width * torch.float32.itemsize)

    def _try(self, image: Tensor, step_px: int) -> None:
        """Raise unless an image gives by rows what it gives at once."""
        run = self(image.shape[2])
        parts = [run.push(rows) for rows in image.split(step_px, dim=2)]
        by_rows = torch.cat([part for part in parts if part is not None], dim=2)
        whole = predictor(self._network, self._device, precision=self._precision)(image)
        error = (by_rows - whole).abs().max() if by_rows.shape == whole.shape else torch.inf
        if not error <= ROUNDING[self._precision] * (1 + whole.abs().max()):
            raise NotByRowsError("by rows this network gives something else than at once. Take --engine tiles.")


class RowRun:
    """One image on its way through a network."""

    def __init__(self, stream: RowStream, network: nn.Module, device: torch.device, precision: Precision) -> None:
        """Take the image's stream, and where and how it is computed."""
        self._stream = stream
        self._network = network
        self._device = device
        self._precision = precision

    def push(self, rows: Tensor) -> Tensor | None:
        """Take the next rows, raw values ``(1, C, h, W)``; return the logits ``(1, K, h', W')`` they complete."""
        bitwise = BitwiseConvolutions() if self._precision == "32-true" else nullcontext()
        # Half precision has been written down with the operators.
        with evaluating(self._network), torch.no_grad(), bitwise, _plain_float32(self._device):
            logits = self._stream.push(_as_input(rows, self._device))
        return None if logits is None else logits.to(torch.float32)


TRIAL_STRIDES = (6, 4)
"""Rows and columns, in strides of the network, of the image that shows what it does."""
ROUNDING: dict[Precision, float] = {"32-true": 1e-4, "bf16-mixed": 0.1, "16-mixed": 0.02}
"""By how much, of the largest logit, a network may differ from itself."""


def _trial_image(network: nn.Module, geometry: TileGeometry, strides: tuple[int, ...]) -> Tensor:
    """Return raw values of an image that the network takes."""
    rescale = rescale_of(network)
    sides = [geometry.read_px(geometry.stride_px * num + 2 * geometry.margin_px) for num in strides]
    noise = torch.randn(1, len(rescale.mean), *sides, generator=torch.Generator().manual_seed(0))
    mean, deviation = (values.detach().cpu()[:, None, None] for values in (rescale.mean, rescale.deviation))
    return noise * deviation + mean


def _as_input(tiles: Tensor, device: torch.device) -> Tensor:
    return tiles.to(device).to(torch.float32, memory_format=torch.channels_last)


def _rounding(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    return nullcontext() if precision == "32-true" else torch.autocast(device.type, dtype=AUTOCAST[precision])


def _check_for_openvino(device: torch.device, precision: Precision, *, compile: bool) -> None:
    if device.type != "cpu":
        raise InvalidConfigError(f"backend=openvino computes on the CPU, got device={device}.")
    if compile or precision == "16-mixed":
        asked = "compile" if compile else f"precision={precision}"
        raise InvalidConfigError(f"backend=openvino takes precision 32-true or bf16-mixed and no compile, got {asked}.")


def _compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a network that torch compiles when it is first called; if it cannot, that is one line."""
    from torch._dynamo.exc import TorchDynamoException  # importing torch leaves it out, and it takes seconds

    run = torch.compile(network)

    def answer(tiles: Tensor) -> Tensor:
        try:
            return run(tiles)
        except TorchDynamoException as error:  # inductor's errors are of that kind
            raise InvalidConfigError(f"torch cannot compile this network here: {one_line(error)}.") from error

    return answer


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
def _plain_float32(device: torch.device) -> Iterator[None]:
    """Keep cuDNN from rounding to TF32 and from choosing kernels by their speed."""
    # By default the flags turn cuDNN off altogether.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with exact if device.type == "cuda" else nullcontext():
        yield
