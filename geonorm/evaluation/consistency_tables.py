"""The tables of a consistency report as HTML."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal
from urllib.parse import quote

from geonorm.errors import name_some
from geonorm.evaluation.consistency_words import (
    KINDS,
    MOVES,
    SPACE,
    Comparison,
    Run,
    count,
    file_name,
    name_of,
    percent,
    share,
    usual_move,
)

NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """A figure of a model."""

    text: str
    detail: str = ""
    value: float | None = None
    """What the cells of a row are ranked by; None: not at all."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measure, model by model."""

    title: str
    note: str = ""
    cells: Sequence[Cell]
    better: Literal["less", "more"] | None = None


def measures_table(runs: Sequence[Run]) -> str:
    """Return a table of the runs on one raster: measures below each other, models side by side."""
    groups = {
        "Labels that change": [*_change_rows(runs)],
        "Where they change": [*_place_rows(runs)],
        "Against the true labels": [*_score_rows(runs)],
        "Cost": [*_cost_rows(runs)],
    }
    body = "".join(
        f'<tbody><tr class="group"><th scope="rowgroup" colspan="{len(runs) + 1}">{title}</th></tr>'
        f"{''.join(map(_row, rows))}</tbody>"
        for title, rows in groups.items()
        if rows
    )
    first = runs[0]
    caption = f"{first['height']:,} rows and {first['width']:,} columns. ✓ is exactly zero, ★ the best of a row."
    return boxed(caption, ["Measure", *map(name_of, runs)], body, label=file_name(first["source"]))


def every_figure(runs: Sequence[Run]) -> str:
    """Return a table of all figures of all comparisons of the runs on one raster."""
    titles = [
        *("Model", "Compared with the grid at rest", "Pixels", "Changed", "Share", "Ties"),
        *("Largest change of probability", "Mean change of probability"),
        *(f"IoU of the maps: {name}" for name in runs[0]["class_names"]),
        *("Changed at seams", "Changed elsewhere", "Seam energy", "Mean IoU", "Consistent and correct", "Seconds"),
    ]
    body = "".join(
        f'<tr><th scope="row">{escape(name_of(run))}</th><td class="words">{escape(one["words"])}</td>'
        + _figures(one, len(titles) - 2)
        + "</tr>"
        for run in runs
        for one in run["comparisons"]
    )
    name = file_name(runs[0]["source"])
    return boxed(
        f"Every comparison on {escape(name)}.",
        titles,
        f"<tbody>{body}</tbody>",
        label=f"every comparison on {name}",
        words=titles[1:2],
    )


def plan_table(runs: Sequence[Run]) -> str:
    """Return a table of how each run cut its raster, and what looks at the whole of a tile."""
    titles = ("Model", "Raster", "Core", "Halo", "Reads", "Overhead", "Stride", "Sees all that a tile reads")
    body = "".join(
        f'<tr><th scope="row">{escape(name_of(run))}</th><td class="words">{escape(file_name(run["source"]))}</td>'
        f"<td>{run['core_px']}{SPACE}px</td>"
        f"<td>{run['halo_px']}{SPACE}px, {escape(run['halo_kind'])}</td>"
        f"<td>{run['read_px']}{SPACE}px</td><td>{_times(run['overhead'])}</td><td>{run['stride_px']}{SPACE}px</td>"
        f'<td class="words">{_modules(run["unbounded"])}</td></tr>'
        for run in runs
    )
    return boxed(
        "One row for each model and raster.",
        titles,
        f"<tbody>{body}</tbody>",
        label="the plan",
        words=("Raster", "Sees all that a tile reads"),
    )


def file_list(runs: Sequence[Run]) -> str:
    """Return the files that lie beside the page as links, those of a run folded."""
    tables = f"{_link('report.md')} and {_link('report.csv')} the tables"
    parts = [f"<p>{_link('report.json')} holds all figures, for programs; {tables}.</p>"]
    for run in runs:
        consensus = {**(run.get("corner_consensus") or {}), "words": "corner consensus"}
        lines = "".join(
            f"<li>{escape(one['words'])}: {', '.join(map(_link, files))}</li>"
            for one in ({**run, "words": "the grid at rest"}, *run["comparisons"], consensus)
            if (files := [*dict.fromkeys(filter(None, (one.get("files") or {}).values()))])
        )
        if lines:
            parts.append(folded(f"{name_of(run)} on {file_name(run['source'])}", f"<ul>{lines}</ul>"))
    return "".join(parts)


