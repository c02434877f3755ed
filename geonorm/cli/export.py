"""geonorm export: write a network for programs that know nothing of geonorm."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from geonorm.cli.options import add_trust

if TYPE_CHECKING:
    from geonorm.inference.export import Exported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("checkpoint", help="checkpoint of geonorm fit")
    parser.add_argument("target", help="file to write: .onnx, or .pt2 for torch.export")
    parser.add_argument(
        "--output", choices=("logits", "probabilities"), default="logits", help="what comes out for each class"
    )
    parser.add_argument(
        "--tile_px", type=int, default=None, help="side of the only tiles it takes; else all that the network takes"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from geonorm.inference.export import export_model

    print("Exporting, and holding the file against the checkpoint: up to a minute", file=sys.stderr)
    made = export_model(
        options.checkpoint,
        options.target,
        output=options.output,
        tile_px=options.tile_px,
        overwrite=options.overwrite,
        trust=options.trust,
    )
    print("\n".join(_in_words(made)))


def _in_words(made: Exported) -> list[str]:
    """Return what was written, and how it is to be used."""
    from geonorm.files import size_in_words

    facts = made.facts
    side, stride = facts["tile_px"], facts["stride_px"]
    sizes = f"{side} x {side} px" if side else f"any size: sides of {facts['least_px']} px plus multiples of {stride}"
    if facts["margin_px"]:
        sizes += f"; {facts['margin_px']} px are lost on each side"
    if facts["halo_px"] is None:
        tiles = f"labels depend on the tiles, because of {', '.join(facts['depends_on_tiles'][:3])}"
    else:
        tiles = (
            f"exact if they read {facts['halo_px']} px more on each side and begin whole multiples of {stride} px apart"
        )
    tried = ", ".join(f"{rows} x {cols} px" for rows, cols in made.tried_px)
    return [
        f"Written: {made.target}, {size_in_words(made.size_bytes)}",
        f"input    raw values of {', '.join(facts['bands'])}, NaN where there is no data; {sizes}",
        f"output   {facts['output']} of {', '.join(facts['class_names'])}",
        f"tiles    {tiles}",
        f"tried    {tried}: differs from the checkpoint by {made.largest_error:.1g} of the largest value at most",
    ]
