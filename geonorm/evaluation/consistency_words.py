"""What a consistency report says in words: its headline, a verdict on each model, numbers that never round to zero."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePath
from typing import Any

Run = Mapping[str, Any]
"""What the report holds of a model on a raster."""
Comparison = Mapping[str, Any]
"""What a run holds of another way to label the raster."""

MOVES = ("aligned", "unaligned")
SPACE = "\N{NO-BREAK SPACE}"
LEAST_PERCENT = 1e-6

KINDS = {
    "aligned": "a multiple of the stride",
    "unaligned": "not a multiple of the stride",
    "core": "other core size",
    "whole": "no tiles",
    "crop": "raster cropped",
    "neighbour": "where tiles overlap",
    "train": "statistics of the batch",
}
"""The kinds of comparison in the order of the tables, and what their words leave unsaid."""

DEFINITIONS = {
    "Labels that change": "Pixels that get another class when the raster is labelled in another way, as a share of all "
    "pixels with data. Every comparison is against the grid at rest.",
    "Tie": "A changed label between two classes that were as good as equally probable in both maps. Ties are counted "
    "among the changed labels, and named.",
    "Grid moved, a multiple of the stride": "The raster is cut into tiles that begin elsewhere. Moved by a multiple of "
    "the network's stride, pooling still meets the same pixels, so that whatever changes comes from normalization or "
    "from a halo that is too narrow.",
    "Grid moved, not a multiple of the stride": "Here pooling meets other pixels, too. No halo cures that, so the two "
    "moves are never mixed.",
    "Other core size": "The core is the square that one call of the network writes. Other cores mean other tiles, "
    "another border between them, and other statistics for a layer that looks at the whole tile.",
    "No tiles": "The whole raster goes through the network in one pass, as if there were memory enough for any raster.",
    "Raster cropped": "Some rows and columns are cut off at the top and the left and the rest is labelled again. What "
    "lies so close to the cut that the network can see it does not count.",
    "Where tiles overlap": "Each pixel is labelled once more by the nearest tile beside its own, as far as that one "
    "sees it.",
    "Statistics of the batch": "Norms behave as in training and share their statistics among a few tiles.",
    "Corner consensus": "Four overlapping inputs are cut from the corners of a patch. The share of the pixels that all "
    "four hold on which their maps agree.",
    "Change of probability": "Half the sum over the classes of the difference between the two probabilities, 0 to 1.",
    "IoU of the maps": "Intersection over union of a class between the two maps; 1 where they are the same.",
    "Seam energy": "How many times as often labels change on both sides of a border between cores as elsewhere. 1 "
    "is no seam; there is no such number where nothing changes elsewhere.",
    "Mean IoU, accuracy": "Of the grid at rest against the true labels, where there are any.",
    "Spread of the mean IoU": "The largest less the least mean IoU over grids, cores and the whole image: what the "
    "choice of the tiles alone does to the score.",
    "Consistent and correct": "Pixels whose label is the same in both maps, and true.",
    "Halo": "What a tile reads beyond its core. Exact: as far as an output pixel sees. Measured: as far as it takes to "
    "change next to nothing. Given: chosen by the user, and narrower than what an output pixel sees.",
    "Overhead": "Pixels that the network reads for each pixel that it writes.",
}


@dataclass(frozen=True, kw_only=True)
class Move:
    """What a move of the grid changed, summed over the rasters of a model."""

    name: str
    by_px: int
    kind: str
    rasters: int
    pixels: int
    flips: int
    ties: int


def headline(runs: Sequence[Run]) -> str:
    """Return in one or two sentences how many labels change when the tile grid moves.

    Each model is told by the aligned move that most runs share; one that has none by its own aligned move, or else by
    an unaligned one, which is named as such.
    """
    moves = sorted(moves_of(runs), key=lambda move: (move.kind, move.by_px))
    if not moves:
        return "How labels change when the tile grid moves was not measured."
    return " ".join(_sentence([*group]) for _, group in groupby(moves, key=lambda move: (move.kind, move.by_px)))


def halos(runs: Sequence[Run]) -> str:
    """Return which halo each model read at which cost, with warnings: of halos of different kinds, of small rasters."""
    parts = []
    for name, of_name in by_name(runs).items():
        widths = [f"{run['halo_px']}{SPACE}px {run['halo_kind']}" for run in of_name]
        costs = sorted({f"{run['overhead']:.2f}" for run in of_name}, key=float)
        parts.append(f"{name} {listed([*dict.fromkeys(widths)])} at {listed(costs)} times the compute")
    text = f"Halos: {'; '.join(parts)}."
    if len({run["halo_kind"] for run in runs}) > 1:
        text += (
            " The halos are of different kinds, so networks differ by what their halos cost and leave out as well as "
            "by their norms; --halo with a number of pixels gives all of them the same."
        )
    return text + _nothing_to_tell(runs)


def _nothing_to_tell(runs: Sequence[Run]) -> str:
    """Return a caution about rasters so small that a tile of a network that depends on its tiles reads the whole."""
    small = [run for run in runs if not run["tile_independent"] and run["read_px"] >= max(run["height"], run["width"])]
    if not small:
        return ""
    files = listed([*dict.fromkeys(file_name(run["source"]) for run in small)])
    models = listed([*dict.fromkeys(run["model"] for run in small)])
    return (
        f" Every tile of {files} reads about all there is, so moves of the grid tell nothing of {models} there; take "
        "larger rasters, or a smaller --core_px."
    )


def verdicts(runs: Sequence[Run]) -> list[str]:
    """Return a sentence or two on every model: whether its map depends on the tiles, and why."""
    moves = {move.name: move for move in moves_of(runs)}
    return [_verdict(name, of_name, moves.get(name)) for name, of_name in by_name(runs).items()]


def moves_of(runs: Sequence[Run]) -> list[Move]:
    """Return the move by which each model is told, in the order of the report; models without any are left out."""
    found = []
    for name, of_name in by_name(runs).items():
        for kind in MOVES:
            by_px = usual_move(runs, kind)
            if not _measured(of_name, kind, by_px):
                by_px = usual_move(of_name, kind)
            if ones := _measured(of_name, kind, by_px):
                found.append(_sum(name, kind, ones))
                break
    return found


def usual_move(runs: Sequence[Run], kind: str) -> int | None:
    """Return by how many pixels most runs moved the grid in a kind of move; None: none did.

    Of several, the one that changed most labels, the first of equals.
    """
    moved = [one for run in runs for one in measured(run) if one["kind"] == kind]
    counts = Counter(one["by_px"] for one in moved)
    flips: Counter[int] = Counter()
    for one in moved:
        flips[one["by_px"]] += one["flips"]
    return max(counts, key=lambda by_px: (counts[by_px], flips[by_px])) if counts else None


def by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each model, in the order of the report."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(name_of(run), []).append(run)
    return found


def by_source(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs on each raster, in the order of the report."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run["source"], []).append(run)
    return found


def name_of(run: Run) -> str:
    """Return what tells the model from the others of the report.

    Example:
        >>> name_of({"model": "GN", "localized_px": 127})
        'GN (localized, 127 px)'
    """
    local_px = run.get("localized_px")
    return str(run["model"]) if local_px is None else f"{run['model']} (localized, {local_px} px)"


def file_name(source: str) -> str:
    """Return the last part of a path."""
    return PurePath(source).name


def measured(run: Run) -> list[Comparison]:
    """Return the comparisons that were not skipped."""
    return [one for one in run["comparisons"] if one.get("skipped") is None]


def percent(value: float) -> str:
    """Return a percentage of which two digits count; only 0 is written as 0, and only 100 as 100.

    Example:
        >>> [percent(value).split()[0] for value in (0, 0.0004, 3.63, 45.3, 99.99963, 100)]
        ['0', '0.00040', '3.6', '45', '99.99963', '100']
    """
    if 0 < value < LEAST_PERCENT:
        return f"<{SPACE}0.000001{SPACE}%"
    return f"{_fixed(value, 100)}{SPACE}%"


def share(value: float) -> str:
    """Return a score of which at least three decimals count; only 0 is written as 0, and only 1 as 1.

    Example:
        >>> [share(value) for value in (0, 0.61, 0.4567, 0.99996, 1)]
        ['0', '0.610', '0.457', '0.999960', '1']
    """
    return _fixed(value, 1, least=3)


def count(number: int) -> str:
    r"""Return a count that is read at a glance.

    Example:
        >>> [count(number) for number in (0, 1_204, 33_177_600)]
        ['0', '1,204', '33.2\xa0million']
    """
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if number >= 0.9995 * size:
            return f"{number / size:.{1 if number < 99.95 * size else 0}f}{SPACE}{word}"
    return f"{number:,}"


def listed(words: Sequence[str]) -> str:
    """Return words as English lists them.

    Example:
        >>> listed(["BN", "GN", "LCN"])
        'BN, GN and LCN'
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _fixed(value: float, whole: int, least: int = 0) -> str:
    """Return a number from 0 to ``whole`` without an exponent, two digits of its distance from the nearer end or more.

    Args:
        value: The number.
        whole: The end of its range.
        least: Decimals that are kept in any case.
    """
    distance = min(value, whole - value)
    if distance <= 0:
        return f"{value:.0f}"
    # A distance so small comes from rounding: six digits more than anyone reads.
    decimals = min(12, max(least, 1 - math.floor(math.log10(distance))))
    return f"{value:.{decimals}f}"


