"""What Switchable Norm chose, from checkpoints and log folders to tables and pictures."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geonorm.errors import CheckpointError, GeonormError, InvalidConfigError
from geonorm.evaluation import ratio_report, switchable_ratios
from geonorm.evaluation.ratio_report import table
from geonorm.models import SmpNetwork, UNet
from geonorm.norms import BatchNorm, SwitchableNorm
from tests.evaluation.ratio_files import HEAD, NAMES, save, save_log

FIELDS_PX = [3, 5, 10, 14, 24, 32, 36, 40, 44, 44]
PARTS = ["encoder"] * 4 + ["bottleneck"] * 2 + ["decoder"] * 4


def shares_in(checkpoint: Path, layer: str, statistic: str) -> Tensor:
    """Return softmax of the control parameters that lie in a checkpoint."""
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    return weights[f"network.{layer}.{statistic}_weight"].double().softmax(-1)


def both_ways(p: Tensor, q: Tensor) -> float:
    """Return KL(p || q) + KL(q || p) of each row, averaged, with torch."""
    kl = partial(torch.nn.functional.kl_div, reduction="none")
    return float((kl(q.log(), p) + kl(p.log(), q)).sum(-1).mean())


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time, and have tests of their own."""
    monkeypatch.setattr(ratio_report, "draw_pictures", lambda runs, folder: [])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# Tables


def test_the_table_holds_the_shares_of_the_weights_by_depth(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "sn.ckpt")

    switchable_ratios(checkpoint, tmp_path / "out")

    rows = rows_of(tmp_path / "out" / "ratios.csv")
    assert len(rows) == len(NAMES) * 2 * 3
    first_rows = rows[::6]
    assert [row["layer"] for row in first_rows] == NAMES
    assert [int(row["receptive_px"]) for row in first_rows] == FIELDS_PX
    assert [row["part"] for row in first_rows] == PARTS
    assert [int(row["stride_px"]) for row in first_rows] == [1, 1, 2, 2, 4, 4, 2, 2, 1, 1]
    assert [int(row["depth"]) for row in first_rows] == [*range(10)]
    for row in rows:
        expected = shares_in(checkpoint, row["layer"], row["statistic"])[["IN", "LN", "BN"].index(row["normalizer"])]
        assert float(row["ratio"]) == pytest.approx(float(expected), rel=1e-5)
        assert (row["run"], row["when"], row["step"], row["group"]) == ("sn", "end", "70", "0")


def test_the_divergences_are_those_of_the_weights(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "sn.ckpt")

    report = switchable_ratios(checkpoint, tmp_path / "out")

    expected = [both_ways(shares_in(checkpoint, name, "mean"), shares_in(checkpoint, name, "var")) for name in NAMES]
    written = [float(row["divergence"]) for row in rows_of(tmp_path / "out" / "divergences.csv")]
    assert written == pytest.approx(expected, rel=1e-4)
    assert [layer["divergence"] for layer in report["runs"][0]["layers"]] == pytest.approx(expected, rel=1e-4)
    assert report["runs"][0]["all"]["divergence"] == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_summary_averages_over_receptive_fields_and_parts(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "sn.ckpt", network=partial(UNet, depth=3, width=4))

    [run] = switchable_ratios(checkpoint, tmp_path / "out")["runs"]

    layers = run["layers"]
    for key, groups in (("part", run["parts"]), ("range", run["ranges"])):
        assert sum(found["layers"] for found in groups.values()) == len(layers) == 14
        for name, found in groups.items():
            first, end = {"<49": (0, 49), "49-99": (49, 99), "99-199": (99, 199)}.get(name, (0, 0))
            chosen = [
                layer
                for layer in layers
                if (layer["part"] == name if key == "part" else first <= layer["receptive_px"] < end)
            ]
            assert found["layers"] == len(chosen) > 0
            for statistic in ("mean", "var"):
                shares = np.mean([layer[statistic][0] for layer in chosen], axis=0)
                assert [*found[statistic].values()] == pytest.approx([*shares])
            differing = [np.argmax(layer["mean"][0]) != np.argmax(layer["var"][0]) for layer in chosen]
            assert found["differing"] == pytest.approx(np.mean(differing))
    assert [*run["ranges"]] == ["<49", "49-99", "99-199"]
    assert [*run["parts"]] == ["encoder", "bottleneck", "decoder"]


def test_the_summary_file_is_strict_json_of_what_is_returned(tmp_path: Path) -> None:
    hard = save(tmp_path / "hard.ckpt", norm=partial(SwitchableNorm, selection="hard"))

    report = switchable_ratios(hard, tmp_path / "out")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = (tmp_path / "out" / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse) == report
    layers = report["runs"][0]["layers"]
    assert {layer["divergence"] for layer in layers} == {0.0, None}, "none is another choice"
    assert all((layer["divergence"] is None) == (layer["mean_choices"] != layer["var_choices"]) for layer in layers)
    assert "infinite" in table(report)
    assert "inf" in {row["divergence"] for row in rows_of(tmp_path / "out" / "divergences.csv")}


