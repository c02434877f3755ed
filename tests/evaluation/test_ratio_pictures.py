"""The figures of the papers: which there are, and that they show what was measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from PIL import Image

from geonorm.evaluation import switchable_ratios
from geonorm.evaluation.ratio_pictures import COLORS, _choices, _ratios, _training_of_shares, draw_pictures
from geonorm.evaluation.ratio_runs import load_runs
from geonorm.models import UNet
from geonorm.norms import NormFactory, SwitchableNorm
from tests.evaluation.ratio_files import NAMES, save, save_log

FIVE = partial(SwitchableNorm, pool=["LCN", "GN", "BN", "LN", "IN"], window_px=9, channel_groups=2)


KINDS: dict[str, NormFactory] = {
    "hard": partial(SwitchableNorm, selection="hard"),
    "five, two groups": FIVE,
}


@pytest.mark.parametrize("norm", KINDS.values(), ids=KINDS)
def test_every_kind_of_switchable_norm_has_its_pictures(norm: NormFactory, tmp_path: Path) -> None:
    runs = load_runs([save(tmp_path / "sn.ckpt", norm=norm, network=partial(UNet, depth=1, width=4))])

    names = draw_pictures(runs, tmp_path)

    assert {path.name for path in tmp_path.glob("*.png")} == set(names)
    assert set(names) == {"averages.png", "sn_ratios.png", "sn_choices.png", "sn_divergence.png"}
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 5


def test_a_log_and_a_second_run_bring_their_pictures(tmp_path: Path) -> None:
    logs = [save_log(tmp_path / name, 0, 35, 70, names=NAMES[:5], seed=seed) for seed, name in enumerate(("a", "b"))]

    report = switchable_ratios(logs[0], tmp_path / "out", compare=logs[1:])

    training = {f"{run}_training_{what}.png" for run in "ab" for what in ("mean", "var", "divergence")}
    assert training | {"a_b_divergence.png"} < set(report["pictures"])
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == set(report["pictures"])


@pytest.mark.parametrize("norm", [SwitchableNorm, FIVE])
def test_the_bars_are_as_high_as_the_ratios_and_have_their_colours(norm: NormFactory, tmp_path: Path) -> None:
    [run] = load_runs([save(tmp_path / "sn.ckpt", norm=norm)])

    axes = _ratios(run).axes[:2]

    for axis, statistic in zip(axes, ("mean", "var"), strict=True):
        bars = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
        for name in run.layers[0].ratios.pool:
            heights = [bar.get_height() for bar in bars if bar.get_facecolor() == to_rgba(COLORS[name])]
            k = run.layers[0].ratios.pool.index(name)
            expected = [getattr(layer.ratios, statistic)[:, k] for layer in run.layers]
            assert heights == pytest.approx(np.concatenate(expected))
        tops: dict[float, float] = {}
        for bar in bars:
            tops[round(bar.get_x(), 6)] = max(tops.get(round(bar.get_x(), 6), 0), bar.get_y() + bar.get_height())
        assert [*tops.values()] == pytest.approx([1] * len(tops))
    assert [label.get_text() for label in axes[1].get_xticklabels()][2] == "encoder.1.1   10 px"


def test_the_colours_are_those_of_the_papers() -> None:
    strongest = {name: "rgb"[int(np.argmax(to_rgba(color)[:3]))] for name, color in COLORS.items()}

    assert (strongest["BN"], strongest["IN"], strongest["LN"]) == ("g", "b", "r")
    assert len(set(COLORS.values())) == 5


def test_the_strips_have_the_colours_of_the_largest_ratios(tmp_path: Path) -> None:
    folder = save_log(tmp_path / "version_3", 0, 30, 60, 90)
    save(folder / "checkpoints" / "last.ckpt")
    [run] = load_runs([folder])

    axes = [axis for axis in _choices(run).axes if axis.patches]

    end = {layer.name: layer.ratios for layer in run.layers}
    for axis, snapshot in zip(axes, (run.history[30], run.history[60], end), strict=True):
        for row, statistic in ((0, "var"), (1, "mean")):
            bars = [bar for bar in axis.patches if isinstance(bar, Rectangle) and round(bar.get_y() + 0.46) == row]
            tables = [getattr(snapshot[name], statistic)[0] for name in NAMES]
            expected = [to_rgba(COLORS[("IN", "LN", "BN")[int(table.argmax())]]) for table in tables]
            assert [bar.get_facecolor() for bar in bars] == expected
        marked = sorted(round(float(np.ravel(line.get_xdata())[0])) for line in axis.lines if line.get_marker() == "D")
        differing = [snapshot[name].mean.argmax() != snapshot[name].var.argmax() for name in NAMES]
        assert marked == [*np.flatnonzero(differing)]


def test_there_is_a_panel_for_every_layer_every_range_and_all(tmp_path: Path) -> None:
    folder = save_log(tmp_path / "version_3", 0, 30, 60, 90)
    save(folder / "checkpoints" / "last.ckpt")
    [run] = load_runs([folder])

    titles = [axis.get_title().split("\n")[0] for axis in _training_of_shares(run, "mean").axes if axis.get_title()]

    assert titles == [*NAMES, "RF <49 px", "all"]
