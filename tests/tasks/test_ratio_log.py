"""The log of ratios: complete, without repetitions, whatever happens to the run, and of no effect on it."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from geonorm.data.spec import INRIA
from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.models import UNet
from geonorm.norms import BatchNorm, NormFactory, SwitchableNorm
from geonorm.tasks import RatioLogger, SegmentationTask
from geonorm.tasks.ratio_log import ratios_of, read_ratio_log

pytestmark = [
    # Lightning advises workers where the machine has more than two cores; two tiny tiles need none.
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    # It advises a GPU where there is one; tiny networks train on the CPU, to the same bits everywhere.
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    # Lightning asks torch for something that torch deprecates.
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\)"),
    # A resumed run has a folder of its own, or finds the files of the one that was cut short.
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

LAYERS = ["encoder.0.1", "encoder.0.4", "bottom.1", "bottom.4", "decoder.0.1", "decoder.0.4"]
STEPS_PER_EPOCH = 2


def batches() -> DataLoader[Any]:
    """Return the batches of an epoch, always the same."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2 * STEPS_PER_EPOCH, 3, 8, 12, generator=random) * 255
    samples: Any = [{"image": image, "mask": (image[0] > 128).long()} for image in images]
    return DataLoader(samples, batch_size=2)


def train(
    root: Path,
    *,
    norm: NormFactory = SwitchableNorm,
    version: str = "first",
    resume: Path | None = None,
    callbacks: tuple[Callback, ...] = (),
    logging: bool = True,
    tensorboard: bool = False,
    **settings: Any,
) -> tuple[Path, SegmentationTask]:
    """Train from the same start; return the log folder and the task."""
    torch.manual_seed(0)
    spec = INRIA.with_statistics((120.0,) * 3, (70.0,) * 3)
    task = SegmentationTask(norm, spec, partial(UNet, depth=1, width=4), learning_rate=0.1)
    loggers: list[Logger] = [CSVLogger(root, name="logs", version=version)]
    if tensorboard:
        loggers.append(TensorBoardLogger(root, name="logs", version=version))
    trainer = Trainer(
        accelerator="cpu",
        logger=loggers,
        callbacks=[*([RatioLogger()] if logging else []), ModelCheckpoint(save_last=True), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        limit_val_batches=0,
        **{"max_epochs": 3, **settings},
    )
    trainer.fit(task, batches(), batches(), ckpt_path=resume, weights_only=True)
    return root / "logs" / version, task


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def log(folder: Path) -> bytes:
    return (folder / "ratios.csv").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SegmentationTask]:
    """A training of three epochs that nothing happens to."""
    return train(tmp_path_factory.mktemp("whole"))


# What is in it


def test_it_holds_the_start_every_epoch_and_the_end_once(whole: tuple[Path, SegmentationTask]) -> None:
    rows = (whole[0] / "ratios.csv").read_text().splitlines()

    assert rows[0] == "step,layer,statistic,group,normalizer,ratio"
    assert Counter(int(row.split(",")[0]) for row in rows[1:]) == dict.fromkeys((0, 2, 4, 6), len(LAYERS) * 2 * 3)
    assert len({row.rpartition(",")[0] for row in rows}) == len(rows)


def test_it_begins_with_equal_shares_and_ends_with_those_of_the_weights(whole: tuple[Path, SegmentationTask]) -> None:
    found = read_ratio_log(whole[0] / "ratios.csv")

    state = torch.load(last(whole[0]), weights_only=True)["state_dict"]
    assert [*found] == [0, 2, 4, 6]
    assert [*found[6]] == LAYERS
    for name in LAYERS:
        assert found[0][name].pool == ("IN", "LN", "BN")
        assert found[0][name].mean == pytest.approx(1 / 3)
        for statistic in ("mean", "var"):
            exponents = state[f"network.{name}.{statistic}_weight"].double().exp()
            expected = (exponents / exponents.sum()).numpy()[None]
            assert getattr(found[6][name], statistic) == pytest.approx(expected, rel=1e-6)
    assert (found[6]["bottom.1"].mean != found[0]["bottom.1"].mean).any()


def test_an_end_within_an_epoch_is_there_too(tmp_path: Path) -> None:
    folder, task = train(tmp_path, max_epochs=-1, max_steps=3)

    found = read_ratio_log(folder / "ratios.csv")
    assert [*found] == [0, 2, 3]
    assert found[3]["bottom.4"].var == pytest.approx(ratios_of(task.network)["bottom.4"].var)


def test_channel_groups_pools_and_tied_ratios_are_kept_apart(tmp_path: Path) -> None:
    norm = partial(SwitchableNorm, pool=["BN", "GN"], channel_groups=2, tied=True)

    folder, task = train(tmp_path, norm=norm, max_epochs=1)

    found = read_ratio_log(folder / "ratios.csv")[2]["bottom.1"]
    assert found.pool == ("BN", "GN")
    assert found.mean.shape == found.var.shape == (2, 2)
    assert found.mean == pytest.approx(task.network.get_submodule("bottom.1").mean_ratios().detach().numpy())  # type: ignore[operator]
    assert (found.mean[0] != found.mean[1]).any()
    assert (found.mean == found.var).all()


