"""Where the pixels of a map come from: neighbours, areas, other bands; and polygons beside the map."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas  # type: ignore[import-untyped]
import numpy as np
import pytest
import rasterio.features
import torch
from numpy.typing import NDArray
from rasterio import Affine
from torch import Tensor, nn

from geonorm.cli import main
from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.inference import Options, predict_raster, predict_rasters
from geonorm.inference.job import as_trained
from geonorm.models import Rescale
from geonorm.models.predictor import predictor
from geonorm.norms import BatchNorm, GroupNorm
from geonorm.raster.area import Area
from geonorm.raster.read import open_raster
from geonorm.raster.resample import open_resampled
from geonorm.raster.window import Window
from geonorm.raster.write import write_image
from geonorm.tasks.checkpoint import save_model
from geonorm.tiling.blending import Blend
from tests.inference.rasters import draw, labels_in, noise
from tests.models.networks import local, unet

pytestmark = pytest.mark.usefixtures("both_engines")

FIRST = (-17_666_664, 1_333_332)


def cut(folder: Path, image: NDArray[np.uint8], rows: list[int], cols: list[int]) -> list[Path]:
    """Write a raster as files side by side, cut at some rows and columns."""
    folder.mkdir()
    files = []
    for top, bottom in zip([0, *rows], [*rows, image.shape[1]], strict=True):
        for left, right in zip([0, *cols], [*cols, image.shape[2]], strict=True):
            part = image[:, top:bottom, left:right]
            name = folder / f"part_{top}_{left}.tif"
            files.append(draw(name, part, first_index=(FIRST[0] + top, FIRST[1] + left), nodata=0))
    return files


@pytest.mark.parametrize("norm", [BatchNorm, local(window_px=5)], ids=["BN", "5 px"])
def test_a_raster_cut_into_3_x_3_files_gets_the_labels_of_the_uncut_one(tmp_path: Path, norm: type[nn.Module]) -> None:
    image = noise(3, 120, 150)
    image[:, 30:70, 60:90] = 0
    network = unet(norm, depth=2)
    uncut = draw(tmp_path / "uncut.tif", image, first_index=FIRST, nodata=0)
    files = cut(tmp_path / "parts", image, [37, 80], [50, 101])
    (tmp_path / "maps").mkdir()

    predict_raster(network, uncut, tmp_path / "map.tif", core_px=32, halo="exact")
    done = predict_rasters(network, [tmp_path / "parts"], tmp_path / "maps", Options(core_px=32, halo="exact"))

    expected = labels_in(tmp_path / "map.tif")
    assert sorted(Path(one.target).name for one in done) == sorted(path.name for path in files)
    for path in files:
        _, top, left = path.stem.split("_")
        found = labels_in(tmp_path / "maps" / path.name)
        rows, cols = found.shape
        np.testing.assert_array_equal(found, expected[int(top) :, int(left) :][:rows, :cols])
        with open_raster(path) as given, open_raster(tmp_path / "maps" / path.name) as made:
            assert given.grid == made.grid
    assert sum(one.valid_pixels for one in done) == (expected != 255).sum()
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {path.name for path in files}


def test_an_area_gets_the_labels_that_the_whole_raster_has_there(tmp_path: Path) -> None:
    source, network = draw(tmp_path / "source.tif", noise(3, 100, 130), first_index=FIRST), unet(depth=2)
    with open_raster(source) as reader:
        t = reader.grid.transform
    corners = (t.c + 20 * t.a, t.f + 71 * t.e, t.c + 94 * t.a, t.f + 33 * t.e)

    predict_raster(network, source, tmp_path / "whole.tif", core_px=32)
    predict_raster(network, source, tmp_path / "area.tif", core_px=32, area=Area.from_bounds(corners))

    np.testing.assert_array_equal(labels_in(tmp_path / "area.tif"), labels_in(tmp_path / "whole.tif")[33:71, 20:94])
    with open_raster(tmp_path / "area.tif") as made:
        assert (made.grid.transform.c, made.grid.transform.f) == pytest.approx((corners[0], corners[3]))


def test_rasters_outside_the_area_are_left_out(tmp_path: Path) -> None:
    network, image = unet(), noise(3, 60, 90)
    cut(tmp_path / "parts", image, [], [30, 60])
    far = draw(tmp_path / "parts" / "far.tif", image, first_index=(FIRST[0] + 9000, FIRST[1] + 9000))
    left, top = FIRST[1] * 0.3, -FIRST[0] * 0.3
    middle = Area.from_bounds((left + 35 * 0.3, top - 20 * 0.3, left + 55 * 0.3, top - 10 * 0.3))
    nowhere = Area.from_bounds((left - 900, top - 800, left - 800, top - 700))
    (tmp_path / "maps").mkdir()

    done = predict_rasters(network, [tmp_path / "parts"], tmp_path / "maps", Options(core_px=32, area=middle))

    assert [Path(one.target).name for one in done] == ["part_0_30.tif"]
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["part_0_30.tif"]
    assert labels_in(tmp_path / "maps" / "part_0_30.tif").shape == (10, 20)
    with pytest.raises(InvalidConfigError, match="none of the 4 rasters meets the area"):
        predict_rasters(network, [tmp_path / "parts"], tmp_path / "maps", Options(area=nowhere, overwrite=True))
    with pytest.raises(InvalidConfigError, match="misses the raster"):
        predict_raster(network, far, tmp_path / "far.tif", area=middle)


@pytest.mark.parametrize("wanted_m", [0.5, 0.2])
def test_a_resampled_raster_gets_the_labels_of_the_one_that_was_resampled_first(
    tmp_path: Path, wanted_m: float
) -> None:
    network, source = unet(local(window_px=5)), draw(tmp_path / "source.tif", noise(3, 90, 120), first_index=FIRST)
    with open_resampled(source, wanted_m) as reader:
        grid, pixels = reader.grid, reader.read(Window(0, 0, reader.grid.height, reader.grid.width))
    first = draw(tmp_path / "first.tif", pixels.values * pixels.valid, transform=grid.transform, nodata=0)
    predict_raster(network, first, tmp_path / "first-map.tif", core_px=32)

    settings: dict[str, Any] = {"core_px": 32, "resolution_m": wanted_m}
    predict_raster(network, source, tmp_path / "model.tif", output_grid="model", **settings)
    predict_raster(network, source, tmp_path / "map.tif", outputs=("labels", "logits"), **settings)

    expected = labels_in(tmp_path / "first-map.tif")
    np.testing.assert_array_equal(labels_in(tmp_path / "model.tif"), expected)
    found = labels_in(tmp_path / "map.tif")
    # The pixel of the map that holds the centre of each pixel of the source.
    rows, cols = np.arange(90)[:, None] + 0.5, np.arange(120) + 0.5
    with open_raster(source) as reader:
        t = ~grid.transform @ reader.grid.transform
    at = np.floor(t.f + t.e * rows).astype(int), np.floor(t.c + t.a * cols).astype(int)
    np.testing.assert_array_equal(found, expected[at])
    assert not np.isnan(rasterio.open(tmp_path / "map.logits.tif").read()).any()


def test_neighbours_that_are_resampled_have_no_seam(tmp_path: Path) -> None:
    network, image = unet(local(window_px=5)), noise(3, 90, 120)
    uncut = draw(tmp_path / "uncut.tif", image, first_index=FIRST)
    files = cut(tmp_path / "parts", image, [41], [50])
    (tmp_path / "maps").mkdir()
    settings: dict[str, Any] = {"core_px": 32, "resolution_m": 0.5}

    predict_raster(network, uncut, tmp_path / "map.tif", **settings)
    predict_rasters(network, [tmp_path / "parts"], tmp_path / "maps", Options(**settings))

    expected = labels_in(tmp_path / "map.tif")
    for file in files:
        top, left = map(int, file.stem.split("_")[1:])
        found = labels_in(tmp_path / "maps" / file.name)
        np.testing.assert_array_equal(
            found, expected[top : top + found.shape[0], left : left + found.shape[1]], err_msg=file.name
        )


def test_the_resolution_of_the_training_is_taken_on_request(tmp_path: Path) -> None:
    model = as_trained(unet())
    model = replace(model, spec=replace(model.spec, resolution_m=0.6))
    source = draw(tmp_path / "source.tif", noise(3))

    with warnings.catch_warnings():
        warnings.simplefilter("error", GeonormWarning)  # it was the factor of two that was warned of
        predict_raster(model, source, tmp_path / "map.tif", resolution_m="auto", output_grid="model")
    with pytest.raises(InvalidConfigError, match="does not say at what resolution"):
        predict_raster(unet(), source, tmp_path / "other.tif", resolution_m="auto")

    with rasterio.open(tmp_path / "map.tif") as made:
        assert made.res == pytest.approx((0.6, 0.6), rel=1e-3)


def test_pixels_far_too_coarse_for_the_network_are_refused_before_they_are_read(tmp_path: Path) -> None:
    source = tmp_path / "coarse.tif"
    write_image(source, np.ones((3, 20, 30), np.uint8), crs="EPSG:32633", transform=Affine(900, 0, 0, 0, -900, 0))
    model = as_trained(unet())
    model = replace(model, spec=replace(model.spec, resolution_m=0.3))

    with pytest.raises(InvalidConfigError, match=r"900 m, the network knows 0\.3 m.*at most 8 times") as caught:
        predict_raster(model, source, tmp_path / "map.tif", resolution_m="auto", dry_run=True)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"halo": "exact"}, "labels   do not depend on the tiles"),
        ({"halo": 0}, "labels   may depend on the tiles"),
        # No smaller halo leaves room for the step to spare, so the exact one is read.
        ({"halo": "measured"}, "labels   do not depend on the tiles"),
        ({"halo": "exact", "precision": "bf16-mixed"}, "labels   depend on the tiles within the rounding (bf16-mixed)"),
        ({"halo": "exact", "blend": "hann"}, "labels   depend on the tiles within the rounding (hann blending)"),
        ({"halo": "exact", "tta": "phases"}, "grid     anchored to the CRS at multiples of 1 px"),
        ({"resolution_m": 0.5}, "55 columns, 3 bands, uint8, resampled to 0.5 m"),
    ],
)
def test_the_plan_says_what_the_labels_depend_on(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    told: list[str] = []
    source = draw(tmp_path / "source.tif", noise(3))

    predict_raster(unet(), source, tmp_path / "map.tif", core_px=32, dry_run=True, on_plan=told.append, **settings)

    assert words in told[0]


def test_a_dry_run_says_what_it_takes_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    source = draw(tmp_path / "source.tif", noise(3))
    (tmp_path / "maps").mkdir()

    words = ["predict", str(checkpoint), str(source), str(tmp_path / "maps" / "map.tif")]
    assert main([*words, "--dry_run", "--core_px=auto"]) == 0

    said = capsys.readouterr()
    assert said.out == ""
    for word in ("source ", "(tiles|rows) ", "halo ", "grid ", "memory ", "disk ", "time "):
        assert re.search(f"\n{word}", f"\n{said.err}")
    assert [*(tmp_path / "maps").iterdir()] == []


def test_bands_are_taken_in_the_order_asked_for(tmp_path: Path) -> None:
    image = noise(4)
    source = draw(tmp_path / "source.tif", image)
    turned = draw(tmp_path / "turned.tif", image[[3, 0, 2]])
    network = unet(depth=1)

    predict_raster(network, source, tmp_path / "a.tif", bands=[4, 1, 3])
    predict_raster(network, turned, tmp_path / "b.tif")

    np.testing.assert_array_equal(labels_in(tmp_path / "a.tif"), labels_in(tmp_path / "b.tif"))
    with pytest.raises(InvalidConfigError, match=r"takes 3 bands .* got bands \[4, 1\]"):
        predict_raster(network, source, tmp_path / "c.tif", bands=[4, 1])


def test_a_value_that_the_user_declares_is_no_data(tmp_path: Path) -> None:
    image = noise(3)
    image[:, 10:30, 20:50] = 0
    declared = draw(tmp_path / "declared.tif", image, nodata=0)
    undeclared = draw(tmp_path / "undeclared.tif", image)
    network = unet(depth=1)

    predict_raster(network, declared, tmp_path / "a.tif")
    predict_raster(network, undeclared, tmp_path / "b.tif", nodata=0)

    found = labels_in(tmp_path / "b.tif")
    np.testing.assert_array_equal(found, labels_in(tmp_path / "a.tif"))
    assert (found == 255).sum() == 600


# Polygons


@pytest.mark.parametrize("suffix", ["gpkg", "parquet"])
def test_polygons_are_those_of_the_whole_map_with_their_mean_probability(tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="GeoParquet needs pyarrow")
    source, network = draw(tmp_path / "source.tif", noise(3, 90, 120)), unet(depth=1)

    result = predict_raster(network, source, tmp_path / "map.tif", core_px=16, vectors=suffix)

    assert result.others == (str(tmp_path / f"map.{suffix}"),)
    read = geopandas.read_file if suffix == "gpkg" else geopandas.read_parquet
    found = read(tmp_path / f"map.{suffix}")
    labels = labels_in(tmp_path / "map.tif")
    with open_raster(source) as reader:
        shapes = list(rasterio.features.shapes(labels, connectivity=4, transform=reader.grid.transform))
        image = reader.read(Window(0, 0, 90, 120)).values
    assert len(found) == len(shapes)
    assert found["pixels"].sum() == labels.size
    assert found.area.sum() == pytest.approx(labels.size * 0.09)
    logits = predictor(network, torch.device("cpu"))(torch.from_numpy(image[None, :, :90, :120]))
    mean = float(logits.softmax(1).max(1).values.mean())
    assert np.average(found["probability"], weights=found["pixels"]) == pytest.approx(mean, abs=0.02)


# Other ways to run a network


class Asymmetric(nn.Module):
    """A network that sees the pixel to the left."""

    def __init__(self) -> None:
        super().__init__()
        self.rescale = Rescale(1)

    def forward(self, image: Tensor) -> Tensor:
        image = self.rescale(image)
        left = torch.nn.functional.pad(image, (1, 0))[..., :-1]
        return torch.cat([image, left], dim=1)


def test_d4_is_the_mean_over_all_mirrored_and_turned_copies() -> None:
    tiles = torch.rand(2, 1, 12, 12)

    found = predictor(Asymmetric(), torch.device("cpu"), tta="d4")(tiles)

    padded = torch.nn.functional.pad(tiles, (1, 1, 1, 1))
    around = (padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:] + padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]) / 4
    torch.testing.assert_close(found, torch.cat([tiles, around], dim=1))


def test_half_precision_is_near_and_is_told(tmp_path: Path) -> None:
    source, network = draw(tmp_path / "source.tif", noise(3)), unet(depth=1)
    tiles = torch.rand(1, 3, 32, 32) * 255

    half = predictor(network, torch.device("cpu"), precision="bf16-mixed")(tiles)
    full = predictor(network, torch.device("cpu"))(tiles)
    predict_raster(network, source, tmp_path / "map.tif", precision="bf16-mixed")

    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05 * float(full.abs().max()))
    with rasterio.open(tmp_path / "map.tif") as made:
        assert made.tags()["geonorm_tile_independent"] == "within rounding"
        assert made.tags()["geonorm_rounding"] == "bf16-mixed"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile writes C++, and there is no g++ to build it")
def test_a_compiled_network_gives_the_same_labels_within_rounding_and_is_told(tmp_path: Path) -> None:
    source, network = draw(tmp_path / "source.tif", noise(3, 120, 150)), unet(depth=1)
    torch.compiler.reset()  # else the limit of recompilations may have been reached by other tests

    predict_raster(network, source, tmp_path / "plain.tif", core_px=32)
    predict_raster(network, source, tmp_path / "compiled.tif", core_px=32, compile=True)

    plain, compiled = (labels_in(tmp_path / f"{name}.tif") for name in ("plain", "compiled"))
    assert {*np.unique(plain)} == {0, 1}
    assert (compiled == plain).mean() >= 0.999
    with rasterio.open(tmp_path / "compiled.tif") as made:
        assert made.tags()["geonorm_rounding"] == "compiled"
        assert made.tags()["geonorm_tile_independent"] == "within rounding"


def test_a_network_that_cannot_be_compiled_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiling(network: nn.Module) -> Callable[[Tensor], Tensor]:
        def run(tiles: Tensor) -> Tensor:
            raise torch._dynamo.exc.TorchDynamoException(
                "no compiler\n  was found\n\nSet TORCHDYNAMO_VERBOSE=1 for more"
            )

        return run

    monkeypatch.setattr(torch, "compile", compiling)
    source = draw(tmp_path / "source.tif", noise(3))

    with pytest.raises(InvalidConfigError, match=r"^torch cannot compile this network here: no compiler was found\.$"):
        predict_raster(unet(), source, tmp_path / "map.tif", compile=True)
    assert main(["predict", str(checkpoint), str(source), str(tmp_path / "map.tif"), "--compile"]) == 2

    # The plan comes before it.
    error = "geonorm: error: torch cannot compile this network here: no compiler was found."
    assert capsys.readouterr().err.splitlines()[-1] == error
    assert [path.name for path in tmp_path.glob("*map*")] == []


def test_a_backend_that_is_not_installed_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    source = draw(tmp_path / "source.tif", noise(3))

    assert main(["predict", str(checkpoint), str(source), str(tmp_path / "map.tif"), "--backend", "openvino"]) == 2

    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith("geonorm: error: backend=openvino needs the package openvino: ")
    assert error.endswith("pip install 'geonorm[openvino]'.")


def test_blending_is_told_and_brings_two_grids_closer(tmp_path: Path) -> None:
    source, network = draw(tmp_path / "source.tif", noise(3, 120, 150)), unet(GroupNorm, depth=1)

    def flips(blend: Blend) -> float:
        maps = []
        for offset in (0, 16):
            path = tmp_path / f"{blend}_{offset}.tif"
            where = (offset, offset)
            predict_raster(network, source, path, core_px=32, halo=16, blend=blend, grid_offset_px=where)
            maps.append(labels_in(path))
        return float((maps[0] != maps[1]).mean())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeonormWarning)  # the labels depend on the tiles: that is the point
        assert flips("hann") < flips("none")
    with rasterio.open(tmp_path / "hann_0.tif") as made:
        assert made.tags()["geonorm_blend"] == "hann"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--area", "1", "2"], "--area must be a vector file"),
        (["--blend", "cubic"], "invalid choice"),
        (["--bands", "1"], "takes 3 bands"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path, words: list[str], message: str
) -> None:
    source = draw(tmp_path / "source.tif", noise(3))

    assert main(["predict", str(checkpoint), str(source), str(tmp_path / "map.tif"), *words]) == 2

    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.glob("*map*")] == []


def test_a_folder_is_labelled_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    cut(tmp_path / "parts", noise(3), [25], [])
    (tmp_path / "maps").mkdir()

    assert main(["predict", str(checkpoint), str(tmp_path / "parts"), str(tmp_path / "maps"), "--vectors", "gpkg"]) == 0

    assert sorted(path.suffix for path in (tmp_path / "maps").iterdir()) == [".gpkg", ".tif", ".tif"]
    assert capsys.readouterr().out.count("pixels labelled") == 2


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a checkpoint of a small network for three bands."""
    described = as_trained(unet(depth=1, width=4))
    path = tmp_path / "model.ckpt"
    arguments = {"depth": 1, "width": 4}
    described = replace(
        described,
        network_path={"class_path": "geonorm.models.UNet", "init_args": arguments},
        norm_path={"class_path": "geonorm.norms.BatchNorm", "init_args": {}},
    )
    save_model(described, path)
    return path
