"""A data set looked over: what it holds, what is wrong with it, and how it looks."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from geonorm.data.checking import Checked, Thoroughness, check_pairs
from geonorm.data.checking_findings import Finding, Findings
from geonorm.data.checking_headers import Header
from geonorm.data.checking_pixels import Looked, pixels_to_look_at
from geonorm.data.patch_module import PatchDataModule
from geonorm.data.spec import IGNORE_LABEL, DatasetSpec
from geonorm.errors import InvalidConfigError, name_some
from geonorm.evaluation.data_pictures import draw_sheet, save
from geonorm.files import make_folder, write_text

MOST_OF_A_KIND = 8
"""Findings of one kind that are printed; the files hold all."""
MEGA = 10**6


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What was found out about a data set."""

    checked: Checked
    splits: dict[str, dict[str, Any]]
    """Figures of each split, as in ``check.json``."""
    spec: DatasetSpec
    written: tuple[Path, ...]

    @property
    def errors(self) -> list[Finding]:
        """What training could not work with."""
        return self.checked.findings.errors


def check_data(
    data: PatchDataModule,
    out_dir: str | os.PathLike[str],
    *,
    windows: int | None = 8,
    pictures: int = 6,
    progress: bool = False,
) -> DataReport:
    """Look over a data set and write ``check.json``, ``check.md`` and a picture of each split.

    Args:
        data: As for a training.
        out_dir: Folder for the files, made where it is missing; they are replaced.
        windows: Windows of each image whose pixels are looked at; None: every pixel.
        pictures: Windows drawn of each split; 0 draws none.
        progress: Show bars.

    Raises:
        InvalidConfigError: A number out of range, or a folder that cannot be written to.
    """
    if (windows is not None and windows < 1) or pictures < 0:
        raise InvalidConfigError(f"windows must be at least 1 and pictures at least 0, got {windows} and {pictures}.")
    folder = make_folder(out_dir)
    findings = Findings()
    splits = data.find(findings)
    checked = _with_bars(data, splits, findings, windows=windows, progress=progress)
    # A split for testing is no must.
    named = [split for split, pairs in splits.items() if pairs or split in ("train", "val")]
    figures = {split: _figures(split, checked, len(data.facts.class_names)) for split in named}
    report = DataReport(checked=checked, splits=figures, spec=data.facts, written=())
    written = [folder / "check.json", folder / "check.md"]
    for split in splits if pictures else ():
        sheet = draw_sheet([one for one in checked.looked if one.split == split], data.facts, most=pictures)
        if sheet is not None:
            written.append(folder / f"{split}.png")
            save(sheet, written[-1])
    write_text(written[0], json.dumps(_plain(report), indent=1) + "\n")
    write_text(written[1], _page(report, written[2:]))
    return DataReport(checked=checked, splits=figures, spec=data.facts, written=tuple(written))


def _with_bars(
    data: PatchDataModule, splits: dict[str, list[Any]], findings: Findings, *, windows: int | None, progress: bool
) -> Checked:
    total = sum(map(len, splits.values()))
    with tqdm(total=total, unit="pair", desc="headers", disable=not progress, leave=False) as bar:

        def start(found: list[Header]) -> None:
            bar.unit, bar.unit_scale = "px", True
            bar.set_description("pixels", refresh=False)
            bar.reset(total=sum(pixels_to_look_at(header, windows) for header in found))

        return check_pairs(
            splits,
            data.facts.class_names,
            patch_px=data.patch_px,
            thoroughness=Thoroughness(windows=windows),
            findings=findings,
            on_header=lambda: bar.update(),
            on_headers=start,
            on_pixels=lambda count: bar.update(count),
        )


