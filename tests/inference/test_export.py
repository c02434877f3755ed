"""Networks as files that run without geonorm, held against the checkpoint's own network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geonorm.cli import main
from geonorm.data.spec import INRIA
from geonorm.errors import InvalidConfigError, RasterError
from geonorm.inference import export as module
from geonorm.inference import export_model
from geonorm.inference.export import deepness_facts
from geonorm.inference.job import as_trained
from geonorm.models import UNet, build_smp
from geonorm.models.onnx_program import as_onnx
from geonorm.norms import (
    BatchNorm,
    GroupNorm,
    LocalContextNorm,
    NormFactory,
    SwitchableNorm,
)
from geonorm.tasks.checkpoint import TrainedModel, describe_factory, save_model
from tests.models.networks import local, unet, with_random_values

LOCAL = partial(LocalContextNorm, group_size=2)
SLOW_NORMS: list[NormFactory] = [
    partial(GroupNorm, group_size=2),
    SwitchableNorm,
    partial(LOCAL, window_px=9, border="clip"),
    partial(SwitchableNorm, pool=("LN", "LCN"), window_px=9, group_size=2),
]


@pytest.fixture(autouse=True)
def needs_onnx() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=f"the package {name} is not installed")


def trained(network: nn.Module, **facts: Any) -> TrainedModel:
    return replace(as_trained(network), spec=replace(INRIA, **facts))


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a file as a function of images, by the runtime that its users have."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda image: program(image)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def raw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) * 255


def assert_same(path: Path, network: nn.Module, *shapes: tuple[int, ...]) -> None:
    run = opened(path)
    for shape in shapes:
        with torch.no_grad():
            expected = network(raw(*shape))
            found = run(raw(*shape))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("norm", "suffix"),
    [
        (local(window_px=9), ".onnx"),
        *(pytest.param(norm, ".pt2", marks=pytest.mark.slow) for norm in (local(window_px=9), BatchNorm)),
        *(pytest.param(norm, ".onnx", marks=pytest.mark.slow) for norm in (BatchNorm, *SLOW_NORMS)),
    ],
)
def test_the_file_computes_what_the_network_does_at_any_size(norm: NormFactory, suffix: str, tmp_path: Path) -> None:
    network = unet(norm, depth=1, width=4)

    made = export_model(trained(network), tmp_path / f"net{suffix}")

    assert made.largest_error < 1e-4
    # Larger and smaller than the window, one and several images.
    assert_same(made.target, network, (1, 3, 48, 32), (3, 3, 4, 60), (1, 3, 4, 4))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "suffix"), [("unet", ".onnx"), ("deeplabv3plus", ".onnx"), ("fpn", ".pt2")])
def test_networks_of_smp_are_written(arch: str, suffix: str, tmp_path: Path) -> None:
    norm = partial(LocalContextNorm, window_px=65)
    network = with_random_values(build_smp(arch, "resnet18", in_channels=3, num_classes=2, norm=norm)).eval()

    made = export_model(trained(network), tmp_path / f"net{suffix}", tile_px=128)

    assert_same(made.target, network, (2, 3, 128, 128))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_valid_convolutions_lose_their_margin(suffix: str, tmp_path: Path) -> None:
    network = unet(local(window_px=9), depth=1, padding="valid")

    # torch.export holds two images and more apart from one where maps are cropped: a .pt2 takes one size.
    made = export_model(trained(network), tmp_path / f"net{suffix}", tile_px=60 if suffix == ".pt2" else None)

    side = 60 if suffix == ".pt2" else 44
    margin = made.facts["margin_px"]
    assert opened(made.target)(raw(1, 3, 60, side)).shape == (1, 2, 60 - 2 * margin, side - 2 * margin)
    assert_same(made.target, network, (1, 3, 60, side))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_pixel_without_data_is_the_training_mean_in_every_band(suffix: str, tmp_path: Path) -> None:
    network = unet(depth=1)
    network.rescale.mean.copy_(torch.tensor([90.0, 100.0, 110.0]))
    run = opened(export_model(trained(network), tmp_path / f"net{suffix}", tile_px=16).target)
    image = raw(1, 3, 16, 16)
    filled = image.clone()
    image[0, 1, 4, 5], image[0, 0, 9, 9] = torch.nan, -torch.inf
    filled[0, :, 4, 5] = filled[0, :, 9, 9] = network.rescale.mean

    with torch.no_grad():
        torch.testing.assert_close(run(image), network(filled), rtol=1e-4, atol=1e-4)


def test_probabilities_are_the_softmax_of_the_logits(tmp_path: Path) -> None:
    network = unet(depth=1)
    run = opened(export_model(trained(network), tmp_path / "net.onnx", tile_px=16, output="probabilities").target)

    with torch.no_grad():
        torch.testing.assert_close(run(raw(2, 3, 16, 16)), network(raw(2, 3, 16, 16)).softmax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_pt2_needs_no_geonorm(tmp_path: Path) -> None:
    network = unet(local(window_px=9), depth=1)
    made = export_model(trained(network), tmp_path / "net.pt2", tile_px=16)
    np.save(tmp_path / "image.npy", raw(1, 3, 16, 16).numpy())
    script = """
