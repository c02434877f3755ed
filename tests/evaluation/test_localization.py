"""Local norms in trained networks: what is written, what is measured, which window is taken, what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geonorm.data.spec import INRIA
from geonorm.errors import CheckpointError, DatasetError, GeonormError, InvalidConfigError, RasterError
from geonorm.evaluation import localize, windows
from geonorm.evaluation.localization import Localization, choose, localized, table
from geonorm.evaluation.windows import AtHalo, Measured
from geonorm.inference import predict_raster
from geonorm.models import UNet, tile_geometry
from geonorm.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, LocalContextNorm, NormFactory
from geonorm.tasks.checkpoint import TrainedModel, describe_factory, load_model, save_model
from tests.inference.rasters import draw, labels_in
from tests.models.networks import random_image, with_random_values

# That a network with norms over the whole map depends on its tiles is what is measured here.
pytestmark = pytest.mark.filterwarnings("ignore:The labels depend on the tiles")

GROUPS = partial(GroupNorm, group_size=2)
HEIGHT, WIDTH = 60, 90
TILES: dict[str, Any] = {"core_px": 16, "shift_px": 8, "halos_px": (0, 4, 12)}


def blocks(seed: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Return a mask of 0 and 1 in blocks of 10 pixels."""
    mask = np.random.default_rng(seed).random((-(-height // 10), -(-width // 10))) < 0.4
    return mask.repeat(10, 0).repeat(10, 1)[:height, :width].astype(np.uint8)


def draw_scene(folder: Path, name: str, *, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> tuple[str, str]:
    """Write an image that is brighter to the right, with a corner without data, and its mask."""
    random, mask = np.random.default_rng(seed), blocks(seed, height, width)
    image = random.integers(1, 60, (3, height, width)) + 80 * mask + np.linspace(0, 100, width)[None, None]
    image[:, -9:, -7:] = 0
    for part in ("images", "gt"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    paths = folder / "images" / f"{name}.tif", folder / "gt" / f"{name}.tif"
    draw(paths[0], image.astype(np.uint8), nodata=0)
    draw(paths[1], mask[None] * 255)
    return str(paths[0]), str(paths[1])


@pytest.fixture
def scene(tmp_path: Path) -> tuple[str, str]:
    """An image of 60 x 90 pixels and its mask."""
    return draw_scene(tmp_path / "scenes", "austin1")


def save_trained(path: Path, norm: NormFactory, *, depth: int = 1) -> Path:
    """Write a checkpoint of a tiny U-Net that calls about half of all pixels buildings."""
    make = partial(UNet, depth=depth, width=4)
    network = with_random_values(make(3, 2, norm=norm)).eval()
    with torch.no_grad():
        logits = network(random_image(1, 3, 32, 32))
        network.get_parameter("head.bias").sub_(logits.transpose(0, 1).flatten(1).median(1).values)
    described = describe_factory(make, role="network"), describe_factory(norm, role="norm")
    model = TrainedModel(
        network=network, spec=INRIA, network_path=described[0], norm_path=described[1], name="", version=""
    )
    save_model(model, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A network with Group Norm."""
    return save_trained(tmp_path / "gn.ckpt", GROUPS)


def whole_map(model: TrainedModel, source: str, target: Path) -> NDArray[np.uint8]:
    """Return the map of one tile that holds the whole raster."""
    predict_raster(model, source, target, core_px=128, halo=128)
    return labels_in(target)


def iou_of_maps(labels: Sequence[NDArray[np.uint8]], masks: Sequence[NDArray[np.uint8]]) -> float:
    """Return the IoU of buildings over several maps, from summed counts."""
    found = [(one[one != 255] == 1, mask[one != 255] == 1) for one, mask in zip(labels, masks, strict=True)]
    both = sum(int((called & truth).sum()) for called, truth in found)
    return both / sum(int((called | truth).sum()) for called, truth in found)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is written


def by_hand(network: Any, window_px: int) -> UNet:
    """Return a U-Net of depth 1 with each of its norms swapped by hand."""
    made = UNet(3, 2, norm=partial(LocalContextNorm, window_px=window_px, group_size=2), depth=1, width=4)
    made.load_state_dict(network.state_dict())
    return made.eval()


def test_one_window_without_sources_is_written_as_swapped_by_hand(tmp_path: Path, checkpoint: Path) -> None:
    found = localize(checkpoint, tmp_path / "local.ckpt", windows_px=[9])

    model, image = load_model(tmp_path / "local.ckpt"), random_image(1, 3, HEIGHT, WIDTH)
    assert torch.equal(model.network(image), by_hand(load_model(checkpoint).network, 9)(image))
    assert model.localized_px == found.window_px == 9
    assert found.target == str(tmp_path / "local.ckpt")
    assert found.report is None
    assert {path.name for path in tmp_path.iterdir()} == {"gn.ckpt", "local.ckpt"}


@pytest.mark.parametrize(("norm", "group_size"), [(InstanceNorm, 1), (LayerNorm, 8)])
def test_instance_and_layer_norm_keep_their_channels(tmp_path: Path, norm: NormFactory, group_size: int) -> None:
    localize(save_trained(tmp_path / "m.ckpt", norm), tmp_path / "local.ckpt", windows_px=[9])

    modules = load_model(tmp_path / "local.ckpt").network.modules()
    assert max(module.group_size for module in modules if isinstance(module, LocalContextNorm)) == group_size


def test_a_localized_network_predicts_the_whole_image_pass_bit_for_bit(
    tmp_path: Path, checkpoint: Path, scene: tuple[str, str]
) -> None:
    localize(checkpoint, tmp_path / "local.ckpt", windows_px=[5])
    model = load_model(tmp_path / "local.ckpt")

    predict_raster(model, scene[0], tmp_path / "tiled.tif", core_px=4, halo="exact")

    assert np.array_equal(labels_in(tmp_path / "tiled.tif"), whole_map(model, scene[0], tmp_path / "whole.tif"))


# What is measured


def measured(tmp_path: Path, checkpoint: Path, scene: tuple[str, str], *windows_px: int, **more: Any) -> Localization:
    settings = {**TILES, "tolerance": 1.0, **more}
    return localize(
        checkpoint, tmp_path / "local.ckpt", windows_px=windows_px, sources=[scene[0]], labels=[scene[1]], **settings
    )


def test_flips_and_scores_are_those_of_maps_written_one_by_one(
    tmp_path: Path, checkpoint: Path, scene: tuple[str, str]
) -> None:
    found = measured(tmp_path, checkpoint, scene, 9)

    original = load_model(checkpoint)
    whole = whole_map(original, scene[0], tmp_path / "whole.tif")
    assert found.original is not None
    for one, model in ((found.original, original), (found.windows[0], localized(original, 9))):
        answer = whole_map(model, scene[0], tmp_path / f"{one.window_px}.tif")
        assert one.iou == pytest.approx(iou_of_maps([answer], [blocks(0)]))
        assert one.differing_percent == pytest.approx(100 * (answer != whole)[whole != 255].mean())
        assert one.exact_halo_px == tile_geometry(model.network).core_halo_px
        for at in one.halos:
            maps = []
            for offset in (0, 8):
                target = tmp_path / f"{one.window_px}-{at.halo_px}-{offset}.tif"
                predict_raster(model, scene[0], target, core_px=16, halo=at.halo_px, grid_offset_px=(offset, offset))
                maps.append(labels_in(target))
            assert (at.flips, at.pixels) == (int((maps[0] != maps[1]).sum()), int((maps[0] != 255).sum()))
            assert at.iou == pytest.approx(iou_of_maps(maps[:1], [blocks(0)]))
            assert at.overhead == pytest.approx(((16 + 2 * at.halo_px) / 16) ** 2)
    assert found.original.halos[0].flips > 0
    assert found.windows[0].differing_percent > 0


def test_time_is_told_in_multiples_of_the_original(
    tmp_path: Path, checkpoint: Path, scene: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def take_time(read: Any, predict: Any, *_: Any, **__: Any) -> None:
        clock[0] += 2 if predict == "original" else 3

    monkeypatch.setattr(windows, "predictor", lambda network, device: "original")
    monkeypatch.setattr(windows, "predict_tile", take_time)
    monkeypatch.setattr(windows, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    found = measured(tmp_path, checkpoint, scene, 9)

    assert found.original is not None
    assert (found.original.time_ratio, found.windows[0].time_ratio) == (1, 1.5)


def test_from_the_exact_halo_on_nothing_flips(tmp_path: Path, checkpoint: Path, scene: tuple[str, str]) -> None:
    exact_px = tile_geometry(localized(load_model(checkpoint), 3).network).core_halo_px
    assert exact_px is not None

    found = measured(tmp_path, checkpoint, scene, 3, core_px=8, shift_px=4, halos_px=(0, exact_px))

    assert [at.flips == 0 for at in found.windows[0].halos] == [False, True]
    assert found.windows[0].steady_halo_px == exact_px
    assert found.original is not None
    assert found.original.steady_halo_px is None


def test_several_scenes_are_summed_and_small_ones_are_scored_without_tiles(tmp_path: Path, checkpoint: Path) -> None:
    scenes = [draw_scene(tmp_path / "scenes", "a1"), draw_scene(tmp_path / "scenes", "b1", seed=1, height=30, width=34)]
    sources, labels = zip(*scenes, strict=True)

    found = localize(
        checkpoint, tmp_path / "l.ckpt", windows_px=[9], sources=sources, labels=labels, tolerance=1, **TILES
    )

    model = load_model(checkpoint)
    maps = [whole_map(model, source, tmp_path / f"{index}.tif") for index, source in enumerate(sources)]
    assert found.original is not None
    assert found.original.iou == pytest.approx(iou_of_maps(maps, [blocks(0), blocks(1, 30, 34)]))
    assert {at.pixels for at in found.original.halos} == {HEIGHT * WIDTH - 9 * 7}
    assert any("b1.tif" in note and "a1.tif" not in note for note in found.notes)


def test_a_folder_brings_its_labels_along(tmp_path: Path, checkpoint: Path, scene: tuple[str, str]) -> None:
    by_files = measured(tmp_path, checkpoint, scene, 9)
    by_folder = localize(
        checkpoint, tmp_path / "l.ckpt", windows_px=[9], sources=[tmp_path / "scenes"], tolerance=1, **TILES
    )

    assert by_files.original == by_folder.original


def test_a_raster_too_large_for_one_pass_is_answered_in_tiles_and_this_is_said(
    tmp_path: Path, checkpoint: Path, scene: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "WHOLE_PIXELS", HEIGHT * WIDTH - 1)

    found = measured(tmp_path, checkpoint, scene, 9)

    assert found.original is not None
    assert found.original.iou == found.original.halos[-1].iou
    assert any("austin1.tif" in note and "halo 12 px" in note for note in found.notes)


def test_halos_grow_until_a_moved_tile_would_read_the_same(tmp_path: Path, checkpoint: Path) -> None:
    source, _ = draw_scene(tmp_path, "wide", height=176, width=190)

    found = localize(
        checkpoint, tmp_path / "l.ckpt", windows_px=[9], sources=[source], core_px=32, shift_px=16, tolerance=1
    )

    assert found.original is not None
    assert [at.halo_px for at in found.original.halos] == [0, 64]
    assert all(at.flips > 0 for at in found.original.halos)


def test_without_labels_there_is_no_iou(tmp_path: Path, checkpoint: Path, scene: tuple[str, str]) -> None:
    found = localize(checkpoint, tmp_path / "l.ckpt", windows_px=[9], sources=[scene[0]], tolerance=1, **TILES)

    assert found.original is not None
    assert found.original.iou is None
    assert {at.iou for at in found.original.halos} == {None}
    assert "-" in table(found).splitlines()[1].split()


def test_the_report_holds_what_is_returned(tmp_path: Path, checkpoint: Path, scene: tuple[str, str]) -> None:
    found = measured(tmp_path, checkpoint, scene, 9, 5)

    content = json.loads((tmp_path / "local.ckpt.json").read_text())
    assert found.report == str(tmp_path / "local.ckpt.json")
    assert [one["window_px"] for one in content["windows"]] == [5, 9]
    assert content["original"]["halos"][0]["flips"] == (found.original.halos[0].flips if found.original else None)
    assert content["windows"][0]["steady_halo_px"] == found.windows[0].steady_halo_px
    assert (content["window_px"], content["why"]) == (found.window_px, found.why)
    assert (content["checkpoint"], content["core_px"]) == ("gn.ckpt", 16)
    lines = table(found).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["network", "original", "window 5 px", "window 9 px"]


# Which window is taken


def figures(window_px: int | None, flips: int, *, iou: float | None = None, differing: float = 0.0) -> Measured:
    """Return made-up figures of a window with these flips at its largest halo."""
    halos = tuple(
        AtHalo(
            halo_px=halo_px,
            overhead=1.0,
            pixels=100_000,
            flips=count,
            flips_percent=count / 1000,
            change_mean=0.0,
            iou=iou,
        )
        for halo_px, count in ((0, 5000), (64, flips))
    )
    return Measured(
        window_px=window_px, exact_halo_px=None, iou=iou, differing_percent=differing, time_ratio=2.0, halos=halos
    )


@pytest.mark.parametrize(
    ("windows", "taken"),
    [
        ([(129, 3, 0.45), (385, 20, 0.495), (513, 30, 0.52)], 385),
        ([(385, 30, 0.50), (513, 20, 0.50)], 513),
        ([(385, 20, 0.495), (513, 20, 0.50)], 385),
        ([(385, 20, 0.48), (513, 30, 0.48)], None),
        ([(385, 100, 0.50), (513, 101, 0.50)], None),
    ],
    ids=[
        "fewest flips of the good",
        "not the smallest",
        "the smallest of equals",
        "none is good",
        "none flips less than the original",
    ],
)
def test_the_most_consistent_window_of_those_as_good_as_the_original_is_taken(
    windows: list[tuple[int, int, float]], taken: int | None
) -> None:
    original = figures(None, 100, iou=0.5)

    best, why = choose(original, [figures(px, flips, iou=iou) for px, flips, iou in windows], tolerance=0.01)

    assert (None if best is None else best.window_px) == taken
    assert "IoU at most 0.01 below the original's 0.5000" in why
    assert taken is not None or "--model.localize_px" in why


@pytest.mark.parametrize(("differing", "taken"), [(0.9, 129), (1.1, 385)])
def test_without_labels_equal_labels_count(differing: float, taken: int) -> None:
    windows = [figures(129, 3, differing=differing), figures(385, 20, differing=0.5)]

    best, why = choose(figures(None, 100), windows, tolerance=0.01)

    assert best is not None
    assert best.window_px == taken
    assert "at most 1 % of the labels" in why


@pytest.mark.parametrize(
    ("flips", "steady"), [((500, 9, 0), 64), ((9, 500, 0), 128), ((0, 0, 0), 0), ((0, 0, 10), None)]
)
def test_flips_are_steady_from_where_they_stay_low(flips: tuple[int, ...], steady: int | None) -> None:
    halos = tuple(
        AtHalo(
            halo_px=64 * step,
            overhead=1.0,
            pixels=100_000,
            flips=count,
            flips_percent=count / 1000,
            change_mean=0.0,
            iou=None,
        )
        for step, count in enumerate(flips)
    )

    one = Measured(window_px=9, exact_halo_px=0, iou=None, differing_percent=0.0, time_ratio=1.0, halos=halos)

    assert one.steady_halo_px == steady


def test_a_window_larger_than_the_image_changes_nothing_so_none_is_written(
    tmp_path: Path, checkpoint: Path, scene: tuple[str, str]
) -> None:
    found = measured(tmp_path, checkpoint, scene, 1000)

    assert found.original is not None
    assert found.windows[0].differing_percent == 0
    assert found.windows[0].iou == found.original.iou
    assert [at.flips for at in found.windows[0].halos] == [at.flips for at in found.original.halos]
    assert (found.target, found.window_px) == (None, None)
    assert not (tmp_path / "local.ckpt").exists()
    assert (tmp_path / "local.ckpt.json").exists()


def test_the_window_that_is_taken_is_the_one_written(tmp_path: Path, checkpoint: Path, scene: tuple[str, str]) -> None:
    settings: dict[str, Any] = {"windows_px": [3, 21], "sources": [scene[0]], **TILES}
    small, large = localize(checkpoint, tmp_path / "any.ckpt", tolerance=1, **settings).windows
    between = (small.differing_percent + large.differing_percent) / 200

    found = localize(checkpoint, tmp_path / "local.ckpt", tolerance=between, **settings)

    assert load_model(tmp_path / "any.ckpt").localized_px == 3
    assert load_model(tmp_path / "local.ckpt").localized_px == found.window_px == 21


# What is refused


def refused(kind: type[GeonormError], folder: Path, *arguments: Any, match: str, **settings: Any) -> None:
    """Check that a call is one line, and leaves everything as it was."""
    before = contents(folder)

    with pytest.raises(kind, match=match) as caught:
        localize(*arguments, **settings)

    assert "\n" not in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize("norm", [BatchNorm, partial(LocalContextNorm, window_px=9, group_size=2)], ids=["BN", "LCN"])
def test_a_network_without_norms_over_the_map_is_refused(tmp_path: Path, norm: NormFactory) -> None:
    path = save_trained(tmp_path / "m.ckpt", norm)

    refused(InvalidConfigError, tmp_path, path, tmp_path / "l.ckpt", windows_px=[9], match="no GroupNorm")


def test_a_network_that_is_local_already_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    localize(checkpoint, tmp_path / "l.ckpt", windows_px=[9])

    refused(InvalidConfigError, tmp_path, tmp_path / "l.ckpt", tmp_path / "m.ckpt", windows_px=[5], match="is local")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"windows_px": [0]}, "window_px must be at least 1"),
        ({"windows_px": []}, "at least one window"),
        ({"windows_px": [5, 9], "sources": [], "labels": []}, "Without sources nothing can be measured"),
        ({"sources": []}, "Without sources nothing can be measured"),
        ({"sources": [], "labels": [], "report": "report.json"}, "Without sources nothing can be measured"),
        ({"labels": ["a.tif", "b.tif"]}, "got 2 for 1"),
        ({"tolerance": 1.5}, "tolerance is a share"),
        ({"core_px": 15}, "stride of 2 px"),
        ({"shift_px": 7}, "stride of 2 px"),
        ({"shift_px": 16}, "must move the grid"),
        ({"halos_px": [-2]}, "0 px or more"),
        ({"halos_px": []}, "0 px or more"),
        ({"halos_px": [20]}, "below 64 px, and the largest has 60 px"),
        ({"core_px": 32}, "below 64 px"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_one_line(
    tmp_path: Path, checkpoint: Path, scene: tuple[str, str], settings: dict[str, Any], match: str
) -> None:
    settings = {"windows_px": [9], "sources": [scene[0]], "labels": [scene[1]], **TILES, **settings}

    refused(InvalidConfigError, tmp_path, checkpoint, tmp_path / "l.ckpt", match=match, **settings)


def test_files_that_are_in_the_way_stay(tmp_path: Path, checkpoint: Path, scene: tuple[str, str]) -> None:
    (tmp_path / "old.ckpt").write_text("old")
    (tmp_path / "new.ckpt.json").write_text("old")
    sources = {"sources": [scene[0]], "windows_px": [9]}

    refused(GeonormError, tmp_path, checkpoint, tmp_path / "old.ckpt", windows_px=[9], match=r"old\.ckpt exists")
    refused(GeonormError, tmp_path, checkpoint, tmp_path / "new.ckpt", match=r"new\.ckpt\.json exists", **sources)
    refused(InvalidConfigError, tmp_path, checkpoint, checkpoint, windows_px=[9], overwrite=True, match="must stay")
    refused(InvalidConfigError, tmp_path, checkpoint, tmp_path, windows_px=[9], match="is a folder")
    refused(InvalidConfigError, tmp_path, checkpoint, tmp_path / "no/l.ckpt", windows_px=[9], match="no folder")


def test_files_are_replaced_if_asked_to(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "old.ckpt").write_text("old")

    localize(checkpoint, tmp_path / "old.ckpt", windows_px=[9], overwrite=True)

    assert load_model(tmp_path / "old.ckpt").localized_px == 9


def test_files_that_cannot_be_used_are_one_line(tmp_path: Path, checkpoint: Path, scene: tuple[str, str]) -> None:
    sevens = draw(tmp_path / "sevens.tif", blocks(0)[None] * 7)
    small = draw(tmp_path / "small.tif", blocks(0, 50, 90)[None])
    grey = draw(tmp_path / "grey.tif", blocks(0)[None])
    target, window = tmp_path / "l.ckpt", {"windows_px": [9], **TILES}
    for kind, source, labels, match in (
        (RasterError, tmp_path / "no.tif", scene[1], r"no\.tif"),
        (RasterError, scene[0], tmp_path / "no.tif", r"no\.tif"),
        (DatasetError, scene[0], small, r"small\.tif is 50 x 90"),
        (DatasetError, scene[0], sevens, "holds the value 7"),
        (RasterError, grey, scene[1], "1 band"),
    ):
        refused(kind, tmp_path, checkpoint, target, sources=[source], labels=[labels], match=match, **window)
    refused(CheckpointError, tmp_path, tmp_path / "no.ckpt", target, match="does not exist", **window)
    folder = {"sources": [tmp_path / "scenes", scene[0]], **window}
    refused(InvalidConfigError, tmp_path, checkpoint, target, match="brings its labels along", **folder)
