"""The table of all benchmarks: its rows, and what becomes of a script that fails."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from _table import FOLDER, STUDIES, benchmarks, main, run_all, scaled, table

LINE: dict[str, Any] = {"benchmark": "walk", "case": "2 miles", "way": "dog", "figure": 0.01234, "unit": "s CPU"}


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def script(folder: Path, name: str, source: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(dedent(source), encoding="utf-8")
    return path


def test_a_row_shows_figure_ratio_limit_and_memory() -> None:
    line = LINE | {"peer": "cat", "ratio": 1.504, "quartiles": [1.25, 2], "extra_mib": 63.6}
    line |= {"limit": 0.00617, "limit_of": "2 passes at 9.1 GB/s", "of_limit": 0.5}

    row = table([line])[2]

    expected = ["walk", "2 miles", "dog", "12.3 ms CPU", "1.5 of cat (1.25 to 2)"]
    assert cells(row) == [*expected, "6.17 ms: 2 passes at 9.1 GB/s", "50 %", "64 MiB"]


def test_columns_stand_one_under_the_other_and_what_repeats_is_left_out() -> None:
    rows = table([LINE, LINE | {"way": "a much longer name"}, LINE | {"case": "3 miles"}])

    assert len({len(row) for row in rows}) == 1
    assert [cells(row)[:3] for row in rows[2:]] == [
        ["walk", "2 miles", "dog"],
        ["", "", "a much longer name"],
        ["", "3 miles", "dog"],
    ]


def test_a_limit_is_said_once_for_each_case_and_one_round_has_no_quartiles() -> None:
    limit = {"limit": 1.0, "limit_of": "light", "of_limit": 0.01}
    ratio = {"ratio": 2, "peer": "cat", "quartiles": [2, 2], "rounds": 1}

    rows = table([LINE | limit, LINE | {"way": "cat"} | limit | ratio, LINE | {"case": "3 miles"} | limit])

    assert [cells(row)[5] for row in rows[2:]] == ["1 s: light", "", "1 s: light"]
    assert cells(rows[3])[4] == "2 of cat"


def test_a_limit_of_nothing_has_no_share() -> None:
    row = table([LINE | {"figure": 0, "unit": "labels differ", "limit": 0.0, "limit_of": "the law"}])[2]

    assert cells(row)[3:7] == ["0 labels differ", "", "0 labels: the law", ""]


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (12.34, "s CPU", "12.3 s CPU"),
        (0.9996, "s", "1 s"),
        (9.996e-4, "s", "1 ms"),
        (2.5e-9, "s", "0.0025 us"),
        (34.01e9, "B/s", "34 GB/s"),
        (1_194_000_000, "B above an idle one", "1.19 GB above an idle one"),
        (1234.5, "labels differ", "1230 labels differ"),
        (-0.5, "s", "-500 ms"),
        (0, "s", "0 s"),
    ],
)
def test_figures_have_three_digits_and_a_prefix(value: float, unit: str, shown: str) -> None:
    assert scaled(value, unit) == shown


def test_a_line_of_another_form_is_a_row_that_says_so() -> None:
    row = table([{"benchmark": "walk", "seconds": 3}])[2]

    assert cells(row)[3] == "no figure in its line"


def test_a_script_that_fails_is_one_row_and_the_next_one_runs(tmp_path: Path) -> None:
    first = script(tmp_path, "first", f"print('''{json.dumps(LINE)}''', flush=True); raise ValueError('no such leg')")
    silent = script(tmp_path, "silent", "import sys; sys.exit(3)")
    killed = script(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)")
    empty = script(tmp_path, "empty", "print('a library says hello')")
    last = script(tmp_path, "last", f"print('hello'); print('''{json.dumps(LINE | {'benchmark': 'last'})}''')")

    lines = list(run_all([first, silent, killed, empty, last], words=[]))

    assert lines == [
        LINE,
        {"benchmark": "first", "failed": "ValueError: no such leg"},
        {"benchmark": "silent", "failed": "ended with 3, without a word"},
        {"benchmark": "killed", "failed": "ended by signal 9"},
        {"benchmark": "empty", "failed": "printed no result"},
        LINE | {"benchmark": "last"},
    ]
    assert cells(table(lines)[3])[3] == "failed: ValueError: no such leg"


def test_progress_and_messages_of_a_failure_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = script(tmp_path, "broken", "print('before'); raise SystemExit('no legs')")

    list(run_all([broken], words=[]))

    out, err = capsys.readouterr()
    assert out == ""
    assert "1 of 1: broken" in err
    assert "no legs" in err
    assert "before" in err


def test_scripts_get_the_words_of_the_command(tmp_path: Path) -> None:
    echo = script(tmp_path, "echo", "import json, sys; print(json.dumps({'benchmark': 'echo', 'words': sys.argv[1:]}))")

    (line,) = run_all([echo], words=["--quick"])

    assert line["words"] == ["--quick"]


@pytest.mark.parametrize(("trouble", "code"), [("failed", 1), ("skipped", 0)])
def test_lines_of_an_earlier_run_are_a_table_and_only_failures_an_error(
    trouble: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.jsonl"
    lines = [LINE, {"benchmark": "swim", "way": "fish", trouble: "no water"}]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    assert main(argparse.Namespace(lines_from=path)) == code

    assert capsys.readouterr().out.splitlines() == table(lines)
    assert f"{trouble}: no water" in table(lines)[3]


def test_every_study_is_a_script_and_no_benchmark() -> None:
    names = [path.stem for path in benchmarks(FOLDER)]

    assert names[0] == "machine"
    assert not set(names) & set(STUDIES)
    assert all((FOLDER / f"{name}.py").exists() for name in STUDIES)
