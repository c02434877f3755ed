"""Each benchmark runs on a case of no size, and prints lines that the table takes."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from typing import Any

import _limits
import pytest
from _table import FOLDER, STUDIES, benchmarks, table

SMALL: dict[str, list[str]] = {
    "peers": ["--only=time", "--size-px=96", "--core-px=32", "--halo-px=8", "--rounds=1", "--memory-px=96"],
}
"""Words of a case that takes a second."""
LONGER = {
    "cpu_options": ["--quick", "--tile-px=64", "--rounds=1"],
    "inference": ["--size-px=96", "--core-px=96", "--depth=1", "--width=4", "--rounds=1"],
    "memory": ["--width-px=600", "--data-px=512", "--core-px=256", "--width=2", "--depth=1", "--heights-px=64"],
    "norm_layer": ["--quick", "--windows=31", "--norms=SN", "--rounds=1"],
    "sampling": [
        "--layouts=chesapeake",
        "--tiles=1",
        "--side-px=600",
        "--batch-size=1",
        "--batches=1",
        "--rounds=1",
        "--memory-batches=2",
    ],
    "training_options": ["--rounds=1", "--batch-size=2", "--patch-px=32", "--ways", "channels_last", "fused"],
    "training_profile": ["--steps=2"],
    "training_step": ["--rounds=1", "--side-px=32"],
}
CASES = [
    *(pytest.param(name, words, id=name) for name, words in SMALL.items()),
    *(pytest.param(name, words, id=name, marks=pytest.mark.slow) for name, words in LONGER.items()),
]

# Scripts silence no warning of libraries; a fork and a data loader without workers are what is measured.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed is known without measuring."""
    monkeypatch.setattr(_limits, "flops_per_second", lambda: 1e11)
    monkeypatch.setattr(_limits, "copied_bytes_per_second", lambda size: 1e10)


def run(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("name", "words"), CASES)
def test_a_benchmark_prints_figures_and_their_limits(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in LONGER:  # apart: they fork, and load other runtimes with threads of their own
        done = subprocess.run(
            [sys.executable, "-W", "ignore", FOLDER / f"{name}.py", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        out = done.stdout
    else:
        run(name, words, monkeypatch)
        out = capsys.readouterr().out

    lines: list[dict[str, Any]] = [json.loads(text) for text in out.splitlines() if text[:1] == "{"]
    measured = [line for line in lines if "skipped" not in line]
    assert measured
    assert {line["benchmark"] for line in lines} == {name}
    assert all(isinstance(line["figure"], float) and line["unit"] for line in measured)
    assert any(line.get("limit_of") for line in measured)
    assert len(table(lines)) == len(lines) + 2


@pytest.mark.parametrize("name", [path.stem for path in benchmarks(FOLDER)])
def test_every_benchmark_knows_the_quick_case(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(name, ["--help"], monkeypatch)

    assert "--quick" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(STUDIES.keys() - {"seam_picture"}))
def test_a_study_without_its_data_says_what_it_needs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, [], monkeypatch)

    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["skipped"].startswith("give")
