"""geonorm predict: label rasters of any size."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geonorm.cli.options import add_tiling, as_device, as_halo
from geonorm.errors import InvalidConfigError, RasterError

SUFFIXES = (".tif", ".tiff")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("checkpoint", help="checkpoint of geonorm fit")
    parser.add_argument(
        "source", nargs="+", help="raster to label; several, a folder or a .txt list: neighbours are read as one"
    )
    parser.add_argument("target", help="map to write (Cloud-Optimized GeoTIFF); a folder for several")
    parser.add_argument("--core_px", default="512", help="side of the square one network call writes, or auto")
    add_tiling(parser)
    parser.add_argument(
        "--engine",
        choices=("auto", "tiles", "rows"),
        default="auto",
        help="tiles with halos, or rows in one stream, each computed once; auto: whichever computes less",
    )
    parser.add_argument(
        "--global_stats",
        action="store_true",
        help="Group, Layer and Instance Norm take the statistics of the whole raster, in passes before the labels",
    )
    parser.add_argument(
        "--blend", choices=("none", "linear", "hann"), default="none", help="average the tiles where they overlap"
    )
    parser.add_argument(
        "--tta",
        default="none",
        help="average over mirrored and turned tiles (d4), over all phases of the pooling (phases), over N of them, a "
        "square (phases:N), or both (d4+phases:N)",
    )
    parser.add_argument(
        "--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true", help="of the computation"
    )
    parser.add_argument("--compile", action="store_true", help="compile the network with torch")
    parser.add_argument(
        "--backend",
        choices=("torch", "openvino"),
        default="torch",
        help="what computes the network: openvino is faster on a CPU, but takes no Local Context Norm",
    )
    parser.add_argument(
        "--bands",
        type=int,
        nargs="+",
        default=None,
        help="bands of the raster, counted from 1, as the model takes them",
    )
    parser.add_argument(
        "--nodata", type=float, default=None, help="value without data that the raster does not declare"
    )
    parser.add_argument(
        "--area",
        nargs="+",
        default=None,
        metavar="FILE | LEFT BOTTOM RIGHT TOP",
        help="part to label: a vector file, or four coordinates in the CRS of the raster",
    )
    parser.add_argument(
        "--resolution_m",
        default=None,
        help="ground size of the pixels that the network sees, in metres; auto: that of its training",
    )
    parser.add_argument(
        "--output_grid",
        choices=("source", "model"),
        default="source",
        help="grid of the map if the raster is resampled: the raster's own, or that of the pixels the network saw",
    )
    parser.add_argument(
        "--outputs",
        nargs="+",
        choices=("labels", "probabilities", "logits"),
        default=("labels",),
        help="what to write; the first gets the name of the target, the others theirs beside it",
    )
    parser.add_argument("--vectors", choices=("gpkg", "parquet"), default=None, help="write polygons as well")
    parser.add_argument("--min_area_px", type=int, default=0, help="leave out polygons of fewer pixels")
    parser.add_argument("--simplify_px", type=float, default=0.0, help="how far the outline of a polygon may move")
    parser.add_argument(
        "--shard",
        default=None,
        metavar="I/N",
        help="label a part of the strips only; else as torchrun, SLURM or another launcher says",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing target")
    parser.add_argument("--restart", action="store_true", help="discard what an earlier run has finished")
    parser.add_argument(
        "--dry_run", action="store_true", help="say what would be done and what it takes, and write nothing"
    )


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    core_px, halo = _core_px(options.core_px), as_halo(options.halo)
    resolution_m = _resolution_m(options.resolution_m)
    _check_files([options.checkpoint, *options.source])
    _check_apart(options.checkpoint, options.target)
    sources: list[str] = options.source
    several = len(sources) > 1 or Path(sources[0]).is_dir() or sources[0].endswith(".txt")
    if not several and not options.target.lower().endswith(SUFFIXES):
        raise InvalidConfigError(
            f"a map is a GeoTIFF: give a target that ends with {' or '.join(SUFFIXES)}, got {options.target!r}."
        )
    from geonorm.inference import Options, predict_raster, predict_rasters
    from geonorm.tasks.checkpoint import load_model

    shard = _shard(options.shard)
    settings: dict[str, Any] = {
        "core_px": core_px,
        "halo": halo,
        "engine": options.engine,
        "global_stats": options.global_stats,
        "grid_offset_px": tuple(options.grid_offset_px),
        "blend": options.blend,
        "tta": options.tta,
        "batch_size": options.batch_size,
        "device": as_device(options.device),
        "precision": options.precision,
        "compile": options.compile,
        "backend": options.backend,
        "bands": None if options.bands is None else tuple(options.bands),
        "nodata": options.nodata,
        "nodata_rule": options.nodata_rule,
        "area": None if options.area is None else _area(options.area),
        "resolution_m": resolution_m,
        "output_grid": options.output_grid,
        "outputs": tuple(options.outputs),
        "vectors": options.vectors,
        "min_area_px": options.min_area_px,
        "simplify_px": options.simplify_px,
        "overwrite": options.overwrite,
        "restart": options.restart,
        "shard": shard,
        "dry_run": options.dry_run,
        "progress": shard.local_rank == 0,
    }
    say = _say if shard.local_rank == 0 else lambda text: None
    model = load_model(options.checkpoint, trust=options.trust)
    if several:
        results = predict_rasters(model, sources, options.target, Options(**settings), on_plan=say)
    else:
        results = [predict_raster(model, sources[0], options.target, **settings, on_plan=say)]
    for result in results if not options.dry_run else ():
        print(f"{result.target}: {_outcome(result, model.spec.class_names)}")
    for other in dict.fromkeys(other for result in results if result.class_pixels for other in result.others):
        print(other)


def _outcome(result: Any, class_names: Sequence[str]) -> str:
    if result.missing_strips:
        return (
            f"this shard is done, strips of others missing: {result.missing_strips}. The last shard to finish puts the "
            "map together"
        )
    if not result.class_pixels:
        return "put together by another shard"
    shares = ", ".join(
        f"{name} {100 * pixels / max(1, result.valid_pixels):.1f} %"
        for name, pixels in zip(class_names, result.class_pixels, strict=True)
    )
    return f"{result.valid_pixels:,} pixels labelled ({shares})"


def _shard(text: str | None) -> Any:
    from geonorm.inference.shards import Shard

    launched = Shard.from_environment()
    if text is None:
        return launched
    if launched.count > 1:
        raise InvalidConfigError(
            f"--shard {text} and {launched.count} processes of a launcher share the raster out twice. Take one of them."
        )
    return Shard.parse(text)


def _resolution_m(text: str | None) -> Any:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise InvalidConfigError(f"--resolution_m must be auto or a number of metres, got {text!r}.") from error


def _check_files(names: Sequence[str]) -> None:
    """Raise for a file that is not there, before libraries are loaded that take seconds."""
    for name in names:
        if "://" not in name and not name.startswith("/vsi") and not Path(name).exists() and "!" not in name:
            raise RasterError(f"there is no file {name}. Check the name and the folder.")


def _check_apart(checkpoint: str, target: str) -> None:
    if Path(target).exists() and Path(target).samefile(checkpoint):
        raise RasterError(f"{target} is the checkpoint, it cannot be the target too. Choose another name.")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _area(words: Sequence[str]) -> Any:
    from geonorm.raster.area import Area

    if len(words) == 1:
        return Area.from_file(words[0])
    try:
        left, bottom, right, top = map(float, words)
    except ValueError as error:
        raise InvalidConfigError(
            f"--area must be a vector file, or left, bottom, right and top, got {' '.join(words)}."
        ) from error
    return Area.from_bounds((left, bottom, right, top))


def _core_px(text: str) -> Any:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise InvalidConfigError(f"--core_px must be auto or a number of pixels, got {text!r}.") from error
