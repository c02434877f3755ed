"""The finished strips of a map that is not whole yet: kept beside its target, so that a run that ends can go on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout
from numpy.typing import NDArray

from geonorm.errors import GeonormError, GeonormWarning, InvalidConfigError, RasterError
from geonorm.files import put_in_place
from geonorm.inference.shards import WHOLE, Shard
from geonorm.raster.layer import Layer
from geonorm.raster.strips import write_strip
from geonorm.raster.write import failing_as

PLAN = "plan.json"
PUBLISHING = "publishing"
EMPTY = "empty"
MOST_WAIT_S = 60
Facts = Mapping[str, Any]
"""What a strip follows from: plain data, in which two runs must agree to share their strips."""


class StripFolder:
    """The folder ``.<target>.<letters>.strips`` beside a target: what its strips follow from, and those finished.

    A strip is a folder of one file for each layer. It is there whole or not at all, even after a power cut.
    """

    def __init__(self, target: Path) -> None:
        """Take the map to be."""
        # A name holds 255 bytes, and a character takes up to 4.
        letters = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
        self.target = target
        self.path = target.parent / f".{target.name[:50]}.{letters}.strips"

    @property
    def rows(self) -> frozenset[int]:
        """First rows of the strips that are finished."""
        names = (path.name.removeprefix("strip-") for path in self.path.glob("strip-*"))
        return frozenset(int(name) for name in names if name.isdecimal())

    @property
    def is_publishing(self) -> bool:
        """Whether all strips were finished, and some of the outputs may be in place already."""
        return (self.path / PUBLISHING).exists()

    def read_plan(self) -> dict[str, Any] | None:
        """Return what the strips follow from, and how they are put together; None if there are none."""
        try:
            plan: dict[str, Any] = json.loads((self.path / PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return plan

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Remember what the strips follow from, and how they are put together."""
        unfinished = self.path / f"{PLAN}.tmp"
        with failing_as(self.target):
            unfinished.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
            put_in_place(unfinished, self.path / PLAN)

    def keep(self, row: int, layers: Sequence[tuple[Layer, NDArray[Any]]]) -> None:
        """Keep the finished strip that begins at a row: values ``(bands, rows, W)``; none where it has no data."""
        with failing_as(self.target):
            unfinished = Path(tempfile.mkdtemp(dir=self.path, prefix=f"strip-{row:09d}.", suffix=".tmp"))
            try:
                for layer, values in layers:
                    write_strip(unfinished / f"{layer.name}.tif", layer, values)
                if not layers:
                    (unfinished / EMPTY).touch()
                put_in_place(unfinished, self._path(row))
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                if row not in self.rows:  # else another process made the same strip meanwhile
                    raise

    def file(self, row: int, layer: str) -> Path | None:
        """Return the file of a layer of a finished strip, None if the strip has no data."""
        return None if (self._path(row) / EMPTY).exists() else self._path(row) / f"{layer}.tif"

    def remove(self, row: int) -> None:
        """Forget a strip."""
        shutil.rmtree(self._path(row), ignore_errors=True)

    def clear(self, rows: Sequence[int]) -> None:
        """Remove what ended early of some strips."""
        for row in rows:
            for path in self.path.glob(f"strip-{row:09d}.*.tmp"):
                shutil.rmtree(path, ignore_errors=True)

    def begin_publishing(self) -> None:
        """Remember that what appears under the names of the outputs from now on is this run's."""
        with failing_as(self.target):
            (self.path / PUBLISHING).touch()

    def discard(self) -> None:
        """Remove it all."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def merging(self) -> Iterator[bool]:
        """Yield whether it falls to this process to put the strips together: not if another one is at it."""
        lock = FileLock(self.path / "merge.lock", timeout=0)
        try:
            lock.acquire()
        except (Timeout, FileNotFoundError):  # without a folder: another one is done with it
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _path(self, row: int) -> Path:
        return self.path / f"strip-{row:09d}"


class Journal:
    """The strips that one process finishes of a map; other shards may be at work in the same `StripFolder`.

    Use it in a ``with`` statement. The folder goes when the map is there, or when the block fails before a strip was
    finished; else it stays, and the same run goes on from it.

    Attributes:
        strips: The folder.
    """

    def __init__(
        self,
        target: Path,
        facts: Facts,
        *,
        rows: Sequence[int],
        plan: Facts | None = None,
        shard: Shard = WHOLE,
        contiguous: bool = False,
        restart: bool = False,
    ) -> None:
        """Take the target, and what its strips follow from.

        Args:
            target: The map to be.
            facts: In which two runs must agree for one to go on where the other left off.
            rows: First rows of the strips there will be.
            plan: What else is to be remembered, to put the strips together.
            shard: Which of them this process makes.
            contiguous: Whether the strips of a shard follow each other, rather than being every n-th.
            restart: Discard what an earlier run left.
        """
        self.strips = StripFolder(target)
        self.all_rows = tuple(rows)
        self._shard = shard
        self.own_rows = tuple(self._shard.of(self.all_rows, contiguous=contiguous))
        self._facts = json.loads(json.dumps(facts))
        self._plan = json.loads(json.dumps(plan or {}))
        self._restart = restart
        self._is_done = False
        folder = self.strips.path
        self._own_lock = FileLock(folder / f"shard-{self._shard.index}-of-{self._shard.count}.lock", timeout=0)
        self._entry = FileLock(folder / "entry.lock", timeout=MOST_WAIT_S)

    def __enter__(self) -> Self:
        with failing_as(self.strips.target):
            self.strips.path.mkdir(exist_ok=True)
            try:
                with self._entry:  # who looks at the locks of others takes them for a moment
                    if any(self._is_of_another_launch(path) for path in self._locks_of_others()):
                        raise self._is_at_work()
                    self._own_lock.acquire()
                    try:
                        self._take_over()
                        self.strips.clear(self.own_rows)
                    except BaseException:
                        self._own_lock.release()
                        raise
            except Timeout as error:
                raise self._is_at_work() from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept = len(self.strips.rows)
        if self._is_done:
            self.strips.discard()
        elif kind is not None and not kept:
            with self._entry:
                if not self._locks_of_others():
                    self.strips.discard()
        self._own_lock.release()
        if kind is None or not kept:
            return
        if isinstance(error, GeonormError):
            raise type(error)(f"{error} {self._how_to_go_on(kept)}") from error
        warnings.warn(self._how_to_go_on(kept), GeonormWarning, stacklevel=2)

    @property
    def missing(self) -> frozenset[int]:
        """First rows of the strips, of all shards, that are not finished."""
        return frozenset(self.all_rows) - self.strips.rows

    def keep(self, row: int, layers: Sequence[tuple[Layer, NDArray[Any]]]) -> None:
        """Keep a finished strip; see `StripFolder.keep`."""
        self.strips.keep(row, layers)

    def is_done(self) -> None:
        """Say that the map is there: the strips are not needed any more."""
        self._is_done = True

    def _how_to_go_on(self, kept: int) -> str:
        return f"{kept} of {len(self.all_rows)} strips are kept: run the same command again to go on."

    def _is_at_work(self) -> RasterError:
        return RasterError(f"another process is making {self.strips.target} just now. Wait for it, or stop it.")

    def _locks_of_others(self) -> list[Path]:
        """Return the locks that other shards hold."""
        own, held = Path(self._own_lock.lock_file), []
        for path in self.strips.path.glob("shard-*.lock"):
            if path != own:
                try:
                    with FileLock(path, timeout=0):
                        pass
                except Timeout:
                    held.append(path)
        return held

    def _is_of_another_launch(self, lock: Path) -> bool:
        return not lock.name.endswith(f"-of-{self._shard.count}.lock")

    def _take_over(self) -> None:
        """Keep the strips of an earlier run if they are those of this one; else say in what the two differ."""
        strips = self.strips
        earlier = (strips.read_plan() or {}).get("facts")
        if self._restart:
            with suppress(FileNotFoundError):
                (strips.path / PUBLISHING).unlink()
        if earlier == self._facts:
            for row in self.own_rows if self._restart else ():
                strips.remove(row)
            return
        if earlier is not None and strips.rows and not self._restart:
            raise InvalidConfigError(
                f"{len(strips.rows)} strips of another run for {strips.target} are kept in {strips.path}: "
                f"{_difference(earlier, self._facts)}. Run that one again to go on, or discard it with --restart."
            )
        if earlier is not None and not self._restart and any(self._locks_of_others()):
            raise InvalidConfigError(
                f"another shard of {strips.target} is at work with others: {_difference(earlier, self._facts)}. "
                "Give all shards the same; --engine, --core_px and --halo name what is otherwise chosen by the memory."
            )
        for row in strips.rows:
            strips.remove(row)
        strips.write_plan({"facts": self._facts, **self._plan})


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
