"""geonorm ratios: show what Switchable Norm chose."""

from __future__ import annotations

import argparse
from pathlib import Path

from geonorm.cli.options import add_trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("out_dir", type=Path, help="folder for tables and pictures")
    parser.add_argument(
        "--runs",
        nargs="+",
        required=True,
        metavar="RUN",
        help="checkpoints of geonorm fit, or its log folders (.../lightning_logs/version_0); further ones are held "
        "against the first",
    )
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from geonorm.evaluation.ratio_report import switchable_ratios, table

    first, *others = options.runs
    report = switchable_ratios(first, options.out_dir, compare=others, trust=options.trust)
    print(table(report))
    print(f"Written: {options.out_dir}/ratios.csv, divergences.csv, summary.json and pictures")
