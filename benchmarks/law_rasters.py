"""Do whole rasters get the same labels from every core and every origin of the grid, and cut into files?

python benchmarks/law_rasters.py RASTER [RASTER ...]                      a Markdown table, one row per pass
python benchmarks/law_rasters.py RASTER --cores 512 --norms LCN --cut 3   also of 3 x 3 files with the same pixels

The networks are narrow U-Nets with random weights, whose classes all occur. Every pass has the exact halo, and is held
against the first one of its raster and norm strip by strip: no more than one map of uint8 is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from tqdm import tqdm

from geonorm.inference.job import as_trained, prepare
from geonorm.models import UNet
from geonorm.models.predictor import predictor
from geonorm.norms import BatchNorm, LocalContextNorm, NormFactory
from geonorm.raster.mosaic import Mosaic
from geonorm.raster.read import Reader, open_raster
from geonorm.raster.window import Window
from geonorm.tasks.checkpoint import TrainedModel

NORMS: dict[str, Callable[[int], NormFactory]] = {
    "BN": lambda _: BatchNorm,
    "LCN": lambda window_px: partial(LocalContextNorm, window_px=window_px, group_size=2),
}
NUM_CLASSES = 3
SAMPLE_PX = 512  # side of the part of a raster that sets the scale of its values and the balance of the classes
COLUMNS = ("raster", "norm", "core", "origin", "pixels", "flips", "least class", "CPU seconds")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is tried on every raster; each field is an option of the command line."""

    cores: tuple[int, ...] = (256, 512, 1024)
    """Sides of the squares that one call writes."""
    offsets: tuple[tuple[int, int], ...] = ((0, 0), (4, 8), (-68, 132), (252, -516))
    """Rows and columns by which the grid is moved, as ROW COL ROW COL ...; multiples of the network's stride."""
    norms: tuple[str, ...] = tuple(NORMS)
    """BN, LCN."""
    window_px: int = 15
    """Window of LCN."""
    depth: int = 2
    """How often the map is halved."""
    width: int = 8
    """Channels of the first block."""
    max_bands: int = 3
    """Bands that are read, where the raster has as many."""
    cut: int = 0
    """Cut each raster into so many files on each side, too, and read them as one; 0: do not."""

    @property
    def passes(self) -> int:
        """How often each raster is labelled."""
        return len(self.cores) * len(self.offsets) * len(self.norms) * (2 if self.cut else 1)


def main(rasters: Sequence[str], case: Case) -> int:
    """Print the table, and return how many labels differed in all of it."""
    print("|", " | ".join(COLUMNS), "|")
    print("|", " | ".join("---" for _ in COLUMNS), "|", flush=True)
    flips = 0
    with ExitStack() as opened:
        readers = [opened.enter_context(_open(path, case)) for path in rasters]
        pixels = sum(reader.grid.height * reader.grid.width for reader in readers)
        bar = opened.enter_context(tqdm(total=pixels * case.passes, unit="px", unit_scale=True))
        for reader in readers:
            flips += _check(reader, case, bar)
    return flips


def _check(reader: Reader, case: Case, bar: tqdm[None]) -> int:
    """Print the rows of one raster."""
    name, flips = Path(reader.path).name, 0
    with tempfile.TemporaryDirectory() as folder:
        sources: dict[str, Reader | Mosaic] = {name: reader}
        if case.cut:
            sources[f"{name}, {case.cut} x {case.cut} files"] = Mosaic(list(_cut(reader, Path(folder), case)))
        for norm in case.norms:
            model = as_trained(_network(reader, NORMS[norm](case.window_px), case))
            expected: NDArray[np.uint8] | None = None
            for title, source in sources.items():
                for core_px in case.cores:
                    for offset in case.offsets:
                        bar.set_description(f"{title}, {norm}, core {core_px}, origin {offset}")
                        began = time.process_time()
                        labels, differ = _label(model, source, core_px, offset, expected, bar)
                        seconds = time.process_time() - began
                        expected = labels if expected is None else expected
                        counts = np.bincount(expected.reshape(-1), minlength=NUM_CLASSES)
                        flips += differ
                        origin = f"{offset[0]}, {offset[1]}"
                        share = f"{100 * counts.min() / expected.size:.1f} %"
                        figures = (title, norm, core_px, origin, expected.size, differ, share, f"{seconds:.0f}")
                        with bar.external_write_mode():
                            print("|", " | ".join(map(str, figures)), "|", flush=True)
    return flips


