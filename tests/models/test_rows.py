"""A network that takes an image row by row: what it gives is what it gives at once, and no row is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from geonorm.models import UNet, build_smp, tile_geometry
from geonorm.models.bitwise import BitwiseConvolutions
from geonorm.models.predictor import predictor
from geonorm.models.row_predictor import DiffersByRowsError, RowPredictor
from geonorm.models.rows import NotByRowsError, RowNetwork, RowStream
from geonorm.norms import BatchNorm, GroupNorm, NormFactory, SwitchableNorm
from tests.models.networks import (
    EXACT_BODIES,
    ROUNDED_BODIES,
    Network,
    local,
    random_image,
    torch_threads,
    unet,
    with_random_values,
)

CPU = torch.device("cpu")
BODIES = EXACT_BODIES | ROUNDED_BODIES
NETWORKS: dict[str, Callable[[], UNet]] = {
    "BN": partial(unet, depth=2),
    "BN, valid": partial(unet, depth=2, padding="valid"),
    "3 px": partial(unet, local(window_px=3), depth=2),
    "31 px": partial(unet, local(window_px=31), depth=2, norm_at="ends"),
    "91 px, clip": partial(unet, local(window_px=91, border="clip"), depth=1, norm_at="block"),
    "9 px, valid": partial(unet, local(window_px=9), depth=1, padding="valid"),
    "4 x 3 cells, clip": partial(unet, local(window_cells=(4, 3), border="clip"), depth=3, norm_at="block"),
    "one band": partial(unet, local(window_px=5), bands=1, norm_at="ends"),
    "blur": partial(unet, depth=3, downsample="maxblur"),
    "blur, valid": partial(unet, local(window_px=5), depth=2, downsample="maxblur", padding="valid"),
}
SMP: dict[str, tuple[str, str, NormFactory]] = {
    "unet, LCN": ("unet", "tu-resnet10t", local(window_px=3)),
    **{
        f"{arch}, {encoder}": (arch, encoder, BatchNorm)
        for arch in ("unet", "unetplusplus", "linknet", "fpn")
        for encoder in ("tu-resnet10t", "tu-mobilenetv2_035", "resnet18")
    },
}
"""Architecture, encoder and norm."""


@cache
def made(name: str) -> tuple[UNet, RowNetwork, int]:
    """Return a network, the same by rows, and the first side it takes."""
    network = NETWORKS[name]()
    geometry = tile_geometry(network)
    side = geometry.read_px(4 * geometry.stride_px + 2 * geometry.margin_px)
    return network, RowNetwork.of(network, torch.zeros(1, len(network.rescale.mean), side, side)), geometry.least_px


@torch.no_grad()
def at_once(network: nn.Module, image: Tensor) -> Tensor:
    """Return what a network makes of an image, on the way that keeps the bits."""
    with BitwiseConvolutions():
        output = network(image.contiguous(memory_format=torch.channels_last))
    assert isinstance(output, Tensor)
    return output


@torch.no_grad()
def pushed(stream: RowStream, image: Tensor, steps: Sequence[int]) -> Tensor:
    """Return the same, some rows of the image after the other."""
    image = image.contiguous(memory_format=torch.channels_last)
    with BitwiseConvolutions():
        found = [stream.push(rows) for rows in image.split([*steps], dim=2)]
    return torch.cat([rows for rows in found if rows is not None], dim=2)


def by_rows(network: nn.Module, image: Tensor, step: int) -> Tensor:
    """Return what a network makes of an image in steps of so many rows."""
    height = image.shape[2]
    steps = [min(step, height - row) for row in range(0, height, step)]
    return pushed(RowNetwork.of(network, image[:, :, :24, :24]).stream(height), image, steps)


# The same as at once


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=12, deadline=None)
@given(data=st.data(), rows=st.integers(0, 14), cols=st.integers(0, 6))
def test_a_u_net_gives_the_same_bits(name: str, data: st.DataObject, rows: int, cols: int) -> None:
    network, by_row, least = made(name)
    stride = 2**network.depth
    height, width = least + rows * stride, least + cols * stride
    image = random_image(1, len(network.rescale.mean), height, width, seed=rows)
    cuts = data.draw(st.lists(st.integers(1, height - 1), max_size=8, unique=True).map(sorted)) if height > 1 else []
    steps = [end - begin for begin, end in zip([0, *cuts], [*cuts, height], strict=True)]

    assert torch.equal(pushed(by_row.stream(height), image, steps), at_once(network, image))


@pytest.mark.parametrize("step", [1, 5, 16, 96])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_every_operator_gives_what_it_gives_at_once(body: Callable[[Tensor], Tensor], step: int) -> None:
    network, image = Network(body).eval(), random_image(1, 3, 96, 60)

    expected = at_once(network, image)

    torch.testing.assert_close(by_rows(network, image, step), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 200), (200, 8), (16, 24)])
@pytest.mark.parametrize("border", ["nearest", "clip"])
def test_windows_larger_than_the_map(border: str, height: int, width: int) -> None:
    network = unet(local(window_px=91, border=border), depth=2)
    image = random_image(1, 3, height, width)
    by_row = RowNetwork.of(network, image)

    assert torch.equal(pushed(by_row.stream(height), image, [4] * (height // 4)), at_once(network, image))


def test_two_threads_give_the_bits_of_one() -> None:
    network, by_row, _ = made("4 x 3 cells, clip")
    image = random_image(1, 3, 96, 64)
    with torch_threads(1):
        expected = at_once(network, image)

    with torch_threads(2):
        found = pushed(by_row.stream(96), image, [32] * 3)

    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMP)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_networks_of_the_smp_library_agree(name: str, precision: str) -> None:
    arch, encoder, norm = SMP[name]
    network = with_random_values(build_smp(arch, encoder, in_channels=3, num_classes=3, norm=norm)).eval()
    image = random_image(1, 3, 320, 96)
    run = RowPredictor(network, tile_geometry(network), CPU, precision=precision)(320)  # type: ignore[arg-type]  # a name

    found = [run.push(rows) for rows in image.split([64, 32, 96, 64, 64], dim=2)]

    expected = predictor(network, CPU, precision=precision)(image)  # type: ignore[arg-type]  # a name
    tolerance = (1e-5 if precision == "32-true" else 0.05) * float(expected.abs().max())
    together = torch.cat([rows for rows in found if rows is not None], dim=2)
    torch.testing.assert_close(together, expected, rtol=0, atol=tolerance)


class Of(nn.Module):
    """A function of a map and of layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return what it makes of a map."""
        return self.function(x, *self.layers)


@pytest.mark.parametrize(
    "body",
    [
        Of(lambda x: x.view(x.shape[0], -1, *x.shape[2:]) + 1),
        Of(lambda x: x.expand_as(x) * 2),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ZeroPad2d(1)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, padding=1)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, padding=1), nn.ReLU(inplace=True)),
        Of(lambda x, conv: x + F.pad(conv(F.avg_pool2d(x, 4)), (1, 0, 1, 0)), nn.ConvTranspose2d(4, 4, 3, 4)),
        Of(lambda x: F.pad(F.pad(x, (1, 1, 1, 1)), (-1, -1, -1, -1))),
        Of(lambda x: x.add_(F.avg_pool2d(x, 3, 1, 1))),
        Of(lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
        Of(lambda x: F.interpolate(F.max_pool2d(x, 3, 2, 1, ceil_mode=True), scale_factor=2)),
    ],
)
@pytest.mark.parametrize("step", [1, 12, 48])
def test_what_is_unusual_gives_the_same_or_is_refused(body: nn.Module, step: int) -> None:
    network, image = Network(body).eval(), random_image(1, 3, 96, 48)
    try:
        run = RowPredictor(network, tile_geometry(network), CPU)(96)
    except NotByRowsError:
        return

    found = [run.push(rows) for rows in image.split(step, dim=2)]

    expected = predictor(network, CPU)(image)
    together = torch.cat([rows for rows in found if rows is not None], dim=2)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


# Once


@pytest.mark.parametrize("name", ["BN", "3 px", "91 px, clip", "blur"])
def test_every_row_is_computed_once(name: str) -> None:
    network, by_row, _ = made(name)
    image = random_image(1, 3, 256, 64)

    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        network(image)
    with torch.no_grad(), FlopCounterMode(display=False) as rows:
        stream = by_row.stream(256)
        for part in image.split(16, dim=2):
            stream.push(part)

    assert rows.get_total_flops() == whole.get_total_flops()


@pytest.mark.parametrize("name", ["BN", "3 px", "31 px", "blur"])
def test_what_is_kept_does_not_grow_with_the_height(name: str) -> None:
    _, by_row, _ = made(name)

    def peak(height: int) -> int:
        return max(map(sum, by_row.tensor_bytes(height, 64, 16, 3 * 64 * 4)))

    assert peak(16000) == peak(1600)
    assert peak(1600) < 0.5 * 4 * 4 * 64 * 1600  # the first map of all rows, half of it


def test_the_bytes_that_are_foretold_are_those_that_are_kept() -> None:
    _, by_row, _ = made("31 px")
    image = random_image(1, 3, 320, 64).contiguous(memory_format=torch.channels_last)
    stream, kept = by_row.stream(320), []

    with torch.no_grad():
        for rows in image.split(16, dim=2):
            stream.push(rows)
            pieces = [piece for one in stream._kept[1:] for piece in one._pieces]
            memory = {piece.untyped_storage().data_ptr(): piece.untyped_storage().nbytes() for piece in pieces}
            kept.append(sum(memory.values()))

    foretold = max(map(sum, by_row.tensor_bytes(320, 64, 16, 3 * 64 * 4)))
    assert max(kept) <= foretold <= 4 * max(kept)  # with what is just being made


# Where it cannot be


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1)), "adaptive|mean"),
        (lambda x: x.cumsum(2), "cumsum"),
        (lambda x: x.reshape(1, 2, 2, *x.shape[2:]).sum(1), "view"),
        (lambda x: F.max_pool2d(x, 3, 1, 1, return_indices=True)[1].float(), "_to_copy"),
        (lambda x: x * torch.linspace(0, 1, x.shape[3]), "mul"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "bicubic"),
        (lambda x: F.conv2d(torch.ones_like(x), x.mean((2, 3), keepdim=True).expand(4, 4, 1, 1)), "mean"),
    ],
)
def test_an_operator_without_a_rule_is_named(body: Callable[[Tensor], Tensor], name: str) -> None:
    with pytest.raises(NotByRowsError, match=rf"no rule for .*({name})"):
        RowNetwork.of(Network(body).eval(), torch.zeros(1, 3, 24, 24))


@pytest.mark.parametrize("norm", [GroupNorm, SwitchableNorm])
def test_a_norm_over_the_whole_map_is_named(norm: NormFactory) -> None:
    network = unet(norm)

    with pytest.raises(NotByRowsError, match=rf"encoder.0.1 \({norm.__name__}\)"):  # type: ignore[attr-defined]  # a class
        RowPredictor(network, tile_geometry(network), CPU)


def test_an_output_that_is_not_of_the_image_is_refused() -> None:
    with pytest.raises(NotByRowsError, match="does not follow from the image"):
        RowNetwork.of(Network(lambda x: torch.zeros(1, 2, 8, 8)), torch.zeros(1, 3, 24, 24))


def test_a_network_that_does_something_else_to_another_size_is_found_out() -> None:
    network = Network(lambda x: x * x.shape[2])

    with pytest.raises(DiffersByRowsError, match="something else than at once"):
        RowPredictor(network, tile_geometry(Network(nn.Identity())), CPU)


def test_writing_into_what_another_way_still_needs_is_found_out() -> None:
    def body(x: Tensor) -> Tensor:
        way = x.detach()
        way.relu_()  # x as well
        return F.avg_pool2d(x, 3, 1, 1) + way

    with pytest.raises(DiffersByRowsError, match="something else than at once"):
        RowPredictor(Network(body), tile_geometry(Network(nn.AvgPool2d(3, 1, 1))), CPU)
