"""The finished strips of a map -> its files. All it needs is plain data, kept beside the strips."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.files import folder_beside
from geonorm.inference.journal import StripFolder
from geonorm.inference.outputs import CONFIDENCE, NODATA_LABEL
from geonorm.inference.targets import files_of_map
from geonorm.raster.grid import Grid
from geonorm.raster.layer import Layer
from geonorm.raster.polygons import LabelRows, write_polygons
from geonorm.raster.strips import Part, StripMap, check_strip, read_strip, write_map
from geonorm.raster.vector_file import check_polygon_target
from geonorm.raster.window import Window
from geonorm.raster.write import check_target, failing_as, lying_nowhere, publish


@dataclass(frozen=True)
class Piece:
    """A map to be made of a part of what is labelled."""

    name: str
    """Of the map's file, which lies beside the strips."""
    window: Window
    """Where it lies in what is labelled."""
    grid: Grid
    """Its own: that of a mosaic may differ in the last digit."""
    on_grid: Grid | None = None
    """Another grid that its values are to be brought to."""


@dataclass(frozen=True)
class PolygonPlan:
    """How the polygons of all pieces are written."""

    name: str
    """Of the file."""
    classes: tuple[int, ...]
    """Which labels become polygons."""
    min_area_px: int
    """Polygons of fewer pixels are left out."""
    simplify_px: float
    """By how much an outline may move."""


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """How the strips of a map are put together."""

    rows: tuple[int, ...]
    """First rows of the strips."""
    heights: tuple[int, ...]
    """How many rows each has."""
    grid: Grid
    """That of all that is labelled."""
    layers: tuple[Layer, ...]
    """What the strips hold, the labels first."""
    outputs: tuple[str, ...]
    """Names of the layers that become files; the first one gets the name of the piece."""
    pieces: tuple[Piece, ...]
    """The maps."""
    tags: Mapping[str, str]
    """What the files say of their making."""
    polygons: PolygonPlan | None = None
    """The file of polygons."""

    def as_plain(self) -> dict[str, Any]:
        """Return it as plain data that JSON can hold; `from_plain` takes it back."""
        return {
            "rows": list(self.rows),
            "heights": list(self.heights),
            "grid": self.grid.as_plain(),
            "layers": [layer.as_plain() for layer in self.layers],
            "outputs": list(self.outputs),
            "pieces": [
                {
                    "name": piece.name,
                    "window": [piece.window.row, piece.window.col, piece.window.height, piece.window.width],
                    "grid": piece.grid.as_plain(),
                    "on_grid": piece.on_grid and piece.on_grid.as_plain(),
                }
                for piece in self.pieces
            ],
            "tags": dict(self.tags),
            "polygons": self.polygons
            and [self.polygons.name, list(self.polygons.classes), self.polygons.min_area_px, self.polygons.simplify_px],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Return what `as_plain` took apart."""
        polygons = plain["polygons"]
        return cls(
            rows=tuple(plain["rows"]),
            heights=tuple(plain["heights"]),
            grid=Grid.from_plain(plain["grid"]),
            layers=tuple(Layer.from_plain(layer) for layer in plain["layers"]),
            outputs=tuple(plain["outputs"]),
            pieces=tuple(
                Piece(
                    piece["name"],
                    Window(*piece["window"]),
                    Grid.from_plain(piece["grid"]),
                    piece["on_grid"] and Grid.from_plain(piece["on_grid"]),
                )
                for piece in plain["pieces"]
            ),
            tags=plain["tags"],
            polygons=polygons and PolygonPlan(polygons[0], tuple(polygons[1]), *polygons[2:]),
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.layers[0].class_names

    @property
    def bounds(self) -> Window:
        """The rectangle around all pieces."""
        return bounds_of([piece.window for piece in self.pieces])

    def targets(self, folder: Path, piece: Piece) -> dict[str, Path]:
        """Return the files of a piece by the names of their layers."""
        return files_of_map(folder / piece.name, self.outputs)

    def files(self, folder: Path) -> list[Path]:
        """Return all files, that of the polygons included."""
        files = [file for piece in self.pieces for file in (folder / piece.name, *self.further_files(folder, piece))]
        return [*dict.fromkeys(files)]

    def further_files(self, folder: Path, piece: Piece) -> list[Path]:
        """Return the files of a piece beside the one of its name, that of the polygons included."""
        files = [*self.targets(folder, piece).values()][1:]
        return files if self.polygons is None else [*files, folder / self.polygons.name]

    def check_targets(self, folder: Path, *, overwrite: bool) -> None:
        """Raise in one line if a file cannot be made."""
        for piece in self.pieces:
            for target in self.targets(folder, piece).values():
                check_target(target, overwrite=overwrite)
        if self.polygons is not None:
            check_polygon_target(folder / self.polygons.name, overwrite=overwrite)

    def parts(self, strips: StripFolder, layer: str, window: Window) -> list[Part]:
        """Return the strips that have data, where they lie in a window of what is labelled."""
        files = (strips.file(row, layer) for row in self.rows)
        return [
            Part(file, Window(row, 0, height, self.grid.width).shifted(-window.row, -window.col))
            for row, height, file in zip(self.rows, self.heights, files, strict=True)
            if file is not None
        ]


def bounds_of(windows: Sequence[Window]) -> Window:
    """Return the smallest window that holds all."""
    row, col = min(window.row for window in windows), min(window.col for window in windows)
    row_end, col_end = max(window.row_end for window in windows), max(window.col_end for window in windows)
    return Window(row, col, row_end - row, col_end - col)


def assemble(plan: Assembly, strips: StripFolder, *, overwrite: bool, progress: bool = False) -> list[tuple[int, ...]]:
    """Write all files of a map whose strips are all finished, and return the pixels of each class in each piece.

    All rasters are made before the first one is put in its place; polygons come before them, those files last that
    have the names of the pieces.

    Args:
        plan: How the strips are put together.
        strips: The strips.
        overwrite: Replace files that exist.
        progress: Show a progress bar.

    Raises:
        RasterError: A strip is missing or damaged, or a file cannot be written.
        TargetExistsError: A file exists and ``overwrite`` is off.
    """
    folder = strips.target.parent
    if missing := [row for row in plan.rows if row not in strips.rows]:
        raise RasterError(
            f"{len(missing)} of the {len(plan.rows)} strips of {strips.target} are missing, the first at row "
            f"{missing[0]}. Run the same commands again: what is there is kept."
        )
    plan.check_targets(folder, overwrite=overwrite or strips.is_publishing)
    steps = len(plan.rows) + len(plan.pieces) * len(plan.outputs)
    with (
        tqdm(total=steps, unit="step", desc="putting together", disable=not progress, leave=False, delay=1) as bar,
        folder_beside(strips.target) as made,
        lying_nowhere(),
    ):
        class_pixels = np.zeros((len(plan.pieces), len(plan.classes)), dtype=np.int64)
        for row, labels in _checked_labels(plan, strips):
            bar.update()
            for index, piece in enumerate(plan.pieces):
                class_pixels[index] += _count(labels, row, piece.window, len(plan.classes))
        files: list[tuple[Path, Path]] = []
        for index, piece in enumerate(plan.pieces):
            for name, target in reversed(plan.targets(folder, piece).items()):
                file = made / f"{index}.{name}.tif"
                _write_piece(plan, strips, piece, name, file, target)
                files.append((file, target))
                bar.update()
        strips.begin_publishing()
        _write_polygons(plan, strips, made, folder)
        for file, target in files:
            with failing_as(target):
                publish(file, target)
    return [tuple(pixels) for pixels in class_pixels.tolist()]


def merge(target: str | os.PathLike[str], *, overwrite: bool = False, progress: bool = False) -> list[Path]:
    """Put together the strips that shards have made of a map, and return the files.

    The last shard to finish does the same; this is for when it did not get so far.

    Args:
        target: The map to be, as it was given to ``predict``: of several that were labelled as one, the first.
        overwrite: Replace files that exist.
        progress: Show a progress bar.

    Raises:
        InvalidConfigError: No strips are kept for that map.
        RasterError: Strips are missing, a file cannot be written, or another process is at it.
        TargetExistsError: A file exists and ``overwrite`` is off.
    """
    strips = StripFolder(Path(target))
    stored = strips.read_plan()
    if stored is None:
        found = "It is complete already." if os.path.exists(target) else "Check the name, and run geonorm predict."
        raise InvalidConfigError(f"no strips are kept for {os.fspath(target)}. {found}")
    plan = Assembly.from_plain(stored["assembly"])
    with strips.merging() as is_ours:
        if not is_ours:
            raise RasterError(f"another process is putting {os.fspath(target)} together just now. Wait for it.")
        assemble(plan, strips, overwrite=overwrite, progress=progress)
        strips.discard()
    return plan.files(strips.target.parent)


def _checked_labels(plan: Assembly, strips: StripFolder) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield first row and labels of the strips that have data; a strip that cannot be read is removed."""
    for row, height in zip(plan.rows, plan.heights, strict=True):
        file = strips.file(row, "labels")
        if file is None:
            continue
        try:
            for layer in plan.layers:
                check_strip(file.with_name(f"{layer.name}.tif"), layer, (height, plan.grid.width))
            labels = read_strip(file)
        except RasterError as error:
            strips.remove(row)
            raise RasterError(f"the strip {file.parent} is damaged, and was removed to be made anew.") from error
        yield row, labels[0]


def _count(labels: NDArray[np.uint8], row: int, window: Window, num_classes: int) -> NDArray[np.int64]:
    """Return how often each class is in the part of a strip that lies in a window."""
    met = Window(row, 0, *labels.shape).intersection(window)
    part = labels[met.row - row : met.row_end - row, met.col : met.col_end]
    return np.bincount(part.ravel(), minlength=NODATA_LABEL + 1)[:num_classes]


def _write_piece(plan: Assembly, strips: StripFolder, piece: Piece, name: str, file: Path, target: Path) -> None:
    [layer] = [layer for layer in plan.layers if layer.name == name]
    tags = {**plan.tags, "class_names": json.dumps(plan.classes, ensure_ascii=False)}
    with failing_as(target):
        source = StripMap(
            file.with_suffix(".vrt"), layer, piece.grid, plan.parts(strips, name, piece.window), tags=tags
        )
        write_map(source, file, on_grid=piece.on_grid)


def _write_polygons(plan: Assembly, strips: StripFolder, made: Path, folder: Path) -> None:
    if plan.polygons is None:
        return
    bounds = plan.bounds
    grid = plan.grid.cropped(bounds)
    labels, confidence = (
        StripMap(made / f"{layer.name}.vrt", layer, grid, plan.parts(strips, layer.name, bounds))
        for layer in plan.layers
        if layer.name in ("labels", CONFIDENCE)
    )
    at_once = max(plan.heights)
    write_polygons(
        folder / plan.polygons.name,
        (
            LabelRows(row, one[0], other[0])
            for (row, one), (_, other) in zip(labels.rows(at_once), confidence.rows(at_once), strict=True)
        ),
        grid,
        class_names=plan.classes,
        classes=plan.polygons.classes,
        nodata=NODATA_LABEL,
        min_area_px=plan.polygons.min_area_px,
        simplify_px=plan.polygons.simplify_px,
        metadata=plan.tags,
    )