def _measured(runs: Iterable[Run], kind: str, by_px: int | None) -> list[Comparison]:
    return [one for run in runs for one in measured(run) if one["kind"] == kind and one["by_px"] == by_px]


def _sum(name: str, kind: str, ones: Sequence[Comparison]) -> Move:
    flips, pixels, ties = (sum(one[key] for one in ones) for key in ("flips", "pixels", "ties"))
    return Move(name=name, by_px=ones[0]["by_px"], kind=kind, rasters=len(ones), pixels=pixels, flips=flips, ties=ties)


def _sentence(moves: Sequence[Move]) -> str:
    first, *others = moves = sorted(moves, key=lambda move: move.flips / max(1, move.pixels))
    but = "" if first.kind == "aligned" else ", which is not a multiple of the stride,"
    start = f"Moving the tile grid by {first.by_px}{SPACE}px{but} changes"
    if not others:
        return f"{start} {count(first.flips)} of {_total(first)}{_in_brackets(first)} with {first.name}."
    if all((move.pixels, move.rasters) == (first.pixels, first.rasters) for move in others):
        # Those that change as little are named together; the first says of how many labels.
        groups = [[*group] for _, group in groupby(moves, key=lambda move: move.flips)]
        parts = [
            f"{count(one.flips)}{f' of {_total(first)}' if one is first else ''}{_in_brackets(one)} with "
            f"{listed([move.name for move in group])}"
            for group in groups
            for one in group[:1]
        ]
    else:
        parts = [f"{count(move.flips)} of {_total(move)}{_in_brackets(move)} with {move.name}" for move in moves]
    return f"{start} {listed(parts)}."


