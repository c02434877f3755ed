"""The loop over tiles: what the network sees, and how its answers are put together."""

from __future__ import annotations

import warnings
import weakref
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

from geonorm.raster.window import Window
from geonorm.tiling.engine import Strip, labels_of, predict_strips, predict_tile, predict_whole
from geonorm.tiling.plan import Network, Plan, Span
from geonorm.tiling.supply import reflect
from tests.tiling.grids import plans, reader

FILL = torch.tensor([7.0, 11.0])
SMALL = {
    "one pixel": (1, 1),
    "one row": (1, 90),
    "one column": (60, 1),
    "smaller than a core": (11, 13),
    "one core": (16, 16),
    "a pixel more than a core": (17, 17),
    "two rows": (2, 35),
}

small_plans = plans(max_side_px=60, min_core_px=6)
many = settings(max_examples=100)
small_rasters = pytest.mark.parametrize(("height", "width"), SMALL.values(), ids=SMALL)


def noise(height: int, width: int, *, dtype: str = "uint8") -> NDArray[Any]:
    """Return two bands of random values."""
    return np.random.default_rng(0).integers(1, 256, (2, height, width)).astype(dtype)


def holes(plan: Plan, *, share: float = 0.2) -> NDArray[np.bool_]:
    """Return which values of two bands count; a hole in one band need not be one in the other."""
    return np.random.default_rng(1).random((2, plan.height, plan.width)) >= share


def unchanged(logits: Tensor) -> Tensor:
    """Keep logits as they are."""
    return logits


def identity(plan: Plan) -> Any:
    """Return a network that gives back what it sees, without its margin."""
    margin_px = plan.network.margin_px

    def predict(tiles: Tensor) -> Tensor:
        height, width = tiles.shape[-2:]
        return tiles[..., margin_px : height - margin_px, margin_px : width - margin_px]

    return predict


def batches(cols: list[Span], batch_size: int) -> list[list[Span]]:
    """Return the cores of a row as they go through the network together."""
    return [cols[start : start + batch_size] for start in range(0, len(cols), batch_size)]


def joined(strips: list[Strip]) -> Tensor:
    """Return the strips as one raster."""
    return torch.cat([strip.output for strip in strips], dim=-2)


def extended(image: NDArray[Any], window: Window) -> Tensor:
    """Return a window of the image that numpy has reflected beyond its edges."""

    def positions(first: int, length: int, size: int) -> NDArray[np.intp]:
        before, after = max(0, -first), max(0, first + length - size)
        everywhere = np.pad(np.arange(size), (before, after), mode="reflect" if size > 1 else "edge")
        return everywhere[first + before : first + before + length]

    rows = positions(window.row, window.height, image.shape[-2])
    cols = positions(window.col, window.width, image.shape[-1])
    return torch.from_numpy(image[:, rows][:, :, cols]).float()


# Beyond the edges


@settings(max_examples=300)
@given(start=st.integers(-60, 60), length=st.integers(1, 80), size=st.integers(1, 40))
def test_positions_beyond_the_edges_are_those_of_numpy(start: int, length: int, size: int) -> None:
    before, after = max(0, -start), max(0, start + length - size)

    padded = np.pad(np.arange(size), (before, after), mode="reflect" if size > 1 else "edge")

    expected = padded[start + before : start + before + length]
    np.testing.assert_array_equal(reflect(start, length, size), expected)


def test_the_pixel_at_the_edge_is_not_repeated() -> None:
    assert reflect(-3, 9, 4).tolist() == [3, 2, 1, 0, 1, 2, 3, 2, 1]


# What the network sees


@many
@given(plan=small_plans, batch_size=st.integers(1, 4), with_holes=st.booleans())
def test_the_network_sees_the_raster_its_reflection_and_the_fill(plan: Plan, batch_size: int, with_holes: bool) -> None:
    image = noise(plan.height, plan.width)
    counts = holes(plan) if with_holes else np.ones(image.shape, dtype=bool)
    seen: list[Tensor] = []

    def predict(tiles: Tensor) -> Tensor:
        seen.extend(tiles)
        return identity(plan)(tiles)

    list(predict_strips(reader(image, value_valid=counts), predict, plan, fill=FILL, batch_size=batch_size))

    filled = np.where(counts, image, FILL.numpy()[:, None, None])
    rows, cols = plan.axes
    windows = [
        Window(top.start, left.start, top.px, left.px)
        for row in rows.spans()
        for batch in batches([*cols.spans()], batch_size)
        for top, number in product(row.reads, range(plan.phases))
        for left in (col.reads[number] for col in batch)
    ]
    assert len(seen) == len(windows)
    for tile, window in zip(seen, windows, strict=True):
        assert tile.dtype in (torch.uint8, torch.float32)  # float32 where something is filled in
        assert torch.equal(tile.float(), extended(filled, window))


