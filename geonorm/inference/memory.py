"""How much memory is free, and how much this process holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from geonorm.errors import InvalidConfigError

PROCESS_BYTES = 6 * 10**8
"""A process that has loaded torch and GDAL, where the system does not say what it holds."""
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory(device: str = "cpu") -> int:
    """Return how many bytes of memory are free on a device.

    On Linux the limits of the process's control groups count; on macOS it is all the memory there is.

    Raises:
        InvalidConfigError: The system does not say.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    meminfo = PROC / "meminfo"
    if meminfo.exists():
        lines = (line.split() for line in meminfo.read_text(encoding="utf-8").splitlines())
        free = next(1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:")
        return max(0, min(free, *_free_in_groups()))
    if sys.platform == "win32":
        raise InvalidConfigError("how much memory is free is not known here. Give core_px as a number; try 512.")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Return how much memory this process holds; a round number where the system does not say."""
    statm = PROC / "self" / "statm"
    if statm.exists():
        return int(statm.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "win32":
        return PROCESS_BYTES
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _free_in_groups() -> Iterator[int]:
    """Yield what each control group that limits the memory of this process has left; at least one number."""
    yield sys.maxsize
    groups = PROC / "self" / "cgroup"
    if not groups.exists():
        return
    for line in groups.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUP / "memory" if controllers else CGROUP
        limit, used, cached = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            if not (folder / limit).exists() or (allowed := (folder / limit).read_text().strip()) == "max":
                continue
            # Files that are kept in memory count as used, but make room.
            stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
            yield int(allowed) - int((folder / used).read_text()) + int(stat.get(cached, 0))