def _total(move: Move) -> str:
    return f"{count(move.pixels)} labels" + (f" of {move.rasters} rasters" if move.rasters > 1 else "")


def _in_brackets(move: Move) -> str:
    return f" ({percent(100 * move.flips / move.pixels)})" if move.flips else ""


def _verdict(name: str, runs: Sequence[Run], move: Move | None) -> str:
    halo = listed([f"{halo_px}{SPACE}px" for halo_px in sorted({run["halo_px"] for run in runs})])
    if all(run["tile_independent"] for run in runs):
        text = f"{name}: the map does not depend on the tiles. A halo of {halo} holds all that a pixel sees."
        if move and move.flips and move.kind == "aligned":
            ties = "all of them ties" if move.ties == move.flips else f"{count(move.ties)} of them ties"
            text += f" Rounding still changed {count(move.flips)} labels, {ties}."
        return text
    if unbounded := [*dict.fromkeys(module for run in runs for module in run["unbounded"])]:
        layers = f"{unbounded[0]} looks" if len(unbounded) == 1 else f"{len(unbounded)} layers look"
        return f"{name}: the map depends on the tiles. {layers} at all that a tile reads."
    if all(run["halo_kind"] == "exact" for run in runs):
        rounding = listed([*dict.fromkeys(one for run in runs for one in run.get("rounding", ()))]) or "its precision"
        return f"{name}: the map depends on the tiles within the rounding of {rounding}."
    return f"{name}: the map may depend on the tiles. With a halo of {halo} they do not read all that a pixel sees."
