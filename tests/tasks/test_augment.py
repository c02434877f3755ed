"""Random changes of training samples: raw values stay raw, labels move along, a sample follows from its number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geonorm.data import Augmentations, InriaDataModule
from geonorm.data.patches import PatchNumbers
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import InvalidConfigError
from tests.tasks.torchgeo_layouts import loveda, potsdam
from tests.tasks.trainings import QUIET, draw_scenes, fit, run, same

pytestmark = QUIET

SIDE = 48


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four scenes of two cities."""
    return draw_scenes(tmp_path_factory.mktemp("scenes"))


def drawn(bands: int, *, highest: int, seed: int = 0) -> Tensor:
    """Return raw values ``(1, C, H, W)`` from 0 on."""
    return torch.randint(0, highest + 1, (1, bands, SIDE, SIDE), generator=torch.Generator().manual_seed(seed)).float()


def changed(
    transforms: list[nn.Module],
    image: Tensor,
    labels: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    number: int = 0,
    value_range: list[float] | None = None,
    mean: float = 7.0,
    deviation: float = 3.0,
    eight_bit: bool = False,
) -> tuple[Tensor, Tensor]:
    bands = image.shape[1]
    labels = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8) if labels is None else labels
    return Augmentations(transforms, value_range)(
        image,
        labels,
        torch.ones_like(image, dtype=torch.bool) if valid is None else valid,
        numbers=[number],
        means=[mean] * bands,
        deviations=[deviation] * bands,
        eight_bit=eight_bit,
    )


# Raw values

