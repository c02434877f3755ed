"""What a network is said to hold, against counts by hand and torch's profiler."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geonorm.inference.activations import _Counter, activation_bytes, stream_bytes
from geonorm.models import Rescale, UNet, tile_geometry
from geonorm.models.predictor import predictor
from geonorm.models.row_predictor import RowPredictor
from geonorm.norms import BatchNorm, GroupNorm, NormFactory
from tests.models.networks import local, unet

GB = 10**9


class Plain(nn.Module):
    """Two convolutions: 3 bands to 8 channels to 2 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.rescale = Rescale(3)
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.body(self.rescale(image)))


class Asking(Plain):
    """Looks at values before it goes on."""

    def forward(self, image: Tensor) -> Tensor:
        """Return logits."""
        return super().forward(image if image.mean().item() > 0 else image + 1)


def test_what_two_convolutions_need_is_what_a_count_by_hand_says() -> None:
    pixels = 2 * 64 * 64
    raw, as_float = 3, 4 * 3
    # At the first convolution: the raw tiles, the same in float32, scaled, and 8 channels.
    by_hand = pixels * (raw + as_float + as_float + 4 * 8)

    assert activation_bytes(Plain(), bands=3, size_px=64, batch_size=2) == pytest.approx(by_hand, rel=0.01)


def test_raw_values_of_another_type_count_as_large_as_they_are() -> None:
    wide = activation_bytes(Plain(), bands=3, size_px=64, dtype=torch.int32)

    assert wide - activation_bytes(Plain(), bands=3, size_px=64) == 64 * 64 * 3 * (4 - 1)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"padding": "valid"}, {"norm": GroupNorm}])
def test_what_a_unet_needs_is_what_the_profiler_counts(settings: Any, batch_size: int, tmp_path: Path) -> None:
    network = UNet(3, 2, **{"norm": BatchNorm, "width": 8, "depth": 3, **settings})
    size_px = tile_geometry(network).read_px(200)

    told = activation_bytes(network, bands=3, size_px=size_px, batch_size=batch_size)

    tiles = torch.zeros(batch_size, 3, size_px, size_px, dtype=torch.uint8)
    counted = tiles.numel() + profiled_bytes(predictor(network, torch.device("cpu")), tiles, tmp_path / "trace.json")
    assert told == pytest.approx(counted, rel=0.02)


def profiled_bytes(predict: Callable[[Tensor], Tensor], tiles: Tensor, path: Path) -> int:
    """Return by how much the tensors grow at the peak, as torch's profiler sees its own allocator."""
    predict(tiles)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        predict(tiles)
    profile.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


def test_nothing_is_computed_and_nothing_kept() -> None:
    network = UNet(3, 2, norm=BatchNorm, depth=1, width=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    large, larger = (activation_bytes(network, bands=3, size_px=px) for px in (2**15, 2**16))

    assert large > 50 * GB
    assert larger == pytest.approx(4 * large, rel=1e-6)
    assert all(type(value) is Tensor and value.equal(before[name]) for name, value in network.state_dict().items())


def test_a_network_that_asks_for_values_is_measured_on_one_tile() -> None:
    asking, plain = (activation_bytes(made(), bands=3, size_px=64, batch_size=3) for made in (Asking, Plain))

    assert plain <= asking < 1.5 * plain


@pytest.mark.parametrize("norm", [BatchNorm, local(window_px=31), local(window_px=15, border="clip")])
@pytest.mark.parametrize("step_px", [16, 64])
def test_the_bytes_of_a_stream_are_those_that_are_counted_as_it_runs(norm: NormFactory, step_px: int) -> None:
    network = unet(norm, depth=2, width=8)
    geometry = tile_geometry(network)
    rows = RowPredictor(network, geometry, torch.device("cpu"))

    foretold, _ = stream_bytes(rows, geometry, width_px=256, step_px=step_px)

    with _Counter(torch.device("cpu")) as counter:
        run = rows(640)
        for part in torch.zeros(1, 3, 640, 256, dtype=torch.uint8).split(step_px, dim=2):
            run.push(part)
    image_bytes = 3 * 640 * 256  # held by this test
    assert 0.9 * counter.peak_bytes <= foretold + image_bytes <= 1.3 * counter.peak_bytes
