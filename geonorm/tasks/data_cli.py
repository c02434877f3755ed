"""The data module that ``geonorm fit`` would make of the same words, without a model or a Trainer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule

import geonorm.data.chesapeake
import geonorm.data.inria
import geonorm.data.rasters  # noqa: F401 - so that the parser knows the classes by their bare names
from geonorm.data.patch_module import PatchDataModule
from geonorm.errors import InvalidConfigError, geonorm_error_in
from geonorm.tasks.parser_words import in_words, shorten

COMMANDS = ("fit", "validate", "test")
OTHERS = (
    *("--model", "--trainer", "--optimizer", "--lr_scheduler", "--ckpt_path", "--weights_only", "--seed_everything"),
    *("--batch_average", "--pictures", "--augment", "--data_facts", "--compare", "--print_config"),
)
"""Settings of ``geonorm fit`` that say nothing of the data."""


def data_module_of(words: Sequence[str]) -> PatchDataModule:
    """Return the data module that the words after ``geonorm fit`` describe.

    ``--config`` and ``--data`` count; what is said of models and Trainers is left out, in files too.

    Raises:
        InvalidConfigError: There is no data module, an unknown one, or one that does not read pairs of files.
    """
    parser = ArgumentParser(exit_on_error=False, prog="geonorm check_data")
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    try:
        settings = parser.parse_args(list(_about_data(list(words))))
        module = parser.instantiate(settings).data
    except ArgumentError as error:
        raise InvalidConfigError(in_words(str(error))) from error
    except ValueError as error:
        ours = geonorm_error_in(error)
        if ours is None:
            raise
        raise ours from None
    if not isinstance(module, PatchDataModule):
        raise InvalidConfigError(
            f"check_data looks over data modules of images and labels on disk (InriaDataModule, ChesapeakeDataModule, "
            f"RastersDataModule), not {type(module).__name__}."
        )
    return module


def _about_data(words: list[str]) -> Iterator[str]:
    """Yield the words about the data, with configuration files as their section ``data``."""
    while words:
        name, _, value = words.pop(0).partition("=")
        follows = bool(words) and not words[0].startswith("--")
        if any(name == other or name.startswith(f"{other}.") for other in OTHERS):
            if not value and follows:
                words.pop(0)
        elif name in ("--config", "-c"):
            if not value and not follows:
                raise InvalidConfigError("--config needs a file.")
            yield f"--config={json.dumps({'data': _data_section(value or words.pop(0))})}"
        else:
            yield f"{name}={value}" if value else name


def _data_section(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidConfigError(f"{path} cannot be read as a configuration: {shorten(str(error), 200)}") from error
    content = content if isinstance(content, dict) else {}
    for command in COMMANDS:
        if isinstance(content.get(command), dict):
            content = content[command]
    return content.get("data") or {}