@many
@given(plan=small_plans, with_holes=st.booleans())
def test_the_whole_pass_sees_the_raster_its_reflection_and_the_fill(plan: Plan, with_holes: bool) -> None:
    image = noise(plan.height, plan.width)
    counts = holes(plan) if with_holes else np.ones(image.shape, dtype=bool)
    seen: list[Tensor] = []

    def predict(tiles: Tensor) -> Tensor:
        seen.append(tiles)
        return identity(plan)(tiles)

    whole = predict_whole(reader(image, value_valid=counts), predict, plan, fill=FILL)

    filled = np.where(counts, image, FILL.numpy()[:, None, None])
    rows, cols = (axis.wholes for axis in plan.axes)
    windows = [Window(top.start, left.start, top.px, left.px) for top, left in product(rows, cols)]
    assert len(seen) == len(windows)
    for tiles, window in zip(seen, windows, strict=True):
        assert torch.equal(tiles.float(), extended(filled, window)[None])
    np.testing.assert_array_equal(whole.valid, counts.any(axis=0))
    assert (whole.row, whole.rows) == (0, plan.height)


@given(plan=small_plans, batch_size=st.integers(1, 5))
def test_batches_are_full_but_for_the_last_of_a_row(plan: Plan, batch_size: int) -> None:
    sizes: list[int] = []
    done: list[int] = []

    def predict(tiles: Tensor) -> Tensor:
        sizes.append(len(tiles))
        return identity(plan)(tiles)

    read = reader(noise(plan.height, plan.width))
    list(predict_strips(read, predict, plan, fill=FILL, batch_size=batch_size, on_tiles=done.append))

    rows, cols = plan.axes
    expected = [len(batch) for batch in batches([*cols.spans()], batch_size)] * rows.num_cores
    assert done == expected
    assert sizes == [size for size in expected for _ in range(plan.num_phases)]


@given(plan=small_plans)
def test_no_more_rows_are_read_at_once_than_the_network_reads(plan: Plan) -> None:
    windows: list[Window] = []

    read = reader(noise(plan.height, plan.width), on_read=windows.append)
    list(predict_strips(read, identity(plan), plan, fill=FILL))

    assert len(windows) == plan.axes[0].num_cores
    moved_px = plan.network.stride_px if plan.phases > 1 else 0  # the reads of all phases lie in one window
    assert all(window.height <= plan.read_px + moved_px and window.width == plan.width for window in windows)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "int64", "float32", "float64"])
def test_values_of_any_type_become_float32(dtype: str) -> None:
    image, plan = noise(20, 30, dtype=dtype), Plan(height=20, width=30, core_px=16)

    strips = list(predict_strips(reader(image), identity(plan), plan, fill=FILL, finish=unchanged))

    assert torch.equal(joined(strips), torch.from_numpy(image.astype("float32")))


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, -1.7976931348623157e308])
def test_what_stands_where_no_data_is_does_no_harm(hole: float) -> None:
    plan = Plan(height=20, width=30, core_px=16)
    counts = holes(plan)
    image = np.where(counts, noise(20, 30), hole)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strips = list(
            predict_strips(reader(image, value_valid=counts), identity(plan), plan, fill=FILL, finish=unchanged)
        )

    expected = np.where(counts, noise(20, 30), FILL.numpy()[:, None, None])
    assert torch.equal(joined(strips), torch.from_numpy(expected).float())


# What comes out


@many
@given(plan=small_plans, batch_size=st.integers(1, 4))
def test_a_network_that_changes_nothing_gives_the_raster_back(plan: Plan, batch_size: int) -> None:
    image = noise(plan.height, plan.width)

    strips = list(
        predict_strips(reader(image), identity(plan), plan, fill=FILL, finish=unchanged, batch_size=batch_size)
    )

    assert torch.equal(joined(strips), torch.from_numpy(image).float())


@small_rasters
@pytest.mark.parametrize("network", [Network(), Network(stride_px=4, least_px=4), Network(margin_px=3, least_px=7)])
@pytest.mark.parametrize("first_index", [(0, 0), (15, 15), (-3, 5)])
@pytest.mark.parametrize("halo_px", [0, 9])
def test_a_small_raster_comes_back_too(
    height: int, width: int, network: Network, first_index: tuple[int, int], halo_px: int
) -> None:
    image = noise(height, width)
    plan = Plan(height=height, width=width, core_px=16, halo_px=halo_px, network=network, first_index=first_index)

    strips = list(predict_strips(reader(image), identity(plan), plan, fill=FILL, finish=unchanged))

    assert torch.equal(joined(strips), torch.from_numpy(image).float())


