"""geonorm info: say what a checkpoint holds, and measure how far it sees."""

from __future__ import annotations

import argparse

from geonorm.cli.options import add_reading, add_trust, as_device
from geonorm.errors import InvalidConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("checkpoint", help="checkpoint of geonorm fit")
    add_trust(parser)
    reach = parser.add_argument_group("reach", "measure on rasters how far the network really sees")
    reach.add_argument("--reach", default=None, metavar="OUT_DIR", help="folder for the report; needs --sources")
    reach.add_argument("--sources", nargs="+", default=(), help="rasters, or folders of them, to measure on")
    reach.add_argument("--pixels", type=int, default=32, help="output pixels whose gradient is taken")
    reach.add_argument(
        "--reach_px", type=int, default=None, help="how far around them to read; else the exact halo, 256 without one"
    )
    reach.add_argument("--cores", type=int, default=8, help="cores labelled with each halo")
    reach.add_argument(
        "--core_px", type=int, default=None, help="side of the cores; else 512, or what the rasters allow"
    )
    reach.add_argument(
        "--halos_px", type=int, nargs="+", default=None, help="halos to try; else some up to the exact one"
    )
    add_reading(reach)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from geonorm.inference.info import describe_model
    from geonorm.tasks.checkpoint import load_model

    if (options.reach is None) != (not options.sources):
        raise InvalidConfigError(
            "--reach OUT_DIR and --sources belong together: the reach is measured on rasters. Give both or neither."
        )
    model = load_model(options.checkpoint, trust=options.trust)
    print(describe_model(model))
    if options.reach is None:
        return

    from geonorm.evaluation import effective_reach
    from geonorm.evaluation.reach import in_words

    report = effective_reach(
        model,
        options.sources,
        options.reach,
        pixels=options.pixels,
        reach_px=options.reach_px,
        cores=options.cores,
        core_px=options.core_px,
        halos_px=options.halos_px,
        device=as_device(options.device),
        nodata_rule=options.nodata_rule,
        progress=True,
    )
    print()
    print(in_words(report))
    print(f"Written: {options.reach}/reach.json, reach.csv, halos.csv, reach.png")
