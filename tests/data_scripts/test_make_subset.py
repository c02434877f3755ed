"""Subsets: spread over the class share, in the same layout, from the same pixels."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from make_subset import main
from rasterio.windows import Window

from geonorm.data import ChesapeakeDataModule, InriaDataModule, write_chesapeake_layout, write_inria_layout
from geonorm.raster.write import write_image
from tests.data_scripts.archives import break_after, make_tile

SIDE = 48
SHARES = {1: 0.5, 2: 0.1, 3: 0.3, 6: 0.9, 7: 0.1, 8: 0.5, 9: 0.3, 10: 0.7, 11: 0.2, 12: 0.8}


@pytest.fixture(scope="module")
def inria(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One city to train on, built over from the left by the shares of ``SHARES``, and one to test on."""
    root = tmp_path_factory.mktemp("inria") / "AerialImageDataset"
    for number, share in SHARES.items():
        make_tile(root / f"train/images/ulm{number}.tif", bands=3, height=SIDE, width=SIDE, seed=number)
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        mask[:, : round(share * SIDE)] = 255
        (root / "train/gt").mkdir(exist_ok=True)
        with rasterio.open(root / f"train/images/ulm{number}.tif") as image:
            write_image(root / f"train/gt/ulm{number}.tif", mask, crs=image.crs, transform=image.transform)
    for number in range(1, 4):
        make_tile(root / f"test/images/bonn{number}.tif", bands=3, height=SIDE, width=SIDE, seed=number)
    return root


def place_of(crop: Any, whole: Any) -> Window:
    """Return where a raster without rotation lies in another, in its pixels."""
    col = round((crop.transform.c - whole.transform.c) / whole.transform.a)
    row = round((crop.transform.f - whole.transform.f) / whole.transform.e)
    return Window(col, row, crop.width, crop.height)


def names(folder: Path, part: str) -> list[str]:
    return sorted(path.stem for path in (folder / "AerialImageDataset" / part).glob("*.tif"))


def test_training_tiles_are_spread_over_the_share_of_buildings(inria: Path, tmp_path: Path) -> None:
    code = main([str(inria), str(tmp_path), "--tiles", "3", "--val_tiles", "1", "--test_tiles", "2"])

    # In order of the share: ulm7, ulm11 | ulm9, ulm8 | ulm10, ulm12, ulm6 to train on; ulm2, ulm3, ulm1 to validate.
    assert code == 0
    assert names(tmp_path, "train/images") == names(tmp_path, "train/gt") == ["ulm11", "ulm12", "ulm3", "ulm8"]
    assert names(tmp_path, "test/images") == ["bonn1", "bonn3"]
    for path in (tmp_path / "AerialImageDataset").rglob("*.tif"):
        assert path.read_bytes() == (inria / path.relative_to(tmp_path / "AerialImageDataset")).read_bytes()
    splits = InriaDataModule(tmp_path).pairs
    assert {split: len(pairs) for split, pairs in splits.items()} == {"train": 3, "val": 1}


def test_a_crop_shows_the_pixels_of_its_place_and_about_the_share_of_its_tile(inria: Path, tmp_path: Path) -> None:
    assert main([str(inria.parent), str(tmp_path), "--tiles", "7", "--val_tiles", "0", "--crop_px", "16"]) == 0

    for name in names(tmp_path, "train/images"):
        for part in ("images", "gt"):
            place = f"train/{part}/{name}.tif"
            with rasterio.open(tmp_path / "AerialImageDataset" / place) as crop, rasterio.open(inria / place) as whole:
                window = place_of(crop, whole)
                assert crop.shape == (16, 16)
                np.testing.assert_array_equal(crop.read(), whole.read(window=window))
                assert crop.crs == whole.crs
    with rasterio.open(tmp_path / "AerialImageDataset/train/gt/ulm8.tif") as crop:
        assert (crop.read(1) == 255).mean() == 0.5
    with rasterio.open(tmp_path / "AerialImageDataset/test/images/bonn2.tif") as crop:
        assert crop.shape == (16, 16)
    assert not names(tmp_path, "test/gt")


