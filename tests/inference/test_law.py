"""The law: where there is a halo, tiles give what the whole image gives, bit for bit with geonorm's U-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.windows
import torch
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.inference.halo import Halo
from geonorm.inference.job import Job, as_trained, prepare
from geonorm.models import Rescale, TileGeometry, UNet, tile_geometry
from geonorm.models.predictor import predictor
from geonorm.models.unet import Padding
from geonorm.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, NormFactory, SwitchableNorm
from geonorm.raster.read import open_raster
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.engine import Strip, predict_strips, predict_whole
from geonorm.tiling.plan import Plan
from tests.inference.rasters import draw, noise
from tests.models.networks import EXACT_BODIES, ROUNDED_BODIES, Network, local, torch_threads, unet
from tests.tiling.grids import reader

CPU = torch.device("cpu")
NETWORKS: dict[str, Callable[[], UNet]] = {
    "BN": partial(unet, depth=2),
    "BN, valid": partial(unet, depth=2, padding="valid"),
    "BN, deep": partial(unet, depth=3, norm_at="block"),
    "5 px": partial(unet, local(window_px=5)),
    "5 px, valid": partial(unet, local(window_px=5), padding="valid"),
    "9 px, ends": partial(unet, local(window_px=9), depth=2, norm_at="ends"),
    "4 x 3 cells, clip": partial(unet, local(window_cells=(4, 3), border="clip"), norm_at="block"),
    "5 px, one band": partial(unet, local(window_px=5), bands=1, norm_at="ends"),
    "BN, blur": partial(unet, depth=2, downsample="maxblur"),
    "BN, blur, valid": partial(unet, depth=2, downsample="maxblur", padding="valid"),
    "5 px, blur": partial(unet, local(window_px=5), downsample="maxblur"),
}

BODIES = EXACT_BODIES | ROUNDED_BODIES

every_network = pytest.mark.parametrize("name", NETWORKS)


def keep(logits: Tensor) -> Tensor:
    """Keep the logits, where labels would hide small differences."""
    return logits


@cache
def made(name: str) -> tuple[UNet, TileGeometry]:
    """Return a network and its geometry."""
    network = NETWORKS[name]()
    return network, tile_geometry(network)


def exact_plan(geometry: TileGeometry, image: NDArray[Any], **settings: Any) -> Plan:
    """Return a plan with the exact halo."""
    assert geometry.core_halo_px is not None
    settings = {"halo_px": geometry.core_halo_px, **settings}
    return Plan(height=image.shape[1], width=image.shape[2], network=network_of(geometry), **settings)


def tiled(network: nn.Module, image: NDArray[Any], plan: Plan, *, batch_size: int = 1) -> Tensor:
    """Return the logits of the tiles, put together."""
    strips = predict_strips(*ready(network, image), plan, fill=mean_of(network), finish=keep, batch_size=batch_size)
    return together(strips)


def whole(network: nn.Module, image: NDArray[Any], plan: Plan) -> Tensor:
    """Return the logits of the whole-image pass."""
    return predict_whole(*ready(network, image), plan, fill=mean_of(network), finish=keep).output


def ready(network: nn.Module, image: NDArray[Any]) -> tuple[Any, Any]:
    """Return what reads the image, where 0 is no data, and what labels tiles."""
    return reader(image, value_valid=image != 0), predictor(network, CPU)


def mean_of(network: nn.Module) -> Tensor:
    """Return what pixels without data hold."""
    return next(module.mean for module in network.modules() if isinstance(module, Rescale))


def together(strips: Iterator[Strip]) -> Tensor:
    """Return strips as one raster."""
    return torch.cat([strip.output for strip in strips], dim=-2)


@contextmanager
def job(network: nn.Module, source: Path, *, halo: Halo = "exact", **settings: Any) -> Iterator[Job]:
    """Open a raster and make its plan."""
    model = as_trained(network)
    with open_raster(source, bands=range(1, len(model.spec.bands) + 1)) as opened:
        yield prepare(model, opened, halo=halo, **settings)


# Bit for bit


@every_network
@settings(max_examples=5)
@given(
    cells=st.integers(4, 20),
    first_index=st.tuples(st.integers(-100, 100), st.integers(-100, 100)),
    grid_offset_px=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    height=st.integers(30, 60),
    width=st.integers(30, 90),
    batch_size=st.integers(1, 3),
    with_holes=st.booleans(),
)
@example(  # a first core of one pixel
    cells=4,
    first_index=(-1, -1),
    grid_offset_px=(0, 0),
    height=60,
    width=90,
    batch_size=1,
    with_holes=False,
)
@example(  # a core without data
    cells=4, first_index=(0, 0), grid_offset_px=(2, 0), height=30, width=30, batch_size=1, with_holes=True
)
@example(cells=2, first_index=(0, 0), grid_offset_px=(0, 0), height=1, width=90, batch_size=3, with_holes=False)
def test_tiles_give_the_bits_of_the_whole_image(
    name: str,
    cells: int,
    first_index: tuple[int, int],
    grid_offset_px: tuple[int, int],
    height: int,
    width: int,
    batch_size: int,
    with_holes: bool,
) -> None:
    network, geometry = made(name)
    image = noise(len(mean_of(network)), height, width)
    if with_holes:
        image[:, 10:20, 15:40] = 0
    plan = exact_plan(
        geometry,
        image,
        core_px=cells * geometry.stride_px,
        first_index=first_index,
        grid_offset_px=grid_offset_px,
    )

    found = tiled(network, image, plan, batch_size=batch_size)

    valid = torch.from_numpy((image != 0).any(axis=0))  # a core that lies in the hole does not go through the network
    assert torch.equal(found[:, valid], whole(network, image, plan)[:, valid])


@pytest.mark.parametrize("name", ["BN", "BN, blur", "5 px", "5 px, valid"])
@pytest.mark.parametrize("core_px", [20, 32, 48])
def test_grids_of_one_phase_give_the_same_bits(name: str, core_px: int) -> None:
    network, geometry = made(name)
    image = noise(3)

    expected = whole(network, image, exact_plan(geometry, image))

    for rows, cols in ((0, 0), (4, 8), (-4, 32), (-100, 8)):
        plan = exact_plan(geometry, image, core_px=core_px, grid_offset_px=(rows, cols))
        assert torch.equal(tiled(network, image, plan), expected)


@pytest.mark.parametrize("name", ["BN", "BN, blur", "5 px, valid"])
def test_two_threads_give_the_bits_of_one(name: str) -> None:
    network, geometry = made(name)
    image = noise(3, 30, 45)
    plan = exact_plan(geometry, image, core_px=24)

    with torch_threads(1):
        expected = whole(network, image, plan)
    with torch_threads(2):
        assert torch.equal(tiled(network, image, plan), expected)
        assert torch.equal(whole(network, image, plan), expected)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_windows_of_91_px_find_their_neighbours_at_the_edges(padding: Padding) -> None:
    network = unet(local(window_px=91), width=2, norm_at="ends", padding=padding)
    geometry, image = tile_geometry(network), noise(3, 300, 330)
    plan = exact_plan(geometry, image, core_px=48, first_index=(47, 95))  # first cores of one pixel

    assert plan.read_px < 300
    assert torch.equal(tiled(network, image, plan), whole(network, image, plan))


@pytest.mark.parametrize("name", ["BN", "BN, deep", "BN, blur", "5 px", "5 px, valid"])
def test_a_halo_that_is_one_stride_smaller_is_not_enough(name: str) -> None:
    network, geometry = made(name)
    image, exact = noise(3, 90, 120), exact_plan(geometry, noise(3, 90, 120)).axes[0].aligned_halo_px
    plan = exact_plan(geometry, image, core_px=16, halo_px=exact - geometry.stride_px)

    assert not torch.equal(tiled(network, image, plan), whole(network, image, plan))


# Files


@pytest.mark.parametrize("name", ["BN", "BN, valid", "5 px", "5 px, valid"])
@pytest.mark.parametrize("core_px", [16, 64])
def test_a_file_is_labelled_by_tiles_as_by_the_whole(tmp_path: Path, name: str, core_px: int) -> None:
    source = draw(tmp_path / "source.tif", noise(3), first_index=(-7, 2**20 + 5))

    with job(made(name)[0], source, core_px=core_px, grid_offset_px=(1, -2)) as ours:
        assert ours.plan.first_index == (-7, 2**20 + 5)
        assert torch.equal(together(ours.strips(finish=keep)), ours.whole(finish=keep).output)
        assert torch.equal(together(ours.strips(batch_size=2)), ours.whole().output)


@pytest.mark.parametrize("name", ["BN", "BN, valid", "5 px", "5 px, valid"])
@pytest.mark.parametrize(("row", "col"), [(3, 5), (1, 0), (8, 2)])
def test_a_crop_gets_the_labels_of_the_raster(tmp_path: Path, name: str, row: int, col: int) -> None:
    network, geometry = made(name)
    image, first_index = noise(3, 96, 120), (-1001, 333)
    raster = draw(tmp_path / "raster.tif", image, first_index=first_index)
    crop = draw(tmp_path / "crop.tif", image[:, row:, col:], first_index=(first_index[0] + row, first_index[1] + col))

    with job(network, raster, core_px=24) as ours, job(network, crop, core_px=24) as theirs:
        found, expected = together(theirs.strips(finish=keep)), together(ours.strips(finish=keep))

    halo_px = geometry.halo_px
    assert halo_px
    inside = (..., slice(halo_px, -halo_px), slice(halo_px, -halo_px))
    assert found[inside].numel() > 0
    assert torch.equal(found[inside], expected[..., row:, col:][inside])


# Other networks


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_other_bounded_networks_agree_within_a_hundred_thousandth(body: Callable[[Tensor], Tensor]) -> None:
    network, image = Network(body), noise(3)
    geometry = tile_geometry(network)
    for first_index in ((0, 0), (-1, 1), (5, 3)):
        plan = exact_plan(geometry, image, core_px=12, first_index=first_index)

        found, expected = tiled(network, image, plan), whole(network, image, plan)

        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("norm", [GroupNorm, InstanceNorm, LayerNorm, SwitchableNorm])
def test_statistics_over_the_map_break_the_law_and_are_named(tmp_path: Path, norm: NormFactory) -> None:
    network, source = unet(norm), draw(tmp_path / "source.tif", noise(3))

    with (
        pytest.raises(InvalidConfigError, match=r"encoder\.0\.1 \(.*Norm\).* see the whole input"),
        job(network, source),
    ):
        pass
    with (
        pytest.warns(GeonormWarning, match=r"encoder\.0\.1 \(.*Norm\)"),
        job(network, source, halo=16, core_px=16) as ours,
    ):
        assert not torch.equal(together(ours.strips(finish=keep)), ours.whole(finish=keep).output)


# Real images


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("norm", [BatchNorm, local(window_px=15)], ids=["BN", "15 px"])
def test_a_real_image_gets_the_same_bits_by_any_tiles(
    real_data: Path, tmp_path: Path, norm: NormFactory, padding: Padding
) -> None:
    source = real_window(real_data, tmp_path / "window.tif", row=1003, col=2501)
    network = unet(norm, depth=3, width=8, padding=padding)

    with torch_threads(1):  # two are slow on a busy machine, and tried above
        with job(network, source, core_px=512) as ours:
            expected = ours.whole(finish=keep).output
        for core_px, offset in ((512, (0, 0)), (256, (-8, 1024)), (128, (64, -72))):
            with job(network, source, core_px=core_px, grid_offset_px=offset) as ours:
                assert torch.equal(together(ours.strips(finish=keep)), expected)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("norm", [BatchNorm, local(window_px=15)], ids=["BN", "15 px"])
def test_a_crop_of_a_real_image_gets_the_same_bits(real_data: Path, tmp_path: Path, norm: NormFactory) -> None:
    raster = real_window(real_data, tmp_path / "window.tif", row=1003, col=2501)
    crop = real_window(real_data, tmp_path / "crop.tif", row=1003 + 3, col=2501 + 5)
    network = unet(norm, depth=3, width=8)

    with torch_threads(1), job(network, raster) as ours, job(network, crop) as theirs:
        found, expected = together(theirs.strips(finish=keep)), together(ours.strips(finish=keep))

    halo_px = ours.geometry.halo_px
    assert halo_px
    inside = (..., slice(halo_px, -halo_px), slice(halo_px, -halo_px))
    assert torch.equal(found[..., :-3, :-5][inside], expected[..., 3:, 5:][inside])
    assert ours.plan.first_index != theirs.plan.first_index


def real_window(real_data: Path, target: Path, *, row: int, col: int) -> Path:
    """Copy 768 x 1024 pixels of a large raster, with their place in the world."""
    with rasterio.open(real_data / "large-geotiff" / "zanzibar-z21.tif") as dataset:
        window = rasterio.windows.Window(col, row, 1024, 768)
        values = dataset.read((1, 2, 3), window=window)
        where = {"crs": dataset.crs, "transform": dataset.transform @ Affine.translation(col, row)}
    assert np.std(values) > 10
    return draw(target, values, **where)
