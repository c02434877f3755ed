"""The configurations of the papers' experiments: every figure as printed, and a step on drawn data."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from torch import nn

from geonorm.cli import main
from geonorm.data import ChesapeakeDataModule, InriaDataModule
from geonorm.evaluation.comparison_plan import plan_comparison
from geonorm.files import write_text
from geonorm.models import UNet, tile_geometry
from geonorm.norms import BatchNorm, LocalContextNorm
from geonorm.norms.base import Norm
from geonorm.tasks.checkpoint import factory_of, load_model
from tests.tasks.trainings import QUIET

pytestmark = QUIET

PAPER = Path(__file__).parent.parent / "configs/paper"
INRIA, INRIA_VAL, CHESAPEAKE = (PAPER / f"{name}.yaml" for name in ("inria", "inria-val", "chesapeake"))
AUTHORS = PAPER / "chesapeake-authors.yaml"


def settings(*files: Path) -> dict[str, Any]:
    """Return what the files say, laid over one another."""
    merged: dict[str, Any] = {}

    def lay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
        both = {key: lay(below[key], above[key]) for key in above if isinstance(below.get(key), dict)}
        return {**below, **above, **both}

    for file in files:
        merged = lay(merged, yaml.safe_load(file.read_text(encoding="utf-8")))
    return merged


@pytest.fixture(autouse=True)
def _no_arguments_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns of pytest's."""
    monkeypatch.setattr(sys, "argv", ["geonorm"])


def parsed(capsys: pytest.CaptureFixture[str], *files: Path) -> dict[str, Any]:
    """Return the settings that the files stand for, defaults included."""
    with pytest.raises(SystemExit):
        main(["fit", *(f"--config={file}" for file in files), "--print_config"])
    content: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return content


