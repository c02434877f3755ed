"""A network as a function of the rows of an image, one after the other; see `geonorm.models.rows`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from geonorm.errors import name_some, one_line
from geonorm.models.bitwise import BitwiseConvolutions
from geonorm.models.geometry import TileGeometry
from geonorm.models.predictor import Precision, as_input, evaluating, plain_float32, predictor, rounding_of
from geonorm.models.rescale import raw_noise, rescale_of
from geonorm.models.rows import NotByRowsError, RowNetwork, RowStream

TRIAL_STRIDES = (6, 4)
"""Rows and columns, in strides of the network, of the image that shows what it does."""
ROUNDING: dict[Precision, float] = {"32-true": 1e-4, "bf16-mixed": 0.1, "16-mixed": 0.02}
"""By how much, of the largest logit, a network may differ from itself."""


class DiffersByRowsError(NotByRowsError):
    """A network that gives by rows something else than at once, though its geometry says what each pixel sees.

    Attributes:
        name: What it is called among what sees the whole input.
    """

    def __init__(self, network: nn.Module) -> None:
        """Take the network."""
        super().__init__("by rows this network gives something else than at once")
        self.name = f"{type(network).__name__} ({self})"


class RowPredictor:
    """A network that takes an image row by row, with the result that `predictor` has of the whole image.

    Attributes:
        rows: What the network does, operator by operator.
    """

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
            DiffersByRowsError: Its values by rows are not those at once.
        """
        if geometry.unbounded:
            raise NotByRowsError(f"{name_some(geometry.unbounded)} see the whole input")
        self._network = network.to(device)
        self._device = device
        self._precision: Precision = precision
        try:
            self.rows = row_network(network, trial_image(network, geometry, TRIAL_STRIDES), device, precision)
            larger = tuple(2 * strides for strides in TRIAL_STRIDES)
            self._try(trial_image(network, geometry, larger), geometry.stride_px)
        except NotByRowsError:
            raise
        except Exception as error:  # whatever an operator raises for rows that it does not take
            raise NotByRowsError(f"by rows this network fails: {one_line(error)}") from error

    def __call__(self, height: int) -> RowRun:
        """Begin an image of so many rows."""
        return RowRun(self.rows.stream(height), self._device, self._precision)

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
            raise DiffersByRowsError(self._network)


class RowRun:
    """One image on its way through a network."""

    def __init__(self, stream: RowStream, device: torch.device, precision: Precision) -> None:
        """Take the image's stream, and where and how it is computed."""
        self._stream = stream
        self._device = device
        self._precision = precision

    def push(self, rows: Tensor) -> Tensor | None:
        """Take the next rows, raw values ``(1, C, h, W)``; return the output ``(1, K, h', W')`` they complete."""
        bitwise = BitwiseConvolutions() if self._precision == "32-true" else nullcontext()
        # Half precision has been written down with the operators.
        with torch.no_grad(), bitwise, plain_float32(self._device):
            output = self._stream.push(as_input(rows, self._device))
        return None if output is None else output.to(torch.float32)


def row_network(network: nn.Module, image: Tensor, device: torch.device, precision: Precision) -> RowNetwork:
    """Return what a network does in evaluation, from raw values of an image."""
    with evaluating(network), rounding_of(precision, device), plain_float32(device):
        return RowNetwork.of(network, as_input(image, device))


def trial_image(network: nn.Module, geometry: TileGeometry, strides: tuple[int, ...] = TRIAL_STRIDES) -> Tensor:
    """Return raw values of an image of so many strides that the network takes."""
    rescale = rescale_of(network)
    sides = [geometry.read_px(geometry.stride_px * num + 2 * geometry.margin_px) for num in strides]
    return raw_noise(rescale, 1, len(rescale.mean), *sides)
