"""Which trainings a comparison consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from geonorm.errors import InvalidConfigError
from geonorm.evaluation.comparison_plan import STANDARD_NORMS, plan_comparison

CONFIGS = Path(__file__).parents[2] / "configs"
OUR_DATA = {"class_path": "geonorm.data.InriaDataModule", "init_args": {"root": "data"}}


def config(folder: Path, name: str = "run.yaml", **settings: Any) -> Path:
    (folder / name).write_text(yaml.safe_dump({"data": OUR_DATA, **settings}, sort_keys=False))
    return folder / name


def norms_of(folder: Path, **settings: Any) -> list[tuple[str, dict[str, Any]]]:
    plan = plan_comparison(folder / "out", [config(folder)], seeds=[0], **settings)
    return [(run.norm, run.config["model"]["norm"]) for run in plan.runs]


@pytest.mark.parametrize("name", sorted(STANDARD_NORMS))
def test_the_usual_norms_are_those_of_the_configurations(name: str) -> None:
    file = yaml.safe_load((CONFIGS / "norm" / f"{name.lower()}.yaml").read_text())

    assert file["model"]["norm"] == STANDARD_NORMS[name]


def test_without_a_word_four_norms_run_with_three_seeds(tmp_path: Path) -> None:
    plan = plan_comparison(tmp_path / "out", [config(tmp_path)])

    assert [(run.seed, run.norm) for run in plan.runs] == [
        (seed, norm) for seed in (0, 1, 2) for norm in ("BN", "GN", "LCN", "SN")
    ]
    assert len({run.folder for run in plan.runs}) == 12


def test_norms_are_names_in_any_case_or_files(tmp_path: Path) -> None:
    file = tmp_path / "wide.yaml"
    file.write_text("model: {norm: {class_path: geonorm.norms.LocalContextNorm, init_args: {window_px: 65}}}")

    found = norms_of(tmp_path, norms=["gn", str(file), f"Wider={file}"])

    wide = {"class_path": "geonorm.norms.LocalContextNorm", "init_args": {"window_px": 65}}
    assert found == [("GN", STANDARD_NORMS["GN"]), ("WIDE", wide), ("Wider", wide)]


def test_the_configuration_says_norms_and_seeds_and_the_words_choose_among_them(tmp_path: Path) -> None:
    section = {"norms": {"LCN": {"class_path": "x.Y"}, "BN": {"class_path": "x.Z"}}, "seeds": [7, 8]}
    file = config(tmp_path, compare=section)

    plan = plan_comparison(tmp_path, [file])
    chosen = plan_comparison(tmp_path, [file], norms=["lcn"], seeds=[3])

    assert [(run.norm, run.seed) for run in plan.runs] == [("LCN", 7), ("BN", 7), ("LCN", 8), ("BN", 8)]
    assert [(run.config["model"]["norm"], run.seed) for run in chosen.runs] == [({"class_path": "x.Y"}, 3)]


def test_a_budget_lays_its_files_over_their_originals(tmp_path: Path) -> None:
    full, other = config(tmp_path, "full.yaml"), config(tmp_path, "other.yaml")
    small = config(tmp_path, "full.small.yaml", compare={"drawn": {"layout": "inria"}})

    plan = plan_comparison(tmp_path / "out", [full, other], budget="small", norms=["BN"], seeds=[0])

    [run] = plan.runs
    names = ["0_full.yaml", "1_full.small.yaml", "2_other.yaml"]
    assert [*plan.stripped] == [tmp_path / "out/configs" / name for name in names]
    assert run.words[:3] == tuple(f"--config={tmp_path / 'out/configs' / name}" for name in names)
    assert small.is_file()
    assert f"--data.root={tmp_path / 'out/scenes'}" in run.words


def test_the_configuration_s_own_norm_is_left_out(tmp_path: Path) -> None:
    norm = {"class_path": "geonorm.norms.LocalContextNorm", "init_args": {"window_cells": 9}}
    file = config(tmp_path, model={"norm": norm, "learning_rate": 0.1}, compare={"seeds": [0]})

    plan = plan_comparison(tmp_path / "out", [file], norms=["SN"])

    assert [*plan.stripped.values()] == [{"data": OUR_DATA, "model": {"learning_rate": 0.1}}]


@pytest.mark.parametrize(
    ("words", "data", "expected"),
    [
        ((), OUR_DATA, True),
        ((), {"class_path": "ChesapeakeDataModule"}, True),
        ((), {"class_path": "torchgeo.datamodules.LoveDADataModule"}, False),
        (("--data=torchgeo.datamodules.LoveDADataModule",), OUR_DATA, False),
        (("--data", "geonorm.data.RastersDataModule"), {"class_path": "no.Such"}, True),
    ],
)
def test_the_seed_goes_to_data_modules_that_draw_by_one(
    words: tuple[str, ...], data: dict[str, Any], expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"data": data}))

    [run] = plan_comparison(tmp_path, [tmp_path / "run.yaml"], norms=["BN"], seeds=[5], more=words).runs

    assert ("--data.seed=5" in run.words) == expected
    assert run.config["seed_everything"] == 5


def test_what_a_result_depends_on_leaves_out_the_other_norms_and_seeds(tmp_path: Path) -> None:
    plain = config(tmp_path, "a.yaml")
    with_section = config(tmp_path, "b.yaml", compare={"seeds": [0], "norms": {"BN": STANDARD_NORMS["BN"]}})

    [one] = plan_comparison(tmp_path, [plain], norms=["BN"], seeds=[0]).runs
    [two] = plan_comparison(tmp_path, [with_section]).runs
    [three] = plan_comparison(tmp_path, [plain], norms=["BN"], seeds=[0], more=["--trainer.max_epochs=3"]).runs

    assert one.settings == two.settings
    assert one.settings != three.settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"norms": ["group"]}, "norms must be some of BN, GN, LCN, SN, IN, LN, or files like"),
        ({"norms": ["BN", "bn"]}, "the norm BN is named twice"),
        ({"norms": []}, "norms must name at least one"),
        ({"norms": ["no.yaml"]}, "no.yaml cannot be read"),
        ({"norms": ["../x=a.yaml"]}, "a norm's name is that of a folder too"),
        ({"seeds": [1, 1]}, "seeds must be different numbers"),
        ({"seeds": [-1]}, "seeds must be different numbers"),
        ({"more": ["--model.norm.window_px=3"]}, "Name norms with --norms"),
        ({"budget": "tiny"}, "there is no budget tiny: "),
    ],
)
def test_what_cannot_be_compared_is_one_line(settings: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=expected):
        plan_comparison(tmp_path, [config(tmp_path)], **settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "is no YAML file"),
        ("just words", "must hold settings by name"),
        ("compare: {norm: BN}", "compare takes norms, seeds, pools, drawn, got norm"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)

    with pytest.raises(InvalidConfigError, match=expected):
        plan_comparison(tmp_path, [tmp_path / "run.yaml"])


def test_without_a_configuration_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="name a file with --config"):
        plan_comparison(tmp_path, [])
