"""geonorm localize: give a trained network local statistics."""

from __future__ import annotations

import argparse

from geonorm.cli.options import add_trust, as_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
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
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
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
        device=as_device(options.device),
        report=options.report,
        overwrite=options.overwrite,
        trust=options.trust,
        progress=True,
    )
    if found.original is not None:
        print("\n".join([table(found), *found.notes]))
    print(found.why)
    print(f"Written: {', '.join(filter(None, (found.target, found.report)))}")
