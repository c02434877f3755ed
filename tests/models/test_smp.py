"""Networks of the smp library with our norms: made, bounded or named, tiled."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, cast
from urllib.error import URLError

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchgeo.models import ResNet18_Weights, ResNet50_Weights, Unet_Weights, get_weight
from torchvision.models import WeightsEnum

from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.models import Rescale, SmpNetwork, build_smp, tile_geometry
from geonorm.models.pretrained import scale_behind
from geonorm.models.replace import is_norm, replace_norms
from geonorm.norms import (
    BatchNorm,
    BatchRenorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalContextNorm,
    LocalContrastNorm,
    NoNorm,
    NormFactory,
    PositionalNorm,
    SwitchableNorm,
)
from geonorm.raster.read import Pixels
from geonorm.raster.window import Window
from geonorm.tiling.engine import predict_strips, predict_whole
from geonorm.tiling.plan import Network, Plan

LOCAL = partial(LocalContextNorm, window_px=7, group_size=1)
BOUNDED = ("unet", "unetplusplus", "linknet", "fpn")
"""Architectures that have an exact halo with local norms."""
ENCODERS = (
    "resnet18",
    "se_resnet50",
    "efficientnet-b0",
    "mobilenet_v2",
    "densenet121",
    "vgg11_bn",
    "mit_b0",
    "tu-hrnet_w18_small",
    "tu-convnext_atto",
    "tu-regnetx_002",
)

TRAINED = {"unet": "resnet34", "unet-hrnet": "tu-hrnet_w18_small", "deeplabv3plus": "resnet34"}
NORMS: dict[str, NormFactory] = {
    "BN": BatchNorm,
    "frozen BN": FrozenBatchNorm,
    "BatchRenorm": BatchRenorm,
    "GN": partial(GroupNorm, group_size=2),
    "IN": InstanceNorm,
    "LN": LayerNorm,
    "LCN": partial(LocalContextNorm, window_px=31, group_size=2),
    "SN": SwitchableNorm,
    "SN with all": partial(SwitchableNorm, pool=("IN", "LN", "BN", "GN", "LCN"), group_size=2, window_px=31),
    "local contrast": LocalContrastNorm,
    "positional": PositionalNorm,
    "none": NoNorm,
}

WIDTH = 96
"""A narrow raster: many tiles below each other at a small price."""


def network(arch: str, norm: NormFactory | None, *, encoder: str = "resnet18") -> SmpNetwork:
    torch.manual_seed(0)
    return build_smp(arch, encoder, in_channels=3, num_classes=2, norm=norm).eval()


def foreign_norms(module: nn.Module) -> list[str]:
    return [name for name, one in module.named_modules() if is_norm(one) and not isinstance(one, LocalContextNorm)]


def tiled_and_whole(model: nn.Module, *, height: int, core_px: int) -> tuple[Tensor, Tensor]:
    geometry = tile_geometry(model)
    image = np.random.default_rng(0).integers(0, 255, (3, height, WIDTH)).astype(np.uint8)

    def read(window: Window) -> Pixels:
        values = image[:, window.row : window.row_end, window.col : window.col_end]
        valid = np.ones(values.shape[1:], bool)
        return Pixels(values, np.broadcast_to(valid, values.shape), valid)

    def predict(tiles: Tensor) -> Tensor:
        with torch.no_grad():
            return model(tiles)

    assert geometry.core_halo_px is not None
    plan = Plan(
        height=height,
        width=WIDTH,
        core_px=core_px,
        halo_px=geometry.core_halo_px,
        network=Network(stride_px=geometry.stride_px, least_px=geometry.least_px),
    )
    assert plan.read_px < height, "the tiles must be smaller than the raster"
    fill = torch.zeros(3)
    strips = predict_strips(read, predict, plan, fill=fill, finish=lambda logits: logits)
    tiled = torch.cat([strip.output for strip in strips], dim=1)
    return tiled, predict_whole(read, predict, plan, fill=fill, finish=lambda logits: logits).output


def test_every_norm_of_encoder_and_decoder_is_replaced() -> None:
    model = network("unet", LOCAL)

    assert foreign_norms(model) == []
    assert {one.stride_px for one in model.replacements} == {1, 2, 4, 8, 16, 32}


def test_the_convolutions_are_those_of_the_library() -> None:
    torch.manual_seed(0)
    theirs = smp.create_model("unet", encoder_name="resnet18", encoder_weights=None, in_channels=3, classes=2)

    ours = network("unet", None)

    torch.testing.assert_close(ours(torch.ones(1, 3, 64, 64)), theirs.eval()(torch.ones(1, 3, 64, 64)))


def test_unknown_architectures_and_encoders_get_one_line() -> None:
    for arch, encoder in (("unetty", "resnet18"), ("unet", "resnet19")):
        with pytest.raises(InvalidConfigError) as caught:
            build_smp(arch, encoder, in_channels=3, num_classes=2, norm=GroupNorm)
        assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_fetched_get_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr(smp, "create_model", no_network)

    with pytest.raises(InvalidConfigError, match="weights 'imagenet' of resnet18 could not be fetched") as caught:
        build_smp("unet", "resnet18", in_channels=3, num_classes=2, norm=None, weights="imagenet")

    assert "\n" not in str(caught.value)


def test_aligned_corners_are_off_and_make_a_network_unbounded_where_wanted() -> None:
    plain = build_smp("fpn", "resnet18", in_channels=3, num_classes=2, norm=LOCAL)
    aligned = build_smp("fpn", "resnet18", in_channels=3, num_classes=2, norm=LOCAL, align_corners=True)

    assert not tile_geometry(plain).unbounded
    assert any("upsample_bilinear2d" in name for name in tile_geometry(aligned).unbounded)


def test_what_sees_everything_is_named() -> None:
    assert any("AdaptiveAvgPool2d" in name for name in tile_geometry(network("deeplabv3plus", LOCAL)).unbounded)
    assert any("GroupNorm" in name for name in tile_geometry(network("unet", GroupNorm)).unbounded)
    assert any("encoder" in name for name in tile_geometry(network("unet", LOCAL, encoder="se_resnet50")).unbounded)


def test_tiles_give_the_whole_image_pass_of_a_bounded_network() -> None:
    tiled, whole = tiled_and_whole(network("unet", BatchNorm), height=800, core_px=64)

    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(smp.MODEL_ARCHITECTURES_MAPPING))
def test_every_architecture_takes_local_norms_and_says_what_it_sees(arch: str) -> None:
    model = network(arch, LOCAL, encoder="tu-vit_tiny_patch16_224" if arch == "dpt" else "resnet18")

    geometry = tile_geometry(model)

    assert model.replacements
    assert (geometry.halo_px is None) == bool(geometry.unbounded)
    assert (arch in BOUNDED) == (not geometry.unbounded)
    side = geometry.read_px(64)
    logits = model(torch.rand(1, 3, side, side))
    assert logits.shape[1] == 2
    assert bool(torch.isfinite(logits).all())


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoders_of_many_families_take_local_norms(encoder: str) -> None:
    model = network("unet", LOCAL, encoder=encoder).train()

    loss = model(torch.rand(2, 3, 64, 64) * 255).square().mean()
    loss.backward()

    assert sum(isinstance(one, LocalContextNorm) for one in model.modules()) > 5
    assert bool(torch.isfinite(loss))


@pytest.mark.slow
@pytest.mark.parametrize("arch", BOUNDED)
def test_tiles_give_the_whole_image_pass_with_local_norms(arch: str) -> None:
    model = network(arch, partial(LocalContextNorm, window_px=3, group_size=1))

    tiled, whole = tiled_and_whole(model, height=1600, core_px=128)

    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_weights_of_the_library_give_its_output() -> None:
    torch.manual_seed(0)
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=2)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"), -1, 1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    ours = network("unet", BatchNorm)
    image = torch.rand(1, 3, 64, 64)

    ours.network.load_state_dict(theirs.state_dict())

    torch.testing.assert_close(ours(image), theirs.eval()(image), rtol=1e-5, atol=1e-5)


def test_weights_of_torchvision_give_its_output() -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:-2])
    ours, _ = replace_norms(nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:-2]), BatchNorm)
    image = torch.rand(2, 3, 64, 64)

    ours.load_state_dict(theirs.state_dict())

    torch.testing.assert_close(ours.train()(image), theirs.train()(image), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(("arch", "encoder"), TRAINED.items(), ids=TRAINED.keys())
def test_two_steps_of_training_reach_every_weight(arch: str, encoder: str, name: str) -> None:
    model = network(arch.split("-")[0], NORMS[name], encoder=encoder).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    image, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    # DeepLabV3+ normalizes what its pooling branch makes of the image: one cell.
    pooled = arch == "deeplabv3plus" and name.startswith("SN")

    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    with pytest.warns(GeonormWarning, match="map of one cell") if pooled else nullcontext():
        for _ in range(2):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(image), labels)
            loss.backward()
            optimizer.step()

    assert loss.isfinite()
    unmoved = [key for key, value in model.named_parameters() if value.dim() == 4 and torch.equal(value, before[key])]
    assert [key for key in unmoved if model.get_parameter(key).grad is not None] == []
    assert model.eval()(image).isfinite().all()


def test_a_norm_that_does_not_fit_an_encoder_names_the_place_and_what_would_do() -> None:
    with pytest.raises(InvalidConfigError, match=r"bn1 .*: group_size must divide .* with 64 channels") as caught:
        network("unet", partial(GroupNorm, group_size=3))

    assert "Possible: 1, 2, 4" in str(caught.value)
    assert "\n" not in str(caught.value)


# Weights by the names of torchgeo


class Fetched:
    """Stands for the fetching of weights: those that a library's own network has, with random numbers."""

    def __init__(self, patch: pytest.MonkeyPatch, weights: WeightsEnum, made: nn.Module) -> None:
        self.made = made
        for one in made.modules():
            if isinstance(one, nn.BatchNorm2d):
                for values in (one.weight, one.bias, one.running_mean, one.running_var):
                    assert values is not None
                    nn.init.uniform_(values, 0.5, 1.5)
        patch.setattr(type(weights), "get_state_dict", lambda self, progress: made.state_dict())


