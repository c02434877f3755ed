"""geonorm compare: the same training with several norms and seeds, in one table."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

PASSES_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = "All other options go to every training, as geonorm fit takes them (--data.root DATA ...)."
    parser.add_argument("out_dir", type=Path, help="folder for trainings, tables and picture")
    parser.add_argument(
        "--config", action="append", default=[], type=Path, help="configuration of geonorm fit; several are laid on top"
    )
    parser.add_argument(
        "--norms",
        nargs="+",
        default=None,
        metavar="NORM",
        help="names (BN, GN, LCN, SN, IN, LN, or of the configuration's section compare) or files like "
        "configs/norm/lcn.yaml, NAME=FILE gives another name; None: those of the section, else BN, GN, LCN and SN",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=None, help="None: those of the section, else 0, 1 and 2"
    )
    parser.add_argument(
        "--budget", default=None, help="lay FILE.BUDGET.yaml over FILE.yaml: small runs on drawn scenes, on a CPU"
    )
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="tested: of the last epoch, or best in validation",
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once; their threads share the processors")
    parser.add_argument("--restart", action="store_true", help="discard the trainings that are there")
    parser.add_argument("--dry_run", action="store_true", help="say what would be run, and write nothing")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from geonorm.evaluation import compare
    from geonorm.evaluation.comparison_table import markdown

    # As an interrupt from the keyboard: the trainings are stopped, and go on with the next call.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    summaries = compare(
        options.out_dir,
        options.config,
        norms=options.norms,
        seeds=options.seeds,
        budget=options.budget,
        more=options.rest,
        checkpoint=options.checkpoint,
        jobs=options.jobs,
        restart=options.restart,
        dry_run=options.dry_run,
        progress=True,
        say=lambda text: print(text, file=sys.stderr),
    )
    if not options.dry_run:
        print(markdown(summaries))
        print(f"Written: {options.out_dir}/table.md, summary.csv, runs.csv and comparison.png")
