"""What is wrong with a data set: the same checks before every training, and at length for `geonorm check_data`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from geonorm.data.checking_findings import Findings
from geonorm.data.checking_headers import Header, check_header, check_together, tell_twice
from geonorm.data.checking_pixels import Looked, look_at, only_label, same_pixels
from geonorm.data.labels import LabelRules
from geonorm.data.pairs import Pair
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import name_some

MOST_RANGE = 8.0
"""Factor by which the values of images may differ before it is told."""


@dataclass(frozen=True, kw_only=True)
class Thoroughness:
    """How much is looked at."""

    windows: int | None
    """Windows of each image; None: every pixel."""
    most_files: int | None = None
    """Images whose pixels are looked at, spread over each split; None: all."""


QUICK = Thoroughness(windows=2, most_files=64)
"""What is looked at before a training, beside the header of every file."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found out about a data set."""

    findings: Findings
    headers: list[Header]
    """Of the pairs whose files open and fit together."""
    looked: list[Looked]
    """Of those whose pixels were looked at and can be read."""

    @property
    def mixes_types(self) -> bool:
        """Whether images differ in their type of value."""
        return len({header.facts.dtype for header in self.headers}) > 1


def check_pairs(
    splits: Mapping[str, Sequence[Pair]],
    class_names: Sequence[str],
    *,
    patch_px: int,
    thoroughness: Thoroughness = QUICK,
    findings: Findings | None = None,
    on_header: Callable[[], object] = lambda: None,
    on_headers: Callable[[list[Header]], object] = lambda headers: None,
    on_pixels: Callable[[int], object] = lambda pixels: None,
) -> Checked:
    """Look over the files of a data set.

    Every header is read; of the pixels, what ``thoroughness`` says. Memory holds one window at a time.

    Args:
        splits: Images and labels.
        class_names: Names of the labels from 0.
        patch_px: Side of a training patch.
        thoroughness: How many pixels are looked at.
        findings: Takes what is wrong; may hold what was found before.
        on_header: Called when a header has been read.
        on_headers: Called with all of them.
        on_pixels: Called with the number of pixels of each window that was looked at.
    """
    findings = Findings() if findings is None else findings
    headers: list[Header] = []
    polygons: dict[tuple[str, LabelRules], bool] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            header = check_header(pair, split, findings, patch_px=patch_px, polygons=polygons)
            headers += [] if header is None else [header]
            on_header()
    on_headers(headers)
    check_together(headers, findings)
    looked = [
        one
        for header in _chosen(headers, thoroughness.most_files)
        if (one := look_at(header, findings, class_names, windows=thoroughness.windows, advance=on_pixels)) is not None
    ]
    _check_training(looked, headers, class_names, findings)
    _check_ranges(looked, findings)
    _check_same_pixels(looked, findings)
    return Checked(findings=findings, headers=headers, looked=looked)


def _chosen(headers: Sequence[Header], most: int | None) -> list[Header]:
    """Return as many headers of each split, spread evenly."""
    splits: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        splits[header.split].append(header)
    chosen: list[Header] = []
    for members in splits.values():
        step = max(1.0, len(members) / most) if most else 1.0
        chosen += [members[int(i * step)] for i in range(min(len(members), most or len(members)))]
    return chosen


def _check_training(
    looked: Sequence[Looked], headers: Sequence[Header], class_names: Sequence[str], findings: Findings
) -> None:
    """Say what the training split as a whole lacks."""
    trained = [one for one in looked if one.split == "train"]
    all_trained = [header for header in headers if header.split == "train"]
    if not trained or any(one.unknown for one in trained):
        return
    first = trained[0].pair
    with_others = f" and {len(all_trained) - 1} more" if len(all_trained) > 1 else ""
    every_pixel = len(trained) == len(all_trained) and all(one.complete for one in trained)
    labels = sum((one.labels for one in trained), np.zeros(256, dtype=np.int64))
    if all(one.no_data == one.pixels for one in trained):
        findings.error(
            "no data",
            [one.pair.image for one in trained],
            f"the training images, {first.image}{with_others}, hold no valid pixel where they were looked at. "
            "Check their nodata value and their mask with gdalinfo.",
        )
        return
    present = np.flatnonzero(labels[:IGNORE_LABEL])
    if len(present) < 2 and (every_pixel or _is_uniform(all_trained, present)):
        what = f"the class {class_names[present[0]]} alone" if len(present) else "no pixel that counts"
        findings.error(
            "one class" if len(present) else "all ignored",
            [header.pair.labels for header in all_trained],
            f"the training labels, {first.labels}{with_others}, hold {what}, so there is nothing to learn. Check what "
            "their values mean, where they lie, and what is validated on.",
        )
        return
    missing = [name for label, name in enumerate(class_names) if not labels[label]]
    if missing:
        some = (
            ""
            if every_pixel
            else f" in the {int(labels.sum()):,} pixels looked at; geonorm check_data --full reads all"
        )
        findings.warning(
            "class missing",
            [one.pair.labels for one in trained],
            f"the training labels, {first.labels}{with_others}, hold no pixel of {name_some(missing)}{some}. A class "
            "without an example is not learned.",
        )


def _is_uniform(headers: Sequence[Header], seen: np.ndarray) -> bool:
    """Whether all training labels are of one class; read until two are found."""
    found = {*seen.tolist()}
    for header in headers:
        label = only_label(header.pair)
        if label is None:
            return False
        found |= {label} - {IGNORE_LABEL}
        if len(found) > 1:
            return False
    return True


def _check_ranges(looked: Sequence[Looked], findings: Findings) -> None:
    """Say which images have values of quite another size than the rest."""
    highs = {one.pair.image: float(one.highs.max()) for one in looked if one.counts.any() and not one.is_flat}
    usual = median(highs.values()) if highs else 0
    for one in looked:
        high = highs.get(one.pair.image)
        if high is None or usual <= 0 or high <= 0 or max(high / usual, usual / high) <= MOST_RANGE:
            continue
        findings.warning(
            "range of values",
            one.pair.image,
            f"{one.pair.image} ({one.header.facts.dtype}) has values up to {high:g}, most images up to about "
            f"{usual:g}. All are scaled alike: bring them to one range with gdal_translate -scale -ot.",
        )
    bands = {len(one.counts) for one in looked}
    if len(bands) == 1 and len(looked) > 1 and bands.pop() > 1:
        _check_dead_bands(looked, findings)


def _check_dead_bands(looked: Sequence[Looked], findings: Findings) -> None:
    """Say which bands hold one value in all images, such as an opacity that is read as a colour."""
    lows, highs = np.min([one.lows for one in looked], axis=0), np.max([one.highs for one in looked], axis=0)
    for index in np.flatnonzero(lows == highs).tolist() if (lows != highs).any() else []:
        pair = looked[0].pair
        findings.warning(
            "flat band",
            pair.image,
            f"band {pair.bands[index]} of {pair.image} and of all others holds the value {lows[index]:g} wherever it "
            "was looked at: it says nothing. Leave it out with bands.",
        )


def _check_same_pixels(looked: Sequence[Looked], findings: Findings) -> None:
    """Say which images are copies of each other under other names."""
    known = Counter(pair for finding in findings.found if finding.kind == "same image twice" for pair in finding.files)
    first: dict[str, Looked] = {}
    for one in looked:
        if one.is_flat or one.no_data == one.pixels:
            continue
        other = first.setdefault(one.digest, one)
        if other.pair == one.pair or known[one.pair.image]:
            continue
        if (one.complete and other.complete) or same_pixels(one.pair, other.pair):
            tell_twice(other.header, one.header, findings, copied=True)
