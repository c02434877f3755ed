"""Files and folders that appear whole: written beside their place, flushed, and renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from geonorm.errors import DatasetError, InvalidConfigError, RasterError


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder for a report, and those it lies in, where they do not exist."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfigError(f"The folder {path} cannot be made: {error.strerror}. Choose another one.") from error
    return Path(path)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep other processes that do the same out of a folder.

    Raises:
        InvalidConfigError: One is at work there.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InvalidConfigError(f"another process is at work in {folder}. Wait for it, or stop it.") from error
    except OSError as error:
        raise InvalidConfigError(
            f"The folder {folder} cannot be written to: {error.strerror}. Choose another."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give the name of a file beside ``target`` to be written, and rename it to ``target`` once that has worked.

    Raises:
        RasterError: The file could not be written; nothing is left of it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(target) as folder:
        made = folder / target.name
        try:
            yield made
            put_in_place(made, target)
        except RasterError:
            raise  # an OSError too, and clear already
        except OSError as error:
            raise RasterError(
                f"{target} could not be written: {error.strerror or error}. Nothing was left of it; free space, or "
                "choose another folder, and run the same command again."
            ) from error


def write_text(target: Path, text: str) -> None:
    """Write a text file; it is there as a whole or not at all."""
    with written_whole(target) as made:
        made.write_text(text, encoding="utf-8")


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Make a folder beside the target, where renaming is atomic, and remove it at the end."""
    try:
        # A name holds 255 bytes and a character takes up to 4.
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:50]}.", suffix=".tmp"))
    except OSError as error:
        raise RasterError(
            f"the folder {target.parent} cannot be written to: {error.strerror}. Choose another one."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(made: Path, target: Path) -> None:
    """Rename a finished file or folder to the target; even a power cut leaves the one or the other, whole."""
    for path in (*made.iterdir(), made) if made.is_dir() else (made,):
        _flush(path)
    os.replace(made, target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def check_space(folder: Path, needed_bytes: int, *, what: str) -> None:
    """Raise `DatasetError` where the disk of a folder that may be still to be made lacks the space for ``what``."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise DatasetError(
            f"{folder} has {size_in_words(free)} free, and {what} needs {size_in_words(needed_bytes)}. "
            "Free space, or choose another disk."
        )


def size_in_words(count: int) -> str:
    """Return a number of bytes as people read it.

    Example:
        >>> size_in_words(1_500), size_in_words(20_957_000_000)
        ('1.5 kB', '21.0 GB')
    """
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.1f} {units[0]}"
