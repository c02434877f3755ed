"""What all scripts here do alike: read options, say what is wrong in one line, let files appear whole."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from geonorm.errors import GeonormError, InvalidConfigError

MOST_NAMES = 8
"""So many files are named in a message."""


class Parser(argparse.ArgumentParser):
    """A parser that shows a script's own text as it stands, and tells mistakes in one line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_Formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InvalidConfigError(f"{message}; see {self.prog} --help")


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Leave out defaults that say nothing."""
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def run(work: Callable[[argparse.Namespace], None], parser: Parser, argv: Sequence[str] | None) -> int:
    """Do the work; return 0, 2 for what the user can put right (told in one line), or 130 if interrupted."""
    try:
        work(parser.parse_args(argv))
    except (GeonormError, OSError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
