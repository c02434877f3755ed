"""Runs that end early and go on: with the same bytes in the end, or with one line that says why not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from geonorm.cli import main
from geonorm.data.spec import INRIA
from geonorm.errors import GeonormWarning, InvalidConfigError, RasterError
from geonorm.inference import journal as journal_module
from geonorm.inference import predict_raster
from geonorm.inference.journal import Journal
from geonorm.inference.shards import Shard
from geonorm.raster.layer import Layer
from geonorm.tasks.checkpoint import TrainedModel, save_model
from tests.folders import names_in
from tests.inference.rasters import draw, labels_in, noise
from tests.models.networks import local, unet

pytestmark = pytest.mark.usefixtures("both_engines")

CORE_PX = 16
NUM_STRIPS = 4
ROWS = [0, 16, 32, 48]
FACTS = {"source": "a.tif", "plan": {"core_px": 16}}

Layers = Sequence[tuple[Layer, NDArray[Any]]]
LABELS = Layer(name="labels", dtype="uint8", band_names=("labels",), nodata=255)

predict = partial(predict_raster, core_px=CORE_PX, halo="exact")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raster of four strips."""
    return draw(tmp_path_factory.mktemp("source") / "source.tif", noise(3, 64, 48), first_index=(-16, 16))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return unet(local(window_px=5))


