"""Run the benchmarks one after the other, keep their JSON lines, and print one table of all.

python benchmarks/_table.py --quick                          small cases, for a look
python benchmarks/_table.py --only norm_layer peers          some of them
python benchmarks/_table.py --from build/bench.jsonl         the table of lines that are there
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]

FOLDER = Path(__file__).parent
STUDIES = {
    "batch_size": "trains forty networks",
    "inference_trace": "draws a picture",
    "law": "needs a raster and checkpoints",
    "law_rasters": "needs rasters",
    "rows_picture": "draws a picture",
    "seam_picture": "draws a picture of a raster and checkpoints",
    "window_study": "draws a picture of a comparison",
}
"""Scripts that answer a question from networks or rasters of yours, or in hours: run them by hand."""
COLUMNS = ("benchmark", "case", "way", "figure", "beside its peer (quartiles)", "limit", "of limit", "memory")
REPEATED = {0: (0,), 1: (0, 1), 5: (0, 1, 5)}
"""Columns that are not said twice, and the columns that have to be the same for it."""
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"))
SCALED = {"s", "B", "B/s", "FLOP/s"}
"""Units that take a prefix."""


def main(options: argparse.Namespace) -> int:
    """Run, print, and return 1 if a benchmark failed."""
    if options.lines_from is not None:
        lines = [json.loads(text) for text in options.lines_from.read_text(encoding="utf-8").splitlines()]
    else:
        options.lines.parent.mkdir(parents=True, exist_ok=True)
        scripts = [path for path in benchmarks(FOLDER) if not options.only or path.stem in options.only]
        with options.lines.open("w", encoding="utf-8") as file:
            lines = []
            for line in run_all(scripts, words=["--quick"] if options.quick else []):
                lines.append(line)
                print(json.dumps(line), file=file, flush=True)
    print("\n".join(table(lines)))
    return 1 if any("failed" in line for line in lines) else 0


def benchmarks(folder: Path) -> list[Path]:
    """Return the scripts that `make bench` runs, the machine's own speed first."""
    scripts = [path for path in folder.glob("*.py") if not path.stem.startswith("_") and path.stem not in STUDIES]
    return sorted(scripts, key=lambda path: (path.stem != "machine", path.stem))


def run_all(scripts: Sequence[Path], *, words: Sequence[str]) -> Iterator[Line]:
    """Yield the lines of each script; one that fails yields a line that says so, and the next one runs."""
    for number, script in enumerate(scripts, start=1):
        print(f"{number} of {len(scripts)}: {script.stem}", end=" ", file=sys.stderr, flush=True)
        began = time.monotonic()
        count = 0
        for line in _run(script, words):
            count += 1
            print(".", end="", file=sys.stderr, flush=True)
            yield line
        print(f" {count} lines, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _run(script: Path, words: Sequence[str]) -> Iterator[Line]:
    """Yield what one script prints, and at the end what went wrong; its messages are shown if it failed."""
    command = [sys.executable, str(script), *words]
    count = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as messages:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True) as process:
            assert process.stdout is not None
            for text in process.stdout:
                line = _line(text)
                if line is None:
                    messages.write(text)
                else:
                    count += 1
                    yield line
        if process.returncode == 0 and count:
            return
        messages.seek(0)
        told = messages.read()
    last = next((text.strip() for text in reversed(told.splitlines()) if text.strip()), "")
    if process.returncode < 0:
        last = f"ended by signal {-process.returncode}"
    elif process.returncode == 0:
        last = "printed no result"
    sys.stderr.write(f"\n{told}")
    yield {"benchmark": script.stem, "failed": last or f"ended with {process.returncode}, without a word"}


def _line(text: str) -> Line | None:
    """Return a result; None for what libraries say."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and "benchmark" in line else None


def table(lines: Iterable[Line]) -> list[str]:
    """Return the rows of a table in Markdown, its columns one under the other."""
    rows = [_row(line) for line in lines]
    widths = [max(len(cell) for cell in column) for column in zip(COLUMNS, *rows, strict=True)]
    shown = []
    before: Sequence[str] = ("",) * len(COLUMNS)
    for row in rows:
        cells = list(row)
        for index, key in REPEATED.items():  # a cell is said once, as long as what it belongs to is the same
            if [row[at] for at in key] == [before[at] for at in key]:
                cells[index] = ""
        shown.append(cells)
        before = row
    ruler = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
        for cells in (COLUMNS, ruler, *shown)
    ]


def _row(line: Line) -> tuple[str, ...]:
    name, case, way = (str(line.get(key, "")) for key in ("benchmark", "case", "way"))
    for trouble in ("failed", "skipped"):
        if trouble in line:
            return name, case, way, f"{trouble}: {line[trouble]}", "", "", "", ""
    if "figure" not in line or "unit" not in line:
        return name, case, way, "no figure in its line", "", "", "", ""
    unit = str(line["unit"])
    ratio = ""
    if line.get("ratio") is not None:
        low, high = line["quartiles"]
        ratio = f"{line['ratio']:.3g} of {line['peer']}"
        ratio += f" ({low:.3g} to {high:.3g})" if line.get("rounds", 2) > 1 else ""
    limit = f"{scaled(line['limit'], unit.split()[0])}: {line['limit_of']}" if line.get("limit") is not None else ""
    share = f"{100 * line['of_limit']:.3g} %" if line.get("of_limit") is not None else ""
    memory = f"{line['extra_mib']:.0f} MiB" if line.get("extra_mib") is not None else ""
    return name, case, way, scaled(line["figure"], unit), ratio, limit, share, memory


def scaled(value: float, unit: str) -> str:
    """Return a figure of three digits with a prefix before its unit: 0.0123, "s CPU" gives "12.3 ms CPU"."""
    if value and unit.split()[0] in SCALED:
        # Rounded first: 999.9 ms are 1 s.
        size, prefix = next(
            (one for one in PREFIXES if float(f"{abs(value):.3g}") >= one[0]),
            PREFIXES[-1],
        )
        value, unit = value / size, prefix + unit
    digits = f"{value:.3g}"
    return f"{float(digits):.0f} {unit}" if "e" in digits else f"{digits} {unit}"


def _parse(words: Sequence[str]) -> argparse.Namespace:
    studies = "\n".join(f"  {name}: {reason}" for name, reason in STUDIES.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Not among them:\n{studies}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small cases, in minutes")
    parser.add_argument("--lines", type=Path, default=Path("build/bench.jsonl"), help="where the JSON lines go")
    names = [path.stem for path in benchmarks(FOLDER)]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--from", dest="lines_from", type=Path, metavar="FILE", help="print lines of an earlier run")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(_parse(sys.argv[1:])))