OLI = ResNet18_Weights.LANDSAT_OLI_SR_MOCO
"""Weights of 7 bands, input divided by 255."""


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_an_encoder_with_weights_of_torchgeo_gives_the_features_of_torchgeos(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Fetched(monkeypatch, OLI, timm.create_model("resnet18", in_chans=7)).made.eval()
    image = torch.rand(1, 7, 64, 64) * 255

    ours: Any = build_smp("unet", encoder, in_channels=7, num_classes=2, norm=None, weights=str(OLI)).eval()

    expected = cast(Any, theirs).forward_features(image / 255)
    torch.testing.assert_close(ours.network.encoder(ours.rescale(image))[-1], expected, rtol=1e-4, atol=1e-4)


def test_new_norms_keep_what_the_weights_say_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Fetched(monkeypatch, OLI, timm.create_model("resnet18", in_chans=7)).made.state_dict()

    ours: Any = build_smp("unet", "resnet18", in_channels=7, num_classes=2, norm=GroupNorm, weights=str(OLI))

    encoder = ours.network.encoder.state_dict()
    assert isinstance(ours.network.encoder.bn1, GroupNorm)
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "layer4.1.bn2.weight", "layer4.1.conv2.weight"):
        assert torch.equal(encoder[name], theirs[name]), name