def boxed(caption: str, head: Sequence[str], body: str, *, label: str, words: Collection[str] = ()) -> str:
    """Return a table in a box of its own that scrolls sideways.

    Args:
        caption: HTML above the table.
        head: Titles of the columns, as text.
        body: Table bodies of HTML.
        label: What the box is called, as text.
        words: Titles of columns that hold words.
    """
    styles = [' class="words"' if title in words else "" for title in head]
    titles = "".join(f'<th scope="col"{style}>{escape(title)}</th>' for style, title in zip(styles, head, strict=True))
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(f"Table: {label}")}">'
        f"<table><caption><span>{caption}</span></caption><thead><tr>{titles}</tr></thead>{body}</table></div>"
    )


def folded(summary: str, body: str) -> str:
    """Return HTML that is shown on demand."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


# Rows of measures


def _change_rows(runs: Sequence[Run]) -> Iterator[Row]:
    for kind, by_px, words in _ways(runs):
        yield Row(
            title=_capital(words),
            note=KINDS.get(kind, ""),
            cells=[_changes(_comparison(run, kind, by_px)) for run in runs],
            better="less",
        )


def _place_rows(runs: Sequence[Run]) -> Iterator[Row]:
    kind, by_px, words = _told_move(runs)
    found = [_comparison(run, kind, by_px) for run in runs]
    if any(found):
        yield Row(title="Seam energy", note=words, cells=[_seam_energy(one) for one in found])
    consensus = [run.get("corner_consensus") for run in runs]
    if any(consensus):
        yield Row(title="Corner consensus", cells=[*map(_consensus, consensus)], better="more")


def _score_rows(runs: Sequence[Run]) -> Iterator[Row]:
    scores = [run.get("scores") or {} for run in runs]
    if not any(scores):
        return
    yield Row(
        title="Mean IoU", note="grid at rest", cells=[_score(one.get("mean_iou")) for one in scores], better="more"
    )
    yield Row(
        title="Accuracy", note="grid at rest", cells=[_score(one.get("accuracy")) for one in scores], better="more"
    )
    spreads = [_score(run.get("iou_spread")) for run in runs]
    yield Row(title="Spread of the mean IoU", note="over all ways of labelling", cells=spreads, better="less")
    kind, by_px, words = _told_move(runs)
    right = [(_comparison(run, kind, by_px) or {}).get("consistent_and_correct_percent") for run in runs]
    if any(one is not None for one in right):
        cells = [Cell(NOTHING) if one is None else Cell(percent(one), value=one) for one in right]
        yield Row(title="Consistent and correct", note=words, cells=cells, better="more")


def _cost_rows(runs: Sequence[Run]) -> Iterator[Row]:
    yield Row(title="Pixels read for each written", cells=[Cell(_times(run["overhead"])) for run in runs])
    yield Row(title="Time", note="grid at rest", cells=[Cell(_seconds(run.get("seconds"))) for run in runs])


def _ways(runs: Sequence[Run]) -> list[tuple[str, Any, str]]:
    """Return the kind, extent and words of every comparison, in the order of `KINDS`."""
    ways = {
        (one["kind"], str(one["by_px"])): (one["kind"], one["by_px"], one["words"])
        for run in runs
        for one in run["comparisons"]
    }
    kinds = [*KINDS]
    return sorted(ways.values(), key=lambda way: kinds.index(way[0]) if way[0] in kinds else len(kinds))


def _told_move(runs: Sequence[Run]) -> tuple[str, int | None, str]:
    """Return the kind, extent and words of the move that most runs share."""
    for kind in MOVES:
        if (by_px := usual_move(runs, kind)) is not None:
            return kind, by_px, f"grid moved by {by_px}{SPACE}px"
    return "", None, ""


def _comparison(run: Run, kind: str, by_px: Any) -> Comparison | None:
    return next((one for one in run["comparisons"] if one["kind"] == kind and one["by_px"] == by_px), None)


# Cells


def _changes(one: Comparison | None) -> Cell:
    if one is None:
        return Cell(NOTHING)
    if one.get("skipped") is not None:
        return Cell("not measured", one["skipped"])
    if not one["pixels"]:
        return Cell(NOTHING, "no pixel with data")
    ties = f", {count(one['ties'])} of them ties" if one["ties"] else ""
    detail = f"{count(one['flips'])} of {count(one['pixels'])}{ties}"
    return Cell(percent(_share_of(one["flips"], one["pixels"])), detail, one["flips"] / max(1, one["pixels"]))


def _seam_energy(one: Comparison | None) -> Cell:
    if one is None or one.get("skipped") is not None or one.get("seam") is None:
        return Cell(NOTHING)
    seam = one["seam"]
    if not seam["pixels_on"]:
        return Cell(NOTHING, "no border between cores")
    if seam["energy"] is None:
        return Cell("only at seams" if seam["flips_on"] else "nothing changes")
    on, off = (percent(_share_of(seam[f"flips_{where}"], seam[f"pixels_{where}"])) for where in ("on", "off"))
    return Cell(_times(seam["energy"]), f"{on} at seams, {off} elsewhere")


def _consensus(found: dict[str, Any] | None) -> Cell:
    if not found:
        return Cell(NOTHING)
    if found["mean"] is None:
        return Cell("not measured", found["skipped"])
    detail = f"{found['patches']:,} patch{'es' * (found['patches'] != 1)} of {2 * found['size_px']}{SPACE}px"
    return Cell(percent(100 * found["mean"]), detail, found["mean"])


def _score(value: float | None) -> Cell:
    return Cell(NOTHING) if value is None else Cell(share(value), value=value)


def _figures(one: Comparison, columns: int) -> str:
    if one.get("skipped") is not None:
        return f'<td class="words" colspan="{columns}">Not measured: {escape(one["skipped"])}</td>'
    seam, scores = one.get("seam"), one.get("scores") or {}
    right = one.get("consistent_and_correct_percent")
    cells = [
        *(f"{one[key]:,}" for key in ("pixels", "flips")),
        percent(_share_of(one["flips"], one["pixels"])),
        f"{one['ties']:,}",
        *(share(one[key]) for key in ("change_max", "change_mean")),
        *(_score(value).text for value in one["iou_between_maps"]),
        *(_of(seam, where) for where in ("on", "off")),
        _seam_energy(one).text,
        _score(scores.get("mean_iou")).text,
        NOTHING if right is None else percent(right),
        _seconds(one.get("seconds")),
    ]
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _of(seam: dict[str, Any] | None, where: str) -> str:
    return f"{seam[f'flips_{where}']:,} of {seam[f'pixels_{where}']:,}" if seam else NOTHING


def _share_of(part: int, whole: int) -> float:
    return 100 * part / max(1, whole)


def _times(factor: float) -> str:
    return f"{factor:,.{1 if factor < 100 else 0}f}{SPACE}times"


def _seconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:,.1f}{SPACE}s"


# HTML


def _row(row: Row) -> str:
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    cells = "".join(_cell(cell, _mark(cell, row)) for cell in row.cells)
    return f'<tr><th scope="row">{escape(row.title)}{note}</th>{cells}</tr>'


def _mark(cell: Cell, row: Row) -> Literal["zero", "best"] | None:
    """Return whether a cell is exactly zero where less is better, or reads like the best of its row and not all do."""
    ranked = [(one.value, one.text) for one in row.cells if one.value is not None]
    if cell.value is None or row.better is None:
        return None
    if row.better == "less" and cell.value == 0:
        return "zero"
    _, best = min(ranked) if row.better == "less" else max(ranked)
    return "best" if cell.text == best and len({text for _, text in ranked}) > 1 else None


def _cell(cell: Cell, mark: Literal["zero", "best"] | None) -> str:
    detail = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    if mark is None:
        return f"<td>{escape(cell.text)}{detail}</td>"
    sign, words = ("✓", "exactly zero") if mark == "zero" else ("★", "best")
    return (
        f'<td class="{mark}"><span role="img" aria-label="{words}">{sign}</span> <strong>{escape(cell.text)}</strong>'
        f"{detail}</td>"
    )


def _modules(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    if len(names) <= 1:
        return escape(names[0])
    rest = "".join(f"<li>{escape(name)}</li>" for name in names)
    return folded(name_some(names, most=1), f"<ul>{rest}</ul>")


def _link(path: str) -> str:
    # "./" keeps a name from being taken for a scheme or a host.
    return f'<a href="{escape("./" + quote(path))}">{escape(path)}</a>'


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
