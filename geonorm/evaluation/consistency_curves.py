"""How many labels change at which distance from the border of a core: a drawing in SVG and the same as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from geonorm.evaluation.consistency_tables import boxed, folded
from geonorm.evaluation.consistency_words import KINDS, MOVES, SPACE, Run, measured, name_of, percent, usual_move

WIDTH, HEIGHT = 480, 330
LEFT, RIGHT, TOP, BOTTOM = 74, 366, 14, 268
ZERO = 250
"""Height at which zero lies where the axis is logarithmic; the smallest number above it lies at `FLOOR`."""
FLOOR = 222
MOST_TICKS = 6
LABEL_APART = 17
LONGEST_LABEL = 14
NUM_STYLES = 6
"""Colours, dashes and marks in the style sheet; more models begin anew."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """The changed labels of a model, in percent, for each class of distance; None where it holds no pixel."""

    name: str
    style: int
    values: Sequence[float | None]


def curves(runs: Sequence[Run]) -> str:
    """Return figures of the runs on one raster, one for each kind of move that was measured; empty without any."""
    return "".join(_figure(runs, kind) for kind in MOVES)


def _figure(runs: Sequence[Run], kind: str) -> str:
    by_px = usual_move(runs, kind)
    found = [
        (style % NUM_STYLES, name_of(run), one["curve"])
        for style, run in enumerate(runs)
        for one in measured(run)
        if one["kind"] == kind and one["by_px"] == by_px and one.get("curve")
    ]
    if not found:
        return ""
    from_px: list[int] = max((curve["from_px"] for _, _, curve in found), key=len)
    series = [
        Series(
            name=name,
            style=style,
            values=[100 * f / p if p else None for f, p in zip(curve["flips"], curve["pixels"], strict=True)],
        )
        for style, name, curve in found
    ]
    title = f"Grid moved by {by_px}{SPACE}px, {KINDS[kind]}"
    unchanged = [one.name for one in series if not any(one.values)]
    alternative = (
        f"{title}: labels that change, by distance to the nearest border of a core; the table has the numbers."
    )
    if len(unchanged) == len(series):
        drawing = '<p class="note">No label changes at any distance.</p>'
    else:
        drawing = (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alternative)}">'
            f"{_drawing(series, from_px)}</svg>"
        )
    return (
        f'<figure class="curve"><figcaption>{escape(title)}</figcaption>{drawing}'
        f"{folded('The numbers', _table(series, from_px, title))}</figure>"
    )


def _table(series: Sequence[Series], from_px: Sequence[int], title: str) -> str:
    body = "".join(
        f'<tr><th scope="row">{words}</th>'
        + "".join(f"<td>{_in_words(one.values[at] if at < len(one.values) else None)}</td>" for one in series)
        + "</tr>"
        for at, words in enumerate(_ranges(from_px))
    )
    return boxed(
        f"{escape(title)}: labels that change.",
        ["Distance to a border", *(one.name for one in series)],
        f"<tbody>{body}</tbody>",
        label=title,
    )


def _in_words(value: float | None) -> str:
    return "no pixel" if value is None else percent(value)


def _ranges(from_px: Sequence[int]) -> list[str]:
    """Return the classes of distance in words.

    Example:
        >>> [words.replace(chr(160), " ") for words in _ranges([1, 2, 4])]
        ['1 px', '2 to 3 px', '4 px and more']
    """
    stops = [stop - 1 for stop in from_px[1:]]
    closed = [f"{a}{SPACE}px" if a == b else f"{a} to {b}{SPACE}px" for a, b in zip(from_px, stops, strict=False)]
    return [*closed, f"{from_px[-1]}{SPACE}px and more"]


# The drawing


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis of percentages from one power of ten to another, with zero below."""

    low: int
    high: int

    def y(self, value: float) -> float:
        """Return the height of a percentage in the drawing."""
        if value == 0:
            return ZERO
        return FLOOR - (math.log10(value) - self.low) / (self.high - self.low) * (FLOOR - TOP)

    @property
    def ticks(self) -> list[float]:
        """Percentages that get a line and a number."""
        step = math.ceil((self.high - self.low) / (MOST_TICKS - 1))
        return [10.0**power for power in range(self.low, self.high + 1, step)]


