"""What a network holds in memory while it sees a batch of tiles: its tensors counted, nothing computed."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geonorm.models import TileGeometry
from geonorm.models.predictor import predictor
from geonorm.models.rescale import rescale_of
from geonorm.models.row_predictor import RowPredictor
from geonorm.tiling.engine import Predict

HEAP_BYTES = 32 * 2**20
"""glibc takes tensors below this from its heap, where the gaps that others leave stay with the process."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What a network needs for a batch of tiles."""

    peak_bytes: int
    """Most bytes of tensors alive at once."""
    heap_bytes: int
    """The same, of small tensors alone."""
    logits_shape: tuple[int, ...]


def activation_bytes(
    network: nn.Module, *, bands: int, size_px: int, batch_size: int = 1, dtype: torch.dtype = torch.uint8
) -> int:
    """Return how many bytes of tensors are alive at once, at most, while a network sees a batch of tiles.

    The tiles are counted, weights are not, nor what an operator holds for itself. Nothing is computed: the network
    runs on tensors without values, or, if it asks for values, once on a single tile.

    Args:
        network: Raw band values in, logits out; of a network on a GPU, the tensors there count.
        bands: Bands of the tiles.
        size_px: Side of the tiles.
        batch_size: Number of tiles.
        dtype: Type of the raw values.
    """
    device = rescale_of(network).mean.device
    return activations(predictor(network, device), (batch_size, bands, size_px, size_px), dtype, device).peak_bytes


def activations(predict: Predict, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Activations:
    """Return what it takes to turn raw tiles ``(N, C, h, w)`` into logits; see `activation_bytes`."""
    try:
        # The counter is the inner one: it sees what is asked for before that is done without values. Under both,
        # torch compiles nothing.
        with FakeTensorMode(allow_non_fake_inputs=True), _Counter(device) as counter:
            tiles = torch.empty(shape, dtype=dtype)
            logits = predict(tiles)
        times = 1
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException):
        with _Counter(device) as counter:
            tiles = torch.zeros((1, *shape[1:]), dtype=dtype)
            logits = predict(tiles)
        times = shape[0]
    return Activations(
        peak_bytes=times * counter.peak_bytes,
        heap_bytes=times * counter.heap_peak_bytes,
        logits_shape=(shape[0], *logits.shape[1:]),
    )


def stream_bytes(rows: RowPredictor, geometry: TileGeometry, *, width_px: int, step_px: int) -> tuple[int, int]:
    """Return how many bytes of tensors are alive at once, at most, while an image goes by in rows; and of small ones.

    Args:
        rows: The network.
        geometry: What it sees.
        width_px: Columns of the image.
        step_px: Rows that go in at a time.
    """
    # Until all rows that are ever kept at once have come in, and some more have gone through.
    needed_px = geometry.read_px(2 * (geometry.core_halo_px or 0) + 2 * geometry.margin_px + 4 * step_px)
    height_px = geometry.read_px(-(-needed_px // step_px) * step_px)  # the last step is a whole one, too
    peak = heap_peak = 0
    for sizes in rows.tensor_bytes(height_px, width_px, step_px):
        peak = max(peak, sum(sizes))
        heap_peak = max(heap_peak, sum(size for size in sizes if size < HEAP_BYTES))
    return peak, heap_peak


class _Counter(TorchDispatchMode):
    """Counts the bytes of the tensors that are made within, as they come and go."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.peak_bytes = self.heap_peak_bytes = 0
        self._device = device
        self._alive: dict[int, int] = {}
        self._bytes = self._heap_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.mkldnn_convolution.default and isinstance(args[0], FakeTensor):
            image, weight, bias, padding, stride, dilation, groups = args  # it cannot run without values
            args = (image, weight, bias, stride, padding, dilation, False, [0, 0], groups)
            func = torch.ops.aten.convolution.default
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor) and value.device.type == self._device.type:
                self._add(value.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._alive:
            self._alive[storage._cdata] = storage.nbytes()
            self._change(storage.nbytes(), 1)
            weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, address: int) -> None:
        self._change(self._alive.pop(address), -1)

    def _change(self, num: int, sign: int) -> None:
        self._bytes += sign * num
        self._heap_bytes += sign * num * (num < HEAP_BYTES)
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        self.heap_peak_bytes = max(self.heap_peak_bytes, self._heap_bytes)
