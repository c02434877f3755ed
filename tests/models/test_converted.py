"""Networks that OpenVINO computes."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from geonorm.errors import InvalidConfigError
from geonorm.models import build_smp
from geonorm.models import converted as module
from geonorm.models.predictor import Backend, predictor
from geonorm.norms import (
    BatchNorm,
    BatchRenorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    NormFactory,
    PositionalNorm,
    SwitchableNorm,
)
from tests.models.networks import unet

CPU = torch.device("cpu")
BACKENDS: tuple[Backend, ...] = ("openvino", "torch")


@pytest.fixture
def openvino() -> Any:
    return pytest.importorskip("openvino", reason="the package openvino is not installed")


def tiles(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize(
    "norm",
    [
        BatchNorm,
        partial(GroupNorm, group_size=4),
        *(pytest.param(norm, marks=pytest.mark.slow) for norm in (BatchRenorm, InstanceNorm, LayerNorm)),
        *(pytest.param(norm, marks=pytest.mark.slow) for norm in (PositionalNorm, SwitchableNorm)),
    ],
)
def test_it_computes_what_torch_does_with_tiles_of_any_number_and_size(norm: NormFactory) -> None:
    network = unet(norm, depth=2)
    plain, other = predictor(network, CPU), predictor(network, CPU, backend="openvino")

    for shape in [(1, 3, 32, 48), (3, 3, 64, 16), (1, 3, 8, 8)]:
        torch.testing.assert_close(other(tiles(*shape)), plain(tiles(*shape)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize(("arch", "encoder"), [("unet", "resnet34"), ("deeplabv3plus", "resnet18")])
def test_it_computes_networks_of_smp(arch: str, encoder: str) -> None:
    torch.manual_seed(0)
    network = build_smp(arch, encoder, in_channels=3, num_classes=2, norm=BatchNorm)
    network.rescale.deviation.fill_(70.0)
    shape = (1, 3, 96, 128)

    said, expected = (predictor(network, CPU, backend=by)(tiles(*shape)) for by in BACKENDS)

    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.usefixtures("openvino")
def test_mirrored_tiles_are_averaged() -> None:
    network = unet(depth=1)

    said, expected = (predictor(network, CPU, tta="d4", backend=by)(tiles(1, 3, 16, 24)) for by in BACKENDS)

    torch.testing.assert_close(said, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("values", [255, 10_000])
def test_bfloat16_is_near_whatever_the_range_of_the_values(values: int) -> None:
    network = unet(depth=2)
    network.rescale.mean.fill_(values / 2)
    network.rescale.deviation.fill_(values / 4)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * values

    half = predictor(network, CPU, precision="bf16-mixed", backend="openvino")(image)
    full = predictor(network, CPU)(image)

    assert half.dtype == torch.float32
    assert float((half - full).abs().max()) <= 0.05 * float(full.abs().max())


@pytest.mark.usefixtures("openvino")
def test_a_conversion_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    network = unet(depth=1)
    right = module._model
    other = unet(depth=1)
    with torch.no_grad():
        other.head.weight *= 2
    monkeypatch.setattr(module, "_model", lambda program: right(module._exported(other, torch.Size((1, 3, 8, 8)))))

    with pytest.raises(InvalidConfigError, match="does not compute this network as torch does"):
        predictor(network, CPU, backend="openvino")(tiles(1, 3, 16, 16))


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(InvalidConfigError, match=r"needs the package openvino: .*pip install 'geonorm\[openvino\]'\.$"):
        predictor(unet(), CPU, backend="openvino")


@pytest.mark.parametrize(
    ("settings", "asked"),
    [({"compile": True}, "got compile"), ({"precision": "16-mixed"}, "got precision=16-mixed")],
)
def test_settings_that_it_does_not_take_are_refused(settings: dict[str, Any], asked: str) -> None:
    with pytest.raises(InvalidConfigError, match=asked):
        predictor(unet(depth=1), CPU, backend="openvino", **settings)


def test_it_computes_on_the_cpu_only() -> None:
    with pytest.raises(InvalidConfigError, match="on the CPU, got device=meta"):
        predictor(unet(depth=1), torch.device("meta"), backend="openvino")
