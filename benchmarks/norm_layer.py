"""What does a norm cost beside torch's GroupNorm, in time and in memory, forward and backward, on the CPU?

    python benchmarks/norm_layer.py
    python benchmarks/norm_layer.py --windows 31 --norms LCN SN --threads 2

Each norm has a process of its own; they take turns, and ratios are those within a round. All of it twice: with memory
as the system gives it, where faults of fresh pages are a good part of the time, and with large pages
(THP_MEM_ALLOC_ENABLE=1, which torch reads).

The limit is how often the map itself must be read or written (2 times forward, 5 times with the way back) over the
speed at which this machine copies such a map. `extra_mib` is by how much the process grows at most, result included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from _limits import copied_bytes_per_second, limit_of_bytes
from _lines import print_ratios
from _options import option_parser, parse
from _released import ReleasedLocalContextNorm, ReleasedSwitchNorm
from _workers import Job, Workers, serve
from torch import Tensor, nn

from geonorm.norms import GroupNorm, LocalContextNorm, SwitchableNorm, compiled

SHAPES = ((4, 64, 256, 256), (1, 32, 1024, 1024))
GROUP_SIZE = 4
PASSES = {"forward": 2, "forward+backward": 5}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    windows: tuple[int, ...] = (31, 91, 227)
    """Of Local Context Norm, in cells."""
    norms: tuple[str, ...] = ("",)
    """Only those whose names begin so; GroupNorm always."""
    pages: tuple[str, ...] = ("system", "large")
    """Of memory."""
    shapes: tuple[int, ...] = (0, 1)
    """Which of SHAPES."""
    rounds: int = 7
    """Of measuring."""
    threads: int = 1
    """Of torch."""


QUICK = {"windows": (31,), "pages": ("large",), "shapes": (0,), "rounds": 3}


def main(case: Case) -> None:
    """Print one JSON line for each kind of pages, shape, direction and norm."""
    names = ["torch_GN", "torch_BN", "GN", "SN", "SN_released", *(f"LCN_{window}" for window in case.windows)]
    names += [f"LCN_plain_torch_{case.windows[0]}", f"LCN_released_{case.windows[0]}"]
    wanted = [name for name in names if name == "torch_GN" or name.startswith(case.norms)]
    for pages in case.pages:
        env = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"} if pages == "large" else os.environ
        workers = Workers(wanted, script=__file__, words=["--threads", str(case.threads)], env=env)
        for index in case.shapes:
            size = _input(index).nbytes
            for direction, passes in PASSES.items():
                turns = workers.alternate((index, direction), rounds=case.rounds)
                print_ratios(
                    {name: [turn.seconds for turn in values] for name, values in turns.items()},
                    {
                        name: {"extra_mib": round(statistics.median(turn.extra_mib for turn in values), 1)}
                        for name, values in turns.items()
                    },
                    to="torch_GN",
                    benchmark="norm_layer",
                    case=f"{' x '.join(map(str, SHAPES[index]))} {direction}, {pages} pages",
                    limit=limit_of_bytes(passes * size, f"{passes} passes", at=copied_bytes_per_second(size)),
                    shape=SHAPES[index],
                    direction=direction,
                    pages=pages,
                )
        workers.close()


@cache
def _layer(name: str, channels: int) -> nn.Module:
    kind, _, window = name.rpartition("_") if name[-1].isdigit() else (name, "", "31")
    cells = int(window)
    makers: dict[str, Callable[[], nn.Module]] = {
        "torch_GN": lambda: nn.GroupNorm(channels // GROUP_SIZE, channels),
        "torch_BN": lambda: nn.BatchNorm2d(channels),
        "GN": lambda: GroupNorm(channels, group_size=GROUP_SIZE),
        "SN": lambda: SwitchableNorm(channels),
        "SN_released": lambda: ReleasedSwitchNorm(channels),
        "LCN": lambda: LocalContextNorm(channels, window_cells=cells, group_size=GROUP_SIZE),
        "LCN_plain_torch": lambda: LocalContextNorm(channels, window_cells=cells, group_size=GROUP_SIZE),
        "LCN_released": lambda: ReleasedLocalContextNorm(channels, window=cells, group_size=GROUP_SIZE),
    }
    return makers[kind]()


@cache
def _input(shape: int) -> Tensor:
    return torch.randn(SHAPES[shape], generator=torch.Generator().manual_seed(0))


def _run(name: str, job: Job) -> Tensor:
    """Run a layer, and back with its input for the gradient of its output if that is asked for."""
    x, direction = _input(int(job[0])), job[1]
    layer = _layer(name, x.shape[1])
    if "plain_torch" in name:
        with compiled.plain_torch():
            return _run_layer(layer, x, direction == "forward")
    if isinstance(layer, ReleasedLocalContextNorm):  # it writes to its input
        return _run_layer(layer, x.clone(), direction == "forward")
    return _run_layer(layer, x, direction == "forward")


def _run_layer(layer: nn.Module, x: Tensor, forward: bool) -> Tensor:
    if forward:
        with torch.no_grad():
            return layer(x)
    leaf = x.detach().requires_grad_()
    # The released layer may not write to a leaf.
    y = layer(leaf * 1 if isinstance(layer, ReleasedLocalContextNorm) else leaf)
    (grad,) = torch.autograd.grad(y, leaf, x)
    return grad


if __name__ == "__main__":
    _parser = option_parser(__doc__, Case(), choices={"pages": ("system", "large")})
    _parser.add_argument("--worker", help=argparse.SUPPRESS)
    _case, _given = parse(_parser, Case, sys.argv[1:], quick=QUICK)
    torch.set_num_threads(_case.threads)
    if _given.worker is None:
        main(_case)
    else:
        serve(partial(_run, _given.worker))
