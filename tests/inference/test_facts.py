"""What labels follow from: every setting that changes them tells two runs apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from rasterio.crs import CRS

from geonorm.inference import Options
from geonorm.inference.facts import config_hash, machine_facts, setting_facts, source_hash
from geonorm.inference.job import as_trained
from geonorm.inference.shards import Shard
from geonorm.raster.area import Area
from geonorm.raster.read import RasterSource, open_raster
from tests.inference.rasters import draw, noise
from tests.models.networks import unet

OTHER: dict[str, Any] = {
    "core_px": 256,
    "halo": "exact",
    "global_stats": True,
    "grid_offset_px": (0, 1),
    "blend": "hann",
    "tta": "d4",
    "precision": "bf16-mixed",
    "compile": True,
    "backend": "openvino",
    "nodata": 0.0,
    "nodata_rule": "any",
    "area": Area.from_bounds((0, 0, 1, 1), CRS.from_epsg(4326)),
    "resolution_m": 0.5,
    "output_grid": "model",
    "outputs": ("labels", "logits"),
    "vectors": "gpkg",
    "min_area_px": 1,
    "simplify_px": 0.5,
}
"""Another value than the default of every setting that labels follow from."""
BY_OTHER_WAYS: dict[str, Any] = {"engine": "tiles", "batch_size": 2, "device": "cuda", "bands": (3, 2, 1)}
"""The same, where the hash of the settings leaves them out, or the reader tells them."""
NO_MATTER: dict[str, Any] = {
    "shard": Shard(1, 2),
    "overwrite": True,
    "restart": True,
    "dry_run": True,
    "progress": True,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("source") / "source.tif", noise(3))


@pytest.fixture(scope="module")
def reader(source: Path) -> Iterator[RasterSource]:
    with open_raster(source) as opened:
        yield opened


def test_every_option_is_listed() -> None:
    assert {field.name for field in fields(Options)} == {*OTHER, *BY_OTHER_WAYS, *NO_MATTER}


@pytest.mark.parametrize("name", OTHER)
def test_another_value_of_an_option_is_another_config(reader: RasterSource, name: str) -> None:
    model = as_trained(unet())
    one, other = (setting_facts(model, reader, options) for options in (Options(), Options(**{name: OTHER[name]})))

    assert config_hash(one) == config_hash(setting_facts(as_trained(unet()), reader, Options()))
    assert config_hash(one) != config_hash(other)


@pytest.mark.parametrize("name", BY_OTHER_WAYS)
def test_what_may_change_the_last_bit_or_comes_from_the_reader_is_a_fact(source: Path, name: str) -> None:
    def facts(**settings: Any) -> dict[str, Any]:
        options = Options(**settings)
        with open_raster(source, bands=options.bands) as reader:
            return {**setting_facts(as_trained(unet()), reader, options), **machine_facts(options)}

    one, other = facts(), facts(**{name: BY_OTHER_WAYS[name]})

    assert one != other
    assert (config_hash(one) != config_hash(other)) == (name != "batch_size")


@pytest.mark.parametrize("name", NO_MATTER)
def test_other_options_are_no_facts(reader: RasterSource, name: str) -> None:
    model = as_trained(unet())

    assert setting_facts(model, reader, Options()) == setting_facts(model, reader, Options(**{name: NO_MATTER[name]}))


@pytest.mark.parametrize(
    "other",
    [{"class_names": ("a", "b")}, {"class_colors": ((1, 2, 3), (4, 5, 6))}, {"scored_classes": (1,)}],
    ids=str,
)
def test_what_a_map_says_of_its_classes_is_a_fact(reader: RasterSource, other: dict[str, Any]) -> None:
    model = as_trained(unet())
    renamed = replace(model, spec=replace(model.spec, **other))

    one, another = (config_hash(setting_facts(which, reader, Options())) for which in (model, renamed))

    assert one != another


@pytest.mark.parametrize("at", [0, 70_000, 2**21 - 1])
def test_the_letters_of_a_source_follow_from_its_file(tmp_path: Path, at: int) -> None:
    large = draw(tmp_path / "large.tif", noise(3, 840, 840))
    settings = {"size": [840, 840], "transform": [0.0] * 6}
    before = source_hash([large], settings)
    content = bytearray(large.read_bytes())

    content[at + 4096 : at + 200_000] = bytes(len(content[at + 4096 : at + 200_000]))
    large.write_bytes(content)

    assert len(content) > 2**21
    assert source_hash([large], settings) != before
    assert source_hash([large], {**settings, "size": [1, 1]}) != source_hash([large], settings)
