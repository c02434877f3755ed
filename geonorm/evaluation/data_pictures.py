"""Pictures of a data set: windows with their labels, the rare classes first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from geonorm.data.checking_pixels import SIDE_PX, Looked
from geonorm.data.pairs import open_pair
from geonorm.data.spec import IGNORE_LABEL, DatasetSpec
from geonorm.files import written_whole
from geonorm.raster.window import Window
from geonorm.tasks.pictures import IGNORED, Rgb, colored, stretched

GAP_PX, LINE_PX = 6, 16
SQUARE_PX = 8
"""Side of the squares of the chequered pattern that stands for pixels without data."""


def draw_sheet(looked: Sequence[Looked], spec: DatasetSpec, *, most: int) -> Image.Image | None:
    """Return a sheet of windows: image, labels, and labels over the image, one window a row.

    None where there is nothing to draw.
    """
    rows = [(one, window, _row(one, window, spec)) for one, window in interesting(looked, most=most)]
    if not rows:
        return None
    legend = [*zip(spec.class_names, spec.class_colors, strict=True), ("ignored", IGNORED)]
    width = max(picture.shape[1] for *_, picture in rows) + 2 * GAP_PX
    lines = _lines(legend, width)
    top = (len(lines) + 1) * LINE_PX
    height = top + sum(LINE_PX + GAP_PX + picture.shape[0] for *_, picture in rows) + GAP_PX
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for number, line in enumerate(lines):
        for col, name, color in line:
            row = LINE_PX // 2 + number * LINE_PX
            draw.rectangle((col, row + 2, col + 10, row + 12), fill=color, outline="black")
            draw.text((col + 15, row), name, fill="black", font=font)
    row = top
    for one, window, picture in rows:
        text = f"{one.pair.name}  rows {window.row}-{window.row_end - 1}, columns {window.col}-{window.col_end - 1}"
        draw.text((GAP_PX, row), text, fill="black", font=font)
        sheet.paste(Image.fromarray(picture), (GAP_PX, row + LINE_PX))
        row += LINE_PX + picture.shape[0] + GAP_PX
    return sheet


def interesting(looked: Sequence[Looked], *, most: int) -> list[tuple[Looked, Window]]:
    """Return windows in which the rare classes are best seen, from as many files as there are.

    The classes take turns, the rarest first; each chooses the window that holds most of it, of the files that have the
    fewest windows so far.
    """
    total = sum((one.labels for one in looked), np.zeros(256, dtype=np.int64))
    classes = sorted(np.flatnonzero(total[:IGNORE_LABEL]).tolist(), key=lambda label: total[label])
    chosen: list[tuple[Looked, Window]] = []
    used = dict.fromkeys(map(id, looked), 0)
    while len(chosen) < most:
        before = len(chosen)
        for label in classes or [IGNORE_LABEL]:
            there = [(one, *one.best[label]) for one in looked if label in one.best]
            fresh = [entry for entry in there if (entry[0], entry[2]) not in chosen]
            if fresh and len(chosen) < most:
                one, _, window = min(fresh, key=lambda entry: (used[id(entry[0])], -entry[1]))
                chosen.append((one, window))
                used[id(one)] += 1
        if len(chosen) == before:
            return chosen
    return chosen


def _row(one: Looked, window: Window, spec: DatasetSpec) -> Rgb:
    with open_pair(one.pair) as files:
        pixels = files.read(window)
        labels, _ = files.labels.counted(window)
    valid = pixels.value_valid & pixels.valid
    fill = [float(band[ok].mean()) if ok.any() else 0.0 for band, ok in zip(pixels.values, valid, strict=True)]
    image = stretched(np.where(valid, pixels.values, np.array(fill)[:, None, None]).astype(np.float64))
    image = np.where(pixels.valid[..., None], image, _chequered(*labels.shape)).astype(np.uint8)
    colors = colored(np.where(pixels.valid, labels, IGNORE_LABEL), spec)
    mixed = ((image.astype(np.uint16) + colors) // 2).astype(np.uint8)
    times = max(1, SIDE_PX // max(labels.shape))
    parts = [part.repeat(times, axis=0).repeat(times, axis=1) for part in (image, colors, mixed)]
    gap = np.full((parts[0].shape[0], GAP_PX, 3), 255, dtype=np.uint8)
    return np.concatenate([parts[0], gap, parts[1], gap, parts[2]], axis=1)


def _chequered(height: int, width: int) -> NDArray[np.uint8]:
    row, col = np.indices((height, width)) // SQUARE_PX
    return np.where((row + col) % 2, 200, 255).astype(np.uint8)[..., None].repeat(3, axis=-1)


def _lines(
    legend: Sequence[tuple[str, tuple[int, int, int]]], width: int
) -> list[list[tuple[int, str, tuple[int, int, int]]]]:
    """Return the legend broken into lines: columns, names and colours."""
    lines: list[list[tuple[int, str, tuple[int, int, int]]]] = [[]]
    col = GAP_PX
    for name, color in legend:
        needs = 30 + 7 * len(name)
        if lines[-1] and col + needs > width:
            lines.append([])
            col = GAP_PX
        lines[-1].append((col, name, color))
        col += needs
    return lines


def save(sheet: Image.Image, target: Path) -> None:
    """Write a sheet as a PNG, whole or not at all."""
    with written_whole(target) as made:
        sheet.save(made, format="PNG")
