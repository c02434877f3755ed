"""What a training writes down of its cost and its scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rasterio
from filelock import FileLock

from geonorm.tasks.checkpoint import load_model
from tests.tasks.trainings import QUIET, arguments, draw_scenes, run

pytestmark = QUIET


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The scenes, and the folder of a training that was recorded and tested."""
    scenes, root = draw_scenes(tmp_path_factory.mktemp("scenes")), tmp_path_factory.mktemp("runs")
    record = ["--trainer.callbacks+=geonorm.tasks.RunRecord", f"--trainer.callbacks.folder={root / 'record'}"]
    assert run(["fit", *arguments(scenes, root, *record)]) == 0
    checkpoint = root / "lightning_logs/version_0/checkpoints/last.ckpt"
    assert run(["test", *arguments(scenes, root, *record, f"--ckpt_path={checkpoint}", "--trainer.logger=false")]) == 0
    return scenes, root


def test_the_cost_names_steps_parameters_time_and_memory(recorded: tuple[Path, Path]) -> None:
    _, root = recorded

    cost = json.loads((root / "record/cost.json").read_text())

    network = load_model(root / "lightning_logs/version_0/checkpoints/last.ckpt").network
    assert (cost["steps"], cost["of"]) == (16, 16)
    assert cost["parameters"] == sum(one.numel() for one in network.parameters())
    assert cost["seconds_per_step"] > 0
    assert cost["peak_memory_bytes"] > 50e6  # torch alone takes more
    assert cost["device"] == "cpu"


def test_the_scores_are_the_counts_of_every_group(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    scenes, root = recorded
    checkpoint = root / "lightning_logs/version_0/checkpoints/last.ckpt"
    expected = {}
    for name in ("austin1", "vienna2"):
        assert run(["predict", str(checkpoint), str(scenes / f"images/{name}.tif"), str(tmp_path / f"{name}.tif")]) == 0
        with rasterio.open(tmp_path / f"{name}.tif") as found, rasterio.open(scenes / f"gt/{name}.tif") as mask:
            predicted, labels = found.read(1), mask.read(1) // 255
        expected[name[:-1]] = [[int(((labels == a) & (predicted == b)).sum()) for b in (0, 1)] for a in (0, 1)]

    scores = json.loads((root / "record/scores.json").read_text())

    assert scores["counts"] == expected
    assert scores["scored_classes"] == [1]
    assert scores["class_names"] == ["not building", "building"]


def test_a_folder_that_another_training_writes_to_is_refused(
    recorded: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes, _ = recorded
    record = ["--trainer.callbacks+=geonorm.tasks.RunRecord", f"--trainer.callbacks.folder={tmp_path}"]

    with FileLock(tmp_path / "record.lock"):
        code = run(["fit", *arguments(scenes, tmp_path / "runs", *record)])

    assert code == 2
    assert f"another training writes to {tmp_path}" in capsys.readouterr().err
