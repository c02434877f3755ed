"""The one form of a result: a line of JSON whose keys are the same in all benchmarks.

`benchmark`, `case` and `way` say what was measured, `figure` and `unit` what came out, in SI units without prefix.
`ratio` is to `peer`, with `quartiles`; `limit` is in the unit of the figure, `limit_of` says what it is, and `of_limit`
how near the figure comes to it: 1 is there. `extra_mib` is by how much a process grew. All else is for the reader of
the lines.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch


class Limit(NamedTuple):
    """What a figure cannot be less than, and what says so."""

    value: float
    """In the unit of the figure."""
    of: str
    """Such as "2 passes at 11.3 GB/s"."""


def print_line(
    benchmark: str,
    case: str,
    way: str,
    figure: float,
    unit: str,
    *,
    ratios: Sequence[float] | None = None,
    peer: str | None = None,
    limit: Limit | None = None,
    bound: Limit | None = None,
    **facts: Any,
) -> None:
    """Print one result.

    Args:
        benchmark: Name of the script.
        case: What all ways that are compared have in common.
        way: What was measured.
        figure: What came out.
        unit: SI unit without prefix, and what it is a measure of: `s CPU`.
        ratios: To the peer, round by round.
        peer: The way that this one is held against.
        limit: What the figure cannot be less than.
        bound: What the figure may not be more than, instead.
        facts: All else.
    """
    line: dict[str, object] = {"benchmark": benchmark, "case": case, "way": way, "figure": rounded(figure)}
    line["unit"] = unit
    if ratios is not None:
        low, middle, high = quartiles(ratios)
        line |= {"peer": peer, "ratio": rounded(middle), "quartiles": [rounded(low), rounded(high)]}
        line["rounds"] = len(ratios)
    told = limit or bound
    if told is not None:
        line |= {"limit": rounded(told.value), "limit_of": told.of}
        over, under = (told.value, figure) if told is limit else (figure, told.value)
        if over > 0 and under > 0:
            line["of_limit"] = rounded(over / under)
    line |= facts
    line |= {"device": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    line["torch"] = torch.__version__
    print(json.dumps(line), flush=True)


def print_skipped(benchmark: str, way: str, reason: str) -> None:
    """Print that something was not measured, and why."""
    print(json.dumps({"benchmark": benchmark, "way": way, "skipped": reason}), flush=True)


def print_ratios(
    seconds: Mapping[str, Sequence[float]],
    each: Mapping[str, Mapping[str, Any]] | None = None,
    /,
    *,
    to: str,
    benchmark: str,
    case: str,
    unit: str = "s CPU",
    limit: Limit | None = None,
    **facts: Any,
) -> None:
    """Print a result for each way: median seconds, and the ratio to another way, round by round.

    Args:
        seconds: Of each round, for each way.
        each: Facts of each way.
        to: The way the others are held against.
        benchmark: Name of the script.
        case: What the ways have in common.
        unit: Of the seconds.
        limit: Of all ways.
        facts: All else that they have in common.
    """
    for name, values in seconds.items():
        ratios = None if name == to else [a / b for a, b in zip(values, seconds[to], strict=True)]
        figure = statistics.median(values)
        own = {} if each is None else each[name]
        print_line(benchmark, case, name, figure, unit, ratios=ratios, peer=to, limit=limit, **own, **facts)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile; one value is all three."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def rounded(value: float) -> float:
    """Return four significant digits."""
    return float(f"{value:.4g}")
