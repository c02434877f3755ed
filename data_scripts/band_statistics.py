"""Mean and deviation of each band of some images, and the shares of their classes, to put into a configuration.

    python data_scripts/band_statistics.py data/AerialImageDataset/train/images --out configs/data/inria_scale.yaml
    geonorm fit --config configs/data/inria.yaml --config configs/data/inria_scale.yaml ...

Every pixel is counted, or with --windows N those of N windows drawn at random, more of larger images. Pixels without
data (nodata values, masks, NaN) do not count. Sums are kept as mean and squared differences in double precision and
merged (Chan, Golub and LeVeque 1983), so that large values lose nothing. OUT ends in .yaml (settings of the model:
band_means, band_deviations; shares as a comment) or .json (all numbers); without it the YAML is printed.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _script import Parser, run
from tqdm import tqdm

from geonorm.data.labels import is_vector
from geonorm.data.rasters import find_images, label_file
from geonorm.data.statistics import Moments
from geonorm.errors import DatasetError, InvalidConfigError
from geonorm.files import written_whole
from geonorm.raster.grid import Grid
from geonorm.raster.read import open_raster
from geonorm.raster.window import Window

SIDE_PX = 512
"""Side of the windows that are read at a time."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = Parser(__doc__)
    parser.add_argument("images", nargs="+", help="folders, files, or patterns such as 'data/**/*_naip-new.tif'")
    parser.add_argument("--labels", help="label rasters: a folder with the same names, or a pattern with {name}")
    parser.add_argument("--bands", type=int, nargs="+", help="bands to measure, counted from 1 (all where not given)")
    parser.add_argument("--nodata", type=float, help="value without data, beside what the files declare")
    parser.add_argument("--nodata_rule", choices=("all", "any"), default="all", help="of the bands of a pixel")
    parser.add_argument("--windows", type=int, default=0, help=f"so many of {SIDE_PX} px; 0: every pixel")
    parser.add_argument("--seed", type=int, default=0, help="chooses the windows")
    parser.add_argument("--out", type=Path, help="file to write, .yaml or .json")
    return run(_work, parser, argv)


def _work(options: argparse.Namespace) -> None:
    if options.out and options.out.suffix not in (".yaml", ".json"):
        raise InvalidConfigError(f"--out must end in .yaml or .json, got {options.out}.")
    if options.windows < 0:
        raise InvalidConfigError(f"--windows must be 0 (every pixel) or more, got {options.windows}.")
    images = find_images(options.images)
    moments, classes, bands = measure(images, options)
    if not moments.count.all():
        empty = [str(band) for band, count in zip(bands, moments.count, strict=True) if not count]
        raise DatasetError(f"band {', '.join(empty)} of the {len(images)} images holds no valid pixel.")
    made_from = f"{len(images)} images, " + (f"{options.windows} windows" if options.windows else "every pixel")
    text = (_as_json if options.out and options.out.suffix == ".json" else _as_yaml)(moments, classes, made_from)
    print(text, end="")
    if options.out:
        with written_whole(options.out) as made:
            made.write_text(text, encoding="utf-8")


def measure(images: Sequence[str], options: argparse.Namespace) -> tuple[Moments, Counter[int], tuple[int, ...]]:
    """Return the moments of the bands, the pixels of each label value, and which bands these are."""
    settings = {"bands": options.bands, "nodata": options.nodata, "nodata_rule": options.nodata_rule}
    grids, bands = _grids(images, settings)
    total = Moments.of_none(len(bands))
    classes: Counter[int] = Counter()
    windows = (
        _drawn(grids, options.windows, options.seed) if options.windows else [list(_tiled(grid)) for grid in grids]
    )
    with tqdm(total=sum(map(len, windows)), desc="measuring", unit="window") as bar:
        for image, some in zip(images, windows, strict=True):
            if not some:
                continue
            with open_raster(image, **settings) as raster:
                for window in some:
                    pixels = raster.read(window)
                    total = total.merged(Moments.of(pixels.values, pixels.value_valid & pixels.valid))
                    bar.update()
            if options.labels:
                classes += _count_classes(image, label_file(image, options.labels), some)
    return total, classes, bands


def _grids(images: Sequence[str], settings: dict[str, Any]) -> tuple[list[Grid], tuple[int, ...]]:
    grids: list[Grid] = []
    bands: tuple[int, ...] = ()
    for image in images:
        with open_raster(image, **settings) as raster:
            grids.append(raster.grid)
            if bands and len(raster.bands) != len(bands):
                raise DatasetError(
                    f"{image} has {len(raster.bands)} bands, {images[0]} has {len(bands)}. "
                    "Choose some of them with --bands."
                )
            bands = raster.bands
    return grids, bands


def _tiled(grid: Grid) -> Iterator[Window]:
    for row in range(0, grid.height, SIDE_PX):
        for col in range(0, grid.width, SIDE_PX):
            yield Window(row, col, min(SIDE_PX, grid.height - row), min(SIDE_PX, grid.width - col))


def _drawn(grids: Sequence[Grid], count: int, seed: int) -> list[list[Window]]:
    """Return random windows of each image, larger images having more of them."""
    draw = np.random.default_rng(seed)
    areas = np.array([grid.height * grid.width for grid in grids], dtype=float)
    windows: list[list[Window]] = [[] for _ in grids]
    for which in draw.choice(len(areas), size=count, p=areas / areas.sum()):
        grid = grids[which]
        height, width = min(SIDE_PX, grid.height), min(SIDE_PX, grid.width)
        row, col = draw.integers(grid.height - height + 1), draw.integers(grid.width - width + 1)
        windows[which].append(Window(int(row), int(col), height, width))
    return windows


def _count_classes(image: str, labels: str, windows: Sequence[Window]) -> Counter[int]:
    if is_vector(labels):
        raise DatasetError(f"{labels} holds polygons, and only label rasters can be counted. Leave --labels out.")
    counts: Counter[int] = Counter()
    with open_raster(labels, bands=[1]) as raster, open_raster(image) as pixels:
        if (raster.grid.height, raster.grid.width) != (pixels.grid.height, pixels.grid.width):
            raise DatasetError(f"{labels} is not of the size of {image}. Leave --labels out.")
        for window in windows:
            held = raster.read(window)
            values, numbers = np.unique(held.values[0][held.valid], return_counts=True)
            counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return counts


def _as_yaml(moments: Moments, classes: Counter[int], made_from: str) -> str:
    lines = [f"# Measured by data_scripts/band_statistics.py on {made_from}."]
    if classes:
        total = sum(classes.values())
        shares = ", ".join(f"{value:g}: {count / total:.4%}" for value, count in sorted(classes.items()))
        lines.append(f"# Shares of the label values: {shares}.")
    lines += ["model:"]
    for name, values in (("band_means", moments.mean), ("band_deviations", moments.deviation)):
        lines.append(f"  {name}: [{', '.join(f'{value:.6g}' for value in values)}]")
    return "\n".join(lines) + "\n"


def _as_json(moments: Moments, classes: Counter[int], made_from: str) -> str:
    total = sum(classes.values())
    held = {
        "measured_on": made_from,
        "band_means": moments.mean.tolist(),
        "band_deviations": moments.deviation.tolist(),
        "valid_pixels": moments.count.astype(int).tolist(),
        "class_shares": {f"{value:g}": count / total for value, count in sorted(classes.items())},
    }
    return json.dumps(held, indent=1) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
