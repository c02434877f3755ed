"""Data modules of torchgeo: trained, scored and labelled like any other, on raw band values."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kornia.augmentation as K
import numpy as np
import pytest
import rasterio
import torch
import torchgeo.datamodules
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchgeo.datamodules import BaseDataModule, LoveDADataModule, NonGeoDataModule
from torchgeo.datasets import Chesapeake
from torchgeo.transforms import AppendNDVI

from geonorm.data.spec import IGNORE_LABEL
from geonorm.data.torchgeo_facts import DataFacts, Labels
from geonorm.data.torchgeo_module import TorchgeoData
from geonorm.data.torchgeo_transforms import lift
from geonorm.errors import DatasetError, InvalidConfigError
from geonorm.inference import predict_raster
from geonorm.models import UNet, tile_geometry
from geonorm.norms import BatchNorm
from geonorm.tasks.checkpoint import load_model
from geonorm.tasks.sizes import fitted
from tests.tasks.torchgeo_layouts import HEIGHT, LAYOUTS, SETTINGS, WIDTH, folders_of
from tests.tasks.trainings import QUIET, Run, newest, run

pytestmark = [
    *QUIET,
    # L8Biome's folder holds files of two kinds; torchgeo tells of those that are not of the one it looks for.
    pytest.mark.filterwarnings("ignore:.*Unable to find any files"),
    # torchgeo calls shapely and pandas in ways that they will give up.
    pytest.mark.filterwarnings(r"ignore:The 'shapely.ops.transform\(\)' function is deprecated"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in GeoDataFrame"),
    # rasterio multiplies transforms in a way that affine will give up.
    pytest.mark.filterwarnings("ignore:Use `@` matmul"),
]

VALUES: dict[str, Mapping[int, int]] = {
    "InriaAerialImageLabelingDataModule": {0: 0, 1: 1},
    "Potsdam2DDataModule": {value: value for value in range(6)},
    "Vaihingen2DDataModule": {value: value for value in range(6)},
    "LoveDADataModule": {value: value - 1 for value in range(1, 8)},
    "LandCoverAIDataModule": {value: value for value in range(5)},
    "ETCI2021DataModule": {0: 0, 1: 1},
    "DeepGlobeLandCoverDataModule": {value: value for value in range(6)},
    "SpaceNet1DataModule": {1: 0, 2: 1},
    "ChesapeakeCVPRDataModule": {value: value - 1 for value in range(1, 7)},
    "L8BiomeDataModule": {value: value - 1 for value in range(1, 5)},
    "L7IrishDataModule": {value: value - 1 for value in range(1, 5)},
    "NAIPChesapeakeDataModule": {value: label for label, value in enumerate(Chesapeake.cmap)},
    "GID15DataModule": {value: value for value in range(16)},
}
"""The label of each value that counts, as the pages of the data sets say."""
NUM_BANDS = {
    "Potsdam2DDataModule": 4,
    "ETCI2021DataModule": 6,
    "ChesapeakeCVPRDataModule": 4,
    "L8BiomeDataModule": 11,
    "L7IrishDataModule": 9,
    "NAIPChesapeakeDataModule": 4,
}
SCORED = {name: [1] if set(values.values()) == {0, 1} else [*values.values()] for name, values in VALUES.items()}
SCORED_AT_RANDOM = "GID15DataModule"
"""torchgeo crops its validation images at random."""
WITHOUT_TEST_LABELS = {
    "InriaAerialImageLabelingDataModule",
    "LoveDADataModule",
    "ETCI2021DataModule",
    "GID15DataModule",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the drawn folders."""
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture
def folders(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Draw the folder of a data module, once."""
    # From where a path has no digits: torchgeo takes INRIA's tile numbers from the first letters with digits in it.
    monkeypatch.chdir(place)

    def of(name: str) -> Path:
        folder = Path("".join(filter(str.isalpha, name)))
        if folder not in drawn[place]:
            drawn[place][folder] = LAYOUTS[name](folder)
        return drawn[place][folder]

    return of


drawn: dict[Path, dict[Path, Path]] = defaultdict(dict)


def words(name: str, root: Path, runs: Path, *more: str) -> list[str]:
    settings = {
        "data": f"torchgeo.datamodules.{name}",
        "data.batch_size": 2,
        **{f"data.dict_kwargs.{key}": folder for key, folder in folders_of(name, root).items()},
        **{f"data.{key}": json.dumps(value) for key, value in SETTINGS.get(name, {}).items()},
        "model.norm": "geonorm.norms.BatchNorm",
        "model.network": "geonorm.models.UNet",
        "model.network.depth": 1,
        "model.network.width": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": runs,
    }
    return [f"--{key}={value}" for key, value in settings.items()] + [*more]


def made(name: str, root: Path, **more: Any) -> BaseDataModule:
    settings: dict[str, Any] = {**folders_of(name, root), "batch_size": 2, **SETTINGS.get(name, {}), **more}
    return getattr(torchgeo.datamodules, name)(**settings)


def scored(run_: Run) -> float:
    [iou] = run_.logged("val/iou")
    return iou


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_module_trains_validates_and_tests(
    name: str, folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folders(name)

    assert run(["fit", *words(name, root, tmp_path)]) == 0

    trained = newest(tmp_path)
    last = trained.folder / "checkpoints/last.ckpt"
    model = load_model(last)
    assert len(model.spec.bands) == NUM_BANDS.get(name, 3)
    assert len(model.spec.class_names) == len(VALUES[name])
    assert [*model.spec.scored_classes] == SCORED[name]
    assert np.isfinite(trained.logged("train/loss")).all()

    assert run(["validate", *words(name, root, tmp_path, f"--ckpt_path={last}")]) == 0
    if name != SCORED_AT_RANDOM:
        assert scored(newest(tmp_path)) == pytest.approx(scored(trained))

    code = run(["test", *words(name, root, tmp_path, f"--ckpt_path={last}")])
    if name in WITHOUT_TEST_LABELS:
        assert code == 2
        assert "use geonorm validate" in capsys.readouterr().err.splitlines()[-1]
    else:
        assert code == 0
        assert 0 <= newest(tmp_path).logged("test/iou")[0] <= 1


# torchgeo's own Chesapeake module cannot crop the chips at the edges of tiles.
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*LAYOUTS} - {"ChesapeakeCVPRDataModule", SCORED_AT_RANDOM}))
def test_the_score_is_that_of_summed_counts_behind_torchgeos_own_transforms(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    assert run(["fit", *words(name, folders(name), tmp_path)]) == 0
    trained = newest(tmp_path)
    network: Any = load_model(trained.folder / "checkpoints/last.ckpt").network
    network.rescale = nn.Identity()  # torchgeo normalizes instead

    # One by one: in a larger batch its INRIA module mixes the masks up.
    theirs: Any = made(name, folders(name), batch_size=1)
    theirs.trainer = SimpleNamespace(
        training=False, validating=True, sanity_checking=False, testing=False, predicting=False
    )
    theirs.setup("validate")
    counts = np.zeros((len(VALUES[name]), len(VALUES[name])))
    for batch in theirs.val_dataloader():
        batch.pop("crs", None), batch.pop("bounds", None)
        batch = theirs.on_after_batch_transfer(batch, 0)
        with torch.no_grad():
            called = network(batch["image"]).argmax(1).numpy()
        count(counts, batch["mask"].numpy().reshape(called.shape), called, VALUES[name])

    assert scored(trained) == pytest.approx(iou(counts, SCORED[name]), abs=1e-6)


def count(counts: NDArray[Any], mask: NDArray[Any], called: NDArray[Any], values: Mapping[int, int]) -> None:
    for value, label in values.items():
        for other in range(len(counts)):
            counts[label, other] += ((mask == value) & (called == other)).sum()


def iou(counts: NDArray[Any], classes: list[int]) -> float:
    union = [counts[k].sum() + counts[:, k].sum() - counts[k, k] for k in classes]
    return float(np.mean([counts[k, k] / total for k, total in zip(classes, union, strict=True) if total]))


# Raw values


def validated(name: str, root: Path, **more: Any) -> tuple[TorchgeoData, list[dict[str, Tensor]]]:
    """Return a data module and its validation batches."""
    data = TorchgeoData(made(name, root, **more), stage="validate")
    data.trainer = SimpleNamespace(  # type: ignore[assignment]  # all that torchgeo asks of it
        training=False, validating=True, sanity_checking=False, testing=False, predicting=False
    )
    assert data.spec
    return data, [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]


def test_labelling_the_raw_file_equals_the_network_on_the_batch(folders: Callable[[str], Path], tmp_path: Path) -> None:
    name = "InriaAerialImageLabelingDataModule"
    root = folders(name)
    enough = ["--trainer.max_epochs=20", "--model.learning_rate=0.05"]  # to tell classes apart
    assert run(["fit", *words(name, root, tmp_path, f"--data.patch_size=[{HEIGHT},{WIDTH}]", *enough)]) == 0
    model = load_model(newest(tmp_path).folder / "checkpoints/last.ckpt")

    file = root / "AerialImageDataset/train/images/austin1.tif"
    predict_raster(model, file, tmp_path / "map.tif")
    _, [batch] = validated(name, root, patch_size=(HEIGHT, WIDTH))

    with rasterio.open(file) as raw, rasterio.open(tmp_path / "map.tif") as labelled:
        torch.testing.assert_close(batch["image"][0], torch.from_numpy(raw.read()).float(), rtol=0, atol=0)
        with torch.no_grad():
            expected = model.network(batch["image"])[0].argmax(0).numpy()
        assert 0 < expected.mean() < 1
        assert (labelled.read(1) == expected).all()


def test_a_batch_holds_the_pixels_of_the_file_in_four_bands(folders: Callable[[str], Path]) -> None:
    root = folders("Potsdam2DDataModule")

    data, [batch] = validated("Potsdam2DDataModule", root)

    middle = slice((HEIGHT - 32) // 2, (HEIGHT + 32) // 2), slice((WIDTH - 32) // 2, (WIDTH + 32) // 2)
    files = [rasterio.open(path).read() for path in sorted((root / "4_Ortho_RGBIR").glob("*.tif"))]
    assert any((batch["image"][0].numpy() == file[:, *middle]).all() for file in files)
    assert data.spec.band_means == (0, 0, 0, 0)
    assert data.spec.band_deviations == (255, 255, 255, 255)


def test_each_mask_of_a_batch_stays_with_its_image(folders: Callable[[str], Path]) -> None:
    root = folders("InriaAerialImageLabelingDataModule")

    _, [batch] = validated("InriaAerialImageLabelingDataModule", root, patch_size=(HEIGHT, WIDTH))

    assert len(batch["mask"]) == 2
    for index, city in enumerate(["austin1", "vienna2"]):
        with rasterio.open(root / f"AerialImageDataset/train/gt/{city}.tif") as file:
            assert (batch["mask"][index].numpy() == (file.read(1) > 0)).all()


# Transforms


def test_what_is_filled_in_is_the_mean_and_has_no_label() -> None:
    turn = K.AugmentationSequential(
        K.Normalize(mean=torch.tensor([50.0, 60.0, 70.0]), std=torch.tensor(10.0)),
        K.RandomRotation(degrees=(45.0, 45.0), p=1),
        data_keys=None,
    )

    image, labels, filled = lift(turn, 3, place="aug", training=True)(
        torch.full((2, 3, 40, 40), 200.0), torch.ones(2, 40, 40, dtype=torch.uint8)
    )

    assert filled[:, 0, 0].all()
    assert not filled[:, 20, 20].any()
    torch.testing.assert_close(image[0, :, 0, 0], torch.tensor([50.0, 60.0, 70.0]))
    torch.testing.assert_close(image[0, :, 20, 20], torch.full((3,), 200.0))
    assert set(labels[~filled].tolist()) == {1}


def test_random_changes_of_intensity_see_what_torchgeo_shows_them() -> None:
    steps = [
        K.Normalize(mean=torch.tensor(0.0), std=torch.tensor(255.0)),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(p=1.0, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1),
    ]
    theirs = K.AugmentationSequential(*steps, data_keys=None)
    image = torch.randint(0, 256, (4, 3, 20, 30)).float()
    ours = lift(theirs, 3, place="train_aug", training=True)

    torch.manual_seed(1)
    expected = theirs({"image": image, "mask": torch.zeros(4, 1, 20, 30)})["image"]
    torch.manual_seed(1)
    raw, _, _ = ours(image, torch.zeros(4, 20, 30, dtype=torch.uint8))

    torch.testing.assert_close(raw / 255, expected, rtol=0, atol=1e-5)
    assert raw.max() > 100


def changed(**augmentations: Any) -> Callable[[Path], TorchgeoData]:
    def make(root: Path) -> TorchgeoData:
        module = LoveDADataModule(root=root, batch_size=2)
        for name, augmentation in augmentations.items():
            setattr(module, name, augmentation)
        return TorchgeoData(module)

    return make


NORMALIZE = partial(K.Normalize, mean=torch.tensor(0.0), std=torch.tensor(255.0))
REFUSED: dict[str, tuple[Callable[[Path], TorchgeoData], str]] = {
    "an index": (
        changed(aug=nn.Sequential(NORMALIZE(), AppendNDVI(index_nir=0, index_red=1))),
        r"LoveDADataModule\.aug has AppendNDVI, .*Take AppendNDVI out of",
    ),
    "a change in scoring": (
        changed(aug=K.AugmentationSequential(NORMALIZE(), K.RandomGamma(), data_keys=None)),
        r"aug has RandomGamma, which changes the values in front of the model",
    ),
    "twice": (
        changed(train_aug=K.AugmentationSequential(NORMALIZE(), NORMALIZE(), data_keys=None)),
        r"train_aug has Normalize, which",
    ),
    "a function": (changed(aug=lambda batch: batch), r"aug is .*lambda.*, a function that may change the values"),
    "a series": (
        changed(aug=K.AugmentationSequential(K.VideoSequential(NORMALIZE()), data_keys=None)),
        r"several images of a place at once",
    ),
    "two scales": (
        changed(train_aug=K.AugmentationSequential(K.Normalize(mean=1.0, std=2.0), data_keys=None)),
        r"normalizes differently in train_aug and aug; a network has one scale",
    ),
    "other bands": (
        changed(aug=K.AugmentationSequential(K.Normalize(mean=[1.0, 2.0], std=[1.0, 2.0]), data_keys=None)),
        r"normalizes 2 bands, but the images have 3",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_scale_can_stand_for_is_refused_by_name(
    make: Callable[[Path], TorchgeoData], message: str, folders: Callable[[str], Path]
) -> None:
    data = make(folders("LoveDADataModule"))

    with pytest.raises(InvalidConfigError, match=message) as caught:
        _ = data.spec

    assert "\n" not in str(caught.value)


# Facts


def test_what_the_user_says_comes_before_what_the_data_set_says(folders: Callable[[str], Path]) -> None:
    facts = DataFacts(
        class_names=["empty", "roof"], label_values=[2, 1], ignored_values=[0, 3, 4, 5, 6, 7], scored_classes=[1]
    )

    spec = TorchgeoData(LoveDADataModule(root=folders("LoveDADataModule")), facts=facts).spec

    assert spec.class_names == ("empty", "roof")
    assert spec.scored_classes == (1,)
    assert spec.bands == ("red", "green", "blue")


class Zones(Dataset[dict[str, Tensor]]):
    """Four images of two bands in memory, without a scale, their masks under a name of their own."""

    classes = ("land", "water", "ice")

    def __init__(self, split: str = "train") -> None:
        self.images = torch.rand(4, 2, 16, 24, generator=torch.Generator().manual_seed(0)) * 8 - 5

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "mask_zones": torch.full((16, 24), index % 3)}


def test_the_scale_is_measured_where_nothing_normalizes_and_masks_go_by_their_name() -> None:
    module = NonGeoDataModule(Zones, batch_size=2)  # type: ignore[arg-type]  # any data set will do
    module.aug = K.AugmentationSequential(K.RandomHorizontalFlip(), data_keys=None)
    data = TorchgeoData(module, facts=DataFacts(mask_key="mask_zones"))

    spec = data.spec

    images = Zones().images.numpy()
    np.testing.assert_allclose(spec.band_means or (), images.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(spec.band_deviations or (), images.std((0, 2, 3)), rtol=1e-5)
    assert spec.class_names == ("land", "water", "ice")
    assert spec.bands == ("band 1", "band 2")
    with pytest.raises(DatasetError, match=r"gives no image with a mask \(its samples hold image, mask_zones\)"):
        _ = TorchgeoData(NonGeoDataModule(Zones)).spec  # type: ignore[arg-type]


def test_values_become_labels_and_strange_ones_are_named() -> None:
    labels = Labels(values=(3, 1), ignored=(0,))

    assert labels.of(torch.tensor([[0, 1], [3, 255]])).tolist() == [[IGNORE_LABEL, 1], [0, IGNORE_LABEL]]
    with pytest.raises(DatasetError, match=r"hold -1, 2, 300, which is no class \(\[3, 1\]\)"):
        labels.of(torch.tensor([2, 300, -1, 3]))


def test_the_command_line_takes_facts_and_says_where_data_are_missing(
    folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", *words("LoveDADataModule", tmp_path / "nothing", tmp_path)]) == 2
    assert "LoveDADataModule finds no data" in capsys.readouterr().err.splitlines()[-1]

    few = ["--data_facts.class_names=[land, water]", "--data_facts.label_values=[1, 4]"]
    assert run(["fit", *words("LoveDADataModule", folders("LoveDADataModule"), tmp_path, *few)]) == 2
    assert "which is no class ([1, 4])" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_the_configuration_of_torchgeo_trains(folders: Callable[[str], Path], tmp_path: Path) -> None:
    configs = Path(__file__).parents[2] / "configs"
    files = [f"--config={configs / name}" for name in ("data/torchgeo.yaml", "norm/sn.yaml", "run/cpu.yaml")]
    tiny = [
        f"--data.dict_kwargs.root={folders('LoveDADataModule')}",
        "--data.init_args.batch_size=2",
        "--model.network.depth=3",
        "--model.network.width=4",
        "--pictures.every_n_epochs=1",
        "--batch_average.num_batches=1",
        "--trainer.max_epochs=1",
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}",
    ]

    assert run(["fit", *files, *tiny]) == 0

    assert 0 <= scored(newest(tmp_path)) <= 1
    assert len(list((newest(tmp_path).folder / "pictures").iterdir())) == 1


# Sizes


@pytest.mark.parametrize(("height", "width"), [(60, 90), (64, 64), (1, 5)])
def test_a_batch_grows_to_a_size_that_the_network_takes_and_no_more(height: int, width: int) -> None:
    geometry = tile_geometry(UNet(3, 2, depth=3, width=4, norm=BatchNorm))
    image, labels = torch.rand(2, 3, height, width), torch.zeros(2, height, width, dtype=torch.uint8)

    larger, marked = fitted(image, labels, geometry)

    assert larger.shape[-2:] == marked.shape[-2:]
    assert all(side % 8 == 0 and side - had < 8 for side, had in zip(larger.shape[-2:], (height, width), strict=True))
    expected = np.pad(
        image,
        [(0, 0), (0, 0), *((0, s - h) for s, h in zip(larger.shape[2:], (height, width), strict=True))],
        "reflect",
    )
    torch.testing.assert_close(larger, torch.from_numpy(expected))
    assert (marked == IGNORE_LABEL).sum() == marked.numel() - labels.numel()


def test_valid_padding_loses_its_margin_and_no_more() -> None:
    network = UNet(3, 2, depth=2, width=4, norm=BatchNorm, padding="valid")
    image, labels = torch.rand(1, 3, 150, 155), torch.zeros(1, 150, 155, dtype=torch.uint8)

    larger, marked = fitted(image, labels, tile_geometry(network))

    logits = network(larger)
    margin = (larger.shape[-2] - logits.shape[-2]) // 2
    assert logits.shape[-2] >= 150 - 2 * margin
    assert (marked[0, margin:, margin:] != IGNORE_LABEL).any()
