"""Folders of building masks: layouts, splits, statistics, batches, and what is wrong with a folder."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from torch import Tensor

from geonorm.data import InriaDataModule
from geonorm.data.inria import city_of, find_pairs
from geonorm.data.pairs import Pair
from geonorm.data.patches import turned
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import DatasetError, GeonormWarning, InvalidConfigError
from geonorm.raster.read import open_raster
from geonorm.tiling.engine import predict_whole
from geonorm.tiling.plan import Plan

HEIGHT, WIDTH = 60, 90
PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)
CITIES = ("austin", "chicago", "kitsap", "tyrol-w", "vienna")


def draw(path: Path, values: NDArray[Any], *, pixel_m: float = 0.3, **options: Any) -> Path:
    """Write a raster (C, H, W) with rasterio alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    place = PLACE @ Affine.scale(pixel_m / 0.3)
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=place, **shape, **options) as dataset:
        dataset.write(values)
    return path


def draw_pair(folder: Path, name: str, image: NDArray[Any] | None = None, *, on: int = 255, **options: Any) -> None:
    """Write an image and its mask, random both unless the image is given."""
    random = np.random.default_rng(0)
    image = random.integers(1, 256, (3, HEIGHT, WIDTH)).astype(np.uint8) if image is None else image
    draw(folder / "images" / f"{name}.tif", image, **options)
    draw(folder / "gt" / f"{name}.tif", (random.integers(0, 2, (1, *image.shape[1:])) * on).astype(np.uint8))


def touch_pairs(folder: Path, *names: str) -> Path:
    """Make files that have names alone, and return their folder."""
    for part, name in itertools.product(("images", "gt"), names):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / f"{name}.tif").touch()
    return folder


def split_names(root: Path | list[Path], **settings: Any) -> dict[str, list[str]]:
    pairs = InriaDataModule(root, **settings).pairs
    return {split: [pair.name for pair in members] for split, members in pairs.items()}


def trained_on(image: NDArray[Any], folder: Path, **settings: Any) -> InriaDataModule:
    """Return a data module that trains on one image and validates on another."""
    options = {key: settings.pop(key) for key in ("nodata", "pixel_m") if key in settings}
    draw_pair(folder, "austin6", image, **options)
    draw_pair(folder, "austin1")
    return InriaDataModule(
        folder, **{"patch_px": 32, "batch_size": 4, "patches_per_epoch": 8, "num_workers": 0} | settings
    )


# Layouts and splits


@pytest.mark.parametrize(
    ("layout", "root"),
    [
        ("AerialImageDataset/train", "."),
        ("AerialImageDataset/train", "AerialImageDataset"),
        ("AerialImageDataset/train", "AerialImageDataset/train"),
        ("train", "."),
        (".", "."),
    ],
)
def test_images_are_found_in_every_layout(tmp_path: Path, layout: str, root: str) -> None:
    folder = touch_pairs(tmp_path / layout, "austin1", "vienna7")

    pairs = find_pairs(tmp_path / root)

    assert [Path(pair.image) for pair in pairs] == [folder / "images" / f"{n}.tif" for n in ("austin1", "vienna7")]
    assert [Path(pair.labels) for pair in pairs] == [folder / "gt" / f"{n}.tif" for n in ("austin1", "vienna7")]
    assert [pair.group for pair in pairs] == ["austin", "vienna"]


def test_several_folders_are_taken_together(tmp_path: Path) -> None:
    folders = [touch_pairs(tmp_path / "one", "austin1", "austin7"), touch_pairs(tmp_path / "two", "vienna8")]

    assert split_names(folders) == {"train": ["austin7", "vienna8"], "val": ["austin1"]}


def test_only_geotiffs_are_images_and_masks_without_an_image_do_no_harm(tmp_path: Path) -> None:
    touch_pairs(tmp_path, "austin1", "austin6")
    for name in ("images/austin6.tfw", "images/austin7.png", "images/notes.txt", "gt/austin9.tif"):
        (tmp_path / name).touch()
    (tmp_path / "images/vienna8.TIFF").touch()
    (tmp_path / "gt/vienna8.tiff").touch()

    assert [pair.name for pair in find_pairs(tmp_path)] == ["austin1", "austin6", "vienna8"]