Oracle = Callable[[NDArray[Any]], NDArray[Any]]
PHOTOMETRIC: dict[str, tuple[nn.Module, Oracle]] = {
    "brightness": (K.RandomBrightness((1.1, 1.1), p=1.0), lambda unit: unit + 0.1),
    "darkness": (K.RandomBrightness((0.7, 0.7), p=1.0), lambda unit: unit - 0.3),
    "contrast": (K.RandomContrast((1.3, 1.3), p=1.0), lambda unit: unit * 1.3),
    "gamma": (K.RandomGamma((2.0, 2.0), p=1.0), lambda unit: unit**2),
    "solarize": (K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=1.0), lambda unit: np.where(unit >= 0.5, 1 - unit, unit)),
    "invert": (K.RandomInvert(p=1.0), lambda unit: 1 - unit),
}
RANGES: dict[str, tuple[dict[str, Any], float, float]] = {
    "8 bits": ({"eight_bit": True}, 0.0, 255.0),
    "stated": ({"value_range": [100.0, 3000.0]}, 100.0, 3000.0),
    "a scale without an offset": ({"mean": 0.0, "deviation": 10_000.0}, 0.0, 10_000.0),
    "around the mean": ({"mean": 500.0, "deviation": 100.0}, 100.0, 900.0),
    "reflectances": ({"mean": 0.0, "deviation": 1.0}, 0.0, 1.0),
}


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize(("transform", "oracle"), PHOTOMETRIC.values(), ids=PHOTOMETRIC)
def test_intensities_change_in_their_range_and_stay_raw(transform: nn.Module, oracle: Oracle, name: str) -> None:
    settings, low, high = RANGES[name]
    share = torch.rand(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    image = low + (high - low) * share

    shaded, _ = changed([transform], image, **settings)

    expected = low + (high - low) * oracle(share.numpy().astype(float)).clip(0, 1)
    np.testing.assert_allclose(shaded.numpy(), expected, atol=1e-4 * high)
    assert shaded.min() >= low - 1e-4 * high
    assert shaded.max() <= high * (1 + 1e-6)


def test_values_beyond_the_range_keep_their_distance_and_nothing_becomes_negative() -> None:
    image = torch.tensor([0.0, 100.0, 2000.0, 2500.0]).expand(1, 1, SIDE, 4).contiguous()

    brighter, _ = changed([K.RandomBrightness((1.5, 1.5), p=1.0)], image, value_range=[50.0, 2050.0])
    darker, _ = changed([K.RandomBrightness((0.5, 0.5), p=1.0)], image, mean=500.0, deviation=200.0)

    torch.testing.assert_close(brighter[0, 0, 0], torch.tensor([1000.0, 1100.0, 2050.0, 2500.0]))
    assert darker.min() == 0


def test_noise_is_of_the_size_that_it_says() -> None:
    image = torch.full((1, 4, SIDE, SIDE), 1000.0)

    noisy, _ = changed([K.RandomGaussianNoise(std=0.02, p=1.0)], image, value_range=[0.0, 10_000.0])

    assert float((noisy - image).std()) == pytest.approx(200, rel=0.1)


def test_what_chance_leaves_alone_is_the_same_to_the_last_bit() -> None:
    image = drawn(4, highest=255)

    alike, _ = changed([K.RandomGamma((2.0, 2.0), p=0.0), K.RandomBrightness((1.2, 1.2), p=0.0)], image)

    assert torch.equal(alike, image)


# Geometry


def blocks() -> tuple[Tensor, Tensor]:
    """Return labels ``(1, H, W)`` of four classes and an image that shows them, 50 values apart."""
    random = np.random.default_rng(0)
    labels = torch.from_numpy(random.integers(0, 4, (4, 4)).repeat(12, 0).repeat(12, 1).astype(np.uint8))[None]
    return labels, (20 + 50 * labels.float())[:, None].expand(1, 4, SIDE, SIDE).contiguous()


GEOMETRIC: dict[str, nn.Module] = {
    "affine": K.RandomAffine(degrees=(20.0, 20.0), translate=(0.1, 0.1), scale=(0.8, 0.8), p=1.0),
    "rotation": K.RandomRotation(degrees=(30.0, 30.0), p=1.0),
    "perspective": K.RandomPerspective(0.4, p=1.0),
    "flip": K.RandomHorizontalFlip(p=1.0),
    "elastic": K.RandomElasticTransform(alpha=(6.0, 6.0), p=1.0),
    "crop": K.RandomResizedCrop((SIDE, SIDE), scale=(0.4, 0.6), p=1.0),
}


@pytest.mark.parametrize("transform", GEOMETRIC.values(), ids=GEOMETRIC)
def test_labels_move_with_the_image(transform: nn.Module) -> None:
    labels, image = blocks()

    seen, marks = changed([transform], image, labels, mean=125.0)

    known = marks != IGNORE_LABEL
    shown = seen[:, 0].round() == 20 + 50 * marks.float()
    assert set(marks[known].tolist()) <= {0, 1, 2, 3}
    assert not torch.equal(marks, labels)
    assert float(shown[known].float().mean()) > 0.6  # all but the pixels between two blocks, which are blends
    clear = ((seen[:, 0] - 20) / 50).round().clamp(0, 3) == marks.float()
    assert float(clear[known].float().mean()) > 0.9


def test_a_flip_is_a_flip() -> None:
    labels, image = blocks()

    seen, marks = changed([K.RandomHorizontalFlip(p=1.0)], image, labels)

    torch.testing.assert_close(seen, image.flip(-1))
    assert torch.equal(marks, labels.flip(-1))


def test_what_is_filled_in_is_the_training_mean_without_a_label() -> None:
    labels, image = blocks()
    turn = K.RandomRotation(degrees=(45.0, 45.0), p=1.0)

    seen, marks = changed([turn, K.RandomBrightness((1.4, 1.4), p=1.0)], image, labels, mean=33.0, eight_bit=True)

    corner = (marks == IGNORE_LABEL)[0]
    assert corner[0, 0]
    assert corner[-1, -1]
    assert not corner[SIDE // 2, SIDE // 2]
    assert set(seen[0, :, corner].flatten().tolist()) == {33.0}


def test_pixels_without_data_stay_the_mean_wherever_they_go() -> None:
    labels, image = blocks()
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[:, 1, :, : SIDE // 2] = False  # of one band
    image = torch.where(valid, image, torch.tensor(33.0))

    transforms = [K.RandomGamma((2.0, 2.0), p=1.0), K.RandomHorizontalFlip(p=1.0), K.RandomInvert(p=1.0)]
    seen, _ = changed([*transforms], image, labels, valid, mean=33.0, eight_bit=True)

    torch.testing.assert_close(seen[:, 1, :, SIDE // 2 :], torch.full((1, SIDE, SIDE // 2), 33.0))
    assert not (seen[:, 0] == 33.0).any()


# The number of a sample


def chosen() -> Augmentations:
    return Augmentations([K.RandomAffine(30, p=0.7), K.RandomBrightness((0.6, 1.4)), K.RandomGaussianNoise(std=0.05)])


def batches(scenes: Path, *, batch_size: int, augment: Augmentations | None, ranks: int = 1) -> Tensor:
    """Return eight training samples in the order of their numbers, read by one process or by several."""
    parts: dict[int, Tensor] = {}
    for rank in range(ranks):
        data = InriaDataModule(scenes, patch_px=32, batch_size=batch_size, patches_per_epoch=8, num_workers=0)
        data.augment = augment
        data.setup("fit")
        data._numbers = PatchNumbers(8, batch_size=batch_size, rank=rank, processes=ranks)
        for batch in data.train_dataloader():
            numbers = batch["number"].tolist()
            torch.rand(rank + 1)  # whatever else draws meanwhile
            images = data.on_after_batch_transfer(batch, 0)["image"]
            parts.update(zip(numbers, images, strict=True))
    return torch.stack([parts[number] for number in sorted(parts)])


def test_a_sample_does_not_depend_on_batch_size_or_processes(scenes: Path) -> None:
    expected = batches(scenes, batch_size=8, augment=chosen())

    assert torch.equal(batches(scenes, batch_size=2, augment=chosen()), expected)
    assert torch.equal(batches(scenes, batch_size=2, augment=chosen(), ranks=2), expected)
    assert not torch.equal(batches(scenes, batch_size=8, augment=None), expected)


def test_samples_and_seeds_differ() -> None:
    image = drawn(3, highest=255)

    seen = [changed([K.RandomGaussianNoise(std=0.1, p=1.0)], image, number=number)[0] for number in (0, 1)]
    others = [
        Augmentations([K.RandomBrightness((0.5, 1.5), p=1.0)], seed=seed)(
            image,
            torch.zeros(1, SIDE, SIDE, dtype=torch.uint8),
            torch.ones_like(image, dtype=torch.bool),
            numbers=[0],
            means=[0.0] * 3,
            deviations=[255.0] * 3,
        )[0]
        for seed in (0, 1)
    ]

    assert not torch.equal(*seen)
    assert not torch.equal(*others)


def test_what_is_drawn_elsewhere_goes_on_as_before() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)

    torch.manual_seed(3)
    changed([K.RandomGaussianNoise(p=1.0)], drawn(3, highest=255))

    assert torch.equal(torch.rand(2), expected)


# Mistakes

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a scale": (lambda: Augmentations([K.Normalize(0.0, 255.0)]), r"Normalize is no augmentation but a scale"),
    "a mix": (lambda: Augmentations([K.RandomMosaic()]), r"RandomMosaic mixes samples of a batch"),
    "a container": (lambda: Augmentations([K.ImageSequential()]), r"ImageSequential is not a single transform"),
    "a layer": (lambda: Augmentations([nn.Identity()]), r"Identity is not a single transform"),
    "a fill": (
        lambda: Augmentations([K.RandomAffine(9, padding_mode="fill", fill_value=torch.tensor([9.0, 8.0, 7.0]))]),
        r"RandomAffine has a fill_value of its own, but what is filled in is the training mean",
    ),
    "a range": (lambda: Augmentations([], [255.0, 0.0]), r"two raw values, the lower first, got \[255.0, 0.0\]"),
    "a seed": (lambda: Augmentations(seed=-1), r"seed must not be negative"),
    "a size": (
        lambda: changed([K.CenterCrop((64, 64), p=1.0)], drawn(3, highest=9)),
        r"CenterCrop fails on an image of shape \(3, 48, 48\)",
    ),
    "images only": (
        lambda: changed([K.RandomThinPlateSpline(p=1.0)], drawn(3, highest=9)),
        r"RandomThinPlateSpline moves images only",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_one_line_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message) as caught:
        make()

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["RandomHue", "RandomSaturation", "RandomRGBShift", "RandomPlanckianJitter"])
def test_transforms_of_colours_are_refused_with_four_bands(name: str) -> None:
    colours = Augmentations([getattr(K, name)(p=0.3)])

    with pytest.raises(
        InvalidConfigError, match=rf"{name} does not take images of 4 bands .*RandomBrightness"
    ) as caught:
        colours.check(4)

    assert "\n" not in str(caught.value)


def test_transforms_of_three_bands_are_taken_with_three() -> None:
    Augmentations([K.RandomHue((-0.1, 0.1)), K.ColorJitter(0.1, 0.1, 0.1, 0.1)]).check(3)


def test_samples_of_different_sizes_say_what_to_do() -> None:
    crop = Augmentations([K.RandomCrop((32, 32), p=0.5)])
    image = drawn(3, highest=255).expand(16, 3, SIDE, SIDE)

    with pytest.raises(InvalidConfigError, match=r"different sizes, \[\(3, 32, 32\), \(3, 48, 48\)\].*p: 1"):
        crop(
            image,
            torch.zeros(16, SIDE, SIDE, dtype=torch.uint8),
            torch.ones_like(image, dtype=torch.bool),
            numbers=range(16),
            means=[0.0] * 3,
            deviations=[255.0] * 3,
        )


# The command line

CONFIG = f"--config={Path(__file__).parents[2] / 'configs/extra/augment.yaml'}"


@pytest.mark.slow
def test_a_resumed_run_ends_as_if_it_had_never_stopped(scenes: Path, tmp_path: Path) -> None:
    whole = fit(scenes, tmp_path / "whole", CONFIG)
    plain = fit(scenes, tmp_path / "plain")

    begun = fit(scenes, tmp_path / "cut", CONFIG, "--trainer.max_epochs=1")
    resumed = fit(scenes, tmp_path / "cut", CONFIG, f"--ckpt_path={begun.folder}/checkpoints/last.ckpt")

    assert same(resumed.weights, whole.weights)
    assert not same(plain.weights, whole.weights)


@pytest.mark.slow
def test_a_data_module_of_torchgeo_takes_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "fit",
        CONFIG,
        "--model.norm=geonorm.norms.BatchNorm",
        "--model.network.depth=1",
        "--model.network.width=4",
        "--model.network=geonorm.models.UNet",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--trainer.enable_progress_bar=false",
        "--data.batch_size=2",
    ]
    words.sort(key=lambda word: word.startswith("--model.network."))  # the class before its settings
    data = [
        "--data=torchgeo.datamodules.LoveDADataModule",
        f"--data.dict_kwargs.root={loveda(tmp_path / 'loveda')}",
    ]

    losses = []
    for runs, extra in (("with", []), ("without", ["--augment.transforms=null"])):
        root = [f"--trainer.default_root_dir={tmp_path / runs}", "--trainer.log_every_n_steps=1"]
        assert run([words[0], *data, *words[1:], *root, *extra]) == 0
        log = next((tmp_path / runs).rglob("metrics.csv")).read_text(encoding="utf-8")
        losses.append(log)
    assert losses[0] != losses[1]

    four = ["--data=torchgeo.datamodules.Potsdam2DDataModule", f"--data.dict_kwargs.root={potsdam(tmp_path / 'four')}"]
    hue = '--augment.transforms=[{"class_path": "kornia.augmentation.RandomHue"}]'
    assert run([words[0], *four, *words[1:], hue, f"--trainer.default_root_dir={tmp_path}"]) == 2
    assert "RandomHue does not take images of 4 bands" in capsys.readouterr().err.splitlines()[-1]
