"""Unpacking INRIA: parts, checksums, what is missing, and runs that were cut short."""

from __future__ import annotations

import errno
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from inria_unpack import TEST_CITIES, TRAIN_CITIES, expected_files, main
from torchgeo.datasets import InriaAerialImageLabeling

from geonorm.data import InriaDataModule
from tests.data_scripts.archives import break_after, cut, make_tile, zip_folder

TILES, SIDE = 6, 16
SMALL = ["--tiles_per_city", str(TILES), "--size_px", str(SIDE)]
ZIP = InriaAerialImageLabeling.filename


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    for number, name in enumerate(expected_files(TILES)):
        make_tile(
            root / "AerialImageDataset" / name, bands=1 if "/gt/" in name else 3, height=SIDE, width=SIDE, seed=number
        )
    (root / "AerialImageDataset" / "readme.txt").write_text("not a tile")
    return root


@pytest.fixture
def downloads(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the zip, whose MD5 torchgeo is told."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    monkeypatch.setattr(InriaAerialImageLabeling, "md5", zip_folder(dataset, folder / ZIP))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_contest_has_180_tiles_to_train_on_and_180_to_test_on() -> None:
    names = list(expected_files(36))

    assert len(names) == len({*names}) == 180 + 180 + 180
    assert {"train/images/tyrol-w36.tif", "train/gt/austin1.tif", "test/images/sfo20.tif"} <= {*names}
    assert not {*TRAIN_CITIES} & {*TEST_CITIES}


def test_a_zip_is_unpacked_and_can_be_trained_on(downloads: Path, dataset: Path, tmp_path: Path) -> None:
    code = main([str(downloads), str(tmp_path / "data"), *SMALL])

    whole = {name: held for name, held in files(dataset / "AerialImageDataset").items() if name != "readme.txt"}
    assert code == 0
    assert files(tmp_path / "data/AerialImageDataset") == whole
    assert len(InriaDataModule(tmp_path / "data").pairs["val"]) == 5 * 5


def test_an_interrupted_run_goes_on_where_it_stopped(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        break_after(patch, "geonorm.files.put_in_place", 7, KeyboardInterrupt())
        assert main([str(downloads), str(tmp_path / "data"), *SMALL]) == 130
    done = files(tmp_path / "data")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.tif")}

    code = main([str(downloads), str(tmp_path / "data"), *SMALL])

    assert code == 0
    assert len(done) == 7
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert f"{3 * 5 * TILES - 7} files unpacked" in capsys.readouterr().out


def test_a_full_disk_leaves_no_part_of_a_file(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_after(monkeypatch, "geonorm.files.put_in_place", 3, OSError(errno.ENOSPC, "No space left on device"))

    code = main([str(downloads), str(tmp_path / "data"), *SMALL])

    assert code == 2
    assert len(files(tmp_path / "data")) == 3
    assert "No space left on device. Nothing was left of it; free space" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_told_before_anything_is_unpacked(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))

    code = main([str(downloads), str(tmp_path / "data"), *SMALL])

    assert code == 2
    assert f"has 1.0 kB free, and unpacking {ZIP} needs" in capsys.readouterr().err
    assert not files(tmp_path / "data")


def test_a_wrong_checksum_stops_before_anything_is_unpacked(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(InriaAerialImageLabeling, "md5", "0" * 32)

    code = main([str(downloads), str(tmp_path / "data"), *SMALL])

    assert code == 2
    assert "torchgeo knows 000" in capsys.readouterr().err
    assert not files(tmp_path / "data")
    assert main([str(downloads), str(tmp_path / "data"), "--no_checksum", *SMALL]) == 0


def test_a_damaged_zip_is_one_line(downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = bytearray((downloads / ZIP).read_bytes())
    held[len(held) // 3] ^= 255
    (downloads / ZIP).write_bytes(held)

    code = main([str(downloads), str(tmp_path / "data"), "--no_checksum", *SMALL])

    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert f"{ZIP} is damaged: Bad CRC-32" in said
    assert not list((tmp_path / "data").rglob(".*"))


def test_missing_parts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2, 4):
        (tmp_path / f"aerialimagelabeling.7z.{number:03d}").write_bytes(b"7z")

    code = main([str(tmp_path), str(tmp_path / "data")])

    assert code == 2
    assert "lacks 2 of the 5 parts of aerialimagelabeling.7z: aerialimagelabeling.7z.003, " in capsys.readouterr().err
    assert main([str(tmp_path / "aerialimagelabeling.7z.001"), str(tmp_path / "data")]) == 2
    assert "lacks 2 of the 5 parts" in capsys.readouterr().err


def test_an_empty_folder_says_what_should_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()

    assert main([str(tmp_path / "empty"), str(tmp_path / "data")]) == 2
    assert f"holds neither aerialimagelabeling.7z.001 to .005 nor {ZIP}" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "data")]) == 2
    assert "there is no" in capsys.readouterr().err


def test_parts_are_joined_by_py7zr(downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    py7zr = pytest.importorskip("py7zr", reason="py7zr is not installed (pip install 'geonorm[archives]')")
    pytest.importorskip("multivolumefile")
    monkeypatch.setattr("shutil.which", lambda _: None)
    archive = downloads / "aerialimagelabeling.7z"
    with py7zr.SevenZipFile(archive, "w") as file:
        file.write(downloads / ZIP, ZIP)
    (downloads / ZIP).unlink()
    parts = cut(archive, 5)
    (downloads / "aerialimagelabeling.7z.md5").write_text("something else")

    assert main([str(downloads), str(tmp_path / "data"), *SMALL]) == 0

    parts[2].write_bytes(parts[2].read_bytes()[::-1])
    (tmp_path / "data" / ZIP).unlink()
    (tmp_path / "data/AerialImageDataset/train/gt/austin1.tif").unlink()
    assert main([str(downloads), str(tmp_path / "data"), *SMALL]) == 2
    assert not (tmp_path / "data" / ZIP).exists()


def fake_7z(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a program 7z on the path that gets the options ``x -y -bso0 -bsp0 -oFOLDER FIRST``."""
    folder.mkdir()
    program = folder / "7z"
    program.write_text(f"#!{sys.executable}\nimport pathlib, sys\nfirst, out = sys.argv[6], sys.argv[5][2:]\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_the_program_7z_is_used_where_it_is_present(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = "b''.join(part.read_bytes() for part in sorted(pathlib.Path(first).parent.glob('*.7z.0*')))"
    fake_7z(tmp_path / "bin", monkeypatch, f"(pathlib.Path(out) / {ZIP!r}).write_bytes({joined})")
    (downloads / ZIP).rename(downloads / "aerialimagelabeling.7z")
    cut(downloads / "aerialimagelabeling.7z", 5)

    code = main([str(downloads), str(tmp_path / "data"), *SMALL])

    assert code == 0


def test_what_7z_complains_of_is_told_and_nothing_is_left(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_7z(tmp_path / "bin", monkeypatch, "sys.exit('Unexpected end of archive')")
    (downloads / ZIP).rename(downloads / "aerialimagelabeling.7z")
    cut(downloads / "aerialimagelabeling.7z", 5)

    code = main([str(downloads), str(tmp_path / "data"), *SMALL])

    assert code == 2
    assert "cannot be unpacked: Unexpected end of archive" in capsys.readouterr().err
    assert not list((tmp_path / "data").iterdir())


def test_without_any_7z_the_ways_to_get_one_are_named(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setitem(sys.modules, "multivolumefile", None)
    (downloads / ZIP).rename(downloads / "aerialimagelabeling.7z")
    cut(downloads / "aerialimagelabeling.7z", 5)

    assert main([str(downloads), str(tmp_path / "data"), *SMALL]) == 2
    assert "needs the program 7z (package p7zip-full or 7zip) or py7zr" in capsys.readouterr().err


def test_what_is_wrong_with_tiles_is_counted_and_named(
    downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(downloads), str(tmp_path), *SMALL]) == 0
    folder = tmp_path / "AerialImageDataset"
    make_tile(folder / "train/images/austin2.tif", bands=3, height=SIDE, width=SIDE + 1)
    make_tile(folder / "train/gt/vienna3.tif", bands=3, height=SIDE, width=SIDE)
    make_tile(folder / "test/images/sfo1.tif", bands=3, height=SIDE, width=SIDE, resolution_m=0.5)
    broken = folder / "test/images/tyrol-e6.tif"
    broken.write_bytes(broken.read_bytes()[:200])
    capsys.readouterr()

    code = main([str(downloads), str(tmp_path), "--check", *SMALL])

    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert "4 of 90 files" in said
    assert "train/images/austin2.tif (16 x 17 px instead of 16 x 16)" in said
    assert "train/gt/vienna3.tif (3 bands instead of 1)" in said
    assert "test/images/sfo1.tif (0.50 m a pixel instead of 0.3 m)" in said
    assert "test/images/tyrol-e6.tif" in said


def test_missing_tiles_are_named(downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(downloads), str(tmp_path), *SMALL]) == 0
    (tmp_path / "AerialImageDataset/train/gt/kitsap4.tif").unlink()

    code = main([str(downloads), str(tmp_path), "--check", *SMALL])

    assert code == 2
    assert "lacks 1 of 90 files: train/gt/kitsap4.tif" in capsys.readouterr().err
