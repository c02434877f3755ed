"""Norms that are an affine map in evaluation, made cheaper without another output."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError
from geonorm.models import UNet, build_smp, fold_norms
from geonorm.norms import BatchNorm, BatchRenorm, FrozenBatchNorm, GroupNorm, SwitchableNorm

NORMS: dict[str, Any] = {
    "BatchNorm": BatchNorm,
    "BatchRenorm": BatchRenorm,
    "FrozenBatchNorm": FrozenBatchNorm,
    "SwitchableNorm": partial(SwitchableNorm, selection="hard", pool=("BN", "IN")),
}


def with_random_norms(network: Any) -> Any:
    """Give every norm random parameters and statistics."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(module, name, None)
            if hasattr(module, "eps") and value is not None:
                value.data.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network


def unet(norm: Any, **settings: Any) -> nn.Module:
    """Return a U-Net in evaluation mode with random statistics; of control parameters the first is largest."""
    torch.manual_seed(0)
    network = UNet(3, 2, depth=2, width=4, norm=norm, **settings)
    with_random_norms(network)
    for module in network.modules():
        if isinstance(module, SwitchableNorm):
            nn.init.constant_(module.mean_weight[:1], 9)
            if module.var_weight is not None:
                nn.init.constant_(module.var_weight[:1], 9)
            module.select(module.selection)
    return network.eval()


def norms_in(network: nn.Module) -> list[nn.Module]:
    """Return what is left of norms."""
    return [m for m in network.modules() if type(m).__name__.endswith(("Norm", "Renorm"))]


class Shared(nn.Module):
    """A convolution whose output is used beside the norm, and one whose norm comes after something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = BatchNorm(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=2)
        self.after_relu = nn.BatchNorm2d(4)
        self.third = nn.ConvTranspose2d(4, 4, 2, stride=2, bias=False)
        self.last = nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of four channels, twice as large."""
        x = self.first(x)
        x = self.norm(x) + x
        x = self.after_relu(self.second(x).relu())
        return self.last(self.third(x))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_the_output_is_the_same(name: str, padding: str) -> None:
    network, x = unet(NORMS[name], padding=padding), 100 * torch.rand(2, 3, 68, 68, dtype=torch.float64)
    network.double()

    folded, report = fold_norms(network)

    assert norms_in(folded) == []
    assert {entry.after for entry in report} == {"Identity"}
    torch.testing.assert_close(folded(x), network(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NORMS)
def test_without_touching_convolutions_it_is_the_same_to_the_bit(name: str) -> None:
    network, x = unet(NORMS[name]), 100 * torch.rand(2, 3, 64, 64)

    folded, report = fold_norms(network, into_convolutions=False)

    assert {type(norm) for norm in norms_in(folded)} == {FrozenBatchNorm}
    assert {entry.after for entry in report} == {"FrozenBatchNorm"}
    if name in ("FrozenBatchNorm", "SwitchableNorm"):
        assert torch.equal(folded(x), network(x))
    else:
        torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)


def test_the_network_itself_is_left_alone() -> None:
    network = unet(BatchNorm).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    fold_norms(network)

    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_only_a_convolution_that_nothing_else_uses_takes_its_norm() -> None:
    network, x = with_random_norms(Shared()).eval().double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)

    folded, report = fold_norms(network)

    assert {entry.name: entry.after for entry in report} == {
        "norm": "FrozenBatchNorm",
        "after_relu": "FrozenBatchNorm",
        "last": "Identity",
    }
    torch.testing.assert_close(folded(x), network(x), rtol=1e-10, atol=1e-10)


def test_a_module_that_runs_twice_is_left_alone() -> None:
    pair = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), BatchNorm(4))
    network = with_random_norms(nn.Sequential(nn.Conv2d(3, 4, 1), pair, pair)).eval().double()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)

    folded, _ = fold_norms(network)

    torch.testing.assert_close(folded(x), network(x), rtol=1e-10, atol=1e-10)


def test_a_convolution_with_a_computed_weight_is_left_alone() -> None:
    convolution = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    network = with_random_norms(nn.Sequential(convolution, BatchNorm(4))).eval().double()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)

    folded, report = fold_norms(network)

    assert report[0].after == "FrozenBatchNorm"
    torch.testing.assert_close(folded(x), network(x), rtol=1e-10, atol=1e-10)


def test_a_network_of_smp_folds() -> None:
    torch.manual_seed(0)
    network = build_smp("unet", "resnet18", in_channels=3, num_classes=2, norm=BatchNorm)
    with_random_norms(network).eval().double()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)

    folded, report = fold_norms(network)

    assert norms_in(folded) == []
    assert len(report) == 20 + 10  # those of the encoder, two in each of five decoder blocks
    torch.testing.assert_close(folded(x), network(x), rtol=1e-8, atol=1e-8)


def test_a_soft_layer_and_other_norms_are_left_and_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNorm(4), SwitchableNorm(4), GroupNorm(4))

    folded, report = fold_norms(network)

    assert [entry.name for entry in report] == ["1"]
    assert [type(norm) for norm in norms_in(folded)] == [SwitchableNorm, GroupNorm]
    with pytest.raises(InvalidConfigError, match="No norm of this UNet is an affine map"):
        fold_norms(unet(GroupNorm))
