"""What the parser of a training says of a mistake, as one line that begins with what is wrong."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

CONFIG = "config.yaml"
"""Name under which ``geonorm fit`` keeps its settings in the log folder."""

_UNKNOWN = re.compile(r"Option '([\w.]+)' is not accepted")
_OF_CLASS = re.compile(r"(?:given class_path |class_path=)'([\w.]+)'")
_PROBLEM = re.compile(r"(Parser key \"[\w.]+\":).*?(Problem with given class_path .*?) - Expected a <class 'NoneType'>")
_NO_DATA = re.compile(r"arguments are required: (validate|test)\.")


def in_words(message: str, words: Sequence[str] = ()) -> str:
    """Return what a parser says, as one line.

    Args:
        message: What it says.
        words: The command line, whose checkpoint tells where the settings of its training are.
    """
    line = " ".join(message.split())
    unknown, without = _UNKNOWN.search(line), _NO_DATA.search(line)
    if unknown is not None:
        return _of_unknown(unknown[1], _OF_CLASS.search(line))
    if without is not None:
        return _of_no_data(without[1], words)
    problem = _PROBLEM.search(line)
    return shorten(line if problem is None else f"{problem[1]} {problem[2]}")


def shorten(message: str, most: int = 400) -> str:
    """Return the first part of a message, as one line."""
    line = " ".join(message.split())
    return line if len(line) <= most else f"{line[:most]} ..."


def _of_unknown(option: str, of_class: re.Match[str] | None) -> str:
    if of_class is None:
        return f"Option '{option}' is not accepted."
    names = _options_of(of_class[1])
    closest = difflib.get_close_matches(option, names, n=1)
    hint = f" Did you mean '{closest[0]}'?" if closest else f" It takes {', '.join(names)}." if names else ""
    return shorten(f"Option '{option}' is not accepted by {of_class[1]}.{hint}")


def _options_of(class_path: str) -> list[str]:
    """Return the names of what a class takes; none where it cannot be asked."""
    module, _, name = class_path.rpartition(".")
    try:
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    # What a network or norm is called with is not the user's to give.
    return [one for one in parameters if one not in ("in_channels", "num_classes", "num_features", "stride", "norm")]


def _of_no_data(command: str, words: Sequence[str]) -> str:
    """Say which settings ``validate`` and ``test`` need beside a checkpoint."""
    checkpoint, config = "CHECKPOINT", f"runs/lightning_logs/version_N/{CONFIG}"
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name == "--ckpt_path" and (value or following):
            checkpoint = value or following
            beside = Path(checkpoint).parent.parent / CONFIG
            config = str(beside) if beside.is_file() else config
    return (
        f"{command} needs the data and the model of the training, which its log folder keeps in {CONFIG}: "
        f"geonorm {command} --config {config} --ckpt_path {checkpoint}"
    )
