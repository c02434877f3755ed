"""geonorm demo: the whole story on drawn data."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("out_dir", type=Path, help="folder for scenes, checkpoints, maps and report.html")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes and the training")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from geonorm.demo import run_demo

    run_demo(options.out_dir, seed=options.seed)
