"""The receptive field of each norm's input: by hand, by published figures, and by trying it out."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from geonorm.models import UNet, build_smp
from geonorm.models.receptive import norm_maps
from geonorm.norms import BatchNorm, GroupNorm, LocalContextNorm, NoNorm, NormFactory, SwitchableNorm
from tests.models.networks import Network, unet, with_random_values

# A 3 x 3 convolution at stride s adds 2 s, a 2 x 2 pooling at stride s adds s. On the way up a cell of stride s shows
# one of stride 2 s; two convolutions reach 2 s to either side of it, so they meet 4 s more (or 2 s, where the first
# stays within the cells that the block below has met).
UNET_OF_DEPTH_2 = {
    "encoder.0.1": 3,
    "encoder.0.4": 5,
    "encoder.1.1": 5 + 1 + 4,
    "encoder.1.4": 14,
    "bottom.1": 14 + 2 + 8,
    "bottom.4": 32,
    "decoder.0.1": 32 + 4,
    "decoder.0.4": 40,
    "decoder.1.1": 44,
    "decoder.1.4": 44,
}
SN_OF_ALL = partial(SwitchableNorm, pool=["IN", "LN", "BN", "GN", "LCN"], window_px=31, channel_groups=2)


def told(model: nn.Module) -> dict[str, int | None]:
    return {name: seen.receptive_px for name, seen in norm_maps(model).items()}


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_the_norms_of_a_unet_see_what_counting_says(padding: str) -> None:
    found = told(unet(SwitchableNorm, depth=2, padding=padding))

    assert found == UNET_OF_DEPTH_2
    assert list(found) == list(UNET_OF_DEPTH_2), "in the order they run"


NORMS: dict[str, NormFactory] = {
    "GN": GroupNorm,
    "LCN": partial(LocalContextNorm, window_px=31),
    "SN of five": SN_OF_ALL,
    "hard SN": partial(SwitchableNorm, selection="hard"),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_what_the_norms_themselves_see_does_not_count(norm: NormFactory) -> None:
    assert told(unet(norm, depth=2)) == UNET_OF_DEPTH_2


def test_a_resnet50_sees_7_to_427_px_as_in_the_paper() -> None:
    model = build_smp("unet", "resnet50", in_channels=3, num_classes=2, norm=SwitchableNorm)

    found = told(model)

    # Luo et al., figures 2 and 3: 53 layers, 7 to 427. Last layer of each stage: as torchvision's ResNet50 has them.
    encoder = {name.removeprefix("network.encoder."): px or 0 for name, px in found.items() if ".encoder." in name}
    assert len(encoder) == 53
    assert (min(encoder.values()), max(encoder.values())) == (7, 427)
    stages = {"bn1": 7, "layer1.0.bn1": 11, "layer1.2.bn3": 35, "layer2.3.bn3": 91, "layer3.5.bn3": 267}
    assert {name: encoder[name] for name in stages} == stages


def test_a_resnet34_unet_sees_899_px_in_its_last_stage() -> None:
    model = build_smp("unet", "resnet34", in_channels=3, num_classes=2, norm=SwitchableNorm)

    found = told(model)

    # 7, then 11 after the pooling; the stages add 6 x 8, 8 + 7 x 16, 16 + 11 x 32 and 32 + 5 x 64.
    assert found["network.encoder.layer4.2.bn2"] == 899
    assert found["network.encoder.layer4.0.downsample.1"] == 547
    assert len(found) == 36 + 10
    assert next(iter(found)) == "network.encoder.bn1"


def seen_by_trying(model: nn.Module, *, height: int, width: int) -> dict[str, int]:
    """Return over how many columns NaN reaches a cell of the input of each norm, at most."""
    reached: dict[str, Tensor] = {}

    def note(name: str) -> object:
        return lambda _, inputs: reached.update({name: inputs[0].isnan().any(1).any(1)})

    names = [name for name, module in model.named_modules() if isinstance(module, NoNorm)]
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(note(name))  # type: ignore[arg-type]  # a closure
    image = torch.rand(width, 3, height, width, generator=torch.Generator().manual_seed(0))
    image[torch.arange(width), :, :, torch.arange(width)] = torch.nan
    with torch.no_grad():
        model(image)
    # reached: (column that was spoilt, column of the map)
    return {name: int(cells.sum(0).max()) for name, cells in reached.items()}


def test_a_unet_sees_as_far_as_trying_it_out_shows() -> None:
    plain = with_random_values(UNet(3, 2, norm=NoNorm, depth=2, width=2)).eval()

    assert told(unet(SwitchableNorm, depth=2)) == seen_by_trying(plain, height=8, width=96)


def test_a_resnet_sees_as_far_as_trying_it_out_shows() -> None:
    settings = {"in_channels": 3, "num_classes": 2}
    plain = build_smp("unet", "resnet18", norm=NoNorm, **settings).eval()  # type: ignore[arg-type]  # numbers
    switchable = build_smp("unet", "resnet18", norm=SwitchableNorm, **settings)  # type: ignore[arg-type]  # numbers

    seen = seen_by_trying(plain, height=32, width=160)

    near = {name: px for name, px in told(switchable).items() if px is not None and px < 80}
    assert len(near) == 8
    assert near == {name: seen[name] for name in near}


def test_the_wider_axis_counts() -> None:
    model = Network(nn.Sequential(nn.Conv2d(4, 4, (5, 1), padding=(2, 0)), nn.Conv2d(4, 4, 3), BatchNorm(4)))

    assert told(model) == {"body.2": 7}


def test_behind_a_pooling_to_one_cell_no_receptive_field_is_told() -> None:
    model = Network(nn.Sequential(nn.AdaptiveAvgPool2d(1), BatchNorm(4)))

    assert told(model) == {"body.1": None}