@pytest.mark.parametrize("root", ["data", "data2/austin6", "5/vienna3"])
def test_tiles_1_to_5_of_each_city_validate_whatever_the_folders_are_called(tmp_path: Path, root: str) -> None:
    names = [f"{city}{number}" for city in CITIES for number in range(1, 37)]

    splits = split_names(touch_pairs(tmp_path / root, *names))

    assert sorted(splits["val"]) == sorted(f"{city}{number}" for city in CITIES for number in range(1, 6))
    assert sorted(splits["train"] + splits["val"]) == sorted(names)


def test_named_images_validate_and_all_others_train(tmp_path: Path) -> None:
    folder = touch_pairs(tmp_path, "austin1", "austin2", "nairobi", "zanzibar1")

    splits = split_names(folder, val_names=["nairobi", "austin2"])

    assert splits == {"train": ["austin1", "zanzibar1"], "val": ["austin2", "nairobi"]}


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["site2", "site7", "site8"], 1),
        (["field1", "field2", "plot1", "plot2"], 1),  # INRIA's rule would leave none to train on
        ([f"n{number}" for number in range(40)], 8),
        (["austin1", "austin7", "my_own"], 1),
    ],
)
def test_of_images_of_ones_own_a_fifth_validates_and_is_named(tmp_path: Path, names: list[str], count: int) -> None:
    data = InriaDataModule(touch_pairs(tmp_path, *names))

    val = {pair.name for pair in data.pairs["val"]}

    assert len(val) == count
    assert {pair.name for pair in data.pairs["train"]} == {*names} - val
    assert split_names(tmp_path, seed=5)["val"] == sorted(val)
    [told] = data._told
    assert (told.severity, told.kind) == ("warning", "validation by lot")
    assert told.text.startswith(f"val_names is not given, so {count} of the {len(names)} images")
    assert "--data.val_names" in told.text
    assert all(name in told.text for name in val)


def test_named_images_and_inrias_own_are_not_drawn_and_nothing_is_said(tmp_path: Path) -> None:
    own = InriaDataModule(touch_pairs(tmp_path / "own", "site1", "site2"), val_names=["site2"])
    official = InriaDataModule(touch_pairs(tmp_path / "official", "austin1", "tyrol-w7"))
    drawn = InriaDataModule(touch_pairs(tmp_path / "AerialImageDataset/train", "alder5", "alder6").parent)

    for data, val in ((own, "site2"), (official, "austin1"), (drawn, "alder5")):
        assert [pair.name for pair in data.pairs["val"]] == [val]
        assert data._told == []


def test_a_city_without_a_training_tile_is_told_with_the_rule(tmp_path: Path) -> None:
    assert "tiles 1 to 5 of each city are for validation" in problem(touch_pairs(tmp_path, "austin1", "vienna2"))


@pytest.mark.parametrize(
    ("stem", "city"),
    [
        *((f"{city}{number}", city) for city in CITIES for number in (1, 36)),
        ("austin3_45", "austin"),
        ("new_york_12", "new_york"),
        ("zanzibar", "zanzibar"),
        ("12", "12"),
    ],
)
def test_a_city_is_what_stands_before_the_number(stem: str, city: str) -> None:
    assert city_of(stem) == city


# What is wrong with a folder


def problem(root: Path | list[Path], **settings: Any) -> str:
    """Return what is said of a folder, which must be one line."""
    with pytest.raises(DatasetError) as error:
        InriaDataModule(root, **settings).pairs  # noqa: B018 - reading it finds the files
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert problem(tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere'} does not exist")


def test_one_missing_folder_of_several_is_named(tmp_path: Path) -> None:
    assert problem([touch_pairs(tmp_path, "austin1", "austin6"), tmp_path / "nowhere"]).startswith(
        f"{tmp_path}/nowhere"
    )


def test_an_empty_folder_is_named_with_what_it_should_hold(tmp_path: Path) -> None:
    message = problem(tmp_path)

    assert str(tmp_path) in message
    assert "images/" in message


def test_a_folder_of_no_geotiffs_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "austin1.png").touch()

    assert problem(tmp_path).startswith(f"{tmp_path / 'images'} holds no GeoTIFF")


