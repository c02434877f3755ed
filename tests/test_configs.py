"""Every file in configs/: the parser takes it, and a tiny network trains a step with it."""

from __future__ import annotations

import csv
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine

import geonorm.norms
from geonorm.cli import main
from geonorm.tasks import data_cli
from geonorm.tasks.checkpoint import load_model
from tests.tasks.trainings import QUIET

pytestmark = QUIET

FOLDER = Path(__file__).parent.parent / "configs"
FILES = sorted(
    path.relative_to(FOLDER).as_posix()
    for path in FOLDER.rglob("*")
    if path.is_file() and path.parent.name != "paper"  # those stand alone: test_paper_configs.py
)
OTHERS = {"data": "data/folders.yaml", "norm": "norm/bn.yaml", "run": "run/cpu.yaml"}
"""What completes a file of one folder: a file of each of the others."""
WANDB = "extra/wandb.yaml"
TORCHGEO = "data/torchgeo.yaml"
"""Its data lie in other folders: tests/tasks/test_torchgeo.py trains with it."""
PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two scenes, one to train on and one to validate on, and of three tiles of land cover."""
    root = tmp_path_factory.mktemp("scenes")
    random = np.random.default_rng(0)
    shape = {"driver": "GTiff", "height": 60, "width": 90, "dtype": "uint8", "crs": "EPSG:32633", "transform": PLACE}
    for part, bands, below in (("images", 3, 256), ("gt", 1, 2)):
        (root / part).mkdir()
        for name in ("austin1", "austin6"):
            with rasterio.open(root / part / f"{name}.tif", "w", count=bands, **shape) as dataset:
                dataset.write(random.integers(0, below, (bands, 60, 90)).astype(np.uint8))
    for split in ("train", "val", "test"):
        folder = root / f"md_1m_2013_extended-debuffered-{split}_tiles"
        folder.mkdir()
        for part, bands, below in (("naip-new", 4, 256), ("lc", 1, 7)):
            with rasterio.open(folder / f"m_1_{part}.tif", "w", count=bands, **shape) as dataset:
                dataset.write(random.integers(0, below, (bands, 60, 90)).astype(np.uint8))
    return root


@pytest.fixture(autouse=True)
def _no_arguments_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns of pytest's."""
    monkeypatch.setattr(sys, "argv", ["geonorm"])


def combined(file: str, scenes: Path, *more: str) -> list[str]:
    """Return the words of a training with a file, completed by files of the other folders."""
    files = OTHERS | {file.split("/")[0]: file}
    place = [f"--data.root={scenes}"]
    if file == TORCHGEO:
        place = []
    if file == "data/rasters.yaml":
        place = [f"--data.images={scenes / 'images'}", f"--data.labels={scenes / 'gt'}"]
    return ["fit", *(f"--config={FOLDER / name}" for name in files.values()), *place, *more]


def test_there_are_configurations_of_every_kind() -> None:
    assert {file.split("/")[0] for file in FILES} == {"data", "extra", "norm", "run", "study"}
    assert all(file.endswith(".yaml") for file in FILES)


@pytest.mark.parametrize("file", FILES)
def test_every_setting_reaches_the_parser(file: str, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(combined(file, scenes, "--print_config"))

    assert end.value.code in (0, None)
    parsed = yaml.safe_load(capsys.readouterr().out)
    settings = yaml.safe_load((FOLDER / file).read_text(encoding="utf-8"))
    assert missing(settings, parsed) <= {"data.init_args.root", "data.init_args.images", "data.init_args.labels"}


def test_check_data_knows_which_settings_of_a_training_are_not_about_the_data(
    scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(combined("norm/bn.yaml", scenes, "--print_config"))

    settings = yaml.safe_load(capsys.readouterr().out)
    assert {f"--{name}" for name in settings} <= {*data_cli.OTHERS, "--data"}


def test_the_study_has_every_norm_with_settings_that_it_takes() -> None:
    norms = yaml.safe_load((FOLDER / "study/norms.yaml").read_text(encoding="utf-8"))["compare"]["norms"]

    made = {
        name: getattr(geonorm.norms, norm["class_path"].rpartition(".")[2])(16, stride=2, **norm.get("init_args", {}))
        for name, norm in norms.items()
    }

    assert {type(layer) for layer in made.values()} >= {
        geonorm.norms.NoNorm,
        geonorm.norms.FrozenBatchNorm,
        geonorm.norms.BatchNorm,
        geonorm.norms.BatchRenorm,
        geonorm.norms.GroupNorm,
        geonorm.norms.InstanceNorm,
        geonorm.norms.LayerNorm,
        geonorm.norms.LocalContextNorm,
        geonorm.norms.SwitchableNorm,
    }


def missing(settings: Any, parsed: Any, name: str = "") -> set[str]:
    """Return the names of the settings that the parser did not take as they stand in the file."""
    if isinstance(settings, list) and isinstance(parsed, list) and len(settings) == len(parsed):
        settings, parsed = dict(enumerate(settings)), dict(enumerate(parsed))
    if isinstance(settings, dict):
        found = parsed if isinstance(parsed, dict) else {}
        return {
            one
            for key, value in settings.items()
            for one in missing(
                value, found.get(key, found.get(f"{key}".removesuffix("+"))), f"{name}.{key}".lstrip(".")
            )
        }
    return set() if settings == parsed else {name}


def plain(key: Any) -> Any:
    """Return a key without the sign that its value is added to what other files say."""
    return key.removesuffix("+") if isinstance(key, str) else key


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted({*FILES} - {WANDB, TORCHGEO}))
def test_every_file_trains_a_step(file: str, scenes: Path, tmp_path: Path) -> None:
    tiny = [
        "--model.network.depth=1",
        "--model.network.width=4",
        "--model.eval_core_px=32",
        "--data.patch_px=32",
        "--data.batch_size=2",
        "--data.patches_per_epoch=2",
        "--data.num_workers=0",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    if "schedule" in yaml.safe_load((FOLDER / file).read_text(encoding="utf-8")).get("model", {}):
        tiny.append("--model.schedule.warmup_steps=0")  # the one step there is

    assert main(combined(file, scenes, *tiny)) == 0

    run = tmp_path / "lightning_logs/version_0"
    model = load_model(run / "checkpoints/last.ckpt")
    norm = yaml.safe_load((FOLDER / (file if file.startswith("norm/") else OTHERS["norm"])).read_text())["model"][
        "norm"
    ]
    assert model.norm_path["class_path"] == norm["class_path"]
    with (run / "metrics.csv").open() as log:
        [loss] = [float(row["train/loss"]) for row in csv.DictReader(log) if row["train/loss"]]
    assert math.isfinite(loss)


def test_extras_add_their_callbacks_to_one_another(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = combined("extra/ema.yaml", scenes, f"--config={FOLDER}/extra/early_stopping.yaml", "--print_config")

    with pytest.raises(SystemExit):
        main(words)

    callbacks = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    names = [callback["class_path"].rpartition(".")[2] for callback in callbacks]
    assert names == ["EMAWeightAveraging", "EarlyStopping"]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed, and would ask for an account")
def test_without_wandb_the_log_to_it_is_refused_in_one_line(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = combined(WANDB, scenes, f"--trainer.default_root_dir={tmp_path}")

    assert main(words) == 2

    assert "pip install 'geonorm[wandb]'" in capsys.readouterr().err.splitlines()[-1]
