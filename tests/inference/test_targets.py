"""The files of a run: none replaces what is read or another one, and what is there already is known by its making."""

from __future__ import annotations

import os
import shutil
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rasterio
import rasterio.shutil
from torch import nn

from geonorm.cli import main
from geonorm.errors import GeonormError, InvalidConfigError, RasterError, TargetExistsError
from geonorm.inference import Options, predict_raster, predict_rasters
from geonorm.inference.shards import Shard
from geonorm.models import UNet, localize_norms
from geonorm.norms import BatchNorm, GroupNorm, LocalContextNorm
from tests.folders import names_in
from tests.inference.rasters import draw, labels_in, noise
from tests.inference.test_journal import run_until
from tests.inference.test_sources import checkpoint
from tests.models.networks import unet, with_random_values

__all__ = ["checkpoint"]  # a fixture

SETTINGS: dict[str, Any] = {"core_px": 16, "halo": "exact"}
GPKG = {"driver": "GPKG", "blockxsize": 256, "blockysize": 256}
FIRST = (-16, 16)
"""Where the grid lies so that 64 rows are four strips."""
SHARDS = (Shard(0, 2), Shard(1, 2))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return unet(BatchNorm)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw(tmp_path / "scene.tif", noise(3, 64, 48), first_index=FIRST)


def shards(network: nn.Module, source: Path, target: Path, **settings: Any) -> list[Any]:
    """Let two shards label, one after the other."""
    return [predict_raster(network, source, target, shard=shard, **{**SETTINGS, **settings}) for shard in SHARDS]


def expected(network: nn.Module, source: Path, folder: Path, **settings: Any) -> bytes:
    """Return what one process makes where nothing is."""
    folder.mkdir()
    predict_raster(network, source, folder / "map.tif", **{**SETTINGS, **settings})
    return (folder / "map.tif").read_bytes()


def hidden(folder: Path) -> list[str]:
    return [name for name in names_in(folder) if name.startswith(".")]


# --- what is there already --------------------------------------------------------------------------


def repaint(scene: Path) -> None:
    """Change the pixels of a raster in its place, not its size."""
    size = scene.stat().st_size
    draw(scene, 255 - noise(3, 64, 48), first_index=FIRST)
    assert scene.stat().st_size == size


@pytest.mark.filterwarnings("ignore:The labels depend on the tiles")  # the other network is one of GN
@pytest.mark.parametrize("change", ["pixels", "pixels, time kept", "size", "network"])
def test_shards_replace_a_map_of_another_source_or_network_or_say_that_it_is_there(
    scene: Path, tmp_path: Path, change: str
) -> None:
    target = tmp_path / "map.tif"
    network: nn.Module = unet(GroupNorm, width=4)
    predict_raster(network, scene, target, core_px=16, halo=16)
    before, time = target.read_bytes(), scene.stat()
    if change == "size":
        draw(scene, noise(3, 80, 48))
    elif change == "network":
        network, _ = localize_norms(network, 9)
    else:
        repaint(scene)
        if "kept" in change:
            os.utime(scene, ns=(time.st_atime_ns, time.st_mtime_ns))
    restarts: list[dict[str, Any]] = [{}, {"restart": True}]
    for settings in restarts:
        for shard in SHARDS:
            with pytest.raises(TargetExistsError, match="--overwrite"):
                predict_raster(network, scene, target, core_px=16, halo=16, shard=shard, **settings)
    assert target.read_bytes() == before

    for settings in restarts:
        shards(network, scene, target, halo=16, overwrite=True, **settings)

        assert target.read_bytes() == expected(network, scene, tmp_path / f"new {len(settings)}", halo=16) != before
        assert hidden(tmp_path) == []


def test_a_source_that_was_changed_since_is_another_one(network: nn.Module, scene: Path, tmp_path: Path) -> None:
    target = tmp_path / "map.tif"
    predict_raster(network, scene, target, **SETTINGS)
    later = target.stat().st_mtime_ns + 10**9
    os.utime(scene, ns=(later, later))

    with pytest.raises(TargetExistsError):
        predict_raster(network, scene, target, shard=SHARDS[0], **SETTINGS)


def test_a_map_of_which_a_file_is_missing_is_not_made(network: nn.Module, scene: Path, tmp_path: Path) -> None:
    target = tmp_path / "map.tif"
    predict_raster(network, scene, target, outputs=("labels", "logits"), **SETTINGS)
    (tmp_path / "map.logits.tif").unlink()

    with pytest.raises(TargetExistsError):
        predict_raster(network, scene, target, outputs=("labels", "logits"), shard=SHARDS[0], **SETTINGS)


