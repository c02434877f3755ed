"""One self-contained HTML page from text, tables and pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 17px/1.55 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { margin-top: 2.5rem; font-size: 1.25rem; }
.headline { font-size: 1.3rem; line-height: 1.4; padding: 1rem 1.2rem; border-left: .4rem solid #d61414;
  background: var(--soft); }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .92rem; margin-top: .4rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; } caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
"""


@dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; ``headline`` makes it stand out."""

    text: str
    headline: bool = False


@dataclass(frozen=True)
class Table:
    """Rows below a head, the first column naming the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A drawn figure, with words for those who do not see it."""

    figure: Figure
    caption: str
    alternative: str


Part = Heading | Text | Table | Picture


def write_page(target: Path, *, title: str, parts: Sequence[Part]) -> None:
    """Write the page; pictures lie inside it, nothing is loaded from elsewhere."""
    body = "\n".join(_html(part) for part in parts)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
    target.write_text(page, encoding="utf-8")


def _html(part: Part) -> str:
    match part:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Text(text, headline):
            return f'<p class="headline">{escape(text)}</p>' if headline else f"<p>{escape(text)}</p>"
        case Table(caption, head, rows):
            cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
            lines = "".join(_row(row) for row in rows)
            return (
                f'<div class="wide"><table><caption>{escape(caption)}</caption>'
                f"<thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>"
            )
        case Picture(figure, caption, alternative):
            return (
                f'<figure><img alt="{escape(alternative)}" src="data:image/png;base64,{_png(figure)}">'
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )


def _row(cells: Sequence[str]) -> str:
    first, *rest = cells
    return f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"


def _png(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
