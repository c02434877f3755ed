"""The command line: parses, hands over, prints errors as one line."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from geonorm import __version__
from geonorm.errors import GeonormError, GeonormWarning, InvalidConfigError, RasterError

TRAINING = {
    "fit": "train a network (LightningCLI: --config, --model.x, --data.x, --trainer.x)",
    "validate": "score a checkpoint on the validation tiles",
    "test": "score a checkpoint on the test tiles",
}

# Heavy libraries are imported inside the commands, so that `geonorm --help` answers at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 for a mistake of the user's, or 130 if interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            _print_our_warnings_plainly()
            if arguments and arguments[0] in TRAINING:
                _train(arguments)
            else:
                options = _parser().parse_args(arguments)
                options.run(options)
    except GeonormError as error:
        print(f"geonorm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("geonorm: interrupted", file=sys.stderr)
        return 130
    return 0


class _OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are told like all others: in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InvalidConfigError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="geonorm", description="Segmentation of aerial imagery with a free choice of normalization."
    )
    parser.add_argument("--version", action="version", version=f"geonorm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in TRAINING.items():
        commands.add_parser(name, help=text, add_help=False)
    for name, text, add, run in (
        ("predict", "label a raster of any size", _add_predict, _predict),
        ("merge", "put together what shards have labelled", _add_merge, _merge),
        ("shift", "measure whether labels depend on where the tiles lie", _add_shift, _shift),
        ("localize", "give a trained network local statistics, so that its tiles agree", _add_localize, _localize),
        ("ratios", "show what Switchable Norm chose, layer by layer and over training", _add_ratios, _ratios),
        ("info", "say what a checkpoint holds and what its tiles cost", _add_info, _info),
        ("demo", "the whole story on drawn data, in minutes, on a CPU", _add_demo, _demo),
    ):
        command = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        add(command)
        command.set_defaults(run=run)
    return parser


# predict


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint of geonorm fit")
    parser.add_argument(
        "source", nargs="+", help="raster to label; several, a folder or a .txt list: neighbours are read as one"
    )
    parser.add_argument("target", help="map to write (Cloud-Optimized GeoTIFF); a folder for several")
    parser.add_argument("--core_px", default="512", help="side of the square one network call writes, or auto")
    _add_tiling(parser)
    parser.add_argument(
        "--blend", choices=("none", "linear", "hann"), default="none", help="average the tiles where they overlap"
    )
    parser.add_argument("--tta", choices=("none", "d4"), default="none", help="average over mirrored and turned tiles")
    parser.add_argument(
        "--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true", help="of the computation"
    )
    parser.add_argument("--compile", action="store_true", help="compile the network with torch")
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
        help="label every n-th strip only; else as torchrun, SLURM or another launcher says",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing target")
    parser.add_argument("--restart", action="store_true", help="discard what an earlier run has finished")
    parser.add_argument(
        "--dry_run", action="store_true", help="say what would be done and what it takes, and write nothing"
    )


def _predict(options: argparse.Namespace) -> None:
    core_px, halo, resolution_m = _core_px(options.core_px), _halo(options.halo), _resolution_m(options.resolution_m)
    _check_files([options.checkpoint, *options.source])
    from geonorm.inference import Options, predict_raster, predict_rasters
    from geonorm.tasks.checkpoint import load_model

    shard = _shard(options.shard)
    settings: dict[str, Any] = {
        "core_px": core_px,
        "halo": halo,
        "grid_offset_px": tuple(options.grid_offset_px),
        "blend": options.blend,
        "tta": options.tta,
        "batch_size": options.batch_size,
        "device": _device(options.device),
        "precision": options.precision,
        "compile": options.compile,
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
    sources: list[str] = options.source
    model = load_model(options.checkpoint, trust=options.trust)
    several = len(sources) > 1 or Path(sources[0]).is_dir() or sources[0].endswith(".txt")
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


def _add_tiling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--halo", default="auto", help="pixels read beyond the core: auto, exact, measured or a number")
    parser.add_argument(
        "--grid_offset_px",
        type=int,
        nargs=2,
        default=(0, 0),
        metavar=("ROWS", "COLS"),
        help="move the tile grid",
    )
    parser.add_argument("--batch_size", type=int, default=1, help="tiles per network call")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto: the GPU if there is one")
    parser.add_argument(
        "--nodata_rule",
        choices=("all", "any"),
        default="all",
        help="no data where all or any of the bands have none",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="make networks of any module the checkpoint names; this runs its code",
    )


def _core_px(text: str) -> Any:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise InvalidConfigError(f"--core_px must be auto or a number of pixels, got {text!r}.") from error


def _halo(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        pass
    if text not in ("auto", "exact", "measured"):
        raise InvalidConfigError(f"--halo must be auto, exact, measured or a number of pixels, got {text!r}.")
    return text


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except Exception as error:
        raise InvalidConfigError(f"--device {name} cannot be used here; try --device cpu.") from error
    return name


# merge


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="map that the shards were to write; of several labelled as one, the first")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def _merge(options: argparse.Namespace) -> None:
    from geonorm.inference import merge

    for file in merge(options.target, overwrite=options.overwrite, progress=True):
        print(file)


# shift


def _add_shift(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out_dir", type=Path, help="folder for the report")
    parser.add_argument("--checkpoints", nargs="+", required=True, help="checkpoints to compare")
    parser.add_argument("--sources", nargs="+", required=True, help="rasters to label")
    parser.add_argument(
        "--shifts_px",
        type=int,
        nargs="+",
        default=(128, 3),
        help="moves of the tile grid, down and right; multiples of the network's stride and others are kept apart",
    )
    parser.add_argument("--core_px", type=int, default=512, help="side of the square one network call writes")
    _add_tiling(parser)


def _shift(options: argparse.Namespace) -> None:
    from geonorm.evaluation import shift_consistency
    from geonorm.evaluation.shift import table

    report = shift_consistency(
        options.checkpoints,
        options.sources,
        options.out_dir,
        shifts_px=tuple(options.shifts_px),
        core_px=options.core_px,
        halo=_halo(options.halo),
        grid_offset_px=tuple(options.grid_offset_px),
        batch_size=options.batch_size,
        device=_device(options.device),
        nodata_rule=options.nodata_rule,
        trust=options.trust,
        progress=True,
    )
    print(table(report))
    print(f"Written: {options.out_dir}/shift.json and pictures")


# localize


def _add_localize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint of a network with Group, Instance or Layer Norm")
    parser.add_argument("target", help="checkpoint to write")
    parser.add_argument(
        "--window_px",
        type=int,
        nargs="+",
        required=True,
        help="window of the norms in pixels of the image (1.5 training patches is a good start); several are compared",
    )
    parser.add_argument("--sources", nargs="+", default=(), help="rasters to measure on, or folders of images/ and gt/")
    parser.add_argument("--labels", nargs="+", default=(), help="building masks of the sources, in the same order")
    parser.add_argument("--core_px", type=int, default=256, help="side of the square one network call writes")
    parser.add_argument(
        "--halos_px", type=int, nargs="+", default=None, help="halos to try; else up to 512, as far as the sources go"
    )
    parser.add_argument("--shift_px", type=int, default=128, help="move of the tile grid under which labels may flip")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help="by how much IoU (without labels: the share of equal labels) may be worse than the original's",
    )
    parser.add_argument("--report", default=None, help="JSON file for the figures; else TARGET.json")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto: the GPU if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("--trust", action="store_true", help="make networks of any module the checkpoint names")


def _localize(options: argparse.Namespace) -> None:
    from geonorm.evaluation import localize
    from geonorm.evaluation.localization import table

    found = localize(
        options.checkpoint,
        options.target,
        windows_px=options.window_px,
        sources=options.sources,
        labels=options.labels,
        core_px=options.core_px,
        halos_px=options.halos_px,
        shift_px=options.shift_px,
        tolerance=options.tolerance,
        device=_device(options.device),
        report=options.report,
        overwrite=options.overwrite,
        trust=options.trust,
        progress=True,
    )
    if found.original is not None:
        print("\n".join([table(found), *found.notes]))
    print(found.why)
    print(f"Written: {', '.join(filter(None, (found.target, found.report)))}")


# ratios


def _add_ratios(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="checkpoint of geonorm fit, or its log folder (.../lightning_logs/version_0)")
    parser.add_argument("out_dir", type=Path, help="folder for tables and pictures")
    parser.add_argument(
        "--compare", nargs="+", default=(), metavar="OTHER", help="runs of the same layers to hold against the first"
    )
    parser.add_argument("--trust", action="store_true", help="make networks of any module the checkpoint names")


def _ratios(options: argparse.Namespace) -> None:
    from geonorm.evaluation.ratio_report import switchable_ratios, table

    report = switchable_ratios(options.source, options.out_dir, compare=options.compare, trust=options.trust)
    print(table(report))
    print(f"Written: {options.out_dir}/ratios.csv, divergences.csv, summary.json and pictures")


# info


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint of geonorm fit")
    parser.add_argument("--trust", action="store_true", help="make networks of any module the checkpoint names")


def _info(options: argparse.Namespace) -> None:
    from geonorm.inference.info import describe_model
    from geonorm.tasks.checkpoint import load_model

    print(describe_model(load_model(options.checkpoint, trust=options.trust)))


# demo


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out_dir", type=Path, help="folder for scenes, checkpoints, maps and report.html")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes and the training")


def _demo(options: argparse.Namespace) -> None:
    from geonorm.demo import run_demo

    run_demo(options.out_dir, seed=options.seed)


# fit, validate, test


def _train(arguments: list[str]) -> None:
    from geonorm.tasks.training_cli import run_training

    run_training(arguments)


def _print_our_warnings_plainly() -> None:
    """Print a `GeonormWarning` as one line; leave all others as they are."""
    usual: Callable[..., None] = warnings.showwarning

    def show(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, GeonormWarning):
            print(f"geonorm: warning: {message}", file=sys.stderr)
        else:
            usual(message, category, *args, **kwargs)

    warnings.showwarning = show
    warnings.simplefilter("always", GeonormWarning)
