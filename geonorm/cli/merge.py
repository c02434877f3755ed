"""geonorm merge: put together what shards have labelled."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("target", help="map that the shards were to write; of several labelled as one, the first")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from geonorm.inference import merge

    for file in merge(options.target, overwrite=options.overwrite, progress=True):
        print(file)