def test_images_without_masks_are_named(tmp_path: Path) -> None:
    touch_pairs(tmp_path, "austin1", "austin6", "vienna7")
    (tmp_path / "gt/austin6.tif").unlink()
    (tmp_path / "gt/vienna7.tif").unlink()

    message = problem(tmp_path)

    assert message.startswith(f"2 of 3 images in {tmp_path / 'images'} have no mask")
    assert message.endswith("austin6, vienna7.")


def test_of_very_many_images_without_masks_only_some_are_named(tmp_path: Path) -> None:
    touch_pairs(tmp_path, *(f"austin{number}" for number in range(100, 200)))
    for mask in (tmp_path / "gt").iterdir():
        mask.unlink()

    assert len(problem(tmp_path)) < 500 + 2 * len(str(tmp_path))


def test_names_to_validate_on_that_are_not_there_are_named(tmp_path: Path) -> None:
    message = problem(touch_pairs(tmp_path, "austin1", "austin6"), val_names=["austin6", "paris3"])

    assert "paris3" in message.split("There:")[0]
    assert "austin1" in message.split("There:")[1]


@pytest.mark.parametrize(
    ("names", "val_names", "empty"),
    [
        (["austin1", "vienna2"], None, "train"),
        (["austin6", "vienna7"], None, "val"),
        (["austin6"], ["austin6"], "train"),
        (["austin6"], [], "val"),
    ],
)
def test_a_split_with_nothing_in_it_is_named(
    tmp_path: Path, names: list[str], val_names: list[str] | None, empty: str
) -> None:
    message = problem(touch_pairs(tmp_path, *names), val_names=val_names)

    assert message.startswith(f"No image is left for {empty} ")
    assert "--data.val_names" in message


@pytest.mark.parametrize(
    "settings", [{"patch_px": 0}, {"batch_size": 0}, {"patches_per_epoch": -1}, {"num_workers": -1}, {"seed": -1}]
)
def test_a_number_out_of_range_is_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfigError, match=f"{next(iter(settings))} must"):
        InriaDataModule(tmp_path, **settings)


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    data = trained_on(np.ones((3, 40, 40), np.uint8), tmp_path)
    draw(tmp_path / "gt/austin6.tif", np.zeros((1, 40, 41), np.uint8))

    with pytest.raises(DatasetError, match=r"gt/austin6\.tif is 40 x 41 pixels"):
        data.setup("fit")


def test_a_mask_with_another_value_is_named(tmp_path: Path) -> None:
    data = trained_on(np.ones((3, 40, 40), np.uint8), tmp_path)
    draw(tmp_path / "gt/austin6.tif", np.full((1, 40, 40), 7, np.uint8))

    with pytest.raises(DatasetError, match=r"gt/austin6\.tif holds the value 7"):
        data.setup("fit")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # Python 3.12, of torch's workers
def test_what_is_wrong_with_a_mask_is_one_line_from_a_worker_too(tmp_path: Path) -> None:
    data = trained_on(np.ones((3, 40, 40), np.uint8), tmp_path, num_workers=1)
    data.setup("fit")
    draw(tmp_path / "gt/austin6.tif", np.full((1, 40, 40), 7, np.uint8))

    with pytest.raises(DatasetError) as error:
        next(iter(data.train_dataloader()))

    assert str(error.value).startswith(str(tmp_path / "gt/austin6.tif"))