def test_tensorboard_shows_a_curve_per_layer_statistic_and_normalizer(tmp_path: Path) -> None:
    folder, _ = train(tmp_path, tensorboard=True)

    events = EventAccumulator(str(folder)).Reload()
    curve = events.Scalars("ratios/bottom.1/var/LN")
    found = read_ratio_log(folder / "ratios.csv")
    assert [event.step for event in curve] == [*found]
    assert [event.value for event in curve] == pytest.approx([one["bottom.1"].var[0, 1] for one in found.values()])
    assert "ratios/" not in (folder / "metrics.csv").read_text()


# What happens to runs


def test_a_run_resumed_in_another_folder_takes_the_log_with_it(
    whole: tuple[Path, SegmentationTask], tmp_path: Path
) -> None:
    begun, _ = train(tmp_path, max_epochs=1)

    resumed, _ = train(tmp_path, version="second", resume=last(begun))

    assert log(resumed) == log(whole[0])
    assert log(begun) == b"".join(log(whole[0]).splitlines(keepends=True)[: 1 + 2 * 36])


def test_a_run_resumed_in_its_folder_goes_on_in_its_log(whole: tuple[Path, SegmentationTask], tmp_path: Path) -> None:
    train(tmp_path, max_epochs=2)

    resumed, _ = train(tmp_path, resume=last(tmp_path / "logs" / "first"))

    assert log(resumed) == log(whole[0])


@pytest.mark.parametrize("lost", [b"", b"6,encoder.0.1,mean,0,IN,0.3\n6,encoder", b"4"])
def test_what_a_crash_left_beyond_the_checkpoint_is_replaced(
    whole: tuple[Path, SegmentationTask], tmp_path: Path, lost: bytes
) -> None:
    begun, _ = train(tmp_path, max_epochs=1)
    checkpoint = last(begun).rename(tmp_path / "kept.ckpt")
    train(tmp_path, max_epochs=2)
    (begun / "ratios.csv").write_bytes(log(begun) + lost)

    resumed, _ = train(tmp_path, resume=checkpoint)

    assert log(resumed) == log(whole[0])


def test_a_run_from_the_start_does_not_go_on_in_the_log_of_another(
    whole: tuple[Path, SegmentationTask], tmp_path: Path
) -> None:
    train(tmp_path, max_epochs=1)

    again, _ = train(tmp_path)

    assert log(again) == log(whole[0])


def test_a_damaged_log_is_begun_anew_with_a_warning(tmp_path: Path) -> None:
    begun, _ = train(tmp_path, max_epochs=1)
    (begun / "ratios.csv").write_bytes(log(begun) + b"what,is,this\n")

    with pytest.warns(GeonormWarning, match=r"damaged in line 74.* begins anew at step 2"):
        resumed, _ = train(tmp_path, version="second", resume=last(begun))

    assert [*read_ratio_log(resumed / "ratios.csv")] == [2, 4, 6]


def test_training_goes_as_it_goes_without_a_log(whole: tuple[Path, SegmentationTask], tmp_path: Path) -> None:
    without, task = train(tmp_path, logging=False)

    expected: dict[str, Tensor] = whole[1].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in task.state_dict().items())
    assert not (without / "ratios.csv").exists()


def test_a_network_without_switchable_norm_leaves_no_log(tmp_path: Path) -> None:
    folder, _ = train(tmp_path, norm=BatchNorm, max_epochs=1)

    assert (folder / "metrics.csv").exists()
    assert not (folder / "ratios.csv").exists()


# Reading


def test_a_last_step_that_was_cut_short_is_left_out(whole: tuple[Path, SegmentationTask], tmp_path: Path) -> None:
    short = tmp_path / "ratios.csv"
    short.write_bytes(log(whole[0])[:-40])

    assert [*read_ratio_log(short)] == [0, 2, 4]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no log of ratios"),
        ("epoch,step,loss\n1,2,3\n", "no log of ratios"),
        ("step,layer,statistic,group,normalizer,ratio\n0,a,mean,0,IN\n", "line 2"),
        ("step,layer,statistic,group,normalizer,ratio\n0,a,mean,0,IN,x\n", "line 2"),
        ("step,layer,statistic,group,normalizer,ratio\n0,a,mean,0,IN,1\n", "no row for"),
    ],
)
def test_what_is_no_log_is_refused_in_one_line(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "ratios.csv"
    path.write_text(text)

    with pytest.raises(InvalidConfigError, match=named) as caught:
        read_ratio_log(path)

    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
