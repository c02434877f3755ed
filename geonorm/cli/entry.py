"""The command line: parses, hands over, prints errors as one line."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from geonorm import __version__
from geonorm.cli import check_data, compare, demo, export, info, localize, merge, predict, ratios, shift
from geonorm.errors import GeonormError, GeonormWarning, InvalidConfigError

TRAINING = {
    "fit": "train a network (LightningCLI: --config, --model.x, --data.x, --trainer.x)",
    "validate": "score a checkpoint on the validation tiles",
    "test": "score a checkpoint on the test tiles",
}

COMMANDS: dict[str, tuple[str, Any]] = {
    "predict": ("label a raster of any size", predict),
    "merge": ("put together what shards have labelled", merge),
    "shift": ("measure whether labels depend on where the tiles lie", shift),
    "compare": ("train with several norms and seeds, and score them in one table", compare),
    "localize": ("give a trained network local statistics, so that its tiles agree", localize),
    "ratios": ("show what Switchable Norm chose, layer by layer and over training", ratios),
    "export": ("write a network as ONNX or for torch.export", export),
    "info": ("say what a checkpoint holds and what its tiles cost", info),
    "check_data": ("say what is wrong with a data set, before anything is trained on it", check_data),
    "demo": ("the whole story on drawn data, in minutes, on a CPU", demo),
}
"""Modules with `add_arguments` and `run`; one with `PASSES_ON` gets what it does not know itself as `options.rest`.

They import heavy libraries in `run`, so that `geonorm --help` answers at once.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 for a mistake of the user's, or 130 if interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            _print_our_warnings_plainly()
            if arguments and arguments[0] in TRAINING:
                _train(arguments)
            else:
                _run(arguments)
    except GeonormError as error:
        print(f"geonorm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("geonorm: interrupted", file=sys.stderr)
        return 130
    return 0


class _OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are told like all others: in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InvalidConfigError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="geonorm", description="Segmentation of aerial imagery with a free choice of normalization."
    )
    parser.add_argument("--version", action="version", version=f"geonorm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in TRAINING.items():
        commands.add_parser(name, help=text, add_help=False)
    for name, (text, module) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=not getattr(module, "PASSES_ON", False),
        )
        module.add_arguments(command)
        command.set_defaults(command=name)
    return parser


def _run(arguments: list[str]) -> None:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    options.rest = rest
    module = COMMANDS[options.command][1]
    if rest and not getattr(module, "PASSES_ON", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    module.run(options)


def _train(arguments: list[str]) -> None:
    from geonorm.tasks.training_cli import run_training

    run_training(arguments)


def _print_our_warnings_plainly() -> None:
    """Print a `GeonormWarning` as one line; leave all others as they are."""
    usual: Callable[..., None] = warnings.showwarning

    def show(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, GeonormWarning):
            print(f"geonorm: warning: {message}", file=sys.stderr)
        else:
            usual(message, category, *args, **kwargs)

    warnings.showwarning = show
    warnings.simplefilter("always", GeonormWarning)
