"""Free memory and that of a process, on this machine and on drawn ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from geonorm.inference import memory as module
from geonorm.inference.memory import available_memory, resident_bytes

MB = 10**6


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what draws a machine with 10,000 kB of free memory and some control groups."""
    monkeypatch.setattr(module, "PROC", tmp_path / "proc")
    monkeypatch.setattr(module, "CGROUP", tmp_path / "cgroup")

    def make(membership: str | None, **files: str) -> None:
        process = tmp_path / "proc" / "self"
        process.mkdir(parents=True)
        (tmp_path / "proc" / "meminfo").write_text("MemTotal: 90000 kB\nMemAvailable:    10000 kB\nSwapFree: 7 kB\n")
        if membership is not None:
            (process / "cgroup").write_text(membership)
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return make


@pytest.mark.parametrize(
    ("membership", "files", "free"),
    [
        (None, {}, 10_240_000),
        ("0::/\n", {}, 10_240_000),
        ("0::/\n", {"memory.max": "max\n"}, 10_240_000),
        (
            "0::/\n",
            {"memory.max": "9000000\n", "memory.current": "4000000\n", "memory.stat": "anon 9\ninactive_file 1000\n"},
            5_001_000,
        ),
        (
            "0::/user/job\n",
            {
                "user/job/memory.max": "max",
                "user/memory.max": "7000000",
                "user/memory.current": "1000000",
                "user/memory.stat": "inactive_file 0\n",
            },
            6_000_000,
        ),
        (
            "11:cpu,cpuacct:/elsewhere\n3:memory:/there\n0::/\n",
            {
                "memory/there/memory.limit_in_bytes": "3000000",
                "memory/there/memory.usage_in_bytes": "1000000",
                "memory/there/memory.stat": "inactive_file 5\ntotal_inactive_file 70\n",
            },
            2_000_070,
        ),
        (
            "0::/\n",
            {"memory.max": "90000000000", "memory.current": "0", "memory.stat": "inactive_file 0\n"},
            10_240_000,
        ),
        ("0::/\n", {"memory.max": "1000", "memory.current": "5000", "memory.stat": "inactive_file 0\n"}, 0),
    ],
)
def test_free_memory_is_what_the_system_and_the_groups_leave(
    system: Callable[..., None], membership: str | None, files: dict[str, str], free: int
) -> None:
    system(membership, **files)

    assert available_memory() == free


def test_without_proc_all_memory_counts(system: Callable[..., None]) -> None:
    assert available_memory("cpu") == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_free_memory_of_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (device.index, 99))

    assert available_memory("cuda:7") == 7


def test_the_process_holds_what_it_wrote(system: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    from_peak = resident_bytes()  # there is no /proc here
    monkeypatch.undo()
    before = resident_bytes()
    block = np.ones(80 * MB, np.uint8)

    assert 79 * MB < resident_bytes() - before < 120 * MB
    assert from_peak >= 0.9 * before
    del block