def _label(
    model: TrainedModel,
    source: Reader | Mosaic,
    core_px: int,
    offset: tuple[int, int],
    expected: NDArray[np.uint8] | None,
    bar: tqdm[None],
) -> tuple[NDArray[np.uint8], int]:
    """Return a map and how many of its labels differ from the one expected, which is made here where it is None."""
    job = prepare(model, source, core_px=core_px, halo="exact", grid_offset_px=offset)
    stride = job.plan.network.stride_px
    if any(side % stride for side in offset):
        raise SystemExit(f"--offsets must be multiples of the stride of {stride} px, got {offset[0]} {offset[1]}")
    labels = np.empty((source.grid.height, source.grid.width), np.uint8) if expected is None else expected
    row, differ = 0, 0
    for strip in job.strips():
        if strip.row != row:
            raise AssertionError(f"a strip begins at row {strip.row}, after {row} rows")
        found = strip.output.numpy()
        if expected is None:
            labels[row : row + strip.rows] = found
        differ += int((labels[row : row + strip.rows] != found).sum())
        row += strip.rows
        bar.update(strip.rows * source.grid.width)
    if row != source.grid.height:
        raise AssertionError(f"the strips have {row} rows, the raster {source.grid.height}")
    return labels, differ


def _network(reader: Reader, norm: NormFactory, case: Case) -> UNet:
    """Return a network with random weights that gives each class a part of the raster."""
    torch.manual_seed(0)
    network = UNet(len(reader.bands), NUM_CLASSES, norm=norm, depth=case.depth, width=case.width).eval()
    rows, cols = (min(SAMPLE_PX, side) >> case.depth << case.depth for side in (reader.grid.height, reader.grid.width))
    window = Window((reader.grid.height - rows) // 2, (reader.grid.width - cols) // 2, rows, cols)
    sample = torch.from_numpy(reader.read(window).values).to(torch.float32)
    deviation, mean = torch.std_mean(sample, dim=(1, 2))
    with torch.no_grad():
        network.rescale.mean.copy_(mean)
        network.rescale.deviation.copy_(deviation.clamp(min=1))
        logits = predictor(network, torch.device("cpu"))(sample[None])
        deviation, mean = torch.std_mean(logits[0], dim=(1, 2))
        network.head.weight /= deviation[:, None, None, None]
        assert network.head.bias is not None
        network.head.bias.copy_((network.head.bias - mean) / deviation)
    return network


def _open(path: str, case: Case) -> Reader:
    with open_raster(path) as reader:
        bands = range(1, min(reader.count, case.max_bands) + 1)
    return open_raster(path, bands=bands)


def _cut(reader: Reader, folder: Path, case: Case) -> Iterator[Reader]:
    """Yield closed files side by side that hold the pixels of a raster."""
    sides = (reader.grid.height, reader.grid.width)
    rows, cols = ([side * part // case.cut for part in range(case.cut + 1)] for side in sides)
    for top, bottom in pairwise(rows):
        for left, right in pairwise(cols):
            values = reader.read(Window(top, left, bottom - top, right - left)).values
            transform = reader.grid.transform @ Affine.translation(left, top)
            path = folder / f"part_{top}_{left}.tif"
            count, height, width = values.shape
            shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
            # MINISBLACK: else GDAL tags a fourth band as alpha.
            options = {"photometric": "minisblack", "crs": reader.grid.crs, "transform": transform, **shape}
            with rasterio.open(path, "w", driver="GTiff", tiled=True, compress="deflate", **options) as new:
                new.write(values)
            with open_raster(path, bands=reader.bands) as part:
                yield part


def _options() -> tuple[list[str], Case]:
    case = Case()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rasters", nargs="*")
    parser.add_argument("--cores", nargs="+", type=int, default=case.cores)
    sides = [side for offset in case.offsets for side in offset]
    parser.add_argument("--offsets", nargs="+", type=int, default=sides, help="ROW COL ROW COL ...")
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=case.norms)
    for name in ("window_px", "depth", "width", "max_bands", "cut"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(case, name))
    given = vars(parser.parse_args())
    rasters, sides = given.pop("rasters"), given.pop("offsets")
    if len(sides) % 2:
        parser.error(f"--offsets needs rows and columns in turn, got {len(sides)} numbers")
    cores, norms = tuple(given.pop("cores")), tuple(given.pop("norms"))
    offsets = tuple(zip(sides[::2], sides[1::2], strict=True))
    return rasters, Case(cores=cores, offsets=offsets, norms=norms, **given)


if __name__ == "__main__":
    paths, options = _options()
    if not paths:
        print(json.dumps({"benchmark": "law_rasters", "skipped": "give rasters"}))
    else:
        sys.exit(1 if main(paths, options) else 0)
