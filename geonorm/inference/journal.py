"""The finished strips of a map that is not whole yet: kept beside its target, so that a run that ends can go on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zipfile import ZipFile

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from geonorm.errors import GeonormError, GeonormWarning, InvalidConfigError, RasterError

PLAN = "plan.json"
LOCK = "lock"
PUBLISHING = "publishing"
ARRAY = "labels.npy"
Facts = Mapping[str, Any]
"""What a strip follows from: plain data, in which two runs must agree to share their strips."""


class Journal:
    """The finished strips of one map, in the folder ``.<target>.<letters>.strips`` beside its target.

    Use it in a ``with`` statement. A strip is there whole or not at all, even after a power cut. The folder goes when
    the block ends well, or fails before a strip was finished; else it stays, and the same run goes on from it.
    """

    def __init__(self, target: Path, facts: Facts, *, num_strips: int, restart: bool = False) -> None:
        """Take the target, and what its strips follow from.

        Args:
            target: The map to be.
            facts: In which two runs must agree for one to go on where the other left off.
            num_strips: How many there will be.
            restart: Discard what an earlier run left.
        """
        self.folder = _folder_of(target)
        self.num_strips = num_strips
        self._target = target
        self._facts = json.loads(json.dumps(facts))
        self._restart = restart
        self._lock = FileLock(self.folder / LOCK, timeout=0)

    def __enter__(self) -> Self:
        with _failing_as(self._target):
            self.folder.mkdir(exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RasterError(f"another process is making {self._target} just now. Wait for it, or stop it.") from error
        except OSError as error:
            raise _cannot_keep(self._target, error) from error
        try:
            self._take_over()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept = self.rows
        self._lock.release()
        if kind is None or not kept:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif isinstance(error, GeonormError):
            raise type(error)(f"{error} {self._how_to_go_on(len(kept))}") from error
        else:
            warnings.warn(self._how_to_go_on(len(kept)), GeonormWarning, stacklevel=2)

    @property
    def rows(self) -> frozenset[int]:
        """First rows of the strips that are finished."""
        names = (path.name for path in self.folder.glob("strip-*.npz"))
        return frozenset(int(name.removeprefix("strip-").removesuffix(".npz")) for name in names)

    def _how_to_go_on(self, kept: int) -> str:
        return f"{kept} of {self.num_strips} strips are kept: run the same command again to go on."

    @staticmethod
    def is_publishing(target: Path) -> bool:
        """Whether an earlier run had finished its strips, and may have put some of its files in place already."""
        return (_folder_of(target) / PUBLISHING).exists()

    def publish(self) -> None:
        """Remember that what appears under the names of the outputs from now on is this run's."""
        with _failing_as(self._target):
            (self.folder / PUBLISHING).touch()

    def keep(self, row: int, labels: NDArray[np.uint8]) -> None:
        """Keep the finished strip that begins at a row; labels ``(..., rows, W)``."""
        path = self._path(row)
        unfinished = path.with_suffix(".tmp")
        with _failing_as(self._target):
            with unfinished.open("wb") as file:
                # Read once, soon: numpy's own function takes five times as long to make a file a little smaller.
                with ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as whole, whole.open(ARRAY, "w") as part:
                    np.lib.format.write_array(part, labels)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)

    def strips(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield first row and labels of every finished strip, from the top."""
        for row in sorted(self.rows):
            path = self._path(row)
            try:
                with path.open("rb") as file, np.load(file) as content:
                    labels = content["labels"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                with suppress(OSError):
                    path.unlink()
                raise RasterError(f"the strip {path} is damaged, and was removed to be made anew.") from error
            yield row, labels

    def _path(self, row: int) -> Path:
        return self.folder / f"strip-{row:09d}.npz"

    def _take_over(self) -> None:
        """Keep the strips of an earlier run if they are those of this one; else say in what the two differ."""
        plan = self.folder / PLAN
        try:
            earlier = json.loads(plan.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = None
        if earlier != self._facts:
            if earlier is not None and self.rows and not self._restart:
                raise InvalidConfigError(
                    f"{len(self.rows)} strips of another run for {self._target} are kept in {self.folder}: "
                    f"{_difference(earlier, self._facts)}. Run that one again to go on, or discard it with --restart."
                )
            self._discard()
            unfinished = plan.with_suffix(".tmp")
            with _failing_as(self._target):
                unfinished.write_text(json.dumps(self._facts, indent=2) + "\n", encoding="utf-8")
                os.replace(unfinished, plan)
        elif self._restart:
            self._discard()

    def _discard(self) -> None:
        for path in self.folder.glob("strip-*"):
            path.unlink()


def _folder_of(target: Path) -> Path:
    # A name holds 255 bytes, and a character takes up to 4.
    letters = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
    return target.parent / f".{target.name[:50]}.{letters}.strips"


@contextmanager
def _failing_as(target: Path) -> Iterator[None]:
    """Turn what the file system says into one line about the target."""
    try:
        yield
    except OSError as error:
        raise _cannot_keep(target, error) from error


def _cannot_keep(target: Path, error: OSError) -> RasterError:
    reason = error.strerror or str(error)
    return RasterError(f"cannot write beside {target}: {reason}. Is the disk full, or the folder protected?")


def _difference(earlier: Any, now: Any, name: str = "") -> str:
    """Return the first thing in which two facts differ, in words."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in (*now, *earlier):
            if earlier.get(key) != now.get(key):
                return _difference(earlier.get(key), now.get(key), f"{name}.{key}" if name else key)
    return f"its {name} is {_short(earlier)}, here it is {_short(now)}"


def _short(value: Any, most: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[:most]}..."
