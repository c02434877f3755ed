"""From a network and a raster to a map: what is written, what is refused, and what it leaves behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate
from torch import Tensor, nn
from torch.nn import functional as F

import geonorm
from geonorm.errors import GeonormWarning, InvalidConfigError, RasterError, TargetExistsError
from geonorm.inference import Options, engines, predict_raster
from geonorm.inference.job import as_trained
from geonorm.inference.journal import Journal
from geonorm.inference.outputs import NODATA_LABEL
from geonorm.models import UNet, tile_geometry
from geonorm.models.row_predictor import RowPredictor, RowRun
from geonorm.models.unet import Padding
from geonorm.norms import BatchNorm, GroupNorm, NormFactory
from geonorm.raster.read import open_raster
from geonorm.tasks.checkpoint import TrainedModel
from tests.inference.rasters import UTM, draw, labels_in, noise, place
from tests.models.networks import Network, local, unet

pytestmark = pytest.mark.usefixtures("both_engines")

FIRST_INDEX = (-17_666_664, 1_333_332)  # multiples of 4


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """Three bands without a zero."""
    return noise(3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, image: NDArray[np.uint8]) -> Path:
    """A raster in which every value counts."""
    return draw(tmp_path_factory.mktemp("source") / "source.tif", image, first_index=FIRST_INDEX)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A map in a folder of its own."""
    (tmp_path / "maps").mkdir()
    return tmp_path / "maps" / "map.tif"


