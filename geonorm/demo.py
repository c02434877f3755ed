"""The whole story on drawn data: draw, train two norms, label a large scene, measure, report."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geonorm.data import InriaDataModule
from geonorm.data.drawn import draw_scene, write_inria_layout
from geonorm.errors import GeonormWarning
from geonorm.evaluation.report import Heading, Part, Picture, Table, Text, write_page
from geonorm.evaluation.shift import shift_consistency
from geonorm.evaluation.shift_maps import Report
from geonorm.files import make_folder
from geonorm.inference import predict_raster
from geonorm.models import UNet
from geonorm.norms import GroupNorm, LocalContextNorm, NormFactory
from geonorm.raster.read import open_raster
from geonorm.raster.window import Window
from geonorm.raster.write import write_image
from geonorm.tasks import SegmentationTask
from geonorm.tasks.scores import confusion, iou_of
from geonorm.tasks.training_words import without_advertisements

DEPTH = 3
WINDOW_PX = 31
CORE_PX = 512
HALO_PX = 224
"""The exact halo of the LCN network below; the GN network gets the same."""
SHIFTS_PX = (128, 3)
ZOOM_PX = 192


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is drawn and trained; the default takes some minutes on two cores."""

    cities: tuple[str, ...] = ("alder", "brack", "corvel", "laterra")
    tiles_per_city: int = 4
    tile_px: int = 768
    large_px: tuple[int, int] = (1536, 2048)
    steps: int = 400
    patch_px: int = 192
    batch_size: int = 4
    width: int = 16


def run_demo(out_dir: Path, *, seed: int = 0, scale: Scale | None = None) -> dict[str, Any]:
    """Draw scenes, train GN and LCN U-Nets, label a large scene with both and measure what moving the tiles changes.

    Writes scenes, checkpoints, maps, ``summary.json`` and ``report.html`` into ``out_dir``.

    Returns:
        What ``summary.json`` holds.
    """
    scale = scale or Scale()
    out_dir = make_folder(out_dir)
    began = time.monotonic()

    print("1/4  drawing scenes", flush=True)
    root = write_inria_layout(
        out_dir / "scenes",
        cities=scale.cities,
        tiles_per_city=scale.tiles_per_city,
        size_px=scale.tile_px,
        seed=seed,
        progress=True,
    )
    image, truth = _draw_large(out_dir, scale, seed=seed + 1000)

    norms: Mapping[str, NormFactory] = {
        "GN": GroupNorm,
        "LCN": partial(LocalContextNorm, window_px=WINDOW_PX),
    }
    runs: dict[str, dict[str, Any]] = {}
    for number, (name, norm) in enumerate(norms.items(), start=2):
        print(f"{number}/4  training and labelling with {name}", flush=True)
        checkpoint, seconds = _train(name, norm, root, out_dir, scale, seed=seed)
        runs[name] = {"checkpoint": str(checkpoint), "train_seconds": round(seconds, 1)}
        with warnings.catch_warnings():
            # That GN's labels depend on the tiles is what the demo shows.
            warnings.simplefilter("ignore", GeonormWarning)
            for moved, offset in (("map", 0), ("map_moved", SHIFTS_PX[0])):
                target = out_dir / f"{moved}_{name.lower()}.tif"
                predict_raster(
                    checkpoint,
                    image,
                    target,
                    core_px=CORE_PX,
                    halo=HALO_PX,
                    grid_offset_px=(offset, offset),
                    overwrite=True,
                    progress=True,
                )
                runs[name][moved] = str(target)
        runs[name]["iou"] = _iou(_read_labels(runs[name]["map"]), _read_labels(truth))

    print("4/4  moving the tile grid", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeonormWarning)
        consistency = shift_consistency(
            {name: run["checkpoint"] for name, run in runs.items()},
            [image],
            out_dir / "shift",
            labels=[truth],
            measures=["moves"],
            shifts_px=SHIFTS_PX,
            core_px=CORE_PX,
            halo=HALO_PX,
            restart=True,
            progress=True,
        )
    summary = {
        "seed": seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "core_px": CORE_PX,
        "halo_px": HALO_PX,
        "norms": {name: _figures(run, consistency, which) for which, (name, run) in enumerate(runs.items())},
    }
    (out_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _write_report(out_dir, summary, image=image, truth=truth, runs=runs)
    print(_headline(summary))
    print(f"The report: {out_dir / 'report.html'}  ({summary['minutes']} minutes)")
    return summary


def _draw_large(out_dir: Path, scale: Scale, *, seed: int) -> tuple[Path, Path]:
    """Draw the scene to be labelled, of a city that was trained on, but another part of it."""
    height, width = scale.large_px
    scene = draw_scene(scale.cities[1 % len(scale.cities)], height, width, seed=seed)
    image, truth = out_dir / "large.tif", out_dir / "large_truth.tif"
    write_image(image, scene.image, tiled=True)
    write_image(truth, scene.labels * np.uint8(255), tiled=True)
    return image, truth


def _train(name: str, norm: NormFactory, root: Path, out_dir: Path, scale: Scale, *, seed: int) -> tuple[Path, float]:
    seed_everything(seed, verbose=False)
    data = InriaDataModule(
        root,
        val_names=[f"{city}1" for city in scale.cities],
        patch_px=scale.patch_px,
        batch_size=scale.batch_size,
        patches_per_epoch=scale.steps * scale.batch_size,
        num_workers=0,
        seed=seed,
    )
    network = partial(UNet, depth=DEPTH, width=scale.width)
    task = SegmentationTask(norm, data.spec, network, learning_rate=2e-3, eval_core_px=scale.tile_px)
    folder = out_dir / "training" / name.lower()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[ModelCheckpoint(folder, filename=name.lower(), save_top_k=1, enable_version_counter=False)],
        enable_model_summary=False,
        log_every_n_steps=10,
        deterministic=True,
    )
    began = time.monotonic()
    with warnings.catch_warnings(), without_advertisements():
        # Lightning advises more worker processes and warns of a deprecation inside itself: nothing to do for a user.
        warnings.simplefilter("ignore")
        trainer.fit(task, data)
    return folder / f"{name.lower()}.ckpt", time.monotonic() - began


