"""Folders looked into, and disks that fill up."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def names_in(folder: Path) -> list[str]:
    """Return what lies in a folder, hidden things too."""
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def files_end_at(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