def direct(network: nn.Module, image: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the labels of one plain pass, and where they are beyond doubt."""
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(image.astype(np.float32))[None])[0].double()
    first, second = logits.topk(2, dim=0).values
    certain = first - second > 1e-3
    assert certain.float().mean() > 0.9
    return logits.argmax(0).to(torch.uint8).numpy(), certain.numpy()


def assert_same_labels(path: Path, expected: tuple[NDArray[np.uint8], NDArray[np.bool_]]) -> None:
    """Check a map against a plain pass."""
    labels, certain = expected
    np.testing.assert_array_equal(labels_in(path)[certain], labels[certain])


def trained(network: nn.Module, **facts: Any) -> TrainedModel:
    """Return the network as a checkpoint would give it, with some of its facts."""
    model = as_trained(network)
    return replace(model, spec=replace(model.spec, **facts), name="last.ckpt")


def test_a_bare_network_is_not_run_again_for_its_geometry() -> None:
    network = unet(depth=2)
    runs: list[None] = []
    network.register_forward_pre_hook(lambda *_: runs.append(None))

    model = as_trained(network)

    known = len(runs)
    assert model.geometry == tile_geometry(unet(depth=2))
    assert len(runs) == known


# The map


def test_the_map_is_a_cog_on_the_grid_of_the_source(source: Path, target: Path) -> None:
    predict_raster(unet(), source, target)

    assert cog_validate(target, quiet=True)[0]
    with rasterio.open(target) as made, rasterio.open(source) as given:
        assert (made.crs, made.transform, made.shape) == (given.crs, given.transform, given.shape)
        assert (made.count, made.dtypes, made.nodata) == (1, ("uint8",), NODATA_LABEL)


def test_the_map_names_and_colours_its_classes(source: Path, target: Path) -> None:
    names, colors = ("water", "trees", "houses"), ((0, 0, 255), (0, 128, 0), (200, 40, 40))
    facts = {"class_names": names, "class_colors": colors, "scored_classes": (0, 1, 2)}

    predict_raster(trained(unet(num_classes=3), **facts), source, target)

    with rasterio.open(target) as made:
        assert json.loads(made.tags()["class_names"]) == list(names)
        assert [made.colormap(1)[label][:3] for label in range(3)] == list(colors)


def test_the_map_says_how_it_was_made(source: Path, target: Path) -> None:
    predict_raster(trained(unet()), source, target, core_px=32, grid_offset_px=(2, -6))

    with rasterio.open(target) as made:
        tags = {name: text for name, text in made.tags().items() if name.startswith("geonorm")}
    network = json.loads(tags.pop("geonorm_network"))
    assert network["class_path"].endswith("UNet")
    assert all(re.fullmatch("[0-9a-f]{16}", tags.pop(f"geonorm_{name}")) for name in ("model", "config", "source"))
    assert tags == {
        "geonorm_version": geonorm.__version__,
        "geonorm_checkpoint": "last.ckpt",
        "geonorm_norm": "{}",
        "geonorm_core_px": "32",
        "geonorm_halo_px": "8",
        "geonorm_halo_kind": "exact",
        "geonorm_stride_px": "2",
        "geonorm_grid_offset_px": "[2, -6]",
        "geonorm_tile_independent": "yes",
    }


@pytest.mark.parametrize("batch_size", [1, 3])
def test_two_runs_make_the_same_file(source: Path, target: Path, batch_size: int) -> None:
    other = target.with_name("other.tif")

    predict_raster(unet(), source, target, core_px=32)
    predict_raster(unet(), source, other, core_px=32, batch_size=batch_size)

    assert target.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("norm", [BatchNorm, local(window_px=5)], ids=["BN", "5 px"])
@pytest.mark.parametrize("core_px", [16, 512])
def test_the_labels_are_those_of_the_network(
    source: Path, target: Path, image: NDArray[np.uint8], norm: NormFactory, core_px: int
) -> None:
    network = unet(norm, num_classes=4)

    predict_raster(network, source, target, core_px=core_px, halo="exact")

    assert_same_labels(target, direct(network, image))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
def test_raw_values_of_any_type_are_labelled_alike(
    target: Path, tmp_path: Path, image: NDArray[np.uint8], dtype: str
) -> None:
    source, network = draw(tmp_path / "typed.tif", image.astype(dtype), first_index=FIRST_INDEX), unet()

    predict_raster(network, source, target)

    assert_same_labels(target, direct(network, image))


def test_bands_that_the_network_does_not_take_change_nothing(
    target: Path, tmp_path: Path, image: NDArray[np.uint8]
) -> None:
    five = draw(tmp_path / "five.tif", np.concatenate([image, noise(2)]), first_index=FIRST_INDEX)
    network = unet()

    predict_raster(network, five, target)

    assert_same_labels(target, direct(network, image))


@pytest.mark.parametrize("core_px", [16, 512])
def test_pixels_without_data_are_the_mean_to_the_network_and_no_class_in_the_map(
    target: Path, tmp_path: Path, image: NDArray[np.uint8], core_px: int
) -> None:
    network, holed = unet(), image.copy()
    holed[:, 20:33, 40:71] = 0
    source = draw(tmp_path / "holed.tif", holed, nodata=0, first_index=FIRST_INDEX)

    result = predict_raster(network, source, target, core_px=core_px, halo="exact")

    hole = (holed == 0).all(axis=0)
    labels, certain = direct(network, np.where(holed == 0, network.rescale.mean[:, None, None], holed))
    np.testing.assert_array_equal(labels_in(target) == NODATA_LABEL, hole)
    assert_same_labels(target, (labels, certain & ~hole))
    assert result.valid_pixels == (~hole).sum()


@pytest.mark.parametrize(("rule", "missing"), [("all", 0), ("any", 13 * 31)])
def test_the_nodata_rule_says_how_many_bands_must_miss(
    target: Path, tmp_path: Path, image: NDArray[np.uint8], rule: Any, missing: int
) -> None:
    holed = image.copy()
    holed[1, 20:33, 40:71] = 0

    predict_raster(unet(), draw(tmp_path / "holed.tif", holed, nodata=0), target, nodata_rule=rule)

    assert (labels_in(target) == NODATA_LABEL).sum() == missing


def test_the_result_counts_the_pixels_of_the_map(source: Path, target: Path) -> None:
    result = predict_raster(unet(num_classes=3), source, target)

    labels = labels_in(target)
    assert result.class_pixels == tuple((labels == label).sum() for label in range(3))
    assert result.valid_pixels == 60 * 90
    assert result.target == str(target)
    assert result.unbounded == ()


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (60, 1), (2, 3), (17, 33)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_raster_of_any_size_gets_a_map(
    target: Path, tmp_path: Path, shape: tuple[int, int], padding: Padding
) -> None:
    source = draw(tmp_path / "small.tif", noise(3, *shape))

    predict_raster(unet(depth=2, padding=padding), source, target, core_px=32)

    assert labels_in(target).shape == shape
    assert (labels_in(target) < 2).all()


def test_the_plan_is_told_before_the_work(source: Path, target: Path) -> None:
    told: list[str] = []

    def on_plan(text: str) -> None:
        assert not target.exists()
        told.append(text)

    predict_raster(unet(), source, target, core_px=32, engine="tiles", on_plan=on_plan)

    (text,) = told
    assert "60 rows x 90 columns, 3 bands, uint8" in text
    for fact in (
        "3 x 4 cores of 32 px",
        "48 px",
        "exact halo of 8 px",
        "do not depend on the tiles",
    ):
        assert fact in text
    assert f"row {FIRST_INDEX[0]}, column {FIRST_INDEX[1]}" in text


@pytest.mark.parametrize("core_px", [16, 32, 256])
@pytest.mark.parametrize("tta", ["none", "d4", "phases:4"])
def test_the_plan_says_how_much_the_network_computes(source: Path, target: Path, core_px: int, tta: str) -> None:
    network, told, computed = unet(), [], []

    def on_plan(text: str) -> None:
        told.append(text)
        network.register_forward_hook(lambda _network, given, _made: computed.append(given[0][:, 0].numel()))

    predict_raster(network, source, target, core_px=core_px, tta=tta, engine="tiles", on_plan=on_plan)

    assert f"{sum(computed) / (60 * 90):.2f} times the compute" in told[0]


# The halo


@pytest.mark.parametrize(
    ("halo", "core_px", "kind", "halo_px"),
    [
        ("auto", 64, "exact", 8),
        ("auto", 16, "exact", 8),
        ("exact", 6, "exact", 8),
        ("measured", 32, "exact", 8),
        (3, 32, "given", 3),
        (0, 32, "given", 0),
        (8, 32, "exact", 8),
        (40, 32, "exact", 40),
    ],
)
def test_the_halo_is_the_one_that_was_asked_for(
    source: Path, target: Path, halo: Any, core_px: int, kind: str, halo_px: int
) -> None:
    result = predict_raster(unet(), source, target, halo=halo, core_px=core_px)

    assert (result.halo.kind, result.halo.halo_px, result.plan.halo_px) == (kind, halo_px, halo_px)
    with rasterio.open(target) as made:
        assert made.tags()["geonorm_tile_independent"] == ("yes" if kind == "exact" else "no")


def test_auto_measures_where_the_exact_halo_is_dear(source: Path, target: Path) -> None:
    network = unet(local(window_px=31))

    result = predict_raster(network, source, target, core_px=16, engine="tiles")

    assert result.halo.kind == "measured"
    assert result.halo.mismatch is not None
    assert f"the exact halo of {result.halo.reference_px} px would cost" in result.halo.why
    assert "with --core_px 256" in result.halo.why


@pytest.mark.parametrize("halo", ["auto", "measured", 5])
def test_a_network_that_sees_everything_is_warned_of_by_name(source: Path, target: Path, halo: Any) -> None:
    with pytest.warns(GeonormWarning, match=r"labels depend on the tiles.*encoder\.0\.1 \(GroupNorm\)"):
        result = predict_raster(unet(GroupNorm), source, target, core_px=32, halo=halo)

    assert result.unbounded
    assert result.halo.kind != "exact"


# Models


def test_a_network_in_training_labels_in_evaluation_and_is_handed_back_in_training(
    source: Path, target: Path, image: NDArray[np.uint8]
) -> None:
    network = unet().train()

    predict_raster(network, source, target)

    assert network.training
    assert_same_labels(target, direct(network, image))


def test_the_weights_and_statistics_of_a_network_stay_as_they_are(source: Path, target: Path) -> None:
    network = unet().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    predict_raster(network, source, target)

    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_that_does_not_scale_is_refused(source: Path, target: Path) -> None:
    with pytest.raises(InvalidConfigError, match="Conv2d has no Rescale; give a network that takes raw band values"):
        predict_raster(nn.Conv2d(3, 2, 1), source, target)

    assert not list(target.parent.iterdir())


def test_pixels_much_larger_than_those_of_the_training_are_warned_of(source: Path, target: Path) -> None:
    with pytest.warns(GeonormWarning, match=r"has pixels of 0\.3 m, the model was trained on 0\.1 m"):
        predict_raster(trained(unet(), resolution_m=0.1), source, target)


@pytest.mark.parametrize("resolution_m", [None, 0.21, 0.3, 0.44])
def test_pixels_of_about_the_training_are_not_warned_of(source: Path, target: Path, resolution_m: float | None) -> None:
    predict_raster(trained(unet(), resolution_m=resolution_m), source, target)


@pytest.mark.parametrize("resolution_m", [0.19, 0.46, 30.0])
def test_pixels_beyond_a_factor_of_one_and_a_half_are_warned_of(
    source: Path, target: Path, resolution_m: float
) -> None:
    with pytest.warns(GeonormWarning, match="expect poor labels"):
        predict_raster(trained(unet(), resolution_m=resolution_m), source, target)


# What is refused


def test_a_map_that_exists_is_left_alone(source: Path, target: Path) -> None:
    target.write_bytes(b"precious")

    with pytest.raises(TargetExistsError, match=r"exists\. Choose another name"):
        predict_raster(unet(), source, target)

    assert target.read_bytes() == b"precious"
    assert list(target.parent.iterdir()) == [target]


def test_a_map_that_exists_is_replaced_if_asked_to(source: Path, target: Path) -> None:
    target.write_bytes(b"precious")

    predict_raster(unet(), source, target, overwrite=True)

    assert labels_in(target).shape == (60, 90)
    assert list(target.parent.iterdir()) == [target]


def test_too_few_bands_are_one_line(source: Path, target: Path) -> None:
    with pytest.raises(RasterError, match=r"has 3 band\(s\)") as caught:
        predict_raster(unet(bands=4), source, target)

    assert "\n" not in str(caught.value)
    assert not list(target.parent.iterdir())


def test_a_file_that_is_not_there_is_one_line(target: Path, tmp_path: Path) -> None:
    with pytest.raises(RasterError, match="there is no file"):
        predict_raster(unet(), tmp_path / "nowhere.tif", target)

    assert not list(target.parent.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        {"core_px": 0},
        {"core_px": -2},
        {"core_px": 511},
        {"halo": -1},
        {"halo": "exakt"},
        {"batch_size": 0},
        {"batch_size": -1},
        {"nodata_rule": "some"},
        {"tta": "d5"},
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_one_line(source: Path, target: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        predict_raster(unet(), source, target, **settings)

    (name,) = settings
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_network_that_fails_half_way_leaves_nothing_behind(source: Path, target: Path, overwrite: bool) -> None:
    class Failing(UNet):
        calls = 0

        def forward(self, image: Tensor) -> Tensor:
            if not image.is_meta:
                self.calls += 1
                if self.calls > 5:
                    raise RuntimeError("the lights went out")
            return super().forward(image)

    if overwrite:
        target.write_bytes(b"precious")
    network = Failing(3, 2, norm=BatchNorm, depth=1, width=4)

    with pytest.raises(RuntimeError, match="the lights went out"):
        predict_raster(network, source, target, core_px=16, engine="tiles", overwrite=overwrite)

    assert [path.read_bytes() for path in target.parent.iterdir()] == [b"precious"] * overwrite


@pytest.mark.parametrize("overwrite", [False, True])
def test_rows_that_fail_half_way_leave_nothing_behind(
    source: Path, target: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[int] = []

    def push(run: RowRun, rows: Tensor) -> Tensor | None:
        pushed.append(rows.shape[2])
        if sum(pushed) > 30:
            raise RuntimeError("the lights went out")
        return usual(run, rows)

    if overwrite:
        target.write_bytes(b"precious")
    usual = RowRun.push
    work = partial(predict_raster, unet(), source, target, engine="rows", overwrite=overwrite)
    monkeypatch.setattr(RowPredictor, "_try", lambda *_: None)  # it pushes, too
    monkeypatch.setattr(RowRun, "push", push)
    monkeypatch.setattr(engines, "STEP_PX", 16)

    with pytest.raises(RuntimeError, match="the lights went out"):
        work()

    assert [path.read_bytes() for path in target.parent.iterdir()] == [b"precious"] * overwrite


# Rows or tiles


@pytest.fixture
def usual_engine(monkeypatch: pytest.MonkeyPatch, both_engines: None) -> None:
    """Choose as for a user, of small steps."""
    monkeypatch.setattr(
        Options.__init__, "__kwdefaults__", {**(Options.__init__.__kwdefaults__ or {}), "engine": "auto"}
    )
    monkeypatch.setattr(engines, "WORTH_IT", 0.95)
    monkeypatch.setattr(engines, "STEP_PX", 16)


@pytest.mark.parametrize("norm", [BatchNorm, local(window_px=5)], ids=["BN", "5 px"])
@pytest.mark.parametrize("outputs", [("labels",), ("logits", "labels", "probabilities")])
def test_rows_and_tiles_make_the_same_map(source: Path, target: Path, norm: NormFactory, outputs: Any) -> None:
    found = {}
    for engine in ("rows", "tiles"):
        settings = {"core_px": 16, "halo": "exact", "engine": engine, "outputs": outputs, "overwrite": True}
        predict_raster(unet(norm), source, target, **settings)
        files = [target, *(target.with_suffix(f".{name}.tif") for name in outputs[1:])]
        found[engine] = [rasterio.open(file).read() for file in files]

    for rows, tiles in zip(found["rows"], found["tiles"], strict=True):
        np.testing.assert_array_equal(rows, tiles)


@pytest.mark.usefixtures("usual_engine")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "do not depend on the tiles"),
        ({"engine": "tiles"}, "cores of 16 px"),
        ({"core_px": 256}, "tiles, since rows cost as much"),
        ({"halo": "measured"}, "--halo measured asks for another"),
        ({"halo": 2}, "--halo 2 asks for another"),
        ({"blend": "linear"}, "tiles, since --blend linear averages tiles"),
        ({"tta": "d4"}, "tiles, since --tta d4 turns tiles"),
        ({"tta": "d4+phases:1"}, "tiles, since --tta d4+phases:1 turns tiles"),
        ({"tta": "phases"}, "tiles, since --tta phases reads every tile at several phases"),
    ],
)
def test_auto_says_what_it_takes_and_why(source: Path, target: Path, settings: dict[str, Any], words: str) -> None:
    told: list[str] = []

    predict_raster(unet(), source, target, **{"core_px": 16, **settings}, on_plan=told.append)

    assert words in told[0]
    assert ("rows     16 at a time" in told[0]) == (not settings)


@pytest.mark.usefixtures("usual_engine")
@pytest.mark.parametrize(
    ("width", "norm", "step_px"),
    [
        (500, BatchNorm, 128),
        (2050, BatchNorm, 62),
        (8000, BatchNorm, 32),
        (8000, local(window_px=31), 32),
        (8000, local(window_px=91), 90),
    ],
)
def test_wide_rasters_take_fewer_rows_at_a_time_but_those_of_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, norm: NormFactory, step_px: int
) -> None:
    monkeypatch.setattr(engines, "STEP_PX", 128)
    source = draw(tmp_path / "wide.tif", noise(3, 40, width))
    told: list[str] = []

    predict_raster(unet(norm), source, tmp_path / "map.tif", engine="rows", dry_run=True, on_plan=told.append)

    assert f"rows     {step_px} at a time" in told[0]


@pytest.mark.usefixtures("usual_engine")
def test_auto_turns_tiles_at_one_phase_as_without_phases(source: Path, target: Path) -> None:
    found = {}
    for tta in ("none", "d4", "d4+phases:1"):
        predict_raster(unet(), source, target, core_px=16, tta=tta, outputs=["logits"], overwrite=True)
        found[tta] = rasterio.open(target).read()

    np.testing.assert_array_equal(found["d4+phases:1"], found["d4"])
    assert np.abs(found["d4"] - found["none"]).max() > 1e-3


def other_way_round_if_small(x: Tensor) -> Tensor:
    """Blur a map, and turn the signs of one of few rows."""
    y = F.avg_pool2d(x, 33, 1, 16)
    return -y if x.shape[-2] <= 10 else y


@pytest.mark.usefixtures("usual_engine")
def test_a_network_that_gives_something_else_by_rows_is_not_called_exact_in_tiles(source: Path, target: Path) -> None:
    network, told = Network(other_way_round_if_small), list[str]()
    assert not tile_geometry(network).unbounded

    with pytest.warns(GeonormWarning, match=r"Network \(by rows .* something else than at once\) see the whole input"):
        result = predict_raster(network, source, target, core_px=16, on_plan=told.append)

    assert result.halo.kind == "measured"
    assert result.unbounded == ("Network (by rows this network gives something else than at once)",)
    assert "engine   tiles, since by rows this network gives something else than at once" in told[0]
    assert "labels   may depend on the tiles" in told[0]
    with rasterio.open(target) as made:
        assert made.tags()["geonorm_tile_independent"] == "no"


@pytest.mark.usefixtures("usual_engine")
def test_a_network_that_gives_something_else_by_rows_has_no_exact_halo(source: Path, target: Path) -> None:
    with pytest.raises(InvalidConfigError, match="There is no exact halo: Network"):
        predict_raster(Network(other_way_round_if_small), source, target, core_px=16, halo="exact")
    with pytest.raises(InvalidConfigError, match="--engine rows cannot be: by rows this network gives something else"):
        predict_raster(Network(other_way_round_if_small), source, target, core_px=16, engine="rows")


@pytest.mark.usefixtures("usual_engine")
# That they do is what rows find out here.
@pytest.mark.filterwarnings("ignore:The labels depend on the tiles:geonorm.errors.GeonormWarning")
def test_what_rows_found_out_is_known_to_the_run_that_goes_on(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = partial(predict_raster, Network(other_way_round_if_small), source, target, core_px=16)
    expected = work()
    map_bytes = target.read_bytes()
    target.unlink()
    keep, kept = Journal.keep, list[int]()

    def keep_one(journal: Journal, row: int, layers: Any) -> None:
        if kept:
            raise RasterError("the source has gone.")
        kept.append(row)
        keep(journal, row, layers)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "keep", keep_one)
        with pytest.raises(RasterError):
            work()
    monkeypatch.setattr(RowPredictor, "__init__", lambda *_, **__: pytest.fail("it is tried again"))

    result = work()

    assert (result.unbounded, result.halo) == (expected.unbounded, expected.halo)
    assert target.read_bytes() == map_bytes


@pytest.mark.usefixtures("usual_engine")
@pytest.mark.parametrize(("data", "words"), [(0.1, r"tiles, since about \d?\d% of the raster hold data"), (1, "rows ")])
def test_auto_takes_tiles_where_little_of_the_raster_holds_data(tmp_path: Path, data: float, words: str) -> None:
    image, told = noise(3, 200, 300), list[str]()
    image[:, :, int(300 * data) :] = 0
    source = draw(tmp_path / "source.tif", image, nodata=0)

    predict_raster(unet(), source, tmp_path / "map.tif", core_px=16, on_plan=told.append)

    assert re.search(words, told[0])


@pytest.mark.usefixtures("usual_engine")
def test_auto_takes_the_exact_halo_by_rows_where_it_is_dear_by_tiles(source: Path, target: Path) -> None:
    told: list[str] = []

    result = predict_raster(unet(local(window_px=31)), source, target, core_px=16, on_plan=told.append)

    assert result.halo.kind == "exact"
    assert re.search(r"1\.\d\d times the compute, exact tiles \d\d?\.\d\d times", told[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"blend": "hann"}, "--blend hann averages tiles"),
        ({"tta": "phases:4"}, "--tta phases:4 reads every tile"),
        ({"tta": "d4+phases:1"}, "--tta d4+phases:1 turns tiles"),
        ({"halo": 2}, "rows have the exact halo of 8 px, and --halo 2 asks for another"),
        ({"compile": True}, "--compile compiles"),
    ],
)
def test_rows_that_cannot_be_are_one_line(source: Path, target: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfigError, match=rf"--engine rows cannot be: {re.escape(words)}"):
        predict_raster(unet(), source, target, engine="rows", **settings)
    assert not target.exists()


def test_rows_of_a_network_that_sees_everything_are_one_line(source: Path, target: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"--engine rows cannot be: encoder\.0\.1 \(GroupNorm\)"):
        predict_raster(unet(GroupNorm), source, target, engine="rows")


@pytest.mark.usefixtures("usual_engine")
def test_where_memory_is_short_the_columns_go_through_in_blocks(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, told = unet(local(window_px=5), depth=1), list[str]()
    predict_raster(network, source, target, core_px=16, halo="exact", engine="tiles")
    expected = rasterio.open(target).read()
    monkeypatch.setattr(engines, "available_memory", lambda device: 3 * 150_000)

    predict_raster(network, source, target, core_px=16, engine="rows", overwrite=True, on_plan=told.append)

    assert re.search(r"in \d blocks of up to \d\d columns", told[0])
    np.testing.assert_array_equal(rasterio.open(target).read(), expected)


@pytest.mark.usefixtures("usual_engine")
def test_where_not_even_a_block_fits_it_is_said(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(engines, "available_memory", lambda device: 3000)

    with pytest.raises(InvalidConfigError, match="--engine rows cannot be: the rows it keeps do not fit"):
        predict_raster(unet(), source, target, core_px=16, engine="rows")
    predict_raster(unet(), source, target, core_px=16, on_plan=told.append)

    assert "tiles, since the rows it keeps do not fit" in told[0]


# Real rasters


def shape_of(path: Path) -> tuple[int, int, int]:
    """Return bands, rows and columns of a raster."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # what plain rasterio says
        with rasterio.open(path) as dataset:
            return dataset.count, dataset.height, dataset.width


@pytest.mark.real
def test_a_real_photograph_is_labelled_as_by_the_network(real_data: Path, target: Path) -> None:
    path = real_data / "buildings-rgb" / "oam-015" / "images" / "kampala1.tif"
    network, (_, height, width) = unet(depth=2), shape_of(path)
    with rasterio.open(path) as dataset:
        image = dataset.read((1, 2, 3))
    with open_raster(path) as reader:
        row, col = (-index % 4 for index in reader.grid.first_index)

    predict_raster(network, path, target, core_px=128)

    # The network alone, from the first row and column at which a cell of the world's grid begins.
    labels, certain = direct(network, image[:, row : row + (height - row) // 4 * 4, col : col + (width - col) // 4 * 4])
    certain[:24] = certain[-24:] = certain[:, :24] = certain[:, -24:] = False
    found = labels_in(target)[row : row + labels.shape[0], col : col + labels.shape[1]]
    np.testing.assert_array_equal(found[certain], labels[certain])


# Memory

PEAK = """
import resource, sys, torch
from pathlib import Path
from geonorm.inference import predict_raster
from geonorm.models import UNet, tile_geometry
from geonorm.norms import BatchNorm

torch.set_num_threads(1)
torch.manual_seed(0)
predict_raster(UNet(1, 2, norm=BatchNorm, depth=1, width=4), sys.argv[1], sys.argv[2], core_px=256)
status = Path("/proc/self/status")
if status.exists():  # getrusage would count what the parent held when it started this process
    (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    print(int(peak) * 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height_of_the_raster(tmp_path: Path) -> None:
    width, peaks = 2048, []
    for height in (2048, 8192):
        source = tmp_path / f"{height}.tif"
        options = {"tiled": True, "sparse_ok": True, "height": height, "width": width, "count": 1, "dtype": "uint8"}
        with rasterio.open(source, "w", driver="GTiff", crs=UTM, transform=place((0, 0)), **options):
            pass

        command = [sys.executable, "-c", PEAK, str(source), str(tmp_path / f"{height}-map.tif")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))

    assert peaks[1] < 1.08 * peaks[0]