def _figures(run: dict[str, Any], consistency: Report, which: int) -> dict[str, Any]:
    measured = consistency["runs"][which]
    return {
        **{key: value for key, value in run.items() if key in ("train_seconds", "iou")},
        "overhead": round(measured["overhead"], 2),
        "tile_independent": not measured["unbounded"],
        "shifts": measured["comparisons"],
    }


def _headline(summary: dict[str, Any]) -> str:
    parts = []
    for name, figures in summary["norms"].items():
        aligned = figures["shifts"][0]
        parts.append(f"{aligned['flips']:,} of {aligned['pixels']:,} labels with {name}")
    return f"Moving the tile grid by {SHIFTS_PX[0]} px changes {' and '.join(parts)}."


def _write_report(
    out_dir: Path, summary: dict[str, Any], *, image: Path, truth: Path, runs: dict[str, dict[str, Any]]
) -> None:
    with open_raster(image) as reader:
        grid = reader.grid
        pixels = reader.read(Window(0, 0, grid.height, grid.width)).values
    rgb = np.moveaxis(pixels[:3], 0, -1)
    maps = {name: (_read_labels(run["map"]), _read_labels(run["map_moved"])) for name, run in runs.items()}
    head = [
        "norm",
        "IoU of buildings",
        "labels changed, grid moved by 128 px",
        "by 3 px",
        "training",
        "compute",
    ]
    rows = [
        [
            name,
            f"{figures['iou']:.3f}",
            f"{figures['shifts'][0]['flips']:,} ({figures['shifts'][0]['flips_percent']:.3f} %)",
            f"{figures['shifts'][1]['flips']:,} ({figures['shifts'][1]['flips_percent']:.3f} %)",
            f"{figures['train_seconds']:.0f} s",
            f"{figures['overhead']:.1f} x",
        ]
        for name, figures in summary["norms"].items()
    ]
    parts: list[Part] = [
        Text(_headline(summary), headline=True),
        Text(
            "A map of a large image is made tile by tile. Group Norm (GN) takes its statistics over the whole "
            "tile, so what a roof is called depends on what else lies in its tile, and another tile grid gives "
            f"another map. Local Context Norm (LCN) takes them over a window of {WINDOW_PX} px around each pixel: "
            "with enough surroundings read beside each tile, the grid cannot matter, and the map has no seams."
        ),
        Heading("The scene and its map"),
        Picture(
            _scene_figure(rgb, _read_labels(truth), {name: both[0] for name, both in maps.items()}),
            "A drawn scene neither network has seen; buildings as they are, and as each network maps them (yellow).",
            "Aerial scene, its true buildings, and the maps of GN and LCN",
        ),
        Heading("Where labels change when the tile grid moves"),
        Picture(
            _flip_figure(rgb, maps),
            f"The same network, the same image, the grid of {CORE_PX}-px tiles moved by {SHIFTS_PX[0]} px: red pixels "
            "change their label.",
            "Red marks where the label changes, many for GN and none for LCN",
        ),
        *_zoom_parts(rgb, maps),
        Heading("Figures"),
        Table(
            f"Tiles of {CORE_PX} px, {HALO_PX} px read beyond each; compute is pixels computed per pixel written.",
            head,
            rows,
        ),
        Text(
            f"Moves by a multiple of {2**DEPTH} px (here {SHIFTS_PX[0]}) show normalization alone. Other moves (here "
            f"{SHIFTS_PX[1]}) also shift the cells that pooling reduces, which changes any U-Net a little; geonorm "
            "anchors its grid to the map's coordinate system, so in daily use that shift does not happen."
        ),
    ]
    write_page(out_dir / "report.html", title="Does the map depend on the tiles?", parts=parts)


