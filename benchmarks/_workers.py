"""Measure ways in turn, each in a process of its own, so that what one does to its memory helps or hurts no other."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from _memory import status_bytes

Job = Sequence[str | int]


class Turn(NamedTuple):
    """What one run took: CPU seconds, and by how many MiB its process grew at most, its result included."""

    seconds: float
    extra_mib: float


class Workers:
    """A process for each way, started as `python SCRIPT --worker NAME`, which calls `serve`."""

    def __init__(self, names: Sequence[str], *, script: str, words: Sequence[str], env: Mapping[str, str]) -> None:
        """Start them."""
        self._running = {
            name: subprocess.Popen(
                [sys.executable, script, *words, "--worker", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=dict(env),
            )
            for name in names
        }

    def alternate(self, job: Job, *, rounds: int) -> dict[str, list[Turn]]:
        """Let each do the job in turn, round after round; the first round is not counted."""
        turns: dict[str, list[Turn]] = {name: [] for name in self._running}
        for turn in range(rounds + 1):
            for name, process in self._running.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if not answer:
                    raise SystemExit(f"The process of {name} ended.")
                if turn:
                    turns[name].append(Turn(*json.loads(answer)))
        return turns

    def close(self) -> None:
        """End them."""
        for process in self._running.values():
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def serve(run: Callable[[Job], object]) -> None:
    """Do the jobs that come by the standard input, and answer with what each took."""
    for line in sys.stdin:
        job = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again here
        before = status_bytes("VmRSS")
        began = time.process_time()
        result = run(job)
        seconds = time.process_time() - began
        grown = (status_bytes("VmHWM") - before) / 2**20
        del result
        print(json.dumps([seconds, grown]), flush=True)
