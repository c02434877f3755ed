"""The report of ``geonorm shift`` as one HTML page that needs nothing else: words, tables, curves, a map viewer."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from geonorm.evaluation.consistency_curves import MARKS, curves
from geonorm.evaluation.consistency_scenes import Layer, Scene, images, payload, stills
from geonorm.evaluation.consistency_tables import every_figure, file_list, folded, measures_table, plan_table
from geonorm.evaluation.consistency_words import DEFINITIONS, Run, by_source, file_name, halos, headline, verdicts
from geonorm.evaluation.report import STYLE
from geonorm.files import write_text

__all__ = ["Layer", "Scene", "write_consistency_page"]

TITLE = "Does the map depend on the tiles?"


def write_consistency_page(target: Path, report: Mapping[str, Any], scenes: Sequence[Scene]) -> None:
    """Write the report as a page; nothing is loaded from elsewhere, and without JavaScript only the viewer is missing.

    Args:
        target: The page.
        report: What ``report.json`` holds; its files are named from the folder of the page.
        scenes: Places with their maps, those of a raster after each other, first the whole of it; may be empty.
    """
    runs: Sequence[Run] = report["runs"]
    sections = {"figures": ("How many labels change", _figures(runs))}
    if scenes:
        sections["maps"] = ("The maps side by side", _viewer(scenes))
        sections["places"] = ("Where labels change", stills(scenes))
    if drawn := _curves(runs):
        sections["curves"] = ("How far from a border they change", drawn)
    sections["plan"] = ("How the tiles lay", plan_table(runs))
    sections["words"] = ("What the words mean", _definitions())
    sections["files"] = ("Files beside this page", file_list(runs))
    write_text(target, _page(report, sections, scenes))


def _page(report: Mapping[str, Any], sections: Mapping[str, tuple[str, str]], scenes: Sequence[Scene]) -> str:
    style, script = STYLE + _read("page.css"), _read("viewer.js")
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, (title, _) in sections.items())
    body = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{escape(title)}</h2>\n{html}\n'
        "</section>"
        for name, (title, html) in sections.items()
    )
    findings = "".join(f"<li>{escape(text)}</li>" for text in verdicts(report["runs"]))
    # Only this style and this script may run, and nothing may be fetched, whatever names the files have.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    stored = (
        f'{images(scenes)}<script type="application/json" id="scenes">{payload(scenes)}</script>\n'
        f"<script>{script}</script>\n"
        if scenes
        else ""
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(_title(report['runs']))}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header><h1>{TITLE}</h1><p class="headline">{escape(headline(report["runs"]))}</p>'
        f"<p>{escape(halos(report['runs']))}</p>"
        f'<ul class="verdicts">{findings}</ul></header>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n{body}\n</main>\n'
        f"<footer><p>Written by geonorm {escape(str(report['version']))}.</p>{_settings(report)}</footer>\n"
        f'<svg class="store" aria-hidden="true"><defs>{MARKS}</defs></svg>\n{stored}</body>\n</html>\n'
    )


def _title(runs: Sequence[Run]) -> str:
    return f"{', '.join(map(file_name, by_source(runs)))}: {TITLE}"


def _figures(runs: Sequence[Run]) -> str:
    return "".join(
        f"<h3>{escape(file_name(source))}</h3>{measures_table(of_source)}"
        + folded("All figures of every comparison", every_figure(of_source))
        for source, of_source in by_source(runs).items()
    )


def _curves(runs: Sequence[Run]) -> str:
    found = {source: curves(of_source) for source, of_source in by_source(runs).items()}
    return "".join(
        f'<h3>{escape(file_name(source))}</h3><div class="curves">{drawn}</div>'
        for source, drawn in found.items()
        if drawn
    )


def _viewer(scenes: Sequence[Scene]) -> str:
    groups: dict[str, str] = {}
    for at, scene in enumerate(scenes):
        option = f'<option value="{at}">{escape(scene.title)}</option>'
        groups[scene.source] = groups.get(scene.source, "") + option
    options = "".join(
        f'<optgroup label="{escape(file_name(source))}">{found}</optgroup>' for source, found in groups.items()
    )
    return "<noscript><p>The viewer needs JavaScript; the pictures below do not.</p></noscript>" + _read(
        "viewer.html"
    ).replace("SCENES", options)


def _definitions() -> str:
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>" for term, words in DEFINITIONS.items())
    return folded("Every measure in plain words", f"<dl>{items}</dl>")


def _settings(report: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in report.get("settings", {}).items()
    )
    return folded("Settings", f'<dl class="settings">{items}</dl>') if items else ""


def _read(name: str) -> str:
    return (files("geonorm.evaluation") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"