def test_networks_of_smp_have_their_last_stage_as_bottleneck(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "sn.ckpt", network=partial(SmpNetwork, encoder="resnet18"))

    [run] = switchable_ratios(checkpoint, tmp_path / "out")["runs"]

    parts: dict[str, set[str]] = {}
    for layer in run["layers"]:
        parts.setdefault(layer["part"], set()).add(".".join(layer["name"].split(".")[1:3]))
    assert parts["bottleneck"] == {"encoder.layer4"}
    assert parts["encoder"] == {"encoder.bn1", "encoder.layer1", "encoder.layer2", "encoder.layer3"}
    assert parts["decoder"] == {"decoder.blocks"}


# Log folders


def test_a_log_folder_gives_the_training_and_its_last_checkpoint_the_end(tmp_path: Path) -> None:
    folder = save_log(tmp_path / "version_3", 0, 35, 70)
    checkpoint = save(folder / "checkpoints" / "last.ckpt")
    save(folder / "checkpoints" / "best.ckpt", seed=5)

    report = switchable_ratios(folder, tmp_path / "out")

    rows = rows_of(tmp_path / "out" / "ratios.csv")
    logged = rows_of(folder / "ratios.csv")
    training = [row for row in rows if row["when"] == "training"]
    assert [{key: row[key] for key in logged[0]} for row in training] == logged
    end = {(row["layer"], row["statistic"], row["normalizer"]): float(row["ratio"]) for row in rows[len(training) :]}
    assert end["bottom.1", "var", "BN"] == pytest.approx(float(shares_in(checkpoint, "bottom.1", "var")[2]), rel=1e-5)
    [run] = report["runs"]
    assert (run["label"], run["end"], run["step"]) == ("version_3", "checkpoints/last.ckpt", 70)
    assert [one["step"] for one in run["training"]] == [0, 35, 70]
    shares = [float(row["ratio"]) for row in logged if (row["step"], row["statistic"]) == ("35", "var")]
    assert [*run["training"][1]["var"].values()] == pytest.approx([*np.reshape(shares, (-1, 3)).mean(0)])


def test_without_a_last_checkpoint_the_best_one_is_the_end(tmp_path: Path) -> None:
    folder = save_log(tmp_path / "version_3", 0)
    save(folder / "checkpoints" / "best.ckpt")

    assert switchable_ratios(folder, tmp_path / "out")["runs"][0]["end"] == "checkpoints/best.ckpt"


def test_a_log_alone_ends_with_its_last_step_and_tells_no_receptive_field(tmp_path: Path) -> None:
    folder = save_log(tmp_path / "version_3", 0, 35, 70)

    [run] = switchable_ratios(folder, tmp_path / "out")["runs"]

    last = [float(row["ratio"]) for row in rows_of(folder / "ratios.csv") if row["step"] == "70"]
    assert np.ravel([[layer["mean"], layer["var"]] for layer in run["layers"]]) == pytest.approx(last)
    assert (run["end"], run["step"]) == ("ratios.csv", 70)
    assert {layer["receptive_px"] for layer in run["layers"]} == {None}
    assert [layer["part"] for layer in run["layers"]] == PARTS
    assert run["ranges"] == {}


def test_the_folder_one_stands_in_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(save_log(tmp_path / "version_3", 0))

    assert switchable_ratios(".", tmp_path / "out")["runs"][0]["label"] == "version_3"


# Several runs


def test_runs_are_held_against_the_first_layer_by_layer(tmp_path: Path) -> None:
    paths = [save(tmp_path / name / "last.ckpt", seed=seed) for seed, name in enumerate(("one", "two", "three"))]

    report = switchable_ratios(paths[0], tmp_path / "out", compare=paths[1:])

    assert [(found["run"], found["other"]) for found in report["comparisons"]] == [("one", "two"), ("one", "three")]
    written = [row for row in rows_of(tmp_path / "out" / "divergences.csv") if row["other"] == "three"]
    for index, layer in enumerate(report["comparisons"][1]["layers"]):
        assert layer["name"] == NAMES[index]
        for statistic in ("mean", "var"):
            expected = both_ways(*(shares_in(paths[at], layer["name"], statistic) for at in (0, 2)))
            assert layer[statistic] == pytest.approx(expected, rel=1e-4)
            [row] = [row for row in written if (row["layer"], row["between"]) == (layer["name"], statistic)]
            assert float(row["divergence"]) == pytest.approx(expected, rel=1e-4)
    means = [layer["mean"] for layer in report["comparisons"][1]["layers"]]
    assert report["comparisons"][1]["all"]["mean"] == pytest.approx(np.mean(means))
    assert report["comparisons"][1]["parts"]["bottleneck"]["mean"] == pytest.approx(np.mean(means[4:6]))


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "sn.ckpt")

    report = switchable_ratios(checkpoint, tmp_path / "out", compare=[checkpoint])

    assert report["comparisons"][0]["all"] == {"mean": 0.0, "var": 0.0}
    assert [run["label"] for run in report["runs"]] == ["sn-1", "sn-2"]


