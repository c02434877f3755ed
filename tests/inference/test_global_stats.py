"""Group, Layer and Instance Norm with the statistics of the whole raster: the map of one pass over all of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from torch import nn

from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.inference import engines, forecast, global_stats, predict_raster
from geonorm.inference.global_stats import Moments
from geonorm.inference.job import as_trained, prepare
from geonorm.inference.journal import StripFolder
from geonorm.models.rows import RowStream
from geonorm.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, SwitchableNorm
from geonorm.raster.read import open_raster
from tests.inference.rasters import draw, noise
from tests.models.networks import unet

NORMS = [GroupNorm, InstanceNorm, LayerNorm]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raster whose statistics differ from place to place, with a hole."""
    image = noise(3, 150, 110).astype(np.float32)
    image *= np.linspace(0.2, 1, 150)[:, None]
    image = image.clip(1, 255).astype(np.uint8)
    image[:, 40:60, 20:90] = 0
    return draw(tmp_path_factory.mktemp("source") / "source.tif", image, nodata=0, first_index=(-5, 13))


def whole_logits(network: nn.Module, source: Path) -> NDArray[np.float32]:
    """Return what one pass of the network as it was trained makes of the whole raster."""
    model = as_trained(network)
    with open_raster(source) as reader:
        with pytest.warns(GeonormWarning, match="depend on the tiles"):
            job = prepare(model, reader, core_px=16, halo=0)
        return job.whole(finish=lambda logits: logits).output.numpy()


