"""What does it cost to be exact: rows in one stream, the whole image at once, or tiles with the exact halo?

python benchmarks/rows.py                             2048 px, U-Net of depth 4, BN, LCN over 31 and over 91 px
python benchmarks/rows.py --threads 2 --size-px 3072 --norms LCN_31px
python benchmarks/rows.py --size-px 8192 --height-px 768 --depth 3 --norms BN --ways rows --steps-px 16 32 64 128

An image in memory, no files. The ratio is to the whole image at once; tiles have cores of 512 px. `kept_mib` is what
the rows take that are kept, `flops` the operations of convolutions beside those of the whole image. The limit is that
of the convolutions of the whole image, at the most operations this machine computes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from _alternate import alternate
from _limits import flops_of, limit_of_flops
from _lines import print_ratios
from _options import option_parser, parse
from torch import Tensor

from geonorm.inference.activations import stream_bytes
from geonorm.models import UNet, tile_geometry
from geonorm.models.predictor import predictor
from geonorm.models.row_predictor import RowPredictor
from geonorm.norms import BatchNorm, LocalContextNorm, NormFactory
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.plan import Plan

CPU = torch.device("cpu")
NORMS: dict[str, NormFactory] = {
    "BN": BatchNorm,
    "LCN_31px": partial(LocalContextNorm, window_px=31),
    "LCN_91px": partial(LocalContextNorm, window_px=91),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    size_px: int = 2048
    """Columns of the image, and rows unless they are given."""
    height_px: int = 0
    """Rows of the image; 0: as many as columns."""
    core_px: int = 512
    """Of the tiles."""
    steps_px: tuple[int, ...] = (128,)
    """Rows that go in at a time."""
    depth: int = 4
    """Of the network."""
    width: int = 16
    """Of the network."""
    threads: int = 1
    """Of torch."""
    rounds: int = 3
    """Of measuring."""
    norms: tuple[str, ...] = tuple(NORMS)
    """Of the network."""
    ways: tuple[str, ...] = ("rows", "tiles")
    """What is held against the whole image at once."""


QUICK = {"size_px": 1024, "depth": 3, "width": 8, "rounds": 1, "norms": ("BN", "LCN_31px")}


def main(case: Case) -> None:
    """Print JSON lines."""
    torch.set_num_threads(case.threads)
    shape = (1, 3, case.height_px or case.size_px, case.size_px)
    image = torch.randint(0, 255, shape, generator=torch.Generator().manual_seed(0))
    for norm in case.norms:
        _compare(case, norm, image.to(torch.uint8))


def _compare(case: Case, norm: str, image: Tensor) -> None:
    torch.manual_seed(0)
    network = UNet(3, 2, norm=NORMS[norm], depth=case.depth, width=case.width).eval()
    geometry = tile_geometry(network)
    assert geometry.core_halo_px is not None
    at_once, by_rows = predictor(network, CPU), RowPredictor(network, geometry, CPU)
    plan = Plan(
        height=image.shape[2],
        width=image.shape[3],
        core_px=case.core_px,
        halo_px=geometry.core_halo_px,
        network=network_of(geometry),
    )
    rows, cols = ([read for span in axis.spans() for read in span.reads] for axis in plan.axes)

    def stream(step_px: int) -> None:
        run = by_rows(image.shape[2])
        for part in image.split(step_px, dim=2):
            run.push(part)

    def tiles() -> None:
        for row in rows:
            for col in cols:
                at_once(image[:, :, row.start : row.stop, col.start : col.stop])

    ways: dict[str, Callable[[], object]] = {"whole image": partial(at_once, image)}
    with torch.no_grad():
        whole_flops = flops_of(lambda: network(image.float()))
    facts: dict[str, dict[str, Any]] = {"whole image": {"flops": 1.0}}
    for step_px in case.steps_px if "rows" in case.ways else ():
        way = f"rows, {step_px} at a time"
        kept, _ = stream_bytes(by_rows, geometry, width_px=case.size_px, step_px=step_px)
        done = flops_of(partial(_stream_without_bits, by_rows, image, step_px))
        ways[way] = partial(stream, step_px)
        facts[way] = {"flops": done / whole_flops, "kept_mib": round(kept / 2**20)}
    if "tiles" in case.ways:
        ways["exact tiles"] = tiles
        facts["exact tiles"] = {"flops": plan.compute}
    print_ratios(
        alternate(ways, rounds=case.rounds),
        facts,
        to="whole image",
        benchmark="rows",
        case=f"{norm}, depth {case.depth}, {plan.height} x {plan.width} px, exact halo {geometry.core_halo_px} px",
        limit=limit_of_flops(whole_flops),
        core_px=case.core_px,
        width=case.width,
    )


def _stream_without_bits(by_rows: RowPredictor, image: Tensor, step_px: int) -> None:
    """Go the way that torch counts: it does not know oneDNN's operator."""
    stream = by_rows.rows.stream(image.shape[2])
    with torch.no_grad():
        for part in image.split(step_px, dim=2):
            stream.push(part.float())


if __name__ == "__main__":
    _parser = option_parser(__doc__, Case(), choices={"norms": list(NORMS), "ways": ["rows", "tiles"]})
    main(parse(_parser, Case, sys.argv[1:], quick=QUICK)[0])
