"""What all benchmarks share: lines of results, options, ways in turn, measured limits."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from _alternate import alternate
from _limits import flops_of, limit_of_bytes
from _lines import Limit, print_line, print_ratios, quartiles
from _options import option_parser, parse, words_of
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Case:
    size_px: int = 8
    norms: tuple[str, ...] = ("BN", "GN")
    model: str = "unet"


def test_ratios_are_taken_round_by_round(capsys: pytest.CaptureFixture[str]) -> None:
    print_ratios({"a": [1.0, 2.0, 4.0], "b": [3.0, 4.0, 4.0]}, to="a", benchmark="x", case="y", limit=Limit(1, "z"))

    a, b = map(json.loads, capsys.readouterr().out.splitlines())
    assert "ratio" not in a
    assert (a["figure"], a["of_limit"]) == (2.0, 0.5)
    assert (b["figure"], b["ratio"], b["quartiles"], b["rounds"]) == (4.0, 2.0, [1.5, 2.5], 3)


def test_a_bound_is_what_a_figure_stays_under(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("memory", "", "peak", 300.0, "B", bound=Limit(400.0, "the plan"))
    print_line("law", "", "crop", 0, "labels differ", bound=Limit(0, "the law"))

    peak, crop = map(json.loads, capsys.readouterr().out.splitlines())
    assert peak["of_limit"] == 0.75
    assert "of_limit" not in crop


def test_one_round_has_its_value_as_all_quartiles() -> None:
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 3.0]) == (1.5, 2.0, 2.5)


def test_ways_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    ticks = iter(range(100))

    seconds = alternate(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, clock=lambda: float(next(ticks))
    )

    assert calls == ["a", "b"] * 3
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_quick_changes_what_is_not_given() -> None:
    words = ["--quick", "--size-px", "3"]

    case, _ = parse(option_parser("", Case()), Case, words, quick={"size_px": 1, "norms": ("LN",)})

    assert case == Case(size_px=3, norms=("LN",))


def test_words_of_a_case_make_it_again() -> None:
    case = Case(size_px=5, norms=("SN",), model="other")

    assert parse(option_parser("", Case()), Case, words_of(case), quick={})[0] == case


def test_operations_are_those_of_the_formula() -> None:
    layer, x = nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.rand(2, 3, 7, 11)
    forward = 2 * 2 * 5 * 7 * 11 * 3 * 9

    assert flops_of(lambda: layer(x)) == forward
    # Back to the weights alone: the input needs no gradient.
    assert flops_of(lambda: layer(x).sum().backward()) == 2 * forward


def test_bytes_over_a_speed_are_seconds() -> None:
    assert limit_of_bytes(6e9, "three maps", at=2e9) == Limit(3.0, "three maps at 2.0 GB/s")
