"""The files of a run: what they are called, what they must not replace, and whether they are there already."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.inference.facts import pixel_files
from geonorm.inference.journal import StripFolder
from geonorm.raster.read import read_tags

POLYGONS = "polygons"
LETTERS = ("geonorm_config", "geonorm_source")
"""Tags of a map that follow from the network, the settings and the source."""


def files_of_map(target: Path, outputs: Sequence[str], vectors: str | None = None) -> dict[str, Path]:
    """Return the files of a map by what they hold: the first of the outputs gets the name of the target."""
    first, *others = outputs
    files = {first: target, **{name: target.with_suffix(f".{name}.tif") for name in others}}
    return files if vectors is None else {**files, POLYGONS: target.with_suffix(f".{vectors}")}


def check_files(targets: Sequence[Path], outputs: Sequence[str], vectors: str | None, *, read: Iterable[str]) -> None:
    """Raise in one line if two files of a run are one, or one of them is read.

    Args:
        targets: The maps.
        outputs: What is made of each.
        vectors: Suffix of the polygons, which each map may get.
        read: Files that the run reads.
    """
    inputs = {at: file for file in read if (at := _place(file)) is not None}
    made: dict[str, str] = {}
    for target in targets:
        for name, file in files_of_map(target, outputs, vectors).items():
            words = f"the {name} of {target}"
            place = _place(file)
            if place is not None and (other := inputs.get(place)) is not None:
                raise RasterError(
                    f"{file} would be {words}, but it is the file {other} that is to be read. Choose another name or "
                    "folder for the target."
                )
            # File systems of macOS and Windows take no notice of case.
            if (before := made.setdefault(os.path.abspath(file).casefold(), words)) != words:
                raise InvalidConfigError(
                    f"{file} would be {before} and {words}. Choose another name for the target, or label the rasters "
                    "into two folders."
                )


def is_made(strips: StripFolder, files: Iterable[Path], letters: Mapping[str, Any], sources: Sequence[Any]) -> bool:
    """Whether a map is there that other shards have made of the same source, with the same network and settings.

    Args:
        strips: Nothing may be left of them.
        files: The files of the map.
        letters: The `LETTERS` that its tags must hold.
        sources: The rasters; those on the disk must not have been changed since.
    """
    if strips.path.exists() or not all(file.is_file() for file in files):
        return False
    tags = read_tags(strips.target)
    if any(tags.get(name) != letters[name] for name in LETTERS):
        return False
    since = strips.target.stat().st_mtime_ns
    return all(os.stat(file).st_mtime_ns <= since for source in sources for file in pixel_files(source))


def _place(file: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return what two names of one file share; None where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
