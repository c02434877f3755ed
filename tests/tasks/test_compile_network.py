"""Training with a compiled network: what it learns, what its checkpoints hold, and where the plain network is taken."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from geonorm.data.spec import INRIA
from geonorm.models import UNet
from geonorm.norms import BatchNorm
from geonorm.tasks import SegmentationTask
from geonorm.tasks.checkpoint import load_model
from tests.tasks.test_averaging import EMA
from tests.tasks.trainings import QUIET, STEPS_PER_EPOCH, arguments, fit, run

pytestmark = [
    *QUIET,
    # Lightning asks torch for something that torch deprecates; the command line says nothing of it.
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\)"),
]

COMPILE = "--model.compile_network=true"
SPEC = INRIA.with_statistics((90.0, 110.0, 70.0), (40.0, 50.0, 30.0))
Calls = list[tuple[nn.Module, tuple[int, ...]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The network and the size of each call of something compiled; nothing is compiled."""
    seen: Calls = []

    def compiling(network: nn.Module) -> Callable[[Tensor], Tensor]:
        def answer(image: Tensor) -> Tensor:
            seen.append((network, tuple(image.shape)))
            return network(image)

        return answer

    monkeypatch.setattr(torch, "compile", compiling)
    return seen


def make_task(monkeypatch: pytest.MonkeyPatch, *, compile_network: bool = True) -> SegmentationTask:
    monkeypatch.setattr(SegmentationTask, "log", lambda *args, **options: None)
    return SegmentationTask(BatchNorm, SPEC, partial(UNet, depth=1, width=4), compile_network=compile_network)


def batch() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=random) * 200
    return {"image": image, "mask": torch.randint(0, 2, (2, 32, 32), generator=random)}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile writes C++, and there is no g++ to build it")
def test_a_compiled_training_learns_the_same_and_can_be_resumed_without(scenes: Path, tmp_path: Path) -> None:
    torch.compiler.reset()  # else the limit of recompilations may have been reached by other tests

    plain = fit(scenes, tmp_path / "plain", EMA)
    graphs = counters["stats"]["unique_graphs"]
    compiled = fit(scenes, tmp_path / "compiled", EMA, COMPILE)
    resumed = fit(
        scenes,
        tmp_path / "resumed",
        EMA,
        "--trainer.max_epochs=3",
        f"--ckpt_path={compiled.folder / 'checkpoints' / 'last.ckpt'}",
    )

    assert counters["stats"]["unique_graphs"] > graphs
    assert compiled.logged("train/loss") == pytest.approx(plain.logged("train/loss"), rel=2e-3)
    assert compiled.logged("val/iou") == pytest.approx(plain.logged("val/iou"), abs=0.01)
    assert compiled.weights.keys() == plain.weights.keys()
    assert len(resumed.logged("train/loss")) == STEPS_PER_EPOCH
    assert load_model(compiled.folder / "checkpoints" / "best.ckpt").network(torch.zeros(1, 3, 4, 6)).shape[1] == 2


def test_only_the_steps_of_training_are_compiled(scenes: Path, tmp_path: Path, calls: Calls) -> None:
    done = fit(scenes, tmp_path, COMPILE, "--trainer.max_epochs=1")

    assert [size for _, size in calls] == [(4, 3, 32, 32)] * STEPS_PER_EPOCH
    assert len(done.logged("val/iou")) == 1

    calls.clear()
    fit(scenes, tmp_path, "--trainer.max_epochs=1")

    assert calls == []


def test_what_is_compiled_is_no_part_of_state_or_copies(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    task, plain = make_task(monkeypatch), make_task(monkeypatch, compile_network=False)
    task.training_step(batch(), 0)

    copied = copy.deepcopy(task)
    copied.training_step(batch(), 0)

    assert [network for network, _ in calls] == [task.network, copied.network]
    assert task.network is not copied.network
    assert task.state_dict().keys() == plain.state_dict().keys() == copied.state_dict().keys()
    assert [name for name, _ in task.named_modules()] == [name for name, _ in plain.named_modules()]


def test_where_torch_cannot_compile_is_one_line(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compiling(network: nn.Module) -> Callable[[Tensor], Tensor]:
        def answer(image: Tensor) -> Tensor:
            raise torch._dynamo.exc.TorchDynamoException(
                "no compiler\n  was found\n\nSet TORCHDYNAMO_VERBOSE=1 for more"
            )

        return answer

    monkeypatch.setattr(torch, "compile", compiling)

    code = run(["fit", *arguments(scenes, tmp_path, COMPILE)])

    assert code == 2
    error = "geonorm: error: torch cannot compile this network here: no compiler was found."
    assert capsys.readouterr().err.splitlines()[-1] == error