# Statistics and scale


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_statistics_are_numpys_over_the_training_image(tmp_path: Path, dtype: str) -> None:
    image = (
        np.random.default_rng(0).normal([[[90]], [[120]], [[60]]], 20, (3, HEIGHT, WIDTH)).clip(0, 255).astype(dtype)
    )

    spec = trained_on(image, tmp_path).spec

    np.testing.assert_allclose(np.array(spec.band_means), image.mean((1, 2), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(np.array(spec.band_deviations), image.std((1, 2), dtype=np.float64), rtol=1e-6)


def test_large_values_of_little_spread_keep_their_deviation(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(60_000, 60_004, (3, HEIGHT, WIDTH)).astype(np.uint16)

    spec = trained_on(image, tmp_path).spec

    np.testing.assert_allclose(np.array(spec.band_deviations), image.std((1, 2), dtype=np.float64), rtol=1e-4)


def test_a_band_of_one_value_has_a_deviation_to_divide_by(tmp_path: Path) -> None:
    spec = trained_on(np.full((3, HEIGHT, WIDTH), 80, np.uint8), tmp_path).spec

    assert spec.band_means == (80, 80, 80)
    assert min(spec.band_deviations or [0]) > 0


def test_pixels_without_data_do_not_count_in_the_statistics(tmp_path: Path) -> None:
    image = np.full((3, HEIGHT, WIDTH), 80, np.uint8)
    image[:, :30] = 0

    spec = trained_on(image, tmp_path, nodata=0).spec

    assert spec.band_means == (80, 80, 80)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("float32", np.nan)])
def test_values_that_one_band_lacks_do_not_count_in_the_statistics(tmp_path: Path, dtype: str, nodata: float) -> None:
    image = np.full((3, HEIGHT, WIDTH), 80, dtype)
    image[0, :30] = nodata

    spec = trained_on(image, tmp_path, nodata=nodata).spec

    assert spec.band_means == (80, 80, 80)


def test_images_without_a_single_valid_pixel_are_one_clear_line(tmp_path: Path) -> None:
    data = trained_on(np.zeros((3, HEIGHT, WIDTH), np.uint8), tmp_path, nodata=0)

    with pytest.raises(DatasetError, match="no valid pixel"):
        data.spec  # noqa: B018 - reading it measures


def test_statistics_come_from_the_training_images_alone(tmp_path: Path) -> None:
    for name, value in (("austin1", 255), ("austin6", 100), ("austin7", 100)):
        draw_pair(tmp_path, name, np.full((3, HEIGHT, WIDTH), value, np.uint8))

    assert InriaDataModule(tmp_path).spec.band_means == (100, 100, 100)


def test_statistics_are_the_same_whenever_they_are_measured(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 30, 310)).astype(np.uint8)

    assert trained_on(image, tmp_path).spec == InriaDataModule(tmp_path).spec


@pytest.mark.parametrize("pixel_m", [0.3, 1.2])
def test_the_scale_is_that_of_the_training_images(tmp_path: Path, pixel_m: float) -> None:
    spec = trained_on(np.ones((3, 40, 40), np.uint8), tmp_path, pixel_m=pixel_m).spec

    assert spec.resolution_m == pytest.approx(pixel_m)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # rasterio, as it writes the image
def test_the_scale_of_images_without_a_place_is_not_known(tmp_path: Path) -> None:
    shape = {"count": 3, "height": 40, "width": 40, "dtype": "uint8"}
    data = trained_on(np.ones((3, 40, 40), np.uint8), tmp_path)
    with rasterio.open(tmp_path / "images/austin6.tif", "w", driver="GTiff", **shape) as dataset:
        dataset.write(np.ones((3, 40, 40), np.uint8))

    assert data.spec.resolution_m is None


# Batches


def batches(data: InriaDataModule) -> list[dict[str, Tensor]]:
    data.setup("fit")
    return [*data.train_dataloader()]


def test_an_epoch_holds_whole_batches_of_the_asked_for_size(tmp_path: Path) -> None:
    data = trained_on(np.ones((3, HEIGHT, WIDTH), np.uint8), tmp_path, batch_size=3, patches_per_epoch=8)

    shapes = [batch["image"].shape for batch in batches(data)]

    assert shapes == [(3, 3, 32, 32)] * 2


def test_batches_are_those_of_their_seed(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH)).astype(np.uint8)
    one, again, other = (trained_on(image, tmp_path, seed=seed) for seed in (0, 0, 1))

    first, second, third = (torch.stack([batch["image"] for batch in batches(data)]) for data in (one, again, other))

    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_masks_of_0_and_1_train_like_masks_of_0_and_255(tmp_path: Path) -> None:
    masks = []
    for on in (1, 255):
        for name in ("austin1", "austin6"):
            draw_pair(tmp_path / str(on), name, on=on)
        data = InriaDataModule(tmp_path / str(on), patch_px=32, batch_size=4, patches_per_epoch=4, num_workers=0)
        masks += [batch["mask"] for batch in batches(data)]

    assert torch.equal(*masks)
    assert set(masks[0].unique().tolist()) == {0, 1}


def test_validation_names_the_files_of_whole_tiles(tmp_path: Path) -> None:
    data = trained_on(np.ones((3, 40, 40), np.uint8), tmp_path)
    data.setup("validate")

    [tile] = data.val_dataloader()

    image, labels = (str(tmp_path / part / "austin1.tif") for part in ("images", "gt"))
    assert tile == {"pair": Pair(image=image, labels=labels, group="austin")}


