"""The task: its loss, its scores over whole tiles, its learning rate, its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import rasterio
import segmentation_models_pytorch as smp
import torch
from affine import Affine
from lightning.pytorch import LightningDataModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from geonorm.data.pairs import Pair
from geonorm.data.spec import IGNORE_LABEL, INRIA, DatasetSpec
from geonorm.errors import InvalidConfigError
from geonorm.inference import predict_raster
from geonorm.models import Rescale, SmpNetwork, UNet, localize_norms, tile_geometry
from geonorm.models.unet import Padding
from geonorm.norms import BatchNorm, GroupNorm, LocalContextNorm, NormFactory
from geonorm.tasks import SegmentationTask, segmentation
from geonorm.tasks.checkpoint import load_model, save_model

pytestmark = [
    # Lightning advises workers where the machine has more than two cores; two tiny tiles need none.
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    # It advises a GPU where there is one; tiny networks train on the CPU, to the same bits everywhere.
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    # Lightning asks torch for something that torch deprecates.
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\)"),
]

HEIGHT, WIDTH = 60, 90
PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)
SPEC = INRIA.with_statistics((90.0, 110.0, 70.0), (40.0, 50.0, 30.0))
NORMS: dict[str, NormFactory] = {
    "BN": BatchNorm,
    "LCN": partial(LocalContextNorm, window_px=9, group_size=2),
    "GN": partial(GroupNorm, group_size=2),
}
each_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def draw(path: Path, values: NDArray[Any], **options: Any) -> str:
    """Write a raster (C, H, W) with rasterio alone."""
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=PLACE, **shape, **options) as dataset:
        dataset.write(values)
    return str(path)


def draw_tile(folder: Path, name: str, *, group: str, seed: int = 0) -> dict[str, Pair]:
    """Write a tile with a hole of no data, and its mask; return them as the data module names them."""
    random = np.random.default_rng(seed)
    labels = random.random((HEIGHT // 5, WIDTH // 5)).repeat(5, 0).repeat(5, 1)[None] > 0.7
    image = random.integers(1, 150, (3, HEIGHT, WIDTH)) + 100 * labels
    image[:, 10:30, 25:50] = 0
    pair = Pair(
        image=draw(folder / f"{name}.tif", image.astype(np.uint8), nodata=0),
        labels=draw(folder / f"{name}_gt.tif", labels.astype(np.uint8) * 255),
        group=group,
    )
    return {"pair": pair}


def small_task(
    norm: NormFactory = BatchNorm, spec: DatasetSpec = SPEC, *, padding: Padding = "same", **settings: Any
) -> SegmentationTask:
    """Return a task whose tiny network calls about half of all pixels buildings."""
    torch.manual_seed(0)
    task = SegmentationTask(norm, spec, partial(UNet, depth=1, width=4, padding=padding), **settings)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 200
    with torch.no_grad():
        for _ in range(3):
            task(image)  # for the running statistics
        task.eval()
        by_class = task(image).transpose(0, 1).flatten(1)
        bias_of(task).sub_(by_class.median(1).values)
    return task


def bias_of(task: SegmentationTask) -> nn.Parameter:
    """Return the bias of the last convolution."""
    return task.get_parameter("network.head.bias")


def trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def scores_of(task: SegmentationTask, samples: Any, **options: Any) -> dict[str, float]:
    """Return what validation logs."""
    [scores] = trainer().validate(task, DataLoader(samples, batch_size=None), verbose=False, **options)
    return dict(scores)


def saved(task: SegmentationTask, path: Path) -> Path:
    """Return a checkpoint of the task, written by a Trainer."""
    saving = trainer()
    saving.strategy.connect(task)
    saving.save_checkpoint(path)
    return path


# Loss


def loss_of(task: SegmentationTask, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Return the loss, which must be what is logged."""
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(task, "log", lambda name, value, **options: logged.update({name: value}))
    loss = task.training_step(batch, 0)
    assert logged == {"train/loss": loss}
    return loss


