"""What a user names -> the rasters it stands for, and the maps they will become."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.raster.read import is_local

RASTER_SUFFIXES = frozenset(
    f".{end}" for end in ("tif", "tiff", "vrt", "jp2", "j2k", "img", "png", "jpg", "jpeg", "webp", "bmp", "ntf", "bil")
)
LIST_SUFFIX = ".txt"


def find_sources(names: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the rasters that ``names`` stand for, each once, in the order of the names.

    Args:
        names: Rasters, folders of rasters (sorted by name; folders in them and hidden files are left out), text files
            (``.txt``) with a path or URL a line, URLs such as ``https://`` and ``s3://``, and GDAL's ``/vsi`` names.
            Paths in a text file count from its folder; empty lines and those that begin with ``#`` are left out.
    """
    if not names:
        raise InvalidConfigError("there is no raster to read. Name a raster, a folder of rasters, or a list (.txt).")
    found: dict[str, str] = {}
    for name in names:
        for source in _named(os.fspath(name)):
            found.setdefault(os.path.abspath(source) if is_local(source) else source, source)
    return list(found.values())


def target_names(sources: Sequence[str], out_dir: str | os.PathLike[str]) -> list[Path]:
    """Return the map of each source: ``<stem>.tif`` in a folder, which need not exist yet."""
    targets: dict[str, tuple[str, Path]] = {}
    for source in sources:
        stem = _stem(source)
        if not stem:
            raise InvalidConfigError(f"{source} names no file, so its map has no name. Name it alone, with a target.")
        target = Path(out_dir, f"{stem}.tif")
        if stem.casefold() in targets:  # file systems of macOS and Windows take no notice of case
            other, _ = targets[stem.casefold()]
            raise InvalidConfigError(
                f"{other} and {source} would both become {target}. Rename one, or label them into two folders."
            )
        targets[stem.casefold()] = source, target
    return [target for _, target in targets.values()]


def _named(name: str) -> list[str]:
    """Return the rasters that one name stands for."""
    if not is_local(name):
        return [name]
    if os.path.isdir(name):
        return _in_folder(name)
    if not os.path.exists(name):
        raise RasterError(f"there is no file {name}. Check the name and the folder.")
    return list(_in_list(Path(name))) if Path(name).suffix.lower() == LIST_SUFFIX else [name]


def _in_folder(folder: str) -> list[str]:
    try:
        paths = sorted(Path(folder).iterdir())
    except OSError as error:
        raise RasterError(f"the folder {folder} cannot be read: {error.strerror}. Check who may read it.") from error
    # Temporary files of ours are hidden; masks, overviews and statistics beside a raster have suffixes of their own.
    rasters = [str(path) for path in paths if not path.name.startswith(".") and path.suffix.lower() in RASTER_SUFFIXES]
    rasters = [path for path in rasters if os.path.isfile(path)]
    if not rasters:
        raise RasterError(
            f"the folder {folder} holds no raster: no file in it ends in .tif, .tiff, .vrt, .jp2 or another usual "
            "suffix. Folders in it are left out; name them, or the files themselves."
        )
    return rasters


def _in_list(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RasterError(
            f"{path} cannot be read as a list of rasters, one a line in UTF-8. Check the file."
        ) from error
    entries = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    entries = [(number, entry) for number, entry in entries if entry and not entry.startswith("#")]
    if not entries:
        raise RasterError(f"the list {path} names no raster. Write one path or URL a line.")
    for number, entry in entries:
        name = str(path.parent / entry) if is_local(entry) else entry
        if is_local(entry) and not os.path.isfile(name):
            raise RasterError(f"line {number} of {path}: there is no file {name}. Paths count from the list's folder.")
        yield name


def _stem(source: str) -> str:
    if is_local(source):
        return Path(source).stem
    # What follows a question mark signs a URL; the file in an archive follows an exclamation mark.
    place, _, file = source.partition("?")[0].partition("!")
    return PurePosixPath(file or place).stem if "/" not in source[-1:] else ""
