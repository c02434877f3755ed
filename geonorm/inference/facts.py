"""What every label of a map follows from: two runs that agree in it may share their strips."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from geonorm.inference.options import Options
from geonorm.models.converted import require_openvino
from geonorm.raster.read import RasterSource

Path = str | os.PathLike[str]


def source_facts(sources: Sequence[Path]) -> dict[str, Any]:
    """Return what tells the files from others, and from themselves before they were changed."""
    files = [os.stat(source) if os.path.exists(source) else None for source in sources]
    return {
        "source": [
            os.path.abspath(source) if file else os.fspath(source) for source, file in zip(sources, files, strict=True)
        ],
        "source bytes": [file and file.st_size for file in files],
        "source's time": [file and file.st_mtime_ns for file in files],
    }


def setting_facts(network: nn.Module, reader: RasterSource, options: Options) -> dict[str, Any]:
    """Return the settings that labels follow from, and the network."""
    grid = reader.grid
    return {
        "size": [grid.height, grid.width],
        "transform": list(grid.transform)[:6],
        "weights": weights_hash(network),
        "core_px": options.core_px,
        "halo": options.halo,
        "engine": options.engine,
        "global_stats": options.global_stats,
        "grid_offset_px": list(options.grid_offset_px),
        "blend": options.blend,
        "tta": options.tta,
        "precision": options.precision,
        "compile": options.compile,
        "backend": options.backend,
        "batch_size": options.batch_size,
        "bands": list(reader.bands),
        "nodata": None if options.nodata is None else str(options.nodata),
        "nodata_rule": options.nodata_rule,
        "area": None if options.area is None else options.area.fingerprint(),
        "resolution_m": options.resolution_m,
        "output_grid": options.output_grid,
        "outputs": list(options.outputs),
        "vectors": [options.vectors, options.min_area_px, options.simplify_px],
    }


def machine_facts(options: Options) -> dict[str, Any]:
    """Return on what it is computed, as far as it changes the last bit."""
    facts = {"device": options.device.partition(":")[0], "torch": torch.__version__}
    return facts if options.backend == "torch" else {**facts, "openvino": require_openvino().__version__}


def weights_hash(network: nn.Module) -> str:
    """Return letters that two networks share only if all their weights and statistics are the same."""
    weights = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return weights.hexdigest()


def config_hash(settings: Mapping[str, Any]) -> str:
    """Return letters that two runs share only if they label any raster alike: same network, same settings."""
    # With halo=auto tiles may take a measured one, where rows take the exact one.
    ways = ("size", "transform", "batch_size", *(() if settings.get("halo") == "auto" else ("engine",)))
    alike = {name: fact for name, fact in settings.items() if name not in ways}
    return hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()
