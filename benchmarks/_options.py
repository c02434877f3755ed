"""The options of a benchmark: a frozen dataclass whose fields they are, and `--quick`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

CaseT = TypeVar("CaseT")


def option_parser(
    doc: str | None, case: CaseT, *, choices: Mapping[str, Sequence[str]] | None = None
) -> ArgumentParser:
    """Return a parser with an option for each field, and `--quick`.

    Args:
        doc: Of the script.
        case: What it does without options. A tuple takes several values.
        choices: What a field may be.
    """
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small case, for a look")
    for field in fields(case):  # type: ignore[arg-type]
        usual = getattr(case, field.name)
        how: dict[str, Any] = {"choices": (choices or {}).get(field.name)}
        how |= {"nargs": "*", "type": type(usual[0])} if isinstance(usual, tuple) else {"type": type(usual)}
        parser.add_argument(option_of(field.name), default=usual, **how)
    return parser


def parse(
    parser: ArgumentParser, case: type[CaseT], words: Sequence[str], *, quick: Mapping[str, Any]
) -> tuple[CaseT, Namespace]:
    """Return the case that the words ask for, and all options.

    Args:
        parser: Of `option_parser`, and what a script adds to it.
        case: The dataclass.
        words: Of the command line.
        quick: What `--quick` changes; options that are given stay.
    """
    if "--quick" in words:
        parser.set_defaults(**quick)
    given = parser.parse_args(words)
    values = {field.name: getattr(given, field.name) for field in fields(case)}  # type: ignore[arg-type]
    return case(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}), given


def words_of(case: Any) -> list[str]:
    """Return the words that make this case in another process."""
    words = []
    for field in fields(case):
        value = getattr(case, field.name)
        words += [option_of(field.name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def option_of(name: str) -> str:
    """Return the option of a field."""
    return f"--{name.replace('_', '-')}"
