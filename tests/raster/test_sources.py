"""Names of rasters, folders and lists -> rasters; rasters -> names of their maps."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from geonorm.errors import GeonormError, InvalidConfigError, RasterError
from geonorm.raster.sources import find_sources, target_names

REMOTE = [
    "https://example.org/scene.tif",
    "s3://bucket/scene.tif",
    "gs://bucket/scene.tif",
    "az://box/scene.tif",
    "zip://scenes.zip!scene.tif",
    "/vsicurl/https://example.org/scene.tif",
    "/vsizip/scenes.zip/scene.tif",
]


def make(folder: Path, *names: str) -> list[str]:
    """Write files that only have names, and return them."""
    folder.mkdir(exist_ok=True, parents=True)
    for name in names:
        (folder / name).write_bytes(b"?")
    return [str(folder / name) for name in names]


def assert_one_clear_line(error: BaseException, *names: str) -> None:
    for name in names:
        assert name in str(error)
    assert "\n" not in str(error)


def test_a_folder_stands_for_its_rasters_by_name(tmp_path: Path) -> None:
    rasters = make(tmp_path, "a.tif", "b.TIF", "c.tiff", "d.vrt", "e.jp2", "f.img", "g.png", "h.jpg", "i.jpeg")
    make(tmp_path, "a.tif.msk", "a.tif.ovr", "a.tif.aux.xml", "a.tfw", "notes.txt", "map.gpkg", ".b.tif", "README")
    make(tmp_path / ".a.tif.abc.tmp", "strips.tif")
    make(tmp_path / "deeper.tif", "z.tif")

    assert find_sources([tmp_path]) == rasters


def test_names_keep_their_order_and_come_once(tmp_path: Path) -> None:
    a, b, c = make(tmp_path, "a.tif", "b.tif", "c.tif")
    roundabout = os.path.join(str(tmp_path), ".", "c.tif")

    assert find_sources([roundabout, tmp_path, a, b]) == [roundabout, a, b]
    assert find_sources([b, Path(b), a]) == [b, a]
    assert find_sources([c]) == [c]


def test_a_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    [name] = make(tmp_path, "scene.dat")

    assert find_sources([name]) == [name]


@pytest.mark.parametrize("name", REMOTE)
def test_names_of_other_machines_pass_through(name: str) -> None:
    assert find_sources([name, name]) == [name]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_holds_paths_from_its_own_folder_and_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, end: str
) -> None:
    monkeypatch.chdir("/")
    a, b = make(tmp_path / "scenes", "a.tif", "Gebäude #2.tif")
    [c] = make(tmp_path, "c.tif")
    lines = ["scenes/Gebäude #2.tif", "", "# not this one: c.tif", f"  {c}  ", "s3://bucket/d.tif", "scenes/../c.tif"]
    (tmp_path / "list.TXT").write_bytes(end.join(lines).encode(encoding))

    assert find_sources([tmp_path / "list.TXT", a]) == [b, c, "s3://bucket/d.tif", a]


def test_what_stands_for_no_raster_is_refused_in_one_line(tmp_path: Path) -> None:
    make(tmp_path / "empty", "a.txt", ".a.tif")
    (tmp_path / "bare.txt").write_text("# nothing\n\n")
    (tmp_path / "stale.txt").write_text("# the scenes\ngone.tif\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    reasons = {
        "empty": "holds no raster",
        "bare.txt": "names no raster",
        "stale.txt": "line 2 of .*: there is no file .*gone.tif",
        "binary.txt": "cannot be read as a list",
        "missing.tif": "there is no file",
    }

    for name, reason in reasons.items():
        with pytest.raises(RasterError, match=reason) as caught:
            find_sources([tmp_path / name])
        assert_one_clear_line(caught.value, str(tmp_path / name))
    with pytest.raises(InvalidConfigError, match="no raster to read"):
        find_sources([])


def test_a_map_has_the_stem_of_its_raster(tmp_path: Path) -> None:
    sources = {
        "a/scene.tif": "scene",
        "b/scene.v2.jp2": "scene.v2",
        "c/no-suffix": "no-suffix",
        "https://example.org/d/signed.tif?key=a/b.c": "signed",
        "s3://bucket/far.tiff": "far",
        "zip://scenes.zip!in/zipped.tif": "zipped",
        "zip://alone.zip": "alone",
        "/vsizip/scenes.zip/virtual.tif": "virtual",
    }

    targets = target_names(list(sources), tmp_path)

    assert targets == [tmp_path / f"{stem}.tif" for stem in sources.values()]


@pytest.mark.parametrize(
    ("one", "other"),
    [("a/scene.tif", "b/scene.png"), ("a/scene.tif", "a/Scene.tif"), ("s3://a/x.tif", "x.jp2"), ("a.tif", "a.tif")],
)
def test_two_rasters_that_would_become_one_map_are_refused(tmp_path: Path, one: str, other: str) -> None:
    with pytest.raises(GeonormError, match=re.escape(f"{one} and {other} would both become")) as caught:
        target_names(["first.tif", one, other], tmp_path)

    assert_one_clear_line(caught.value, str(tmp_path / f"{Path(other).stem}.tif"))


def test_a_url_that_names_no_file_has_no_map(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="names no file"):
        target_names(["https://example.org/scenes/"], tmp_path)
