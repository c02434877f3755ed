"""Scores and costs of several trainings, gathered."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from geonorm.errors import InvalidConfigError
from geonorm.evaluation.comparison_picture import draw_comparison
from geonorm.evaluation.comparison_plan import Run
from geonorm.evaluation.comparison_table import gather, markdown, write_tables


def finished(folder: Path, norm: str, seed: int, *, classes: int = 2, scored: tuple[int, ...] = (1,)) -> Run:
    """A training that has left its files, with counts that follow from norm and seed."""
    random = np.random.default_rng([ord(norm[0]), seed])
    place = folder / norm / str(seed)
    place.mkdir(parents=True)
    counts = {city: random.integers(1, 1000, (classes, classes)).tolist() for city in ("austin", "kitsap", "vienna")}
    names = [f"class {at}" for at in range(classes)]
    scores = {"class_names": names, "scored_classes": scored, "counts": counts}
    cost = {"steps": 10, "of": 10, "seconds_per_step": 0.1 * (seed + 1), "parameters": 1234, "peak_memory_bytes": 2**30}
    (place / "scores.json").write_text(json.dumps(scores))
    (place / "cost.json").write_text(json.dumps(cost))
    return Run(norm=norm, seed=seed, folder=place, config={}, words=(), settings={})


def counts_of(run: Run, *cities: str) -> np.ndarray:
    counts = json.loads((run.folder / "scores.json").read_text())["counts"]
    return np.sum([np.array(counts[city], dtype=float) for city in cities], axis=0)


def iou(counts: np.ndarray, which: int) -> float:
    return counts[which, which] / (counts[which].sum() + counts[:, which].sum() - counts[which, which])


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [finished(tmp_path, norm, seed) for norm in ("BN", "LCN") for seed in (0, 1, 2)]


def test_the_table_holds_mean_and_deviation_of_city_pool_and_all(runs: list[Run]) -> None:
    text = markdown(gather(runs, {"west": ("austin", "kitsap")}))

    [head, _, bn, _] = text.splitlines()[:4]
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    cells = dict(zip(columns, (cell.strip() for cell in bn.strip("|").split("|")), strict=True))
    for name, cities in {
        "austin": ("austin",),
        "west": ("austin", "kitsap"),
        "overall": ("austin", "kitsap", "vienna"),
    }.items():
        values = [100 * iou(counts_of(run, *cities), 1) for run in runs[:3]]
        assert cells[f"{name} IoU"] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
        shares = [100 * np.trace(counts_of(run, *cities)) / counts_of(run, *cities).sum() for run in runs[:3]]
        assert cells[f"{name} Acc."] == f"{np.mean(shares):.2f} ± {np.std(shares, ddof=1):.2f}"
    assert "| BN | 1,234 | 10 | 0.2 ± 0.1 | 1.00 |" in text


def test_several_classes_have_a_table_of_their_own(tmp_path: Path) -> None:
    run = finished(tmp_path, "GN", 0, classes=3, scored=(0, 2))

    text = markdown(gather([run], {}))

    counts = counts_of(run, "austin", "kitsap", "vienna")
    expected = [100 * iou(counts, which) for which in (0, 2)]
    assert "| Method | IoU class 0 | IoU class 2 |" in text
    assert f"| GN | {expected[0]:.2f} | {expected[1]:.2f} |" in text
    assert f"| {np.mean(expected):.2f} |" in text.splitlines()[2]
    assert "one seed (0)" in text


def test_the_files_hold_every_run_and_every_norm(runs: list[Run], tmp_path: Path) -> None:
    write_tables(gather(runs, {}), tmp_path, missing=runs[:1])

    with (tmp_path / "runs.csv").open() as file:
        rows = {(row["norm"], row["seed"], row["figure"], row["part"]): row["value"] for row in csv.DictReader(file)}
    with (tmp_path / "summary.csv").open() as file:
        means = {(row["norm"], row["figure"], row["part"]): row["mean"] for row in csv.DictReader(file)}
    value = iou(counts_of(runs[4], "vienna"), 1)
    assert float(rows["LCN", "1", "iou", "vienna"]) == pytest.approx(value)
    assert float(means["LCN", "iou", "vienna"]) == pytest.approx(
        np.mean([iou(counts_of(run, "vienna"), 1) for run in runs[3:]])
    )
    assert "Missing: BN, seed 0." in (tmp_path / "table.md").read_text()


def test_a_pool_of_a_group_that_was_not_scored_is_one_line(runs: list[Run]) -> None:
    with pytest.raises(
        InvalidConfigError, match="pools: west names tyrol; there are scores for austin, kitsap, vienna"
    ):
        gather(runs, {"west": ("austin", "tyrol")})


def test_trainings_that_are_not_finished_are_left_out(runs: list[Run]) -> None:
    (runs[0].folder / "scores.json").unlink()

    [bn, _] = gather(runs, {})

    assert [run.seed for run in bn.runs] == [1, 2]


def test_the_picture_is_drawn_for_any_number_of_norms_and_seeds(runs: list[Run], tmp_path: Path) -> None:
    draw_comparison(gather(runs[:4], {"west": ("austin", "kitsap")}), tmp_path / "picture.png")

    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
