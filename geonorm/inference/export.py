"""A checkpoint as a file that runs without geonorm: ONNX, or a program of torch.export, with all there is to know."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from geonorm import __version__
from geonorm.errors import InvalidConfigError, RasterError, one_line
from geonorm.files import written_whole
from geonorm.models import TileGeometry
from geonorm.models.exported import Output, Portable, exported, quiet
from geonorm.models.onnx_program import INPUT, as_onnx, require_onnx
from geonorm.models.rescale import raw_noise, rescale_of
from geonorm.norms.portable import plain_operators
from geonorm.tasks.checkpoint import TrainedModel, load_model

KEY = "geonorm"
"""Where the facts stand: in ONNX's metadata, and as ``geonorm.json`` in a .pt2."""
TOLERANCE = 1e-3
"""Of the largest value that comes out: by so much a file may differ from the checkpoint. Usual is 1e-5 and less."""
TRIAL_PX = 256
"""Least side of the images with which a file is made and tried."""
USUAL_OVERLAP = 15
"""Percent of a tile that overlaps its neighbour, where the network has no exact halo: the default of Deepness."""

Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export_model` wrote."""

    target: Path
    size_bytes: int
    facts: dict[str, Any]
    """What the file says of itself, see docs/export.md."""
    tried_px: tuple[tuple[int, int], ...]
    """Rows and columns of the images with which the file was tried."""
    largest_error: float
    """Largest difference to the checkpoint, as a share of the largest value that comes out."""


def export_model(
    checkpoint: str | os.PathLike[str] | TrainedModel,
    target: str | os.PathLike[str],
    *,
    output: Output = "logits",
    tile_px: int | None = None,
    overwrite: bool = False,
    trust: bool = False,
) -> Exported:
    """Write a checkpoint's network as ONNX (``.onnx``) or as a program of torch.export (``.pt2``).

    Raw band values in, ``(N, bands, height, width)`` in float32, NaN where there is no data; logits or probabilities
    out. The file is opened again and held against the checkpoint on noise before it gets its name.

    Args:
        checkpoint: A checkpoint of ``geonorm fit``, or a loaded one.
        target: File to write.
        output: ``"logits"`` or ``"probabilities"`` (softmax over the classes).
        tile_px: Side of the only tiles that the file takes; None: all sizes that the network takes.
        overwrite: Replace an existing file.
        trust: See `geonorm.tasks.checkpoint.load_model`.

    Raises:
        InvalidConfigError: Another suffix, a side that the network does not take, an operator that the format lacks, a
            package that is not installed, or a file that does not compute what the checkpoint does.
        CheckpointError: See `load_model`.
        RasterError: The target exists, or cannot be written.
    """
    target = Path(target)
    write = _writer_of(target)
    if output not in get_args(Output):
        raise InvalidConfigError(f"output must be logits or probabilities, got {output!r}.")
    if target.exists() and not overwrite:
        raise RasterError(f"{target} exists already. Give overwrite to replace it, or another name.")
    model = checkpoint if isinstance(checkpoint, TrainedModel) else load_model(checkpoint, trust=trust)
    sides = _sides(model.geometry, tile_px)
    facts = facts_of(model, output=output, tile_px=tile_px)
    with written_whole(target) as made:
        run = write(made, model, facts, sides[0], output, tile_px is None)
        try:
            error = _largest_error(run, Portable(model.network, output=output), sides, len(model.spec.bands))
        except Exception as failure:  # runtimes fail in many ways
            raise InvalidConfigError(
                f"The file does not take all sizes that the checkpoint does: {one_line(failure)}. Nothing was "
                f"written; try {_other_ways(target, tile_px)}."
            ) from failure
        if not error <= TOLERANCE:
            raise InvalidConfigError(
                f"The file does not compute what the checkpoint does: values differ by {100 * error:.2g} % of the "
                f"largest, {100 * TOLERANCE:g} % would do. Nothing was written; try {_other_ways(target, tile_px)}."
            )
        size_bytes = made.stat().st_size
    return Exported(target=target, size_bytes=size_bytes, facts=facts, tried_px=sides, largest_error=error)


def facts_of(model: TrainedModel, *, output: Output, tile_px: int | None) -> dict[str, Any]:
    """Return what who runs the file has to know, as plain data."""
    spec, geometry, rescale = model.spec, model.geometry, rescale_of(model.network)
    return {
        "geonorm": __version__,
        "checkpoint": model.name,
        "step": model.step,
        "network": model.network_path,
        "norm": model.norm_path,
        "localized_px": model.localized_px,
        "input": "raw band values, float32, (batch, bands, height, width); NaN where there is no data",
        "output": output,
        "bands": list(spec.bands),
        "mean": rescale.mean.tolist(),
        "deviation": rescale.deviation.tolist(),
        "class_names": list(spec.class_names),
        "class_colors": [list(color) for color in spec.class_colors],
        "resolution_m": spec.resolution_m,
        "tile_px": tile_px,
        "least_px": _least_px(geometry, tile_px),
        "stride_px": geometry.stride_px,
        "margin_px": geometry.margin_px,
        "halo_px": geometry.core_halo_px,
        "depends_on_tiles": list(geometry.unbounded),
    }


def deepness_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that Deepness, the plugin of QGIS, reads from ONNX's metadata.

    It divides values by 255 first, which the deviation given here takes back.
    """
    bands = len(facts["bands"])
    settings = {
        "model_type": "Segmentor",
        "class_names": {str(label): name for label, name in enumerate(facts["class_names"])},
        "standardization_mean": [0.0] * bands,
        "standardization_std": [1 / 255] * bands,
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
    }
    if facts["resolution_m"]:
        settings["resolution"] = 100 * facts["resolution_m"]  # centimetres
    if facts["tile_px"]:
        settings["tile_size"] = facts["tile_px"]
        settings["tiles_overlap"] = _overlap(facts["tile_px"], facts["halo_px"], facts["stride_px"])
    return settings


def _overlap(tile_px: int, halo_px: int | None, stride_px: int) -> int:
    """Return by how many percent of their side tiles overlap: by two halos, and whole strides apart if that can be."""
    least = USUAL_OVERLAP if halo_px is None else -(-200 * halo_px // tile_px)
    fitting = (share for share in range(least, 91) if tile_px * (100 - share) % (100 * stride_px) == 0)
    return next(fitting, min(least, 90))


def _other_ways(target: Path, tile_px: int | None) -> str:
    """Return what may work where a file does not compute what the checkpoint does."""
    suffix = ".pt2" if target.suffix.lower() == ".onnx" else ".onnx"
    # A network that chooses by the size of a map cannot be written for all sizes at once.
    return f"a fixed tile_px, or a {suffix}" if tile_px is None else f"a {suffix}"


def _least_px(geometry: TileGeometry, tile_px: int | None) -> int:
    """Return the smallest side that the file takes; torch.export knows no size of which a map could be one cell."""
    return geometry.least_px + geometry.stride_px if tile_px is None else tile_px


def _sides(geometry: TileGeometry, tile_px: int | None) -> tuple[tuple[int, int], ...]:
    """Return rows and columns of the images to try; with the first one the file is made."""
    if tile_px is None:
        small, stride = geometry.read_px(TRIAL_PX), geometry.stride_px
        usual, other = (small, small + stride), (small + 2 * stride, small)
        least = _least_px(geometry, tile_px)
        return usual, other, (least, least + stride)
    fitting = geometry.read_px(tile_px)
    if fitting != tile_px:
        others = sorted({fitting, max(geometry.least_px, fitting - geometry.stride_px)})
        raise InvalidConfigError(
            f"The network takes no tiles of {tile_px} px: sides are {geometry.least_px} px plus multiples of "
            f"{geometry.stride_px}. Give tile_px={' or '.join(map(str, others))}."
        )
    return ((tile_px, tile_px),)


def _largest_error(run: Runner, network: nn.Module, sides: tuple[tuple[int, int], ...], bands: int) -> float:
    """Return by how much a file differs from the network, of noise with a pixel that has no data."""
    largest = 0.0
    for count, side in enumerate(sides, start=1):
        image = raw_noise(rescale_of(network), count, bands, *side)
        image[:, 0, side[0] // 2, side[1] // 2] = torch.nan
        with torch.no_grad():
            expected = network(image)
        error = (run(image) - expected).abs().max() / expected.abs().max()
        largest = max(largest, float(error.nan_to_num(torch.inf)))
    return largest


def _writer_of(target: Path) -> Callable[..., Runner]:
    writers = {".onnx": _write_onnx, ".pt2": _write_pt2}
    try:
        return writers[target.suffix.lower()]
    except KeyError:
        raise InvalidConfigError(
            f"The target must end with .onnx or .pt2 (torch.export), got {target.name!r}."
        ) from None


def _write_onnx(
    made: Path, model: TrainedModel, facts: dict[str, Any], side: tuple[int, int], output: Output, any_size: bool
) -> Runner:
    """Write ONNX, and return how ONNX Runtime computes it."""
    onnx, runtime = require_onnx("onnx"), require_onnx("onnxruntime")
    shape = (len(facts["bands"]), *side)
    program = as_onnx(model.network, shape, output=output, any_size=any_size, margin_px=facts["margin_px"])
    program.producer_name, program.producer_version = "geonorm", __version__
    texts = {KEY: facts, **deepness_facts(facts)}
    onnx.helper.set_model_props(program, {name: json.dumps(value) for name, value in texts.items()})
    onnx.save(program, made)

    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    session = runtime.InferenceSession(made, settings, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {INPUT: image.numpy()})[0])


def _write_pt2(
    made: Path, model: TrainedModel, facts: dict[str, Any], side: tuple[int, int], output: Output, any_size: bool
) -> Runner:
    """Write a program of torch.export, and return how torch computes it."""
    shape = (len(facts["bands"]), *side)
    try:
        with quiet(), plain_operators():
            program = exported(Portable(model.network, output=output), shape, any_size=any_size)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # names the folders of this machine
            torch.export.save(program, made, extra_files={f"{KEY}.json": json.dumps(facts)})
            again = torch.export.load(made).module()
    except Exception as error:  # exporters fail in many ways, some derived from nothing
        raise InvalidConfigError(f"torch.export does not take this network: {one_line(error)}.") from error

    def run(image: Tensor) -> Tensor:
        with torch.no_grad():
            return again(image)

    return run