@pytest.fixture(scope="module")
def expected(network: nn.Module, source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The map of a run that never ended early."""
    target = tmp_path_factory.mktemp("whole") / "labels.tif"
    predict(network, source, target)
    return target.read_bytes()


def run_until(
    network: nn.Module, source: Path, target: Path, *, strips: int, error: BaseException | None = None
) -> BaseException:
    """Run until some strips are finished and the next one is computed, and return what ended it."""
    error = RasterError("the source has gone.") if error is None else error
    keep, kept = Journal.keep, 0

    def keep_some(journal: Journal, row: int, layers: Layers) -> None:
        nonlocal kept
        if kept == strips:
            raise error
        keep(journal, row, layers)
        kept += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "keep", keep_some)
        with pytest.raises(type(error)) as caught:
            predict(network, source, target)
    return caught.value


def strips_computed(action: Callable[[], object]) -> list[int]:
    """Return the first rows of the strips that are computed meanwhile."""
    rows: list[int] = []
    keep = Journal.keep

    def note(journal: Journal, row: int, layers: Layers) -> None:
        rows.append(row)
        keep(journal, row, layers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "keep", note)
        action()
    return rows


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


# --- going on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strips", [1, 2, 3])
def test_the_same_call_again_goes_on_and_ends_with_the_same_bytes(
    network: nn.Module, source: Path, tmp_path: Path, expected: bytes, strips: int
) -> None:
    target = tmp_path / "labels.tif"
    told: list[str] = []
    error = run_until(network, source, target, strips=strips)
    assert not target.exists()

    computed = strips_computed(lambda: predict(network, source, target, on_plan=told.append))

    assert f"{strips} of {NUM_STRIPS} strips are kept: run the same command again to go on." in str(error)
    assert f"resumed  {strips} of {NUM_STRIPS} strips are done" in told[0]
    assert computed == ROWS[strips:]
    assert target.read_bytes() == expected
    assert [*tmp_path.iterdir()] == [target]


def test_the_figures_of_a_resumed_run_are_those_of_the_whole_map(
    network: nn.Module, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "labels.tif"
    run_until(network, source, target, strips=2)

    result = predict(network, source, target)

    labels = labels_in(target)
    assert result.class_pixels == tuple(int((labels == label).sum()) for label in range(2))


def test_a_run_may_end_several_times(network: nn.Module, source: Path, tmp_path: Path, expected: bytes) -> None:
    target = tmp_path / "labels.tif"
    for _ in range(2):
        run_until(network, source, target, strips=1)

    predict(network, source, target)

    assert target.read_bytes() == expected


def test_a_run_that_ends_before_a_strip_is_finished_leaves_nothing(
    network: nn.Module, source: Path, tmp_path: Path
) -> None:
    error = run_until(network, source, tmp_path / "labels.tif", strips=0)

    assert str(error) == "the source has gone."
    assert [*tmp_path.iterdir()] == []


def test_an_interrupted_run_says_how_to_go_on(network: nn.Module, source: Path, tmp_path: Path) -> None:
    with pytest.warns(GeonormWarning, match="2 of 4 strips are kept"):
        run_until(network, source, tmp_path / "labels.tif", strips=2, error=KeyboardInterrupt())


def test_a_map_that_is_to_be_replaced_stays_until_the_new_one_is_whole(
    network: nn.Module, source: Path, tmp_path: Path, expected: bytes
) -> None:
    target = tmp_path / "labels.tif"
    run_until(network, source, target, strips=1)
    target.write_bytes(b"the map before")

    predict(network, source, target, overwrite=True)

    assert target.read_bytes() == expected


def test_every_strip_is_whole_or_not_there(network: nn.Module, source: Path, tmp_path: Path, expected: bytes) -> None:
    target = tmp_path / "labels.tif"
    run_until(network, source, target, strips=2)
    [folder] = hidden(tmp_path)
    half = folder / "strip-000000032.abc.tmp"
    half.mkdir()
    (half / "labels.tif").write_bytes(b"II half a strip")

    predict(network, source, target)

    assert target.read_bytes() == expected


@pytest.mark.parametrize("length", [0, 4, 60, -30])
def test_a_damaged_strip_is_named_and_made_anew(
    network: nn.Module, source: Path, tmp_path: Path, expected: bytes, length: int
) -> None:
    target = tmp_path / "labels.tif"
    run_until(network, source, target, strips=2)
    [folder] = hidden(tmp_path)
    strip = folder / "strip-000000016" / "labels.tif"
    strip.write_bytes(strip.read_bytes()[:length])

    with pytest.raises(RasterError, match=r"strip-000000016 is damaged.* 3 of 4 strips are kept"):
        predict(network, source, target)
    predict(network, source, target)

    assert target.read_bytes() == expected


# --- other settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"core_px": 32}, "its core_px is 16, here it is 32"),
        ({"grid_offset_px": (4, 0)}, r"its grid_offset_px is \[0, 0\], here it is \[4, 0\]"),
        ({"batch_size": 2}, "its batch_size is 1, here it is 2"),
        ({"tta": "phases"}, 'its tta is "none", here it is "phases"'),
        ({"nodata_rule": "any"}, 'its nodata_rule is "all", here it is "any"'),
        ({"halo": 0}, 'its halo is "exact", here it is 0'),
        ({"outputs": ("labels", "logits")}, r'its outputs is \["labels"\], here it is \["labels", "logits"\]'),
    ],
    ids=str,
)
def test_strips_of_other_settings_are_refused_in_one_line_that_names_the_difference(
    network: nn.Module, source: Path, tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    target = tmp_path / "labels.tif"
    run_until(network, source, target, strips=2)
    [folder] = hidden(tmp_path)
    before = sorted(folder.iterdir())

    with pytest.raises(InvalidConfigError, match=words) as caught:
        predict_raster(network, source, target, **{"core_px": CORE_PX, "halo": "exact", **settings})  # type: ignore[arg-type]  # each its own type

    assert "--restart" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(folder.iterdir()) == before


def test_strips_of_another_network_or_source_are_refused(network: nn.Module, source: Path, tmp_path: Path) -> None:
    target, other = tmp_path / "labels.tif", unet(local(window_px=5))
    run_until(network, source, target, strips=2)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    newer = draw(tmp_path / "newer.tif", noise(3, 64, 48), first_index=(-16, 16))

    with pytest.raises(InvalidConfigError, match="its weights is"):
        predict(other, source, target)
    with pytest.raises(InvalidConfigError, match="its source is"):
        predict(network, newer, target)


def test_a_source_that_was_changed_is_another(network: nn.Module, tmp_path: Path) -> None:
    source, target = draw(tmp_path / "source.tif", noise(3, 64, 48), first_index=(-16, 16)), tmp_path / "labels.tif"
    run_until(network, source, target, strips=2)
    os.utime(source, ns=(1, 1))

    with pytest.raises(InvalidConfigError, match="its source's time is"):
        predict(network, source, target)


def test_restarting_discards_what_was_done(network: nn.Module, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "labels.tif"
    run_until(network, source, target, strips=2)

    computed = strips_computed(lambda: predict(network, source, target, restart=True))
    run_until(network, source, tmp_path / "other.tif", strips=2)
    predict_raster(network, source, tmp_path / "other.tif", core_px=32, restart=True)

    assert computed == ROWS
    assert hidden(tmp_path) == []


# --- the folder -------------------------------------------------------------------------------------


def journal(target: Path, **settings: Any) -> Journal:
    return Journal(target, FACTS, **{"rows": (0, 16, 32), **settings})


def keep(journal: Journal, row: int) -> None:
    journal.keep(row, [(LABELS, np.full((1, 16, 5), row, np.uint8))])


def test_strips_come_back_as_they_were(tmp_path: Path) -> None:
    with journal(tmp_path / "a.tif") as kept:
        for row in (32, 0):
            keep(kept, row)
        kept.keep(16, [])

        assert kept.strips.rows == {0, 16, 32}
        assert kept.missing == frozenset()
        assert kept.strips.file(16, "labels") is None
        for row in (0, 32):
            file = kept.strips.file(row, "labels")
            assert file is not None
            assert (labels_in(file) == row).all()


def test_two_processes_do_not_make_the_same_map(tmp_path: Path) -> None:
    with journal(tmp_path / "a.tif"):
        with pytest.raises(RasterError, match="another process is making"):
            journal(tmp_path / "a.tif").__enter__()
        with pytest.raises(RasterError, match="another process is making"):
            journal(tmp_path / "a.tif", shard=Shard(0, 2)).__enter__()
        with journal(tmp_path / "b.tif"):
            pass


@pytest.mark.parametrize("name", ["a.tif", "ä" * 120 + ".tif", "a" * 240 + "1.tif", "a" * 240 + "2.tif"])
def test_names_of_any_length_have_a_folder_of_their_own(tmp_path: Path, name: str) -> None:
    with journal(tmp_path / name) as kept:
        keep(kept, 0)
        with journal(tmp_path / ("b" + name[1:])) as other:
            assert other.strips.rows == frozenset()


def test_a_disk_that_refuses_is_one_line_and_leaves_no_half_strip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with journal(tmp_path / "a.tif") as kept:
        monkeypatch.setattr(journal_module, "put_in_place", full)
        with pytest.raises(RasterError, match=r"cannot write .*a\.tif: .*No space left on device"):
            keep(kept, 0)
        assert kept.strips.rows == frozenset()
        assert not [name for name in names_in(kept.strips.path) if name.startswith("strip")]


def test_a_strip_that_another_process_made_meanwhile_is_taken(tmp_path: Path) -> None:
    with journal(tmp_path / "a.tif", shard=Shard(0, 2)) as one, journal(tmp_path / "a.tif", shard=Shard(1, 2)) as other:
        keep(one, 0)
        keep(other, 0)

        assert other.strips.rows == {0}
        assert not [name for name in names_in(one.strips.path) if name.endswith(".tmp")]


# --- killed -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = unet(local(window_px=5), depth=2, width=8)
    named = {"class_path": "geonorm.models.UNet", "init_args": {"depth": 2, "width": 8}}
    norm = {"class_path": "geonorm.norms.LocalContextNorm", "init_args": {"window_px": 5, "group_size": 2}}
    model = TrainedModel(network=network, spec=INRIA, network_path=named, norm_path=norm, name="", version="")
    checkpoint = tmp_path / "model.ckpt"
    save_model(model, checkpoint)
    source = draw(tmp_path / "source.tif", noise(3, 1920, 160), first_index=(-16, 16))
    words = [str(checkpoint), str(source)]
    settings = ["--core_px=32", "--halo=16"]
    whole, killed = tmp_path / "whole.tif", tmp_path / "killed" / "labels.tif"
    killed.parent.mkdir()
    assert main(["predict", *words, str(whole), *settings]) == 0
    draw_delay = random.Random(0)

    kills = 0
    while kills < 10:
        run = subprocess.Popen(
            [sys.executable, "-m", "geonorm", "predict", *words, str(killed), *settings],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        before = finished(killed.parent)
        deadline = time.monotonic() + 120
        # Once it has begun to finish strips, after a while of its own.
        while finished(killed.parent) <= before and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(draw_delay.uniform(0, 0.1))
        run.send_signal(signal.SIGKILL)
        run.wait()
        kills += 1
        assert not killed.exists(), "the run was too short to be killed ten times"
        assert finished(killed.parent) > before

    assert main(["predict", *words, str(killed), *settings]) == 0

    assert killed.read_bytes() == whole.read_bytes()
    assert [*killed.parent.iterdir()] == [killed]


def finished(folder: Path) -> int:
    return len(list(folder.glob(".*/strip-*[0-9]")))


def test_shards_that_choose_otherwise_at_the_same_moment_are_told(tmp_path: Path) -> None:
    target = tmp_path / "labels.tif"
    other = {**FACTS, "plan": {"core_px": 32}}
    with Journal(target, FACTS, rows=ROWS, shard=Shard(0, 2)) as first:
        with (
            pytest.raises(
                InvalidConfigError, match=r"another shard .* its plan.core_px is 16, here it is 32\. Give all"
            ),
            Journal(target, other, rows=ROWS, shard=Shard(1, 2)),
        ):
            pass
        plan = first.strips.read_plan()
        assert plan is not None
        assert plan["facts"] == FACTS
