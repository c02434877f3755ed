"""geonorm shift: measure whether labels depend on where the tiles lie."""

from __future__ import annotations

import argparse
from pathlib import Path

from geonorm.cli.options import add_tiling, as_device, as_halo, as_numbers

MEASURES = ("moves", "cores", "crops", "whole", "neighbours", "corners", "train")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Label rasters in several ways with one or more networks, and report how the labels change: report.html, "
        "report.md, report.csv, report.json, and a GeoTIFF for each way. The same command goes on where it was "
        "interrupted."
    )
    parser.add_argument("out_dir", type=Path, help="folder for the report")
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        required=True,
        metavar="[NAME=]CHECKPOINT",
        help="networks to compare; a folder of geonorm compare stands for each norm's first seed",
    )
    parser.add_argument("--sources", nargs="+", required=True, help="rasters to label, or folders with images/ and gt/")
    parser.add_argument("--labels", nargs="+", default=(), help="true labels of the sources, in the same order")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=MEASURES, help="what is measured")
    parser.add_argument(
        "--shifts_px",
        type=int,
        nargs="+",
        help="moves of the tile grid, down and right (32 64 128 1 3 7 13); multiples of the stride are kept apart",
    )
    parser.add_argument("--core_px", type=int, default=512, help="side of the square one network call writes")
    parser.add_argument(
        "--cores_px", type=int, nargs="+", default=(256, 1024), help="other cores, held against --core_px"
    )
    parser.add_argument(
        "--crops_px",
        nargs="+",
        default=("3,5", "1,13", "7,2"),
        metavar="ROWS,COLS",
        help="rows and columns that are cut off",
    )
    parser.add_argument("--tta", nargs="+", default=("none",), help="as of geonorm predict; each is measured by itself")
    parser.add_argument(
        "--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true", help="of the network"
    )
    parser.add_argument(
        "--label_values",
        nargs="+",
        metavar="VALUES",
        help="values of the true labels that are class 0, 1, ..., such as 1 2 3 4,5,6",
    )
    parser.add_argument(
        "--ignored_values", type=int, nargs="+", default=(), help="values of the true labels that do not count"
    )
    parser.add_argument("--restart", action="store_true", help="measure anew what is there")
    add_tiling(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from geonorm.errors import InvalidConfigError
    from geonorm.evaluation import shift_consistency
    from geonorm.evaluation.consistency_words import halos, headline
    from geonorm.evaluation.shift_tables import table
    from geonorm.evaluation.subjects import named_checkpoints

    crops = [as_numbers(text, option="--crops_px") for text in options.crops_px]
    wrong = [text for text, crop in zip(options.crops_px, crops, strict=True) if len(crop) != 2]
    if wrong:
        raise InvalidConfigError(f"--crops_px needs rows and columns, such as 3,5, got {wrong[0]!r}.")
    values = options.label_values
    report = shift_consistency(
        named_checkpoints(options.checkpoints),
        options.sources,
        options.out_dir,
        labels=options.labels,
        measures=options.measures,
        shifts_px=options.shifts_px,
        cores_px=tuple(options.cores_px),
        crops_px=[(crop[0], crop[1]) for crop in crops],
        core_px=options.core_px,
        halo=as_halo(options.halo),
        tta=options.tta,
        grid_offset_px=tuple(options.grid_offset_px),
        batch_size=options.batch_size,
        device=as_device(options.device),
        precision=options.precision,
        nodata_rule=options.nodata_rule,
        label_values=None if values is None else [as_numbers(text, option="--label_values") for text in values],
        ignored_values=options.ignored_values,
        trust=options.trust,
        restart=options.restart,
        progress=True,
    )
    print(table(report), headline(report["runs"]), halos(report["runs"]), sep="\n\n")
    names = ", ".join(f"report.{suffix}" for suffix in ("html", "md", "csv", "json"))
    print(f"Written to {options.out_dir}: {names} and maps")
