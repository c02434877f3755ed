"""What images and labels hold, window by window: counts, ranges, what means nothing."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geonorm.data.checking_findings import Findings
from geonorm.data.checking_headers import Header
from geonorm.data.labels import Value
from geonorm.data.pairs import OpenPair, Pair, open_pair
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import GeonormError, naming
from geonorm.raster.alpha import alpha_in_words, image_in_alpha
from geonorm.raster.read import Pixels
from geonorm.raster.window import Window

SIDE_PX = 256
"""Side of a window that is looked at."""
AT_ONCE_PX = 2**22
"""Pixels that are read at once where a file is read whole."""
ALPHA_WINDOWS = 5
"""Windows in which a band tagged as alpha is looked at."""
MANY_NAN = 0.05
"""Share of values that are not finite before it is told; they count as pixels without data."""


@dataclass(kw_only=True, eq=False)
class Looked:
    """What the windows of a pair hold."""

    header: Header
    complete: bool
    """Whether they are all of it."""
    pixels: int = 0
    """Pixels looked at."""
    no_data: int = 0
    """Pixels of them where the image has no data."""
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    """Pixels of each label, where the image has data; those that do not count at `IGNORE_LABEL`."""
    unknown: Counter[Value] = field(default_factory=Counter)
    """Pixels of each value of the labels that means nothing."""
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Values that count, of each band."""
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    lows: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Least value of each band; infinite where there is none."""
    highs: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    not_finite: int = 0
    """Values that are NaN or infinite."""
    digest: str = ""
    """Same for images with the same values in the same windows."""
    best: dict[int, tuple[int, Window]] = field(default_factory=dict)
    """For each label, the window that holds most of it, and how much."""

    @property
    def split(self) -> str:
        """Its split."""
        return self.header.split

    @property
    def pair(self) -> Pair:
        """Its files."""
        return self.header.pair

    @property
    def is_flat(self) -> bool:
        """Whether every band has one value wherever it was looked at."""
        return bool(self.counts.any() and (self.lows >= self.highs).all())

    @property
    def labelled(self) -> int:
        """Pixels that have a class and data."""
        return int(self.labels[:IGNORE_LABEL].sum())


def look_at(
    header: Header,
    findings: Findings,
    class_names: Sequence[str],
    *,
    windows: int | None,
    advance: Callable[[int], object] = lambda pixels: None,
) -> Looked | None:
    """Return what a pair holds; None where it cannot be read, which is then among the findings.

    Args:
        header: The pair.
        findings: Take what is wrong.
        class_names: Names of the labels from 0.
        windows: Windows to look at, spread over the image; None: every pixel.
        advance: Told the number of pixels of each window.
    """
    places, complete = windows_of(header, windows)
    looked = Looked(header=header, complete=complete)
    digest = hashlib.sha256(f"{header.grid.height} {header.grid.width}".encode())
    file = header.pair.image
    try:
        with open_pair(header.pair) as files:
            for place in places:
                file = header.pair.image
                pixels = files.read(place)
                file = header.pair.labels
                labels, unknown = files.labels.counted(place)
                _take(looked, pixels, labels, unknown, place)
                digest.update(np.ascontiguousarray(pixels.values).tobytes())
                advance(place.height * place.width)
            file = header.pair.image
            alpha = image_in_alpha(files.image, places[:ALPHA_WINDOWS])
    except GeonormError as error:
        findings.error("cannot be read", file, naming(file, error))
        return None
    looked.digest = digest.hexdigest()
    _check_labels(looked, findings, class_names)
    _check_image(looked, findings)
    if alpha is not None:
        findings.warning("image tagged as alpha", file, alpha_in_words(file, alpha))
    return looked


def windows_of(header: Header, windows: int | None) -> tuple[list[Window], bool]:
    """Return windows of an image, and whether they are all of it.

    A few are spread evenly, as a function of the size of the image alone (the R2 sequence of M. Roberts, 2018).
    """
    height, width = header.grid.height, header.grid.width
    if windows is None or windows * SIDE_PX**2 >= height * width:
        return list(all_windows(height, width)), True
    rows, cols = min(SIDE_PX, height), min(SIDE_PX, width)
    plastic = 1.32471795724474602596
    shares = [((0.5 + i / plastic) % 1, (0.5 + i / plastic**2) % 1) for i in range(windows)]
    return [Window(round(y * (height - rows)), round(x * (width - cols)), rows, cols) for y, x in shares], False


def pixels_to_look_at(header: Header, windows: int | None) -> int:
    """Return how many pixels `look_at` reads."""
    return sum(place.height * place.width for place in windows_of(header, windows)[0])


def all_windows(height: int, width: int) -> Iterator[Window]:
    """Yield windows that cover an image: of whole rows where they are short, as most files are stored so."""
    side = math.isqrt(AT_ONCE_PX)
    wide = width if width <= 8 * side else side
    high = max(SIDE_PX, AT_ONCE_PX // wide // SIDE_PX * SIDE_PX)
    for row in range(0, height, high):
        for col in range(0, width, wide):
            yield Window(row, col, min(high, height - row), min(wide, width - col))


def _take(looked: Looked, pixels: Pixels, labels: NDArray[np.uint8], unknown: dict[Value, int], place: Window) -> None:
    values, valid = pixels.values, pixels.value_valid & pixels.valid
    bands = len(values)
    if not len(looked.counts):
        looked.counts = np.zeros(bands, dtype=np.int64)
        looked.sums, looked.squares = np.zeros(bands), np.zeros(bands)
        looked.lows, looked.highs = np.full(bands, np.inf), np.full(bands, -np.inf)
    for band in range(bands):
        counting = values[band][valid[band]] if not valid[band].all() else values[band].reshape(-1)
        looked.counts[band] += counting.size
        if counting.size:
            wide = counting.astype(np.float64)
            looked.sums[band] += wide.sum()
            looked.squares[band] += wide @ wide
            looked.lows[band] = min(looked.lows[band], wide.min())
            looked.highs[band] = max(looked.highs[band], wide.max())
    if values.dtype.kind == "f":
        looked.not_finite += int((~np.isfinite(values)).sum())
    looked.pixels += pixels.valid.size
    looked.no_data += int((~pixels.valid).sum())
    counted = np.where(pixels.valid, labels, IGNORE_LABEL).astype(np.uint8)
    looked.labels += np.bincount(counted.reshape(-1), minlength=256)
    looked.unknown.update(unknown)
    for row in range(0, place.height, SIDE_PX):
        for col in range(0, place.width, SIDE_PX):
            part = counted[row : row + SIDE_PX, col : col + SIDE_PX]
            window = Window(place.row + row, place.col + col, *part.shape)
            times = np.bincount(part.reshape(-1), minlength=256)
            for label in np.flatnonzero(times).tolist():
                if times[label] > looked.best.get(label, (0, window))[0]:
                    looked.best[label] = int(times[label]), window


def _check_labels(looked: Looked, findings: Findings, class_names: Sequence[str]) -> None:
    pair, facts = looked.pair, looked.header.label_facts
    if looked.unknown:
        text = pair.rules.unknown_in_words(dict(sorted(looked.unknown.items())), name=pair.labels)
        if facts is not None and facts.has_palette:
            text += " It has a colour table; these are the numbers of its colours."
        findings.error("label values", pair.labels, text)
        return
    have_data = looked.pixels - looked.no_data
    if have_data and not looked.labelled and looked.complete:
        findings.warning(
            "all ignored",
            pair.labels,
            f"{pair.labels} gives no pixel of {pair.image} a class: all are ignored. Leave the pair out, or check the "
            "values and the place of the labels.",
        )
    present = np.flatnonzero(looked.labels[:IGNORE_LABEL])
    if looked.complete and len(present) == 1 and len(pair.rules.classes) > 1:
        findings.warning(
            "one class",
            pair.labels,
            f"{pair.labels} gives every pixel that counts the class {class_names[present[0]]}. Right where there is "
            "nothing else to see; if not, check the values and the place of the labels.",
        )


def _check_image(looked: Looked, findings: Findings) -> None:
    image = looked.pair.image
    where = "" if looked.complete else f" in the {looked.pixels:,} pixels looked at"
    if looked.no_data == looked.pixels:
        findings.warning(
            "no data",
            image,
            f"{image} holds no pixel with data{where}: nothing can be learned from it. Leave it out, or check its "
            "nodata value and its mask with gdalinfo.",
        )
    elif looked.is_flat:
        values = ", ".join(f"{low:g}" for low in looked.lows)
        findings.warning(
            "flat image",
            image,
            f"{image} has the same value everywhere{where}: {values}. Leave it out, or say that it is nodata.",
        )
    share = looked.not_finite / max(1, looked.pixels * len(looked.counts))
    if share > MANY_NAN and looked.no_data < looked.pixels:
        findings.warning(
            "not finite",
            image,
            f"{100 * share:.0f} % of the values of {image} are NaN or infinite{where}; they count as pixels without "
            "data. Check how it was made.",
        )


def covering(open_pair: OpenPair) -> Sequence[Window]:
    """Return windows that cover a pair."""
    return list(all_windows(open_pair.grid.height, open_pair.grid.width))


def same_pixels(one: Pair, other: Pair) -> bool:
    """Whether two images have the same values everywhere; read until they differ."""
    with open_pair(one) as first, open_pair(other) as second:
        if (first.grid.height, first.grid.width) != (second.grid.height, second.grid.width):
            return False
        return all(_equal(first.read(place).values, second.read(place).values) for place in covering(first))


def only_label(pair: Pair) -> int | None:
    """Return the label of all pixels that count, None if there are several; read until two are found."""
    found: set[int] = set()
    with open_pair(pair) as files:
        for place in covering(files):
            found |= {*np.unique(files.labels.counted(place)[0]).tolist()} - {IGNORE_LABEL}
            if len(found) > 1:
                return None
    return found.pop() if found else IGNORE_LABEL


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
