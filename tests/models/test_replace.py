"""Norms swapped in networks that exist."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError
from geonorm.models import UNet, localize_norms, replace_norms, tile_geometry
from geonorm.models.replace import Replacement
from geonorm.norms import (
    BatchNorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalContextNorm,
    NoNorm,
    NormFactory,
    SwitchableNorm,
)


class Plain(nn.Module):
    """A strided network with one of torch's norms at each of two strides, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.second = nn.GroupNorm(2, 8)
        self.again = self.second
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of half the size, doubled."""
        x = self.again(self.second(self.down(self.first(image))))
        return nn.functional.interpolate(self.head(x), scale_factor=2.0)


def replaced(plain: Plain, norm: NormFactory) -> tuple[Plain, tuple[Replacement, ...]]:
    network, report = replace_norms(plain, norm)
    assert isinstance(network, Plain)
    return network, report


def conv_of(network: Plain) -> Any:
    return network.first[0]


def norm_of(network: Plain) -> Any:
    return network.first[1]


def image() -> Tensor:
    return torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_every_norm_gets_the_stride_of_its_map() -> None:
    network, report = replace_norms(Plain(), partial(LocalContextNorm, window_px=31))

    windows = {name: module.window for name, module in network.named_modules() if isinstance(module, LocalContextNorm)}
    assert windows == {"first.1": (31, 31), "second": (15, 15)}
    assert [(one.name, one.before, one.stride_px) for one in report] == [
        ("first.1", "BatchNorm2d", 1),
        ("second", "GroupNorm", 2),
    ]


def test_a_norm_that_hangs_at_two_places_is_replaced_once_at_both() -> None:
    network, _ = replaced(Plain(), GroupNorm)

    assert network.second is network.again
    assert isinstance(network.again, GroupNorm)


def test_the_network_that_was_given_stays_as_it_is() -> None:
    plain = Plain()
    before = {name: value.clone() for name, value in plain.state_dict().items()}

    replace_norms(plain, GroupNorm)

    assert isinstance(plain.first[1], nn.BatchNorm2d)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_convolutions_and_the_norms_weight_and_bias_are_kept() -> None:
    plain = Plain()
    nn.init.normal_(norm_of(plain).weight)

    network, report = replaced(plain, GroupNorm)

    assert torch.equal(conv_of(network).weight, conv_of(plain).weight)
    assert torch.equal(norm_of(network).weight, norm_of(plain).weight)
    assert all(one.affine_kept for one in report)


def test_running_statistics_go_over_to_norms_that_keep_them_and_are_noted_where_lost() -> None:
    plain = Plain()
    norm_of(plain).running_mean.fill_(3.0)

    frozen, _ = replaced(plain, FrozenBatchNorm)
    _, report = replaced(plain, GroupNorm)

    assert torch.equal(norm_of(frozen).running_mean, torch.full((8,), 3.0))
    assert "lost" in report[0].note
    torch.testing.assert_close(frozen.eval().first(image()), plain.eval().first(image()))


def test_the_same_norm_of_ours_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    plain = Plain().eval()
    for module in plain.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight)

    ours, _ = replace_norms(
        plain, lambda channels, *, stride: BatchNorm(channels) if stride == 1 else GroupNorm(channels)
    )

    torch.testing.assert_close(ours(image()), plain(image()))


def test_norms_over_tokens_are_left_and_noted() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.batch = nn.BatchNorm2d(8)
            self.layer = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.batch(self.conv(x))
            return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape)

    network, report = replace_norms(Tokens(), GroupNorm)

    assert isinstance(network.layer, nn.LayerNorm)
    assert next(one for one in report if one.name == "layer").note.startswith("left")


def test_a_norm_that_does_not_fit_names_the_place() -> None:
    with pytest.raises(InvalidConfigError, match=r"first\.1 \(BatchNorm2d\): group_size must divide"):
        replace_norms(Plain(), partial(GroupNorm, group_size=3))


def test_a_network_without_norms_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="no norm"):
        replace_norms(UNet(3, 2, norm=NoNorm, depth=1, width=4), GroupNorm)


@pytest.mark.parametrize(("norm", "group_size"), [(GroupNorm, 4), (InstanceNorm, 1), (LayerNorm, None)])
def test_localizing_with_a_window_larger_than_the_map_changes_nothing(
    norm: type[GroupNorm], group_size: int | None
) -> None:
    torch.manual_seed(0)
    network = UNet(3, 2, norm=norm, depth=1, width=8).eval()
    for module in network.modules():
        if isinstance(module, GroupNorm):
            nn.init.normal_(module.weight)

    local, report = localize_norms(network, window_px=1000)

    sizes = {module.group_size for module in local.modules() if isinstance(module, LocalContextNorm)}
    assert sizes == ({group_size} if group_size else {8, 16})
    assert len(report) == 6
    torch.testing.assert_close(local(image()), network(image()), rtol=1e-4, atol=1e-4)


def test_localizing_makes_a_network_bounded() -> None:
    network = UNet(3, 2, norm=GroupNorm, depth=2, width=8)

    local, _ = localize_norms(network, window_px=15)

    assert tile_geometry(network).unbounded
    assert tile_geometry(local) == tile_geometry(
        UNet(3, 2, norm=partial(LocalContextNorm, window_px=15), depth=2, width=8)
    )


def test_there_is_nothing_to_localize_in_a_batch_norm_network() -> None:
    with pytest.raises(InvalidConfigError, match="Batch Norm needs none"):
        localize_norms(UNet(3, 2, norm=BatchNorm, depth=1, width=4), window_px=15)


@pytest.mark.parametrize("norm", [InstanceNorm, SwitchableNorm])
def test_a_norm_after_global_pooling_is_noted(norm: NormFactory) -> None:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Upsample(scale_factor=8))

    _, (replacement,) = replace_norms(pooled, norm)
    _, (harmless,) = replace_norms(pooled, partial(GroupNorm, group_size=2))

    assert "its map is one cell, where IN has no variance" in replacement.note
    assert "one cell" not in harmless.note
