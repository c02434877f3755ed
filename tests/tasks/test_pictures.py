"""Pictures of validation windows while a network trains."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from geonorm.data.spec import IGNORE_LABEL, INRIA
from geonorm.errors import InvalidConfigError
from geonorm.models import Rescale, UNet
from geonorm.norms import BatchNorm, NormFactory
from geonorm.tasks import PictureLogger, SegmentationTask
from geonorm.tasks.checkpoint import load_model
from geonorm.tasks.pictures import GAP_PX, IGNORED, RIGHT, WRONG, drawn, spread, stacked, stretched
from tests.tasks.trainings import QUIET, STEPS_PER_EPOCH, Run, arguments, fit, run

pytestmark = [
    *QUIET,
    # Lightning asks torch for something that torch deprecates; the command line says nothing of it.
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\)"),
]


def pictures(done: Run) -> dict[str, Any]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted((done.folder / "pictures").glob("*"))}


class Threshold(nn.Module):
    """Calls a pixel a building where its first band is above 100."""

    def __init__(self, in_channels: int, num_classes: int, *, norm: NormFactory) -> None:
        super().__init__()
        self.rescale = Rescale(in_channels)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, 2, H, W)."""
        above = (image[:, 0] - 100) * self.weight
        return torch.stack([-above, above], dim=1)


# Drawing


def test_a_band_is_stretched_from_its_2nd_to_its_98th_percentile() -> None:
    random = np.random.default_rng(0)
    image = random.normal(500, 100, (4, 6, 9))

    found = stretched(image)

    assert found.shape == (6, 9, 3)
    for band in range(3):
        low, high = np.percentile(image[band], 2), np.percentile(image[band], 98)
        expected = np.clip((image[band] - low) / (high - low), 0, 1) * 255
        np.testing.assert_allclose(found[..., band], expected, atol=0.51)


def test_one_or_two_bands_are_grey_and_a_flat_one_is_no_trouble() -> None:
    two = np.stack([np.arange(54.0).reshape(6, 9), np.zeros((6, 9))])

    grey, flat = stretched(two), stretched(np.full((3, 6, 9), 7.0))

    assert (grey == grey[..., :1]).all()
    assert grey.max() == 255
    assert not flat.any()


def test_a_row_shows_image_labels_prediction_and_errors() -> None:
    task = SegmentationTask(BatchNorm, INRIA, Threshold)
    image = torch.zeros(1, 3, 2, 3)
    image[0, 0] = torch.tensor([[200.0, 0, 0], [200, 200, 0]])
    labels = torch.tensor([[[1, 0, 1], [0, IGNORE_LABEL, IGNORE_LABEL]]])

    row = drawn(image, labels, task)

    none, building = INRIA.class_colors
    at = [slice(i * (3 + GAP_PX), i * (3 + GAP_PX) + 3) for i in range(4)]
    assert row.shape == (2, 4 * 3 + 3 * GAP_PX, 3)
    assert (row[:, 3 : 3 + GAP_PX] == 255).all()
    expected = [
        ((building, none, building), (none, IGNORED, IGNORED)),
        ((building, none, none), (building, building, none)),
        ((RIGHT, RIGHT, WRONG), (WRONG, IGNORED, IGNORED)),
    ]
    for part, colors in zip(at[1:], expected, strict=True):
        assert (row[:, part] == np.array(colors)).all()


