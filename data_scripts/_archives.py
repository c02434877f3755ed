"""Downloaded archives: their checksums, their parts, and how they are unpacked so that a second run goes on."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from _script import MOST_NAMES
from tqdm import tqdm

from geonorm.errors import DatasetError, name_some, one_line
from geonorm.files import check_space, folder_beside, put_in_place, written_whole

_CHUNK_BYTES = 1 << 20
_LOOK_EVERY_S = 0.5


def check_md5(path: Path, expected: str) -> None:
    """Raise `DatasetError` where the MD5 of a file is not the expected one."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, _bytes_bar(f"checking {path.name}", path.stat().st_size) as bar:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != expected:
        raise DatasetError(
            f"{path} has the MD5 {digest.hexdigest()}, torchgeo knows {expected}. Download it again; --no_checksum "
            "goes on without, and the files are then checked one by one all the same."
        )


def find_parts(folder: Path, name: str, count: int) -> list[Path]:
    """Return the parts ``name.001`` ... of an archive, none where there is not a single one.

    Raises:
        DatasetError: Some of them are missing or empty.
    """
    parts = [folder / f"{name}.{number:03d}" for number in range(1, count + 1)]
    there = [part for part in parts if part.exists() and part.stat().st_size]
    if there and len(there) < count:
        missing = [part.name for part in parts if part not in there]
        raise DatasetError(
            f"{folder} lacks {len(missing)} of the {count} parts of {name}: {name_some(missing, MOST_NAMES)}. Download "
            "them beside the others."
        )
    return there


def unpack_7z(parts: Sequence[Path], member: str, target: Path) -> None:
    """Unpack the one file that a 7z archive in parts holds to ``target``, with the program 7z or with py7zr.

    Args:
        parts: The parts, in order; each is a cut of the archive's bytes.
        member: Name of the file inside.
        target: Where it is to appear, whole.
    """
    total = sum(part.stat().st_size for part in parts)
    check_space(target.parent, total, what=target.name)
    program = next(filter(None, map(shutil.which, ("7z", "7zz", "7za"))), None)
    with folder_beside(target) as folder, _growing(folder / member, total):
        if program:
            _run_7z(program, parts[0], folder)
        else:
            _with_py7zr(parts, member, folder)
        if not (folder / member).is_file():
            raise DatasetError(f"{parts[0].name} holds no {member}. Is it the archive that the data set's page offers?")
        put_in_place(folder / member, target)


def unpack_zip(archive: Path, root: Path, place: Callable[[str], str | None]) -> int:
    """Unpack a zip file by file, each whole or not at all; files of the right size are left. Return how many were new.

    Args:
        archive: The zip file.
        root: Folder to unpack into.
        place: From a member's name to its path under ``root``, None to leave it out.

    Raises:
        DatasetError: The archive is damaged, or holds nothing of use, or the disk is too small.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            found = [(info, place(info.filename)) for info in file.infolist() if not info.is_dir()]
            wanted = [(info, root / path) for info, path in found if path is not None]
            if not wanted:
                raise DatasetError(
                    f"{archive} holds {len(found)} files, none of which is asked for. Is it the right one?"
                )
            missing = [(info, path) for info, path in wanted if not _has_size(path, info.file_size)]
            total = sum(info.file_size for info, _ in missing)
            check_space(root, total, what=f"unpacking {archive.name}")
            with _bytes_bar(f"unpacking {archive.name}", total) as bar:
                for info, path in missing:
                    with file.open(info) as source, written_whole(path) as made, open(made, "wb") as copy:
                        while chunk := source.read(_CHUNK_BYTES):
                            copy.write(chunk)
                            bar.update(len(chunk))
            return len(missing)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DatasetError(f"{archive} is damaged: {one_line(error)}. Download it again.") from error


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _run_7z(program: str, first: Path, folder: Path) -> None:
    done = subprocess.run(
        [program, "x", "-y", "-bso0", "-bsp0", f"-o{folder}", str(first)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-200:]
        raise DatasetError(f"{first} cannot be unpacked: {said}. Download its parts again.")


def _with_py7zr(parts: Sequence[Path], member: str, folder: Path) -> None:
    try:
        import multivolumefile
        import py7zr
    except ImportError as error:
        raise DatasetError(
            f"{parts[0].name} needs the program 7z (package p7zip-full or 7zip) or py7zr (pip install "
            "'geonorm[archives]'). Install one of them."
        ) from error
    # multivolumefile takes everything named NAME.*, half downloads included: links let it see the parts alone.
    links = folder / "parts"
    links.mkdir()
    for part in parts:
        (links / part.name).symlink_to(part.absolute())
    try:
        with (
            multivolumefile.open(links / parts[0].stem, mode="rb") as joined,
            py7zr.SevenZipFile(cast("IO[bytes]", joined)) as archive,
        ):
            archive.extract(folder, [member])
    except (py7zr.exceptions.ArchiveError, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        raise DatasetError(f"{parts[0]} cannot be unpacked: {one_line(error)}. Download its parts again.") from error


@contextmanager
def _growing(path: Path, total: int) -> Iterator[None]:
    """Show how far a file has grown that something else writes."""
    over = threading.Event()
    with _bytes_bar(f"unpacking {path.name}", total) as bar:

        def look() -> None:
            while not over.wait(_LOOK_EVERY_S):
                if path.exists():
                    bar.update(path.stat().st_size - bar.n)

        watch = threading.Thread(target=look, daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()


def _bytes_bar(what: str, total: int) -> tqdm:
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, unit_divisor=1000)
