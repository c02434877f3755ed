"""geonorm check_data: what is wrong with a data set, before anything is trained on it."""

from __future__ import annotations

import argparse
from pathlib import Path

PASSES_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Look over a data set: OUT_DIR, then the words that geonorm fit would get (--config, --data.x); those about "
        "models and Trainers are left out."
    )
    parser.add_argument("out_dir", type=Path, help="folder for check.md, check.json and a picture of each split")
    parser.add_argument("--windows", type=int, default=8, help="windows of 256 px that are looked at in each image")
    parser.add_argument("--full", action="store_true", help="look at every pixel instead")
    parser.add_argument("--pictures", type=int, default=6, help="windows to draw of each split")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from geonorm.errors import DatasetError
    from geonorm.evaluation.data_report import check_data, screen, summary
    from geonorm.tasks.data_cli import data_module_of

    report = check_data(
        data_module_of(options.rest),
        options.out_dir,
        windows=None if options.full else options.windows,
        pictures=options.pictures,
        progress=True,
    )
    print(screen(report))
    print(f"\nWritten: {', '.join(map(str, report.written))}")
    if report.errors:
        raise DatasetError(summary(report))
