"""The command line: what it answers, and that every mistake is one line and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray

import geonorm.inference
from geonorm import __version__
from geonorm.cli import main
from geonorm.data.spec import INRIA
from geonorm.data.statistics import FILE_NAME
from geonorm.inference import predict_raster
from geonorm.models import UNet
from geonorm.norms import BatchNorm, GroupNorm, SwitchableNorm
from geonorm.tasks import SegmentationTask
from tests.raster.odd_files import DAMAGED
from tests.tasks.trainings import QUIET

pytestmark = QUIET

PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)
COMMANDS = ("fit", "validate", "test", "predict", "shift", "localize", "ratios", "info", "demo")
MODEL = (
    "--model.norm=geonorm.norms.BatchNorm",
    "--model.network=geonorm.models.UNet",
    "--model.network.depth=1",
    "--model.network.width=4",
)
DATA = (
    "--data=geonorm.data.InriaDataModule",
    "--data.root=data",
    "--data.patch_px=32",
    "--data.batch_size=2",
    "--data.patches_per_epoch=2",
    "--data.num_workers=0",
)
TRAINER = (
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
)


def draw(path: Path, values: NDArray[Any], **options: Any) -> None:
    """Write a raster (C, H, W) with rasterio alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=PLACE, **shape, **options) as dataset:
        dataset.write(values)


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The contents of a folder with a checkpoint, rasters and data, some of them wrong, by name."""
    folder = tmp_path_factory.mktemp("originals")
    random = np.random.default_rng(0)
    image = random.integers(1, 256, (3, 60, 90)).astype(np.uint8)
    labels = random.integers(0, 2, (1, 60, 90)).astype(np.uint8)
    draw(folder / "image.tif", image)
    draw(folder / "grey.tif", image[:1])
    draw(folder / "small.tif", labels[:, :30, :45])
    for name in ("austin1", "austin6"):
        draw(folder / f"data/images/{name}.tif", image)
        draw(folder / f"data/gt/{name}.tif", labels)
    draw(folder / "lonely/images/austin1.tif", image)
    draw(folder / "sevens/images/austin6.tif", image)
    draw(folder / "sevens/images/austin1.tif", image)
    draw(folder / "sevens/gt/austin1.tif", labels)
    draw(folder / "sevens/gt/austin6.tif", labels * 7)
    whole = (folder / "image.tif").read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    # Damage that shows only when the pixels are read.
    draw(folder / "deflated.tif", image, compress="deflate")
    packed = (folder / "deflated.tif").read_bytes()
    (folder / "spoilt.tif").write_bytes(packed[:2000] + bytes(4000) + packed[6000:])
    (folder / "text.tif").write_text("no raster")
    (folder / "text.ckpt").write_text("no checkpoint")
    save_checkpoint(folder / "bn.ckpt", BatchNorm)
    save_checkpoint(folder / "gn.ckpt", partial(GroupNorm, group_size=2))
    save_checkpoint(folder / "sn.ckpt", SwitchableNorm)
    save_checkpoint(folder / "sn_of_two.ckpt", partial(SwitchableNorm, pool=["IN", "BN"]))
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    torch.save([1, 2, 3], folder / "list.ckpt")
    (folder / "bad_norm.yaml").write_text("model:\n  norm:\n    class_path: geonorm.norms.Nonsense\n")
    (folder / "bad_norm_key.yaml").write_text(
        "model:\n  norm:\n    class_path: geonorm.norms.LocalContextNorm\n    init_args:\n      widow_px: 9\n"
    )
    (folder / "bad_key.yaml").write_text("model:\n  lerning_rate: 0.1\n")
    (folder / "bad_yaml.yaml").write_text("model: [1\n")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save_checkpoint(path: Path, norm: Any) -> None:
    """Save what prediction needs of a checkpoint."""
    torch.manual_seed(0)
    spec = INRIA.with_statistics((120.0,) * 3, (70.0,) * 3)
    task = SegmentationTask(norm, spec, partial(UNet, depth=1, width=4))
    torch.save({"state_dict": task.state_dict(), "geonorm": task.description}, path)


@pytest.fixture
def here(tmp_path: Path, originals: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a copy of the originals."""
    for name, content in originals.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_arguments_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns of pytest's."""
    monkeypatch.setattr(sys, "argv", ["geonorm"])


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every file with its bytes, every folder with None."""
    paths = [path for path in folder.rglob("*") if path.name != FILE_NAME]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def run(*words: str) -> int:
    """Return the exit code, whichever way the command line ends."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def fit(*words: str, command: str = "fit") -> list[str]:
    """Return the words of a tiny training, with some more."""
    return [command, *MODEL, *DATA, *TRAINER, *words]


