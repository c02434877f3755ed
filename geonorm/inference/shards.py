"""Which part of a raster this process labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

from geonorm.errors import InvalidConfigError, one_line

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One of several processes that label the same raster, and need not know of each other."""

    index: int = 0
    """In [0, count)."""
    count: int = 1
    """How many there are."""
    local_rank: int = 0
    """Which one it is on its machine."""

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise InvalidConfigError(f"a shard is one of 0 to count - 1, got {self.index} of {self.count}.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard that ``i/n`` names; i counts from 0 or from 1, as job arrays do.

        Raises:
            InvalidConfigError: It is not of that form.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        index, count = (int(found[1]), int(found[2])) if found else (1, 0)
        if not 0 <= index <= count or count < 1:
            raise InvalidConfigError(f"--shard must be i/n with i from 0 to n - 1 or from 1 to n, got {text!r}.")
        return cls(index % count, count)

    @classmethod
    def from_environment(cls) -> Self:
        """Return what torchrun, SLURM or another launcher that Lightning knows says; the only shard without one."""
        from lightning.fabric.plugins import environments

        # torchrun first: it may itself run inside a job of another launcher.
        for launcher in ("TorchElastic", "SLURM", "LSF", "MPI"):
            kind = getattr(environments, f"{launcher}Environment")
            if kind.detect():
                try:
                    environment = kind()
                except RuntimeError as error:  # such as SLURM's ntasks, where Lightning wants ntasks-per-node
                    raise InvalidConfigError(
                        f"{launcher} has started this in a way not supported: {one_line(error)}"
                    ) from error
                return cls(environment.global_rank(), environment.world_size(), environment.local_rank())
        return cls()

    def of(self, strips: Sequence[T], *, contiguous: bool) -> list[T]:
        """Return the strips of this shard: every n-th, or as many that follow each other."""
        if not contiguous:
            return list(strips[self.index :: self.count])
        ends = np.linspace(0, len(strips), self.count + 1).round().astype(int).tolist()
        return list(strips[ends[self.index] : ends[self.index + 1]])

    def device(self, name: str) -> str:
        """Return the device of this process where ``name`` leaves open which one: shards of one machine share out."""
        import torch

        if name != "cuda" or self.count == 1 or not torch.cuda.is_available():
            return name
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"


WHOLE = Shard()