def by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no raster fit into memory whole."""
    monkeypatch.setattr(global_stats, "activations", lambda *_: type("Alive", (), {"peak_bytes": 10**15}))
    monkeypatch.setattr(engines, "STEP_PX", 16)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("way", ["at once", "by rows"])
def test_it_is_the_pass_over_the_whole_raster(
    norm: Any, way: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, target = unet(norm, depth=2), tmp_path / "map.tif"
    expected = whole_logits(network, source)
    if way == "by rows":
        by_rows(monkeypatch)

    predict_raster(network, source, target, core_px=32, global_stats=True, outputs=("logits",))

    with rasterio.open(target) as made:
        found = made.read()
        assert made.tags()["geonorm_statistics"] == "of the whole raster"
        assert made.tags()["geonorm_tile_independent"] == "yes"
    valid = np.isfinite(found)
    assert 0.8 < valid.mean() < 1
    error = np.abs(found - expected)[valid].max()
    assert error <= 1e-5 * np.abs(expected[valid]).max()


@pytest.mark.parametrize("norm", NORMS)
def test_the_labels_are_the_same_for_every_engine_and_core(norm: Any, source: Path, tmp_path: Path) -> None:
    network, found = unet(norm, depth=2), []

    for number, settings in enumerate(
        [
            {"engine": "rows", "core_px": 32},
            {"engine": "tiles", "core_px": 32, "halo": "exact"},
            {"engine": "tiles", "core_px": 48, "halo": "exact", "grid_offset_px": (4, -8)},
            {"engine": "rows", "core_px": 128},
        ]
    ):
        target = tmp_path / f"{number}.tif"
        predict_raster(network, source, target, global_stats=True, **settings)  # type: ignore[arg-type]  # each its own
        with rasterio.open(target) as made:
            found.append(made.read(1))

    for labels in found[1:]:
        np.testing.assert_array_equal(labels, found[0])
    assert {*np.unique(found[0])} == {0, 1, 255}


def test_the_passes_are_told_before_the_work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    pushed: list[int] = []
    by_rows(monkeypatch)
    push = RowStream.push
    monkeypatch.setattr(RowStream, "push", lambda run, rows: pushed.append(1) or push(run, rows))  # type: ignore[func-returns-value]

    def on_plan(text: str) -> None:
        told.append(text)
        pushed.clear()

    predict_raster(unet(GroupNorm, depth=2), source, tmp_path / "map.tif", global_stats=True, on_plan=on_plan)

    (text,) = told
    assert "gathered in 10 passes before it, " in text
    assert "do not depend on the tiles" in text
    assert len(pushed) > 10


def test_a_dry_run_gathers_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(global_stats.GlobalStats, "gather", None)
    told: list[str] = []

    predict_raster(unet(GroupNorm), source, tmp_path / "m.tif", global_stats=True, dry_run=True, on_plan=told.append)

    assert "from one pass over all of it at once" in told[0]


def test_the_time_that_is_foretold_is_that_of_all_passes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_rows(monkeypatch)
    monkeypatch.setattr(forecast, "_seconds", lambda *_, **__: 100.0)
    told: list[str] = []

    predict_raster(unet(GroupNorm), source, tmp_path / "m.tif", global_stats=True, dry_run=True, on_plan=told.append)

    [cost] = re.findall(r"passes before it, ([0-9.]+) times the compute", told[0])
    [seconds] = re.findall(r"time     about (\d+) (?:s|min)", told[0])
    assert 60 * int(seconds) == pytest.approx(100 * (1 + float(cost)), abs=35)


def test_a_run_that_ended_early_goes_on_with_the_statistics_it_had(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, target = unet(GroupNorm), tmp_path / "map.tif"
    settings: dict[str, Any] = {"core_px": 16, "global_stats": True}
    predict_raster(network, source, tmp_path / "other.tif", **settings)
    keep = StripFolder.keep
    kept: list[int] = []

    def fail(folder: StripFolder, row: int, layers: Any) -> None:
        if len(kept) == 3:
            raise OSError("the lights went out")
        kept.append(row)
        keep(folder, row, layers)

    monkeypatch.setattr(StripFolder, "keep", fail)
    with (
        pytest.warns(GeonormWarning, match="3 of 11 strips are kept"),
        pytest.raises(OSError, match="the lights went out"),
    ):
        predict_raster(network, source, target, **settings)
    monkeypatch.setattr(StripFolder, "keep", keep)
    monkeypatch.setattr(global_stats.GlobalStats, "gather", None)  # would fail

    predict_raster(network, source, target, **settings)

    assert target.read_bytes() == (tmp_path / "other.tif").read_bytes()


@pytest.mark.parametrize(
    ("norm", "settings", "words"),
    [
        (BatchNorm, {}, "for networks with Group, Layer or Instance Norm; this one has none"),
        (SwitchableNorm, {}, "for networks with Group, Layer or Instance Norm; this one has none"),
        (GroupNorm, {"tta": "d4"}, "global_stats goes with tta=none only, got tta=d4"),
    ],
)
def test_what_cannot_be_is_one_line(
    norm: Any, settings: dict[str, Any], words: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfigError, match=words):
        predict_raster(unet(norm), source, tmp_path / "map.tif", global_stats=True, **settings)
    assert not [*tmp_path.iterdir()]


def test_what_sees_everything_beside_the_norms_is_named(source: Path, tmp_path: Path) -> None:
    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = unet(GroupNorm)
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(image)
            return logits + self.pool(logits)

    with (
        pytest.raises(
            InvalidConfigError, match=r"of no use here: pool \(AdaptiveAvgPool2d\).* see the whole input, too"
        ),
    ):
        predict_raster(Pooling(), source, tmp_path / "map.tif", global_stats=True)


def test_rows_that_do_not_fit_are_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geonorm.inference.work.available_memory", lambda device: 10**5)

    with pytest.raises(InvalidConfigError, match="keeps rows of the whole width, which take"):
        predict_raster(unet(GroupNorm), source, tmp_path / "map.tif", global_stats=True)


@pytest.mark.parametrize("num_groups", [1, 3, 12])
def test_moments_of_parts_are_those_of_the_whole(num_groups: int) -> None:
    maps = torch.randn(1, 12, 70, 9, generator=torch.Generator().manual_seed(0)) * 0.01 + 1000
    moments = Moments(num_groups)
    for part in maps.split([1, 40, 29], dim=2):
        moments.add(part)

    mean, var = moments.of_channels(12)

    groups = maps.double().reshape(num_groups, -1)
    np.testing.assert_allclose(mean[:: 12 // num_groups], groups.mean(1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(var[:: 12 // num_groups], groups.var(1, correction=0).numpy(), rtol=1e-9)
