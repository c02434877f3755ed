"""Anybody's own files: what is found, which split it is in, and what is said where something is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import geopandas  # type: ignore[import-untyped]
import numpy as np
import pytest
import rasterio
import shapely  # type: ignore[import-untyped]
import torch
from affine import Affine
from numpy.typing import NDArray

from geonorm.cli import main
from geonorm.data import RastersDataModule
from geonorm.data.pairs import open_pair
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import DatasetError, InvalidConfigError
from geonorm.raster.window import Window
from tests.tasks.trainings import QUIET

pytestmark = QUIET

SIDE = 64
CLASSES: dict[str, list[int | float | str]] = {"ground": [0], "house": [1, 255], "water": [2]}


def draw(path: Path, values: NDArray[Any], *, col: int = 0) -> Path:
    """Write a raster (C, H, W) so many pixels to the east."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    place = Affine(0.3, 0, 400_000 + 0.3 * col, 0, -0.3, 5_300_000)
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=place, **shape) as dataset:
        dataset.write(values)
    return path


def noise(bands: int = 3, dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(0).integers(1, 200, (bands, SIDE, SIDE)).astype(dtype)


def random_labels() -> NDArray[np.uint8]:
    return np.random.default_rng(1).choice(np.array([0, 1, 2, 255], np.uint8), (1, SIDE, SIDE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images a to d from west to east, and their labels."""
    for number, name in enumerate("abcd"):
        draw(tmp_path / "images" / f"{name}.tif", noise(), col=number * SIDE)
        draw(tmp_path / "labels" / f"{name}.tif", random_labels(), col=number * SIDE)
    return tmp_path


def module(folder: Path, **settings: Any) -> RastersDataModule:
    usual: dict[str, Any] = {"images": str(folder / "images"), "labels": str(folder / "labels"), "num_workers": 0}
    if "table" in settings:
        usual = {"num_workers": 0}
    if not {"val_names", "val_share", "regions", "table"} & {*settings}:
        usual["val_names"] = ["d"]
    return RastersDataModule(**{"classes": CLASSES, "patch_px": 32, **usual, **settings})


def names(data: RastersDataModule) -> dict[str, list[str]]:
    return {split: [pair.name for pair in pairs] for split, pairs in data.pairs.items()}


@pytest.mark.parametrize("labels", ["labels", "labels/{name}.tif"])
@pytest.mark.parametrize("images", ["images", "images/*.tif", "*/[abcd].tif"])
def test_images_and_labels_are_found_by_name(
    folder: Path, images: str, labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if images.startswith("*"):
        images = "image?/[abcd].tif"
    monkeypatch.chdir(folder)

    data = module(folder, images=images, labels=labels)

    assert names(data) == {"train": ["a", "b", "c"], "val": ["d"], "test": []}
    for pair in data.pairs["train"]:
        assert Path(pair.labels).resolve() == folder / "labels" / Path(pair.image).name


def test_labels_are_those_of_the_class_map(folder: Path) -> None:
    [pair] = module(folder).pairs["val"]

    with open_pair(pair) as files:
        found = files.read_labels(Window(0, 0, SIDE, SIDE))

    raw = random_labels()[0]
    np.testing.assert_array_equal(found, np.where(raw == 255, 1, raw))


def test_the_facts_are_those_of_the_settings(folder: Path) -> None:
    data = module(folder, scored_classes=["house"], colors={"house": [1, 2, 3]}, bands=[3, 1], band_names=["b", "r"])

    spec = data.spec

    assert (spec.bands, spec.class_names, spec.scored_classes) == (("b", "r"), ("ground", "house", "water"), (1,))
    assert spec.class_colors[1] == (1, 2, 3)
    assert len({*spec.class_colors}) == 3
    assert spec.resolution_m == pytest.approx(0.3, rel=1e-3)
    assert spec.band_means == pytest.approx(noise()[[2, 0]].mean((1, 2)), rel=0.05)


def test_one_file_of_polygons_serves_all_images(folder: Path) -> None:
    left, top = 400_000, 5_300_000
    shape = shapely.box(left + 0.3 * 10, top - 0.3 * 20, left + 0.3 * 150, top)  # columns 10 to 150 of all images
    geopandas.GeoDataFrame({"kind": ["house"]}, geometry=[shape], crs="EPSG:32633").to_file(folder / "all.gpkg")

    data = module(
        folder,
        labels=str(folder / "all.gpkg"),
        classes={"ground": ["none"], "house": ["house"]},
        attribute="kind",
        val_names=["b"],
    )

    for pair, first, last in zip(
        [*data.pairs["train"], *data.pairs["val"]], (10, 0, 0, 0), (64, 22, 0, 64), strict=True
    ):
        with open_pair(pair) as files:
            found = files.read_labels(Window(0, 0, SIDE, SIDE))
        expected = np.zeros((SIDE, SIDE), np.uint8)
        expected[:20, first:last] = 1
        np.testing.assert_array_equal(found, expected, err_msg=pair.name)


# Splits


def test_a_share_is_drawn_with_the_seed(folder: Path) -> None:
    drawn = {tuple(names(module(folder, val_share=0.5, seed=seed))["val"]) for seed in range(12)}

    assert all(len(some) == 2 for some in drawn)
    assert len(drawn) > 2
    assert names(module(folder, val_share=0.25, seed=3)) == names(module(folder, val_share=0.25, seed=3))


def test_names_choose_validation_and_testing(folder: Path) -> None:
    data = module(folder, val_names=["a"], test_names=["c"])

    assert names(data) == {"train": ["b", "d"], "val": ["a"], "test": ["c"]}
    data.setup("test")
    assert [batch["pair"].name for batch in data.test_dataloader()] == ["c"]


def test_regions_on_the_ground_choose(folder: Path) -> None:
    left, top = 400_000, 5_300_000
    shapes = [shapely.box(left + 0.3 * a, top - 20, left + 0.3 * b, top) for a, b in ((0, 90), (90, 200), (200, 256))]
    frame = geopandas.GeoDataFrame({"split": ["train", "val", "test"]}, geometry=shapes, crs="EPSG:32633")
    frame.to_crs("EPSG:4326").to_file(folder / "regions.gpkg")

    data = module(folder, regions=str(folder / "regions.gpkg"))

    assert names(data) == {"train": ["a"], "val": ["b", "c"], "test": ["d"]}
    frame.iloc[:2].to_file(folder / "few.gpkg")
    with pytest.raises(DatasetError, match=r"the centre of .*d\.tif lies in no region of .*few\.gpkg"):
        _ = module(folder, regions=str(folder / "few.gpkg")).pairs


def test_a_table_says_it_all(folder: Path) -> None:
    rows = ["image,labels,split,group"]
    rows += [
        f"images/{name}.tif,labels/{name}.tif,{split},{group}"
        for name, split, group in (
            ("a", "train", "north"),
            ("b", "val", "north"),
            ("c", "test", "south"),
            ("d", "", "south"),
        )
    ]
    (folder / "table.csv").write_text("\n".join(rows) + "\n")

    data = module(folder, table=str(folder / "table.csv"))

    assert names(data) == {"train": ["a", "d"], "val": ["b"], "test": ["c"]}
    assert data.pairs["test"][0].group == "south"


# What is wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": "nowhere"}, "images: there is no raster at nowhere"),
        ({"labels": "nowhere"}, "labels: nowhere is no folder, no file of polygons, and no pattern"),
        ({"labels": "{name}_gt.tif"}, r"there is no label file a_gt\.tif"),
        ({"val_names": ["x"]}, r"no image is named x\. There: a, b, c, d"),
        ({"val_names": ["a", "b", "c", "d"]}, "no image is left for train"),
        ({"val_names": []}, "no image is left for val"),
        ({"table": "nowhere.csv"}, "nowhere.csv cannot be read as a table"),
    ],
)
def test_files_that_are_missing_are_named(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        _ = module(folder, **settings).pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the column image and labels; there is no row"),
        ("image;labels\na;b\n", "lacks the column image and labels; there is image;labels"),
        ("image,labels,split\nimages/a.tif,labels/a.tif,valid\n", "line 2 of .* split must be train, val or test"),
        ("image,labels\nimages/a.tif,\n", "line 2 of .* names no labels"),
        ("image,labels\nimages/x.tif,labels/a.tif\n", r"there is no image .*x\.tif"),
        ("image,labels\n" + "images/a.tif,labels/a.tif\n" * 2, "lines 2 and 3 of .* both name .*a.tif"),
    ],
)
def test_a_table_that_is_wrong_says_where(folder: Path, text: str, message: str) -> None:
    (folder / "table.csv").write_text(text)

    with pytest.raises(DatasetError, match=message):
        _ = module(folder, table=str(folder / "table.csv")).pairs


def test_an_image_needs_one_label_file(folder: Path) -> None:
    (folder / "labels" / "b.gpkg").touch()
    with pytest.raises(DatasetError, match=r"b\.tif needs one label file .*; there are b\.gpkg, b\.tif"):
        _ = module(folder).pairs

    (folder / "labels" / "b.gpkg").unlink()
    (folder / "labels" / "b.tif").unlink()
    with pytest.raises(DatasetError, match=r"b\.tif needs one label file .*; there is none"):
        _ = module(folder).pairs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"table": "a.csv", "images": "b", "labels": "c"}, "give images and labels, or a table"),
        ({"labels": None}, "give images and labels, or a table"),
        ({"val_share": 0.5, "val_names": ["a"]}, "give one of them"),
        ({"val_share": 1.5}, "val_share must be between 0 and 1"),
        ({"scored_classes": ["roof"]}, "scored_classes: no class is named roof; there are ground, house, water"),
        ({"background": "sky"}, "background: no class is named sky"),
        ({"colors": {"house": [1, 2]}}, "colors: house must have red, green and blue"),
        ({"band_names": ["one"]}, "3 bands need as many band_names, got 1"),
        ({"classes": {"a": [0], "b": [0]}}, "each value means one class, got 0 twice"),
        ({"patch_px": 0}, "patch_px must be at least 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        module(folder, **settings)


# Training


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_patches_hold_raw_values_and_labels_of_the_class_map(tmp_path: Path, dtype: str) -> None:
    image = noise(4, dtype)
    for name in "ab":
        draw(tmp_path / "images" / f"{name}.tif", image)
        draw(tmp_path / "labels" / f"{name}.tif", random_labels())
    data = module(
        tmp_path, val_names=["b"], bands=[4, 1], patch_px=SIDE, ignored=[2], classes={"a": [0], "b": [1, 255]}
    )
    data.setup("fit")

    batch = next(iter(data.train_dataloader()))

    raw = random_labels()[0]
    assert batch["image"].shape == (8, 2, SIDE, SIDE)
    np.testing.assert_array_equal(batch["image"][0].numpy(), image[[3, 0]])
    expected = np.where(raw == 255, 1, np.where(raw == 2, IGNORE_LABEL, raw))
    np.testing.assert_array_equal(batch["mask"][0].numpy(), expected)
    assert torch.isfinite(torch.tensor(data.spec.band_means)).all()


def test_a_network_trains_on_them_from_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["geonorm"])  # LightningCLI warns of arguments beside its own
    words = ["fit", "--data", "geonorm.data.RastersDataModule", "--data.images", str(folder / "images")]
    words += ["--data.labels", str(folder / "labels"), "--data.classes", "{ground: [0], house: [1, 255], water: [2]}"]
    words += ["--data.val_names", "[d]", "--data.num_workers", "0", "--data.patch_px", "32", "--data.batch_size", "2"]
    words += ["--data.patches_per_epoch", "4", "--model.norm", "geonorm.norms.GroupNorm", "--model.norm.group_size=4"]
    words += ["--model.network", "geonorm.models.UNet", "--model.network.depth=1", "--model.network.width=4"]
    words += [
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        f"--trainer.default_root_dir={tmp_path / 'runs'}",
    ]

    assert main(words) == 0

    [checkpoint] = (tmp_path / "runs").rglob("best.ckpt")
    assert main(["predict", str(checkpoint), str(folder / "images" / "a.tif"), str(tmp_path / "map.tif")]) == 0
    with rasterio.open(tmp_path / "map.tif") as made:
        assert made.tags()["class_names"] == '["ground", "house", "water"]'
