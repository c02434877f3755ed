"""Places of a raster with their maps: what the viewer of a consistency report holds, and still pictures of it."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import InvalidConfigError
from geonorm.evaluation.consistency_words import count, file_name, percent

JPEG_QUALITY = 82
STILL_CELLS = 400
"""Cells along the longer side of the flips in a still picture."""
FLIP_COLOR = (214, 20, 20)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A map of a scene."""

    model: str
    """Whose map it is."""
    grid: str
    """How the raster was labelled: "at rest", "moved by 128 px"; empty where there is but one way."""
    pixels: NDArray[np.uint8]
    """Labels ``(h, w)``, one for each cell of the scene's image; `IGNORE_LABEL` where there is no data."""

    @property
    def name(self) -> str:
        """Return model and grid."""
        return f"{self.model}, {self.grid}" if self.grid else self.model


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A window of a raster with its maps. The first layer of each model is its grid at rest."""

    title: str
    source: str
    """The raster."""
    row: int
    """First row in the raster."""
    col: int
    """First column in the raster."""
    height: int
    """Rows of the raster."""
    width: int
    """Columns of the raster."""
    cell_px: int
    """Pixels of the raster along the side of a cell, that is of a pixel of the picture."""
    image: NDArray[np.uint8]
    """Red, green and blue, ``(h, w, 3)``."""
    layers: Sequence[Layer]
    class_names: Sequence[str]
    class_colors: Sequence[tuple[int, int, int]]
    seams: Mapping[str, tuple[Sequence[int], Sequence[int]]]
    """For each grid the first rows and columns of its cores in the raster, those outside of the window too."""

    def __post_init__(self) -> None:
        shape = -(-self.height // self.cell_px), -(-self.width // self.cell_px)
        for name, found in (("image", self.image), *((layer.name, layer.pixels) for layer in self.layers)):
            if found.shape[:2] != shape or found.dtype != np.uint8:
                raise InvalidConfigError(
                    f"A scene of {self.height} x {self.width} px in cells of {self.cell_px} px needs {shape[0]} x "
                    f"{shape[1]} cells of type uint8, got {found.shape} of type {found.dtype} as {name!r}."
                )


def payload(scenes: Sequence[Scene]) -> str:
    """Return what the viewer reads, as JSON that no name in it can end: ``<`` is written as an escape.

    Labels are raw bytes, deflated. The maps of a model differ little, so that each but the first is stored as its
    difference from that one, bit by bit.
    """
    held = [
        {
            "title": scene.title,
            "source": file_name(scene.source),
            "row": scene.row,
            "col": scene.col,
            "cell": scene.cell_px,
            "height": scene.image.shape[0],
            "width": scene.image.shape[1],
            "classes": [
                {"name": name, "color": [*map(int, color)]}
                for name, color in zip(scene.class_names, scene.class_colors, strict=True)
            ],
            "layers": [*_stored(scene.layers)],
            "seams": {
                grid: [_within(scene, rows, 0), _within(scene, cols, 1)] for grid, (rows, cols) in scene.seams.items()
            },
        }
        for scene in scenes
    ]
    return json.dumps({"scenes": held, "start": _start(scenes[0])}, separators=(",", ":")).replace("<", "\\u003c")


def images(scenes: Sequence[Scene]) -> str:
    """Return the images of all scenes as SVG definitions, for the viewer and the still pictures alike."""
    found = "".join(
        f'<image id="image-{at}" width="{scene.image.shape[1]}" height="{scene.image.shape[0]}" '
        f'href="data:image/jpeg;base64,{_jpeg(scene.image)}"/>'
        for at, scene in enumerate(scenes)
    )
    return f'<svg class="store" aria-hidden="true"><defs>{found}</defs></svg>'


def stills(scenes: Sequence[Scene]) -> str:
    """Return pictures of where the labels of each model change, scene by scene, those of the worst places folded."""
    parts = []
    for _, group in groupby(enumerate(scenes), key=lambda numbered: numbered[1].source):
        (at, overview), *places = group
        parts.append(f"<h3>{escape(file_name(overview.source))}</h3>{_still(at, overview)}")
        if places:
            body = "".join(_still(at, scene) for at, scene in places)
            parts.append(f"<details><summary>Where most labels change, at full resolution</summary>{body}</details>")
    return "".join(parts)


def pairs(scene: Scene) -> list[tuple[int, int]]:
    """Return for each model with several maps the first and the second of them, by their place among the layers."""
    found: dict[str, list[int]] = {}
    for at, layer in enumerate(scene.layers):
        found.setdefault(layer.model, []).append(at)
    return [(of_model[0], of_model[1]) for of_model in found.values() if len(of_model) > 1]


def flips_between(layer: Layer, other: Layer) -> tuple[NDArray[np.bool_], int]:
    """Return where two maps differ, ``(h, w)``, and how many cells have data in both."""
    valid = (layer.pixels != IGNORE_LABEL) & (other.pixels != IGNORE_LABEL)
    return (layer.pixels != other.pixels) & valid, int(valid.sum())


def _stored(layers: Sequence[Layer]) -> Iterator[dict[str, Any]]:
    first: dict[str, int] = {}
    for at, layer in enumerate(layers):
        base = first.setdefault(layer.model, at)
        pixels = layer.pixels if base == at else layer.pixels ^ layers[base].pixels
        yield {
            "model": layer.model,
            "grid": layer.grid,
            "base": None if base == at else base,
            "labels": base64.b64encode(zlib.compress(np.ascontiguousarray(pixels).tobytes(), 9)).decode("ascii"),
        }


def _within(scene: Scene, starts: Sequence[int], axis: int) -> list[float]:
    """Return the borders inside the window, in cells from its edge."""
    first, length = ((scene.row, scene.height), (scene.col, scene.width))[axis]
    return [(start - first) / scene.cell_px for start in starts if 0 < start - first < length]


def _start(scene: Scene) -> list[int]:
    """Return the two layers that are shown first: those of the model whose labels change most."""
    ranked = sorted(pairs(scene), key=lambda pair: -flips_between(*(scene.layers[at] for at in pair))[0].sum())
    return [*(ranked[0] if ranked else (0, min(1, len(scene.layers) - 1)))]


def _still(number: int, scene: Scene) -> str:
    height, width = scene.image.shape[:2]
    pixels = f"rows {scene.row:,} to {scene.row + scene.height:,}, columns {scene.col:,} to {scene.col + scene.width:,}"
    cells = "" if scene.cell_px == 1 else f", one of {scene.cell_px} by {scene.cell_px} pixels"
    head = (
        f"<h4>{escape(scene.title)}</h4><p>{pixels}{cells}. "
        f'<button type="button" class="scripted" data-scene="{number}" hidden>Show in the viewer</button></p>'
    )
    pictures = [_panel(number, height, width, "", "The image")]
    for first, second in pairs(scene):
        layer, other = scene.layers[first], scene.layers[second]
        flips, valid = flips_between(layer, other)
        found = int(flips.sum())
        how_many = f"{count(found)} of {count(valid)} differ ({percent(100 * found / max(1, valid))})"
        caption = f"{layer.model}: {layer.grid} against {other.grid}, {how_many}"
        overlay = f'<image width="{width}" height="{height}" href="data:image/png;base64,{_flips_png(flips)}"/>'
        pictures.append(_panel(number, height, width, overlay, caption))
    return f'<div class="still">{head}<div class="panels">{"".join(pictures)}</div></div>'


def _panel(number: int, height: int, width: int, overlay: str, caption: str) -> str:
    faint = ' class="faint"' if overlay else ""
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(caption)}">'
        f'<use href="#image-{number}"{faint}/>{overlay}</svg><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _flips_png(flips: NDArray[np.bool_]) -> str:
    """Return red where labels differ, as a PNG of few cells; a cell is red if any of its pixels is."""
    height, width = flips.shape
    step = -(-max(height, width) // STILL_CELLS)
    padded = np.pad(flips, ((0, -height % step), (0, -width % step)))
    cells = padded.reshape(padded.shape[0] // step, step, -1, step).any((1, 3))
    picture = Image.fromarray(cells.astype(np.uint8), mode="P")
    picture.putpalette([0, 0, 0, *FLIP_COLOR])
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True, transparency=0)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _jpeg(image: NDArray[np.uint8]) -> str:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
