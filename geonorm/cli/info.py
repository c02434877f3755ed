"""geonorm info: say what a checkpoint holds."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("checkpoint", help="checkpoint of geonorm fit")
    parser.add_argument("--trust", action="store_true", help="make networks of any module the checkpoint names")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from geonorm.inference.info import describe_model
    from geonorm.tasks.checkpoint import load_model

    print(describe_model(load_model(options.checkpoint, trust=options.trust)))
