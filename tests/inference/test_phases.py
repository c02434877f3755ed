"""The mean over phases of the pooling: tiles as the whole image, and a map that no move of the grid changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.inference import Options, predict_raster, predict_rasters
from geonorm.inference.halo import Halo
from geonorm.inference.job import Job, as_trained, prepare
from geonorm.inference.views import Views
from geonorm.models import TileGeometry, UNet, tile_geometry
from geonorm.models.predictor import predictor
from geonorm.norms import GroupNorm
from geonorm.raster.read import open_raster
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.engine import predict_strips, predict_whole
from geonorm.tiling.plan import Plan
from tests.inference.rasters import draw, labels_in, noise
from tests.models.networks import Network, local, unet
from tests.tiling.grids import reader

NETWORKS: dict[str, Callable[[], UNet]] = {
    "BN": partial(unet, depth=2),
    "BN, valid": partial(unet, depth=2, padding="valid"),
    "BN, blur": partial(unet, depth=2, downsample="maxblur"),
    "5 px": partial(unet, local(window_px=5)),
    "5 px, valid": partial(unet, local(window_px=5), padding="valid"),
}

every_network = pytest.mark.parametrize("name", NETWORKS)


def keep(logits: Tensor) -> Tensor:
    """Keep the logits, where labels would hide small differences."""
    return logits


@cache
def made(name: str) -> tuple[UNet, TileGeometry]:
    """Return a network and its geometry."""
    network = NETWORKS[name]()
    return network, tile_geometry(network)


def tiled_and_whole(network: UNet, image: NDArray[Any], plan: Plan, *, batch_size: int = 1) -> tuple[Tensor, Tensor]:
    """Return the logits of the tiles, put together, and those of the whole-image passes."""
    ready = reader(image), predictor(network, torch.device("cpu"))
    fill = network.rescale.mean
    strips = predict_strips(*ready, plan, fill=fill, finish=keep, batch_size=batch_size)
    tiled = torch.cat([strip.output for strip in strips], dim=-2)
    return tiled, predict_whole(*ready, plan, fill=fill, finish=keep).output


@contextmanager
def job(network: nn.Module, source: Path, tta: str, *, halo: Halo = "exact", **settings: Any) -> Iterator[Job]:
    """Open a raster and make its plan, with cores of 16 px unless told otherwise."""
    model = as_trained(network)
    with open_raster(source, bands=range(1, len(model.spec.bands) + 1)) as opened:
        yield prepare(model, opened, halo=halo, tta=tta, **{"core_px": 16, **settings})


def logits_of(one: Job) -> Tensor:
    """Return the logits of a job, tile by tile."""
    return torch.cat([strip.output for strip in one.strips(finish=keep)], dim=-2)


# The law


@every_network
@settings(max_examples=4)
@given(
    phases=st.sampled_from([1, 2, 4]),
    cells=st.integers(4, 9),
    first_index=st.tuples(st.integers(-100, 100), st.integers(-100, 100)),
    grid_offset_px=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    height=st.integers(20, 40),
    width=st.integers(20, 60),
    batch_size=st.integers(1, 3),
)
@example(phases=4, cells=4, first_index=(-1, 3), grid_offset_px=(1, -3), height=40, width=60, batch_size=2)
@example(phases=2, cells=4, first_index=(0, 0), grid_offset_px=(3, 1), height=1, width=1, batch_size=1)
@example(phases=4, cells=2, first_index=(2, 5), grid_offset_px=(0, 0), height=1, width=70, batch_size=3)
def test_tiles_give_the_bits_of_the_whole_image_at_any_phases(
    name: str,
    phases: int,
    cells: int,
    first_index: tuple[int, int],
    grid_offset_px: tuple[int, int],
    height: int,
    width: int,
    batch_size: int,
) -> None:
    network, geometry = made(name)
    plan = Plan(
        height=height,
        width=width,
        core_px=cells * geometry.stride_px,
        halo_px=geometry.core_halo_px or 0,
        network=network_of(geometry),
        first_index=first_index,
        grid_offset_px=grid_offset_px,
        phases=min(phases, geometry.stride_px),
    )

    tiled, whole = tiled_and_whole(network, noise(3, height, width), plan, batch_size=batch_size)

    assert torch.equal(tiled, whole)


def slowly(network: UNet, geometry: TileGeometry, image: NDArray[Any], plan: Plan) -> NDArray[np.float64]:
    """Return the mean of passes over the whole image, one for each phase, in float64 and in plain torch."""
    stride, margin = geometry.stride_px, geometry.margin_px
    exact = copy.deepcopy(network).double()
    total = np.zeros((2, plan.height, plan.width))
    moves = (0, 3) if (stride, plan.phases) == (4, 2) else range(plan.phases)
    for down in moves:
        for right in moves:
            pads = []
            for length, index, offset, move in zip(
                image.shape[1:], plan.first_index, plan.grid_offset_px, (down, right), strict=True
            ):
                before = (index - offset - move) % stride + margin
                pads.append((before, geometry.read_px(before + length + margin) - length - before))
            extended = torch.from_numpy(np.pad(image, ((0, 0), *pads), mode="reflect")).double()
            with torch.no_grad():
                logits = exact(extended[None])[0].numpy()
            top, left = (before - margin for before, _ in pads)
            total += logits[:, top : top + plan.height, left : left + plan.width]
    return total / len(moves) ** 2


@every_network
@pytest.mark.parametrize("share", [1, 2], ids=["all phases", "a part of them"])
def test_the_map_is_the_mean_of_passes_over_the_whole_image_at_every_phase(name: str, share: int) -> None:
    network, geometry = made(name)
    image = noise(3, 20, 30)
    plan = Plan(
        height=20,
        width=30,
        core_px=8,
        halo_px=geometry.core_halo_px or 0,
        network=network_of(geometry),
        first_index=(-7, 18),
        grid_offset_px=(1, 0),
        phases=geometry.stride_px // share,
    )

    tiled, _ = tiled_and_whole(network, image, plan)

    np.testing.assert_allclose(tiled.numpy(), slowly(network, geometry, image, plan), rtol=1e-4, atol=1e-5)


# What it buys


@every_network
def test_with_all_phases_no_move_of_the_grid_changes_a_bit(tmp_path: Path, name: str) -> None:
    source = draw(tmp_path / "source.tif", noise(3, 40, 50), first_index=(-7, 2**20 + 5))

    with job(made(name)[0], source, "phases") as one, job(made(name)[0], source, "none") as plain:
        expected, of_one_phase = logits_of(one), logits_of(plain)
        for shift_px in (3, 13):
            assert torch.equal(logits_of(one.moved(shift_px, one.reader)), expected)
        assert not torch.equal(logits_of(plain.moved(1, plain.reader)), of_one_phase)


@every_network
def test_with_all_phases_a_crop_gets_the_bits_of_the_raster_wherever_both_grids_lie(tmp_path: Path, name: str) -> None:
    network, geometry = made(name)
    image, (row, col) = noise(3, 80, 90), (3, 5)
    raster = draw(tmp_path / "raster.tif", image, first_index=(0, 0))
    crop = draw(tmp_path / "crop.tif", image[:, row:, col:], first_index=(0, 0))  # it does not know where it comes from

    with job(network, raster, "phases", core_px=32) as ours, job(network, crop, "phases", core_px=32) as theirs:
        found, expected = logits_of(theirs), logits_of(ours)

    halo_px = geometry.halo_px
    assert halo_px
    inside = (..., slice(halo_px, -halo_px), slice(halo_px, -halo_px))
    assert found[inside].numel() > 0
    # Its world begins elsewhere, so the same numbers are added up in another order.
    torch.testing.assert_close(found[inside], expected[..., row:, col:][inside], rtol=1e-5, atol=1e-5)


@every_network
def test_with_all_phases_a_crop_in_its_place_gets_the_bits_of_the_raster(tmp_path: Path, name: str) -> None:
    network, geometry = made(name)
    image, (row, col) = noise(3, 80, 90), (3, 5)
    raster = draw(tmp_path / "raster.tif", image, first_index=(-1001, 333))
    crop = draw(tmp_path / "crop.tif", image[:, row:, col:], first_index=(-1001 + row, 333 + col))

    with (
        job(network, raster, "phases", core_px=32) as ours,
        job(network, crop, "phases", core_px=32, grid_offset_px=(7, -1)) as theirs,
    ):
        found, expected = logits_of(theirs), logits_of(ours)

    halo_px = geometry.halo_px
    assert halo_px
    inside = (..., slice(halo_px, -halo_px), slice(halo_px, -halo_px))
    assert found[inside].numel() > 0
    assert torch.equal(found[inside], expected[..., row:, col:][inside])


def test_with_some_phases_the_logits_change_less_and_not_at_all_by_moves_of_the_stride(tmp_path: Path) -> None:
    source = draw(tmp_path / "source.tif", noise(3, 40, 50))

    def change(one: Job, shift_px: int) -> float:
        return float((logits_of(one.moved(shift_px, one.reader)) - logits_of(one)).square().mean())

    with job(made("BN")[0], source, "phases:4") as some, job(made("BN")[0], source, "none") as plain:
        assert change(some, 4) == change(some, -8) == 0
        for shift_px in (1, 2, 3):
            assert 0 < change(some, shift_px) < 0.6 * change(plain, shift_px)


# With other settings


def test_mirrored_and_turned_copies_are_averaged_at_every_phase(tmp_path: Path) -> None:
    network = made("5 px")[0]
    source = draw(tmp_path / "source.tif", noise(3, 30, 40))

    with job(network, source, "d4+phases") as both, job(network, source, "phases") as one:
        found = logits_of(both)
        assert torch.equal(logits_of(both.moved(3, both.reader)), found)
        assert not torch.allclose(found, logits_of(one))
        assert f"{8 * one.plan.compute:.2f} times the compute" in both.in_words()


def test_blended_tiles_agree_within_rounding(tmp_path: Path) -> None:
    source = draw(tmp_path / "source.tif", noise(3, 40, 50))

    with job(made("BN")[0], source, "phases:4", blend="hann") as blended:
        found = logits_of(blended)
        torch.testing.assert_close(found, blended.whole(finish=keep).output, rtol=1e-5, atol=1e-5)


def test_neighbours_that_were_cut_at_odd_places_get_the_labels_of_the_uncut_raster(tmp_path: Path) -> None:
    network, image = made("5 px")[0], noise(3, 50, 61)
    uncut = draw(tmp_path / "uncut.tif", image, first_index=(3, -9))
    (tmp_path / "parts").mkdir()
    parts = [
        draw(tmp_path / "parts" / f"{name}.tif", image[:, rows], first_index=(3 + (rows.start or 0), -9))
        for name, rows in (("a", slice(None, 17)), ("b", slice(17, None)))
    ]
    settings: dict[str, Any] = {"tta": "phases", "core_px": 16, "halo": "exact"}

    predict_raster(network, uncut, tmp_path / "uncut-map.tif", **settings)
    predict_rasters(network, parts, tmp_path / "maps", Options(**settings))

    found = np.concatenate([labels_in(tmp_path / "maps" / f"{name}.tif") for name in "ab"])
    np.testing.assert_array_equal(found, labels_in(tmp_path / "uncut-map.tif"))


def test_a_network_that_sees_everything_averages_and_its_tiles_still_differ(tmp_path: Path) -> None:
    source = draw(tmp_path / "source.tif", noise(3, 40, 50))

    with (
        pytest.warns(GeonormWarning, match="depend on the tiles"),
        job(unet(GroupNorm), source, "phases", halo=8) as one,
    ):
        found, whole, tags = logits_of(one), one.whole(finish=keep).output, one.provenance()

    assert tags["geonorm_tile_independent"] == "no"
    assert not torch.equal(found, whole)


@pytest.mark.parametrize("core_px", [16, 48])
def test_which_halo_is_read_does_not_depend_on_the_number_of_phases(tmp_path: Path, core_px: int) -> None:
    source = draw(tmp_path / "source.tif", noise(3, 40, 50))
    halos = []

    for tta in ("none", "phases"):
        with job(made("5 px")[0], source, tta, halo="auto", core_px=core_px) as one:
            halos.append((one.halo.halo_px, one.halo.kind))
            assert logits_of(one).shape == (2, 40, 50)

    assert halos[0] == halos[1]


def test_a_network_that_does_not_pool_has_one_phase(tmp_path: Path) -> None:
    network = Network(nn.Conv2d(4, 2, 3, padding=1))
    source = draw(tmp_path / "source.tif", noise(3, 40, 50))

    with job(network, source, "phases") as one, job(network, source, "none") as plain:
        assert one.plan == plain.plan
        assert torch.equal(logits_of(one), logits_of(plain))
    with pytest.raises(InvalidConfigError, match="stride of 1 px, got 2 x 2 = 4"), job(network, source, "phases:4"):
        pass


# What is told


@pytest.mark.parametrize(
    ("tta", "expected"),
    [
        ("none", Views()),
        ("d4", Views("d4")),
        ("phases", Views(phases=None)),
        ("phases:1", Views()),
        ("phases:16", Views(phases=4)),
        ("d4+phases", Views("d4", None)),
        ("d4+phases:4", Views("d4", 2)),
    ],
)
def test_words_for_what_a_network_is_shown(tta: str, expected: Views) -> None:
    assert Views.parse(tta) == expected


@pytest.mark.parametrize(
    "tta",
    ["", "d5", "phase", "phases:", "phases:0", "phases:8", "phases:-4", "phases:04", "phases+d4", "d4+", "d4phases"],
)
def test_words_that_mean_nothing_are_one_line(tta: str) -> None:
    with pytest.raises(InvalidConfigError, match=r"^tta must be none, d4, phases, phases:N with N a square") as caught:
        Views.parse(tta)

    assert str(caught.value).endswith(f"got {tta!r}.")
    assert "\n" not in str(caught.value)


def test_the_plan_and_the_tags_name_the_phases(tmp_path: Path) -> None:
    source = draw(tmp_path / "source.tif", noise(3))

    with job(made("BN")[0], source, "phases:4", core_px=32) as one:
        words, tags = one.in_words(), one.provenance()

    # Cores of 32 px, a halo of 22 px in whole cells of 4 px; at the second phase one cell more.
    assert "reading 84 px, " in words
    assert "phases   the mean over 4 of the pooling's 16\n" in words
    assert "labels   do not depend on the tiles" in words
    assert "grid     anchored to the CRS at multiples of 4 px" in words
    assert tags["geonorm_tta"] == "phases:4"
    assert tags["geonorm_tile_independent"] == "yes"
