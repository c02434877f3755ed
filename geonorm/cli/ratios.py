"""geonorm ratios: show what Switchable Norm chose."""

from __future__ import annotations

import argparse
from pathlib import Path

from geonorm.cli.options import add_trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("source", help="checkpoint of geonorm fit, or its log folder (.../lightning_logs/version_0)")
    parser.add_argument("out_dir", type=Path, help="folder for tables and pictures")
    parser.add_argument(
        "--compare", nargs="+", default=(), metavar="OTHER", help="runs of the same layers to hold against the first"
    )
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from geonorm.evaluation.ratio_report import switchable_ratios, table

    report = switchable_ratios(options.source, options.out_dir, compare=options.compare, trust=options.trust)
    print(table(report))
    print(f"Written: {options.out_dir}/ratios.csv, divergences.csv, summary.json and pictures")
