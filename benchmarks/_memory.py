"""The memory of processes."""

from __future__ import annotations

import re
import resource
from pathlib import Path


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    if Path("/proc/self/status").exists():  # getrusage counts the peak of the parent too, up to when it started us
        return status_bytes("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def status_bytes(field: str) -> int:
    """Return a figure that Linux has of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def unique_bytes(pid: int) -> int:
    """Return the memory that a process shares with no other: pages private to it."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return 1024 * sum(int(number) for number in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE))