@pytest.mark.parametrize("weights", [*ResNet50_Weights, Unet_Weights.SENTINEL2_2CLASS_FTW], ids=str)
def test_the_scale_of_weights_is_their_own_transform(weights: WeightsEnum) -> None:
    bands = weights.meta["in_chans"]
    image = torch.rand(1, bands, 4, 4) * 1000
    normalize = [step for step in cast(nn.Module, weights.transforms).modules() if hasattr(step, "mean")]

    means, deviations = scale_behind(weights.transforms, bands, str(weights))

    expected = image.clone()
    for step in normalize:
        expected = step(expected)
    scaled = Rescale(bands, mean=means, deviation=deviations)(image)
    torch.testing.assert_close(scaled, expected, rtol=1e-4, atol=1e-4)


def test_weights_of_three_bands_are_spread_over_more(monkeypatch: pytest.MonkeyPatch) -> None:
    seco = ResNet18_Weights.SENTINEL2_RGB_MOCO
    theirs = Fetched(monkeypatch, seco, timm.create_model("resnet18", in_chans=3)).made.state_dict()["conv1.weight"]

    ours: Any = build_smp("unet", "resnet18", in_channels=5, num_classes=2, norm=None, weights=str(seco))

    kernel = ours.network.encoder.conv1.weight
    torch.testing.assert_close(kernel[:, 3], theirs[:, 0] * 3 / 5)
    torch.testing.assert_close(kernel[:, 2], theirs[:, 2] * 3 / 5)
    assert ours.rescale.deviation.tolist() == [10_000] * 5