def _figures(split: str, checked: Checked, num_classes: int) -> dict[str, Any]:
    """Return the figures of a split as plain data; None where nothing is known."""
    headers = [header for header in checked.headers if header.split == split]
    looked = [one for one in checked.looked if one.split == split]
    sizes = sorted((header.grid.height, header.grid.width) for header in headers)
    resolutions = sorted(header.grid.resolution_m for header in headers if header.grid.resolution_m)
    labels = sum((one.labels for one in looked), np.zeros(256, dtype=np.int64))
    pixels, no_data = sum(one.pixels for one in looked), sum(one.no_data for one in looked)
    counting = int(labels[:num_classes].sum())
    return {
        "images": len(headers),
        "pixels": sum(height * width for height, width in sizes),
        "sizes_px": {"least": list(sizes[0]), "most": list(sizes[-1])} if sizes else None,
        "resolutions_m": {"least": resolutions[0], "most": resolutions[-1]} if resolutions else None,
        "crs": dict(Counter(_crs_name(header) for header in headers).most_common()),
        "dtypes": dict(Counter(header.facts.dtype for header in headers).most_common()),
        "bands": dict(Counter(str(header.facts.count) for header in headers).most_common()),
        "pixels_looked_at": pixels,
        "share_without_data": no_data / pixels if pixels else None,
        "share_ignored": int(labels[IGNORE_LABEL] - no_data) / pixels if pixels else None,
        "class_pixels": labels[:num_classes].tolist(),
        "class_shares": (labels[:num_classes] / counting).tolist() if counting else None,
        "values": _values(looked),
    }


def _values(looked: Sequence[Looked]) -> list[dict[str, Any]]:
    """Return least and greatest value, mean and deviation of each band."""
    counted = [one for one in looked if one.counts.any()]
    if not counted or len({len(one.counts) for one in counted}) > 1:
        return []
    count = np.sum([one.counts for one in counted], axis=0)
    mean = np.sum([one.sums for one in counted], axis=0) / np.maximum(count, 1)
    square = np.sum([one.squares for one in counted], axis=0) / np.maximum(count, 1)
    lows, highs = (
        np.min([one.lows for one in counted], axis=0),
        np.max([one.highs for one in counted], axis=0),
    )
    return [
        {
            "band": band,
            "least": float(lows[i]) if count[i] else None,
            "most": float(highs[i]) if count[i] else None,
            "mean": float(mean[i]) if count[i] else None,
            "deviation": float(math.sqrt(max(0.0, square[i] - mean[i] ** 2))) if count[i] else None,
        }
        for i, band in enumerate(counted[0].pair.bands)
    ]


def _crs_name(header: Header) -> str:
    crs = header.grid.crs
    if crs is None or not header.grid.has_transform:
        return "none"
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else (crs.to_wkt().split('"')[1] if '"' in crs.to_wkt() else "unnamed")


def tables(report: DataReport) -> list[tuple[list[str], list[list[str]]]]:
    """Return the tables of a report, head and rows: the splits, the classes, the bands."""
    splits = report.splits
    about = [
        ["images", *(f"{one['images']:,}" for one in splits.values())],
        [
            "size (rows x columns)",
            *(_range(one["sizes_px"], lambda size: f"{size[0]} x {size[1]}") for one in splits.values()),
        ],
        [
            "pixel on the ground",
            *(_range(one["resolutions_m"], lambda size: f"{size:.3g} m") for one in splits.values()),
        ],
        ["CRS", *(_counted(one["crs"]) for one in splits.values())],
        ["type of values", *(_counted(one["dtypes"]) for one in splits.values())],
        ["bands in the file", *(_counted(one["bands"]) for one in splits.values())],
        ["pixels looked at", *(_looked_at(one) for one in splits.values())],
        ["without data", *(_percent(one["share_without_data"]) for one in splits.values())],
        ["ignored labels", *(_percent(one["share_ignored"]) for one in splits.values())],
    ]
    classes = [
        [name, *(_percent(one["class_shares"][label]) if one["class_shares"] else "-" for one in splits.values())]
        for label, name in enumerate(report.spec.class_names)
    ]
    bands = [
        [name, *(_band(one["values"], index) for one in splits.values())]
        for index, name in enumerate(report.spec.bands)
    ]
    return [
        (["", *splits], about),
        (["share of the class", *splits], classes),
        (["band: least to most, mean (deviation)", *splits], bands),
    ]


