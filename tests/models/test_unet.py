"""The plain U-Net: shapes, where its norms stand, what it is made of, and what it refuses."""

import re
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import export
from torch.nn.functional import conv2d, conv_transpose2d, cross_entropy, max_pool2d

from geonorm.errors import InvalidConfigError
from geonorm.models import Rescale, TileGeometry, UNet, tile_geometry
from geonorm.models.unet import Downsample, NormAt, Padding, UpConv, centre, max_blur_pool
from geonorm.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, NormFactory, SwitchableNorm
from tests.models.networks import local, random_image, unet

PADDINGS: list[Padding] = ["same", "valid"]
NORMS = [BatchNorm, GroupNorm, InstanceNorm, LayerNorm, SwitchableNorm, local(window_px=5)]

both_paddings = pytest.mark.parametrize("padding", PADDINGS)
both_pools = pytest.mark.parametrize("downsample", ["max", "maxblur"])


def output_of(network: nn.Module, height: int, width: int) -> Tensor:
    """Return the output for an image of this size, without computing its values."""
    return network.to("meta")(torch.empty(2, 3, height, width, device="meta"))


def refusal(network: nn.Module, height: int, width: int) -> str | None:
    """Return why an image of this size is refused, or None if it is not."""
    try:
        output_of(network, height, width)
    except InvalidConfigError as error:
        return str(error)
    return None


@cache
def of_one_channel(depth: int, padding: Padding, downsample: Downsample) -> tuple[UNet, TileGeometry]:
    """Return a network and its geometry."""
    network = unet(depth=depth, padding=padding, downsample=downsample, width=1)
    return network, tile_geometry(network)


