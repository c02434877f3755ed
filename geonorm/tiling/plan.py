"""Where the tiles of a raster lie: cores that are written, reads that go through the network.

Positions along an axis are counted from the raster's first pixel; negative ones lie before it, in the part that
is made up by reflection. The grid itself is anchored to the world: its lines are fixed by the index of the
raster's first pixel, counted from the origin of the CRS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from geonorm.errors import InvalidConfigError
from geonorm.raster.window import Window


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
        InvalidConfigError: A core that is no multiple of the network's stride, or a negative halo.
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

    def __post_init__(self) -> None:
        stride = self.network.stride_px
        if self.core_px < 1 or self.core_px % stride:
            near = max(stride, self.core_px // stride * stride)
            raise InvalidConfigError(
                f"core_px must be a multiple of the network's stride of {stride} px, got {self.core_px}. Try {near}."
            )
        if self.halo_px < 0:
            raise InvalidConfigError(f"halo_px must not be negative, got {self.halo_px}.")

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """The tiles along the rows and along the columns."""
        rows, cols = (
            Axis(length, self.core_px, self.halo_px, self.network, index - offset)
            for length, index, offset in zip(
                (self.height, self.width), self.first_index, self.grid_offset_px, strict=True
            )
        )
        return rows, cols

    @property
    def read_px(self) -> int:
        """Side of what the network reads for one core (less where the whole raster is smaller)."""
        return self.axes[0].read_px

    @property
    def overhead(self) -> float:
        """How many pixels the network computes for each pixel of a core: (read / core)^2."""
        return (self.read_px / self.core_px) ** 2

    @property
    def num_tiles(self) -> int:
        """How many cores the raster has."""
        rows, cols = self.axes
        return rows.num_cores * cols.num_cores

    def whole(self) -> Window:
        """Return what the whole-image pass reads: the raster, extended to what the network takes."""
        rows, cols = self.axes
        return Window(rows.whole_start, cols.whole_start, rows.whole_px, cols.whole_px)


@dataclass(frozen=True)
class Span:
    """A core along one axis, and what the network reads for it."""

    core_start: int
    core_stop: int
    read_start: int
    read_px: int


@dataclass(frozen=True)
class Axis:
    """The tiles along one axis of a raster."""

    length: int
    core_px: int
    halo_px: int
    network: Network
    index: int
    """Position of the raster's first pixel, counted from a line of the grid."""

    @property
    def whole_start(self) -> int:
        """First pixel that the whole-image pass reads: never after the raster's first."""
        return -(self.index % self.network.stride_px) - self.network.margin_px

    @property
    def whole_px(self) -> int:
        """Pixels that the whole-image pass reads."""
        return self.network.side_px(self.length - self.whole_start + self.network.margin_px)

    @property
    def aligned_halo_px(self) -> int:
        """The halo, rounded up so that reads begin where the network's cells do."""
        margin = self.network.margin_px
        return margin + _up(max(0, self.halo_px - margin), self.network.stride_px)

    @property
    def read_px(self) -> int:
        """Pixels read for one core, unless the whole-image pass has fewer."""
        return self.network.side_px(self.core_px + 2 * self.aligned_halo_px)

    @property
    def num_cores(self) -> int:
        """How many cores hold pixels of the raster."""
        return -(-(self.length + self.index % self.core_px) // self.core_px)

    def spans(self) -> Iterator[Span]:
        """Yield every core, cut to the raster, with its read.

        A read that would pass an end of the whole-image pass keeps its size and moves inward, so that the network
        meets the same edge there as in the whole-image pass.
        """
        read_px = min(self.read_px, self.whole_px)
        last_start = self.whole_start + self.whole_px - read_px
        first = -(self.index % self.core_px)
        for start in range(first, self.length, self.core_px):
            read_start = min(max(start - self.aligned_halo_px, self.whole_start), last_start)
            yield Span(max(0, start), min(self.length, start + self.core_px), read_start, read_px)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