def _scale_of(series: Sequence[Series]) -> Scale:
    values = [value for one in series for value in one.values if value]
    # Rounding must not put 100 % above the power of ten that it is.
    low, high = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    return Scale(min(low, high - 1), high)


def _drawing(series: Sequence[Series], from_px: Sequence[int]) -> str:
    scale = _scale_of(series)
    xs = [LEFT + (RIGHT - LEFT) * (at + 0.5) / len(from_px) for at in range(len(from_px))]
    parts = [_line(LEFT, RIGHT, scale.y(tick), _plain(tick), "grid") for tick in scale.ticks]
    parts.append(_line(LEFT, RIGHT, ZERO, "0", "axis"))
    parts += [
        f'<text class="tick" x="{x:.1f}" y="{BOTTOM + 8}" text-anchor="middle">{px}</text>'
        for x, px in zip(xs, from_px, strict=True)
    ]
    middle = (LEFT + RIGHT) / 2
    parts += [
        _title("distance to the nearest border of a core,", f"translate({middle} {HEIGHT - 22})"),
        _title("from so many px up to the next number", f"translate({middle} {HEIGHT - 5})"),
        _title("labels that change (%)", f"translate(16 {(TOP + ZERO) / 2}) rotate(-90)"),
    ]
    heights = _apart([scale.y(_last(one)) for one in series])
    parts += [_path(one, xs, scale, label_y) for one, label_y in zip(series, heights, strict=True)]
    return "".join(parts)


def _title(text: str, transform: str) -> str:
    return f'<text transform="{transform}" text-anchor="middle">{text}</text>'


def _line(x0: float, x1: float, y: float, text: str, style: str) -> str:
    return (
        f'<line class="{style}" x1="{x0}" x2="{x1}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{x0 - 6}" y="{y + 4.5:.1f}" text-anchor="end">{text}</text>'
    )


def _path(series: Series, xs: Sequence[float], scale: Scale, label_y: float) -> str:
    """Return line, marks and name of a series; the line has a gap where a class of distance holds no pixel."""
    points = [
        None if value is None else (x, scale.y(value), value) for x, value in zip(xs, series.values, strict=False)
    ]
    line, pen = "", "M"
    for point in points:
        line += "" if point is None else f"{pen}{point[0]:.1f} {point[1]:.1f}"
        pen = "M" if point is None else "L"
    marks = "".join(
        f'<use href="#mark-{series.style}" x="{x:.1f}" y="{y:.1f}"><title>{escape(f"{series.name}: {percent(value)}")}'
        "</title></use>"
        for x, y, value in filter(None, points)
    )
    short = series.name if len(series.name) <= LONGEST_LABEL else f"{series.name[: LONGEST_LABEL - 1]}…"
    return (
        f'<g class="series-{series.style}"><path d="{line}"/>{marks}'
        f'<use href="#mark-{series.style}" x="{RIGHT + 10}" y="{label_y:.1f}"/>'
        f'<text x="{RIGHT + 20}" y="{label_y + 4.5:.1f}">{escape(short)}</text></g>'
    )


MARKS = (
    '<circle id="mark-0" r="4"/><rect id="mark-1" x="-4" y="-4" width="8" height="8"/>'
    '<path id="mark-2" d="M0-5 5 4H-5Z"/><path id="mark-3" d="M0-5.5 5.5 0 0 5.5-5.5 0Z"/>'
    '<path id="mark-4" d="M0 5-5-4H5Z"/><path id="mark-5" d="M-1.7-5h3.4v3.3H5v3.4H1.7V5h-3.4V1.7H-5v-3.4h3.3Z"/>'
)
"""The marks of the series, defined once a page."""


def _last(series: Series) -> float:
    return next(value for value in reversed(series.values) if value is not None)


def _apart(heights: Sequence[float]) -> list[float]:
    """Return heights in the same order, moved up so that labels do not lie on each other.

    Example:
        >>> _apart([250, 100, 250])
        [250, 100, 233]
    """
    placed: dict[int, float] = {}
    below = math.inf
    for at in sorted(range(len(heights)), key=lambda at: (-heights[at], at)):
        below = placed[at] = min(heights[at], below - LABEL_APART)
    return [placed[at] for at in range(len(heights))]


def _plain(tick: float) -> str:
    """Return a power of ten without an exponent."""
    return f"{tick:.0f}" if tick >= 1 else f"{tick:.{-round(math.log10(tick))}f}"
