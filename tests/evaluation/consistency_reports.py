"""Consistency reports as ``geonorm shift`` writes them, with figures that follow from drawn maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geonorm.evaluation.consistency_page import Layer, Scene

NAMES = ("not building", "building")
COLORS = ((32, 32, 40), (255, 196, 0))
FROM_PX = [1, 2, 4, 8, 16]
AT_REST, MOVED = "at rest", "moved by 128 px"


def comparison(kind: str = "aligned", by_px: Any = 128, *, flips: int = 0, pixels: int = 10_000, **more: Any) -> Any:
    """Return a comparison of which a tenth of the pixels and half of the flips lie at seams."""
    on, pixels_on = flips // 2, pixels // 10
    off, pixels_off = flips - on, pixels - pixels_on
    words = {
        "aligned": f"grid moved by {by_px} px",
        "unaligned": f"grid moved by {by_px} px",
        "core": f"cores of {by_px} px",
    }
    return {
        "name": f"{kind}-{by_px}",
        "kind": kind,
        "by_px": by_px,
        "words": words.get(kind, kind),
        "pixels": pixels,
        "flips": flips,
        "flips_percent": 100 * flips / pixels,
        "ties": 0,
        "change_max": 0.4 * bool(flips),
        "change_mean": flips / pixels / 7,
        "iou_between_maps": [1 - flips / pixels, None],
        "seconds": 12.0,
        "curve": {
            "from_px": FROM_PX,
            "pixels": [pixels // 8] * 4 + [pixels // 2],
            "flips": [flips // 2, flips // 4, flips // 8, 0, flips - flips // 2 - flips // 4 - flips // 8],
            "change_sum": [0.0] * 5,
            "change_max": [0.0] * 5,
        },
        "seam": {
            "flips_on": on,
            "pixels_on": pixels_on,
            "flips_off": off,
            "pixels_off": pixels_off,
            "energy": (on / pixels_on) / (off / pixels_off) if off else None,
        },
        "scores": None,
        "consistent_and_correct_percent": None,
        "skipped": None,
        "files": {"map": f"maps/{kind}.tif", "change": None},
        **more,
    }


def skipped(kind: str, by_px: Any, reason: str) -> Any:
    """Return a comparison that was not measured."""
    return {"name": kind, "kind": kind, "by_px": by_px, "words": "the whole image in one pass", "skipped": reason}


def run(model: str, comparisons: Sequence[Any], **more: Any) -> dict[str, Any]:
    """Return a run that is tile-independent if nothing flips in it."""
    independent = not any(one.get("flips") for one in comparisons)
    return {
        "model": model,
        "checkpoint": f"runs/{model}/last.ckpt",
        "source": "images/zanzibar.tif",
        "height": 1200,
        "width": 1700,
        "class_names": [*NAMES],
        "stride_px": 16,
        "core_px": 512,
        "halo_px": 224,
        "halo_kind": "exact" if independent else "measured",
        "read_px": 960,
        "overhead": 3.5,
        "phases": 1,
        "unbounded": [] if independent else ["GroupNorm encoder.0", "GroupNorm encoder.1"],
        "tile_independent": independent,
        "localized_px": None,
        "seconds": 12.3,
        "scores": None,
        "iou_spread": None,
        "corner_consensus": None,
        "comparisons": [*comparisons],
        **more,
    }


def report(runs: Sequence[Any]) -> dict[str, Any]:
    """Return a report of runs."""
    return {"format": 2, "version": "0.3.0", "settings": {"core_px": 512, "shifts_px": [128, 3]}, "runs": [*runs]}


def scene(
    title: str = "Whole raster",
    *,
    source: str = "images/zanzibar.tif",
    models: Mapping[str, int] | None = None,
    height: int = 120,
    width: int = 170,
    cell_px: int = 1,
    names: Sequence[str] = NAMES,
) -> Scene:
    """Return a scene whose maps hold a house; in the map of the moved grid it is so many cells wider.

    Args:
        title: Its title.
        source: Its raster.
        models: By how many cells the house of each model grows.
        height: Cells.
        width: Cells.
        cell_px: Pixels to a cell.
        names: Names of the classes.
    """
    draw = np.random.default_rng(0)
    layers = [
        Layer(model=model, grid=grid, pixels=house(height, width, grown))
        for model, most in (models or {"GN": 10, "LCN": 0}).items()
        for grid, grown in ((AT_REST, 0), (MOVED, most))
    ]
    borders = [60 * cell_px], [85 * cell_px]
    return Scene(
        title=title,
        source=source,
        row=0,
        col=0,
        height=height * cell_px,
        width=width * cell_px,
        cell_px=cell_px,
        image=np.full((height, width, 3), 128, np.uint8) + draw.integers(0, 2, (height, width, 1), np.uint8),
        layers=layers,
        class_names=names,
        class_colors=COLORS,
        seams={AT_REST: borders, MOVED: ([20 * cell_px], [20 * cell_px])},
    )


def house(height: int, width: int, grown: int) -> NDArray[np.uint8]:
    """Return labels of a house in the middle third, so many columns wider, and two rows without data at the top."""
    labels = np.zeros((height, width), np.uint8)
    labels[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3 + grown] = 1
    labels[:2] = 255
    return labels
