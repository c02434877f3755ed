"""Convolutions that give a pixel the same bits in any crop, batch and number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from geonorm.models.bitwise import BitwiseConvolutions
from tests.models.networks import random_image, torch_threads

CHANNELS = [(1, 1), (1, 8), (3, 5), (4, 4), (16, 8), (8, 1)]
FORMATS = [torch.contiguous_format, torch.channels_last]

every_convolution = pytest.mark.parametrize(
    ("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (2, 2), (1, 2)], ids=["1", "3", "3/2", "2/2", "1/2"]
)
all_channels = pytest.mark.parametrize("channels", CHANNELS, ids=str)
both_formats = pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "channels_last"])

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN, whose convolutions these are"
)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test with this number of threads."""
    with torch_threads(request.param):
        yield request.param


def conv(channels: tuple[int, int], kernel: int, stride: int = 1, *, groups: int = 1) -> nn.Conv2d:
    """Return a convolution with random weights, padded by half its kernel."""
    layer = nn.Conv2d(*channels, kernel, stride=stride, padding=kernel // 2, groups=groups)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def noise(*shape: int) -> Tensor:
    """Return random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def bitwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the result within the context."""
    with torch.no_grad(), BitwiseConvolutions():
        return layer(x)


@needs_onednn
@pytest.mark.usefixtures("threads")
@every_convolution
@all_channels
@settings(max_examples=8)
@given(
    top=st.integers(0, 10),
    left=st.integers(0, 10),
    height=st.integers(2, 20),
    width=st.integers(2, 30),
    samples=st.sampled_from([slice(0, 1), slice(1, 3), slice(0, 5)]),
    memory_format=st.sampled_from(FORMATS),
)
def test_a_crop_gives_the_bits_of_the_whole(
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    top: int,
    left: int,
    height: int,
    width: int,
    samples: slice,
    memory_format: torch.memory_format,
) -> None:
    layer, x = conv(channels, kernel, stride), noise(5, channels[0], 60, 90)
    top, left, height, width = (2 * value for value in (top, left, height, width))
    crop = x[samples, :, top : top + height, left : left + width].contiguous(memory_format=memory_format)

    with torch_threads(1):
        whole = bitwise(layer, x.contiguous(memory_format=memory_format))
    part = bitwise(layer, crop)

    inside = (..., slice(1, -1), slice(1, -1))
    rows = slice(top // stride, top // stride + part.shape[-2])
    cols = slice(left // stride, left // stride + part.shape[-1])
    assert torch.equal(part[inside], whole[samples, :, rows, cols][inside])


@needs_onednn
@pytest.mark.usefixtures("threads")
@every_convolution
@all_channels
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_neither_the_batch_nor_its_size_changes_a_bit(
    channels: tuple[int, int], kernel: int, stride: int, samples: int
) -> None:
    layer, x = conv(channels, kernel, stride), noise(5, channels[0], 32, 48)

    together = bitwise(layer, x[:samples])

    for sample in range(samples):
        assert torch.equal(bitwise(layer, x[sample : sample + 1])[0], together[sample])


@every_convolution
@all_channels
@both_formats
def test_the_numbers_are_those_of_a_convolution(
    channels: tuple[int, int], kernel: int, stride: int, memory_format: torch.memory_format
) -> None:
    layer, x = conv(channels, kernel, stride), noise(2, channels[0], 21, 34)

    result = bitwise(layer, x.contiguous(memory_format=memory_format))

    expected = layer.double()(x.double())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "channels"),
    [
        ({"padding": "same"}, 4),
        ({"padding": (0, 1), "stride": (2, 1), "dilation": (1, 2)}, 4),
        ({"padding": 1, "groups": 2}, 4),
        ({"padding": 1, "groups": 4}, 4),
        ({"padding": 1, "padding_mode": "reflect"}, 4),
        ({"bias": False}, 4),
    ],
    ids=str,
)
def test_any_setting_of_a_convolution_will_do(arguments: dict[str, object], channels: int) -> None:
    layer, x = nn.Conv2d(channels, 8, 3, **arguments), noise(2, channels, 21, 34)  # type: ignore[arg-type]

    result = bitwise(layer, x)

    torch.testing.assert_close(result, layer(x).detach(), rtol=1e-5, atol=1e-5)


def test_an_image_without_a_batch_is_taken_as_torch_takes_it() -> None:
    layer, image = conv((3, 4), 3), noise(3, 21, 34)

    torch.testing.assert_close(bitwise(layer, image), layer(image).detach(), rtol=1e-5, atol=1e-5)


def test_a_transposed_convolution_is_left_alone() -> None:
    layer, x = nn.ConvTranspose2d(3, 4, 2, stride=2), noise(1, 3, 21, 34)

    assert torch.equal(bitwise(layer, x), layer(x).detach())


@all_channels
@pytest.mark.parametrize("kernel", [1, 3])
def test_where_gradients_are_wanted_all_is_left_alone(channels: tuple[int, int], kernel: int) -> None:
    layer, x = conv(channels, kernel), noise(1, channels[0], 21, 34)

    with BitwiseConvolutions():
        result = layer(x)
        result.sum().backward()

    assert layer.weight.grad is not None
    found = layer.weight.grad.clone()
    layer.zero_grad()
    plain = layer(x)
    plain.sum().backward()
    assert torch.equal(result, plain)
    assert torch.equal(found, layer.weight.grad)


def test_float64_is_left_alone() -> None:
    layer, x = conv((3, 4), 3).double(), noise(2, 3, 21, 34).double()

    assert torch.equal(bitwise(layer, x), layer(x).detach())


def test_after_the_context_all_is_as_before() -> None:
    layer, x = conv((3, 4), 3), noise(1, 3, 21, 34)
    with torch.no_grad():
        before = layer(x)
        bitwise(layer, x)

        assert torch.equal(layer(x), before)


def test_the_input_is_not_written_to() -> None:
    x = random_image(1, 1, 21, 34)
    before = x.clone()

    bitwise(conv((1, 4), 3), x)

    assert torch.equal(x, before)
    assert x.stride() == before.stride()


def test_sizes_that_do_not_fit_are_refused_as_without_it() -> None:
    with torch.no_grad(), BitwiseConvolutions():
        with pytest.raises(RuntimeError, match="channels"):
            F.conv2d(noise(1, 3, 9, 9), noise(4, 4, 3, 3))
        with pytest.raises(RuntimeError, match="Kernel size"):
            F.conv2d(noise(1, 4, 2, 2), noise(4, 4, 3, 3))


@needs_onednn
def test_torch_alone_changes_bits_with_the_number_of_threads_or_the_crop() -> None:
    """The reason for all this; where torch no longer does, the context can go."""
    differ = []
    for number in (1, 2):
        for channels in CHANNELS:
            for kernel in (1, 3):
                layer, x = conv(channels, kernel), noise(5, channels[0], 64, 64)
                with torch.no_grad(), torch_threads(number):
                    whole, part = layer(x), layer(x[:1, :, 10:30, 10:30])
                differ.append(not torch.equal(part[..., 2:-2, 2:-2], whole[:1, :, 12:28, 12:28]))

    assert any(differ)


@needs_onednn
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("channels", "kernel"),
    [((257, 16), 3), ((384, 128), 3), ((768, 32), 3), ((1024, 48), 3), ((256, 64), 5), ((64, 64), 7)],
)
@settings(max_examples=6)
@given(height=st.integers(4, 40), width=st.integers(14, 90), left=st.integers(1, 9))
def test_many_channels_are_added_up_alike_in_maps_of_any_size(
    channels: tuple[int, int], kernel: int, height: int, width: int, left: int
) -> None:
    layer, image, reach = conv(channels, kernel), noise(1, channels[0], height, width), kernel // 2

    crop = bitwise(layer, image[..., left:])[..., reach:]
    whole = bitwise(layer, image)

    assert torch.equal(crop, whole[..., left + reach :])
    exact = layer.double()(image.double())
    assert (whole - exact).abs().max() < 1e-5 * exact.abs().max()