def _scene_figure(rgb: NDArray[np.uint8], truth: NDArray[np.uint8], maps: Mapping[str, NDArray[np.uint8]]) -> Figure:
    step = max(1, max(rgb.shape[:2]) // 1024)
    panels = [("image", rgb), ("buildings", _painted(rgb, truth > 0))]
    panels += [(name, _painted(rgb, labels == 1)) for name, labels in maps.items()]
    figure = Figure(figsize=(11, 11 * rgb.shape[0] / rgb.shape[1] + 0.5), layout="constrained")
    for axis, (title, picture) in zip(np.ravel(figure.subplots(2, 2)), panels, strict=True):
        axis.imshow(picture[::step, ::step])
        axis.set_title(title)
        axis.set_axis_off()
    return figure


def _flip_figure(rgb: NDArray[np.uint8], maps: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Figure:
    figure = Figure(figsize=(11, 5.5 * rgb.shape[0] / rgb.shape[1] + 0.5), layout="constrained")
    for axis, (name, (base, moved)) in zip(figure.subplots(1, 2), maps.items(), strict=True):
        flipped = base != moved
        step = max(1, max(rgb.shape[:2]) // 1024)
        grey = (150 + 0.4 * rgb[::step, ::step].mean(-1, keepdims=True)).astype(np.uint8)
        shown = torch.nn.functional.max_pool2d(torch.from_numpy(flipped)[None].float(), step, ceil_mode=True)[0] > 0
        axis.imshow(
            np.where(shown.numpy()[: grey.shape[0], : grey.shape[1], None], np.array([214, 20, 20], np.uint8), grey)
        )
        axis.set_title(f"{name}: {int(flipped.sum()):,} labels change")
        axis.set_axis_off()
    return figure


def _zoom_parts(
    rgb: NDArray[np.uint8], maps: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]
) -> list[Picture]:
    """Show the place where the labels change most, with each norm and both grids."""
    flips = sum((base != moved).astype(np.float32) for base, moved in maps.values())
    side = min(ZOOM_PX, *rgb.shape[:2])
    density = torch.nn.functional.avg_pool2d(torch.from_numpy(flips)[None], side, stride=16)[0]
    row, col = (int(index) * 16 for index in divmod(int(density.argmax()), density.shape[1]))
    area = (slice(row, row + side), slice(col, col + side))
    panels = [("image", rgb[area])]
    for name, both in maps.items():
        panels += [
            (f"{name}, {grid}", _painted(rgb[area], labels[area] == 1))
            for grid, labels in zip(("grid as it lies", "grid moved"), both, strict=True)
        ]
    figure = Figure(figsize=(13, 3.1), layout="constrained")
    for axis, (title, picture) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    caption = f"The {side} x {side} pixels where most labels change (row {row}, column {col})."
    return [Picture(figure, caption, "The same houses under both grids, with GN and with LCN")]


def _painted(rgb: NDArray[np.uint8], building: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(building[..., None], 0.35 * rgb + 0.65 * np.array([255, 196, 0]), rgb).astype(np.uint8)


def _read_labels(path: str | Path) -> NDArray[np.uint8]:
    with open_raster(path, bands=[1]) as reader:
        return reader.read(Window(0, 0, reader.grid.height, reader.grid.width)).values[0]


def _iou(labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    counts = confusion(torch.from_numpy(labels), torch.from_numpy((truth > 0).astype(np.uint8)), 2)
    return float(iou_of(counts)[1])
