"""A warning where a raster is of another scale than the training data."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geonorm.data.spec import INRIA
from geonorm.errors import GeonormWarning
from geonorm.inference import predict_raster
from geonorm.inference.job import as_trained
from geonorm.inference.scale import warn_of_values
from geonorm.raster.read import open_raster
from tests.inference.rasters import draw
from tests.models.networks import unet

SPEC = INRIA.with_statistics((90.0, 100.0, 110.0), (40.0, 35.0, 50.0))


def scene(scale: float, offset: float = 0.0, dtype: str = "uint16") -> np.ndarray:
    """Return an image of the training's scale, times ``scale``."""
    noise = np.random.default_rng(0).normal(size=(3, 150, 170))
    image = noise * np.array(SPEC.band_deviations)[:, None, None] + np.array(SPEC.band_means)[:, None, None]
    return (image.clip(0, 255) * scale + offset).astype(dtype)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (scene(257), "values about 2.*uint16"),  # 16 bits
        (scene(1 / 255, dtype="float32"), "values about 0.*float32"),  # reflectances
        (scene(1, offset=1000), "values about 1"),
    ],
)
def test_another_scale_is_told(values: np.ndarray, found: str, tmp_path: Path) -> None:
    path = draw(tmp_path / "image.tif", values)

    with open_raster(path) as reader, pytest.warns(GeonormWarning, match=rf"{found}.*trained on values about 90, 100"):
        warn_of_values(reader, SPEC)


@pytest.mark.parametrize(
    "values",
    [
        scene(1, dtype="uint8"),
        scene(0.3, dtype="uint8"),  # in the dark
        scene(2),  # 9 bits
        np.zeros((3, 150, 170), np.uint8),  # nothing to see
        scene(1)[:, :3, :5],  # too few pixels to tell
    ],
)
def test_light_and_ground_are_no_other_scale(values: np.ndarray, tmp_path: Path) -> None:
    path = draw(tmp_path / "image.tif", values)

    with open_raster(path) as reader, warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_values(reader, SPEC)


def test_nothing_is_said_where_the_training_is_not_known(tmp_path: Path) -> None:
    path = draw(tmp_path / "image.tif", scene(257))

    with open_raster(path) as reader, warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_values(reader, INRIA)


def test_labelling_such_a_raster_says_so(tmp_path: Path) -> None:
    path = draw(tmp_path / "image.tif", scene(257))
    model = replace(as_trained(unet(depth=1)), spec=SPEC)

    with pytest.warns(GeonormWarning, match="image.tif has values about"):
        predict_raster(model, path, tmp_path / "map.tif")
