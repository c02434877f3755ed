"""What a trained model holds, sees and costs, in words."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from geonorm.inference.halo import AFFORDABLE_OVERHEAD, affordable_core_px
from geonorm.models import TileGeometry
from geonorm.models.rescale import rescale_of
from geonorm.models.row_predictor import DiffersByRowsError, RowPredictor
from geonorm.models.rows import NotByRowsError
from geonorm.norms import LocalContextNorm
from geonorm.tasks.checkpoint import Description, TrainedModel
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.plan import Plan

CORES_PX = (256, 512, 1024, 2048)
USUAL_CORE_PX = 512


def describe_model(model: TrainedModel) -> str:
    """Return bands, classes, norm, geometry, windows and the price of the exact halo, as text."""
    spec = model.spec
    geometry, rescale = model.geometry, rescale_of(model.network)
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    resolution = f"{spec.resolution_m:.3g} m" if spec.resolution_m else "not known"
    lines = [
        f"checkpoint   {model.name} (geonorm {model.version})",
        f"bands        {', '.join(spec.bands)}",
        f"scaling      mean {_numbers(rescale.mean)}, deviation {_numbers(rescale.deviation)}",
        f"classes      {', '.join(f'{label} {name}' for label, name in enumerate(spec.class_names))}",
        f"resolution   {resolution}",
        f"network      {_call(model.network_path)}, {parameters:,} parameters",
        f"norm         {_call(model.norm_path)}",
        *_localized_lines(model),
        "",
        *_geometry_lines(geometry, model.network),
        *_window_lines(model.network),
    ]
    return "\n".join(lines)


def _localized_lines(model: TrainedModel) -> list[str]:
    if model.localized_px is None:
        return []
    return [f"localized    its GN, IN and LN take their statistics over windows of {model.localized_px} px"]


def _geometry_lines(geometry: TileGeometry, network: nn.Module) -> list[str]:
    unbounded, in_rows = list(geometry.unbounded), "in rows 1x"
    if not unbounded:
        try:
            RowPredictor(network, geometry, rescale_of(network).mean.device)
        except DiffersByRowsError as error:
            unbounded.append(error.name)
        except NotByRowsError as error:
            in_rows = f"not in rows ({error})"
    lines = [
        f"stride       {geometry.stride_px} px: the tile grid moves in steps of this",
        f"margin       {geometry.margin_px} px lost on each side",
        f"input sides  {geometry.least_px} px plus multiples of {geometry.stride_px}",
    ]
    if unbounded:
        lines.append("halo         none is exact: the labels depend on the tiles, because these see the whole input:")
        lines += [f"             {name}" for name in unbounded]
        return lines
    lines.append(
        f"halo         exact at {geometry.core_halo_px} px around a core (one pixel sees {geometry.halo_px} px far)"
    )
    in_tiles = ", ".join(f"core {core}: {_overhead(geometry, core):.1f}x" for core in CORES_PX)
    lines.append(f"exact cost   {in_rows}; in tiles {in_tiles}")
    plan = Plan(height=1, width=1, core_px=geometry.stride_px, network=network_of(geometry))
    core_px = affordable_core_px(geometry, plan)
    lines.append(f"             at most {AFFORDABLE_OVERHEAD:g}x from core {core_px} on")
    if geometry.stride_px > 1:
        lines.append(f"phases       {_phases_in_words(geometry)}")
    return lines


def _phases_in_words(geometry: TileGeometry) -> str:
    """Return what it costs to average over phases of the pooling."""
    stride = geometry.stride_px
    able = [k for k in range(2, stride + 1) if stride % k == 0]
    costs = ", ".join(f"{k * k}: {k * k * _overhead(geometry, USUAL_CORE_PX, phases=k):.0f}x" for k in able)
    return (
        f"{stride * stride} of the pooling; their mean (--tta phases:N) costs at core {USUAL_CORE_PX} for N of {costs}"
    )


def _overhead(geometry: TileGeometry, core_px: int, *, phases: int = 1) -> float:
    core_px = -(-core_px // geometry.stride_px) * geometry.stride_px
    plan = Plan(height=1, width=1, core_px=core_px, network=network_of(geometry), phases=phases)
    return replace(plan, halo_px=geometry.core_halo_px or 0).overhead


def _window_lines(network: nn.Module) -> list[str]:
    local = [(name, module) for name, module in network.named_modules() if isinstance(module, LocalContextNorm)]
    if not local:
        return []
    lines = ["", "local windows (layer: cells, input pixels)"]
    for name, norm in local:
        rows, cols = norm.window
        enlarged = norm.window_px is not None and rows * norm.stride > norm.window_px + norm.stride
        note = f"   enlarged: 3 cells is the least, {norm.window_px} px were asked for" if enlarged else ""
        lines.append(f"  {name}: {rows} x {cols}, {rows * norm.stride} x {cols * norm.stride} px{note}")
    return lines


def _call(description: Description) -> str:
    if not description:
        return "not known"
    arguments = ", ".join(f"{name}={value!r}" for name, value in description.get("init_args", {}).items())
    return f"{description['class_path']}({arguments})"


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist())
