"""Numbers of colours -> colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int, int]


@dataclass(frozen=True)
class Palette:
    """The colour table of a raster's only band.

    ``colors`` are red, green, blue and alpha of every value from 0, shape (4, values), uint8.
    """

    colors: NDArray[np.uint8]

    @classmethod
    def of(cls, table: Mapping[int, Color], dtype: np.dtype[np.unsignedinteger]) -> Palette:
        """Return the palette of a colour table; a value that it does not list is black and transparent."""
        colors = np.zeros((4, np.iinfo(dtype).max + 1), dtype=np.uint8)
        for value, color in table.items():
            colors[:, value] = color
        return cls(colors)

    def expand(self, values: NDArray[np.unsignedinteger], bands: Sequence[int]) -> NDArray[np.uint8]:
        """Return the colours of ``values`` (H, W): red, green, blue, alpha as bands 1 to 4, shape (C, H, W)."""
        return np.stack([self.colors[band - 1][values] for band in bands])

    def visible(self, values: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
        """Return where the colour of ``values`` is not wholly transparent."""
        return (self.colors[3] != 0)[values]