@pytest.mark.parametrize("file", [INRIA, INRIA_VAL])
def test_inria_is_trained_as_section_4_4_of_the_lcn_paper_says(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed(capsys, file)

    data, model = found["data"]["init_args"], found["model"]
    # "572 x 572 randomly sampled patches from all training image tiles", "batch size of 12", "8,000 patches"
    assert (data["patch_px"], data["batch_size"], data["patches_per_epoch"]) == (572, 12, 8000)
    assert data["val_names"] is None  # the usual split
    # "Adam", "starting learning rate of 0.001", "the first 60 epochs and decay it to 0.0001 over the next 40"
    assert (model["optimizer"]["class_path"], model["learning_rate"]) == ("torch.optim.Adam", 0.001)
    assert (model["lr_milestones"], found["trainer"]["max_epochs"], model["schedule"]) == ([60], 100, None)
    # "Binary cross-entropy loss", "from scratch"
    assert model["loss"]["class_path"] == "geonorm.tasks.losses.BinaryCrossEntropy"
    assert (model["single_logit"], model["init_from"], model["localize_px"]) == (True, None, None)
    # "a 91 x 91 window size and four channels per group"
    assert model["norm"]["class_path"] == "geonorm.norms.LocalContextNorm"
    norm = model["norm"]["init_args"]
    assert (norm["window_cells"], norm["group_size"], norm["window_px"]) == (91, 4, None)


def test_inria_s_network_takes_572_px_and_gives_388(capsys: pytest.CaptureFixture[str]) -> None:
    network = parsed(capsys, INRIA)["model"]["network"]

    assert network["class_path"] == "geonorm.models.UNet"
    chosen = {name: network["init_args"][name] for name in ("depth", "width", "padding", "norm_at")}
    assert chosen == {"depth": 4, "width": 64, "padding": "valid", "norm_at": "every"}
    assert tile_geometry(UNet(3, 2, norm=BatchNorm, **{**chosen, "width": 4})).margin_px == (572 - 388) // 2


def test_all_tiles_train_for_the_contest_and_only_there() -> None:
    contest, own = (settings(file)["data"]["init_args"] for file in (INRIA, INRIA_VAL))

    assert contest.pop("train_on_all") is True
    assert contest == own
    assert "NOT comparable" in INRIA_VAL.read_text(encoding="utf-8")


def test_land_cover_is_trained_as_section_4_5_of_the_lcn_paper_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed(capsys, CHESAPEAKE)

    data, model = found["data"]["init_args"], found["model"]
    # "Maryland 2013", "50,000 multi-spectral image patches, each of size 256 x 256 x 4", "batch size of 96"
    assert (data["train_states"], data["imagery"], data["test_states"]) == (["md"], "naip-new", None)
    assert (data["patches_per_epoch"], data["patch_px"], data["batch_size"]) == (50_000, 256, 96)
    # "Adam", "from scratch for 100 epochs", "0.001 with decay to 0.0001 after 60 epochs", "multi-class cross-entropy"
    assert (model["optimizer"]["class_path"], model["learning_rate"]) == ("torch.optim.Adam", 0.001)
    assert (model["lr_milestones"], found["trainer"]["max_epochs"]) == ([60], 100)
    assert (model["loss"]["class_path"], model["single_logit"]) == ("geonorm.tasks.losses.CrossEntropy", False)
    # "4 channels per group and and a 31 x 31 window"
    norm = model["norm"]["init_args"]
    assert (norm["window_cells"], norm["group_size"]) == (31, 4)


def test_the_authors_land_cover_network_has_its_channels_and_two_norms(capsys: pytest.CaptureFixture[str]) -> None:
    given = parsed(capsys, CHESAPEAKE, AUTHORS)["model"]["network"]["init_args"]

    network = UNet(4, 4, norm=BatchNorm, **{name: given[name] for name in ("depth", "width", "padding", "norm_at")})

    channels = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert {32, 64, 128, 256, 512} <= {*channels}
    assert given["padding"] == "valid"
    norms = [name for name, module in network.named_modules() if isinstance(module, Norm)]
    assert len(norms) == 2  # the last of the first block, and of the last
    assert norms[0].startswith("encoder.0.")
    assert norms[1].startswith("decoder.3.")


@pytest.mark.parametrize(
    ("file", "groups", "window"),
    [(INRIA_VAL, 32, 91), (CHESAPEAKE, 8, 31)],
)
def test_the_tables_compare_the_papers_norms_with_their_groups(
    file: Path, groups: int, window: int, tmp_path: Path
) -> None:
    plan = plan_comparison(tmp_path, [file])

    norms = {run.norm: run.config["model"]["norm"] for run in plan.runs}
    assert [*norms] == ["BN", "GN", "LCN"]
    assert sorted({run.seed for run in plan.runs}) == [0, 1, 2]
    assert norms["GN"]["init_args"] == {"num_groups": groups}
    assert norms["LCN"]["init_args"] == {"window_cells": window, "group_size": 4}
    assert norms["LCN"] == settings(file)["model"]["norm"]


@pytest.mark.parametrize("budget", [None, "small"])
@pytest.mark.parametrize("file", [INRIA_VAL, CHESAPEAKE])
def test_every_norm_of_a_table_reaches_the_network_as_the_table_says_it(
    file: Path, budget: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_comparison(tmp_path, [file], budget=budget, seeds=[0])
    last = file if budget is None else file.with_name(f"{file.stem}.{budget}.yaml")
    norms = settings(last)["compare"]["norms"]
    for path, content in plan.stripped.items():
        write_text(path, yaml.safe_dump(dict(content)))

    for run in plan.runs:
        write_text(run.folder / "run.yaml", yaml.safe_dump(dict(run.config)))
        with pytest.raises(SystemExit):
            main(["fit", *run.words, "--print_config"])
        model = yaml.safe_load(capsys.readouterr().out)["model"]
        norm, network = factory_of(model["norm"]), factory_of(model["network"])
        made = network(3, 2, norm=norm)
        said = norms[run.norm]
        assert model["norm"]["class_path"] == said["class_path"]
        given = {key: value for key, value in model["norm"]["init_args"].items() if key in said.get("init_args", {})}
        assert given == said.get("init_args", {})
        assert any(type(module).__name__ == said["class_path"].rpartition(".")[2] for module in made.modules())


SMALLER = [
    "--model.network.width=8",
    "--model.eval_core_px=128",
    "--data.batch_size=2",
    "--data.patches_per_epoch=2",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.num_sanity_val_steps=0",
]
"""A narrower network and one step; patches, windows, groups and the way down are the paper's."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of both layouts, as large as a patch of 572 px needs them."""
    root = tmp_path_factory.mktemp("drawn")
    random = np.random.default_rng(0)
    place = Affine(1, 0, 400_000, 0, -1, 4_300_000)
    shape = {"driver": "GTiff", "height": 580, "width": 600, "dtype": "uint8", "crs": "EPSG:26918", "transform": place}

    def draw(path: Path, bands: int, values: list[int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path, "w", count=bands, **shape) as dataset:
            dataset.write(random.choice(np.array(values, np.uint8), (bands, 580, 600)))

    for name in ("austin1", "austin6"):
        draw(root / f"AerialImageDataset/train/images/{name}.tif", 3, [*range(256)])
        draw(root / f"AerialImageDataset/train/gt/{name}.tif", 1, [0, 255])
    for split in ("train", "val", "test"):
        folder = root / f"cvpr_chesapeake_landcover/md_1m_2013_extended-debuffered-{split}_tiles"
        draw(folder / "m_1_naip-new.tif", 4, [*range(256)])
        draw(folder / "m_1_lc.tif", 1, [1, 2, 3, 4, 5, 6, 15])
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "data", "windows"),
    [
        ((INRIA,), InriaDataModule, 18),
        ((INRIA_VAL,), InriaDataModule, 18),
        ((CHESAPEAKE,), ChesapeakeDataModule, 18),
        ((CHESAPEAKE, AUTHORS), ChesapeakeDataModule, 2),
    ],
    ids=["inria", "inria-val", "chesapeake", "chesapeake-authors"],
)
def test_a_step_is_trained_and_scored_on_drawn_data_of_the_layout(
    files: tuple[Path, ...], data: type, windows: int, drawn: Path, tmp_path: Path
) -> None:
    groups = ["--trainer.default_root_dir", str(tmp_path), f"--data.root={drawn}"]

    assert main(["fit", *(f"--config={file}" for file in files), *SMALLER, *groups]) == 0

    run = tmp_path / "lightning_logs/version_0"
    model = load_model(run / "checkpoints/last.ckpt")
    assert sum(isinstance(module, LocalContextNorm) for module in model.network.modules()) == windows
    assert len(model.spec.bands) == (3 if data is InriaDataModule else 4)
    with (run / "metrics.csv").open() as log:
        rows = list(csv.DictReader(log))
    [loss] = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    [score] = [float(row["val/iou"]) for row in rows if row["val/iou"]]
    assert 0.1 < loss < 10
    assert 0 <= score <= 1


def test_the_small_inria_draws_cities_and_scores_some_that_it_has_not_seen(tmp_path: Path) -> None:
    plan = plan_comparison(tmp_path, [INRIA_VAL], budget="small")

    assert {run.norm for run in plan.runs} == {"BN", "GN", "LCN", "SN"}
    assert f"--data.root={tmp_path / 'scenes'}" in plan.runs[0].words
    small = settings(INRIA_VAL, PAPER / "inria-val.small.yaml")
    kept_out = {*small["data"]["init_args"]["val_names"]}
    tiles = range(1, small["compare"]["drawn"]["tiles_per_city"] + 1)
    assert {f"{city}{tile}" for city in plan.pools["unseen cities"] for tile in tiles} <= kept_out
    assert {city for pool in plan.pools.values() for city in pool} == {*plan.drawn["cities"]}


def test_the_small_land_cover_draws_states_and_scores_some_that_it_has_not_seen(tmp_path: Path) -> None:
    plan = plan_comparison(tmp_path, [CHESAPEAKE], budget="small")

    small = settings(CHESAPEAKE, PAPER / "chesapeake.small.yaml")
    assert {run.norm for run in plan.runs} == {"BN", "GN", "LCN", "SN"}
    assert small["data"]["init_args"]["train_states"] == ["md"]
    assert (
        {"md", *plan.pools["other states"]} == {*plan.drawn["states"]} == {*small["data"]["init_args"]["test_states"]}
    )
