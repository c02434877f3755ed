"""Land cover in the layout of Chesapeake Land Cover: which tiles, which labels, and what is said of missing ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from stack_layers import main as stack_layers

from geonorm.data import ChesapeakeDataModule
from geonorm.data.pairs import open_pair
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import DatasetError, InvalidConfigError
from geonorm.raster.window import Window

SIDE = 48
YEARS = {"md": 2013, "va": 2014}
EPSG = {"md": 26918, "va": 26917}


def noise(bands: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(1, 256, (bands, SIDE, SIDE)).astype(np.uint8)


def cover() -> NDArray[np.uint8]:
    return np.random.default_rng(0).choice(np.array([0, 1, 2, 3, 4, 5, 6, 15], np.uint8), (1, SIDE, SIDE))


def draw(path: Path, values: NDArray[np.uint8], epsg: int) -> None:
    """Write a raster of 1 m, its fourth band tagged as alpha, as those of the data set are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(values), "height": SIDE, "width": SIDE, "dtype": "uint8"}
    place = Affine(1, 0, 300_000, 0, -1, 4_300_000)
    with rasterio.open(path, "w", driver="GTiff", crs=f"EPSG:{epsg}", transform=place, **shape) as dataset:
        if len(values) == 4:
            dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
        dataset.write(values)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two states; their splits have two, one and one tiles."""
    root = tmp_path_factory.mktemp("data")
    for state, year in YEARS.items():
        for split, count in (("train", 2), ("val", 1), ("test", 1)):
            folder = root / "cvpr_chesapeake_landcover" / f"{state}_1m_{year}_extended-debuffered-{split}_tiles"
            for number in range(count):
                tile = f"m_{state}{split}{number}_ne_18_1"
                draw(folder / f"{tile}_naip-new.tif", noise(4, number), EPSG[state])
                draw(folder / f"{tile}_naip-old.tif", noise(4, 10 + number), EPSG[state])
                draw(folder / f"{tile}_lc.tif", cover(), EPSG[state])
                draw(folder / f"{tile}_nlcd.tif", cover(), EPSG[state])
    return root


def module(root: Path, **settings: Any) -> ChesapeakeDataModule:
    return ChesapeakeDataModule(root, **{"patch_px": 32, "batch_size": 4, "num_workers": 0, **settings})


@pytest.mark.parametrize("part", ["", "cvpr_chesapeake_landcover"])
def test_the_splits_are_those_of_the_folders(root: Path, part: str) -> None:
    pairs = module(root / part).pairs

    assert {split: len(some) for split, some in pairs.items()} == {"train": 2, "val": 1, "test": 1}
    assert all(pair.image.endswith("_naip-new.tif") and pair.labels.endswith("_lc.tif") for pair in pairs["train"])
    assert all(Path(pair.labels).name[:16] == Path(pair.image).name[:16] for pair in pairs["train"])


def test_a_network_may_be_tested_on_other_states_than_it_was_trained_on(root: Path) -> None:
    data = module(root, train_states=["md"], test_states=["va", "md"], imagery="naip-old")
    data.setup("test")

    found = [batch["pair"] for batch in data.test_dataloader()]

    assert [pair.group for pair in found] == ["va", "md"]
    assert all(pair.image.endswith("_naip-old.tif") for pair in found)


def test_land_cover_becomes_four_classes_and_the_rest_does_not_count(root: Path) -> None:
    [pair] = module(root).pairs["val"]

    with open_pair(pair) as files:
        found = files.read_labels(Window(0, 0, SIDE, SIDE))
        image = files.read(Window(0, 0, SIDE, SIDE))

    label = {0: IGNORE_LABEL, 1: 0, 2: 1, 3: 2, 4: 3, 5: 3, 6: 3, 15: IGNORE_LABEL}
    np.testing.assert_array_equal(found, np.vectorize(label.__getitem__)(cover()[0]))
    np.testing.assert_array_equal(image.values, noise(4, 0))
    assert image.valid.all()


def test_patches_have_four_bands_and_the_facts_are_measured(root: Path) -> None:
    data = module(root, patches_per_epoch=8)
    data.setup("fit")

    batch = next(iter(data.train_dataloader()))

    assert batch["image"].shape == (4, 4, 32, 32)
    assert {*batch["mask"].unique().tolist()} <= {0, 1, 2, 3, IGNORE_LABEL}
    assert data.spec.bands[3] == "near infrared"
    assert data.spec.band_means == pytest.approx([128] * 4, rel=0.05)
    assert data.spec.resolution_m == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_states": ["tx"]}, "train_states must be some of de, md, ny, pa, va, wv, got tx"),
        ({"test_states": ["md", "MD"]}, "test_states must be some of .* got MD"),
    ],
)
def test_a_state_that_is_not_there_is_refused(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        module(root, **settings)


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no folder ny_1m_\*_extended-debuffered-train_tiles"):
        _ = module(root, train_states=["ny"]).pairs
    with pytest.raises(DatasetError, match="does not exist"):
        _ = module(tmp_path / "nowhere").pairs

    folder = tmp_path / "md_1m_2013_extended-debuffered-train_tiles"
    draw(folder / "m_1_naip-new.tif", noise(4, 0), 26918)
    with pytest.raises(DatasetError, match=r"1 of 1 images in .* have no land cover .*: m_1_naip-new\.tif"):
        _ = module(tmp_path).pairs


def test_a_stack_of_layers_is_an_image_of_all_their_bands(root: Path) -> None:
    assert stack_layers([str(root), "--layers", "naip-new", "naip-old"]) == 0

    data = module(root, train_states=["md"], imagery="naip-new+naip-old")

    pair = data.pairs["train"][0]
    with open_pair(pair) as files:
        found = files.read(Window(0, 0, SIDE, SIDE))
    assert data.spec.bands[3:5] == ("naip-new near infrared", "naip-old red")
    assert len(data.spec.band_means or ()) == 8
    assert np.array_equal(found.values, np.concatenate([noise(4, 0), noise(4, 10)]))
    assert found.valid.all()  # a band that is read is data, whatever its tag says
    assert pair.labels.endswith("train0_ne_18_1_lc.tif")


def test_any_layer_of_the_tiles_is_an_image(root: Path) -> None:
    data = module(root, train_states=["md"], imagery="nlcd")

    assert data.spec.bands == ("band 1",)
    assert all(pair.bands == (1,) and pair.image.endswith("_nlcd.tif") for pair in data.pairs["test"])


def test_a_layer_that_is_not_there_is_one_line(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no \*_radar\.tif in md_1m_2013"):
        module(root, train_states=["md"], imagery="radar").setup("fit")
