"""The independent script agrees with a report, and finds a figure or a map that was changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from recompute_shift import main

from geonorm.evaluation import shift_consistency
from geonorm.inference.job import as_trained
from geonorm.models import UNet
from geonorm.norms import GroupNorm
from geonorm.raster.write import write_image


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a drawn raster with labels and a corner without data."""
    folder = tmp_path_factory.mktemp("shift")
    draw = np.random.default_rng(0)
    image = draw.integers(1, 255, (3, 270, 280)).astype(np.uint8)
    image[:, 260:, 250:] = 0
    place = Affine(1.0, 0.0, 500_003.0, 0.0, -1.0, 4_000_007.0)
    write_image(folder / "image.tif", image, crs="EPSG:32633", transform=place, nodata=0)
    labels = draw.integers(0, 2, (270, 280)).astype(np.uint8) * 255
    write_image(folder / "truth.tif", labels, crs="EPSG:32633", transform=place)
    torch.manual_seed(0)
    network = UNet(3, 2, norm=GroupNorm, depth=2, width=8).eval()
    network.rescale.mean.fill_(120.0)
    network.rescale.deviation.fill_(60.0)
    shift_consistency(
        [as_trained(network)],
        [folder / "image.tif"],
        folder / "out",
        labels=[folder / "truth.tif"],
        core_px=64,
        cores_px=(32,),
        shifts_px=(16, 3),
        crops_px=((3, 5),),
        halo=8,
    )
    return folder / "out"


def test_every_figure_is_made_again(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(made) == 0

    checked, *_ = capsys.readouterr().out.split()
    assert int(checked) > 100


def test_a_figure_that_was_changed_is_found(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made / "report.json"
    before = path.read_text()
    report = json.loads(before)
    report["runs"][0]["comparisons"][0]["flips"] += 1
    path.write_text(json.dumps(report))

    assert main(made) == 1
    path.write_text(before)

    assert "flips is" in capsys.readouterr().out


def test_a_map_that_was_changed_is_found(made: Path) -> None:
    name = json.loads((made / "report.json").read_text())["runs"][0]["files"]["map"]
    with rasterio.open(made / name, "r+") as dataset:
        labels = dataset.read(1)
        labels[100, 100] = 1 - labels[100, 100]
        dataset.write(labels, 1)

    assert main(made) == 1
