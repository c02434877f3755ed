"""What every label of a map follows from: two runs that agree in it may share their strips."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from geonorm.inference.options import Options
from geonorm.models.converted import require_openvino
from geonorm.models.structure import structure_of, weights_hash
from geonorm.raster.read import RasterSource, files_of
from geonorm.tasks.checkpoint import TrainedModel

Path = str | os.PathLike[str]

PASSING = (".aux.xml", ".ovr")
"""Files beside a raster that viewers make at any time; no label follows from them."""
CHUNK_BYTES = 2**14
CHUNKS = 64
"""Of a large file, so many pieces of so many bytes, evenly spread, tell it from others of its size."""


def source_facts(sources: Sequence[Path]) -> dict[str, Any]:
    """Return what tells the files from others, and from themselves before they were changed."""
    files = [os.stat(file) if file else None for source in sources for file in pixel_files(source) or [""]]
    return {
        "source": [os.path.abspath(source) if os.path.exists(source) else os.fspath(source) for source in sources],
        "source bytes": [file and file.st_size for file in files],
        "source's time": [file and file.st_mtime_ns for file in files],
    }


def setting_facts(model: TrainedModel, reader: RasterSource, options: Options) -> dict[str, Any]:
    """Return the settings that labels follow from, and the network."""
    grid, spec = reader.grid, model.spec
    return {
        "size": [grid.height, grid.width],
        "transform": list(grid.transform)[:6],
        "network": structure_of(model.network),
        "weights": weights_hash(model.network),
        "class_names": list(spec.class_names),
        "class_colors": [list(color) for color in spec.class_colors],
        "scored_classes": list(spec.scored_classes),
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
        "resolution_m": spec.resolution_m if options.resolution_m == "auto" else options.resolution_m,
        "output_grid": options.output_grid,
        "outputs": list(options.outputs),
        "vectors": [options.vectors, options.min_area_px, options.simplify_px],
    }


def machine_facts(options: Options) -> dict[str, Any]:
    """Return on what it is computed, as far as it changes the last bit."""
    facts = {"device": options.device.partition(":")[0], "torch": torch.__version__}
    return facts if options.backend == "torch" else {**facts, "openvino": require_openvino().__version__}


def config_hash(settings: Mapping[str, Any]) -> str:
    """Return letters that two runs share only if they label any raster alike: same network, same settings."""
    # With halo=auto tiles may take a measured one, where rows take the exact one.
    ways = ("size", "transform", "batch_size", *(() if settings.get("halo") == "auto" else ("engine",)))
    alike = {name: fact for name, fact in settings.items() if name not in ways}
    return hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()


def source_hash(sources: Sequence[Path], settings: Mapping[str, Any]) -> str:
    """Return letters that follow from what lies in the files of rasters, and from their size and place.

    Neither name nor time nor machine is in them: copies have the letters of the original. Of large files it is their
    size and some parts; of those that belong to one, such as its mask, the size.
    """
    letters = hashlib.sha256(json.dumps([settings["size"], settings["transform"]]).encode())
    for source in sources:
        files = pixel_files(source)
        letters.update(json.dumps([os.path.getsize(file) for file in files] or [os.fspath(source)]).encode())
        for file in files[:1]:
            with open(file, "rb") as stream:
                size, last = os.path.getsize(file), CHUNKS - 1
                for chunk in range(CHUNKS):
                    stream.seek(max(0, size - CHUNK_BYTES) * chunk // last)
                    letters.update(stream.read(CHUNK_BYTES))
    return letters.hexdigest()


def pixel_files(source: Path) -> list[str]:
    """Return the files on the disk that a raster's pixels come from, the one of its name first."""
    return [file for file in files_of(source) if not file.endswith(PASSING)]
