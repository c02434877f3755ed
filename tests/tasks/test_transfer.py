"""Weights of one network in another: what is taken, what is left, what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geonorm.data.spec import INRIA
from geonorm.errors import CheckpointError
from geonorm.models import SmpNetwork, UNet, localize_norms
from geonorm.norms import BatchNorm, GroupNorm, InstanceNorm, LocalContextNorm, NormFactory, SwitchableNorm
from geonorm.tasks.checkpoint import TrainedModel, save_model
from geonorm.tasks.transfer import take_weights
from tests.models.networks import local, random_image, unet, with_random_values

GROUPS = partial(GroupNorm, group_size=2)


def other_unet(norm: NormFactory, **settings: Any) -> UNet:
    """Return a U-Net whose values are unlike those of `unet`."""
    return with_random_values(UNet(3, **{"num_classes": 2, "depth": 1, "width": 4, **settings}, norm=norm), seed=1)


def saved(network: nn.Module, path: Path) -> Path:
    """Write a checkpoint of geonorm that holds a network."""
    named = {"class_path": "geonorm.models.UNet", "init_args": {}}
    save_model(
        TrainedModel(network=network, spec=INRIA, network_path=named, norm_path=named, name="", version=""), path
    )
    return path


def stored(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def equal(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_group_norm_network_gives_a_local_one_all_it_has(tmp_path: Path) -> None:
    source, network = unet(GROUPS), other_unet(local(window_px=1000))

    transfer = take_weights(network, saved(source, tmp_path / "gn.ckpt"))

    assert transfer.left == transfer.new == ()
    assert set(transfer.taken) == set(source.state_dict())
    image = random_image(1, 3, 12, 20)
    torch.testing.assert_close(network.eval()(image), source(image), rtol=1e-4, atol=1e-4)


def test_a_head_for_other_classes_starts_anew_and_all_else_is_taken(tmp_path: Path) -> None:
    source, network = unet(GROUPS), other_unet(GROUPS, num_classes=5)
    before = network.head.weight.clone()

    transfer = take_weights(network, saved(source, tmp_path / "gn.ckpt"))

    assert transfer.new == ("head.weight", "head.bias")
    assert transfer.left == ("network.head.weight", "network.head.bias")
    assert torch.equal(network.head.weight, before)
    assert equal(network.bottom, source.bottom)
    assert "new here: head.weight, head.bias" in transfer.in_words()
    assert "left there: network.head.weight, network.head.bias" in transfer.in_words()


def test_running_statistics_are_lost_or_new_and_this_is_said(tmp_path: Path) -> None:
    lost = take_weights(other_unet(GROUPS), saved(unet(BatchNorm), tmp_path / "bn.ckpt"))
    new = take_weights(other_unet(BatchNorm), saved(unet(GROUPS), tmp_path / "gn.ckpt"))

    assert {name.rpartition(".")[-1] for name in lost.left} >= {"running_mean", "running_var"}
    assert f"left there: {len(lost.left)} running statistics" in lost.in_words()
    assert f"new here: {len(new.new)} running statistics, to be trained before use" in new.in_words()


@pytest.mark.parametrize(
    ("norm", "axes"),
    [
        (partial(LocalContextNorm, window_cells=3, group_size=2, compat="authors"), {"weight": 2, "bias": 2}),
        (
            partial(SwitchableNorm, compat="authors"),
            {"weight": 2, "bias": 2, "running_mean": 1, "running_var": 1},
        ),
    ],
    ids=["LCN", "SN"],
)
def test_the_shapes_of_the_released_layers_fit(tmp_path: Path, norm: NormFactory, axes: dict[str, int]) -> None:
    source, network = unet(norm), other_unet(norm)
    places = {name for name, module in source.named_modules() if isinstance(module, LocalContextNorm | SwitchableNorm)}
    weights = {}
    for name, value in source.state_dict().items():
        place, _, kind = name.rpartition(".")
        released = place in places and kind in axes
        weights[name] = value.reshape(1, -1, *[1] * axes[kind]) if released else value

    transfer = take_weights(network, stored(weights, tmp_path / "released.pt"))

    assert transfer.left == transfer.new == ()
    assert equal(network, source)


def test_a_trained_soft_layer_finetunes_with_hard_choices(tmp_path: Path) -> None:
    source, network = unet(SwitchableNorm), other_unet(partial(SwitchableNorm, selection="hard"))
    layers = [module for module in network.modules() if isinstance(module, SwitchableNorm)]
    soft = [module for module in source.modules() if isinstance(module, SwitchableNorm)]

    take_weights(network, saved(source, tmp_path / "sn.ckpt"))

    for one, other in zip(layers, soft, strict=True):
        assert one.chosen[0] == (one.pool[int(other.mean_weight.argmax())],)


def test_the_scaling_comes_along(tmp_path: Path) -> None:
    source, network = unet(GROUPS), other_unet(InstanceNorm)

    take_weights(network, saved(source, tmp_path / "gn.ckpt"))

    assert equal(network.rescale, source.rescale)


def test_the_line_for_the_user_is_one_line_and_counts(tmp_path: Path) -> None:
    path = saved(unet(GROUPS), tmp_path / "gn.ckpt")

    words = take_weights(other_unet(GROUPS, depth=2), path).in_words()

    assert "\n" not in words
    assert f"tensors of the network start from {path}" in words
    assert " more" in words


@pytest.mark.parametrize("prefix", ["", "network.", "model.", "module."])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "state_dict"])
def test_plain_state_dicts_are_taken_whatever_their_names_begin_with(
    tmp_path: Path, prefix: str, wrapped: bool
) -> None:
    source, network = unet(GROUPS), other_unet(GROUPS)
    weights = {f"{prefix}{name}": value for name, value in source.state_dict().items()}

    take_weights(network, stored({"state_dict": weights} if wrapped else weights, tmp_path / "weights.pt"))

    assert equal(network, source)


def test_weights_of_the_smp_library_and_of_its_encoders_find_their_place(tmp_path: Path) -> None:
    def made() -> SmpNetwork:
        return SmpNetwork(3, 2, norm=BatchNorm, encoder="resnet18")

    source, network, encoder_alone = made(), made(), made()
    whole = stored(source.network.state_dict(), tmp_path / "whole.pt")
    encoder: Any = source.network.encoder
    part = stored({**encoder.state_dict(), "fc.weight": torch.zeros(9, 512)}, tmp_path / "part.pt")

    take_weights(network, whole)
    transfer = take_weights(encoder_alone, part)

    assert equal(network.network, source.network)
    theirs: Any = encoder_alone.network.encoder
    assert equal(theirs, encoder)
    assert transfer.left == ("fc.weight",)


def test_a_localized_network_gives_its_weights_to_the_one_it_was(tmp_path: Path) -> None:
    source = unet(GROUPS)
    swapped, _ = localize_norms(source, 9)
    network = other_unet(GROUPS)

    take_weights(network, saved(swapped, tmp_path / "local.ckpt"))

    assert equal(network, source)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": 1, "state_dict": 3}, "of its 0 tensors"),
        ({"bottom.0.weight": torch.zeros(3, 3)}, "of its 1 tensors"),
        ({"rescale.mean": torch.zeros(3)}, "depth, width, encoder"),
        ([1, 2], "holds a list"),
        (unet(GROUPS), "plain data"),
    ],
    ids=["no tensors", "another shape", "no convolution", "list", "code"],
)
def test_a_file_that_nothing_can_be_taken_from_is_one_line(tmp_path: Path, value: Any, reason: str) -> None:
    network = other_unet(GROUPS)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    with pytest.raises(CheckpointError, match=reason) as caught:
        take_weights(network, stored(value, tmp_path / "other.pt"))

    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_of_another_width_has_nothing_that_fits(tmp_path: Path) -> None:
    path = saved(unet(GROUPS, width=8), tmp_path / "wide.ckpt")

    with pytest.raises(CheckpointError, match=r"encoder\.0\.0\.weight \(4, 3, 3, 3\)"):
        take_weights(other_unet(GROUPS), path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        take_weights(other_unet(GROUPS), tmp_path / "no.ckpt")


def test_half_precision_is_taken_as_it_is_meant(tmp_path: Path) -> None:
    source, network = unet(GROUPS), other_unet(GROUPS)
    halves: dict[str, Tensor] = {name: value.half() for name, value in source.state_dict().items()}

    take_weights(network, stored(halves, tmp_path / "half.pt"))

    assert network.head.weight.dtype == torch.float32
    torch.testing.assert_close(network.head.weight, source.head.weight, rtol=1e-3, atol=1e-3)