def test_test_scores_of_validation_images_are_announced_with_their_names(tmp_path: Path) -> None:
    data = trained_on(np.ones((3, 40, 40), np.uint8), tmp_path)
    data.setup("test")

    with pytest.warns(GeonormWarning, match="no test images.* of the validation images: austin1") as warned:
        [tile] = data.test_dataloader()

    assert [tile] == [*data.val_dataloader()]
    assert len(warned) == 1


def test_image_and_labels_are_turned_alike_on_the_device(tmp_path: Path) -> None:
    data = trained_on(np.ones((3, 40, 40), np.uint8), tmp_path)
    labels = torch.randint(0, 2, (8, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = labels[:, None].repeat(1, 3, 1, 1) * 100
    valid = torch.full((8, 1, 6, 6), 7, dtype=torch.uint8)  # a bit for each band

    batch = data.on_after_batch_transfer({"image": image, "valid": valid, "mask": labels, "turn": torch.arange(8)}, 0)

    assert batch.keys() == {"image", "mask"}
    assert batch["image"].dtype == torch.float32
    for turn in range(8):
        assert torch.equal(batch["mask"][turn], turned(labels[turn], turn))
        assert torch.equal(batch["image"][turn], turned(image[turn], turn).float())


def test_pixels_without_data_enter_training_as_the_mean(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(1, 256, (3, 32, 32)).astype(np.uint8)
    image[:, 8:20, 4:30] = 0
    data = trained_on(image, tmp_path, nodata=0)
    raw = batches(data)[0]

    batch = data.on_after_batch_transfer(dict(raw), 0)

    hole = batch["mask"] == IGNORE_LABEL
    assert int(hole.sum()) == 4 * 12 * 26
    expected = torch.tensor(data.spec.band_means)[:, None].expand(3, int(hole.sum()))
    assert torch.equal(batch["image"].transpose(0, 1)[:, hole], expected)
    assert bool((batch["image"] == batch["image"].round())[~hole[:, None].expand(-1, 3, -1, -1)].all())


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("uint16", 0), ("float32", np.nan), ("uint16", None)])
def test_training_sees_an_image_as_prediction_does(tmp_path: Path, dtype: str, nodata: float | None) -> None:
    image = np.random.default_rng(0).integers(1, 256, (3, 32, 32)).astype(dtype)
    if nodata is not None:
        image[:, 8:20, 4:30] = nodata
        image[1, 2:5, 7:11] = nodata  # one band alone
    data = trained_on(image, tmp_path, nodata=nodata, batch_size=1)
    raw = batches(data)[0]

    trained = data.on_after_batch_transfer({**raw, "turn": torch.zeros(1, dtype=torch.int64)}, 0)["image"]

    fill = torch.tensor(data.spec.band_means)
    with open_raster(tmp_path / "images/austin6.tif") as reader:
        strip = predict_whole(reader.read, lambda x: x, Plan(height=32, width=32), fill=fill, finish=lambda x: x)
    torch.testing.assert_close(trained[0], strip.output, rtol=0, atol=0)


def test_batches_of_another_kind_are_left_alone(tmp_path: Path) -> None:
    tile = {"image": "austin1.tif", "labels": "gt.tif", "group": "austin"}

    assert InriaDataModule(tmp_path).on_after_batch_transfer(tile, 0) == tile


# Real images


@pytest.mark.real
def test_real_folders_give_plausible_facts_and_batches(real_data: Path) -> None:
    root = real_data / "buildings-rgb" / "oam-030"
    names = sorted(pair.name for pair in find_pairs(root))
    data = InriaDataModule(root, val_names=names[:1], patch_px=64, batch_size=4, patches_per_epoch=8, num_workers=0)

    batch = data.on_after_batch_transfer(batches(data)[0], 0)

    assert data.spec.resolution_m == pytest.approx(0.3, rel=0.05)
    assert all(40 < mean < 220 for mean in data.spec.band_means or [0])
    assert all(20 < deviation < 100 for deviation in data.spec.band_deviations or [0])
    assert batch["image"].shape == (4, 3, 64, 64)
    assert set(batch["mask"].unique().tolist()) <= {0, 1, IGNORE_LABEL}