def test_the_same_options_take_the_same_and_an_interrupted_run_goes_on(
    inria: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--tiles", "2", "--crop_px", "16"]
    assert main([str(inria), str(tmp_path / "whole"), *options]) == 0
    with monkeypatch.context() as patch:
        break_after(patch, "make_subset.write_image", 3, KeyboardInterrupt())
        assert main([str(inria), str(tmp_path / "cut"), *options]) == 130
    cut = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").rglob("*.tif")}

    assert main([str(inria), str(tmp_path / "cut"), *options]) == 0

    assert len(cut) == 3
    assert all(path.stat().st_mtime_ns == time for path, time in cut.items())
    wholes = sorted((tmp_path / "whole").rglob("*.tif"))
    assert len(wholes) == 7
    for path in wholes:
        assert path.read_bytes() == (tmp_path / "cut" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_another_subset_is_not_mixed_with_one_that_is_there(
    inria: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(inria), str(tmp_path), "--tiles", "2"]) == 0

    assert main([str(inria), str(tmp_path), "--tiles", "1"]) == 2
    assert "tiles that are not of this subset" in capsys.readouterr().err


# The folders of the other states are not taken, so torchgeo's own data set has nothing to say here.
def test_a_subset_of_chesapeake_keeps_all_layers_and_the_index(tmp_path: Path) -> None:
    whole = write_chesapeake_layout(tmp_path / "whole", states=["md"], train_tiles=3, size_px=80, seed=0)

    code = main([str(tmp_path / "whole"), str(tmp_path / "small"), "--tiles", "2", "--crop_px", "40"])

    small = tmp_path / "small" / whole.name
    index = json.loads((small / "spatial_index.geojson").read_text())
    assert code == 0
    assert sorted(feature["properties"]["split"] for feature in index["features"]) == [
        "md-test",
        "md-train",
        "md-train",
        "md-val",
        "wv-val",
    ]
    for feature in index["features"]:
        place = feature["properties"]["naip-new"]
        with rasterio.open(small / place) as crop, rasterio.open(whole / place) as all_of_it:
            window = place_of(crop, all_of_it)
            assert crop.shape == (40, 40)
            np.testing.assert_array_equal(crop.read(), all_of_it.read(window=window))
        before = next(
            one
            for one in json.loads((whole / "spatial_index.geojson").read_text())["features"]
            if one["properties"] == feature["properties"]
        )
        outer, inner = (np.array(one["geometry"]["coordinates"][0]) for one in (before, feature))
        assert (inner.min(axis=0) >= outer.min(axis=0) - 1).all()
        assert (inner.max(axis=0) <= outer.max(axis=0) + 1).all()
        assert np.ptp(inner, axis=0) == pytest.approx(np.ptp(outer, axis=0) / 2, rel=0.02)
    assert len(list(small.rglob("*.tif"))) == 5 * 8
    assert len(ChesapeakeDataModule(tmp_path / "small").pairs["train"]) == 2


def test_drawn_test_masks_are_taken_too(tmp_path: Path) -> None:
    write_inria_layout(
        tmp_path, cities=["alder"], tiles_per_city=6, size_px=64, seed=0, test_cities=["brack"], test_masks=True
    )

    assert main([str(tmp_path), str(tmp_path / "small"), "--tiles", "1"]) == 0
    assert names(tmp_path / "small", "test/gt") == ["brack1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tiles", "8"], "train ulm has 7 tiles in"),
        (["--tiles", "-1"], "must be 0 or more"),
        (["--crop_px", "49"], "48 x 48, less than --crop_px 49"),
    ],
)
def test_what_cannot_be_taken_is_one_line(
    inria: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(inria), str(tmp_path / "small"), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "small").exists()


def test_folders_that_are_no_data_set_are_refused(
    inria: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), str(tmp_path / "small")]) == 2
    assert "is neither AerialImageDataset nor cvpr_chesapeake_landcover" in capsys.readouterr().err
    assert main([str(inria), str(inria.parent)]) == 2
    assert "is the data set itself" in capsys.readouterr().err
    (tmp_path / "AerialImageDataset").mkdir()
    assert main([str(tmp_path), str(tmp_path / "small")]) == 2
    assert "holds no tiles" in capsys.readouterr().err


def test_a_full_disk_leaves_no_part_of_a_tile(
    inria: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        break_after(patch, "geonorm.files.put_in_place", 2, OSError(errno.ENOSPC, "No space left on device"))
        assert main([str(inria), str(tmp_path)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))

    assert main([str(inria), str(tmp_path)]) == 2
    assert "has 10.0 B free, and the subset needs" in capsys.readouterr().err
