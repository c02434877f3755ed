"""The contest's zip: what goes in, what is refused, and what the check finds."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from inria_submission import Contest, main
from inria_unpack import TEST_CITIES
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from geonorm.data import write_inria_layout
from geonorm.inference import predict_raster
from geonorm.models import UNet
from geonorm.norms import BatchNorm
from geonorm.raster.write import write_image
from tests.data_scripts.archives import break_after

SIDE, NODATA = 32, 255
SMALL = ["--cities", "sfo", "tyrol-e", "--tiles_per_city", "2", "--size_px", str(SIDE)]
NAMES = ["sfo1.tif", "sfo2.tif", "tyrol-e1.tif", "tyrol-e2.tif"]
pytestmark = pytest.mark.filterwarnings(f"ignore::{NotGeoreferencedWarning.__module__}.NotGeoreferencedWarning")


def drawn(seed: int) -> NDArray[np.uint8]:
    """Labels 0 and 1, and a corner without data."""
    labels = np.random.default_rng(seed).integers(0, 2, (SIDE, SIDE)).astype(np.uint8)
    labels[:2, :3] = NODATA
    return labels


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "maps"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        write_image(folder / name, drawn(seed), nodata=NODATA, tiled=True, block_px=16)
    return folder


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def remade(path: Path, changes: dict[str, bytes | None]) -> Path:
    """Return a copy of a zip with members changed, added, or taken out (None)."""
    target = path.with_name("changed.zip")
    with zipfile.ZipFile(target, "w") as archive:
        for name, held in {**members(path), **changes}.items():
            if held is not None:
                archive.writestr(name, held)
    return target


def tile_bytes(values: NDArray[Any], folder: Path) -> bytes:
    write_image(folder / "some.tif", values)
    return (folder / "some.tif").read_bytes()


def test_the_contest_takes_180_files() -> None:
    names = Contest(TEST_CITIES, 36, 5000).names

    assert len({*names}) == 180
    assert {"bellingham1.tif", "bloomington36.tif", "innsbruck7.tif", "sfo20.tif", "tyrol-e36.tif"} <= {*names}


def test_labels_become_0_and_255_and_pixels_without_data_no_building(
    maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(maps), str(tmp_path / "all.zip"), *SMALL])

    assert code == 0
    assert sorted(members(tmp_path / "all.zip")) == NAMES
    for seed, name in enumerate(NAMES):
        with rasterio.open(f"/vsizip/{tmp_path / 'all.zip'}/{name}") as dataset:
            assert (dataset.count, dataset.dtypes, dataset.nodata) == (1, ("uint8",), None)
            np.testing.assert_array_equal(dataset.read(1), np.where(drawn(seed) == 1, 255, 0))
    said = capsys.readouterr().out
    assert f"{4 * 6} pixels without data count as not building" in said
    share = np.mean([(drawn(seed) == 1).mean() for seed in range(4)])
    assert f"4 files, {share:.1%} building" in said


def test_a_submission_passes_its_own_check(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(maps), str(tmp_path / "all.zip"), *SMALL]) == 0

    assert main(["--check", str(tmp_path / "all.zip"), *SMALL]) == 0
    assert "is as the contest wants it: 4 files" in capsys.readouterr().out


def test_everything_that_is_wrong_with_maps_is_named_and_nothing_written(
    maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (maps / "sfo1.tif").unlink()
    write_image(maps / "sfo2.tif", np.full((SIDE, SIDE + 1), 7, dtype=np.uint8))
    write_image(maps / "tyrol-e1.tif", np.zeros((3, SIDE, SIDE), dtype=np.float32))
    (maps / "tyrol-e2.tif").write_bytes(b"II*\x00 no more")

    code = main([str(maps), str(tmp_path / "all.zip"), *SMALL])

    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert "6 violation(s): sfo1.tif (missing), sfo2.tif (32 x 33 px instead of 32 x 32), sfo2.tif (values 7" in said
    assert "tyrol-e1.tif (3 bands instead of 1), tyrol-e1.tif (float32 instead of uint8)" in said
    assert "tyrol-e2.tif (cannot be read" in said
    assert not (tmp_path / "all.zip").exists()


def test_more_than_eight_violations_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "maps").mkdir()

    assert main([str(tmp_path / "maps"), str(tmp_path / "all.zip")]) == 2

    said = capsys.readouterr().err.splitlines()[-1]
    assert "180 violation(s): bellingham1.tif (missing)" in said
    assert "bellingham8.tif (missing) and 172 more" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sfo2.tif": None}, "1 violation(s): sfo2.tif (missing)"),
        ({"maps/sfo2.tif": b""}, "1 violation(s): maps/sfo2.tif (not a tile of the contest)"),
        ({"sfo1.tif": b"no picture"}, "1 violation(s): sfo1.tif (cannot be read"),
        ({"sfo1.tif": np.ones((SIDE, SIDE), np.uint8)}, "1 violation(s): sfo1.tif (values 1 beside 0 and 255)"),
        ({"sfo1.tif": np.zeros((SIDE, SIDE), np.uint16)}, "1 violation(s): sfo1.tif (uint16 instead of uint8)"),
        ({"sfo1.tif": np.zeros((2, SIDE, SIDE), np.uint8)}, "1 violation(s): sfo1.tif (2 bands instead of 1)"),
        ({"sfo1.tif": np.zeros((SIDE, 9), np.uint8)}, "1 violation(s): sfo1.tif (32 x 9 px instead of 32 x 32)"),
    ],
)
def test_the_check_finds_what_breaks_a_rule(
    maps: Path, tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(maps), str(tmp_path / "all.zip"), *SMALL]) == 0
    held = {
        name: tile_bytes(value, tmp_path) if isinstance(value, np.ndarray) else value for name, value in changes.items()
    }
    changed = remade(tmp_path / "all.zip", held)

    assert main(["--check", str(changed), *SMALL]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_or_missing_zip_is_one_line(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(maps), str(tmp_path / "all.zip"), *SMALL]) == 0
    held = bytearray((tmp_path / "all.zip").read_bytes())
    held[held.index(b"sfo2.tif") + 30] ^= 255
    (tmp_path / "all.zip").write_bytes(held)
    (tmp_path / "no.zip").write_bytes(b"PK no zip")

    for name, message in (
        ("all.zip", "sfo2.tif (damaged)"),
        ("no.zip", "is no zip file, or a damaged one"),
        ("nowhere.zip", "there is no file"),
    ):
        assert main(["--check", str(tmp_path / name), *SMALL]) == 2
        assert message in capsys.readouterr().err


def test_a_full_disk_leaves_the_zip_that_was_there(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "all.zip").write_bytes(b"old")
    with monkeypatch.context() as patch:
        break_after(patch, "inria_submission.write_image", 2, OSError(errno.ENOSPC, "No space left on device"))
        assert main([str(maps), str(tmp_path / "all.zip"), *SMALL]) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))

    assert main([str(maps), str(tmp_path / "all.zip"), *SMALL]) == 2
    assert "has 10.0 B free" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.zip", "maps"]
    assert (tmp_path / "all.zip").read_bytes() == b"old"


@pytest.mark.parametrize("options", [[], ["maps"], ["maps", "a.zip", "--check", "a.zip"]])
def test_too_few_or_too_many_names_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    assert "give the folder of maps and the zip to make, or --check ZIP alone" in capsys.readouterr().err


@pytest.mark.slow
def test_maps_that_predict_writes_are_taken_as_they_are(tmp_path: Path) -> None:
    """From drawn test tiles, one of them with a hole, through a network without training, to the zip."""
    root = write_inria_layout(
        tmp_path, cities=[], tiles_per_city=0, size_px=64, seed=0, test_cities=["alder"], test_tiles_per_city=2
    )
    with rasterio.open(root / "test/images/alder2.tif", "r+") as dataset:
        dataset.nodata = 0
        dataset.write(np.zeros((3, 10, 12), np.uint8), window=rasterio.windows.Window(0, 0, 12, 10))
    torch.manual_seed(0)
    network = UNet(3, 2, depth=1, width=4, norm=BatchNorm).eval()
    (tmp_path / "maps").mkdir()
    for number in (1, 2):
        predict_raster(network, root / f"test/images/alder{number}.tif", tmp_path / f"maps/alder{number}.tif")
    options = ["--cities", "alder", "--tiles_per_city", "2", "--size_px", "64"]

    code = main([str(tmp_path / "maps"), str(tmp_path / "all.zip"), *options])

    assert code == 0
    for number in (1, 2):
        with (
            rasterio.open(f"/vsizip/{tmp_path / 'all.zip'}/alder{number}.tif") as submitted,
            rasterio.open(tmp_path / f"maps/alder{number}.tif") as labels,
        ):
            assert submitted.transform == labels.transform
            np.testing.assert_array_equal(submitted.read(1) == 255, labels.read(1) == 1)
            assert ((labels.read(1) == labels.nodata).sum() >= 120) == (number == 2)
