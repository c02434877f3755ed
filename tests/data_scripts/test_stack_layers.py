"""Several layers of a tile read as one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from stack_layers import main

from geonorm.data.drawn_land import write_chesapeake_layout

PLACE = Affine(1, 0, 400_000, 0, -1, 4_300_000)


def draw(path: Path, bands: int, dtype: str, *, place: Affine = PLACE, seed: int = 0) -> None:
    shape = {"count": bands, "height": 60, "width": 90, "dtype": dtype, "crs": "EPSG:26918", "transform": place}
    values = np.random.default_rng(seed).integers(0, 200, (bands, 60, 90))
    with rasterio.open(path, "w", driver="GTiff", **shape) as dataset:
        dataset.write((values if dtype == "uint8" else values * 100 - 3000).astype(dtype))


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_a_stack_holds_the_bands_of_all_layers_in_a_type_that_holds_them(tmp_path: Path) -> None:
    draw(tmp_path / "m_1_naip-new.tif", 4, "uint8")
    draw(tmp_path / "m_1_landsat-leaf-on.tif", 9, "int16", seed=1)

    assert main([str(tmp_path), "--layers", "naip-new", "landsat-leaf-on"]) == 0

    with rasterio.open(tmp_path / "m_1_naip-new+landsat-leaf-on.vrt") as stack:
        expected = [read(tmp_path / f"m_1_{layer}.tif") for layer in ("naip-new", "landsat-leaf-on")]
        assert np.array_equal(stack.read(), np.concatenate(expected))
        assert {*stack.dtypes} == {"int16"}
        assert (stack.crs.to_epsg(), stack.transform) == (26918, PLACE)
        assert stack.descriptions[3:6] == ("naip-new near infrared", "landsat-leaf-on 1", "landsat-leaf-on 2")


def test_the_folder_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for layer in ("naip-new", "naip-old"):
        draw(tmp_path / f"here/m_1_{layer}.tif", 4, "uint8")
    assert main([str(tmp_path), "--layers", "naip-new", "naip-old"]) == 0

    (tmp_path / "here").rename(tmp_path / "there")

    assert read(tmp_path / "there/m_1_naip-new+naip-old.vrt").shape == (8, 60, 90)


def test_every_tile_of_a_data_set_gets_its_stack(tmp_path: Path) -> None:
    root = write_chesapeake_layout(tmp_path, states=["md"], train_tiles=2, size_px=64, seed=0)

    assert main([str(root), "--layers", "naip-new", "landsat-leaf-on", "nlcd"]) == 0

    stacks = sorted(root.rglob("m_*_naip-new+landsat-leaf-on+nlcd.vrt"))
    tiles = sorted(path for path in root.glob("md_*/*_naip-new.tif"))
    assert [stack.name.partition("_naip")[0] for stack in stacks if "md_" in str(stack)] == [
        tile.name.partition("_naip")[0] for tile in tiles
    ]
    assert read(stacks[0]).shape[0] == 4 + 9 + 1


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["naip-new"], "--layers must name two layers or more"),
        (["naip-new", "naip-new"], "each once, got naip-new naip-new"),
        (["naip-old", "nlcd"], "holds no tile"),
        (["naip-new", "nlcd"], "1 layers are not there: "),
        (["naip-new", "moved"], "moved.tif has another grid than m_1_naip-new.tif: 90 x 60 px from 400001, "),
        (["naip-new", "broken"], "m_1_broken.tif cannot be read"),
    ],
)
def test_what_cannot_be_stacked_is_one_line_and_leaves_nothing(
    layers: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "m_1_naip-new.tif", 4, "uint8")
    draw(tmp_path / "m_1_moved.tif", 1, "uint8", place=PLACE @ Affine.translation(1, 0))
    (tmp_path / "m_1_broken.tif").write_bytes(b"II*\0")

    code = main([str(tmp_path), "--layers", *layers])

    assert code == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("*.vrt*"))