# Answers


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code = run("--help")

    out = capsys.readouterr().out
    assert code == 0
    assert all(f"    {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", ["predict", "shift", "localize", "ratios", "info", "demo"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0

    assert f"geonorm {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_help_of_training_names_the_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0

    out = capsys.readouterr().out
    assert all(
        f"--{name}" in out for name in ("config", "model.norm", "model.learning_rate", "data", "trainer.max_epochs")
    )


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0

    assert capsys.readouterr().out == f"geonorm {__version__}\n"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "geonorm", "--version"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, f"geonorm {__version__}\n", "")


def test_help_does_not_wait_for_heavy_libraries() -> None:
    script = (
        "import sys; from geonorm.cli.entry import _parser; _parser().format_help(); "
        "print({'torch', 'rasterio'} & {*sys.modules})"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"


@pytest.mark.parametrize("words", [[], ["banana"]], ids=["none", "unknown"])
def test_without_a_command_the_commands_are_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2

    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("geonorm: error:")
    assert "COMMAND" in last


# Work


def test_predict_writes_the_map_that_python_writes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--core_px",
        "32",
        "--halo",
        "exact",
        "--grid_offset_px",
        "4",
        "8",
        "--batch_size",
        "2",
        "--device",
        "cpu",
    ]

    code = run("predict", "bn.ckpt", "image.tif", "map.tif", *options)

    predict_raster("bn.ckpt", "image.tif", "python.tif", core_px=32, halo="exact", grid_offset_px=(4, 8), batch_size=2)
    assert code == 0
    assert (here / "map.tif").read_bytes() == (here / "python.tif").read_bytes()
    assert capsys.readouterr().out.startswith("map.tif: 5,400 pixels labelled (")


def test_predict_over_all_phases_makes_one_map_wherever_the_grid_lies(here: Path) -> None:
    words = ["predict", "bn.ckpt", "image.tif"]
    options = ["--tta", "phases", "--core_px", "32", "--halo", "exact"]

    assert run(*words, "here.tif", *options) == run(*words, "moved.tif", *options, "--grid_offset_px", "3", "-7") == 0

    predict_raster("bn.ckpt", "image.tif", "python.tif", tta="phases", core_px=32, halo="exact")
    assert (here / "here.tif").read_bytes() == (here / "python.tif").read_bytes()
    with rasterio.open("here.tif") as one, rasterio.open("moved.tif") as other:
        assert one.tags()["geonorm_tta"] == "phases"
        np.testing.assert_array_equal(one.read(), other.read())


def test_predict_replaces_a_map_if_asked_to(here: Path) -> None:
    (here / "map.tif").write_text("old")

    assert run("predict", "bn.ckpt", "image.tif", "map.tif", "--overwrite") == 0

    with rasterio.open("map.tif") as dataset:
        assert dataset.shape == (60, 90)


def test_a_warning_of_ours_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "gn.ckpt", "image.tif", "map.tif", "--halo", "8") == 0

    lines = capsys.readouterr().err.splitlines()
    [line] = [line for line in lines if "warning" in line.lower()]
    assert line.startswith("geonorm: warning: The labels depend on the tiles")


