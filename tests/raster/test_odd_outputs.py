"""Every awkward raster there is, from the file to the map: a valid COG on the same grid, or one clear line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate

from geonorm.errors import GeonormError, RasterError
from geonorm.inference import predict_raster
from geonorm.raster.read import open_raster
from geonorm.raster.window import Window
from tests.inference.rasters import labels_in
from tests.models.networks import unet
from tests.raster.odd_files import DAMAGED, VALID

pytestmark = pytest.mark.real

MOST_BANDS = 4
NO_CLASS = 255
"""What pixels without data are in a map."""

every_valid_one = pytest.mark.parametrize("name", VALID)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A map in a folder of its own."""
    (tmp_path / "maps").mkdir()
    return tmp_path / "maps" / "map.tif"


def test_no_file_is_left_out(real_data: Path) -> None:
    found = {path.name for path in (real_data / "odd-geotiff").iterdir() if path.suffix in (".tif", ".png")}

    assert found == {*VALID, *DAMAGED}


@every_valid_one
def test_an_awkward_raster_gets_a_valid_cog_on_its_own_grid(real_data: Path, target: Path, name: str) -> None:
    path = real_data / "odd-geotiff" / name
    with opened(path) as given:
        bands, expected = min(MOST_BANDS, given.count), place_of(given)

    result = predict_raster(unet(bands=bands, depth=2, width=2), path, target, core_px=256)

    assert list(target.parent.iterdir()) == [target]
    with opened(target) as made:
        assert cog_validate(target, quiet=True) == (True, [], [])
        assert place_of(made) == expected
        assert (made.count, made.dtypes, made.nodata) == (1, ("uint8",), NO_CLASS)
    with open_raster(path, bands=range(1, bands + 1)) as source, open_raster(target) as map_of_it:
        assert map_of_it.grid == source.grid
        valid = source.read(Window(0, 0, source.grid.height, source.grid.width)).valid
    labels = labels_in(target)
    np.testing.assert_array_equal(labels != NO_CLASS, valid)
    assert result.valid_pixels == valid.sum()
    assert set(np.unique(labels[valid])) <= {0, 1}


@every_valid_one
def test_an_awkward_raster_of_too_few_bands_is_one_line(real_data: Path, target: Path, name: str) -> None:
    path = real_data / "odd-geotiff" / name
    with opened(path) as given:
        most = 4 if name.startswith("palette") else given.count  # red, green, blue and alpha of a palette

    with pytest.raises(RasterError, match=r"has \d band\(s\)") as caught:
        predict_raster(unet(bands=most + 1, width=2), path, target)

    assert "\n" not in str(caught.value)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_raster_is_one_line_and_leaves_nothing(real_data: Path, target: Path, name: str, bands: int) -> None:
    with pytest.raises(GeonormError) as caught:
        predict_raster(unet(bands=bands, width=2), real_data / "odd-geotiff" / name, target)

    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(target.parent.iterdir())


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a raster with plain rasterio, and be deaf to its word about missing transforms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            yield dataset


def place_of(dataset: Any) -> dict[str, Any]:
    """Return where the pixels of a raster lie, as plain rasterio says."""
    points, crs = dataset.gcps
    return {
        "shape": dataset.shape,
        "crs": dataset.crs,
        "transform": tuple(dataset.transform),
        "gcps": [(point.row, point.col, point.x, point.y, point.z) for point in points],
        "gcps' crs": crs,
    }
