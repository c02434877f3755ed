"""Consistency under moved grids: streams that fit together, figures that can be made again from maps."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geonorm.cli import shift
from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.evaluation import shift_consistency, shift_run
from geonorm.evaluation.grids import Way, rows_together
from geonorm.evaluation.neighbours import neighbour_strips
from geonorm.evaluation.shift import CROPS_PX, MEASURES
from geonorm.evaluation.shift_maps import Report
from geonorm.evaluation.shift_tables import table
from geonorm.evaluation.subjects import named_checkpoints, short_names
from geonorm.files import make_folder, only_one
from geonorm.inference import predict_raster
from geonorm.inference.job import as_trained, prepare
from geonorm.models import UNet
from geonorm.norms import BatchNorm, GroupNorm, LocalContextNorm, NormFactory
from geonorm.raster.read import open_raster
from geonorm.raster.window import Window
from geonorm.raster.write import write_image
from geonorm.tasks.checkpoint import TrainedModel
from geonorm.tiling.engine import Strip, view_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A drawn raster of 90 x 120 pixels with one corner without data."""
    draw = np.random.default_rng(0)
    image = draw.integers(1, 255, (3, 90, 120)).astype(np.uint8)
    image[:, :40, :30] //= 4
    image[:, 80:, 100:] = 0
    path = tmp_path / "image.tif"
    options = {"driver": "GTiff", "height": 90, "width": 120, "count": 3, "dtype": "uint8", "nodata": 0}
    transform = Affine(1.0, 0.0, 500_003.0, 0.0, -1.0, 4_000_007.0)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=transform, **options) as dataset:
        dataset.write(image)
    return path


def model(norm: NormFactory) -> TrainedModel:
    torch.manual_seed(0)
    network = UNet(3, 2, norm=norm, depth=2, width=8).eval()
    network.rescale.mean.fill_(120.0)
    network.rescale.deviation.fill_(60.0)
    return as_trained(network)


def test_rows_of_different_grids_meet_at_every_end_of_a_strip() -> None:
    rows = torch.arange(10.0).repeat(2, 3, 1).transpose(1, 2)

    def strips(*ends: int) -> Iterator[Strip]:
        for start, stop in zip((0, *ends), (*ends, 10), strict=True):
            yield Strip(start, rows[:, start:stop], np.ones((stop - start, 3), bool))

    met = list(rows_together([strips(4, 8), strips(1, 5), strips()]))

    assert [row for row, _, _ in met] == [0, 1, 4, 5, 8]
    for which in range(3):
        assert torch.equal(torch.cat([parts[which] for _, parts, _ in met], dim=1), rows)


LOCAL: list[NormFactory] = [BatchNorm, partial(LocalContextNorm, window_px=5)]
MOVED: dict[str, Any] = {"measures": ["moves"], "core_px": 32}


def run_of(report: Report) -> dict[str, Any]:
    [run] = report["runs"]
    return run


