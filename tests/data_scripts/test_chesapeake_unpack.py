"""Unpacking Chesapeake Land Cover: some states or all, and what torchgeo says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from chesapeake_unpack import main
from torchgeo.datasets import ChesapeakeCVPR

from geonorm.data import ChesapeakeDataModule, write_chesapeake_layout
from tests.data_scripts.archives import break_after, make_tile, zip_folder

BASE, PRIOR = ChesapeakeCVPR.filenames["base"], ChesapeakeCVPR.filenames["prior_extension"]


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The two zips of a drawn data set, and their MD5s; the prior lies in a zip of its own."""
    root = tmp_path_factory.mktemp("drawn")
    folder = write_chesapeake_layout(root, states=["md", "va"], train_tiles=1, size_px=64, seed=0)
    parts = {"base": root / "base", "prior_extension": root / "prior"}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            kind = "prior_extension" if "prior" in path.name else "base"
            target = parts[kind] / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    downloads = tmp_path_factory.mktemp("downloads")
    names = ChesapeakeCVPR.filenames
    return downloads, {kind: zip_folder(part, downloads / names[kind]) for kind, part in parts.items()}


@pytest.fixture
def downloads(zips: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, md5s = zips
    monkeypatch.setattr(ChesapeakeCVPR, "md5s", md5s)
    return folder


def test_one_state_is_unpacked_alone_and_geonorm_reads_it(
    downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(downloads), str(tmp_path), "--states", "md", "--layers", "naip-new", "lc"])

    folder = tmp_path / "cvpr_chesapeake_landcover"
    said = capsys.readouterr().out
    assert code == 0
    assert len(list(folder.rglob("*.tif"))) == 3 * 2
    assert {path.name[:2] for path in folder.iterdir() if path.is_dir()} == {"md"}
    assert "md-train: 1 tiles with naip-new, lc" in said
    assert "torchgeo's own data set needs all states" in said
    assert len(ChesapeakeDataModule(tmp_path).pairs["train"]) == 1


def test_more_states_later_add_to_what_is_there(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(downloads), str(tmp_path), "--layers", "lc"]) == 0
    with monkeypatch.context() as patch:
        break_after(patch, "geonorm.files.put_in_place", 1, KeyboardInterrupt())
        assert main([str(downloads), str(tmp_path), "--states", "md", "va", "--layers", "lc"]) == 130
    capsys.readouterr()

    code = main([str(downloads), str(tmp_path), "--states", "md", "va", "--layers", "lc"])

    assert code == 0
    assert "2 files of cvpr_chesapeake_landcover.zip unpacked" in capsys.readouterr().out
    assert not list(tmp_path.rglob(".*"))


def test_a_state_that_the_archive_lacks_is_named(
    downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(downloads), str(tmp_path), "--states", "md", "ny"]) == 2

    assert "names no tiles of ny" in capsys.readouterr().err


def test_a_zip_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "data")]) == 2

    assert f"holds no {BASE}. --help says what to download" in capsys.readouterr().err


def test_what_is_wrong_with_tiles_is_counted_and_named(
    downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(downloads), str(tmp_path), "--layers", "naip-new", "lc"]) == 0
    folder = tmp_path / "cvpr_chesapeake_landcover"
    [image] = folder.glob("md_*-train_tiles/*_naip-new.tif")
    make_tile(image, bands=3, height=64, width=64, resolution_m=1)
    [cover] = folder.glob("md_*-val_tiles/*_lc.tif")
    cover.unlink()

    assert main([str(downloads), str(tmp_path), "--check", "--layers", "naip-new", "lc"]) == 2
    assert f"lacks 1 of 6 files: {cover.relative_to(folder)}" in capsys.readouterr().err
    assert main([str(downloads), str(tmp_path), "--check", "--layers", "naip-new"]) == 2
    assert f"{image.relative_to(folder)} (3 bands instead of 4)" in capsys.readouterr().err


def test_a_folder_without_an_index_is_refused_by_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path), "--check"]) == 2
    assert "has no spatial_index.geojson" in capsys.readouterr().err

    (tmp_path / "cvpr_chesapeake_landcover").mkdir()
    (tmp_path / "cvpr_chesapeake_landcover/spatial_index.geojson").write_text("[1]")
    assert main([str(tmp_path), str(tmp_path), "--check"]) == 2
    assert "is no index of tiles" in capsys.readouterr().err


# torchgeo 0.8 uses pandas in a way that it gives up.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchgeo_reads_what_is_unpacked_whole(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The drawn states are two and a tile of a third; the folders of the rest are empty, which a zip cannot hold.
    monkeypatch.setattr("chesapeake_unpack.STATES", ("md", "va", "wv"))
    for name in ChesapeakeCVPR._files:
        if name.endswith("_tiles"):
            (tmp_path / "cvpr_chesapeake_landcover" / name).mkdir(parents=True)

    code = main([str(downloads), str(tmp_path), "--states", "all", "--layers", "all"])

    assert code == 0
    assert "geonorm and torchgeo can use it" in capsys.readouterr().out
