"""Run several ways in turn, again and again, so that a busy machine disturbs all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial


def alternate(
    ways: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Return seconds of each way, one figure a round; the first round is not counted.

    Args:
        ways: What to run, by name.
        rounds: How often.
        clock: Processor time, or another clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            began = clock()
            way()
            if turn:
                seconds[name].append(clock() - began)
    return seconds


def alternate_both(
    ways: Mapping[str, Callable[[], object]], *, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return seconds of processor time, and those by the clock, as `alternate` does.

    Args:
        ways: What to run, by name.
        rounds: How often.
    """
    cpu: dict[str, list[float]] = {name: [] for name in ways}

    def noted(name: str) -> None:
        began = time.process_time()
        ways[name]()
        cpu[name].append(time.process_time() - began)

    clock = alternate({name: partial(noted, name) for name in ways}, rounds=rounds, clock=time.monotonic)
    return {name: values[1:] for name, values in cpu.items()}, clock