def ways(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {way["name"]: way for way in run["comparisons"]}


@pytest.mark.parametrize("norm", LOCAL)
def test_nothing_changes_where_the_halo_is_exact_but_under_unaligned_moves(
    norm: NormFactory, source: Path, tmp_path: Path
) -> None:
    report = shift_consistency(
        [model(norm)],
        [source],
        tmp_path / "out",
        shifts_px=(16, 4, 3),
        core_px=32,
        cores_px=(16, 64),
        crops_px=((3, 5), (1, 13)),
        halo="exact",
    )

    run = run_of(report)
    assert run["tile_independent"] is True
    for way in run["comparisons"]:
        assert way["pixels"] > 0, way["name"]
        if way["kind"] in ("aligned", "core", "whole", "crop"):
            assert (way["flips"], way["change_max"]) == (0, 0.0), way["name"]
    assert ways(run)["moved-3"]["change_max"] > 0


@pytest.mark.filterwarnings("error::geonorm.errors.GeonormWarning")  # what is measured needs no warning
def test_group_norm_changes_whatever_is_done_to_the_tiles(source: Path, tmp_path: Path) -> None:
    report = shift_consistency(
        [model(GroupNorm)], [source], tmp_path / "out", shifts_px=(16,), core_px=32, cores_px=(64,), halo=8
    )

    run = run_of(report)
    assert any("GroupNorm" in name for name in run["unbounded"])
    assert run["tile_independent"] is False
    for name in ("moved-16", "core-64", "whole", "crop-3-5", "neighbour"):
        assert ways(run)[name]["change_max"] > 0, name


def test_norms_as_in_training_change_batch_norm_alone(source: Path, tmp_path: Path) -> None:
    found = {}
    for name, norm in (("bn", BatchNorm), ("lcn", LOCAL[1])):
        report = shift_consistency([model(norm)], [source], tmp_path / name, measures=["train"], core_px=32)
        found[name] = ways(run_of(report))["train"]["change_max"]

    assert found["bn"] > 0.01
    assert found["lcn"] < 1e-5


def map_of(folder: Path, name: str, band: int = 1) -> Any:
    with rasterio.open(folder / name) as dataset:
        return dataset.read(band)


def test_maps_are_those_of_predict(source: Path, tmp_path: Path) -> None:
    trained, out = model(GroupNorm), tmp_path / "out"

    with suppress(GeonormWarning):
        report = shift_consistency([trained], [source], out, shifts_px=(3,), halo=8, **MOVED)

    run = run_of(report)
    for offset, name in ((0, run["files"]["map"]), (3, ways(run)["moved-3"]["files"]["map"])):
        target = tmp_path / f"{offset}.tif"
        with pytest.warns(GeonormWarning):
            predict_raster(trained, source, target, core_px=32, halo=8, grid_offset_px=(offset, offset))
        assert np.array_equal(map_of(out, name), map_of(tmp_path, target.name))


def test_a_crop_is_labelled_as_a_file_cut_out_would_be(source: Path, tmp_path: Path) -> None:
    trained, out = model(GroupNorm), tmp_path / "out"
    report = shift_consistency([trained], [source], out, measures=["crops"], crops_px=((3, 5),), core_px=32, halo=8)
    with rasterio.open(source) as dataset:
        image, profile = dataset.read()[:, 3:, 5:], dataset.profile
        place = dataset.transform @ Affine.translation(5, 3)
    profile.update(height=image.shape[1], width=image.shape[2], transform=place)
    with rasterio.open(tmp_path / "crop.tif", "w", **profile) as dataset:
        dataset.write(image)
    with pytest.warns(GeonormWarning):
        predict_raster(trained, tmp_path / "crop.tif", tmp_path / "map.tif", core_px=32, halo=8)

    way = ways(run_of(report))["crop-3-5"]
    labels, flips = (map_of(out, way["files"]["map"], band) for band in (1, 2))
    expected = map_of(tmp_path, "map.tif")
    compared = flips[3:, 5:] != 255
    assert np.array_equal(labels[3:, 5:][compared], expected[compared])
    assert (flips[: 3 + 8] == 255).all()
    assert (flips[:, : 5 + 8] == 255).all()
    assert compared.sum() == way["pixels"] > 0


def test_a_neighbour_answers_for_the_pixels_that_are_nearest_to_it(source: Path, tmp_path: Path) -> None:
    """Against each tile by itself, and loops over pixels."""
    with open_raster(source) as reader:
        with pytest.warns(GeonormWarning):
            job = prepare(model(GroupNorm), reader, core_px=32, halo=8)
        strips = list(neighbour_strips(job))
        found = torch.cat([strip.output for strip in strips], dim=1)
        valid = np.concatenate([strip.valid for strip in strips])
        rows, cols = ([*axis.spans()] for axis in job.plan.axes)
        tiles = {
            (r, c): job.predict(
                view_of(reader.read, job.plan, row, [col], fill=job.fill).tiles(row.reads[0], [col.reads[0]])
            )[0]
            for r, row in enumerate(rows)
            for c, col in enumerate(cols)
        }
        data = reader.read(Window(0, 0, 90, 120)).valid
    for y in range(90):
        for x in range(0, 120, 3):
            [r] = [i for i, row in enumerate(rows) if row.core_start <= y < row.core_stop]
            [c] = [i for i, col in enumerate(cols) if col.core_start <= x < col.core_stop]
            beside = [
                (x - cols[c].core_start + 1, (r, c - 1)),
                (cols[c].core_stop - x, (r, c + 1)),
                (y - rows[r].core_start + 1, (r - 1, c)),
                (rows[r].core_stop - y, (r + 1, c)),
            ]
            there = [(distance, tile) for distance, tile in beside if tile in tiles]
            distance, tile = min(there, key=lambda one: one[0])
            assert valid[y, x] == (data[y, x] and distance <= 8)
            if valid[y, x]:
                row, col = rows[tile[0]], cols[tile[1]]
                expected = tiles[tile][:, y - row.reads[0].start, x - col.reads[0].start]
                assert torch.equal(found[:, y, x], expected)


def test_figures_can_be_made_again_from_the_maps_with_numpy(source: Path, tmp_path: Path) -> None:
    out, truth = tmp_path / "out", tmp_path / "truth.tif"
    with rasterio.open(source) as dataset:
        profile = dataset.profile | {"count": 1, "nodata": None}
    labels = np.random.default_rng(1).integers(0, 2, (90, 120)).astype(np.uint8)
    with rasterio.open(truth, "w", **profile) as dataset:
        dataset.write(labels * 255, 1)

    report = shift_consistency(
        [model(GroupNorm)], [source], out, labels=[truth], core_px=32, cores_px=(16,), shifts_px=(16, 3), halo=8
    )

    run = run_of(report)
    rest = map_of(out, run["files"]["map"])
    for way in run["comparisons"]:
        other, flips = (map_of(out, way["files"]["map"], band) for band in (1, 2))
        change = map_of(out, way["files"]["change"]).astype(np.float64)
        counts = flips != 255
        differs = counts & (rest != other)
        assert (way["pixels"], way["flips"], way["ties"]) == (counts.sum(), differs.sum(), (flips == 2).sum())
        assert np.array_equal(differs, counts & (flips > 0))
        assert way["change_max"] == change[counts].max()
        assert way["change_mean"] == pytest.approx(change[counts].mean(), rel=1e-9)
        for label, iou in enumerate(way["iou_between_maps"]):
            one, two = (rest == label) & counts, (other == label) & counts
            assert iou == pytest.approx((one & two).sum() / (one | two).sum())
        assert way["consistent_and_correct_percent"] == pytest.approx(
            100 * (counts & (rest == labels) & (other == labels)).sum() / counts.sum()
        )
        inter, union = ((op(other == 1, labels == 1) & counts).sum() for op in (np.logical_and, np.logical_or))
        assert way["scores"]["iou"][1] == pytest.approx(inter / union)
        far = distances(run, way)
        edges = [*way["curve"]["from_px"], np.inf]
        for index, (low, high) in enumerate(itertools.pairwise(edges)):
            here = counts & (far >= low) & (far < high)
            assert way["curve"]["pixels"][index] == here.sum()
            assert way["curve"]["flips"][index] == (here & differs).sum()
            assert way["curve"]["change_sum"][index] == pytest.approx(change[here].sum())
            assert way["curve"]["change_max"][index] == (change[here].max() if here.any() else 0)
        on = counts & (far == 1)
        if (differs & ~on).any():
            energy = (differs & on).sum() / on.sum() / ((differs & ~on).sum() / (counts & ~on).sum())
            assert way["seam"]["energy"] == pytest.approx(energy)
        else:
            assert way["seam"]["energy"] is None
    whole = [way for way in run["comparisons"] if way["kind"] in ("aligned", "unaligned", "core", "whole")]
    grids = [float(one["scores"]["mean_iou"]) for one in (run, *whole)]
    assert run["iou_spread"] == pytest.approx(max(grids) - min(grids))


def distances(run: dict[str, Any], way: dict[str, Any]) -> Any:
    """Return how far each pixel lies from the nearest border of a core, by a loop over the borders."""
    grids = [(run["core_px"], 0)]
    grids += [(run["core_px"], way["by_px"])] if way["name"].startswith("moved") else []
    grids += [(way["by_px"], 0)] if way["kind"] == "core" else []
    far = np.full((90, 120), np.inf)
    for core_px, offset in grids:
        for axis, length in enumerate((90, 120)):
            index = np.arange(length) + run["first_index"][axis] - offset
            for line in range(1, length):
                if index[line] % core_px == 0:
                    apart = np.where(np.arange(length) >= line, np.arange(length) - line + 1, line - np.arange(length))
                    far = np.minimum(far, apart[:, None] if axis == 0 else apart[None])
    return far


def test_corner_consensus_is_that_of_four_crops(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(1, 255, (3, 520, 300)).astype(np.uint8)
    image[:, :100] //= 4
    source = tmp_path / "image.tif"
    write_image(source, image, crs="EPSG:32633", transform=Affine(1.0, 0.0, 500_003.0, 0.0, -1.0, 4_000_007.0))
    trained, out = model(GroupNorm), tmp_path / "out"

    report = shift_consistency([trained], [source], out, measures=["corners"])

    shares = []
    for top in (0, 256):
        patch = torch.from_numpy(image[None, :, top : top + 256, :256].astype(np.float32))
        with torch.no_grad():
            answers = {
                (row, col): trained.network(patch[..., row : row + 192, col : col + 192]).argmax(1)[0]
                for row in (0, 64)
                for col in (0, 64)
            }
        middles = [answer[64 - row : 192 - row, 64 - col : 192 - col] for (row, col), answer in answers.items()]
        shares.append(np.mean(np.all([(middle == middles[0]).numpy() for middle in middles], axis=0)))
    consensus = run_of(report)["corner_consensus"]
    assert consensus["patches"] == 2
    assert consensus["mean"] == pytest.approx(np.mean(shares), abs=1e-3)
    corners = np.stack([map_of(out, consensus["files"]["map"], band) for band in (1, 2, 3, 4)])
    seen = corners[0] != 255
    assert seen.sum() == 2 * 128**2
    assert (corners == corners[:1]).all(0)[seen].mean() == pytest.approx(consensus["mean"])


def test_the_report_is_written_in_four_forms(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    report = shift_consistency([model(BatchNorm)], [source], out, shifts_px=(16,), **MOVED)

    assert json.loads((out / "report.json").read_text()) == report
    lines = list(csv.DictReader((out / "report.csv").read_text().splitlines()))
    assert [line["way"] for line in lines] == ["rest", "moved-16"]
    assert (lines[1]["flips"], lines[1]["seam_energy"]) == ("0", "")
    assert "| model |" in (out / "report.md").read_text()
    page = (out / "report.html").read_text()
    assert all(f'href="./{name}"' in page for name in ("report.json", "report.csv", run_of(report)["files"]["map"]))
    assert "grid moved by 16 px" in table(report)


def test_what_is_done_is_not_done_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, out = model(BatchNorm), tmp_path / "out"
    first = shift_consistency([trained], [source], out, shifts_px=(16, 3), **MOVED)
    calls: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return kept(*args, **options)

    kept = shift_run._compared
    monkeypatch.setattr(shift_run, "_compared", counted)

    assert shift_consistency([trained], [source], out, shifts_px=(16, 3), **MOVED) == first
    assert not calls
    more = shift_consistency([trained], [source], out, shifts_px=(16, 3, 4), **MOVED)
    assert len(calls) == 1
    assert {way["name"] for way in run_of(more)["comparisons"]} == {"moved-16", "moved-4", "moved-3"}


def test_an_interrupted_measurement_goes_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    trained, out = model(BatchNorm), tmp_path / "out"
    kept = shift_run._compared

    def breaking(way: Any, *args: Any, **options: Any) -> Any:
        if way.name == "moved-3":
            raise KeyboardInterrupt
        return kept(way, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shift_run, "_compared", breaking)
        with pytest.raises(KeyboardInterrupt):
            shift_consistency([trained], [source], out, shifts_px=(16, 3), **MOVED)
    left = sorted(path.name for path in out.rglob("*"))
    assert not [name for name in left if "moved-3" in name or name.endswith((".npy", ".tmp"))]

    report = shift_consistency([trained], [source], out, shifts_px=(16, 3), **MOVED)
    whole = shift_consistency([trained], [source], tmp_path / "other", shifts_px=(16, 3), **MOVED)
    for one, other in zip(run_of(report)["comparisons"], run_of(whole)["comparisons"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_two_processes_do_not_measure_into_one_folder(source: Path, tmp_path: Path) -> None:
    out = make_folder(tmp_path / "out")

    with only_one(out), pytest.raises(InvalidConfigError, match="another process is at work"):
        shift_consistency([model(BatchNorm)], [source], out, shifts_px=(16,), **MOVED)


def test_figures_of_other_settings_are_not_mixed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shift_consistency([model(BatchNorm)], [source], out, shifts_px=(16,), **MOVED)

    with pytest.raises(InvalidConfigError, match=r"other settings \(core_px: there 32, now 64\)"):
        shift_consistency([model(BatchNorm)], [source], out, shifts_px=(16,), measures=["moves"], core_px=64)
    shift_consistency([model(BatchNorm)], [source], out, shifts_px=(16,), measures=["moves"], core_px=64, restart=True)


def test_a_localized_network_is_said_to_be_one(source: Path, tmp_path: Path) -> None:
    local = replace(model(partial(LocalContextNorm, window_px=9)), localized_px=9)

    report = shift_consistency([local], [source], tmp_path / "out", shifts_px=(16,), halo=8, **MOVED)

    assert run_of(report)["localized_px"] == 9
    assert "(localized, 9 px)" in table(report)


def test_a_whole_image_pass_that_does_not_fit_is_left_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geonorm.evaluation.shift_run.available_memory", lambda device: 1_000_000)

    report = shift_consistency([model(BatchNorm)], [source], tmp_path / "out", measures=["whole"], core_px=32)

    assert "of the 1.0 MB of free memory" in ways(run_of(report))["whole"]["skipped"]
    assert table(report)


@pytest.mark.parametrize("shifts", [(), (32,), (16, 0)])
def test_a_move_that_leaves_the_grid_in_place_is_refused(shifts: tuple[int, ...], source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="shifts_px must move the grid"):
        shift_consistency([model(BatchNorm)], [source], tmp_path / "out", shifts_px=shifts, core_px=32)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measures": ["speed"]}, "measures must be some of moves, cores"),
        ({"measures": []}, "measures must be some of"),
        ({"cores_px": (30,)}, "multiple of the network's stride"),
        ({"labels": ["a.tif", "b.tif"]}, "one raster for each source"),
        ({"label_values": [[1]]}, "values of each of 2 classes"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    settings: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        shift_consistency([model(BatchNorm)], [source], tmp_path / "out", **{"core_px": 32, **settings})

    assert not (tmp_path / "out").exists()


def test_the_command_line_offers_every_measure_and_the_same_defaults() -> None:

    parser = argparse.ArgumentParser()
    shift.add_arguments(parser)
    options = parser.parse_args(["out", "--checkpoints", "a", "--sources", "b"])
    assert tuple(options.measures) == MEASURES
    assert tuple(options.crops_px) == tuple(",".join(map(str, crop)) for crop in CROPS_PX)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/last.ckpt"], ["last"]),
        (["lcn/logs/last.ckpt", "gn/logs/last.ckpt"], ["lcn", "gn"]),
        (["gn/best.ckpt", "gn/last.ckpt", "bn/last.ckpt"], ["gn-best", "gn-last", "bn-last"]),
        (["same.ckpt", "same.ckpt"], ["same-1", "same-2"]),
        (["", ""], ["model-1", "model-2"]),
    ],
)
def test_checkpoints_are_named_by_where_their_paths_differ(paths: list[str], names: list[str]) -> None:
    assert short_names(paths) == names


def test_a_folder_of_compare_stands_for_the_first_seed_of_each_norm(tmp_path: Path) -> None:
    for norm, seed, version in (("GN", 1, 0), ("GN", 0, 0), ("GN", 0, 10), ("GN", 0, 9), ("LCN 31", 2, 0)):
        run = tmp_path / "runs" / norm / f"seed_{seed}"
        (run / f"lightning_logs/version_{version}/checkpoints").mkdir(parents=True)
        (run / f"lightning_logs/version_{version}/checkpoints/last.ckpt").touch()
        (run / "trained").touch()
    (tmp_path / "runs/BN/seed_0").mkdir(parents=True)

    found = named_checkpoints([str(tmp_path), "SN=some/sn.ckpt", "a/last.ckpt", "b/last.ckpt"])

    last = "lightning_logs/version_{}/checkpoints/last.ckpt"
    assert found == {
        "GN": str(tmp_path / "runs/GN/seed_0" / last.format(10)),
        "LCN 31": str(tmp_path / "runs/LCN 31/seed_2" / last.format(0)),
        "SN": "some/sn.ckpt",
        "a": "a/last.ckpt",
        "b": "b/last.ckpt",
    }


def test_names_of_checkpoints_that_mean_nothing_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="holds no training of geonorm compare"):
        named_checkpoints([str(tmp_path)])
    with pytest.raises(InvalidConfigError, match="two checkpoints are called GN"):
        named_checkpoints(["GN=a.ckpt", "GN=b.ckpt"])


def test_all_phases_leave_nothing_of_any_move(source: Path, tmp_path: Path) -> None:
    report = shift_consistency(
        [model(BatchNorm)],
        [source],
        tmp_path / "out",
        shifts_px=(4, 1),
        halo="exact",
        tta=("none", "phases"),
        **MOVED,
    )

    plain, phased = report["runs"]
    assert ways(plain)["moved-1"]["change_max"] > 0
    assert [(way["flips"], way["change_max"]) for way in phased["comparisons"]] == [(0, 0.0)] * 2
    assert (phased["phases"], phased["model"]) == (16, f"{plain['model']}, phases")
    assert phased["overhead"] > 16 * plain["overhead"]


def test_a_report_takes_the_names_that_are_given(source: Path, tmp_path: Path) -> None:
    named = {"frozen": model(BatchNorm), "local": model(LOCAL[1])}

    report = shift_consistency(named, [source], tmp_path / "out", shifts_px=(16,), **MOVED)

    assert [run["model"] for run in report["runs"]] == ["frozen", "local"]
    assert (tmp_path / "out/local_image/moved-16.tif").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tta": ("none", "phases:9")}, "phases must be spread evenly"),
        ({"tta": ("sideways",)}, "tta must be none"),
        ({"crops_px": ((-1, 3),)}, "crops_px cut off at least one row"),
        ({"crops_px": ((0, 0),)}, "crops_px cut off at least one row"),
    ],
)
def test_ways_that_cannot_be_gone_are_said_before_the_first(
    settings: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        shift_consistency([model(BatchNorm)], [source], tmp_path / "out", core_px=32, **settings)

    assert not (tmp_path / "out").exists()


def test_networks_of_other_classes_do_not_stand_in_one_report(source: Path, tmp_path: Path) -> None:
    trained = model(BatchNorm)
    other = replace(trained, spec=replace(trained.spec, class_names=("sea", "land")))

    with pytest.raises(InvalidConfigError, match="cannot stand in one report"):
        shift_consistency({"a": trained, "b": other}, [source], tmp_path / "out", **MOVED)


def test_rasters_whose_names_look_alike_have_folders_of_their_own(source: Path, tmp_path: Path) -> None:
    for name in ("x 1.tif", "x_1.tif", "X-1.tif"):
        (tmp_path / name).write_bytes(source.read_bytes())

    report = shift_consistency(
        [model(BatchNorm)],
        [tmp_path / name for name in ("x 1.tif", "x_1.tif", "X-1.tif")],
        tmp_path / "out",
        shifts_px=(16,),
        **MOVED,
    )

    maps = [run["files"]["map"].casefold() for run in report["runs"]]
    assert len({*maps}) == 3
    assert all((tmp_path / "out" / run["files"]["map"]).exists() for run in report["runs"])


def test_the_spread_of_scores_is_over_the_same_pixels(source: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.tif"
    with rasterio.open(source) as dataset:
        write_image(truth, dataset.read(1) // 128, crs=dataset.crs, transform=dataset.transform)

    report = shift_consistency(
        [model(BatchNorm)], [source], tmp_path / "out", labels=[truth], core_px=32, shifts_px=(16,), halo="exact"
    )

    assert run_of(report)["scores"]["mean_iou"] is not None
    assert run_of(report)["iou_spread"] == 0


@pytest.mark.parametrize("ignored", [(), (7,)])
def test_building_masks_keep_their_buildings_whatever_is_ignored(
    ignored: tuple[int, ...], source: Path, tmp_path: Path
) -> None:
    truth, out = tmp_path / "truth.tif", tmp_path / "out"
    values = np.zeros((90, 120), np.uint8)
    values[:40], values[40:50] = 255, 7 if ignored else 0
    with rasterio.open(source) as dataset:
        write_image(truth, values, crs=dataset.crs, transform=dataset.transform)

    report = shift_consistency(
        [model(BatchNorm)], [source], out, labels=[truth], shifts_px=(16,), ignored_values=ignored, **MOVED
    )

    labels = map_of(out, run_of(report)["files"]["labels"])
    assert (labels[:40] == 1).all()
    assert (labels[40:50] == (255 if ignored else 0)).all()


def test_a_raster_whose_first_rows_have_no_data_is_measured_as_in_training(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(1, 255, (3, 90, 120)).astype(np.uint8)
    image[:, :70] = 0
    source = tmp_path / "image.tif"
    write_image(source, image, crs="EPSG:32633", transform=Affine(1, 0, 500_000, 0, -1, 4_000_000), nodata=0)

    report = shift_consistency([model(BatchNorm)], [source], tmp_path / "out", measures=["train"], core_px=32)

    assert ways(run_of(report))["train"]["pixels"] == 20 * 120


def test_nothing_is_zero_where_nothing_was_compared(tmp_path: Path) -> None:
    source = tmp_path / "image.tif"
    place = Affine(1, 0, 500_000, 0, -1, 4_000_000)
    write_image(source, np.zeros((3, 90, 120), np.uint8), crs="EPSG:32633", transform=place, nodata=0)

    report = shift_consistency([model(BatchNorm)], [source], tmp_path / "out", shifts_px=(16,), **MOVED)

    assert run_of(report)["pixels"] == 0
    assert "| - |" in (tmp_path / "out/report.md").read_text()
    assert "no pixel with data" in (tmp_path / "out/report.html").read_text()


def test_a_network_with_an_exact_halo_reads_it_whatever_it_costs(source: Path, tmp_path: Path) -> None:
    far = partial(LocalContextNorm, window_px=15)

    report = shift_consistency([model(far)], [source], tmp_path / "out", measures=["moves"], shifts_px=(4,), core_px=8)

    run = run_of(report)
    assert run["overhead"] > 4
    assert run["halo_kind"] == "exact"
    assert ways(run)["moved-4"]["flips"] == 0
    assert "px exact at" in (tmp_path / "out/report.html").read_text()


def test_a_halo_that_was_measured_is_kept(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    shift_consistency([model(GroupNorm)], [source], out, shifts_px=(16,), **MOVED)

    def again(*args: Any, **options: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr("geonorm.inference.job.choose_halo", again)
    shift_consistency([model(GroupNorm)], [source], out, shifts_px=(16, 3), **MOVED)


@pytest.mark.parametrize(
    ("cut", "words"), [((1, 13), "1 row and 13 columns cut off"), ((3, 1), "3 rows and 1 column cut off")]
)
def test_a_single_row_that_is_cut_off_is_told_as_one(cut: tuple[int, int], words: str) -> None:
    assert Way(kind="crop", by_px=cut).words == words


def test_ways_that_are_named_twice_count_once(source: Path, tmp_path: Path) -> None:
    report = shift_consistency([model(BatchNorm)], [source], tmp_path / "out", shifts_px=(16, 16), **MOVED)

    assert list(ways(run_of(report))) == ["moved-16"]
    assert len(run_of(report)["comparisons"]) == 1