import json, sys, numpy, torch
sys.modules["geonorm"] = None
facts = {"geonorm.json": ""}
network = torch.export.load("net.pt2", extra_files=facts).module()
numpy.save("logits.npy", network(torch.from_numpy(numpy.load("image.npy"))).detach().numpy())
print(json.loads(facts["geonorm.json"])["bands"])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "['red', 'green', 'blue']"
    with torch.no_grad():
        expected = network(raw(1, 3, 16, 16))
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "logits.npy")), expected, rtol=1e-4, atol=1e-4)
    assert made.facts["halo_px"] is not None


def test_the_file_says_what_it_holds_and_nothing_of_this_machine(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    network = unet(local(window_px=9), depth=1)
    model = trained(network, resolution_m=0.3)

    made = export_model(model, tmp_path / "net.onnx", tile_px=64)

    program = onnx.load(made.target)
    onnx.checker.check_model(program, full_check=True)
    texts = {entry.key: json.loads(entry.value) for entry in program.metadata_props}
    assert texts["geonorm"] == json.loads(json.dumps(made.facts))
    assert texts["geonorm"]["class_names"] == ["not building", "building"]
    assert texts["geonorm"]["halo_px"] == model.geometry.core_halo_px
    # Deepness: centimetres, classes by number, values divided by 255 before they are standardized.
    assert texts["resolution"] == pytest.approx(30)
    assert texts["class_names"] == {"0": "not building", "1": "building"}
    assert texts["tile_size"] == 64
    np.testing.assert_allclose(
        (200 / 255 - np.array(texts["standardization_mean"])) / texts["standardization_std"], 200
    )
    [entry], [answer] = program.graph.input, program.graph.output
    for value, bands in ((entry, 3), (answer, 2)):
        axes = value.type.tensor_type.shape.dim
        assert [axes[0].dim_param, *(axis.dim_value for axis in axes[1:])] == ["batch", bands, 64, 64]
    assert (entry.name, answer.name) == ("image", "logits")
    content = made.target.read_bytes()
    assert str(Path(module.__file__).parents[2]).encode() not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize(
    ("tile_px", "halo_px", "stride_px", "percent"),
    [(512, 60, 16, 25), (512, 0, 1, 0), (500, 60, 16, 36), (512, None, 16, 25), (100, 80, 4, 90)],
)
def test_tiles_overlap_by_two_halos_and_begin_whole_strides_apart(
    tile_px: int, halo_px: int | None, stride_px: int, percent: int
) -> None:
    facts = {"bands": ["red"], "class_names": ["no", "yes"], "resolution_m": None}

    settings = deepness_facts({**facts, "tile_px": tile_px, "halo_px": halo_px, "stride_px": stride_px})

    assert settings["tiles_overlap"] == percent
    assert "resolution" not in settings


def test_the_command_writes_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, norm = partial(UNet, depth=1, width=4), local(window_px=9)
    network = with_random_values(make(3, 2, norm=norm))
    paths = (describe_factory(make, role="network"), describe_factory(norm, role="norm"))
    model = TrainedModel(network=network, spec=INRIA, network_path=paths[0], norm_path=paths[1], name="", version="")
    save_model(model, tmp_path / "best.ckpt")

    assert main(["export", str(tmp_path / "best.ckpt"), str(tmp_path / "net.onnx"), "--tile_px", "32"]) == 0

    told = capsys.readouterr().out
    assert "32 x 32 px" in told
    assert "exact if " in told
    assert_same(tmp_path / "net.onnx", network.eval(), (1, 3, 32, 32))

    assert main(["export", str(tmp_path / "best.ckpt"), str(tmp_path / "net.onnx")]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "settings", "said"),
    [
        ("net.tflite", {}, r"must end with \.onnx or \.pt2 .*got 'net\.tflite'"),
        ("net.onnx", {"tile_px": 33}, r"no tiles of 33 px.*Give tile_px=32 or 34"),
        ("net.onnx", {"tile_px": 1}, r"no tiles of 1 px.*Give tile_px=2"),
        ("net.onnx", {"output": "labels"}, "must be logits or probabilities, got 'labels'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    target: str, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfigError, match=said):
        export_model(trained(unet(depth=1)), tmp_path / target, **settings)

    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_network_that_chooses_by_size_takes_one_size_only(tmp_path: Path) -> None:
    network = unet(local(window_cells=9, compat="authors"), depth=1)

    with pytest.raises(InvalidConfigError, match=r"The file does not .*try a fixed tile_px, or a \.pt2\."):
        export_model(trained(network), tmp_path / "net.onnx")
    made = export_model(trained(network), tmp_path / "net.onnx", tile_px=32)

    assert_same(made.target, network, (2, 3, 32, 32))


def test_an_existing_file_stays(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("mine")

    with pytest.raises(RasterError, match="exists already"):
        export_model(trained(unet(depth=1)), tmp_path / "net.onnx")

    assert (tmp_path / "net.onnx").read_text() == "mine"


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, other = unet(depth=1), unet(depth=1)
    with torch.no_grad():
        other.head.weight *= 2
    monkeypatch.setattr(module, "as_onnx", lambda _, *args, **how: as_onnx(other, *args, **how))

    with pytest.raises(InvalidConfigError, match="does not compute what the checkpoint does"):
        export_model(trained(network), tmp_path / "net.onnx", tile_px=16)

    assert not list(tmp_path.iterdir())


def test_without_the_packages_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(InvalidConfigError, match=r"needs the package onnxruntime: .*pip install 'geonorm\[onnx\]'"):
        export_model(trained(unet(depth=1)), tmp_path / "net.onnx")
