"""Run several ways in turn, again and again, so that a busy machine disturbs all alike."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def alternate(ways: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds of each way, one figure a round; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if turn:
                seconds[name].append(time.process_time() - began)
    return seconds


def print_ratios(
    seconds: Mapping[str, list[float]], extra: Mapping[str, float] | None = None, /, *, to: str, **facts: object
) -> None:
    """Print one JSON line per way: median seconds, and median and quartiles of its ratio to another, round by round.

    Args:
        seconds: Of each round, for each way.
        extra: MiB by which the process of each way grows.
        to: The way the others are held against.
        facts: What is the same for all ways; ``limit_seconds``, if it is there, is held against each.
    """
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds[to], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        line = {
            **facts,
            "way": name,
            "cpu_seconds": round(statistics.median(values), 4),
            f"ratio_to_{to}": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "rounds": len(values),
            "device": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        limit = facts.get("limit_seconds")
        if isinstance(limit, float):
            line["of_limit"] = round(limit / statistics.median(values), 3)
        if extra:
            line["extra_mib"] = extra[name]
        print(json.dumps(line), flush=True)
