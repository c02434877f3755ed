"""Band statistics against numpy on everything at once, and files that a configuration can hold."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from band_statistics import SIDE_PX, main
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from geonorm.data.statistics import Moments
from geonorm.raster.write import write_image
from geonorm.tasks import SegmentationTask
from tests.data_scripts.archives import make_tile


def noise(seed: int, height: int = 60, width: int = 90, bands: int = 2) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return (1000 + 3 * draw.standard_normal((bands, height, width))).astype(np.float32)


def write(folder: Path, images: Sequence[NDArray[np.float32]], **settings: float) -> Path:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        write_image(folder / f"{number}.tif", image, crs="EPSG:32614", **settings)  # type: ignore[arg-type]  # nodata alone
    return folder


def measured(out: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    held = json.loads(out.read_text())
    return np.array(held["band_means"]), np.array(held["band_deviations"])


@given(parts=st.lists(st.integers(0, 50), min_size=1, max_size=6), offset=st.sampled_from([0.0, 1e6]))
def test_merged_parts_give_what_the_whole_gives(parts: list[int], offset: float) -> None:
    draw = np.random.default_rng(len(parts))
    images = [offset + draw.standard_normal((3, 1, count)) for count in parts]
    valid = [draw.random(image.shape) > 0.3 for image in images]

    total = Moments.of_none(3)
    for image, where in zip(images, valid, strict=True):
        total = total.merged(Moments.of(image, where))

    for band in range(3):
        whole = np.concatenate([image[band][where[band]] for image, where in zip(images, valid, strict=True)])
        assert total.count[band] == whole.size
        if whole.size:
            assert total.mean[band] == pytest.approx(whole.mean(), rel=1e-12, abs=1e-12)
            assert total.deviation[band] == pytest.approx(whole.std(), rel=1e-8, abs=1e-12)


def test_every_pixel_is_counted_and_those_without_data_are_not(tmp_path: Path) -> None:
    images = [noise(0), noise(1, 7, 11), noise(2, SIDE_PX + 9, 30)]
    images[0][:, :20] = -1
    images[2][1, 5, 5] = np.nan
    folder = write(tmp_path / "images", images, nodata=-1)

    code = main([str(folder), "--out", str(tmp_path / "a.json")])

    means, deviations = measured(tmp_path / "a.json")
    assert code == 0
    for band in range(2):
        values = np.concatenate([image[band].ravel() for image in images]).astype(np.float64)
        values = values[np.isfinite(values) & (values != -1)]
        assert means[band] == pytest.approx(values.mean(), rel=1e-12)
        assert deviations[band] == pytest.approx(values.std(), rel=1e-9)


def test_a_sample_comes_near_and_the_same_seed_draws_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "images", [noise(seed, SIDE_PX + 100, SIDE_PX + 50, 1) for seed in range(2)])

    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main([str(folder), "--windows", "3", "--seed", seed, "--out", str(tmp_path / f"{name}.json")]) == 0

    means, deviations = measured(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_bytes() != (tmp_path / "c.json").read_bytes()
    assert means == pytest.approx([1000], abs=0.05)
    assert deviations == pytest.approx([3], abs=0.05)


def test_the_yaml_holds_settings_that_the_model_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "images", [noise(0)])

    assert main([str(folder), "--bands", "2", "1", "--out", str(tmp_path / "scale.yaml")]) == 0

    held = yaml.safe_load((tmp_path / "scale.yaml").read_text())
    settings = inspect.signature(SegmentationTask.__init__).parameters
    assert {*held} == {"model"}
    assert {*held["model"]} <= {*settings}
    assert held["model"]["band_means"] == pytest.approx(noise(0).mean(axis=(1, 2))[::-1].tolist(), rel=1e-5)
    assert capsys.readouterr().out == (tmp_path / "scale.yaml").read_text()


def test_shares_of_the_label_values_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        make_tile(tmp_path / "images" / f"{number}.tif", bands=3, height=20, width=30)
        labels = np.full((20, 30), 2, dtype=np.uint8)
        labels[:5], labels[5:10] = 0, 9
        (tmp_path / "gt").mkdir(exist_ok=True)
        write_image(tmp_path / "gt" / f"{number}.tif", labels, nodata=9)

    code = main([str(tmp_path / "images"), "--labels", str(tmp_path / "gt"), "--out", str(tmp_path / "a.json")])

    assert code == 0
    assert json.loads((tmp_path / "a.json").read_text())["class_shares"] == {
        "0": pytest.approx(1 / 3),
        "2": pytest.approx(2 / 3),
    }
    capsys.readouterr()
    assert main([str(tmp_path / "images"), "--labels", f"{tmp_path}/gt/{{name}}.tif"]) == 0
    assert "# Shares of the label values: 0: 33.3333%, 2: 66.6667%." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "scale.txt"], "--out must end in .yaml or .json, got scale.txt"),
        (["--windows", "-1"], "--windows must be 0 (every pixel) or more, got -1"),
        (["--bands", "7"], "has 2 band(s), but bands [7] are asked for"),
        (["--labels", "nowhere"], "there is no file nowhere"),
        (["--nodata", "5"], "band 1, 2 of the 1 images holds no valid pixel"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "images", [np.full((2, 8, 9), 5, dtype=np.float32)])

    assert main([str(folder), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_images_of_other_bands_or_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "images", [noise(0), noise(1, bands=3)])

    assert main([str(folder)]) == 2
    assert "1.tif has 3 bands" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "there is no raster at" in capsys.readouterr().err
    assert (
        main([str(folder), "--bands", "1", "--labels", str(write(tmp_path / "gt", [noise(0, 5, 5), noise(0, 5, 5)]))])
        == 2
    )
    assert "is not of the size of" in capsys.readouterr().err
