"""Where the tiles of a raster lie: cores that are written, reads that go through the network.

Positions along an axis are counted from the raster's first pixel; negative ones lie before it, in the part that
is made up by reflection. The grid itself is anchored to the world: its lines are fixed by the index of the
raster's first pixel, counted from the origin of the CRS.

The cells of a network's pooling begin where a read does. Reads that begin elsewhere, by less than the network's stride,
show it the same pixels at another *phase*. A plan may read every core at several phases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import gcd

from geonorm.errors import InvalidConfigError


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a plan has to know of a model (see `geonorm.models.geometry.TileGeometry`)."""

    stride_px: int = 1
    """Reads begin at multiples of this."""
    margin_px: int = 0
    """Pixels that the output lacks on each side of the input."""
    least_px: int = 1
    """The smallest side the network takes; others are this plus multiples of ``stride_px``."""

    def side_px(self, needed_px: int) -> int:
        """Return the smallest side that the network takes and that is at least ``needed_px``."""
        return self.least_px + _up(max(0, needed_px - self.least_px), self.stride_px)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every tile of a raster.

    Raises:
        InvalidConfigError: A core that is no multiple of the network's stride, a negative halo, or phases that do not
            divide the stride.
    """

    height: int
    """Rows of the raster."""
    width: int
    """Columns of the raster."""
    core_px: int = 512
    """Side of the square that one network call writes."""
    halo_px: int = 0
    """Pixels read beyond the core on each side; rounded up to what the network's stride asks for."""
    network: Network = Network()
    """What the network asks for."""
    first_index: tuple[int, int] = (0, 0)
    """Row and column of the raster's first pixel, counted from the origin of the CRS."""
    grid_offset_px: tuple[int, int] = (0, 0)
    """Rows and columns by which the grid is moved away from that origin."""
    phases: int = 1
    """At how many phases of the network's stride, along each axis, every core is read: their logits are averaged."""

    def __post_init__(self) -> None:
        stride = self.network.stride_px
        if self.core_px < 1 or self.core_px % stride:
            near = max(stride, self.core_px // stride * stride)
            raise InvalidConfigError(
                f"core_px must be a multiple of the network's stride of {stride} px, got {self.core_px}. Try {near}."
            )
        if self.halo_px < 0:
            raise InvalidConfigError(f"halo_px must not be negative, got {self.halo_px}.")
        if self.phases < 1 or stride % self.phases:
            able = ", ".join(f"{k} x {k} = {k * k}" for k in range(1, stride + 1) if stride % k == 0)
            raise InvalidConfigError(
                f"phases must be spread evenly over the network's stride of {stride} px, got {self.phases} x "
                f"{self.phases} = {self.phases**2}. Take one of {able}."
            )

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """The tiles along the rows and along the columns."""
        rows, cols = (
            Axis(length, self.core_px, self.halo_px, self.network, index - offset, self._phases_from(offset))
            for length, index, offset in zip(
                (self.height, self.width), self.first_index, self.grid_offset_px, strict=True
            )
        )
        return rows, cols

    def _phases_from(self, offset: int) -> tuple[int, ...]:
        """Return the phases of one axis, counted from the grid, in the order of their place in the world.

        Whatever the grid's offset, the same phases of the world are then added up in the same order. They are spread
        over the stride by a step that shares no divisor with it, so that poolings of smaller strides meet each of their
        own phases equally often.
        """
        stride = self.network.stride_px
        step = next(px for px in count(stride // self.phases) if gcd(px, stride) == 1)
        phases = [number * step % stride for number in range(self.phases)]
        return tuple(sorted(phases, key=lambda phase: (offset + phase) % stride))

    @property
    def anchor_px(self) -> int:
        """Moves of the grid by multiples of this leave the network's cells, at all phases together, where they are."""
        return 1 if self.phases == self.network.stride_px else self.network.stride_px

    @property
    def num_phases(self) -> int:
        """How often the network sees each core."""
        return self.phases**2

    @property
    def read_px(self) -> int:
        """Side of the most that the network reads for one core at once (less where the whole raster is smaller)."""
        return max(self.axes[0].reads_px)

    @property
    def overhead(self) -> float:
        """How many pixels the network computes for each pixel of a core, each time it sees it: (read / core)^2."""
        rows, cols = (sum(axis.reads_px) / self.phases for axis in self.axes)
        return rows * cols / self.core_px**2

    @property
    def compute(self) -> float:
        """How many pixels the network computes for each pixel of this raster, all its reads together."""
        rows, cols = (sum(read.px for span in axis.spans() for read in span.reads) for axis in self.axes)
        return rows * cols / (self.height * self.width)

    @property
    def num_tiles(self) -> int:
        """How many cores the raster has."""
        rows, cols = self.axes
        return rows.num_cores * cols.num_cores


@dataclass(frozen=True)
class Stretch:
    """Pixels in a row along one axis that the network reads at once."""

    start: int
    px: int

    @property
    def stop(self) -> int:
        """The first pixel after it."""
        return self.start + self.px


@dataclass(frozen=True)
class Span:
    """A core along one axis, and what the network reads for it."""

    core_start: int
    core_stop: int
    reads: tuple[Stretch, ...]
    """One for each phase, in the order in which they are added up."""


@dataclass(frozen=True)
class Axis:
    """The tiles along one axis of a raster."""

    length: int
    core_px: int
    halo_px: int
    network: Network
    index: int
    """Position of the raster's first pixel, counted from a line of the grid."""
    phases_px: tuple[int, ...] = (0,)
    """Where the network's cells begin, counted from a line of the grid, for each phase: less than a stride."""

    @property
    def wholes(self) -> tuple[Stretch, ...]:
        """What the whole-image pass reads, for each phase: it never begins after the raster's first pixel."""
        margin = self.network.margin_px
        starts = [-((self.index - phase) % self.network.stride_px) - margin for phase in self.phases_px]
        return tuple(Stretch(start, self.network.side_px(self.length - start + margin)) for start in starts)

    @property
    def aligned_halo_px(self) -> int:
        """The halo, rounded up so that reads begin where the network's cells do."""
        margin = self.network.margin_px
        return margin + _up(max(0, self.halo_px - margin), self.network.stride_px)

    @property
    def reads_px(self) -> tuple[int, ...]:
        """Pixels read for one core, for each phase, unless the whole-image pass has fewer.

        A core that does not begin where a cell does needs one more cell.
        """
        cells_px = [self.core_px + (self.network.stride_px if phase else 0) for phase in self.phases_px]
        return tuple(self.network.side_px(px + 2 * self.aligned_halo_px) for px in cells_px)

    @property
    def num_cores(self) -> int:
        """How many cores hold pixels of the raster."""
        return -(-(self.length + self.index % self.core_px) // self.core_px)

    def spans(self) -> Iterator[Span]:
        """Yield every core, cut to the raster, with its reads.

        A read that would pass an end of the whole-image pass keeps its size and moves inward, so that the network
        meets the same edge there as in the whole-image pass.
        """
        first = -(self.index % self.core_px)
        phases = [*zip(self.phases_px, self.reads_px, self.wholes, strict=True)]
        for start in range(first, self.length, self.core_px):
            reads = tuple(self._read(start, *phase) for phase in phases)
            yield Span(max(0, start), min(self.length, start + self.core_px), reads)

    def _read(self, core_start: int, phase_px: int, read_px: int, whole: Stretch) -> Stretch:
        """Return what the network reads at one phase for a core that begins at a line of the grid."""
        cell_start = core_start + (phase_px - self.network.stride_px if phase_px else 0)
        read_px = min(read_px, whole.px)
        return Stretch(min(max(cell_start - self.aligned_halo_px, whole.start), whole.stop - read_px), read_px)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