def test_a_network_that_lacks_a_margin_is_drawn_without_it() -> None:
    task = SegmentationTask(BatchNorm, INRIA, partial(UNet, depth=1, width=4, padding="valid")).eval()
    image = torch.rand(1, 3, 32, 48)

    row = drawn(image, torch.zeros(1, 32, 48, dtype=torch.uint8), task)

    height, width = task(image).shape[-2:]
    assert row.shape == (height, 4 * width + 3 * GAP_PX, 3)
    inner = image[0, :, (32 - height) // 2 :, (48 - width) // 2 :][:, :height, :width]
    assert (row[:, :width] == stretched(inner.numpy())).all()


def test_rows_of_any_width_are_stacked() -> None:
    rows = [np.zeros((2, 5, 3), np.uint8), np.zeros((3, 7, 3), np.uint8)]

    found = stacked(rows)

    assert found.shape == (2 + GAP_PX + 3, 7, 3)
    assert (found[:2, 5:] == 255).all()
    assert not found[:2, :5].any()


@pytest.mark.parametrize("total", [1, 2, 5, 36])
def test_windows_are_spread_over_the_tiles(total: int) -> None:
    found = spread(4, total)

    assert len(found) == min(4, total)
    assert set(found) <= set(range(total))
    assert max(np.diff(found), default=1) <= total / len(found) + 1


# In a training


def test_every_other_epoch_leaves_a_picture_of_the_same_windows_in_files_and_tensorboard(
    scenes: Path, tmp_path: Path
) -> None:
    every = ["--pictures.every_n_epochs=2", "--pictures.window_px=33", "--trainer.max_epochs=4"]

    done = fit(scenes, tmp_path, *every)

    found = pictures(done)
    assert list(found) == [f"step-{epochs * STEPS_PER_EPOCH:06d}.png" for epochs in (2, 4)]
    first, second = found.values()
    side_px = 34  # the network takes even sides
    assert first.shape == second.shape == (2 * side_px + GAP_PX, 4 * side_px + 3 * GAP_PX, 3)
    truth = slice(0, 2 * side_px + GAP_PX)
    assert (first[:, truth] == second[:, truth]).all()
    assert (first[:, truth.stop :] != second[:, truth.stop :]).any()
    events = EventAccumulator(str(done.folder), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("val/pictures")] == [2 * STEPS_PER_EPOCH, 4 * STEPS_PER_EPOCH]
    assert events.Images("val/pictures")[0].height == first.shape[0]


def test_a_picture_shows_the_middle_of_a_tile_as_the_checkpoint_labels_it(scenes: Path, tmp_path: Path) -> None:
    done = fit(scenes, tmp_path, "--pictures.every_n_epochs=1", "--pictures.window_px=32", "--trainer.max_epochs=1")

    [picture] = pictures(done).values()
    network = load_model(done.folder / "checkpoints/last.ckpt").network
    middle = np.s_[14 : 14 + 32, 29 : 29 + 32]
    tops = dict(zip(("austin1", "vienna2"), (0, 32 + GAP_PX), strict=True))
    for name, top in tops.items():
        with rasterio.open(scenes / f"images/{name}.tif") as source, rasterio.open(scenes / f"gt/{name}.tif") as mask:
            image, labels = source.read()[:, *middle].astype(np.float32), mask.read(1)[middle] > 0
        with torch.no_grad():
            predicted = network(torch.from_numpy(image)[None])[0].argmax(0).numpy()
        colors = np.array(INRIA.class_colors, dtype=np.uint8)
        expected = [stretched(image), colors[labels.astype(int)], colors[predicted]]
        for which, part in enumerate(expected):
            left = which * (32 + GAP_PX)
            assert (picture[top : top + 32, left : left + 32] == part).all()


@pytest.mark.parametrize("more", [[], ["--pictures.every_n_epochs=3"]], ids=["off", "not yet"])
def test_no_picture_is_drawn_unless_it_is_due(scenes: Path, tmp_path: Path, more: list[str]) -> None:
    assert not pictures(fit(scenes, tmp_path, *more))


def test_a_picture_needs_no_tensorboard(scenes: Path, tmp_path: Path) -> None:
    csv = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]

    done = fit(scenes, tmp_path, *csv, "--pictures.every_n_epochs=2")

    assert list(pictures(done)) == [f"step-{2 * STEPS_PER_EPOCH:06d}.png"]
    assert not [*done.folder.glob("events*")]


def test_without_a_logger_there_is_no_picture_and_no_trouble(scenes: Path, tmp_path: Path) -> None:
    words = arguments(scenes, tmp_path, "--trainer.logger=false", "--pictures.every_n_epochs=1")

    assert run(["fit", *words, "--trainer.enable_checkpointing=false"]) == 0

    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


class Patches(LightningDataModule):
    """A data module of patches, as torchgeo's are."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return two batches."""
        random = torch.Generator().manual_seed(0)
        batches: Any = [
            {
                "image": torch.rand(3, 3, 16, 24, generator=random),
                "mask": torch.randint(0, 2, (3, 16, 24), generator=random, dtype=torch.uint8),
            }
            for _ in range(2)
        ]
        return DataLoader(batches, batch_size=None)

    val_dataloader = train_dataloader


def test_patches_are_drawn_until_there_are_enough(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    training = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=logger,
        callbacks=[PictureLogger(every_n_epochs=1, num_windows=4)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )

    training.fit(SegmentationTask(BatchNorm, INRIA, partial(UNet, depth=1, width=4)), Patches())

    [picture] = pictures(Run(Path(logger.log_dir))).values()
    assert picture.shape == (4 * 16 + 3 * GAP_PX, 4 * 24 + 3 * GAP_PX, 3)


@pytest.mark.parametrize("settings", [{"every_n_epochs": -1}, {"num_windows": 0}, {"window_px": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidConfigError):
        PictureLogger(**settings)