@many
@given(plan=small_plans)
def test_tiling_a_pointwise_model_changes_nothing(plan: Plan) -> None:
    image = noise(plan.height, plan.width)
    mixing = torch.tensor([[1.0, -2.0], [-1.0, 3.0], [0.5, 0.25]])

    def predict(tiles: Tensor) -> Tensor:
        return torch.einsum("kc,nchw->nkhw", mixing, identity(plan)(tiles.float()))

    strips = list(predict_strips(reader(image), predict, plan, fill=FILL))

    expected = torch.einsum("kc,chw->khw", mixing, torch.from_numpy(image).float()).argmax(0)
    assert torch.equal(joined(strips), expected.to(torch.uint8))


@many
@given(plan=small_plans, padded=st.booleans())
def test_tiling_a_3_x_3_convolution_changes_nothing(plan: Plan, padded: bool) -> None:
    network = Network(stride_px=plan.network.stride_px, margin_px=0 if padded else 1, least_px=3)
    plan = Plan(
        height=plan.height,
        width=plan.width,
        core_px=plan.core_px,
        halo_px=1 + plan.halo_px % 5,
        network=network,
        first_index=plan.first_index,
        phases=plan.phases,
    )
    image = noise(plan.height, plan.width)
    weight = torch.arange(-9.0, 9.0).view(1, 2, 3, 3)  # whole numbers: sums are exact

    def predict(tiles: Tensor) -> Tensor:
        return conv2d(tiles.float(), weight, padding=int(padded))

    tiled = joined(list(predict_strips(reader(image), predict, plan, fill=FILL, finish=unchanged)))
    whole = predict_whole(reader(image), predict, plan, fill=FILL, finish=unchanged)

    assert tiled.shape == (1, plan.height, plan.width)
    assert torch.equal(tiled, whole.output)


def test_of_several_phases_no_logits_are_kept_but_their_sum() -> None:
    plan = Plan(height=40, width=60, core_px=16, network=Network(stride_px=4, least_px=4), phases=4)
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def predict(tiles: Tensor) -> Tensor:
        alive.append(sum(logits() is not None for logits in made))
        logits = tiles.float()
        made.append(weakref.ref(logits))
        return logits

    list(predict_strips(reader(noise(40, 60)), predict, plan, fill=FILL))

    assert len(alive) == plan.num_tiles * 16
    assert max(alive) <= 1  # those of the phase before, which have just been added


def test_without_a_halo_the_seams_of_a_convolution_show() -> None:
    image, plan = noise(60, 90), Plan(height=60, width=90, core_px=16)

    def predict(tiles: Tensor) -> Tensor:
        return conv2d(tiles.float(), torch.ones(1, 2, 3, 3), padding=1)

    tiled = joined(list(predict_strips(reader(image), predict, plan, fill=FILL, finish=unchanged)))
    whole = predict_whole(reader(image), predict, plan, fill=FILL, finish=unchanged)

    seams = (tiled != whole.output)[0].all(dim=0).nonzero().flatten()
    # The last read moved inward, so the core that begins at 80 has neighbours on its left.
    assert seams.tolist() == [15, 16, 31, 32, 47, 48, 63, 64, 79]


@given(plan=small_plans)
def test_strips_come_from_the_top_with_the_validity_of_their_rows(plan: Plan) -> None:
    counts = holes(plan, share=0.6)

    strips = list(
        predict_strips(reader(noise(plan.height, plan.width), value_valid=counts), identity(plan), plan, fill=FILL)
    )

    rows = list(plan.axes[0].spans())
    assert [(strip.row, strip.row + strip.rows) for strip in strips] == [
        (span.core_start, span.core_stop) for span in rows
    ]
    np.testing.assert_array_equal(np.concatenate([strip.valid for strip in strips]), counts.any(axis=0))


@given(plan=small_plans, row=st.integers(0), col=st.integers(0))
def test_one_tile_alone_is_its_part_of_the_raster(plan: Plan, row: int, col: int) -> None:
    rows, cols = (list(axis.spans()) for axis in plan.axes)
    one, other = rows[row % len(rows)], cols[col % len(cols)]
    image = noise(plan.height, plan.width)

    tile = predict_tile(reader(image), identity(plan), plan, one, other, fill=FILL, finish=unchanged)

    part = image[:, one.core_start : one.core_stop, other.core_start : other.core_stop]
    assert torch.equal(tile, torch.from_numpy(part).float())


def test_a_label_is_the_first_class_of_the_highest_logit() -> None:
    logits = torch.randint(0, 4, (2, 5, 30, 40), generator=torch.Generator().manual_seed(0)).float()

    labels = labels_of(logits)

    assert labels.dtype == torch.uint8
    np.testing.assert_array_equal(labels.numpy(), logits.numpy().argmax(axis=1))


def test_the_logits_of_the_network_are_not_written_to() -> None:
    plan, kept = Plan(height=20, width=30, core_px=16), []

    def predict(tiles: Tensor) -> Tensor:
        kept.append((tiles, tiles.clone()))
        return tiles

    list(predict_strips(reader(noise(20, 30)), predict, plan, fill=FILL))

    assert all(torch.equal(tiles, before) for tiles, before in kept)