def test_ratios_writes_tables_and_pictures_and_says_the_averages(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ratios", "out", "--runs", "sn.ckpt") == 0

    out = capsys.readouterr().out
    assert all(words in out for words in ("mean BN", "RF <49 px", "bottleneck", "out/ratios.csv"))
    assert {"ratios.csv", "summary.json", "sn_ratios.png", "averages.png"} < {path.name for path in here.glob("out/*")}


def test_info_says_what_a_checkpoint_holds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "bn.ckpt") == 0

    out = capsys.readouterr().out
    assert all(fact in out for fact in ("red, green, blue", "building", "geonorm.norms.BatchNorm", "bn.ckpt"))


def test_info_measures_the_reach_on_rasters(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--sources", "image.tif", "--pixels", "2", "--cores", "2", "--core_px", "16", "--halos_px", "0", "4"]

    assert run("info", "bn.ckpt", "--reach", "out", *words) == 0

    out = capsys.readouterr().out
    assert all(words in out for words in ("red, green, blue", "px far", "labels that may differ", "out/reach.json"))
    assert {path.name for path in here.glob("out/*")} == {"reach.json", "reach.csv", "halos.csv", "reach.png"}


def test_localize_writes_what_info_predict_and_shift_take(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("localize", "gn.ckpt", "local.ckpt", "--window_px", "5") == 0
    assert run("info", "local.ckpt") == 0
    assert run("predict", "local.ckpt", "image.tif", "map.tif", "--halo", "exact", "--core_px", "32") == 0
    shift = ["--checkpoints", "local.ckpt", "--sources", "image.tif", "--core_px", "32", "--shifts_px", "8"]
    assert run("shift", "out", *shift) == 0

    out, err = capsys.readouterr()
    assert "windows of 5 px" in out
    assert "localized: norms over windows of 5 px" in err
    assert "local (localized, 5 px)" in out
    with rasterio.open("map.tif") as dataset:
        assert dataset.tags()["geonorm_localized_px"] == "5"
        assert dataset.tags()["geonorm_tile_independent"] == "yes"


def test_localize_prints_a_table_and_writes_the_window_it_takes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--window_px",
        "3",
        "5",
        "--sources",
        "image.tif",
        "--core_px",
        "16",
        "--shift_px",
        "8",
        "--tolerance",
        "1",
    ]

    assert run("localize", "gn.ckpt", "local.ckpt", *words, "--halos_px", "0", "8", "--report", "figures.json") == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == ["network", "original", "window 3 px", "window 5 px"]
    assert lines[-1] == "Written: local.ckpt, figures.json"
    assert json.loads((here / "figures.json").read_text())["halos_px"] == [0, 8]


# Mistakes: code 2, one line, nothing written

MISTAKES: dict[str, tuple[list[str], str]] = {
    "missing checkpoint": (["predict", "no.ckpt", "image.tif", "map.tif"], "no.ckpt"),
    "text as checkpoint": (["predict", "text.ckpt", "image.tif", "map.tif"], "text.ckpt"),
    "raster as checkpoint": (["predict", "image.tif", "image.tif", "map.tif"], "image.tif"),
    "foreign checkpoint": (["predict", "foreign.ckpt", "image.tif", "map.tif"], "foreign.ckpt"),
    "list as checkpoint": (["predict", "list.ckpt", "image.tif", "map.tif"], "list.ckpt"),
    "foreign checkpoint to info": (["info", "foreign.ckpt"], "foreign.ckpt"),
    "reach without rasters": (["info", "bn.ckpt", "--reach", "out"], "--sources belong together"),
    "rasters without reach": (["info", "bn.ckpt", "--sources", "image.tif"], "--sources belong together"),
    "reach on no raster": (["info", "bn.ckpt", "--reach", "out", "--sources", "no.tif"], "no.tif"),
    "reach on too few bands": (["info", "bn.ckpt", "--reach", "out", "--sources", "grey.tif"], "grey.tif has 1 band"),
    "reach of no pixel": (["info", "bn.ckpt", "--reach", "out", "--sources", "image.tif", "--pixels", "0"], "pixels"),
    "reach in large cores": (
        ["info", "bn.ckpt", "--reach", "out", "--sources", "image.tif", "--core_px", "512"],
        "No raster is large enough",
    ),
    "reach into a file": (["info", "bn.ckpt", "--reach", "text.tif", "--sources", "image.tif"], "text.tif cannot be"),
    "missing raster": (["predict", "bn.ckpt", "no.tif", "map.tif"], "no.tif"),
    "no raster": (["predict", "bn.ckpt", "text.tif", "map.tif"], "text.tif"),
    "folder as raster": (["predict", "bn.ckpt", "data", "map.tif"], "data"),
    "truncated raster": (["predict", "bn.ckpt", "cut.tif", "map.tif"], "cut.tif"),
    "too few bands": (["predict", "bn.ckpt", "grey.tif", "map.tif"], "grey.tif has 1 band"),
    "target that exists": (["predict", "bn.ckpt", "image.tif", "text.tif"], "text.tif exists"),
    "target is the source": (["predict", "bn.ckpt", "image.tif", "image.tif", "--overwrite"], "image.tif"),
    "target in no folder": (["predict", "bn.ckpt", "image.tif", "no/map.tif"], "no"),
    "halo in words": (["predict", "bn.ckpt", "image.tif", "map.tif", "--halo", "wide"], "wide"),
    "negative halo": (["predict", "bn.ckpt", "image.tif", "map.tif", "--halo", "-5"], "-5"),
    "halo of two minus signs": (["predict", "bn.ckpt", "image.tif", "map.tif", "--halo=--5"], "--5"),
    "exact halo where none is": (["predict", "gn.ckpt", "image.tif", "map.tif", "--halo", "exact"], "no exact halo"),
    "odd core": (["predict", "bn.ckpt", "image.tif", "map.tif", "--core_px", "33"], "33"),
    "no core": (["predict", "bn.ckpt", "image.tif", "map.tif", "--core_px", "0"], "core_px"),
    "unknown averaging": (["predict", "bn.ckpt", "image.tif", "map.tif", "--tta", "d5"], "got 'd5'"),
    "phases that do not divide": (["predict", "bn.ckpt", "image.tif", "map.tif", "--tta", "phases:9"], "3 x 3 = 9"),
    "no batch": (["predict", "bn.ckpt", "image.tif", "map.tif", "--batch_size", "0"], "batch_size"),
    "negative batch": (["predict", "bn.ckpt", "image.tif", "map.tif", "--batch_size", "-1"], "batch_size"),
    "unknown device": (["predict", "bn.ckpt", "image.tif", "map.tif", "--device", "banana"], "banana"),
    "device that holds no numbers": (["predict", "bn.ckpt", "image.tif", "map.tif", "--device", "meta"], "meta"),
    "device of another torch": (["predict", "bn.ckpt", "image.tif", "map.tif", "--device", "hpu"], "hpu"),
    "shift without checkpoint": (["shift", "out", "--checkpoints", "no.ckpt", "--sources", "image.tif"], "no.ckpt"),
    "shift without raster": (["shift", "out", "--checkpoints", "bn.ckpt", "--sources", "no.tif"], "no.tif"),
    "localize Batch Norm": (["localize", "bn.ckpt", "local.ckpt", "--window_px", "9"], "no GroupNorm"),
    "localize onto a file": (["localize", "gn.ckpt", "text.ckpt", "--window_px", "9"], "text.ckpt exists"),
    "localize on no raster": (
        ["localize", "gn.ckpt", "local.ckpt", "--window_px", "9", "--sources", "no.tif"],
        "no.tif",
    ),
    "localize over no window": (["localize", "gn.ckpt", "local.ckpt", "--window_px", "0"], "window_px must be"),
    "localize with labels of another raster": (
        ["localize", "gn.ckpt", "local.ckpt", "--window_px", "9", "--sources", "image.tif", "--labels", "small.tif"],
        "small.tif is 30 x 45",
    ),
    "start from a missing checkpoint": (fit("--model.init_from=no.ckpt"), "no.ckpt"),
    "start from text": (fit("--model.init_from=text.ckpt"), "text.ckpt"),
    "start from another network": (fit("--model.init_from=foreign.ckpt"), "of its 0 tensors none"),
    "localize what is trained with Batch Norm": (fit("--model.localize_px=9"), "no GroupNorm"),
    "ratios of no checkpoint": (["ratios", "out", "--runs", "no.ckpt"], "no.ckpt does not exist"),
    "ratios of another norm": (["ratios", "out", "--runs", "bn.ckpt"], "its norm is geonorm.norms.BatchNorm"),
    "ratios of a foreign checkpoint": (["ratios", "out", "--runs", "foreign.ckpt"], "foreign.ckpt"),
    "ratios of a folder without log": (["ratios", "out", "--runs", "data"], "data is no log folder"),
    "ratios into a file": (["ratios", "text.tif", "--runs", "sn.ckpt"], "The folder text.tif cannot be made"),
    "ratios of unlike pools": (["ratios", "out", "--runs", "sn.ckpt", "sn_of_two.ckpt"], "do not correspond"),
    "unknown norm": (fit("--config=bad_norm.yaml"), "Nonsense"),
    "unknown setting of a norm": (fit("--config=bad_norm_key.yaml"), "widow_px"),
    "unknown key": (fit("--config=bad_key.yaml"), "lerning_rate"),
    "no YAML": (fit("--config=bad_yaml.yaml"), "config"),
    "missing YAML": (fit("--config=no.yaml"), "no.yaml"),
    "unknown option": (fit("--banana=3"), "banana"),
    "word for a number": (fit("--data.batch_size=many"), "many"),
    "number out of range": (fit("--data.batch_size=0"), "batch_size must be at least 1, got 0"),
    "negative seed": (fit("--data.seed=-1"), "seed"),
    "norm that does not fit": (fit("--model.norm=geonorm.norms.GroupNorm", "--model.norm.group_size=3"), "group_size"),
    "torch's norm": (fit("--model.norm=torch.nn.BatchNorm2d"), "geonorm.norms.BatchNorm"),
    "misspelt data option": (
        fit("--data.val_nmes=[a]"),
        "geonorm: error: Option 'val_nmes' is not accepted",
    ),
    "misspelt data option, mended": (fit("--data.val_nmes=[a]"), "InriaDataModule. Did you mean 'val_names'?"),
    "data option like no other": (fit("--data.zzz=1"), "It takes root, val_names, train_on_all, patch_px,"),
    "misspelt option of the norm": (fit("--model.norm.epps=1"), "geonorm.norms.BatchNorm. Did you mean 'eps'?"),
    "data option of another kind": (fit("--data.patch_px=big"), 'InriaDataModule\': Parser key "patch_px": Expected a'),
    "validate without settings": (
        ["validate", "--ckpt_path", "best.ckpt"],
        "geonorm validate --config runs/lightning_logs/version_N/config.yaml --ckpt_path best.ckpt",
    ),
    "test without settings": (["test", "--ckpt_path=best.ckpt"], "version_N/config.yaml --ckpt_path best.ckpt"),
    "missing data folder": (fit("--data.root=nowhere"), "nowhere does not exist"),
    "empty data folder": (fit("--data.root=empty"), "empty has no folder"),
    "images without masks": (fit("--data.root=lonely"), "austin1"),
    "unknown validation image": (fit("--data.val_names=[paris3]"), "paris3"),
    "data that say no classes": (
        ["fit", *MODEL, "--data=lightning.pytorch.demos.boring_classes.BoringDataModule"],
        "BoringDataModule",
    ),
    "fit from a missing checkpoint": (fit("--ckpt_path=no.ckpt"), "no.ckpt"),
    "fit from text": (fit("--ckpt_path=text.ckpt"), "text.ckpt"),
    "validate a missing checkpoint": (fit("--ckpt_path=no.ckpt", command="validate"), "no.ckpt"),
    "validate a foreign checkpoint": (fit("--ckpt_path=foreign.ckpt", command="validate"), "foreign.ckpt"),
    "test text": (fit("--ckpt_path=text.ckpt", command="test"), "text.ckpt"),
}


@pytest.mark.parametrize(("words", "named"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    here: Path, words: list[str], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(here)

    code = run(*words)

    line = one_error(capfd)
    assert code == 2
    assert named in line
    assert contents(here) == before


def one_error(capfd: pytest.CaptureFixture[str]) -> str:
    """Return the line of the error: the only one, but for what Lightning says as it starts."""
    lines = capfd.readouterr().err.splitlines()
    said = [line for line in lines if not line.startswith(("Seed set to", "INFO: "))]
    assert len(said) == 1, said
    assert said[0].startswith("geonorm: error: ")
    return said[0]


@pytest.mark.real
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_raster_is_one_line_and_leaves_nothing(
    here: Path, real_data: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(here)

    code = run("predict", "bn.ckpt", str(real_data / "odd-geotiff" / name), "map.tif")

    assert code == 2
    assert name in one_error(capfd)
    assert contents(here) == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["predict", "bn.ckpt", "spoilt.tif", "map.tif"], "spoilt.tif"),
        (fit("--data.root=sevens", "--trainer.logger=false"), "austin6.tif holds the value 7"),
    ],
    ids=["predict", "fit"],
)
def test_what_shows_only_during_the_work_is_one_line_at_its_end(
    here: Path, words: list[str], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code = run(*words)

    lines = capfd.readouterr().err.splitlines()
    assert code == 2
    assert named in lines[-1]
    assert [line for line in lines if "error" in line.lower()] == [lines[-1]]
    assert lines[-1].startswith("geonorm: error: ")
    assert not (here / "map.tif").exists()


# What is not a mistake of the user's


@pytest.fixture
def _ctrl_c_as_before() -> Iterator[None]:
    """Lightning turns a second Ctrl-C off as it shuts down."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def raising(error: type[BaseException]) -> Callable[..., None]:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    return fail


@pytest.mark.usefixtures("here", "_ctrl_c_as_before")
@pytest.mark.parametrize(
    ("place", "name", "words"),
    [
        (geonorm.inference, "predict_raster", ["predict", "bn.ckpt", "image.tif", "map.tif"]),
        (SegmentationTask, "training_step", fit()),
        (SegmentationTask, "validation_step", fit(command="validate")),
    ],
    ids=["predict", "fit", "validate"],
)
def test_an_interrupt_ends_with_code_130(
    place: Any, name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(place, name, raising(KeyboardInterrupt))

    assert run(*words) == 130

    assert capfd.readouterr().err.splitlines()[-1] == "geonorm: interrupted"


@pytest.mark.usefixtures("here")
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geonorm.inference, "predict_raster", raising(ZeroDivisionError))

    with pytest.raises(ZeroDivisionError):
        main(["predict", "bn.ckpt", "image.tif", "map.tif"])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "COMMAND"),
        (["label"], "invalid choice: 'label'"),
        (["predict", "a.ckpt"], "source, target; see geonorm predict --help"),
        (
            ["predict", "a.ckpt", "b.tif", "c.tif", "--core_px", "big"],
            "--core_px must be auto or a number of pixels, got 'big'",
        ),
        (["info", "a.ckpt", "--colour"], "unrecognized arguments: --colour"),
    ],
    ids=str,
)
def test_a_mistyped_command_gets_one_line(words: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert match in err


@pytest.mark.parametrize("target", ["map.png", "map", "map.gpkg"])
def test_a_map_is_a_geotiff(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bn.ckpt").touch()
    (tmp_path / "image.tif").touch()

    assert main(["predict", str(tmp_path / "bn.ckpt"), str(tmp_path / "image.tif"), target]) == 2

    assert "give a target that ends with .tif or .tiff" in capsys.readouterr().err
