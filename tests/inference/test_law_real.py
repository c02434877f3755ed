"""The law on real rasters: every core and every origin of the grid gives the labels of the whole-image pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.windows
import torch
from affine import Affine
from numpy.typing import NDArray

from geonorm.inference.job import as_trained, prepare
from geonorm.models import UNet
from geonorm.norms import BatchNorm, NormFactory
from geonorm.raster.mosaic import Mosaic
from geonorm.raster.read import RasterSource, open_raster
from geonorm.tasks.checkpoint import TrainedModel
from tests.inference.rasters import draw
from tests.models.networks import local, torch_threads, unet

pytestmark = [pytest.mark.slow, pytest.mark.real]

BANDS = {
    "zanzibar-z21.tif": 3,
    "drone-undeclared-nodata-2048x2048.tif": 3,
    "rotated-sar-2000x2000.tiff": 1,
}
LARGEST_PX = 2048
"""Side of the window of a larger raster, too slow for a test as a whole; benchmarks/law_rasters.py takes all of it."""
CORNER = (1003, 2501)
"""First row and column of that window."""
NORMS: dict[str, NormFactory] = {"BN": BatchNorm, "LCN": local(window_px=9)}
CORES_PX = (256, 512, 1024)
ORIGINS = ((0, 0), (4, 8), (-68, 132), (252, -516))  # multiples of the stride

every_raster = pytest.mark.parametrize("name", BANDS)
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


@every_raster
@every_norm
def test_every_core_and_origin_gives_the_labels_of_the_whole_image(
    real_data: Path, tmp_path: Path, name: str, norm: NormFactory
) -> None:
    with torch_threads(1), source_of(real_data, tmp_path, name) as source:
        model = network_for(source, norm)
        expected = whole_labels(model, source)

        assert (np.bincount(expected.reshape(-1), minlength=2) > 0.05 * expected.size).all(), "a map of one class"
        for core_px, origin in product(CORES_PX, ORIGINS):
            assert flips(model, source, expected, core_px, origin) == 0, f"core {core_px}, origin {origin}"


@every_norm
def test_a_raster_in_3_x_3_files_gets_the_labels_of_the_uncut_one(
    real_data: Path, tmp_path: Path, norm: NormFactory
) -> None:
    with torch_threads(1), source_of(real_data, tmp_path, "rotated-sar-2000x2000.tiff") as source:
        model = network_for(source, norm)
        expected = whole_labels(model, source)
        mosaic = Mosaic([*cut(Path(source.path), tmp_path / "parts", source.bands)])

        assert mosaic.grid == source.grid
        for core_px, origin in product(CORES_PX, ORIGINS[::2]):
            assert flips(model, mosaic, expected, core_px, origin) == 0, f"core {core_px}, origin {origin}"


def network_for(source: RasterSource, norm: NormFactory) -> TrainedModel:
    """Return a narrow network that gives both classes a part of the raster."""
    network: UNet = unet(norm, bands=len(source.bands), depth=2, width=4)
    model = as_trained(network)
    with torch.no_grad():
        assert network.head.bias is not None
        job = prepare(model, source, halo="exact")
        sums, count = torch.zeros(2, dtype=torch.float64), 0
        for strip in job.strips(finish=lambda logits: logits):
            sums += strip.output.sum(dim=(1, 2), dtype=torch.float64)
            count += strip.valid.size
        network.head.bias -= (sums / count).to(torch.float32)
    return model


def whole_labels(model: TrainedModel, source: RasterSource) -> NDArray[np.uint8]:
    """Return the labels of the whole-image pass."""
    return prepare(model, source, halo="exact").whole().output.numpy()


def flips(
    model: TrainedModel, source: RasterSource, expected: NDArray[np.uint8], core_px: int, origin: tuple[int, int]
) -> int:
    """Return how many labels of the tiled pass are not those expected; it is compared strip by strip."""
    job = prepare(model, source, core_px=core_px, halo="exact", grid_offset_px=origin)
    assert all(px % job.plan.network.stride_px == 0 for px in origin)
    assert job.plan.read_px < max(expected.shape), "the tiles must be smaller than the raster"
    row, differ = 0, 0
    for strip in job.strips():
        assert strip.row == row
        differ += int((strip.output.numpy() != expected[row : row + strip.rows]).sum())
        row += strip.rows
    assert row == len(expected)
    return differ


@contextmanager
def source_of(real_data: Path, folder: Path, name: str) -> Iterator[RasterSource]:
    """Open a real raster, or a window of it in a file of its own if it is large."""
    path = real_data / "large-geotiff" / name
    with rasterio.open(path) as dataset:
        if max(dataset.shape) > LARGEST_PX:
            row, col = CORNER
            values = dataset.read(window=rasterio.windows.Window(col, row, LARGEST_PX, LARGEST_PX))
            where = {"crs": dataset.crs, "transform": dataset.transform @ Affine.translation(col, row)}
            path = draw(folder / name, values, **where)
    with open_raster(path, bands=range(1, BANDS[name] + 1)) as source:
        yield source


def cut(path: Path, folder: Path, bands: tuple[int, ...]) -> Iterator[RasterSource]:
    """Yield 3 x 3 closed files that hold the pixels of a raster."""
    folder.mkdir()
    with rasterio.open(path) as dataset:
        rows, cols = ([side * part // 3 for part in range(4)] for side in dataset.shape)
        for (top, bottom), (left, right) in product(pairwise(rows), pairwise(cols)):
            values = dataset.read(window=rasterio.windows.Window(left, top, right - left, bottom - top))
            where = {"crs": dataset.crs, "transform": dataset.transform @ Affine.translation(left, top)}
            with open_raster(draw(folder / f"{top}_{left}.tif", values, **where), bands=bands) as part:
                yield part
