"""Maps made by another runtime than torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.inference import predict_raster
from geonorm.norms import LocalContextNorm
from tests.inference.rasters import draw, labels_in, noise
from tests.models.networks import unet

pytest.importorskip("openvino", reason="the package openvino is not installed")


def test_a_map_made_by_openvino_has_the_labels_of_torch_and_says_so(tmp_path: Path) -> None:
    source, network = draw(tmp_path / "source.tif", noise(3, 120, 150)), unet(depth=1)
    plans: list[str] = []

    predict_raster(network, source, tmp_path / "plain.tif", core_px=32)
    predict_raster(network, source, tmp_path / "other.tif", core_px=32, backend="openvino", on_plan=plans.append)

    plain, other = (labels_in(tmp_path / f"{name}.tif") for name in ("plain", "other"))
    assert {*np.unique(plain)} == {0, 1}
    assert (other == plain).mean() >= 0.999
    assert "labels   depend on the tiles within the rounding (openvino)" in plans[0]
    with rasterio.open(tmp_path / "other.tif") as made:
        assert made.tags()["geonorm_rounding"] == "openvino"
        assert made.tags()["geonorm_tile_independent"] == "within rounding"


def test_strips_of_another_backend_are_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, network = draw(tmp_path / "source.tif", noise(3, 120, 150)), unet(depth=1)
    with monkeypatch.context() as patched:
        patched.setattr("geonorm.inference.predict.assemble", _refuse)
        with pytest.raises(RasterError, match="no space"):
            predict_raster(network, source, tmp_path / "map.tif", core_px=32)

    with pytest.raises(InvalidConfigError, match='backend is "torch", here it is "openvino"'):
        predict_raster(network, source, tmp_path / "map.tif", core_px=32, backend="openvino")


def _refuse(*args: Any, **how: Any) -> None:
    raise RasterError("no space")


def test_local_context_norm_is_refused_in_one_line(tmp_path: Path) -> None:
    network = unet(partial(LocalContextNorm, window_px=5), depth=1)
    source = draw(tmp_path / "source.tif", noise(3))

    with pytest.raises(InvalidConfigError, match=r"does not take this network: .*local_context_norm.* --backend openv"):
        predict_raster(network, source, tmp_path / "map.tif", backend="openvino")
    assert [path.name for path in tmp_path.glob("*map*")] == []


def test_the_logits_of_another_tiling_are_the_same_within_rounding(tmp_path: Path) -> None:
    source, network = draw(tmp_path / "source.tif", noise(3, 70, 90)), unet(depth=2)
    logits = []

    for number, (core_px, offset) in enumerate([(32, (0, 0)), (64, (-12, 20))]):
        target = tmp_path / f"{number}.tif"
        predict_raster(
            network,
            source,
            target,
            core_px=core_px,
            grid_offset_px=offset,
            halo="exact",
            outputs=("logits",),
            backend="openvino",
        )
        with rasterio.open(target) as made:
            logits.append(made.read())

    one, other = logits
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * float(np.abs(one).max()))