def test_a_log_in_another_order_is_compared_layer_by_layer(tmp_path: Path) -> None:
    turned = save_log(tmp_path / "turned", 70, names=NAMES[::-1])
    straight = save(tmp_path / "straight.ckpt")

    report = switchable_ratios(straight, tmp_path / "out", compare=[turned])

    logged = {row["layer"]: [] for row in rows_of(turned / "ratios.csv")}  # type: dict[str, list[float]]
    for row in rows_of(turned / "ratios.csv"):
        logged[row["layer"]].append(float(row["ratio"]))
    for layer in report["comparisons"][0]["layers"]:
        mean = torch.tensor(logged[layer["name"]][:3], dtype=torch.float64)
        expected = both_ways(shares_in(straight, layer["name"], "mean"), mean)
        assert layer["mean"] == pytest.approx(expected, rel=1e-4)


# The terminal


def test_the_table_for_the_terminal_has_a_line_per_range_and_part(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{name}.ckpt", seed=seed) for seed, name in enumerate(("one", "two"))]
    report = switchable_ratios(paths[0], tmp_path / "out", compare=paths[1:])

    head, *lines = table(report).splitlines()

    words = "run where layers mean IN mean LN mean BN var IN var LN var BN D(mean||var) choices differ"
    assert " ".join(head.split()) == words
    found = report["runs"][0]["parts"]["bottleneck"]
    [line] = [line for line in lines if line.startswith("one") and "bottleneck" in line]
    shares = [f"{found[statistic][name]:.2f}" for statistic in ("mean", "var") for name in ("IN", "LN", "BN")]
    assert line.split() == [
        "one",
        "bottleneck",
        "2",
        *shares,
        f"{found['divergence']:.3f}",
        f"{100 * found['differing']:.0f}",
        "%",
    ]
    assert len(lines) == 2 * 5 + 1
    assert lines[-1].startswith(f"D(one||two)  {report['comparisons'][0]['all']['mean']:.3f} for means")


# Mistakes


def make_mistakes(folder: Path) -> dict[str, tuple[list[Any], type[GeonormError], str]]:
    sn, bn = save(folder / "sn.ckpt"), save(folder / "bn.ckpt", norm=BatchNorm)
    deeper = save(folder / "deeper.ckpt", network=partial(UNet, depth=3, width=4))
    pool = save(folder / "pool.ckpt", norm=partial(SwitchableNorm, pool=["IN", "BN"]))
    groups = save(folder / "groups.ckpt", norm=partial(SwitchableNorm, channel_groups=2))
    (folder / "empty").mkdir()
    (folder / "begun").mkdir()
    (folder / "begun" / "ratios.csv").write_text(HEAD)
    (folder / "text").mkdir()
    (folder / "text" / "ratios.csv").write_text("nothing\n")
    other = save_log(folder / "other", 0, names=NAMES[:4])
    save(other / "checkpoints" / "last.ckpt")
    save(folder / "plain" / "checkpoints" / "best.ckpt", norm=BatchNorm)
    return {
        "missing": ([folder / "no.ckpt"], CheckpointError, "no.ckpt does not exist"),
        "no SN": ([bn], CheckpointError, "bn.ckpt has no Switchable Norm .* geonorm.norms.BatchNorm"),
        "no SN in a folder": ([folder / "plain"], CheckpointError, "best.ckpt has no Switchable Norm"),
        "no SN to compare": ([sn, bn], CheckpointError, "bn.ckpt has no Switchable Norm"),
        "empty folder": ([folder / "empty"], InvalidConfigError, "empty is no log folder"),
        "log without a step": ([folder / "begun"], InvalidConfigError, "begun is no log folder"),
        "no log": ([folder / "text"], InvalidConfigError, "no log of ratios"),
        "log of another network": ([other], InvalidConfigError, "not the log of the network in last.ckpt"),
        "another depth": ([sn, deeper], InvalidConfigError, "encoder.2.1 is no Switchable Norm in .*sn.ckpt"),
        "another pool": ([sn, pool], InvalidConfigError, r"encoder.0.1 is one of IN\+LN\+BN in .* IN\+BN in"),
        "other groups": ([sn, groups], InvalidConfigError, "in 2 channel groups"),
    }


@pytest.mark.parametrize(
    "which",
    [
        "missing",
        "no SN",
        "no SN in a folder",
        "no SN to compare",
        "empty folder",
        "log without a step",
        "no log",
        "log of another network",
        "another depth",
        "another pool",
        "other groups",
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(which: str, tmp_path: Path) -> None:
    [source, *compare], kind, named = make_mistakes(tmp_path)[which]

    with pytest.raises(kind, match=named) as caught:
        switchable_ratios(source, tmp_path / "out", compare=compare)

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")

    with pytest.raises(InvalidConfigError, match="out cannot be made"):
        switchable_ratios(save(tmp_path / "sn.ckpt"), tmp_path / "out")

    assert (tmp_path / "out").read_text() == "mine"