def screen(report: DataReport) -> str:
    """Return what the command prints."""
    parts = [_aligned(head, rows) for head, rows in tables(report)]
    findings = [*report.errors, *report.checked.findings.warnings]
    kinds = dict.fromkeys((finding.severity, finding.kind) for finding in findings)
    lines: list[str] = []
    for kind in kinds:
        some = [finding for finding in findings if (finding.severity, finding.kind) == kind]
        lines += [f"{finding.severity}: {finding.text}" for finding in some[:MOST_OF_A_KIND]]
        if len(some) > MOST_OF_A_KIND:
            lines.append(f"{kind[0]}: {len(some) - MOST_OF_A_KIND} more of this kind ({kind[1]}) in check.md")
    return "\n\n".join([*parts, "\n".join(lines) or "Nothing is wrong with what was looked at."])


def summary(report: DataReport) -> str:
    """Return in one line why training could not work."""
    kinds = Counter(finding.kind for finding in report.errors)
    said = ", ".join(f"{kind}{f' ({times})' if times > 1 else ''}" for kind, times in kinds.most_common())
    return (
        f"training could not work with these data: {len(report.errors)} error(s): {said}. All of them are in "
        f"{report.written[1]}. The first: {report.errors[0].text}"
    )


def _plain(report: DataReport) -> dict[str, Any]:
    pixels = {id(one.header): one for one in report.checked.looked}
    files = [
        {
            "image": header.pair.image,
            "labels": header.pair.labels,
            "split": header.split,
            "group": header.pair.group,
            "height": header.grid.height,
            "width": header.grid.width,
            "crs": _crs_name(header),
            "resolution_m": header.grid.resolution_m,
            "bands": header.facts.count,
            "dtype": header.facts.dtype,
            "nodata": None if header.facts.nodata is None else str(header.facts.nodata),
            **_pixels(pixels.get(id(header)), report.spec),
        }
        for header in report.checked.headers
    ]
    return {
        "splits": report.splits,
        "classes": list(report.spec.class_names),
        "findings": [asdict(finding) for finding in report.checked.findings.found],
        "files": files,
    }


def _pixels(one: Looked | None, spec: DatasetSpec) -> dict[str, Any]:
    if one is None:
        return {}
    return {
        "pixels_looked_at": one.pixels,
        "every_pixel": one.complete,
        "pixels_without_data": one.no_data,
        "class_pixels": one.labels[: len(spec.class_names)].tolist(),
        "values": _values([one]),
    }


def _page(report: DataReport, pictures: Sequence[Path]) -> str:
    """Return the report as Markdown."""
    parts = ["# Data check"]
    for head, rows in tables(report):
        lines = [head, ["---"] * len(head), *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    for title, found in (("Errors", report.errors), ("Warnings", report.checked.findings.warnings)):
        parts.append(f"## {title}\n\n" + ("\n".join(f"- {finding.text}" for finding in found) or "None."))
    parts += [f"## {path.stem}\n\n![windows of {path.stem}]({path.name})" for path in pictures]
    return "\n\n".join(parts) + "\n"


def _aligned(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[col]) for row in [head, *rows]) for col in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines
    )


def _range(ends: dict[str, Any] | None, say: Any) -> str:
    if ends is None:
        return "-"
    least, most = say(ends["least"]), say(ends["most"])
    return least if least == most else f"{least} to {most}"


def _counted(times: dict[str, int]) -> str:
    if len(times) < 2:
        return next(iter(times), "-")
    return name_some([f"{name} ({count})" for name, count in times.items()])


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    return f"{100 * share:.2f} %" if share > 1e-4 or share == 0 else "< 0.01 %"


def _looked_at(one: dict[str, Any]) -> str:
    total, pixels = one["pixels"], one["pixels_looked_at"]
    return f"{pixels / MEGA:,.1f} of {total / MEGA:,.1f} million" if total else "-"


def _band(values: list[dict[str, Any]], index: int) -> str:
    if index >= len(values) or values[index]["least"] is None:
        return "-"
    one = values[index]
    return f"{one['least']:.4g} to {one['most']:.4g}, {one['mean']:.4g} ({one['deviation']:.3g})"