@pytest.mark.parametrize("settings", [{"overwrite": True}, {"overwrite": True, "restart": True}], ids=str)
def test_a_launch_that_overwrites_makes_the_same_map_anew(
    network: nn.Module, scene: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    target = tmp_path / "map.tif"
    shards(network, scene, target)
    made = target.read_bytes()
    with rasterio.open(target, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as map_:
        map_.write(1 - labels_in(target), 1)  # its tags stay
    assert target.read_bytes() != made

    first, last = shards(network, scene, target, **settings)

    assert (first.missing_strips > 0, sum(last.class_pixels)) == (True, 64 * 48)
    assert target.read_bytes() == made
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("settings", [{}, {"overwrite": True}, {"overwrite": True, "restart": True}], ids=str)
def test_shards_without_strips_that_come_last_leave_the_map_alone(
    network: nn.Module, scene: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    target = tmp_path / "map.tif"
    strips = [Shard(index, 6) for index in range(6)]
    own = [shard for shard in strips if shard.of(range(4), contiguous=True)]
    for shard in own:
        predict_raster(network, scene, target, shard=shard, **SETTINGS, **settings)
    made, time = target.read_bytes(), target.stat().st_mtime_ns

    late = [
        predict_raster(network, scene, target, shard=shard, **SETTINGS, **settings)
        for shard in strips
        if shard not in own
    ]

    assert [(one.missing_strips, one.class_pixels) for one in late] == [(0, ())] * 2
    assert (target.read_bytes(), target.stat().st_mtime_ns) == (made, time)
    assert hidden(tmp_path) == []


def test_copies_of_a_raster_get_the_same_bytes(network: nn.Module, scene: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    copy = Path(shutil.copyfile(scene, tmp_path / "elsewhere" / "copy.tif"))
    os.utime(copy, ns=(1, 1))

    assert expected(network, copy, tmp_path / "a") == expected(network, scene, tmp_path / "b")


def test_statistics_that_a_viewer_leaves_beside_a_raster_change_nothing(
    network: nn.Module, scene: Path, tmp_path: Path
) -> None:
    before = expected(network, scene, tmp_path / "before")
    run_until(network, scene, tmp_path / "map.tif", strips=2)
    Path(f"{scene}.aux.xml").write_text("<PAMDataset><Metadata/></PAMDataset>")

    predict_raster(network, scene, tmp_path / "map.tif", **SETTINGS)

    assert (tmp_path / "map.tif").read_bytes() == before


def test_strips_of_a_vrt_whose_files_have_changed_are_refused(network: nn.Module, scene: Path, tmp_path: Path) -> None:
    rasterio.shutil.copy(scene, tmp_path / "scene.vrt", driver="VRT")
    run_until(network, tmp_path / "scene.vrt", tmp_path / "map.tif", strips=2)
    repaint(scene)

    with pytest.raises(InvalidConfigError, match="its source's time is"):
        predict_raster(network, tmp_path / "scene.vrt", tmp_path / "map.tif", **SETTINGS)


# --- other networks ---------------------------------------------------------------------------------


def test_strips_of_a_network_of_another_structure_are_refused(scene: Path, tmp_path: Path) -> None:
    one, other = (
        with_random_values(
            UNet(3, 2, norm=partial(LocalContextNorm, window_px=9, group_size=group_size), depth=1, width=8)
        ).eval()
        for group_size in (8, 1)
    )
    run_until(one, scene, tmp_path / "map.tif", strips=2)

    with pytest.raises(InvalidConfigError, match=r"its network\.encoder\.0\.1\.group_size is 8, here it is 1\. Run"):
        predict_raster(other, scene, tmp_path / "map.tif", **SETTINGS)


# --- one file for two -------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("source", "target", "settings", "words"),
    [
        ("z.probabilities.tif", "z.tif", {"outputs": ("labels", "probabilities")}, "the probabilities of .*z.tif, but"),
        ("pic.gpkg", "pic.tif", {"vectors": "gpkg"}, "the polygons of .*pic.tif, but"),
        ("z.tif", "w.gpkg", {"vectors": "gpkg"}, "the labels of .*w.gpkg and the polygons of"),
        ("mosaic.vrt", "part.tif", {}, "the labels of .*part.tif, but it is the file .*part.tif that is to be read"),
        ("masked.tif", "masked.tif.msk", {}, "the labels of .*, but it is the file .*masked.tif.msk"),
        ("/vsizip/{folder}/z.zip/z.tif", "z.zip", {}, "but it is the file .*z.zip"),
        ("linked.tif", "z.tif", {}, "it cannot be the target too"),
    ],
    ids=str,
)
@pytest.mark.parametrize("more", [{}, {"overwrite": True}, {"shard": SHARDS[1], "overwrite": True}], ids=str)
def test_a_file_that_is_read_or_made_already_is_no_target(
    network: nn.Module,
    tmp_path: Path,
    source: str,
    target: str,
    settings: dict[str, Any],
    words: str,
    more: dict[str, Any],
) -> None:
    z = draw(tmp_path / "z.tif", noise(3, 64, 48))
    for name, driver in (("part.tif", "GTiff"), ("masked.tif", "GTiff"), ("z.probabilities.tif", "GTiff")):
        rasterio.shutil.copy(z, tmp_path / name, driver=driver)
    with rasterio.open(z) as one, rasterio.open(tmp_path / "pic.gpkg", "w", **{**one.profile, **GPKG}) as new:
        new.write(one.read())
    rasterio.shutil.copy(tmp_path / "part.tif", tmp_path / "mosaic.vrt", driver="VRT")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(tmp_path / "masked.tif", "r+") as masked:
        masked.write_mask(True)
    shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path, "z.tif")
    (tmp_path / "linked.tif").symlink_to(z)
    if source != "z.probabilities.tif":
        (tmp_path / "z.probabilities.tif").unlink()
    name, before = source.format(folder=tmp_path), contents(tmp_path)

    exists = (tmp_path / target).exists() and "overwrite" not in more
    with pytest.raises(GeonormError, match="exists|" + words if exists else words) as caught:
        predict_raster(
            network, name if name.startswith("/vsi") else tmp_path / name, tmp_path / target, **settings, **more
        )

    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["a.probabilities.tif", "A.Probabilities.tif"])
@pytest.mark.parametrize("apart", [False, True], ids=["neighbours", "apart"])
def test_maps_of_a_folder_that_would_be_one_file_are_refused_before_any_is_made(
    network: nn.Module, tmp_path: Path, name: str, apart: bool
) -> None:
    (tmp_path / "in").mkdir()
    draw(tmp_path / "in" / "a.tif", noise(3, 64, 48), first_index=(0, 0))
    draw(tmp_path / "in" / name, noise(3, 64, 48), first_index=(0, 4800 if apart else 48))
    options = Options(outputs=("labels", "probabilities"), overwrite=True)

    with pytest.raises(InvalidConfigError, match=r"(?i)would be the .*a.*\.tif and the .* of .*Choose another name"):
        predict_rasters(network, [tmp_path / "in"], tmp_path / "out", options)

    assert names_in(tmp_path / "out") == []
    predict_rasters(network, [tmp_path / "in"], tmp_path / "out", Options(outputs=("labels",)))
    assert names_in(tmp_path / "out") == sorted(["a.tif", name])


def test_maps_of_a_folder_do_not_replace_another_ones_source(network: nn.Module, tmp_path: Path) -> None:
    there = draw(tmp_path / "b.probabilities.tif", noise(3, 64, 48), first_index=(0, 0))
    (tmp_path / "in").mkdir()
    other = draw(tmp_path / "in" / "b.tif", noise(3, 64, 48), first_index=(9000, 0))
    before = contents(tmp_path)

    with pytest.raises(RasterError, match=r"the probabilities of .* that is to be read"):
        predict_rasters(network, [other, there], tmp_path, Options(outputs=("labels", "probabilities"), overwrite=True))

    assert contents(tmp_path) == before


def test_the_polygons_of_an_area_are_not_replaced(
    checkpoint: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(checkpoint), str(scene), str(tmp_path / "first.tif"), "--vectors", "gpkg"]) == 0
    field = (tmp_path / "first.gpkg").rename(tmp_path / "field.gpkg")
    before = field.read_bytes()

    code = main(
        [
            *("predict", str(checkpoint), str(scene), str(tmp_path / "field.tif"), "--area", str(field)),
            *("--vectors=gpkg", "--overwrite"),
        ]
    )

    assert code != 0
    assert "the polygons of" in capsys.readouterr().err
    assert field.read_bytes() == before
    with sqlite3.connect(field) as content:
        assert content.execute("select count(*) from gpkg_contents").fetchone() == (1,)


def test_the_checkpoint_is_not_replaced(checkpoint: Path, scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = checkpoint.read_bytes()

    assert main(["predict", str(checkpoint), str(scene), str(checkpoint), "--overwrite"]) != 0
    assert "is the checkpoint" in capsys.readouterr().err
    with pytest.raises(RasterError, match="that is to be read"):
        predict_raster(checkpoint, scene, checkpoint, overwrite=True)
    assert checkpoint.read_bytes() == before