def test_weights_of_a_whole_unet_fill_all_but_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Unet_Weights.OAM_RGB_RESNET34_TCD
    made = smp.create_model("unet", encoder_name="resnet34", encoder_weights=None, in_channels=3, classes=3)
    theirs = Fetched(monkeypatch, weights, made).made.state_dict()

    ours: Any = build_smp("unet", "resnet34", in_channels=3, num_classes=2, norm=None, weights=str(weights))

    same = {name for name, tensor in ours.network.state_dict().items() if torch.equal(tensor, theirs[name])}
    assert {name for name in theirs if name not in same} == {"segmentation_head.0.weight", "segmentation_head.0.bias"}


WRONG = {
    "no such name": (
        ("unet", "resnet18", "ResNet18_Weights.SENTINEL2_MOCO", 13),
        r"no weights named .*Close: ResNet18",
    ),
    "other bands": (("unet", "resnet18", str(OLI), 4), r"knows 7 bands \(SR_B1, .*the data have 4.*SENTINEL2_RGB_MOCO"),
    "another encoder": (
        ("unet", "resnet50", str(OLI), 7),
        r"does not fit the encoder 'resnet50': .*Take encoder resnet18",
    ),
    "another family": (
        ("unet", "resnet18", "Swin_V2_B_Weights.NAIP_RGB_SI_SATLAS", 3),
        r"does not fit any encoder of smp\. ResNet18, ResNet50, .*do",
    ),
}


@pytest.mark.parametrize(("asked", "message"), WRONG.values(), ids=WRONG)
def test_named_weights_that_do_not_fit_are_one_line_that_says_what_would(
    asked: tuple[str, str, str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fetched(monkeypatch, OLI, timm.create_model("resnet18", in_chans=7))
    arch, encoder, weights, bands = asked

    with pytest.raises(InvalidConfigError, match=message) as caught:
        build_smp(arch, encoder, in_channels=bands, num_classes=2, norm=None, weights=weights)

    assert "\n" not in str(caught.value)


def test_named_weights_that_cannot_be_fetched_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(self: object, progress: bool) -> None:
        raise URLError("Name or service\nnot known")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", no_network)

    with pytest.raises(
        InvalidConfigError, match=r"LANDSAT_OLI_SR_MOCO could not be fetched: .*Check the network"
    ) as caught:
        build_smp("unet", "resnet18", in_channels=7, num_classes=2, norm=None, weights=str(OLI))

    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_vision_transformers_take_their_weights_in_dpt(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = get_weight("ViTSmall16_Weights.SENTINEL2_ALL_MOCO")
    theirs = Fetched(monkeypatch, weights, timm.create_model("vit_small_patch16_224", in_chans=13)).made.state_dict()

    ours: Any = build_smp(
        "dpt", "tu-vit_small_patch16_224", in_channels=13, num_classes=2, norm=None, weights=str(weights)
    )

    name = "blocks.11.attn.qkv.weight"
    assert torch.equal(ours.network.encoder.state_dict()[f"model.{name}"], theirs[name])
