"""What can be seen of images and labels without reading a pixel: headers, grids, block tables, attributes."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import shapely  # type: ignore[import-untyped]  # ships no types

from geonorm.data.checking_findings import Findings
from geonorm.data.labels import LabelRules, areas_of, is_vector, open_labels
from geonorm.data.pairs import Pair
from geonorm.errors import GeonormError, naming
from geonorm.raster.facts import RasterFacts, facts_of
from geonorm.raster.footprint import footprint
from geonorm.raster.grid import Grid
from geonorm.raster.read import open_raster

MOST_RESOLUTION = 1.5
"""Factor by which the pixels of images may differ in size; `geonorm predict` warns beyond it, too."""
LEAST_OVERLAP = 0.01
"""Share of the smaller image that lies on another one's ground before it is told."""
LEAST_PIXEL_M, MOST_PIXEL_M = 1e-3, 1e5
"""Ground sizes of a pixel that are believed."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """A pair whose files open and fit together."""

    pair: Pair
    split: str
    grid: Grid
    facts: RasterFacts
    """Of the image."""
    label_facts: RasterFacts | None
    """Of the labels, if they are a raster."""
    ground: Any
    """Outline of the image in longitude and latitude, None where it is not known."""

    @property
    def unused_bands(self) -> list[int]:
        """Bands of the image, counted from 1, that are not read and not tagged alpha."""
        tags = enumerate(self.facts.interpretations, start=1)
        return [band for band, tag in tags if tag != "alpha" and band not in self.pair.bands]


def check_header(
    pair: Pair, split: str, findings: Findings, *, patch_px: int, polygons: dict[tuple[str, LabelRules], bool]
) -> Header | None:
    """Return what the headers of a pair say; None where one of its files is of no use.

    Args:
        pair: Image and labels.
        split: That they are in.
        findings: Take what is wrong.
        patch_px: Side of a training patch.
        polygons: Whether files of polygons can be used, as far as it is known; one may serve all images.
    """
    for kind, file in (("image does not open", pair.image), ("labels do not open", pair.labels)):
        if os.path.isfile(file) and not os.access(file, os.R_OK):
            findings.error(kind, file, f"{file} may not be read (permissions). Change who may read it, with chmod.")
            return None
    try:
        with open_raster(pair.image, bands=pair.bands, nodata_rule=pair.nodata_rule, nodata=pair.nodata) as image:
            facts, grid = facts_of(image), image.grid
    except GeonormError as error:
        findings.error("image does not open", pair.image, naming(pair.image, error))
        return None
    _check_place(pair, grid, findings)
    if split == "train":
        _check_size(pair, grid, findings, patch_px=patch_px)
    if is_vector(pair.labels):
        key = pair.labels, pair.rules
        if key not in polygons:
            polygons[key] = check_polygons(pair.labels, pair.rules, findings)
        if not polygons[key]:
            return None
        if grid.crs is None or not grid.has_transform or grid.transform.is_degenerate:
            findings.error(
                "no place on the ground",
                pair.image,
                f"{pair.image} does not say where it lies (CRS, transform), so the polygons of {pair.labels} cannot be "
                "laid on it. Give it both with gdal_translate -a_srs -a_ullr, or labels as a raster.",
            )
            return None
        label_facts = None
    else:
        try:
            with open_labels(pair.labels, pair.rules, image) as labels:
                label_facts, own = labels.facts, labels.own_grid
        except GeonormError as error:
            findings.error("labels do not open", pair.labels, naming(pair.labels, error))
            return None
        if label_facts is None or own is None:
            return None
        fits = _check_label_bands(pair, label_facts, findings)
        if not _check_label_place(pair, grid, own, findings) or not fits:
            return None
    return Header(pair=pair, split=split, grid=grid, facts=facts, label_facts=label_facts, ground=footprint(grid))


def check_polygons(path: str, rules: LabelRules, findings: Findings) -> bool:
    """Say what is wrong with a file of polygons; return whether it can be used."""
    before = len(findings.errors)
    try:
        areas = areas_of(path, os.stat(path).st_mtime_ns if os.path.exists(path) else 0, rules.attribute, rules.layer)
    except GeonormError as error:
        findings.error("labels do not open", path, naming(path, error))
        return False
    polygons = sum(len(area.polygons) for area in areas.values())
    if not polygons:
        findings.error(
            "no polygons",
            path,
            f"{path} holds no polygons, so there is nothing to learn. Name a file or layer of some.",
        )
    if rules.attribute is not None:
        unknown = {value: 0 for value in areas if not rules.knows(value)}
        if unknown and not rules.ignore_others:
            text = rules.unknown_in_words(unknown, name=f"{rules.attribute} of {path}")
            findings.error("label values", path, text)
    broken = sum(int((~shapely.is_valid(area.polygons)).sum()) for area in areas.values())
    if broken:
        findings.warning(
            "broken polygons",
            path,
            f"{path} holds {broken} polygon(s) that cross themselves; they are mended as GEOS sees fit. Look at them, "
            "or repair them with ogr2ogr -makevalid.",
        )
    return len(findings.errors) == before


def _check_place(pair: Pair, grid: Grid, findings: Findings) -> None:
    t = grid.transform
    if not all(map(math.isfinite, t[:6])) or (grid.has_transform and t.is_degenerate):
        findings.error(
            "absurd transform",
            pair.image,
            f"{pair.image} has pixels without a size: its transform is {tuple(t)[:6]}. Give it a true one with "
            "gdal_translate -a_ullr, or none.",
        )
        return
    size_m = grid.resolution_m
    if size_m is not None and not LEAST_PIXEL_M <= size_m <= MOST_PIXEL_M:
        findings.warning(
            "absurd transform",
            pair.image,
            f"{pair.image} has pixels of {size_m:.3g} m on the ground, which is hard to believe. Check its transform "
            "and its CRS with gdalinfo.",
        )


def _check_size(pair: Pair, grid: Grid, findings: Findings, *, patch_px: int) -> None:
    if min(grid.height, grid.width) < patch_px:
        findings.warning(
            "smaller than a patch",
            pair.image,
            f"{pair.image} is {grid.height} x {grid.width} pixels, smaller than a patch of {patch_px}: its patches are "
            "extended by reflection. Choose a smaller patch_px, or leave it out.",
        )


def _check_label_bands(pair: Pair, facts: RasterFacts, findings: Findings) -> bool:
    """Say whether labels are one band of numbers."""
    count = facts.count_without_alpha
    if count < 2:
        return True
    if {"red", "green", "blue"} <= {*facts.interpretations}:
        findings.error(
            "labels in colours",
            pair.labels,
            f"{pair.labels} has {count} bands, red, green and blue; labels are one band of numbers. Turn each colour "
            "into the number of its class (rgb2pct.py, gdal_calc.py); if the bands are alike, keep one with "
            "gdal_translate -b 1.",
        )
        return False
    findings.warning(
        "labels of several bands",
        pair.labels,
        f"{pair.labels} has {count} bands; the first is taken for the labels. Make sure that it is, or keep the right "
        "one with gdal_translate -b.",
    )
    return True


def _check_label_place(pair: Pair, grid: Grid, own: Grid, findings: Findings) -> bool:
    """Say whether labels lie on the ground of their image, as far as both say where they lie."""
    lies = grid.crs is not None and grid.has_transform
    if not (own.crs is not None and own.has_transform):
        if lies:
            findings.warning(
                "labels without a place",
                pair.labels,
                f"{pair.labels} does not say where it lies (CRS, transform), its image {pair.image} does; they are "
                "matched pixel by pixel. Make sure that they show the same ground.",
            )
        return True
    if not lies or own.transform.is_degenerate or grid.transform.is_degenerate:
        return True
    assert own.crs is not None
    ours, theirs = footprint(grid, own.crs.to_wkt()), footprint(own, own.crs.to_wkt())
    if ours is None or theirs is None:
        if own.crs != grid.crs:
            findings.error(
                "labels elsewhere",
                pair.labels,
                f"the CRS of {pair.labels} and that of its image {pair.image} cannot be brought together. Give both "
                "one CRS with gdalwarp -t_srs.",
            )
            return False
        return True
    if not ours.intersection(theirs).area > 0:
        findings.error(
            "labels elsewhere",
            pair.labels,
            f"{pair.labels} lies elsewhere than its image {pair.image}: they share no ground. Check the CRS and the "
            "transform of both with gdalinfo.",
        )
        return False
    if (own.height, own.width) == (grid.height, grid.width) and not pair.rules.any_grid:
        shift_px = _shift_px(grid, own)
        if shift_px is not None and shift_px > 0.5:
            findings.warning(
                "labels shifted",
                pair.labels,
                f"{pair.labels} lies {shift_px:.1f} pixels beside its image {pair.image} by its transform, but is "
                "matched pixel by pixel. Look at the pictures; bring it to the image's grid if it is shifted.",
            )
    return True


def _shift_px(grid: Grid, own: Grid) -> float | None:
    """Return the distance of the upper left corners in pixels, None for other systems."""
    if grid.crs != own.crs:
        return None
    col, row = ~grid.transform @ (own.transform.c, own.transform.f)
    return math.hypot(row, col)


def check_together(headers: Sequence[Header], findings: Findings) -> None:
    """Say where files do not fit to each other: bands, ground size, splits that share files or ground."""
    _check_bands(headers, findings)
    _check_unused_bands(headers, findings)
    _check_resolution(headers, findings)
    _check_same_files(headers, findings)
    _check_ground(headers, findings)


def _check_bands(headers: Sequence[Header], findings: Findings) -> None:
    counts = Counter(header.facts.count_without_alpha for header in headers)
    if len(counts) < 2:
        return
    usual, _ = counts.most_common(1)[0]
    for header in headers:
        count = header.facts.count_without_alpha
        if count != usual:
            findings.warning(
                "number of bands",
                header.pair.image,
                f"{header.pair.image} has {count} band(s), most images have {usual}; bands "
                f"{list(header.pair.bands)} are read of all. Make sure that they mean the same.",
            )


def _check_unused_bands(headers: Sequence[Header], findings: Findings) -> None:
    """Say which bands all images have and training does not take, where nobody chose the bands."""
    if not headers or any(header.pair.bands_chosen for header in headers):
        return
    unused = sorted(set.intersection(*({*header.unused_bands} for header in headers)))
    if not unused:
        return
    first, taken = headers[0].pair, list(headers[0].pair.bands)
    others = f" and {len(headers) - 1} more" if len(headers) > 1 else ""
    what, it = ("band", "it") if len(unused) == 1 else ("bands", "them")
    findings.warning(
        "bands not used",
        [header.pair.image for header in headers],
        f"{what} {', '.join(map(str, unused))} of {first.image}{others} {'is' if it == 'it' else 'are'} not used. "
        f"--data.bands '{sorted(taken + unused)}' takes {it} (RastersDataModule), '{taken}' says that it is meant so.",
    )


def _check_resolution(headers: Sequence[Header], findings: Findings) -> None:
    sizes = {header.pair.image: header.grid.resolution_m for header in headers}
    known = [size for size in sizes.values() if size]
    usual = median(known) if known else None
    for image, size in sizes.items():
        if usual and size and max(size / usual, usual / size) > MOST_RESOLUTION:
            findings.warning(
                "ground size of a pixel",
                image,
                f"{image} has pixels of {size:.3g} m, most images of {usual:.3g} m: houses are of another size in it. "
                "Resample it with gdalwarp -tr, or train on it apart.",
            )


def _check_same_files(headers: Sequence[Header], findings: Findings) -> None:
    """Say where one file is in two splits, by whatever name; one labels file of polygons may serve all."""
    seen: dict[Any, Header] = {}
    for header in headers:
        stat = os.stat(header.pair.image)
        key = (stat.st_dev, stat.st_ino) if stat.st_ino else Path(header.pair.image).resolve()
        first = seen.setdefault(key, header)
        # A data module that puts one pair into two splits was told to (train_on_all of InriaDataModule).
        if first.pair != header.pair:
            tell_twice(first, header, findings, copied=False)


def tell_twice(first: Header, header: Header, findings: Findings, *, copied: bool) -> None:
    """Say that an image is another one: an error where one file is in two splits, else a warning."""
    files = (header.pair.image, first.pair.image)
    verb = "holds the same pixels as" if copied else "is the same file as"
    if first.split == header.split:
        text = f"{files[0]} {verb} {files[1]}, both for {first.split}: it counts twice. Leave one out."
    else:
        text = (
            f"{files[0]} ({header.split}) {verb} {files[1]} ({first.split}): scores on what was trained on mean "
            "nothing. Leave it out of one split."
        )
    tell = findings.error if first.split != header.split and not copied else findings.warning
    tell("same image twice", files, text)


def _check_ground(headers: Sequence[Header], findings: Findings) -> None:
    """Say where images of different splits show the same ground."""
    placed = [header for header in headers if header.ground is not None]
    if not placed:
        return
    trained_too = {header.pair.image for header in headers if header.split == "train"}
    tree = shapely.STRtree([header.ground for header in placed])
    beside: dict[int, dict[str, list[tuple[float, str]]]] = defaultdict(lambda: defaultdict(list))
    for one, other in zip(*tree.query([header.ground for header in placed], predicate="intersects"), strict=True):
        first, second = placed[one], placed[other]
        if (first.split, second.split) not in {("val", "train"), ("test", "train"), ("test", "val")}:
            continue
        if placed[one].pair.image in trained_too:
            continue
        shared = first.ground.intersection(second.ground).area / min(first.ground.area, second.ground.area)
        if shared > LEAST_OVERLAP:
            beside[int(one)][second.split].append((float(shared), second.pair.image))
    for one, splits in sorted(beside.items()):
        for split, others in splits.items():
            share, most = max(others)
            image = placed[one].pair.image
            findings.warning(
                "same ground in two splits",
                (image, *(name for _, name in others)),
                f"{image} ({placed[one].split}) shows {100 * share:.0f} % of the ground of {most} ({split})"
                f"{f' and of {len(others) - 1} more' if len(others) > 1 else ''}: scores will be too good. Put images "
                "of one place into one split.",
            )
