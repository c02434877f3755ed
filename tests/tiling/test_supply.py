"""Chunks that are read ahead hold what the tiles need, each read once where that fits into memory."""

from __future__ import annotations

import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.raster.read import Pixels
from geonorm.raster.window import Window
from geonorm.tiling.engine import predict_strips
from geonorm.tiling.plan import Plan
from geonorm.tiling.supply import Supply
from tests.tiling.grids import plans, reader

FILL = torch.tensor([7.0, 11.0])


def unchanged(logits: Tensor) -> Tensor:
    """Keep logits as they are."""
    return logits


@settings(max_examples=100)
@given(
    plan=plans(max_side_px=80, min_core_px=4),
    block_rows=st.integers(1, 40),
    threads=st.integers(1, 3),
    with_holes=st.booleans(),
)
def test_what_is_read_ahead_is_what_is_read_at_once(
    plan: Plan, block_rows: int, threads: int, with_holes: bool
) -> None:
    generator = np.random.default_rng(1)
    image = generator.integers(1, 256, (2, plan.height, plan.width)).astype("uint8")
    counts = np.ones(image.shape, dtype=bool)
    if with_holes:
        counts = generator.random(image.shape) > 0.2
        counts[:, : plan.height // 2, plan.width // 3 :] = False
    margin_px = plan.network.margin_px

    def predict(tiles: Tensor) -> Tensor:
        tiles = tiles.float()
        tiles = tiles[..., margin_px : tiles.shape[-2] - margin_px, margin_px : tiles.shape[-1] - margin_px]
        return tiles + tiles.mean((2, 3), keepdim=True)  # the halo counts as well

    read = reader(image, value_valid=counts)
    expected = list(predict_strips(read, predict, plan, fill=FILL, finish=unchanged))
    with Supply([read] * threads, plan, block_rows=block_rows, dtype=image.dtype, fill=FILL) as supply:
        found = list(predict_strips(read, predict, plan, fill=FILL, finish=unchanged, supply=supply))

    for one, other in zip(found, expected, strict=True):
        assert one.row == other.row
        assert torch.equal(one.output, other.output)
        np.testing.assert_array_equal(one.valid, other.valid)


def test_every_block_is_read_once_and_few_rows_are_in_memory() -> None:
    plan = Plan(height=1000, width=300, core_px=64, halo_px=40, first_index=(13, 5))
    image = np.ones((2, 1000, 300), dtype="uint8")
    seen: Counter[int] = Counter()
    windows: list[Window] = []
    alive: list[int] = [0]
    most = 0

    def read(window: Window) -> Pixels:
        nonlocal most
        windows.append(window)
        seen.update(range(window.row, window.row_end))
        pixels = reader(image)(window)
        values = pixels.values.copy()
        alive[0] += window.height
        weakref.finalize(values, lambda: alive.__setitem__(0, alive[0] - window.height))
        most = max(most, alive[0])
        return Pixels(values, pixels.value_valid, pixels.valid)

    with Supply([read], plan, block_rows=32, dtype=image.dtype, fill=FILL) as supply:
        list(predict_strips(read, unchanged, plan, fill=FILL, supply=supply))

    assert set(seen) == set(range(1000))
    assert set(seen.values()) == {1}
    assert all(window.row % 32 == 0 and window.width == 300 for window in windows)
    assert 144 <= most <= 144 + 3 * 64


def test_a_window_known_to_be_empty_is_not_read() -> None:
    plan = Plan(height=64, width=64, core_px=16)
    image = np.ones((2, 64, 64), dtype="uint8")
    read = reader(image, on_read=lambda window: pytest.fail(f"{window} was read"))

    with Supply([read], plan, block_rows=16, dtype=image.dtype, fill=FILL, holds_data=lambda window: False) as supply:
        strips = list(predict_strips(read, unchanged, plan, fill=FILL, supply=supply))

    assert not any(strip.valid.any() for strip in strips)


def test_an_error_of_a_reading_thread_arrives() -> None:
    plan = Plan(height=64, width=64, core_px=16)

    def read(window: Window) -> Pixels:
        raise OSError("the disk is gone")

    with (
        Supply([read], plan, block_rows=1, dtype=np.dtype("uint8"), fill=FILL) as supply,
        pytest.raises(OSError, match="the disk is gone"),
    ):
        list(predict_strips(read, unchanged, plan, fill=FILL, supply=supply))


# When the device's memory is full


def test_a_batch_that_does_not_fit_is_halved_and_the_map_is_the_same() -> None:
    plan = Plan(height=40, width=160, core_px=16)
    image = np.random.default_rng(0).integers(1, 256, (2, 40, 160)).astype("uint8")
    sizes: list[int] = []

    def predict(tiles: Tensor) -> Tensor:
        if len(tiles) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(tiles))
        return tiles.float()

    with pytest.warns(GeonormWarning, match="going on with a batch size of"):
        strips = list(predict_strips(reader(image), predict, plan, fill=FILL, finish=unchanged, batch_size=8))

    assert torch.equal(torch.cat([strip.output for strip in strips], 1), torch.from_numpy(image).float())
    assert set(sizes) == {2}


def test_a_tile_that_does_not_fit_is_one_line() -> None:
    plan = Plan(height=40, width=160, core_px=16)

    def predict(tiles: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(InvalidConfigError, match=r"one tile of 16 px does not fit .* smaller core_px"):
        list(predict_strips(reader(np.ones((2, 40, 160), "uint8")), predict, plan, fill=FILL))


def test_other_errors_of_the_network_are_its_own() -> None:
    plan = Plan(height=40, width=160, core_px=16)

    def predict(tiles: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(predict_strips(reader(np.ones((2, 40, 160), "uint8")), predict, plan, fill=FILL, batch_size=4))
