"""What a user is told of a model, in words."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from torch import nn

from geonorm.data.spec import INRIA, DatasetSpec
from geonorm.inference.info import describe_model
from geonorm.inference.job import as_trained
from geonorm.models import Rescale, tile_geometry
from geonorm.norms import BatchNorm, GroupNorm, LocalContrastNorm
from geonorm.tasks.checkpoint import TrainedModel
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.plan import Plan
from tests.models.networks import Network, local, unet


def trained(network: nn.Module, spec: DatasetSpec = INRIA) -> TrainedModel:
    """Return the network as a checkpoint would give it."""
    norm = {"class_path": "geonorm.norms.LocalContextNorm", "init_args": {"window_px": 31}}
    return replace(as_trained(network), spec=spec, norm_path=norm, name="best.ckpt", version="1.2.3")


def line_of(text: str, start: str) -> str:
    """Return the line that begins with these words."""
    (line,) = (line for line in text.splitlines() if line.strip().startswith(start))
    return line


def test_the_facts_of_a_checkpoint_are_told() -> None:
    network = unet(width=4)
    network.rescale.load_state_dict(Rescale(3, mean=[90.5, 101.0, 84.25], deviation=[40.0, 35.5, 50.0]).state_dict())

    text = describe_model(trained(network, replace(INRIA, resolution_m=0.3)))

    assert line_of(text, "checkpoint").endswith("best.ckpt (geonorm 1.2.3)")
    assert line_of(text, "bands").endswith("red, green, blue")
    assert line_of(text, "scaling").endswith("mean 90.5, 101, 84.25, deviation 40, 35.5, 50")
    assert line_of(text, "classes").endswith("0 not building, 1 building")
    assert line_of(text, "resolution").endswith("0.3 m")
    assert line_of(text, "norm").endswith("geonorm.norms.LocalContextNorm(window_px=31)")
    assert f"{sum(value.numel() for value in network.parameters()):,} parameters" in line_of(text, "network")


def test_what_is_not_known_is_said_to_be_so() -> None:
    text = describe_model(as_trained(unet()))

    assert line_of(text, "resolution").endswith("not known")
    assert line_of(text, "norm").endswith("not known")


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_stride_margin_sizes_and_halo_are_told(padding: str) -> None:
    network = unet(depth=2, padding=padding)
    geometry = tile_geometry(network)

    text = describe_model(trained(network))

    assert "4 px" in line_of(text, "stride")
    assert f"{geometry.margin_px} px lost on each side" in line_of(text, "margin")
    assert f"{geometry.least_px} px plus multiples of 4" in line_of(text, "input sides")
    assert f"exact at {geometry.core_halo_px} px" in line_of(text, "halo")
    assert f"{geometry.halo_px} px far" in line_of(text, "halo")


@pytest.mark.parametrize("norm", [BatchNorm, local(window_px=31)])
def test_the_cost_of_the_exact_halo_is_told_for_usual_cores(norm: type[nn.Module]) -> None:
    network = unet(norm, depth=2)
    geometry = tile_geometry(network)

    text = describe_model(trained(network))

    for core_px in (256, 512, 1024, 2048):
        plan = Plan(
            height=1, width=1, core_px=core_px, halo_px=geometry.core_halo_px or 0, network=network_of(geometry)
        )
        assert f"core {core_px}: {plan.overhead:.1f}x" in line_of(text, "exact cost")
    assert "in rows 1x; in tiles core 256" in line_of(text, "exact cost")
    assert "at most 4x from core" in text


def test_the_cost_of_phases_is_told_for_every_number_of_them() -> None:
    network = unet(depth=2)
    geometry = tile_geometry(network)

    line = line_of(describe_model(trained(network)), "phases")

    assert line.split()[1] == "16"
    for phases in (2, 4):
        plan = Plan(
            height=1,
            width=1,
            core_px=512,
            halo_px=geometry.core_halo_px or 0,
            network=network_of(geometry),
            phases=phases,
        )
        assert f"{plan.num_phases}: {plan.num_phases * plan.overhead:.0f}x" in line


def test_windows_are_told_in_cells_and_in_pixels_and_marked_where_they_were_enlarged() -> None:
    text = describe_model(trained(unet(local(window_px=6), depth=3, norm_at="block")))

    windows = {line.split(":")[0].strip(): line for line in text.splitlines() if " x " in line}
    assert [name for name in windows if name.startswith("encoder")] == ["encoder.0.3", "encoder.1.3", "encoder.2.3"]
    assert "7 x 7, 7 x 7 px" in windows["encoder.0.3"]
    assert "3 x 3, 6 x 6 px" in windows["encoder.1.3"]
    assert "3 x 3, 12 x 12 px" in windows["encoder.2.3"]
    assert "3 x 3, 24 x 24 px" in windows["bottom.3"]
    marked = {name for name, line in windows.items() if "enlarged" in line}
    assert marked == {"encoder.2.3", "bottom.3", "decoder.0.3"}
    assert "6 px were asked for" in windows["bottom.3"]


def test_windows_in_cells_are_told_as_they_are() -> None:
    text = describe_model(trained(unet(local(window_cells=(3, 5)), norm_at="block")))

    assert "3 x 5, 6 x 10 px" in line_of(text, "bottom.3")
    assert "enlarged" not in text


def test_a_network_without_windows_has_no_list_of_them() -> None:
    assert "windows" not in describe_model(trained(unet(BatchNorm)))


def test_that_norms_were_made_local_is_told_with_their_window() -> None:
    model = replace(trained(unet(local(window_px=9))), localized_px=9)

    assert line_of(describe_model(model), "localized").endswith("windows of 9 px")
    assert "localized" not in describe_model(trained(unet()))


def test_what_sees_everything_is_named_where_the_halo_would_stand() -> None:
    text = describe_model(trained(unet(GroupNorm, norm_at="block")))

    assert "none is exact" in line_of(text, "halo")
    for place in ("encoder.0.3", "bottom.3", "decoder.0.3"):
        assert line_of(text, f"{place} (GroupNorm)")
    assert "exact cost" not in text


def test_a_layer_that_sees_everything_by_several_operators_has_one_line() -> None:
    text = describe_model(trained(unet(partial(LocalContrastNorm, window_cells=3), norm_at="block")))

    for place in ("encoder.0.3", "bottom.3", "decoder.0.3"):
        assert line_of(text, f"{place} (LocalContrastNorm)").endswith(f"{place} (LocalContrastNorm)")


def test_a_network_that_gives_something_else_by_rows_is_named_where_the_halo_would_stand() -> None:
    text = describe_model(trained(Network(lambda x: -x if x.shape[-2] <= 10 else x)))

    assert "none is exact" in line_of(text, "halo")
    assert line_of(text, "Network (by rows this network gives something else than at once)")
    assert "exact cost" not in text
