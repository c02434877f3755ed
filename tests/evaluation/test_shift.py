"""Consistency under moved grids: streams that fit together, figures that can be made again from maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.evaluation import shift_consistency
from geonorm.evaluation.shift import rows_together, short_names, table
from geonorm.inference import predict_raster
from geonorm.inference.job import as_trained
from geonorm.models import UNet
from geonorm.norms import BatchNorm, GroupNorm, LocalContextNorm, NormFactory
from geonorm.tasks.checkpoint import TrainedModel
from geonorm.tiling.engine import Strip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A drawn raster of 90 x 120 pixels with one corner without data."""
    draw = np.random.default_rng(0)
    image = draw.integers(1, 255, (3, 90, 120)).astype(np.uint8)
    image[:, :40, :30] //= 4
    image[:, 80:, 100:] = 0
    path = tmp_path / "image.tif"
    options = {"driver": "GTiff", "height": 90, "width": 120, "count": 3, "dtype": "uint8", "nodata": 0}
    transform = Affine(1.0, 0.0, 500_003.0, 0.0, -1.0, 4_000_007.0)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=transform, **options) as dataset:
        dataset.write(image)
    return path


def model(norm: NormFactory) -> TrainedModel:
    torch.manual_seed(0)
    network = UNet(3, 2, norm=norm, depth=2, width=8).eval()
    network.rescale.mean.fill_(120.0)
    network.rescale.deviation.fill_(60.0)
    return as_trained(network)


def test_rows_of_different_grids_meet_at_every_end_of_a_strip() -> None:
    rows = torch.arange(10.0).repeat(2, 3, 1).transpose(1, 2)

    def strips(*ends: int) -> Iterator[Strip]:
        for start, stop in zip((0, *ends), (*ends, 10), strict=True):
            yield Strip(start, rows[:, start:stop], np.ones((stop - start, 3), bool))

    met = list(rows_together([strips(4, 8), strips(1, 5), strips()]))

    assert [row for row, _, _ in met] == [0, 1, 4, 5, 8]
    for which in range(3):
        assert torch.equal(torch.cat([parts[which] for _, parts, _ in met], dim=1), rows)


@pytest.mark.parametrize("norm", [BatchNorm, partial(LocalContextNorm, window_px=9)])
def test_aligned_moves_change_nothing_where_the_halo_is_exact(norm: NormFactory, source: Path, tmp_path: Path) -> None:
    report = shift_consistency([model(norm)], [source], tmp_path / "out", shifts_px=(16, 4), core_px=32, halo="exact")

    for moved in report["runs"][0]["shifts"]:
        assert (moved["aligned"], moved["flips"], moved["change_max"]) == (True, 0, 0.0)


def test_group_norm_changes_under_aligned_moves_and_is_warned_of(source: Path, tmp_path: Path) -> None:
    with pytest.warns(GeonormWarning, match="GroupNorm"):
        report = shift_consistency([model(GroupNorm)], [source], tmp_path / "out", shifts_px=(16,), core_px=32, halo=8)

    run = report["runs"][0]
    assert run["shifts"][0]["change_max"] > 0
    assert any("GroupNorm" in name for name in run["unbounded"])


@pytest.mark.filterwarnings("ignore::geonorm.errors.GeonormWarning")  # that GN depends on the tiles is the point
def test_the_flips_are_those_between_two_maps_written_one_by_one(source: Path, tmp_path: Path) -> None:
    trained, maps = model(GroupNorm), []

    report = shift_consistency([trained], [source], tmp_path / "out", shifts_px=(3,), core_px=32, halo=8)
    for offset in (0, 3):
        target = tmp_path / f"{offset}.tif"
        predict_raster(trained, source, target, core_px=32, halo=8, grid_offset_px=(offset, offset))
        with rasterio.open(target) as dataset:
            maps.append(dataset.read(1))

    moved = report["runs"][0]["shifts"][0]
    assert moved["flips"] == int((maps[0] != maps[1]).sum())
    assert moved["pixels"] == int((maps[0] != 255).sum()) == 90 * 120 - 10 * 20
    assert not moved["aligned"]


def test_the_report_is_written_as_json_picture_and_table(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    report = shift_consistency([model(BatchNorm)], [source], out, shifts_px=(16,), core_px=32)

    assert json.loads((out / "shift.json").read_text()) == report
    assert (out / report["runs"][0]["picture"]).stat().st_size > 0
    assert "aligned" in table(report)


def test_a_localized_network_is_said_to_be_one(source: Path, tmp_path: Path) -> None:
    local = replace(model(partial(LocalContextNorm, window_px=9)), localized_px=9)

    report = shift_consistency([local], [source], tmp_path / "out", shifts_px=(16,), core_px=32, halo=8)

    assert report["runs"][0]["localized_px"] == 9
    assert "(localized, 9 px)" in table(report)


@pytest.mark.parametrize("shifts", [(), (32,), (16, 0)])
def test_a_move_that_leaves_the_grid_in_place_is_refused(shifts: tuple[int, ...], source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="shifts_px must move the grid"):
        shift_consistency([model(BatchNorm)], [source], tmp_path / "out", shifts_px=shifts, core_px=32)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/last.ckpt"], ["last"]),
        (["lcn/logs/last.ckpt", "gn/logs/last.ckpt"], ["lcn", "gn"]),
        (["gn/best.ckpt", "gn/last.ckpt", "bn/last.ckpt"], ["gn-best", "gn-last", "bn-last"]),
        (["same.ckpt", "same.ckpt"], ["same-1", "same-2"]),
        (["", ""], ["model-1", "model-2"]),
    ],
)
def test_checkpoints_are_named_by_where_their_paths_differ(paths: list[str], names: list[str]) -> None:
    assert short_names(paths) == names
