"""Drawn data sets from the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from draw_scenes import main

from geonorm.data import ChesapeakeDataModule, InriaDataModule
from geonorm.data.drawn import CITY_NAMES


def test_the_inria_layout_trains_on_some_cities_and_tests_on_the_others(tmp_path: Path) -> None:
    options = ["--layout", "inria", "--tiles", "6", "--test_tiles", "1", "--size_px", "64", "80", "--test_masks"]

    code = main([*options, "--places", "alder", "brack", "--out", str(tmp_path)])

    splits = InriaDataModule(tmp_path).pairs
    tested = sorted((tmp_path / "AerialImageDataset/test/gt").iterdir())
    assert code == 0
    assert {split: {pair.group for pair in pairs} for split, pairs in splits.items()} == {
        "train": {"alder", "brack"},
        "val": {"alder", "brack"},
    }
    assert [path.stem for path in tested] == [f"{name}1" for name in CITY_NAMES if name not in ("alder", "brack")]


def test_the_chesapeake_layout_has_all_splits(tmp_path: Path) -> None:
    counts = ["--tiles", "1", "--val_tiles", "1", "--test_tiles", "1"]

    code = main(["--layout", "chesapeake", "--out", str(tmp_path), "--places", "ny", "--size_px", "64", *counts])

    pairs = ChesapeakeDataModule(tmp_path, train_states=["ny"]).pairs
    assert code == 0
    assert {split: len(some) for split, some in pairs.items()} == {"train": 1, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layout", "mars"], "argument --layout: invalid choice: 'mars'"),
        (["--layout", "inria", "--places", "rome"], "city must be one of alder"),
        (["--layout", "inria", "--size_px", "64", "64", "3"], "takes a side, or a height and a width, got 3"),
        (["--layout", "chesapeake", "--test_masks"], "are for --layout inria"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([*options, "--out", str(tmp_path / "data")])

    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))

    code = main(["--layout", "chesapeake", "--out", str(tmp_path / "a" / "b"), "--size_px", "512"])

    assert code == 2
    assert "has 1.0 MB free, and a drawing of 73 tiles needs 191.4 MB" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
