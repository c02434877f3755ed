"""What the report shows of a raster: the whole of it, and the places where most labels flip, with every map of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geonorm.evaluation.consistency_page import Layer, Scene
from geonorm.evaluation.measures import SAME
from geonorm.evaluation.shift_maps import Report
from geonorm.inference.outputs import NODATA_LABEL
from geonorm.raster.read import as_picture, open_raster, read_overview
from geonorm.raster.window import Window

OVERVIEW_PX = 1024
"""Longer side of the picture of a whole raster."""
PLACE_PX = 320
"""Side of a place that is shown at full resolution."""
MOST_PLACES = 4
CELL_PX = 32
"""Side of the cells in which flips are counted."""
ROWS = 512
SHOWN = ("aligned", "unaligned")


def scenes_of(report: Report, folder: Path) -> list[Scene]:
    """Return the scenes of all rasters of a report.

    Args:
        report: What was measured.
        folder: Where its maps lie.
    """
    sources = dict.fromkeys(run["source"] for run in report["runs"])
    return [
        scene
        for source in sources
        for scene in _scenes([run for run in report["runs"] if run["source"] == source], folder)
    ]


def _scenes(runs: Sequence[Report], folder: Path) -> Iterator[Scene]:
    """Yield the scenes of one raster, the whole of it first."""
    height, width = runs[0]["height"], runs[0]["width"]
    names = [name for kind in SHOWN if (name := _most_flips(runs, kind)) is not None]
    ways = {id(run): [way for name in names for way in run["comparisons"] if way["name"] == name] for run in runs}
    aligned = [way["files"]["map"] for run in runs for way in ways[id(run)] if way["kind"] == SHOWN[0] and way["flips"]]
    others = [way["files"]["map"] for run in runs for way in ways[id(run)] if way["flips"]]
    windows = worst_places([folder / name for name in aligned or others], height, width)
    cell_px = max(1, -(-max(height, width) // OVERVIEW_PX))
    seams = {
        words: _borders(run, way)
        for run in runs
        for words, way in (("at rest", None), *((way["words"], way) for way in ways[id(run)]))
    }
    whole = Window(0, 0, height, width)
    overview = read_overview(runs[0]["source"], longest_side=-(-max(height, width) // cell_px))
    for number, (window, step) in enumerate([(whole, cell_px), *((window, 1) for window in windows)]):
        layers = [
            Layer(model=run["model"], grid=words, pixels=labels)
            for run in runs
            for words, name in (
                ("at rest", run["files"]["map"]),
                *((way["words"], way["files"]["map"]) for way in ways[id(run)]),
            )
            for labels in [_labels(folder / name, window, step)]
        ]
        image = _image(overview, whole.height, whole.width, window, layers[0].pixels.shape)
        yield Scene(
            title="whole raster" if not number else f"place {number} of most flips",
            source=runs[0]["source"],
            row=window.row,
            col=window.col,
            height=window.height,
            width=window.width,
            cell_px=step,
            image=image if step > 1 or not number else _pixels(runs[0]["source"], window),
            layers=layers,
            class_names=runs[0]["class_names"],
            class_colors=[tuple(color) for color in runs[0]["class_colors"]],
            seams=seams,
        )


def worst_places(maps: Sequence[Path], height: int, width: int, *, most: int = MOST_PLACES) -> list[Window]:
    """Return windows in which most labels flip, over all maps; they do not overlap, and hold a flip each.

    Args:
        maps: Maps beside the grid at rest, flips in band 2.
        height: Rows of the raster.
        width: Columns of the raster.
        most: Windows at most.
    """
    cells = np.zeros((-(-height // CELL_PX), -(-width // CELL_PX)), np.int64)
    for path in maps:
        with open_raster(path, bands=[2]) as reader:
            for row in range(0, height, ROWS):
                window = Window(row, 0, min(ROWS, height - row), width)
                pixels = reader.read(window)
                rows, cols = np.nonzero((pixels.values[0] != SAME) & pixels.valid)
                np.add.at(cells, ((rows + row) // CELL_PX, cols // CELL_PX), 1)
    side = PLACE_PX // CELL_PX
    tall, wide = min(side, cells.shape[0]), min(side, cells.shape[1])
    high, broad = min(PLACE_PX, height), min(PLACE_PX, width)
    sums = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), np.int64)
    sums[1:, 1:] = cells.cumsum(0).cumsum(1)
    boxes = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    places: list[Window] = []
    while len(places) < most and boxes.any():
        first = np.array(np.unravel_index(boxes.argmax(), boxes.shape))
        # Of the windows around it that hold as much the one in the middle, so that the flips are.
        equal = np.argwhere(boxes[first[0] : first[0] + tall, first[1] : first[1] + wide] == boxes.max())
        top, left = (first + equal[np.abs(equal - equal.mean(0)).sum(1).argmin()]).tolist()
        # Every window that shares a cell with it.
        boxes[max(0, top - tall + 1) : top + tall, max(0, left - wide + 1) : left + wide] = 0
        row, col = min(top * CELL_PX, height - high), min(left * CELL_PX, width - broad)
        places.append(Window(row, col, high, broad))
    return places


def _most_flips(runs: Sequence[Report], kind: str) -> str | None:
    """Return the way of a kind that flips most labels, over all networks."""
    flips: dict[str, int] = {}
    for run in runs:
        for way in run["comparisons"]:
            if way["kind"] == kind and not way["skipped"]:
                flips[way["name"]] = flips.get(way["name"], 0) + way["flips"]
    return max(flips, key=flips.__getitem__, default=None)


def _labels(path: Path, window: Window, step: int) -> NDArray[np.uint8]:
    """Return every ``step``-th label of a window."""
    parts = []
    with open_raster(path, bands=[1]) as reader:
        # Steps are counted from the window's first row.
        rows = max(step, ROWS // step * step)
        for row in range(window.row, window.row_end, rows):
            part = Window(row, window.col, min(rows, window.row_end - row), window.width)
            pixels = reader.read(part)
            values = np.where(pixels.valid, pixels.values[0], NODATA_LABEL)
            parts.append(values[::step, ::step].astype(np.uint8))
    return np.concatenate(parts)


def _image(
    overview: NDArray[np.uint8], height: int, width: int, window: Window, shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Return what an overview shows of a window, in a shape."""
    rows = (window.row + (np.arange(shape[0]) + 0.5) * window.height / shape[0]) * overview.shape[0] / height
    cols = (window.col + (np.arange(shape[1]) + 0.5) * window.width / shape[1]) * overview.shape[1] / width
    picked = overview[np.minimum(rows.astype(int), overview.shape[0] - 1)]
    return picked[:, np.minimum(cols.astype(int), overview.shape[1] - 1)]


def _pixels(source: str, window: Window) -> NDArray[np.uint8]:
    """Return a window of a raster in the colours of its overview."""
    with open_raster(source) as reader:
        bands = reader.bands[:3] if reader.count >= 3 else reader.bands[:1]
    with open_raster(source, bands=bands) as reader:
        pixels = reader.read(window)
    values, valid = (one if len(one) == 3 else one.repeat(3, axis=0) for one in (pixels.values, pixels.value_valid))
    return as_picture(values, valid)


def _borders(run: Report, way: Report | None) -> tuple[list[int], list[int]]:
    """Return the first rows and columns of the cores of a grid, in pixels of the raster."""
    by_px = way["by_px"] if way is not None else 0
    found = []
    for axis, length in enumerate((run["height"], run["width"])):
        first = -((run["first_index"][axis] - run["grid_offset_px"][axis] - by_px) % run["core_px"])
        found.append([line for line in range(first, length, run["core_px"]) if line > 0])
    return found[0], found[1]
