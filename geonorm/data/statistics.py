"""Band statistics and class shares of training images: measured once, kept in a file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from geonorm.data.checking_pixels import all_windows
from geonorm.data.pairs import Pair, open_pair
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import DatasetError
from geonorm.raster.grid import Grid
from geonorm.raster.window import Window

FORMAT = 1
"""Of the cache; figures of another one are measured anew."""
FILE_NAME = ".geonorm-statistics.json"
MOST_ENTRIES = 32
"""Kept in a cache, the newest: each choice of bands, classes or splits has one."""
NUM_WINDOWS = 256
SIDE_PX = 256
LEAST_DEVIATION = 1e-3


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What training images hold."""

    means: tuple[float, ...]
    """Mean of the valid values of each band."""
    deviations: tuple[float, ...]
    """Their deviation, at least `LEAST_DEVIATION`."""
    class_shares: tuple[float, ...]
    """Share of each class among the pixels that count; all 0 where none does."""
    exact: bool
    """Whether every pixel was read, rather than some windows."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared differences from it, of each band, ``(C,)``, float64.

    Those of several windows are merged, so that large values lose no digits (Chan, Golub and LeVeque, 1983).
    """

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of_none(cls, num_bands: int) -> Moments:
        """Return the moments of no values."""
        return cls(*(np.zeros(num_bands) for _ in range(3)))

    @classmethod
    def of(cls, values: NDArray[Any], valid: NDArray[np.bool_]) -> Moments:
        """Return the moments of the valid values of each band; both ``(C, H, W)``."""
        count = valid.sum((1, 2)).astype(np.float64)
        some = np.maximum(count, 1)
        exact = np.where(valid, values, 0).astype(np.float64)
        mean = exact.sum((1, 2)) / some
        apart = np.where(valid, exact - mean[:, None, None], 0)
        return cls(count, mean, (apart**2).sum((1, 2)))

    def merged(self, other: Moments) -> Moments:
        """Return the moments of both together."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        return Moments(count, self.mean + apart * share, self.squares + other.squares + apart**2 * self.count * share)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Deviation of each band, of all its pixels rather than of a sample."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))


def cached_statistics(pairs: Sequence[Pair], grids: Sequence[Grid], *, num_classes: int, seed: int) -> Statistics:
    """Return what `measure` gives, from a file where it was measured before.

    The file lies beside the first image, or, where that folder may not be written to, in the user's folder for caches.
    A file that has changed in size or time, and any other setting that matters, is another key. Several processes may
    measure at once; each writes a whole file.
    """
    key = fingerprint(pairs, num_classes=num_classes, seed=seed)
    places = cache_places(pairs[0].image)
    for place in places:
        entry = _read(place).get(key)
        with suppress(TypeError, KeyError, ValueError):
            if entry is not None:
                return _from_plain(entry, num_bands=len(pairs[0].bands), num_classes=num_classes)
    measured = measure(pairs, grids, num_classes=num_classes, seed=seed)
    for place in places:
        if _write(place, key, asdict(measured)):
            rank_zero_info(f"Band statistics and class shares measured; kept in {place}.")
            return measured
    rank_zero_info("Band statistics and class shares are measured in every run: there is no folder to keep them in.")
    return measured


def measure(pairs: Sequence[Pair], grids: Sequence[Grid], *, num_classes: int, seed: int) -> Statistics:
    """Return band statistics and class shares: of all pixels where there are few, else of random windows.

    Args:
        pairs: Images and labels.
        grids: Of the images.
        num_classes: Number of classes.
        seed: Chooses the windows; each pixel is about as likely as any other.

    Raises:
        DatasetError: A band has no valid value in the windows.
        RasterError: A file cannot be read.
    """
    places, exact = _places(grids, seed=seed)
    moments = Moments.of_none(len(pairs[0].bands))
    labels = np.zeros(256, dtype=np.int64)
    for which, windows in places:
        with open_pair(pairs[which]) as pair:
            for window in windows:
                pixels = pair.read(window)
                labels += np.bincount(
                    np.where(pixels.valid, pair.read_labels(window), IGNORE_LABEL).reshape(-1), minlength=256
                )
                moments = moments.merged(Moments.of(pixels.values, pixels.value_valid & pixels.valid))
    if not moments.count.all():
        raise DatasetError(
            f"the training images, {pairs[0].image} the first, hold a band with no valid pixel. Check their nodata "
            "value and their mask with gdalinfo."
        )
    classes = labels[:num_classes]
    return Statistics(
        means=tuple(moments.mean.tolist()),
        deviations=tuple(np.maximum(moments.deviation, LEAST_DEVIATION).tolist()),
        class_shares=tuple((classes / max(1, classes.sum())).tolist()),
        exact=exact,
    )


def fingerprint(pairs: Sequence[Pair], *, num_classes: int, seed: int) -> str:
    """Return letters that change with the files and with every setting that statistics depend on."""
    files = [
        (os.path.abspath(path), stat.st_size, stat.st_mtime_ns)
        for pair in pairs
        for path in (pair.image, pair.labels)
        for stat in [os.stat(path)]
    ]
    ways = [(pair.bands, repr(pair.rules), pair.nodata, pair.nodata_rule) for pair in pairs]
    content = [FORMAT, files, ways, num_classes, seed, NUM_WINDOWS, SIDE_PX]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def cache_places(image: str) -> list[Path]:
    """Return the files in which statistics may be kept, the first choice first."""
    beside = Path(image).absolute().parent
    places = [beside / FILE_NAME] if _may_write(beside) else []
    name = hashlib.sha256(str(beside).encode()).hexdigest()[:16]
    return [*places, user_cache() / "statistics" / f"{name}.json"]


def user_cache() -> Path:
    """Return the folder in which the platform keeps caches of its user."""
    if sys.platform == "darwin":
        return Path("~/Library/Caches/geonorm").expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path("~/AppData/Local").expanduser()) / "geonorm" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "geonorm"


def _places(grids: Sequence[Grid], *, seed: int) -> tuple[Iterator[tuple[int, list[Window]]], bool]:
    """Return windows of images by the image, and whether they are all of them."""
    areas = np.array([grid.height * grid.width for grid in grids], dtype=float)
    if areas.sum() <= NUM_WINDOWS * SIDE_PX**2:
        return ((which, list(all_windows(grid.height, grid.width))) for which, grid in enumerate(grids)), True
    draw = np.random.default_rng(seed)
    windows: dict[int, list[Window]] = {}
    for which in draw.choice(len(areas), size=NUM_WINDOWS, p=areas / areas.sum()).tolist():
        grid = grids[which]
        height, width = min(SIDE_PX, grid.height), min(SIDE_PX, grid.width)
        row, col = (int(draw.integers(size)) for size in (grid.height - height + 1, grid.width - width + 1))
        windows.setdefault(which, []).append(Window(row, col, height, width))
    return iter(sorted(windows.items())), False


def _may_write(folder: Path) -> bool:
    """Whether a folder is meant to be written to: an administrator could, where its owner has forbidden it."""
    try:
        return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
    except OSError:
        return False


def _read(place: Path) -> dict[str, Any]:
    """Return what a cache holds; nothing where it is not there or is not whole."""
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(place: Path, key: str, entry: dict[str, Any]) -> bool:
    """Add an entry to a cache, whole or not at all; return whether it is there."""
    entries = {other: value for other, value in _read(place).items() if other != key}
    kept = dict([*entries.items(), (key, entry)][-MOST_ENTRIES:])
    written = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, written = tempfile.mkstemp(prefix=f"{FILE_NAME}.", dir=place.parent)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(kept, file, indent=1)
        os.chmod(written, 0o666 & ~_umask())  # mkstemp lets nobody else read it
        os.replace(written, place)
    except OSError:
        if written is not None:
            with suppress(OSError):
                os.unlink(written)
        return False
    return True


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _from_plain(entry: dict[str, Any], *, num_bands: int, num_classes: int) -> Statistics:
    """Return the statistics of a cache entry.

    Raises:
        ValueError: They are not what they should be.
    """
    means, deviations, shares = (tuple(map(float, entry[name])) for name in ("means", "deviations", "class_shares"))
    numbers = (*means, *deviations, *shares)
    if (len(means), len(deviations), len(shares)) != (num_bands, num_bands, num_classes):
        raise ValueError("not as many numbers as bands and classes")
    if not all(map(math.isfinite, numbers)):
        raise ValueError("numbers that are not finite")
    return Statistics(means=means, deviations=deviations, class_shares=shares, exact=bool(entry["exact"]))
