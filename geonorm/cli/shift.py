"""geonorm shift: measure whether labels depend on where the tiles lie."""

from __future__ import annotations

import argparse
from pathlib import Path

from geonorm.cli.options import add_tiling, as_device, as_halo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("out_dir", type=Path, help="folder for the report")
    parser.add_argument("--checkpoints", nargs="+", required=True, help="checkpoints to compare")
    parser.add_argument("--sources", nargs="+", required=True, help="rasters to label")
    parser.add_argument(
        "--shifts_px",
        type=int,
        nargs="+",
        default=(128, 3),
        help="moves of the tile grid, down and right; multiples of the network's stride and others are kept apart",
    )
    parser.add_argument("--core_px", type=int, default=512, help="side of the square one network call writes")
    add_tiling(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from geonorm.evaluation import shift_consistency
    from geonorm.evaluation.shift import table

    report = shift_consistency(
        options.checkpoints,
        options.sources,
        options.out_dir,
        shifts_px=tuple(options.shifts_px),
        core_px=options.core_px,
        halo=as_halo(options.halo),
        grid_offset_px=tuple(options.grid_offset_px),
        batch_size=options.batch_size,
        device=as_device(options.device),
        nodata_rule=options.nodata_rule,
        trust=options.trust,
        progress=True,
    )
    print(table(report))
    print(f"Written: {options.out_dir}/shift.json and pictures")
