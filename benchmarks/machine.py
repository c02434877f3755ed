"""How fast does this machine copy memory, multiply matrices and convolve? What the other benchmarks are held against.

python benchmarks/machine.py
python benchmarks/machine.py --threads 2
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from _limits import (
    LARGE_BYTES,
    MATRIX,
    convolution_flops_per_second,
    copied_bytes_per_second,
    matmul_flops_per_second,
)
from _lines import print_line
from _options import option_parser, parse


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    threads: int = 1
    """Of torch; seconds are processor time, so the figures are those of one of them."""


def main(case: Case) -> None:
    """Print a JSON line for each."""
    torch.set_num_threads(case.threads)
    size = f"{LARGE_BYTES // 2**20} MiB"
    print_line("machine", f"{size} in and out", "copy", copied_bytes_per_second(LARGE_BYTES), "B/s")
    print_line("machine", f"{MATRIX} x {MATRIX}, float32", "matmul", matmul_flops_per_second(), "FLOP/s")
    convolution = "3 x 3, 128 to 128 channels, 256 x 256"
    print_line("machine", convolution, "convolution", convolution_flops_per_second(), "FLOP/s")


if __name__ == "__main__":
    main(parse(option_parser(__doc__, Case()), Case, sys.argv[1:], quick={})[0])
