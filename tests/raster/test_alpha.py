"""Near infrared that is tagged as alpha is told from masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from geonorm.errors import GeonormWarning
from geonorm.inference import predict_raster
from geonorm.raster.alpha import image_in_alpha
from geonorm.raster.read import open_raster
from geonorm.raster.window import Window
from tests.inference.rasters import draw, noise
from tests.models.networks import unet

WHOLE = [Window(0, 0, 60, 90)]


def tagged(path: Path, alpha: NDArray[np.uint8]) -> Path:
    """Write three bands and a fourth that is tagged as alpha."""
    draw(path, np.concatenate([noise(3), alpha[None]]))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    return path


def near_infrared() -> NDArray[np.uint8]:
    """Return an image with some water."""
    image = noise(1)[0]
    image[:5, :7] = 0
    return image


def holes() -> NDArray[np.uint8]:
    """Return a mask of 0 and 255 with a hole."""
    mask = np.full((60, 90), 255, np.uint8)
    mask[20:40, 10:50] = 0
    return mask


def soft_holes() -> NDArray[np.uint8]:
    """Return a mask with soft edges of 8 px."""
    away = np.abs(np.arange(90) - 45) - 20
    return np.broadcast_to((away * 32).clip(0, 255).astype(np.uint8), (60, 90)).copy()


@pytest.mark.parametrize(
    ("band", "expected"),
    [
        (near_infrared(), 4),
        (holes(), None),
        (soft_holes(), None),
        (np.full((60, 90), 128, np.uint8), None),
        (np.zeros((60, 90), np.uint8), None),
    ],
    ids=["near infrared", "holes", "soft holes", "half transparent", "nothing"],
)
def test_an_image_is_told_from_a_mask(tmp_path: Path, band: NDArray[np.uint8], expected: int | None) -> None:
    path = tagged(tmp_path / "image.tif", band)

    with open_raster(path, bands=[1, 2, 3]) as reader:
        assert image_in_alpha(reader, WHOLE) == expected
    with open_raster(path) as reader:  # it is data, and masks nothing
        assert image_in_alpha(reader, WHOLE) is None


def test_predict_warns_of_it_and_labels_as_before(tmp_path: Path) -> None:
    path = tagged(tmp_path / "naip.tif", near_infrared())

    with pytest.warns(GeonormWarning, match=r"Band 4 of .*naip\.tif is tagged as alpha.*-colorinterp_4 undefined"):
        predict_raster(unet(), path, tmp_path / "map.tif", bands=[1, 2, 3])

    with rasterio.open(tmp_path / "map.tif") as made:
        assert (made.read(1)[:5, :7] == 255).all()


def test_the_real_tile_of_naip_is_told(real_data: Path) -> None:
    [path] = sorted((real_data / "landcover-naip").glob("tile-lowres/*naip-new.tif"))

    with open_raster(path, bands=[1, 2, 3]) as reader:
        window = Window(0, 0, reader.grid.height, reader.grid.width)
        assert image_in_alpha(reader, [window]) == 4


@pytest.mark.parametrize("name", ["rgba-alpha-band.tif", "drone-rgba-holes-0.35m.tif", "uint16-bgr-order-alpha.tif"])
def test_real_masks_are_masks(real_data: Path, name: str) -> None:
    with open_raster(real_data / "odd-geotiff" / name, bands=[1, 2, 3]) as reader:
        window = Window(0, 0, reader.grid.height, reader.grid.width)
        assert reader.alpha_band == 4
        assert image_in_alpha(reader, [window]) is None