def random_batch(*, ignored: float = 0.3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 2, (2, 32, 32), generator=random, dtype=torch.uint8)
    mask[torch.rand(2, 32, 32, generator=random) < ignored] = IGNORE_LABEL
    return {"image": torch.rand(2, 3, 32, 32, generator=random) * 200, "mask": mask}


@pytest.mark.parametrize(("padding", "margin_px"), [("same", 0), ("valid", 8)])
def test_the_loss_is_the_mean_cross_entropy_of_the_pixels_that_count(
    padding: Padding, margin_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, batch = small_task(padding=padding), random_batch()

    loss = loss_of(task, batch, monkeypatch)

    inner = slice(margin_px, 32 - margin_px)
    labels = batch["mask"][:, inner, inner].numpy()
    logits = task(batch["image"]).detach().double().numpy()
    surprise = np.log(np.exp(logits).sum(1)) - np.where(labels == 1, logits[:, 1], logits[:, 0])
    assert loss.item() == pytest.approx(surprise[labels != IGNORE_LABEL].mean(), rel=1e-5)


def test_what_lies_under_ignored_labels_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = small_task(), random_batch()
    loss_of(task, batch, monkeypatch).backward()
    before = bias_of(task).grad
    task.zero_grad(set_to_none=True)

    logits = task(batch["image"])
    counts = batch["mask"] != IGNORE_LABEL
    nn.functional.cross_entropy(logits.permute(0, 2, 3, 1)[counts], batch["mask"][counts].long()).backward()

    torch.testing.assert_close(bias_of(task).grad, before)


def test_a_batch_without_a_single_label_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task = small_task()

    loss = loss_of(task, random_batch(ignored=1.0), monkeypatch)
    loss.backward()

    assert loss == 0
    assert all(weight.grad is not None and not weight.grad.any() for weight in task.parameters())


# Scores over whole tiles


def scores_of_maps(checkpoint: Path, tiles: list[dict[str, Pair]], **options: Any) -> dict[str, float]:
    """Return the scores of the maps that a checkpoint gives, counted with numpy."""
    parts: list[tuple[str, NDArray[np.bool_]]] = []
    for tile in tiles:
        pair = tile["pair"]
        target = Path(pair.image).with_suffix(".map.tif")
        predict_raster(checkpoint, pair.image, target, **options)
        with rasterio.open(target) as labelled, rasterio.open(pair.labels) as truth:
            labels, is_building = labelled.read(1), truth.read(1) > 0
        parts.append((f"/{pair.group}", np.stack([labels == 1, is_building])[:, labels != 255]))
    found = {}
    for group in ("", *dict(parts)):
        called, is_building = np.concatenate([part for name, part in parts if name.startswith(group)], axis=1)
        found[f"val/iou{group}"] = (called & is_building).sum() / (called | is_building).sum()
        found[f"val/accuracy{group}"] = (called == is_building).mean()
    return found


@each_norm
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.filterwarnings("ignore:The labels depend on the tiles")  # GN's do; the tiles are the same here
def test_whole_tiles_score_as_the_maps_that_predict_writes(tmp_path: Path, norm: NormFactory, padding: Padding) -> None:
    tiles = [
        draw_tile(tmp_path, name, group=group, seed=seed)
        for seed, (name, group) in enumerate([("a1", "austin"), ("a2", "austin"), ("v1", "vienna")])
    ]
    task = small_task(norm, padding=padding, eval_core_px=32)

    scores = scores_of(task, tiles)

    halo = tile_geometry(small_task(norm, padding=padding).network).local_halo_px
    maps = scores_of_maps(saved(task, tmp_path / "m.ckpt"), tiles, core_px=32, halo=halo)
    assert scores == pytest.approx(maps)
    assert all(0.1 < score < 0.9 for score in scores.values())


def test_a_checkpoint_scores_on_other_data_as_the_maps_it_writes_there(tmp_path: Path) -> None:
    tiles = [draw_tile(tmp_path, "a1", group="austin")]
    trained, elsewhere = small_task(), small_task(spec=INRIA.with_statistics((200.0,) * 3, (9.0,) * 3))
    checkpoint = saved(trained, tmp_path / "m.ckpt")

    scores = scores_of(elsewhere, tiles, ckpt_path=checkpoint)

    maps = scores_of_maps(checkpoint, tiles)
    assert scores == pytest.approx({name: maps[name] for name in scores})


@pytest.mark.parametrize("norm", [NORMS["BN"], NORMS["LCN"]], ids=["BN", "LCN"])
def test_scores_do_not_depend_on_the_core_where_the_halo_is_exact(tmp_path: Path, norm: NormFactory) -> None:
    tiles = [draw_tile(tmp_path, "a1", group="austin")]

    small, whole = (scores_of(small_task(norm, eval_core_px=core_px), tiles) for core_px in (16, 512))

    assert small == whole


def test_a_core_that_is_no_multiple_of_the_stride_is_enlarged(tmp_path: Path) -> None:
    tiles = [draw_tile(tmp_path, "a1", group="austin")]

    odd, even = (scores_of(small_task(NORMS["GN"], eval_core_px=core_px), tiles) for core_px in (31, 32))

    assert odd == even


def test_cities_are_told_apart_only_where_there_are_several(tmp_path: Path) -> None:
    tiles = [draw_tile(tmp_path, "a1", group="austin"), draw_tile(tmp_path, "v1", group="vienna", seed=1)]

    assert set(scores_of(small_task(), tiles[:1])) == {"val/iou", "val/accuracy"}
    assert set(scores_of(small_task(), tiles)) == {
        f"val/{score}{group}" for score in ("iou", "accuracy") for group in ("", "/austin", "/vienna")
    }


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_batches_of_patches_are_scored_without_what_the_network_lacks_at_the_border(padding: Padding) -> None:
    task, batch = small_task(padding=padding), random_batch()

    scores = scores_of(task, [batch, batch])

    logits = task(batch["image"])
    margin_px = (32 - logits.shape[-1]) // 2
    inner = slice(margin_px, 32 - margin_px)
    labels, called = batch["mask"][:, inner, inner].numpy(), logits.argmax(1).numpy()
    right = (called == labels)[labels != IGNORE_LABEL].mean()
    assert scores["val/accuracy"] == pytest.approx(right)


def test_every_validation_counts_anew(tmp_path: Path) -> None:
    task, tiles = small_task(), [draw_tile(tmp_path, f"a{seed}", group="austin", seed=seed) for seed in (0, 1)]

    both = scores_of(task, tiles)
    scores_of(task, tiles[:1])

    assert scores_of(task, tiles) == both


def test_testing_scores_as_validation_does(tmp_path: Path) -> None:
    task = small_task()
    tiles: Any = [draw_tile(tmp_path, "a1", group="austin")]

    [tested] = trainer().test(task, DataLoader(tiles, batch_size=None), verbose=False)

    assert tested == {name.replace("val", "test"): score for name, score in scores_of(task, tiles).items()}


# Making a task


@pytest.mark.parametrize("spec", [SPEC, INRIA], ids=["measured", "unknown"])
def test_the_network_scales_by_the_statistics_of_the_data(spec: DatasetSpec) -> None:
    task = SegmentationTask(BatchNorm, spec, partial(UNet, depth=1, width=4))

    [rescale] = [module for module in task.modules() if isinstance(module, Rescale)]

    assert tuple(rescale.mean.tolist()) == (spec.band_means or (0, 0, 0))
    assert tuple(rescale.deviation.tolist()) == (spec.band_deviations or (1, 1, 1))


class Pretrained(UNet):
    """A network whose weights bring their own scaling, as those of the smp library do."""

    def __init__(self, in_channels: int, num_classes: int, *, norm: NormFactory) -> None:
        super().__init__(in_channels, num_classes, norm=norm, depth=1, width=4)
        self.rescale = Rescale(in_channels, mean=[124.0] * in_channels, deviation=[58.0] * in_channels)


def scale_of(task: SegmentationTask) -> tuple[list[float], list[float]]:
    """Return means and deviations that a task's network scales by, which must be what its checkpoint says."""
    [rescale] = [module for module in task.network.modules() if isinstance(module, Rescale)]
    spec = DatasetSpec.from_plain(task.description["spec"])
    means, deviations = rescale.mean.tolist(), rescale.deviation.tolist()
    assert spec == task.spec
    assert (list(spec.band_means or ()), list(spec.band_deviations or ())) == (means, deviations)
    return means, deviations


def test_pretrained_weights_keep_their_own_scaling() -> None:
    task = SegmentationTask(BatchNorm, SPEC, Pretrained)

    assert scale_of(task) == ([124.0] * 3, [58.0] * 3)


def test_the_networks_of_smp_keep_the_scaling_of_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    create = smp.create_model
    monkeypatch.setattr(
        smp, "create_model", lambda *args, encoder_weights, **more: create(*args, encoder_weights=None, **more)
    )

    task = SegmentationTask(BatchNorm, SPEC, partial(SmpNetwork, encoder="tu-regnetx_002", weights="imagenet"))

    means, deviations = scale_of(task)
    assert means == pytest.approx([255 * value for value in (0.485, 0.456, 0.406)], rel=1e-5)
    assert deviations == pytest.approx([255 * value for value in (0.229, 0.224, 0.225)], rel=1e-5)


def test_norms_that_are_kept_come_back_with_the_checkpoint(tmp_path: Path) -> None:
    task = SegmentationTask(None, SPEC, partial(SmpNetwork, encoder="resnet18"))
    image = torch.rand(1, 3, 64, 64)

    model = load_model(saved(task, tmp_path / "kept.ckpt"))

    assert not cast(Any, task.network).replacements
    assert type(cast(Any, model.network).network.encoder.bn1) is nn.BatchNorm2d
    torch.testing.assert_close(model.network(image), task.network.eval()(image))


def test_a_network_without_norms_of_its_own_cannot_keep_them() -> None:
    with pytest.raises(InvalidConfigError, match=r"UNet has none of its own\. Name a norm"):
        SegmentationTask(None, SPEC, partial(UNet, depth=1))


def test_the_scaling_of_the_weights_to_start_from_comes_before_all_but_the_users(tmp_path: Path) -> None:
    start = str(saved(small_task(spec=INRIA.with_statistics((7.0,) * 3, (2.0,) * 3)), tmp_path / "m.ckpt"))

    taken = SegmentationTask(BatchNorm, SPEC, Pretrained, init_from=start)
    given = SegmentationTask(BatchNorm, SPEC, Pretrained, init_from=start, band_means=[1.0, 2.0, 3.0])

    assert scale_of(taken) == ([7.0] * 3, [2.0] * 3)
    assert scale_of(given) == ([1.0, 2.0, 3.0], [2.0] * 3)


def test_the_users_scaling_comes_before_the_datas_and_that_of_pretrained_weights() -> None:
    for network in (partial(UNet, depth=1, width=4), Pretrained):
        task = SegmentationTask(BatchNorm, SPEC, network, band_means=[1.0] * 3, band_deviations=[9.0] * 3)

        assert scale_of(task) == ([1.0] * 3, [9.0] * 3)


class Tiles(LightningDataModule):
    """A data module that gives one batch, and fills pixels without data as its facts say."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = SPEC

    def train_dataloader(self) -> DataLoader[Any]:
        """Return one batch."""
        batches: Any = [random_batch()]
        return DataLoader(batches, batch_size=None)

    val_dataloader = train_dataloader


def test_the_data_module_fills_with_what_becomes_zero() -> None:
    data, task = Tiles(), SegmentationTask(BatchNorm, SPEC, Pretrained)
    training = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )

    training.fit(task, data)

    assert data.spec == SPEC.with_statistics((124.0,) * 3, (58.0,) * 3)


def test_the_network_has_the_bands_and_classes_of_the_data() -> None:
    spec = DatasetSpec(
        bands=("red", "near infrared"),
        class_names=("water", "forest", "built"),
        class_colors=((0, 0, 0),) * 3,
        scored_classes=(0, 1, 2),
    )

    task = SegmentationTask(BatchNorm, spec, partial(UNet, depth=1, width=4))

    assert task(torch.zeros(1, 2, 8, 12)).shape == (1, 3, 8, 12)


def test_the_learning_rate_falls_to_a_tenth_at_each_milestone() -> None:
    [optimizer], [schedule] = small_task(learning_rate=0.5, lr_milestones=[2, 3]).configure_optimizers()
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.005, 0.005])


def test_every_parameter_is_trained() -> None:
    task = small_task()

    [optimizer], _ = task.configure_optimizers()

    trained = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    assert trained == {id(weight) for weight in task.parameters()}


TORCHS_NORM: Any = nn.BatchNorm2d


class Unscaled(nn.Module):
    """A network that does not scale its input."""

    def __init__(self, in_channels: int, num_classes: int, *, norm: NormFactory) -> None:
        super().__init__()
        self.head = nn.Conv2d(in_channels, num_classes, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(SegmentationTask, BatchNorm, SPEC, Unscaled), "Unscaled has no Rescale"),
        (partial(SegmentationTask, BatchNorm, SPEC, learning_rate=0), "learning_rate must be greater than 0"),
        (partial(SegmentationTask, lambda channels, *, stride: nn.Identity(), SPEC), "norm must be a class"),
        (partial(SegmentationTask, TORCHS_NORM, SPEC), r"Use geonorm\.norms\.BatchNorm"),
        (partial(SegmentationTask, BatchNorm, SPEC, eval_core_px=0), "eval_core_px must be"),
        (partial(SegmentationTask, BatchNorm, SPEC, localize_px=9), "no GroupNorm"),
        (partial(SegmentationTask, NORMS["GN"], SPEC, localize_px=0), "window_px must be at least 1"),
        (partial(SegmentationTask, BatchNorm, SPEC, band_means=[1.0]), "one number per band, got 1 "),
        (partial(SegmentationTask, BatchNorm, SPEC, band_deviations=[0.0] * 3), "greater than 0"),
    ],
    ids=[
        "unscaled",
        "learning rate",
        "nameless norm",
        "torch's norm",
        "core",
        "nothing to localize",
        "window",
        "means",
        "deviations",
    ],
)
def test_what_cannot_work_is_refused_at_once(make: Callable[[], SegmentationTask], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        make()


# Checkpoint


@each_norm
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_checkpoint_holds_the_whole_model_as_plain_data(tmp_path: Path, norm: NormFactory, padding: Padding) -> None:
    task = small_task(norm, padding=padding)
    image = random_batch()["image"]

    path = saved(task, tmp_path / "m.ckpt")

    assert "geonorm" in torch.load(path, weights_only=True)
    model = load_model(path)
    assert model.spec == task.spec
    assert torch.equal(model.network(image), task.eval()(image))


def test_a_checkpoint_loads_into_a_task_again(tmp_path: Path) -> None:
    trained, fresh = small_task(), small_task(spec=INRIA)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(0.1)

    content = torch.load(saved(trained, tmp_path / "m.ckpt"), weights_only=True)
    fresh.load_state_dict(content["state_dict"])

    image = random_batch()["image"]
    assert torch.equal(fresh(image), trained(image))


# Starting from other weights


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Lightning is given to say."""
    lines: list[str] = []
    monkeypatch.setattr(segmentation, "rank_zero_info", lines.append)
    return lines


def image_of_200() -> Tensor:
    return random_batch()["image"]


def test_a_task_starts_from_the_weights_of_another_norm_and_says_so_in_one_line(
    tmp_path: Path, said: list[str]
) -> None:
    start = saved(small_task(NORMS["GN"]), tmp_path / "gn.ckpt")

    task = small_task(partial(LocalContextNorm, window_px=1000, group_size=2), spec=INRIA, init_from=str(start))
    bias_of(task).data.copy_(load_model(start).network.get_parameter("head.bias").data)

    torch.testing.assert_close(task(image_of_200()), load_model(start).network(image_of_200()), rtol=1e-4, atol=1e-4)
    [line] = said
    assert "\n" not in line
    assert f"start from {start}" in line


def test_localizing_comes_after_the_weights_and_is_what_the_checkpoint_says(tmp_path: Path) -> None:
    start = saved(small_task(NORMS["GN"]), tmp_path / "gn.ckpt")

    task = SegmentationTask(
        NORMS["GN"], SPEC, partial(UNet, depth=1, width=4), init_from=str(start), localize_px=9
    ).eval()

    by_hand, _ = localize_norms(load_model(start).network, 9)
    assert torch.equal(task(image_of_200()), by_hand(image_of_200()))
    model = load_model(saved(task, tmp_path / "local.ckpt"))
    assert model.localized_px == 9
    assert torch.equal(model.network(image_of_200()), task(image_of_200()))


def test_a_localized_task_is_trained_through_its_local_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    task = SegmentationTask(NORMS["GN"], SPEC, partial(UNet, depth=1, width=4), localize_px=9)

    loss_of(task, random_batch(), monkeypatch).backward()

    assert any(isinstance(module, LocalContextNorm) for module in task.modules())
    assert not any(isinstance(module, GroupNorm) for module in task.modules())
    assert all(weight.grad is not None for weight in task.parameters())


def test_without_a_word_of_local_norms_the_checkpoint_is_as_before() -> None:
    assert "localized" not in small_task(NORMS["GN"]).description


@pytest.mark.parametrize(("theirs", "ours"), [(9, None), (None, 9), (9, 5)])
def test_weights_of_norms_that_look_elsewhere_are_not_loaded_by_mistake(
    tmp_path: Path, theirs: int | None, ours: int | None
) -> None:
    def task(localize_px: int | None) -> SegmentationTask:
        return SegmentationTask(NORMS["GN"], SPEC, partial(UNet, depth=1, width=4), localize_px=localize_px)

    checkpoint, tiles = saved(task(theirs), tmp_path / "m.ckpt"), [draw_tile(tmp_path, "a1", group="austin")]

    with pytest.raises(InvalidConfigError, match="localize_px") as caught:
        scores_of(task(ours), tiles, ckpt_path=checkpoint)

    assert "\n" not in str(caught.value)
    assert "val/iou" in scores_of(task(theirs), tiles, ckpt_path=checkpoint)


def test_a_localized_checkpoint_is_scored_like_any_other(tmp_path: Path) -> None:
    tiles = [draw_tile(tmp_path, "a1", group="austin")]
    start = saved(small_task(NORMS["GN"]), tmp_path / "gn.ckpt")
    local, _ = localize_norms(load_model(start).network, 9)
    save_model(replace(load_model(start), network=local, localized_px=9), tmp_path / "local.ckpt")

    fresh = SegmentationTask(NORMS["GN"], SPEC, partial(UNet, depth=1, width=4), localize_px=9, eval_core_px=32)

    maps = scores_of_maps(tmp_path / "local.ckpt", tiles, core_px=32, halo="exact")
    assert scores_of(fresh, tiles, ckpt_path=tmp_path / "local.ckpt") == pytest.approx(
        {name: maps[name] for name in ("val/iou", "val/accuracy")}
    )


@pytest.mark.parametrize(("side", "inner"), [(44, 44), (47, 44), (49, 48)])
def test_a_network_of_valid_convolutions_learns_from_the_middle_that_it_takes(side: int, inner: int) -> None:
    network = partial(UNet, depth=2, width=4, padding="valid")
    task = SegmentationTask(BatchNorm, SPEC, network)
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, side, side), generator=generator).float()
    labels = torch.randint(0, 2, (2, side, side), generator=generator)
    edge = (side - inner) // 2
    margin = UNet(3, 2, norm=BatchNorm, depth=2, width=4, padding="valid").margin_px
    middle = slice(edge, edge + inner)
    outputs = slice(edge + margin, edge + inner - margin)

    loss = task.training_step({"image": image, "mask": labels}, 0)

    logits = task.network(image[..., middle, middle])
    expected = nn.functional.cross_entropy(logits, labels[:, outputs, outputs])
    assert torch.equal(loss, expected)
