"""What does `geonorm predict` do at each moment? Reading, computing and writing, a lane for each thread.

python benchmarks/inference_trace.py trace.png
python benchmarks/inference_trace.py trace.png --size-px 4096 --threads 2 --norm LCN_31px

Labels a raster of one tile and then that of `inference.py`, of which the picture is. The JSON line says how long each
thing took, and the share of it during which the network was at work as well. `main_cpu_seconds_beside_network` is
processor time of the main thread, which other work on the machine does not stretch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _lines import print_skipped
from _rasters import draw_slopes
from inference import NORMS, Case, drawn_network
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from geonorm.inference import job, journal, outputs, predict
from geonorm.models.predictor import predictor
from geonorm.models.row_predictor import RowRun
from geonorm.raster import read
from geonorm.tiling import supply

NETWORK, READING, STRIPS, TOGETHER = "the network", "reading", "writing a strip", "putting together"
COLORS = {
    "preparing": "#999999",
    READING: "#0072b2",
    "cutting out tiles": "#cc79a7",
    NETWORK: "#009e73",
    "labels": "#f0e442",
    STRIPS: "#d55e00",
    TOGETHER: "#e69f00",
}
ZOOM_S = 0.5


@dataclass(frozen=True)
class Span:
    """Something that one thread did."""

    thread: str
    what: str
    begin: float
    end: float
    cpu: float
    """Processor time of the thread, in seconds."""


@dataclass
class Trace:
    """What all threads did, in the order in which it ended; seconds from the beginning."""

    spans: list[Span] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def timed(self, what: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is noted each time it runs."""

        @wraps(run)
        def noted(*args: Any, **kwargs: Any) -> Any:
            begin, cpu = time.monotonic(), time.thread_time()
            try:
                return run(*args, **kwargs)
            finally:
                end, name = time.monotonic(), threading.current_thread().name
                self.spans.append(Span(name, what, begin - self.began, end - self.began, time.thread_time() - cpu))

        return noted

    def of(self, what: str) -> list[tuple[float, float]]:
        """Return when something was done, in order, without overlaps."""
        merged: list[tuple[float, float]] = []
        for begin, end in sorted((span.begin, span.end) for span in self.spans if span.what == what):
            if merged and begin <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((begin, end))
        return merged


@contextmanager
def recording(trace: Trace) -> Iterator[None]:
    """Note what `geonorm predict` does meanwhile; the functions are wrapped where they are looked up."""
    places: list[tuple[str, Any, str]] = [
        ("preparing", predict, "as_trained"),
        ("preparing", predict, "open_raster"),
        ("preparing", predict, "prepare_work"),
        (READING, read.Reader, "read"),
        ("cutting out tiles", supply.View, "tiles"),
        ("labels", outputs.Kept, "finish"),
        (STRIPS, journal.Journal, "keep"),
        (TOGETHER, predict, "assemble"),
        (NETWORK, RowRun, "push"),
    ]
    with ExitStack() as patched:
        for what, owner, name in places:
            patched.enter_context(patch.object(owner, name, trace.timed(what, getattr(owner, name))))

        def noted_predictor(*args: Any, **kwargs: Any) -> Callable[..., Any]:
            return trace.timed(NETWORK, predictor(*args, **kwargs))

        patched.enter_context(patch.object(job, "predictor", noted_predictor))
        yield


def main(case: Case, norm: str, picture: Path) -> None:
    """Print a JSON line and draw the picture."""
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "source.tif", Path(name) / "map.tif"
        network = drawn_network(case, norm)
        for size_px in (case.core_px, case.size_px):  # what is loaded on the first call is no part of the question
            draw_slopes(source, size_px, size_px)
            trace, cpu = Trace(), time.thread_time()
            with recording(trace):
                predict.predict_raster(network, source, target, core_px=case.core_px, halo="exact", overwrite=True)
            seconds, cpu = time.monotonic() - trace.began, time.thread_time() - cpu
    print(json.dumps(_figures(trace, case, norm, seconds, cpu)), flush=True)
    _draw(trace, seconds, f"{case.size_px} px, {norm}, torch with {case.threads} thread(s)").savefig(picture, dpi=90)


def _figures(trace: Trace, case: Case, norm: str, seconds: float, main_cpu: float) -> dict[str, object]:
    network = trace.of(NETWORK)
    line: dict[str, object] = {
        "benchmark": "inference, trace",
        **{key: value for key, value in vars(case).items() if key != "rounds"},
        "norm": norm,
        "seconds": round(seconds, 3),
        "network_share": round(_length(network) / seconds, 3),
    }
    for what in COLORS:
        if what != NETWORK:
            spans = trace.of(what)
            both = [(max(a, c), min(b, d)) for a, b in spans for c, d in network if max(a, c) < min(b, d)]
            line[what] = {
                "seconds": round(_length(spans), 3),
                "of it while the network ran": round(_length(both) / max(1e-9, _length(spans)), 3),
            }
    of_network = sum(span.cpu for span in trace.spans if span.what == NETWORK)
    return {**line, "main_cpu_seconds_beside_network": round(main_cpu - of_network, 3)}


def _length(spans: Sequence[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in spans)


def _draw(trace: Trace, seconds: float, title: str) -> Figure:
    """Draw all of the run, and its first and last half second larger."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplot_mosaic([["all", "all"], ["first", "last"]])
    zoom = min(ZOOM_S, seconds / 2)
    _lanes(axes["all"], trace, (0, seconds), title)
    _lanes(axes["first"], trace, (0, zoom), "the beginning")
    _lanes(axes["last"], trace, (seconds - zoom, seconds), "the end")
    handles = [Patch(color=color, label=what) for what, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(COLORS), frameon=False, fontsize=9)
    return figure


def _lanes(axes: Axes, trace: Trace, limits: tuple[float, float], title: str) -> None:
    lanes = {"MainThread": "main", "read_0": "reader", "keep_0": "writer"}
    for row, thread in enumerate(lanes):
        for what, color in COLORS.items():  # what runs within another comes later, and lies above it
            bars = [(s.begin, s.end - s.begin) for s in trace.spans if s.thread == thread and s.what == what]
            edge = "white" if thread == "MainThread" else color  # what is short is to be seen too
            axes.broken_barh(bars, (row - 0.38, 0.76), facecolor=color, edgecolor=edge, linewidth=0.4)
    axes.set_yticks(range(len(lanes)), [*lanes.values()])
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.set_xlim(*limits)
    axes.set_xlabel("seconds")
    axes.set_title(title, loc="left", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, nargs="?")
    parser.add_argument("--size-px", type=int, default=2048)
    parser.add_argument("--core-px", type=int, default=512)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--norm", choices=NORMS, default="BN")
    return parser.parse_args(words)


if __name__ == "__main__":
    _options = vars(_parse(sys.argv[1:]))
    _picture, _norm = _options.pop("picture"), _options.pop("norm")
    if _picture is None:
        print_skipped("inference_trace", "", "give a picture to write")
    else:
        main(Case(**_options, rounds=1), _norm, _picture)
