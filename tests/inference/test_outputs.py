"""What is written of the logits: several files in one pass, each against the network's own answer."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rio_cogeo.cogeo import cog_validate
from torch import nn

from geonorm.errors import InvalidConfigError, TargetExistsError
from geonorm.inference import predict_raster
from geonorm.inference.job import numbered_spec
from geonorm.inference.outputs import Kept, softmax
from geonorm.models.predictor import predictor
from geonorm.tiling.blending import Blend
from tests.folders import names_in
from tests.inference.rasters import draw, noise
from tests.models.networks import local, unet

pytestmark = pytest.mark.usefixtures("both_engines")

HOLE = np.s_[5:20, 30:70]
FIRST = (-16, 16)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = noise(3, 72, 88)
    image[:, *HOLE] = 0
    return image


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return unet(local(window_px=5), num_classes=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, image: NDArray[np.uint8]) -> Path:
    return draw(tmp_path_factory.mktemp("source") / "source.tif", image, first_index=FIRST, nodata=0)


def values_in(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_all_outputs_of_one_pass_are_those_of_the_network(
    network: nn.Module, source: Path, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    network_input = image.astype(np.float32)
    network_input[:, *HOLE] = network.rescale.mean[:, None, None].numpy()  # type: ignore[index]
    expected = predictor(network, torch.device("cpu"))(torch.from_numpy(network_input)[None])[0]
    inner = np.s_[..., 20:-20, 20:-20]  # within a halo of the edge the map sees the raster mirrored
    valid = np.ones((72, 88), dtype=bool)
    valid[HOLE] = False

    result = predict_raster(
        network, source, tmp_path / "map.tif", core_px=16, halo="exact", outputs=("labels", "probabilities", "logits")
    )

    assert names_in(tmp_path) == ["map.logits.tif", "map.probabilities.tif", "map.tif"]
    assert result.others == (str(tmp_path / "map.probabilities.tif"), str(tmp_path / "map.logits.tif"))
    labels, shares, logits = (values_in(tmp_path / f"map{name}.tif") for name in ("", ".probabilities", ".logits"))
    np.testing.assert_array_equal(logits[inner], np.where(valid, expected, math.nan)[inner])
    np.testing.assert_array_equal(labels[0], np.where(valid, np.argmax(logits, axis=0), 255))
    exact = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum(axis=0)
    assert (shares[:, ~valid] == 255).all()
    assert np.abs(shares / 254 - exact)[:, valid].max() <= 0.5 / 254 + 1e-6
    assert result.class_pixels == tuple(int((labels == label).sum()) for label in range(3))
    for name in names_in(tmp_path):
        assert cog_validate(tmp_path / name, strict=True, quiet=True) == (True, [], [])


@pytest.mark.parametrize(("spread", "relative"), [(1.0, 1e-6), (40.0, 2e-5)])
def test_probabilities_are_right_to_the_last_bits_of_float32(spread: float, relative: float) -> None:
    logits = spread * torch.randn(2, 5, 70, 80, generator=torch.Generator().manual_seed(0))
    logits[0, :, 0, 0] = torch.tensor([0.0, -200.0, 88.0, 3e38, -3e38])

    found = softmax(logits)

    torch.testing.assert_close(found.double(), logits.double().softmax(dim=1), rtol=relative, atol=1e-37)


@given(top=st.integers(0, 20), left=st.integers(0, 20), height=st.integers(1, 20), width=st.integers(1, 33))
def test_probabilities_of_a_crop_are_those_of_the_whole_to_the_last_bit(
    top: int, left: int, height: int, width: int
) -> None:
    logits = torch.randn(1, 3, 40, 53, generator=torch.Generator().manual_seed(0)) * 5
    crop = np.s_[..., top : top + height, left : left + width]

    assert torch.equal(softmax(logits[crop].contiguous()), softmax(logits)[crop])


@pytest.mark.parametrize("with_logits", [False, True])
@pytest.mark.parametrize("output", ["labels", "probabilities"])
def test_no_output_depends_on_what_else_is_written_or_on_the_tiles(
    network: nn.Module, source: Path, tmp_path: Path, output: str, with_logits: bool
) -> None:
    predict_raster(network, source, tmp_path / "alone.tif", core_px=64, halo="exact", outputs=(output,))

    others = ("logits",) if with_logits else ()
    settings: dict[str, Any] = {"core_px": 16, "halo": "exact", "vectors": "gpkg"}
    predict_raster(network, source, tmp_path / "more.tif", outputs=(output, *others), **settings)

    np.testing.assert_array_equal(values_in(tmp_path / "alone.tif"), values_in(tmp_path / "more.tif"))


def test_the_files_say_what_they_hold(network: nn.Module, source: Path, tmp_path: Path) -> None:
    predict_raster(network, source, tmp_path / "map.tif", core_px=32, outputs=("probabilities", "logits", "labels"))

    with rasterio.open(tmp_path / "map.tif") as shares:
        assert (shares.count, shares.dtypes[0], shares.nodata, shares.scales[0]) == (3, "uint8", 255, 1 / 254)
        assert shares.descriptions == ("class 0", "class 1", "class 2")
        tags = shares.tags()
    with rasterio.open(tmp_path / "map.logits.tif") as logits:
        assert (logits.count, logits.dtypes[0], math.isnan(logits.nodata)) == (3, "float32", True)
    with rasterio.open(tmp_path / "map.labels.tif") as labels:
        assert (labels.count, labels.nodata, labels.colorinterp[0].name) == (1, 255, "palette")
        assert labels.tags() == tags


@pytest.mark.parametrize("blend", ["none", "hann"])
def test_logits_are_kept_where_tiles_are_blended(
    network: nn.Module, source: Path, tmp_path: Path, blend: Blend
) -> None:
    predict_raster(network, source, tmp_path / "map.tif", core_px=32, blend=blend, outputs=("labels", "logits"))

    labels, logits = values_in(tmp_path / "map.tif")[0], values_in(tmp_path / "map.logits.tif")
    valid = labels != 255
    np.testing.assert_array_equal(labels[valid], logits.argmax(axis=0)[valid])
    assert np.isnan(logits[:, ~valid]).all()


def test_filling_in_nodata_takes_no_more_memory_than_a_mask() -> None:
    kept, valid = Kept(numbered_spec(3, 2), ["labels", "probabilities"]), np.zeros((64, 4096), np.bool_)
    gathered = torch.zeros(3, 64, 4096, dtype=torch.uint8)
    tracemalloc.start()
    try:
        layers = kept.split(gathered, valid)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert all((values == 255).all() for values in layers.values())
    assert taken < 2 * valid.nbytes


def test_a_file_that_is_there_is_left_alone_whichever_it_is(network: nn.Module, source: Path, tmp_path: Path) -> None:
    (tmp_path / "map.logits.tif").write_text("mine")

    with pytest.raises(TargetExistsError, match=r"map\.logits\.tif exists"):
        predict_raster(network, source, tmp_path / "map.tif", core_px=32, outputs=("labels", "logits"))

    assert names_in(tmp_path) == ["map.logits.tif"]
    assert (tmp_path / "map.logits.tif").read_text() == "mine"


@pytest.mark.parametrize("outputs", [(), ("labels", "labels"), ("classes",)])
def test_outputs_that_do_not_exist_are_one_line(
    network: nn.Module, source: Path, tmp_path: Path, outputs: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidConfigError, match="outputs must be some of labels, probabilities, logits"):
        predict_raster(network, source, tmp_path / "map.tif", outputs=outputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_area_px": -1}, "an area must be 0 or more"),
        ({"simplify_px": math.nan}, "simplify_px must be 0 or more"),
        ({"resolution_m": 0.0}, "resolution_m must be more than 0"),
        ({"output_grid": "other"}, "output_grid must be one of source, model"),
    ],
)
def test_what_cannot_be_made_is_refused_before_work(
    network: nn.Module, source: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        predict_raster(network, source, tmp_path / "map.tif", vectors="gpkg", **settings)

    assert names_in(tmp_path) == []


def test_polygons_that_need_a_missing_library_are_refused_before_work(
    network: nn.Module, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(InvalidConfigError, match=r"needs pyarrow: pip install geonorm\[parquet\]"):
        predict_raster(network, source, tmp_path / "map.tif", vectors="parquet")

    assert names_in(tmp_path) == []


def test_a_raster_without_data_makes_an_empty_map(network: nn.Module, tmp_path: Path) -> None:
    source = draw(tmp_path / "source.tif", np.zeros((3, 600, 700), np.uint8), nodata=0)

    result = predict_raster(network, source, tmp_path / "map.tif", outputs=("labels", "logits"), vectors="gpkg")

    assert result.class_pixels == (0, 0, 0)
    assert (values_in(tmp_path / "map.tif") == 255).all()
    assert (tmp_path / "map.logits.tif").stat().st_size < 10_000
