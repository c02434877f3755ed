"""Trainings with several norms and seeds, run by one command: the missing ones, and those that were stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from geonorm.cli import main
from geonorm.errors import InvalidConfigError
from geonorm.evaluation import compare
from geonorm.evaluation.comparison_plan import plan_comparison
from geonorm.evaluation.comparison_runs import SETTINGS_FILE, check_settings, discard
from geonorm.files import only_one
from tests.tasks.trainings import draw_scenes

TINY = {
    "data": {
        "class_path": "geonorm.data.InriaDataModule",
        "init_args": {"patch_px": 32, "batch_size": 4, "patches_per_epoch": 16, "num_workers": 0},
    },
    "model": {"network": {"class_path": "geonorm.models.UNet", "init_args": {"depth": 1, "width": 4}}},
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 0},
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command, without what it varies."""
    scenes = draw_scenes(tmp_path / "data")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return ["compare", str(tmp_path / "out"), f"--config={tmp_path / 'tiny.yaml'}", f"--data.root={scenes}"]


def results(out: Path) -> dict[str, bytes]:
    return {path.parent.parent.name + path.parent.name: path.read_bytes() for path in out.glob("runs/*/*/scores.json")}


@pytest.mark.slow
def test_two_norms_and_two_seeds_make_a_table_and_the_finished_ones_are_not_run_again(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*words, "--norms", "bn", "--seeds", "0", "1"]) == 0
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/BN/**/*.ckpt")}

    assert main([*words, "--norms", "bn", "gn", "--seeds", "0", "1", "--jobs", "2"]) == 0

    printed = capsys.readouterr()
    assert "2 of 4 trainings are done" in printed.err
    assert len(before) == 4
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/BN/**/*.ckpt")} == before
    scores = results(out)
    assert sorted(scores) == ["BNseed_0", "BNseed_1", "GNseed_0", "GNseed_1"]
    assert len({*scores.values()}) == 4  # another seed is another training
    table = (out / "table.md").read_text()
    assert table in printed.out
    assert all(word in table for word in ("| BN |", "| GN |", "austin IoU", "vienna Acc.", "overall IoU"))
    assert all((out / name).is_file() for name in ("runs.csv", "summary.csv", "comparison.png"))


@pytest.mark.slow
def test_a_training_is_the_one_that_fit_makes(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "--norms", "gn", "--seeds", "3"]) == 0
    [log] = (tmp_path / "out").glob("runs/GN/seed_3/fit.log")
    command = log.read_text().splitlines()[0].split()
    again = [word for word in command if not word.startswith("--trainer.enable")]

    subprocess.run(
        [sys.executable, "-m", "geonorm", *again[1:], f"--trainer.default_root_dir={tmp_path / 'again'}"],
        check=True,
        capture_output=True,
    )

    import torch

    one, two = (
        torch.load(folder / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (log.parent, tmp_path / "again")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_what_was_stopped_goes_on_and_ends_as_if_it_had_not_been(words: list[str], tmp_path: Path) -> None:
    more = ["--norms", "bn", "--seeds", "0", "--trainer.max_epochs=40"]
    whole = [*words, *more]
    whole[1] = str(tmp_path / "whole")
    assert main(whole) == 0
    process = subprocess.Popen([sys.executable, "-m", "geonorm", *words, *more], start_new_session=True)
    checkpoints = tmp_path / "out/runs/BN/seed_0/lightning_logs/version_0/checkpoints"
    while not (checkpoints / "last.ckpt").is_file() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stopped = process.wait(60)

    code = main([*words, *more])

    assert (stopped, code) == (130, 0)
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    assert (checkpoints.parent.parent / "version_1").is_dir()  # it went on, rather than began again
    assert not _children_of(process.pid)


def _children_of(session: int) -> list[str]:
    """Return the processes that work on behalf of a session that has ended (Linux; elsewhere nothing is said)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat") if os.path.isdir("/proc") else ():
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append(entry.parent.name)
    return found


@pytest.mark.slow
def test_a_training_that_fails_is_named_with_its_last_words_and_the_others_are_kept(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {norm: {class_path: geonorm.norms.GroupNorm, init_args: {num_groups: 3}}}")

    code = main([*words, "--norms", "bn", str(bad), "--seeds", "0"])

    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert "1 of 2 trainings failed (BAD, seed 0)" in said
    assert "num_groups must divide the channels" in said
    assert "fit.log" in said
    assert "| BN |" in (tmp_path / "out/table.md").read_text()


def planned(tmp_path: Path, *more: str) -> Path:
    """A folder whose only training was begun with some settings."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    [run] = plan_comparison(tmp_path / "out", [tmp_path / "tiny.yaml"], norms=["BN"], seeds=[0], more=more).runs
    run.folder.mkdir(parents=True)
    (run.folder / SETTINGS_FILE).write_text(json.dumps({**run.settings, "checkpoint": "last"}))
    check_settings([run], "last")
    return tmp_path / "out"


def test_other_settings_than_those_of_the_training_there_are_refused_with_the_difference(tmp_path: Path) -> None:
    out = planned(tmp_path, "--data.root=a")

    with pytest.raises(InvalidConfigError, match=r"words.0: there '--data.root=a', now '--data.root=b'.*--restart"):
        compare(out, [tmp_path / "tiny.yaml"], norms=["BN"], seeds=[0], more=["--data.root=b"])


def test_another_checkpoint_to_score_is_another_setting(tmp_path: Path) -> None:
    out = planned(tmp_path)

    with pytest.raises(InvalidConfigError, match="checkpoint: there 'last', now 'best'"):
        compare(out, [tmp_path / "tiny.yaml"], norms=["BN"], seeds=[0], checkpoint="best")


def test_a_restart_discards_what_is_there(tmp_path: Path) -> None:
    out = planned(tmp_path, "--data.root=a")
    [run] = plan_comparison(out, [tmp_path / "tiny.yaml"], norms=["BN"], seeds=[0], more=["--data.root=b"]).runs

    discard([run])

    assert not run.folder.exists()
    check_settings([run], "last")


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    said: list[str] = []

    compare(tmp_path / "out", [tmp_path / "tiny.yaml"], norms=["BN"], seeds=[4], dry_run=True, say=said.append)

    [line] = said
    assert line.startswith("to run: BN, seed 4: geonorm fit --config=")
    assert not (tmp_path / "out").exists()


def test_two_comparisons_in_one_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "out").mkdir()

    with only_one(tmp_path / "out"), pytest.raises(InvalidConfigError, match="another process is at work in"):
        compare(tmp_path / "out", [tmp_path / "tiny.yaml"], norms=["BN"])


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ({"layout": "mars"}, "compare.drawn.layout must be one of inria, chesapeake"),
        ({"layout": "inria", "planet": 4}, "compare.drawn: .*planet"),
        (
            {"layout": "inria", "cities": ["gotham"], "tiles_per_city": 1, "size_px": 64, "seed": 0},
            "city must be one of",
        ),
    ],
)
def test_scenes_that_cannot_be_drawn_are_one_line(drawn: dict[str, object], expected: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "compare": {"drawn": drawn}}))

    with pytest.raises(InvalidConfigError, match=expected):
        compare(tmp_path / "out", [tmp_path / "tiny.yaml"], norms=["BN"])