class Recorder:
    """A norm factory that remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, num_features: int, *, stride: int) -> nn.Module:
        """Make a norm, and remember its channels and its stride."""
        self.calls.append((num_features, stride))
        return BatchNorm(num_features)


# Shapes


@both_pools
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_same_padding_keeps_the_size(depth: int, downsample: Downsample) -> None:
    logits = output_of(unet(depth=depth, downsample=downsample, num_classes=5), 3 * 2**depth, 5 * 2**depth)

    assert logits.shape == (2, 5, 3 * 2**depth, 5 * 2**depth)


@pytest.mark.parametrize(("downsample", "side_px"), [("max", 572), ("maxblur", 632)])
def test_valid_padding_takes_572_px_or_with_blurs_632_px_to_388_px(downsample: Downsample, side_px: int) -> None:
    logits = output_of(unet(depth=4, padding="valid", downsample=downsample), side_px, side_px)

    assert logits.shape == (2, 2, 388, 388)


@both_paddings
@both_pools
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_margin_is_what_the_output_lacks_on_each_side(depth: int, padding: Padding, downsample: Downsample) -> None:
    network = unet(depth=depth, padding=padding, downsample=downsample)
    least_px = tile_geometry(network).least_px

    logits = output_of(network, least_px, least_px + 2**depth)

    lacks = 2 * network.margin_px
    assert logits.shape[-2:] == (least_px - lacks, least_px + 2**depth - lacks)


@both_paddings
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_gives_logits_of_either_kind(norm: NormFactory, padding: Padding) -> None:
    image = random_image(2, 3, 20, 28)

    logits = unet(norm, padding=padding, num_classes=3)(image)

    lost = 0 if padding == "same" else 16
    assert logits.shape == (2, 3, 20 - lost, 28 - lost)
    assert logits.isfinite().all()


# What it is made of


def test_the_first_module_scales_the_raw_values() -> None:
    network, image = unet(), random_image(1, 3, 12, 20)
    plain = unet()
    plain.rescale.load_state_dict(Rescale(3).state_dict())

    assert isinstance(next(network.children()), Rescale)
    assert torch.equal(network(image), plain(network.rescale(image)))
    assert not torch.allclose(network(image), plain(image))


@both_paddings
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("norm_at", ["every", "block", "ends"])
def test_norms_are_asked_for_with_the_channels_and_the_stride_of_their_level(
    depth: int, norm_at: NormAt, padding: Padding
) -> None:
    norm = Recorder()

    UNet(3, 2, norm=norm, depth=depth, width=4, padding=padding, norm_at=norm_at)

    down_and_up = [*range(depth + 1), *reversed(range(depth))]
    levels = [0, 0] if norm_at == "ends" else down_and_up
    each = 2 if norm_at == "every" else 1
    expected = [(4 * 2**level, 2**level) for level in levels for _ in range(each)]
    assert sorted(norm.calls) == sorted(expected)


@pytest.mark.parametrize(
    ("norm_at", "names"),
    [
        ("every", {"encoder.0.1", "encoder.0.4", "bottom.1", "bottom.4", "decoder.0.1", "decoder.0.4"}),
        ("block", {"encoder.0.3", "bottom.3", "decoder.0.3"}),
        ("ends", {"encoder.0.3", "decoder.0.3"}),
    ],
)
def test_norms_stand_where_norm_at_says(norm_at: NormAt, names: set[str]) -> None:
    network = unet(norm_at=norm_at)

    assert {name for name, module in network.named_modules() if isinstance(module, BatchNorm)} == names


def test_a_norm_stands_between_its_convolution_and_the_relu() -> None:
    network = unet(norm_at="every")

    for block in (network.encoder[0], network.bottom, network.decoder[0]):
        kinds = [type(layer).__name__ for layer in block.children()]
        assert kinds == ["Conv2d", "BatchNorm", "ReLU"] * 2


def test_an_up_convolution_is_a_transposed_convolution_of_the_same_weights() -> None:
    up, x = UpConv(6, 5), torch.randn(2, 6, 4, 7, generator=torch.Generator().manual_seed(0))
    weight = up.conv.weight.detach().view(5, 2, 2, 6).permute(3, 0, 1, 2)
    bias = torch.arange(5.0)
    with torch.no_grad():
        up.conv.bias.copy_(bias.repeat_interleave(4))  # type: ignore[union-attr]

    torch.testing.assert_close(up(x), conv_transpose2d(x, weight, bias, stride=2))


def test_every_cell_of_an_up_convolution_has_weights_of_its_own() -> None:
    up, x = UpConv(3, 2), torch.ones(1, 3, 1, 1)

    values = up(x)

    assert len(values.unique()) == 2 * 2 * 2


def blurred_slowly(x: Tensor) -> Tensor:
    """Return maximum, blur by 1 2 1 and every second cell of one channel, cell by cell, without the outermost ones."""
    height, width = x.shape
    largest = {
        (row, col): float(x[row : row + 2, col : col + 2].max())
        for row in range(height - 1)
        for col in range(width - 1)
    }
    near, weights = (-1, 0, 1), (1, 2, 1)
    return torch.tensor(
        [
            [
                sum(weights[i + 1] * weights[j + 1] * largest[row + i, col + j] for i in near for j in near) / 16
                for col in range(2, width - 2, 2)
            ]
            for row in range(2, height - 2, 2)
        ]
    )


def test_max_blur_pooling_is_the_maximum_blurred_around_each_pair_of_cells() -> None:
    x = torch.rand(2, 3, 12, 18, generator=torch.Generator().manual_seed(0))

    kept, left_out = max_blur_pool(x, padded=True), max_blur_pool(x, padded=False)

    expected = torch.stack([torch.stack([blurred_slowly(channel) for channel in sample]) for sample in x])
    torch.testing.assert_close(left_out, expected)
    assert kept.shape == (2, 3, 6, 9)
    assert torch.equal(kept[..., 1:-1, 1:-1], left_out)


@pytest.mark.parametrize("dims", [(-1,), (-2,), (-2, -1)])
def test_max_blur_pooling_moves_nothing_to_any_side(dims: tuple[int, ...]) -> None:
    x = torch.rand(1, 2, 12, 18, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(max_blur_pool(x.flip(dims), padded=True), max_blur_pool(x, padded=True).flip(dims))


def test_a_flat_map_stays_flat_under_max_blur_pooling_up_to_its_border() -> None:
    flat = torch.full((1, 1, 6, 8), -2.5)

    assert torch.equal(max_blur_pool(flat, padded=True), torch.full((1, 1, 3, 4), -2.5))


def test_max_blur_pooling_of_a_moved_map_changes_less_than_the_maximum() -> None:
    image = torch.rand(1, 8, 65, 65, generator=torch.Generator().manual_seed(0))
    x = conv2d(image, torch.full((8, 1, 3, 3), 1 / 9), groups=8)  # neighbours are alike, as in a photograph

    def change(pooled: Tensor, moved: Tensor) -> float:
        return float((pooled - moved).abs().mean() / pooled.std())

    plain = change(max_pool2d(x[..., :-1], 2), max_pool2d(x[..., 1:], 2))
    blurred = change(max_blur_pool(x[..., :-1], padded=False), max_blur_pool(x[..., 1:], padded=False))
    assert blurred < 0.9 * plain


def test_both_kinds_of_pooling_have_the_same_weights_and_other_logits() -> None:
    plain, blurred = unet(depth=2), unet(depth=2, downsample="maxblur")
    image = random_image(1, 3, 24, 32)

    blurred.load_state_dict(plain.state_dict())

    assert not torch.allclose(plain(image), blurred(image))


def test_plain_pooling_is_a_maximum_of_2_x_2_cells() -> None:
    network, image = unet(), random_image(1, 3, 12, 20)
    [encoder], [up], [decoder] = network.encoder, network.upsample, network.decoder

    skip = encoder(network.rescale(image))
    deep = up(network.bottom(skip.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).amax((-3, -1))))

    assert torch.equal(network(image), network.head(decoder(torch.cat([skip, deep], dim=1))))


@both_paddings
@both_pools
def test_a_unet_compiles_to_one_graph_and_can_be_exported(padding: Padding, downsample: Downsample) -> None:
    network, image = unet(padding=padding, downsample=downsample), random_image(1, 3, 24, 32)
    expected = network(image)

    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    exported = export(network, (image,)).module()

    torch.testing.assert_close(compiled(image), expected)
    torch.testing.assert_close(exported(image), expected)


@given(height=st.integers(1, 9), width=st.integers(1, 9), rows=st.integers(0, 4), cols=st.integers(0, 4))
def test_the_centre_leaves_out_as_much_on_either_side(height: int, width: int, rows: int, cols: int) -> None:
    x = random_image(1, 1, height + 2 * rows, width + 2 * cols)

    middle = centre(x, like=torch.empty(1, 1, height, width))

    assert torch.equal(middle, x[..., rows : rows + height, cols : cols + width])


# Training


@both_paddings
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("norm_at", ["every", "block", "ends"])
@both_pools
def test_gradients_reach_every_parameter(
    norm: NormFactory, norm_at: NormAt, padding: Padding, downsample: Downsample
) -> None:
    network = unet(norm, padding=padding, norm_at=norm_at, downsample=downsample, width=8).train()
    logits = network(random_image(2, 3, 28, 36))

    cross_entropy(logits, random_image(2, *logits.shape[-2:], high=2, dtype=torch.long)).backward()

    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@both_paddings
@pytest.mark.parametrize("norm", NORMS)
def test_the_image_is_not_written_to(norm: NormFactory, padding: Padding) -> None:
    image = random_image(1, 3, 20, 28)
    before = image.clone()

    unet(norm, padding=padding).train()(image)

    assert torch.equal(image, before)


# What it refuses


@both_paddings
@both_pools
@settings(max_examples=20)
@given(depth=st.integers(1, 3), height=st.integers(1, 140), width=st.integers(1, 140))
def test_a_size_it_does_not_take_is_one_line_that_names_sizes_it_takes(
    padding: Padding, downsample: Downsample, depth: int, height: int, width: int
) -> None:
    network, geometry = of_one_channel(depth, padding, downsample)

    reason = refusal(network, height, width)

    assert (reason is None) == all(geometry.read_px(side) == side for side in (height, width))
    if reason is not None:
        assert f"got ({height}, {width})" in reason
        assert "\n" not in reason
        named = re.findall(r"\d+", reason[reason.index("Try") :])
        assert [refusal(network, int(side), int(side)) for side in named] == [None, None]


@pytest.mark.parametrize(
    ("norm", "ours"),
    [
        (nn.BatchNorm2d, "BatchNorm"),
        (nn.SyncBatchNorm, "BatchNorm"),
        (nn.GroupNorm, "GroupNorm"),
        (nn.LayerNorm, "LayerNorm"),
        (nn.InstanceNorm2d, "InstanceNorm"),
    ],
)
def test_a_norm_of_torch_is_one_line_that_names_ours(norm: Any, ours: str) -> None:
    with pytest.raises(InvalidConfigError, match=rf"Use geonorm\.norms\.{ours}\.$") as caught:
        UNet(3, 2, norm=norm, width=4)

    assert norm.__name__ in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"padding": "full"}, "padding must be one of same, valid, got 'full'"),
        ({"norm_at": "never"}, "norm_at must be one of every, block, ends, got 'never'"),
        ({"downsample": "mean"}, "downsample must be one of max, maxblur, got 'mean'"),
        ({"norm": local(window_px=5), "width": 3}, "group_size must divide the channels"),
    ],
)
def test_a_setting_that_cannot_work_is_one_line(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidConfigError, match=reason) as caught:
        UNet(**{"in_channels": 3, "num_classes": 2, "norm": BatchNorm, **arguments})

    assert "\n" not in str(caught.value)


@both_paddings
def test_a_network_of_the_wrong_number_of_bands_says_how_many_it_takes(padding: Padding) -> None:
    with pytest.raises(InvalidConfigError, match=r"takes images \(N, 3, H, W\), got \(1, 4, 20, 28\)"):
        unet(padding=padding)(torch.zeros(1, 4, 20, 28))
