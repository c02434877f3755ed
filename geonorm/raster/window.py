"""Rectangles of pixels, integers only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels; it may reach beyond the raster it is applied to.

    ``row`` and ``col`` are its first pixel, ``height`` and ``width`` its size.
    """

    row: int
    col: int
    height: int
    width: int

    @property
    def row_end(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def col_end(self) -> int:
        """First column to the right of the window."""
        return self.col + self.width

    def shifted(self, rows: int, cols: int) -> Window:
        """Return the window moved by ``rows`` down and ``cols`` to the right."""
        return Window(self.row + rows, self.col + cols, self.height, self.width)

    def intersection(self, other: Window) -> Window:
        """Return the pixels that both windows hold (size 0 where they do not meet)."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = max(0, min(self.row_end, other.row_end) - row)
        width = max(0, min(self.col_end, other.col_end) - col)
        return Window(row, col, height, width)

    def check_inside(self, height: int, width: int) -> None:
        """Raise unless the window holds pixels and lies inside a raster of ``height`` x ``width``."""
        if not (0 <= self.row < self.row_end <= height and 0 <= self.col < self.col_end <= width):
            raise ValueError(f"{self} must hold pixels and lie inside the {height} x {width} raster")
