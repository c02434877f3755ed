"""Several processes that label one raster, and need not know of each other: the same bytes as one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geonorm.cli import main
from geonorm.errors import InvalidConfigError, RasterError, TargetExistsError
from geonorm.inference import Options, merge, predict_raster, predict_rasters
from geonorm.inference.journal import StripFolder
from geonorm.inference.shards import Shard
from tests.folders import names_in
from tests.inference.rasters import draw, noise
from tests.inference.test_sources import checkpoint, cut
from tests.models.networks import local, unet

pytestmark = pytest.mark.usefixtures("both_engines")

__all__ = ["checkpoint"]  # a fixture

CORE_PX = 16
SETTINGS: dict[str, Any] = {"core_px": CORE_PX, "halo": "exact", "outputs": ("labels", "logits"), "vectors": "gpkg"}
FILES = ["map.gpkg", "map.logits.tif", "map.tif"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raster of seven strips."""
    return draw(tmp_path_factory.mktemp("source") / "source.tif", noise(3, 100, 48), first_index=(-16, 16))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return unet(local(window_px=5))


@pytest.fixture(scope="module")
def expected(network: nn.Module, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("whole")
    predict_raster(network, source, folder / "map.tif", **SETTINGS)
    return {name: (folder / name).read_bytes() for name in FILES}


def made_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Which strips


@given(strips=st.lists(st.integers(), max_size=30), count=st.integers(1, 8), contiguous=st.booleans())
def test_every_strip_belongs_to_one_shard(strips: list[int], count: int, contiguous: bool) -> None:
    parts = [Shard(index, count).of(strips, contiguous=contiguous) for index in range(count)]

    assert sorted(chain.from_iterable(parts)) == sorted(strips)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if contiguous:
        assert list(chain.from_iterable(parts)) == strips


@pytest.mark.parametrize("first", [0, 1], ids=["from 0", "from 1"])
def test_shards_are_counted_from_0_or_from_1(first: int) -> None:
    assert {Shard.parse(f"{index}/3") for index in range(first, first + 3)} == {Shard(index, 3) for index in range(3)}


@pytest.mark.parametrize("text", ["", "1", "4/3", "-1/3", "0/0", "1/2/3", "a/b"])
def test_another_form_is_one_line(text: str) -> None:
    with pytest.raises(InvalidConfigError, match="--shard must be i/n"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("variables", "shard"),
    [
        ({}, Shard()),
        (
            {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "1"},
            Shard(2, 4, 0),
        ),
        (
            {"SLURM_NTASKS": "3", "SLURM_NTASKS_PER_NODE": "3", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
            Shard(1, 3, 1),
        ),
    ],
    ids=["none", "torchrun", "SLURM"],
)
def test_launchers_are_heard(variables: dict[str, str], shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("SLURM", "TORCHELASTIC", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LSB_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert Shard.from_environment() == shard


def test_a_launcher_that_lightning_does_not_like_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "3")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)

    with pytest.raises(InvalidConfigError, match="ntasks-per-node"):
        Shard.from_environment()


def test_shards_of_one_machine_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)

    assert [Shard(rank, 4, rank).device("cuda") for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert Shard(1, 4, 1).device("cuda:0") == "cuda:0"
    assert Shard(0, 1).device("cuda") == "cuda"
    assert Shard(1, 4, 1).device("cpu") == "cpu"


# One map


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_last_shard_puts_the_map_together_with_the_bytes_of_one_process(
    network: nn.Module, source: Path, tmp_path: Path, expected: dict[str, bytes], order: list[int]
) -> None:
    results = [
        predict_raster(network, source, tmp_path / "map.tif", shard=Shard(index, 3), **SETTINGS) for index in order
    ]

    assert [result.missing_strips > 0 for result in results] == [True, True, False]
    assert [bool(result.class_pixels) for result in results] == [False, False, True]
    assert made_in(tmp_path) == expected


@pytest.mark.parametrize("count", [2, 3])
def test_blended_tiles_are_shared_out_too(network: nn.Module, source: Path, tmp_path: Path, count: int) -> None:
    predict_raster(network, source, tmp_path / "whole.tif", core_px=CORE_PX, blend="hann")

    for index in range(count):
        predict_raster(network, source, tmp_path / "map.tif", core_px=CORE_PX, blend="hann", shard=Shard(index, count))

    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_more_shards_than_strips_do_no_harm(
    network: nn.Module, source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    for index in range(9):
        predict_raster(network, source, tmp_path / "map.tif", shard=Shard(index, 9), **SETTINGS)

    assert made_in(tmp_path) == expected


def test_the_strips_of_a_lost_shard_are_made_by_whoever_comes_next(
    network: nn.Module, source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    told: list[str] = []
    predict_raster(network, source, tmp_path / "map.tif", shard=Shard(0, 3), **SETTINGS)
    predict_raster(network, source, tmp_path / "map.tif", shard=Shard(2, 3), **SETTINGS)

    predict_raster(network, source, tmp_path / "map.tif", on_plan=told.append, **SETTINGS)

    assert re.search(r"resumed  [45] of 7 strips are done", told[0])  # by rows strips of a shard lie together
    assert made_in(tmp_path) == expected


def test_a_shard_that_comes_late_finds_the_map_made(
    network: nn.Module, source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    predict_raster(network, source, tmp_path / "map.tif", **SETTINGS)

    result = predict_raster(network, source, tmp_path / "map.tif", shard=Shard(1, 3), **SETTINGS)

    assert (result.missing_strips, result.class_pixels) == (0, ())
    assert made_in(tmp_path) == expected
    with pytest.raises(TargetExistsError):
        predict_raster(network, source, tmp_path / "map.tif", shard=Shard(1, 3), core_px=32)


def test_restarting_one_shard_leaves_the_strips_of_the_others(
    network: nn.Module, source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    for index in (0, 1):
        predict_raster(network, source, tmp_path / "map.tif", shard=Shard(index, 3), **SETTINGS)
    kept = StripFolder(tmp_path / "map.tif").rows

    result = predict_raster(network, source, tmp_path / "map.tif", shard=Shard(1, 3), restart=True, **SETTINGS)

    assert StripFolder(tmp_path / "map.tif").rows == kept
    assert result.missing_strips == 2
    predict_raster(network, source, tmp_path / "map.tif", shard=Shard(2, 3), **SETTINGS)
    assert made_in(tmp_path) == expected


def test_shards_with_other_settings_are_refused(network: nn.Module, source: Path, tmp_path: Path) -> None:
    predict_raster(network, source, tmp_path / "map.tif", shard=Shard(0, 3), **SETTINGS)

    with pytest.raises(InvalidConfigError, match="its core_px is 16, here it is 32"):
        predict_raster(network, source, tmp_path / "map.tif", shard=Shard(1, 3), **{**SETTINGS, "core_px": 32})


def test_neighbours_are_shared_out_as_one(network: nn.Module, tmp_path: Path) -> None:
    cut(tmp_path / "parts", noise(3, 60, 90), [25], [40])
    for folder, shards in (("whole", [Shard()]), ("shards", [Shard(0, 2), Shard(1, 2)])):
        (tmp_path / folder).mkdir()
        for shard in shards:
            predict_rasters(network, [tmp_path / "parts"], tmp_path / folder, Options(core_px=CORE_PX, shard=shard))

    assert made_in(tmp_path / "shards") == made_in(tmp_path / "whole")
    assert len(made_in(tmp_path / "whole")) == 4


# merge


@contextmanager
def nobody_merges() -> Any:
    """Let every shard end before the strips are put together."""

    @contextmanager
    def not_mine(self: StripFolder) -> Any:
        yield False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StripFolder, "merging", not_mine)
        yield


def test_merge_puts_together_what_the_shards_left(
    network: nn.Module, source: Path, tmp_path: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    with nobody_merges():
        for index in range(2):
            predict_raster(network, source, tmp_path / "map.tif", shard=Shard(index, 2), **SETTINGS)
    assert names_in(tmp_path) == [StripFolder(tmp_path / "map.tif").path.name]

    assert main(["merge", str(tmp_path / "map.tif")]) == 0

    assert sorted(capsys.readouterr().out.split()) == [str(tmp_path / name) for name in FILES]
    assert made_in(tmp_path) == expected


def test_merge_moves_with_the_folder(network: nn.Module, tmp_path: Path) -> None:
    cut(tmp_path / "parts", noise(3, 60, 90), [25], [40])
    for folder in ("whole", "here"):
        (tmp_path / folder).mkdir()
    predict_rasters(network, [tmp_path / "parts"], tmp_path / "whole", Options(core_px=CORE_PX))
    with nobody_merges():
        predict_rasters(network, [tmp_path / "parts"], tmp_path / "here", Options(core_px=CORE_PX))
    (tmp_path / "here").rename(tmp_path / "there")

    merge(tmp_path / "there" / "part_0_0.tif")

    assert made_in(tmp_path / "there") == made_in(tmp_path / "whole")


def test_merge_says_what_is_missing(network: nn.Module, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "map.tif"
    predict_raster(network, source, target, shard=Shard(1, 3), **SETTINGS)

    with pytest.raises(RasterError, match=r"[45] of the 7 strips of .*map\.tif are missing, the first at row 0\. Run"):
        merge(target)
    assert len(StripFolder(target).rows) in (2, 3)


def test_merge_without_strips_is_one_line(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"no strips are kept for .*map\.tif\. Check the name"):
        merge(tmp_path / "map.tif")
    with pytest.raises(InvalidConfigError, match="It is complete already"):
        merge(source)
    assert names_in(tmp_path) == []


def test_merge_replaces_a_map_only_if_asked_to(
    network: nn.Module, source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    target = tmp_path / "map.tif"
    with nobody_merges():
        predict_raster(network, source, target, **SETTINGS)
    target.write_text("mine")

    with pytest.raises(TargetExistsError):
        merge(target)
    assert target.read_text() == "mine"
    merge(target, overwrite=True)
    assert made_in(tmp_path) == expected


def test_two_do_not_put_a_map_together_at_once(network: nn.Module, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "map.tif"
    with nobody_merges():
        predict_raster(network, source, target, **SETTINGS)

    with StripFolder(target).merging(), pytest.raises(RasterError, match="another process is putting"):
        merge(target)


# Processes


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("large") / "source.tif", noise(3, 900, 160), first_index=(-16, 16))


def run_all(commands: Sequence[Sequence[str]]) -> None:
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for run in runs:
        _, error = run.communicate(timeout=300)
        assert run.returncode == 0, error


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_of_torchrun_make_the_bytes_of_one_process(
    checkpoint: Path, large: Path, tmp_path: Path, ranks: int
) -> None:
    words = ["predict", str(checkpoint), str(large)]
    settings = ["--core_px=32", "--outputs", "labels", "probabilities", "--device=cpu"]
    assert main([*words, str(tmp_path / "whole.tif"), *settings]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--master-port=0"]

    run_all([[*torchrun, "-m", "geonorm", *words, str(tmp_path / "map.tif"), *settings]])

    for name in (".tif", ".probabilities.tif"):
        assert (tmp_path / f"map{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()
    assert [name for name in names_in(tmp_path) if name.startswith(".")] == []


@pytest.mark.slow
def test_three_shards_at_once_make_the_bytes_of_one_process(checkpoint: Path, large: Path, tmp_path: Path) -> None:
    words = ["predict", str(checkpoint), str(large)]
    assert main([*words, str(tmp_path / "whole.tif"), "--core_px=32"]) == 0
    shard = [sys.executable, "-m", "geonorm", *words, str(tmp_path / "map.tif"), "--core_px=32", "--shard"]

    run_all([[*shard, f"{index}/3"] for index in (1, 2, 3)])

    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert [name for name in names_in(tmp_path) if name.startswith(".")] == []
    with rasterio.open(tmp_path / "map.tif") as made:
        assert not any("shard" in text for text in made.tags().values())
