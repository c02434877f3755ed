"""Random windows of images on disk, each a pure function of the seed and its number."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from geonorm.data.pairs import OpenPair, Pair, open_pair
from geonorm.data.spec import IGNORE_LABEL
from geonorm.raster.read import Grid
from geonorm.raster.window import Window

Sample = dict[str, Tensor]

MOST_OPEN = 64
"""So many pairs a process keeps open; a process may usually have 1024 files open, or 256 on macOS."""


class RandomPatches(Dataset[Sample]):
    """Square windows at random places of random images, read from disk one by one.

    An image is drawn with a chance in proportion to its pixels. One smaller than a patch is extended by reflection.
    A sample holds ``image`` (raw band values ``(C, h, w)``), ``valid`` (which of them count, see
    `unpacked`), ``mask`` (labels ``(h, w)``, uint8, `IGNORE_LABEL` where there is no data), ``turn`` (0 to 7, see
    `turned`) and ``number``.

    Args:
        pairs: Images and labels.
        grids: Their grids.
        patch_px: Side of a patch.
        seed: Sample ``number`` is drawn from ``(seed, number)`` alone.
        as_float: Give values as float32. Images of several types need it: a batch has the type of its first image.
    """

    def __init__(
        self, pairs: Sequence[Pair], grids: Sequence[Grid], *, patch_px: int, seed: int, as_float: bool = False
    ) -> None:
        self.pairs = list(pairs)
        self.sizes = [(grid.height, grid.width) for grid in grids]
        self.patch_px = patch_px
        self.seed = seed
        self.as_float = as_float
        areas = np.array([height * width for height, width in self.sizes], dtype=float)
        self._chances = areas / areas.sum()
        self._files = _OpenFiles()

    def __getitem__(self, number: int) -> Sample:
        """Return sample ``number``, counted over all epochs."""
        draw = np.random.default_rng([self.seed, number])
        which = int(draw.choice(len(self.pairs), p=self._chances))
        height, width = self.sizes[which]
        row, col = (int(draw.integers(0, max(1, size - self.patch_px + 1))) for size in (height, width))
        turn = int(draw.integers(8))
        window = Window(row, col, min(self.patch_px, height), min(self.patch_px, width))
        pair = self._files.of(self.pairs[which])
        sample = read_sample(pair, window, self.patch_px)
        if self.as_float:
            sample["image"] = sample["image"].to(torch.float32)
        return {**sample, "turn": torch.tensor(turn), "number": torch.tensor(number)}


class _OpenFiles:
    """The pairs that were read last, kept open: to open one takes longer than to read a patch.

    A process that is forked, or that this is sent to, opens its own: the place in a file is shared with those that
    were open before.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Pair, tuple[OpenPair, ExitStack]] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def of(self, pair: Pair) -> OpenPair:
        """Return a pair, open."""
        if self._process != os.getpid():
            self.__init__()  # type: ignore[misc]
        if pair not in self._open:
            if len(self._open) >= MOST_OPEN:
                self._open.popitem(last=False)[1][1].close()
            stack = ExitStack()
            self._open[pair] = stack.enter_context(open_pair(pair)), stack
        self._open.move_to_end(pair)
        return self._open[pair][0]


def read_sample(pair: OpenPair, window: Window, side_px: int) -> Sample:
    """Return image, validity and labels of a window, extended to ``side_px`` by reflection where it is smaller."""
    pixels = pair.read(window)
    labels = np.where(pixels.valid, pair.read_labels(window), IGNORE_LABEL).astype(np.uint8)
    values = pixels.values
    if values.dtype == np.uint16:
        values = values.astype(np.int32)  # torch can do little with uint16
    missing = [(0, side_px - window.height), (0, side_px - window.width)]
    bits = packed(pixels.value_valid & pixels.valid)
    return {
        "image": torch.from_numpy(np.pad(values, [(0, 0), *missing], mode="reflect")),
        "valid": torch.from_numpy(np.pad(bits, [(0, 0), *missing], mode="reflect")),
        "mask": torch.from_numpy(np.pad(labels, missing, mode="reflect")),
    }


def packed(valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return ``(ceil(C / 8), h, w)``, a bit for each of the bands of ``(C, h, w)``: a batch waits in memory."""
    return np.packbits(valid, axis=0, bitorder="little")


def unpacked(bits: Tensor, bands: int) -> Tensor:
    """Return what `packed` took, ``(..., C, h, w)``, bool."""
    each = 2 ** torch.arange(min(8, bands), dtype=torch.uint8, device=bits.device)[:, None, None]
    return ((bits.unsqueeze(-3) & each) != 0).flatten(-4, -3)[..., :bands, :, :]


class PatchNumbers(DistributedSampler[int]):
    """Numbers samples 0, 1, 2, ... through all epochs, and remembers which comes next.

    Several processes take turns of ``batch_size`` numbers each, so that together they read, step by step, what one
    process with the whole batch reads.

    Args:
        length: Samples per epoch, of all processes together; a rest that fills no batch of all is left out.
        batch_size: Samples per step of each process.
        rank: Number of this process.
        processes: How many there are.
    """

    # A DistributedSampler, so that Lightning puts no sampler of its own in its place.
    def __init__(self, length: int, *, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.steps = length // (batch_size * processes)
        self.batch_size = batch_size
        self.rank = rank
        self.processes = processes
        self.next = 0

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the numbers go on through the epochs, wherever a run is resumed."""

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        first = self.next
        for step in range(self.steps):
            start = first + (step * self.processes + self.rank) * self.batch_size
            yield from range(start, start + self.batch_size)


class PatchLoader(DataLoader[Sample]):
    """A loader that counts on its numbers how many samples were handed out; workers have read further."""

    def __init__(self, patches: RandomPatches, numbers: PatchNumbers, *, num_workers: int) -> None:
        super().__init__(
            patches,
            batch_size=numbers.batch_size,
            sampler=numbers,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        self.numbers = numbers

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch promises its own class
        for batch in super().__iter__():
            self.numbers.next += self.numbers.batch_size * self.numbers.processes
            yield batch


class WholeShare(DistributedSampler[int]):
    """Gives each process its share of some items: every item once, where torch's own sampler repeats some."""

    def __init__(self, length: int, *, rank: int = 0, processes: int = 1) -> None:
        self.items = range(rank, length, processes)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: every epoch has the same items."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)


def turned(image: Tensor, turn: int) -> Tensor:
    """Return ``image`` ``(..., h, w)`` turned by ``turn % 4`` right angles, and mirrored first if ``turn >= 4``."""
    mirrored = image.flip(-1) if turn >= 4 else image
    return torch.rot90(mirrored, turn % 4, dims=(-2, -1))
