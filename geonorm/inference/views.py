"""What a network is shown of every tile, to average its answers: mirrored and turned copies, phases of its pooling."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from geonorm.errors import InvalidConfigError
from geonorm.models.predictor import Orientations

PHASED = re.compile(r"(?P<d4>d4\+)?phases(:(?P<number>[1-9][0-9]*))?")


@dataclass(frozen=True)
class Views:
    """What ``tta`` asks for."""

    orientations: Orientations = "none"
    phases: int | None = 1
    """Phases along each axis; None: as many as the stride of the network has pixels."""

    @classmethod
    def parse(cls, tta: str) -> Views:
        """Return what ``"none"``, ``"d4"``, ``"phases"``, ``"phases:N"`` or one of these after ``"d4+"`` asks for.

        Raises:
            InvalidConfigError: It is none of these, or N is no square.

        Example:
            >>> Views.parse("d4+phases:16")
            Views(orientations='d4', phases=4)
        """
        if tta == "none":
            return cls()
        if tta == "d4":
            return cls("d4")
        found = PHASED.fullmatch(tta)
        number = int(found["number"] or 0) if found else 0
        if found is None or math.isqrt(number) ** 2 != number:
            raise InvalidConfigError(
                "tta must be none, d4, phases, phases:N with N a square such as 4 or 16, or d4+phases, d4+phases:N, "
                f"got {tta!r}."
            )
        return cls("d4" if found["d4"] else "none", math.isqrt(number) or None)

    @property
    def copies(self) -> int:
        """Copies of a tile that the network sees at each phase."""
        return 8 if self.orientations == "d4" else 1

    def phases_of(self, stride_px: int) -> int:
        """Return the phases along each axis for a network of this stride."""
        return stride_px if self.phases is None else self.phases
