"""Options that several commands share, and what their words mean."""

from __future__ import annotations

import argparse
from typing import Any

from geonorm.errors import InvalidConfigError

Options = argparse.ArgumentParser | argparse._ArgumentGroup


def add_tiling(parser: Options) -> None:
    """Add how a raster is cut into tiles and what computes them."""
    parser.add_argument("--halo", default="auto", help="pixels read beyond the core: auto, exact, measured or a number")
    parser.add_argument(
        "--grid_offset_px",
        type=int,
        nargs=2,
        default=(0, 0),
        metavar=("ROWS", "COLS"),
        help="move the tile grid",
    )
    parser.add_argument("--batch_size", type=int, default=1, help="tiles per network call")
    add_reading(parser)
    add_trust(parser)


def add_reading(parser: Options) -> None:
    """Add what computes, and which pixels have no data."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto: the GPU if there is one")
    parser.add_argument(
        "--nodata_rule",
        choices=("all", "any"),
        default="all",
        help="no data where all or any of the bands have none",
    )


def add_trust(parser: Options) -> None:
    """Add whether networks of any module are made."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="make networks of any module the checkpoint names; this runs its code",
    )


def as_halo(text: str) -> Any:
    """Return a number of pixels or the word for how to find it."""
    try:
        return int(text)
    except ValueError:
        pass
    if text not in ("auto", "exact", "measured"):
        raise InvalidConfigError(f"--halo must be auto, exact, measured or a number of pixels, got {text!r}.")
    return text


def as_device(name: str) -> str:
    """Return the name of a device that works, `auto` resolved."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except Exception as error:
        raise InvalidConfigError(f"--device {name} cannot be used here; try --device cpu.") from error
    return name


def as_numbers(text: str, *, option: str) -> list[int]:
    """Return numbers that are written with commas between."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidConfigError(f"{option} needs whole numbers with commas between, got {text!r}.") from None
