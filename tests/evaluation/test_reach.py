"""How far networks see: gradients against weights, halos against whole-image passes, and the report of both."""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.evaluation import effective_reach
from geonorm.evaluation.measures import Disagreement, no_disagreement
from geonorm.evaluation.reach import in_words
from geonorm.evaluation.reach_gradient import Mass, MassSum, gradient_bytes, gradient_sizes
from geonorm.evaluation.reach_halos import Step, bargains
from geonorm.evaluation.reach_pictures import in_cells
from geonorm.evaluation.reach_places import core_at, pixel_in, points, spans_at
from geonorm.evaluation.reach_plan import pixel_has_data, scene_of, spread
from geonorm.inference.job import as_trained
from geonorm.models import Rescale, tile_geometry
from geonorm.norms import BatchNorm, GroupNorm, NormFactory
from geonorm.raster.read import open_raster
from geonorm.tiling.plan import Network, Plan
from tests.folders import names_in
from tests.inference.rasters import draw, noise
from tests.models.networks import local, random_image, unet, with_random_values

ALIGNED = (0, 0)  # row and column of a raster's first pixel, for a stride of any size
FILES = ["halos.csv", "reach.csv", "reach.json", "reach.png"]


class Convolution(nn.Module):
    """One convolution of 5 x 5 pixels over three bands, from raw values to two logits."""

    def __init__(self, *, padding: int = 2) -> None:
        super().__init__()
        self.rescale = Rescale(3)
        self.convolution = nn.Conv2d(3, 2, kernel_size=5, padding=padding)
        with_random_values(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        return self.convolution(self.rescale(image))

    @property
    def mass(self) -> Tensor:
        """What the lead of one class owes to each pixel around, in deviations of a band."""
        first, second = self.convolution.weight.detach()
        return (first - second).abs().sum(0)


class Steps(Convolution):
    """A convolution whose logits are -1 or 1."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        return super().forward(image).sign()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return draw(tmp_path / "image.tif", noise(3), first_index=ALIGNED)


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table by the names in its head."""
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def measured(network: nn.Module, source: Path, **settings: Any) -> dict[str, Any]:
    """Return the report of a small raster, without its picture, which takes longer than all else."""
    settings = {"pixels": 5, "cores": 3, "core_px": 16, **settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geonorm.evaluation.reach.draw_reach", lambda mass, report, target: target.touch())
        return effective_reach(network, [source], source.parent / "out", **settings)


# Gradients


@pytest.mark.parametrize("padding", [0, 2])
def test_the_gradient_of_a_convolution_is_its_weights(padding: int, source: Path) -> None:
    network = Convolution(padding=padding)

    report = measured(network, source)

    rows = rows_of(source.parent / "out/reach.csv")
    rings = [network.mass[2 - far : 3 + far, 2 - far : 3 + far].sum().item() for far in range(3)]
    assert report["exact_reach_px"] == report["gradient"]["radius_px"] == 2
    assert np.cumsum([float(row["mass"]) for row in rows]) == pytest.approx(rings, rel=1e-5)
    beyond = [1 - ring / rings[-1] for ring in rings]
    assert [float(row["share_beyond"]) for row in rows] == pytest.approx(beyond, abs=1e-6)
    assert report["gradient"]["total"] == pytest.approx(rings[-1], rel=1e-5)


def test_the_gradient_lies_where_the_weights_point() -> None:
    network = Convolution()

    sizes = gradient_sizes(network, random_image(1, 3, 20, 30), (7, 11))

    expected = torch.zeros(20, 30)
    expected[5:10, 9:14] = network.mass
    torch.testing.assert_close(sizes, expected)


def test_a_gradient_is_the_slope_between_two_answers() -> None:
    network, image = unet(local(window_px=7), depth=1).double(), random_image(1, 3, 24, 24, dtype=torch.float64)
    at, step = (9, 12), 1e-3

    sizes = gradient_sizes(unet(local(window_px=7), depth=1), image, at)

    with torch.no_grad():
        lead = network(image)[0, :, at[0], at[1]].sort(descending=True).indices
        for row, col in ((9, 12), (8, 14), (13, 10)):
            slopes = 0.0
            for band in range(3):
                moved = [image.clone(), image.clone()]
                for one, sign in zip(moved, (-1, 1), strict=True):
                    one[0, band, row, col] += sign * step
                less, more = (network(one)[0, lead, at[0], at[1]] for one in moved)
                slope = (more[0] - more[1] - less[0] + less[1]) / (2 * step)
                slopes += float(slope.abs() * network.rescale.deviation[band])
            assert sizes[row, col].item() == pytest.approx(slopes, rel=1e-3)


@pytest.mark.parametrize("norm", [BatchNorm, local(window_px=9)])
def test_no_gradient_lies_beyond_what_a_pixel_can_see_and_some_lies_just_inside(norm: NormFactory) -> None:
    network = unet(norm, depth=2)
    geometry = tile_geometry(network)
    assert geometry.halo_px is not None
    side_px, found = 2 * (geometry.halo_px // 4 * 4 + 12), MassSum(geometry.halo_px + 6)

    for seed in range(3):
        for row in range(side_px // 2, side_px // 2 + geometry.stride_px):
            for col in (side_px // 2, side_px // 2 + 3):
                sizes = gradient_sizes(network, random_image(1, 3, side_px, side_px, seed=seed), (row, col))
                found.add(sizes, row, col)

    by_distance = found.mean().by_distance.sum(0)
    assert by_distance[geometry.halo_px + 1 :].sum() == 0
    assert by_distance[geometry.halo_px - 2 : geometry.halo_px + 1].sum() > 0


def test_the_network_stays_as_it_was() -> None:
    network = unet().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    gradient_sizes(network, random_image(1, 3, 8, 8), (3, 4))

    assert network.training
    assert all(value.requires_grad and value.grad is None for value in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_masses_add_up_around_the_output_pixel_and_end_at_the_radius() -> None:
    found = MassSum(2)

    for row, col in ((0, 0), (3, 4)):
        sizes = torch.zeros(4, 5)
        sizes[row, col], sizes[1, 2] = 6.0, 2.0
        found.add(sizes, row, col)

    mass = found.mean()
    assert mass.by_offset.tolist() == [[1, 0, 0, 0, 0], [0] * 5, [0, 0, 6, 0, 0], [0, 0, 0, 0, 1], [0] * 5]
    assert mass.by_distance.tolist() == [[6, 0, 2], [6, 0, 2]]


def test_distances_hold_shares_of_the_mean_and_of_the_pixel_that_sees_furthest() -> None:
    mass = Mass(by_offset=np.zeros((7, 7)), by_distance=np.array([[90.0, 9, 1, 0], [100, 0, 0, 0]]))

    assert mass.share_beyond.tolist() == [0.05, 0.005, 0, 0]
    assert [mass.distance_px(share) for share in (0.9, 0.99, 0.999)] == [0, 1, 2]
    assert [mass.furthest_px(share) for share in (0.9, 0.95, 0.999)] == [0, 1, 2]


def test_memory_for_a_gradient_is_that_of_the_maps_that_are_kept() -> None:
    class Kept(Convolution):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image).sigmoid().relu()

    plane_bytes = 40 * 40 * 4

    # What enters the convolution: three bands. What leaves the others: two classes.
    assert gradient_bytes(Convolution(), 40) == 3 * plane_bytes
    assert gradient_bytes(Kept(), 40) == (3 + 2 + 2) * plane_bytes


# Places


@pytest.mark.parametrize("first_index", [(0, 0), (-17, 3)])
def test_places_cover_every_phase_and_begin_where_cells_of_the_network_do(first_index: tuple[int, int]) -> None:
    plan = Plan(
        height=70, width=100, core_px=4, halo_px=10, network=Network(stride_px=4, least_px=4), first_index=first_index
    )

    cores = [(core_at(plan, point), pixel_in(plan, core_at(plan, point), point)) for point in islice(points(), 16)]

    assert len({(row - top, col - left) for (top, left), (row, col) in cores}) == 16
    for (top, left), _ in cores:
        assert (top + first_index[0]) % 4 == (left + first_index[1]) % 4 == 0
        assert 10 <= top <= 70 - 14
        assert 10 <= left <= 100 - 14


def test_places_stay_in_the_middle_half_of_a_raster_that_is_smaller_than_the_halo() -> None:
    plan = Plan(height=40, width=80, core_px=8, halo_px=500, network=Network(stride_px=8, least_px=8))

    rows, cols = zip(*(core_at(plan, point) for point in islice(points(), 64)), strict=True)

    assert {*rows} == {8, 16, 24}
    assert {*cols} == set(range(16, 57, 8))


def test_a_core_is_read_as_that_of_a_grid_that_begins_there() -> None:
    plan = Plan(height=70, width=100, core_px=16, halo_px=6, network=Network(stride_px=4, least_px=4))

    row, col = spans_at(plan, (8, 84))

    assert (row.core_start, row.core_stop, row.reads[0].start, row.reads[0].px) == (8, 24, 0, 32)
    assert (col.core_start, col.core_stop, col.reads[0].start, col.reads[0].px) == (84, 100, 68, 32)


def test_pixels_without_data_are_passed_over_and_rasters_get_equal_shares(tmp_path: Path) -> None:
    values = noise(3)
    values[:, :, 40:] = 0
    model, paths = as_trained(unet()), [tmp_path / "half.tif", tmp_path / "whole.tif"]
    draw(paths[0], values, nodata=0)
    draw(paths[1], noise(3, 80, 80))

    with open_raster(paths[0]) as half, open_raster(paths[1]) as whole:
        found = spread([scene_of(half, model), scene_of(whole, model)], 9, has_data=pixel_has_data)

    assert [place.scene.name for place in found] == ["half.tif"] * 5 + ["whole.tif"] * 4
    assert all(place.pixel[1] < 40 for place in found[:5])


def test_places_beyond_a_raster_of_less_than_a_cell_are_passed_over(tmp_path: Path) -> None:
    path = draw(tmp_path / "narrow.tif", noise(3, 5, 90), first_index=(1, 0))

    with open_raster(path) as reader:
        found = spread([scene_of(reader, as_trained(unet(depth=3)))], 16, has_data=pixel_has_data)

    assert {place.core[0] for place in found} == {-1}
    assert {place.pixel[0] for place in found} == {0, 1, 2, 3, 4}


# Halos


@pytest.mark.parametrize("norm", [BatchNorm, local(window_px=7)])
def test_the_figures_of_halos_are_those_of_whole_passes_over_crops(norm: NormFactory, source: Path) -> None:
    network = unet(norm, depth=1)
    image = torch.from_numpy(noise(3)).float()[None]
    halos, core_px = (0, 4, 8), 16
    exact_px = tile_geometry(network).core_halo_px
    plan = Plan(height=60, width=90, core_px=core_px, halo_px=exact_px or 0, network=Network(stride_px=2, least_px=2))

    report = measured(network, source, halos_px=halos, cores=6, core_px=core_px)

    with torch.no_grad():
        whole = network(image)
        for step in report["halos"]["steps"][:3]:
            flips, changes, halo = 0, [], step["halo_px"]
            for row, col in (core_at(plan, point) for point in islice(points(), 6)):
                crop = image[..., row - halo : row + core_px + halo, col - halo : col + core_px + halo]
                ours = network(crop)[0, :, halo : halo + core_px, halo : halo + core_px]
                theirs = whole[0, :, row : row + core_px, col : col + core_px]
                flips += int((ours.argmax(0) != theirs.argmax(0)).sum())
                changes.append((ours.softmax(0) - theirs.softmax(0))[0].abs())
            assert (step["flips"], step["flips_share"]) == (flips, flips / (6 * core_px**2))
            assert step["change_mean"] == pytest.approx(torch.stack(changes).mean().item(), abs=1e-6)
            assert step["change_max"] == pytest.approx(torch.stack(changes).max().item(), abs=1e-5)
    assert report["halos"]["steps"][0]["flips"] > 0


@pytest.mark.parametrize("first_index", [ALIGNED, (-13, 7)])
@pytest.mark.parametrize("norm", [BatchNorm, local(window_px=7)])
def test_from_the_exact_halo_on_nothing_changes(
    norm: NormFactory, first_index: tuple[int, int], tmp_path: Path
) -> None:
    network, path = unet(norm, depth=1), draw(tmp_path / "image.tif", noise(3, 90, 120), first_index=first_index)
    exact_px = tile_geometry(network).core_halo_px or 0

    report = measured(network, path, halos_px=(2, exact_px + 2, exact_px + 9))

    found = report["halos"]
    assert found["is_exact"]
    assert [step["halo_px"] for step in found["steps"]] == [2, exact_px, exact_px + 2, exact_px + 9]
    assert found["steps"][0]["change_max"] > 0
    assert [(step["flips"], step["change_max"]) for step in found["steps"][1:]] == [(0, 0.0)] * 3
    assert found["tolerances"][0]["halo_px"] <= exact_px


def test_what_sees_everything_is_held_against_the_largest_halo_and_said_to_be_so(source: Path) -> None:
    report = measured(unet(GroupNorm, depth=1), source, halos_px=(0, 4, 12), reach_px=11)

    found, [note] = report["halos"], report["notes"]
    assert (found["reference_px"], found["is_exact"]) == (12, False)
    assert [step["halo_px"] for step in found["steps"]] == [0, 4]
    assert report["gradient"]["radius_px"] == 11
    assert "GroupNorm" in note
    assert "What lies beyond is not known" in note
    assert found["tolerances"][0]["halo_px"] is None
    assert "over 4 px" in in_words(report)


def test_halos_end_where_tiles_would_read_the_whole_raster(source: Path) -> None:
    sees_all = measured(unet(GroupNorm, depth=1), source)
    bounded = measured(unet(local(window_px=31), depth=2), source)

    assert sees_all["halos"]["reference_px"] == (60 - 16) // 2
    assert [step["halo_px"] for step in sees_all["halos"]["steps"]] == [0, 16]
    assert [step["halo_px"] for step in bounded["halos"]["steps"]] == [0, 16, bounded["exact_halo_px"]]
    assert bounded["notes"][0].startswith("Halos from 20 px on cannot be told from the exact one")


def test_a_tolerance_takes_the_halo_from_which_on_it_is_kept() -> None:
    def step(halo_px: int, flips: int) -> Step:
        found = Disagreement(
            pixels=1000, flips=flips, ties=0, change_sum=0, change_max=0, counts=no_disagreement(2).counts
        )
        return Step(halo_px=halo_px, overhead=1 + halo_px / 10, found=found)

    found = bargains([step(0, 9), step(8, 1), step(16, 3), step(24, 1), step(32, 1)], (0.0, 1e-3, 3e-3, 1e-2))

    assert [one.halo_px for one in found] == [None, 24, 8, 0]
    assert [one.overhead for one in found] == [None, 3.4, 1.8, 1.0]


# The report


def test_the_report_is_written_as_json_tables_and_picture(source: Path) -> None:
    out = source.parent / "out"

    report = effective_reach(unet(local(window_px=7), depth=1), [source], out, pixels=5, cores=3, core_px=16)

    assert names_in(out) == FILES
    assert json.loads((out / "reach.json").read_text()) == report
    assert report["format"] == 1
    assert report["windows_px"] == [6, 7]
    assert [(one["pixels"], one["cores"]) for one in report["sources"]] == [(5, 3)]
    assert len(rows_of(out / "reach.csv")) == 1 + report["gradient"]["radius_px"]
    assert rows_of(out / "halos.csv")[0]["halo_px"] == "0"
    assert (out / "reach.png").read_bytes().startswith(b"\x89PNG")


def test_the_words_hold_distances_halos_and_tolerances(source: Path) -> None:
    report = measured(Convolution(), source, halos_px=(0, 1))

    lines = in_words(report).splitlines()
    assert lines[0].startswith("A pixel can see 2 px far.")
    assert any(line.split() == ["99.99", "%", "2", "px", "2", "px"] for line in lines)
    assert any(line.startswith("none  ") and "2 px" in line for line in lines)
    assert "held against 2 px, the exact halo" in "\n".join(lines)


def test_an_answer_in_steps_has_no_gradient_and_is_reported_all_the_same(source: Path) -> None:
    settings: dict[str, Any] = {"pixels": 2, "cores": 2, "core_px": 16, "reach_px": 4, "halos_px": (0, 2, 4)}

    report = effective_reach(Steps(), [source], source.parent / "out", **settings)

    assert report["gradient"]["total"] == 0
    assert {one["distance_px"] for one in report["gradient"]["shares"]} == {None}
    assert "nowhere" in in_words(report)
    assert names_in(source.parent / "out") == FILES
    json.loads((source.parent / "out/reach.json").read_text(), parse_constant=pytest.fail)


def test_two_runs_give_the_same_figures(source: Path) -> None:
    network = unet(local(window_px=7), depth=1)

    assert measured(network, source) == measured(network, source)


def test_pixels_near_the_edge_and_small_rasters_are_told(tmp_path: Path) -> None:
    large = draw(tmp_path / "large.tif", noise(3, 90, 120), first_index=ALIGNED)
    small = draw(tmp_path / "small.tif", noise(3, 30, 30), first_index=ALIGNED)

    report = effective_reach(unet(local(window_px=31)), [large, small], tmp_path / "out", pixels=4, cores=2, core_px=32)

    _, edge, too_small = report["notes"]
    assert edge.startswith("4 of the 4 pixels lie nearer to the edge")
    assert too_small == "Too small for cores of 32 px, so without halos: small.tif."
    assert [(one["pixels"], one["cores"]) for one in report["sources"]] == [(2, 2), (2, 0)]


def test_where_memory_is_short_less_is_read_and_that_is_said(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = unet(local(window_px=31))
    geometry = tile_geometry(network)
    monkeypatch.setattr("geonorm.evaluation.reach_plan.available_memory", lambda device: 2 * 10**6)

    report = measured(network, source)

    looked_px, reference_px = report["gradient"]["radius_px"], report["halos"]["reference_px"]
    assert 2 <= looked_px < (geometry.core_halo_px or 0)
    assert reference_px < (geometry.core_halo_px or 0)
    assert not report["halos"]["is_exact"]
    assert f"looked at to {looked_px} px only, of the {geometry.halo_px} px" in report["notes"][0]
    assert "does not fit into memory" in report["notes"][1]


def test_cores_shrink_until_a_raster_holds_two(source: Path) -> None:
    assert measured(unet(), source, core_px=None)["halos"]["core_px"] == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pixels": 0}, "pixels must be at least 1, got 0"),
        ({"cores": -1}, "cores must be at least 1"),
        ({"reach_px": 0}, "reach_px must be at least 1"),
        ({"core_px": 0}, "core_px must be at least 1"),
        ({"core_px": 33}, "No raster is large enough"),
        ({"core_px": 15}, "multiple of the network's stride"),
        ({"halos_px": (-1,)}, "halos_px must be at least 0"),
        ({"halos_px": ()}, "halos_px must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    settings: dict[str, Any], message: str, source: Path
) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        measured(unet(), source, **settings)

    assert names_in(source.parent) == ["image.tif"]


def test_one_halo_alone_says_nothing_of_what_sees_everything(source: Path) -> None:
    with pytest.raises(InvalidConfigError, match="at least two are needed"):
        measured(unet(GroupNorm), source, halos_px=(8,))


def test_rasters_without_data_or_with_too_few_bands_are_refused(tmp_path: Path) -> None:
    empty = draw(tmp_path / "empty.tif", 0 * noise(3), nodata=0)
    grey = draw(tmp_path / "grey.tif", noise(1))

    with pytest.raises(InvalidConfigError, match=r"No place with data was found in empty\.tif"):
        measured(unet(), empty)
    with pytest.raises(RasterError, match=r"grey\.tif has 1 band"):
        measured(unet(), grey)
    with pytest.raises(InvalidConfigError, match="no raster"):
        effective_reach(unet(), [], tmp_path / "out")
    assert names_in(tmp_path) == ["empty.tif", "grey.tif"]


def test_cells_of_the_picture_keep_the_middle_and_the_sum() -> None:
    values = np.zeros((1425, 1425))
    values[712, 712], values[0, 1424] = 9.0, 18.0

    cells, cell_px = in_cells(values)

    assert cell_px == 3
    assert (cells.sum(), cells[len(cells) // 2, len(cells) // 2], cells[0, -1]) == (3.0, 1.0, 2.0)
