"""Rewriting in blocks: nothing but the storage changes, and the table can be trained on."""

from __future__ import annotations

import csv
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import retile
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from retile import Layout, main

from geonorm.data import RastersDataModule
from tests.data_scripts.archives import break_after

HEIGHT, WIDTH = 60, 90
PLACE = Affine(0.3, 0, 600_000, 0, -0.3, 4_400_000)
pytestmark = pytest.mark.filterwarnings(f"ignore::{NotGeoreferencedWarning.__module__}.NotGeoreferencedWarning")


def draw(path: Path, *, count: int = 3, dtype: str = "uint8", seed: int = 0, **profile: Any) -> Path:
    """Write noise in strips of rows."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 200, (count, HEIGHT, WIDTH)).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": count, "height": HEIGHT, "width": WIDTH, "dtype": dtype}
    with rasterio.open(
        path, "w", driver="GTiff", **shape, **{"crs": "EPSG:32614", "transform": PLACE, **profile}
    ) as new:
        new.write(values)
    return path


def open_both(source: Path, target: Path, name: str) -> tuple[Any, Any]:
    return rasterio.open(source / name), rasterio.open(target / name)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "source", tmp_path / "target"


@pytest.mark.parametrize("compress", ["none", "deflate", "zstd", "lzw"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("plain", {}),
        ("nodata", {"nodata": 7}),
        ("wide", {"dtype": "uint16", "count": 5}),
        ("float", {"dtype": "float32", "nodata": float("nan")}),
        ("nowhere", {"crs": None, "transform": Affine.identity()}),
        ("deflated", {"compress": "deflate", "interleave": "band"}),
    ],
)
def test_a_copy_holds_the_same_in_blocks(
    folders: tuple[Path, Path], compress: str, name: str, settings: dict[str, Any]
) -> None:
    source, target = folders
    draw(source / "a" / f"{name}.tif", **settings)

    code = main([str(source), str(target), "--block_px", "32", "--compress", compress])

    assert code == 0
    before, after = open_both(source, target, f"a/{name}.tif")
    with before, after:
        np.testing.assert_array_equal(after.read(), before.read())
        np.testing.assert_array_equal(after.read_masks(), before.read_masks())
        assert (after.crs, after.transform, after.dtypes) == (before.crs, before.transform, before.dtypes)
        assert str(after.nodatavals) == str(before.nodatavals)
        assert {*after.block_shapes} == {(32, 32)}
        assert (after.compression.name if after.compression else "none") == compress
        assert before.block_shapes[0][1] == WIDTH


def test_masks_colours_tags_control_points_and_alpha_are_kept(folders: tuple[Path, Path]) -> None:
    source, target = folders
    masked = draw(source / "masked.tif")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(masked, "r+") as dataset:
        dataset.write_mask(np.random.default_rng(1).random((HEIGHT, WIDTH)) > 0.5)
        dataset.update_tags(camera="a good one")
        dataset.set_band_description(2, "green")
    with rasterio.open(draw(source / "palette.tif", count=1), "r+") as dataset:
        dataset.write_colormap(1, {number: (number, 1, 2, 255) for number in range(256)})
    with rasterio.open(draw(source / "rgba.tif", count=4), "r+") as dataset:
        dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    with rasterio.open(draw(source / "gcps.tif", crs=None, transform=Affine.identity()), "r+") as dataset:
        points = [GroundControlPoint(row, col, 10 + col, 50 - row) for row, col in ((0, 0), (0, 90), (60, 0), (60, 90))]
        dataset.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    assert (source / "masked.tif.msk").exists()

    code = main([str(source), str(target)])

    assert code == 0
    for name in ("masked", "palette", "rgba", "gcps"):
        before, after = open_both(source, target, f"{name}.tif")
        with before, after:
            np.testing.assert_array_equal(after.read_masks(), before.read_masks())
            assert after.colorinterp == before.colorinterp
            assert after.descriptions == before.descriptions
            assert [(one.row, one.col, one.x, one.y) for one in after.gcps[0]] == [
                (one.row, one.col, one.x, one.y) for one in before.gcps[0]
            ]
    with rasterio.open(target / "masked.tif") as copy:
        assert copy.tags()["camera"] == "a good one"
        assert 0.3 < (copy.read_masks(1) == 0).mean() < 0.7
    with rasterio.open(target / "palette.tif") as copy:
        assert copy.colormap(1)[77] == (77, 1, 2, 255)


def test_what_is_there_is_skipped_and_what_has_changed_is_done_again(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = folders
    for name in ("a", "b", "c"):
        draw(source / f"{name}.tif")
    assert main([str(source), str(target)]) == 0
    draw(source / "b.tif", seed=1)
    (target / "c.tif").unlink()
    kept = (target / "a.tif").stat().st_mtime_ns
    capsys.readouterr()

    assert main([str(source), str(target)]) == 0

    assert "2 written, 1 were there" in capsys.readouterr().out
    assert (target / "a.tif").stat().st_mtime_ns == kept
    before, after = open_both(source, target, "b.tif")
    with before, after:
        np.testing.assert_array_equal(after.read(), before.read())
    assert main([str(source), str(target), "--compress", "lzw"]) == 0
    assert "3 written, 0 were there" in capsys.readouterr().out


def test_an_interrupted_run_leaves_whole_files_and_goes_on(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = folders
    for name in ("a", "b", "c", ".a.tif.killed.tmp/a"):
        draw(source / f"{name}.tif")
    with monkeypatch.context() as patch:
        break_after(patch, "geonorm.files.put_in_place", 1, KeyboardInterrupt())
        assert main([str(source), str(target)]) == 130
    assert [path.name for path in target.iterdir()] == ["a.tif"]

    assert main([str(source), str(target)]) == 0
    assert "2 written, 1 were there" in capsys.readouterr().out


def test_a_file_that_cannot_be_copied_is_named_and_the_others_are_done(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = folders
    for name in ("a", "broken", "c"):
        draw(source / f"{name}.tif")
    held = (source / "broken.tif").read_bytes()
    (source / "broken.tif").write_bytes(held[: len(held) // 2])

    assert main([str(source), str(target)]) == 2

    said = capsys.readouterr()
    assert "2 written" in said.out
    assert "1 of 3 files were not copied" in said.err
    assert "broken.tif cannot be copied" in said.err
    assert sorted(path.name for path in target.iterdir()) == ["a.tif", "c.tif"]


def test_a_copy_that_differs_never_appears(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = folders
    draw(source / "a.tif")
    real = rasterio.shutil.copy

    def spoil(dataset: Any, made: Path, **options: Any) -> None:
        real(dataset, made, **options)
        with rasterio.open(made, "r+") as copy:
            values = copy.read()
            values[1, 59, 89] ^= 1
            copy.write(values)

    monkeypatch.setattr("rasterio.shutil.copy", spoil)

    with pytest.raises(OSError, match="would not be the same as its copy: values in rows 48 to 59"):
        retile.retile(source / "a.tif", target / "a.tif", Layout(16, "none"))
    assert not list(target.iterdir())


def test_a_full_disk_is_one_line(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = folders
    draw(source / "a.tif")
    with monkeypatch.context() as patch:
        break_after(patch, "geonorm.files.put_in_place", 0, OSError(errno.ENOSPC, "No space left on device"))
        assert main([str(source), str(target)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(target.iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))

    assert main([str(source), str(target)]) == 2
    assert f"1 copies, at most, needs {3 * HEIGHT * WIDTH / 1000:.1f} kB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--block_px", "100"], "--block_px must be a multiple of 16, got 100"),
        (["--processes", "0"], "--processes must be at least 1, got 0"),
        (["--compress", "jpeg"], "invalid choice: 'jpeg'"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(
    folders: tuple[Path, Path], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = folders
    draw(source / "a.tif")

    assert main([str(source), str(target), *options]) == 2
    assert message in capsys.readouterr().err
    assert not target.exists()


def test_folders_that_cannot_work_are_refused(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, target = folders
    assert main([str(source), str(target)]) == 2
    assert "there is no folder" in capsys.readouterr().err
    source.mkdir()
    assert main([str(source), str(target)]) == 2
    assert "holds no GeoTIFF" in capsys.readouterr().err
    assert main([str(source), str(source / "fast")]) == 2
    assert "its copies would be copied again" in capsys.readouterr().err


def test_the_table_can_be_trained_on(folders: tuple[Path, Path]) -> None:
    source, target = folders
    for city in ("austin1", "austin2", "wien1"):
        draw(source / "images" / f"{city}.tif")
        draw(source / "gt" / f"{city}.tif", count=1)
    table = target.parent / "tables" / "table.csv"

    code = main([str(source), str(target), "--index", str(table), "--index_labels", "../gt/{name}.tif"])

    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert code == 0
    assert [(row["name"], row["group"]) for row in rows] == [
        ("austin1", "austin"),
        ("austin2", "austin"),
        ("wien1", "wien"),
    ]
    assert (table.parent / rows[0]["labels"]).resolve() == (target / "gt/austin1.tif").resolve()
    assert float(rows[0]["right"]) - float(rows[0]["left"]) == pytest.approx(0.3 * WIDTH)
    assert (rows[0]["crs"], rows[0]["height"], rows[0]["width"], rows[0]["bands"]) == ("EPSG:32614", "60", "90", "3")
    data = RastersDataModule({"low": list(range(100)), "high": list(range(100, 200))}, table=str(table), val_share=0.4)
    assert len(data.pairs["train"]) == 2
    assert {pair.group for pairs in data.pairs.values() for pair in pairs} == {"austin", "wien"}


def test_images_without_labels_are_named_and_nothing_is_listed(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = folders
    draw(source / "images" / "a.tif")
    table = target / "table.csv"

    assert main([str(source), str(target), "--index", str(table), "--index_labels", "../gt/{name}.tif"]) == 2
    assert "1 of 1 images have no label file ../gt/{name}.tif: a.tif" in capsys.readouterr().err
    assert main([str(source), str(target), "--index", str(table), "--index_images", "b*"]) == 2
    assert "no raster is named b*" in capsys.readouterr().err
    assert not table.exists()


@pytest.mark.slow
def test_several_processes_make_what_one_makes(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, target = folders
    for number in range(4):
        draw(source / f"{number}.tif", seed=number)
    held = (source / "2.tif").read_bytes()
    (source / "2.tif").write_bytes(held[:2000])

    several = main([str(source), str(target), "--processes", "2"])
    alone = main([str(source), str(target.with_name("alone")), "--processes", "1"])

    assert several == alone == 2
    assert "2.tif cannot be copied" in capsys.readouterr().err
    for number in (0, 1, 3):
        assert (target / f"{number}.tif").read_bytes() == (target.with_name("alone") / f"{number}.tif").read_bytes()


@pytest.mark.real
def test_real_files_keep_everything(real_data: Path, tmp_path: Path) -> None:
    """Odd files of the field: rotated, with masks, alpha, palettes, control points, other planets."""
    source = tmp_path / "source"
    source.mkdir()
    for path in sorted((real_data / "odd-geotiff").glob("*.tif*")):
        if not path.name.startswith(("damaged", "corrupt")):
            (source / path.name).symlink_to(path)

    code = main([str(source), str(tmp_path / "target"), "--compress", "deflate"])

    copies = list((tmp_path / "target").glob("*.tif"))
    assert code == 0
    assert len(copies) > 15
