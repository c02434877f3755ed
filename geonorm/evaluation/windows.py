"""What a network with norms over a window gives, beside the one it was trained as: figures for one window."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from geonorm.data.pairs import Pair, open_pair
from geonorm.data.spec import IGNORE_LABEL, DatasetSpec
from geonorm.errors import GeonormWarning
from geonorm.evaluation.grids import compare_grids
from geonorm.evaluation.measures import no_disagreement
from geonorm.inference.halo import sampled_cores
from geonorm.inference.job import Job, prepare
from geonorm.models.predictor import predictor
from geonorm.raster.read import Reader, open_raster
from geonorm.raster.window import Window
from geonorm.tasks.checkpoint import TrainedModel
from geonorm.tasks.scores import Scores
from geonorm.tiling.engine import Predict, predict_tile

WHOLE_PIXELS = 2**22
"""Rasters of at most so many pixels are labelled whole, in one pass; larger ones in tiles with the largest halo."""
TIMED_CORES = 3
STEADY_PERCENT = 0.01
"""Fewer flips than this are as good as none."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A raster to measure on."""

    path: str
    height: int
    width: int
    truth: Tensor | None = field(default=None, repr=False)
    """Its labels ``(H, W)``, uint8; None where none are known."""
    is_tiled: bool = False
    """Whether it is large enough for tiles to differ from the whole."""

    @property
    def name(self) -> str:
        """Name of the file."""
        return Path(self.path).name

    @property
    def mpx(self) -> float:
        """Million pixels."""
        return self.height * self.width / 1e6

    @property
    def is_whole(self) -> bool:
        """Whether it can be labelled in one pass."""
        return self.height * self.width <= WHOLE_PIXELS


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """How tiles are tried."""

    core_px: int
    halos_px: tuple[int, ...]
    """Rising."""
    shift_px: int
    """Move of the grid, down and to the right."""
    device: str


@dataclass(frozen=True, kw_only=True)
class AtHalo:
    """What tiles with one halo give, over the scenes that are large enough."""

    halo_px: int
    overhead: float
    """Pixels computed for each pixel written."""
    pixels: int
    """Pixels with data."""
    flips: int
    """Pixels whose label changes when the grid moves."""
    flips_percent: float
    change_mean: float
    """Mean change of probability."""
    iou: float | None
    """Of the map made of these tiles, on the same scenes; None without labels."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one network gives."""

    window_px: int | None
    """Window of its norms; None: as it was trained."""
    exact_halo_px: int | None
    """Halo at which tiles give the whole-image pass; None where there is none."""
    iou: float | None
    """Of the answers to all scenes; None without labels."""
    differing_percent: float
    """Labels of the answers that are not the original's."""
    time_ratio: float
    """Time for a tile, in multiples of the original's."""
    halos: tuple[AtHalo, ...]

    @property
    def steady_halo_px(self) -> int | None:
        """The smallest halo tried from which on flips stay below 0.01 %; None where they never do."""
        steady = None
        for one in reversed(self.halos):
            if one.flips_percent >= STEADY_PERCENT:
                break
            steady = one.halo_px
        return steady


@dataclass(frozen=True)
class Answer:
    """What a network says of a scene: the whole-image pass, where that fits."""

    labels: Tensor
    """``(H, W)``, uint8."""
    valid: Tensor
    """``(H, W)``, bool."""


def read_scene(path: str, labels: str | None, *, bands: Sequence[int]) -> Scene:
    """Return a raster's size and labels; what is wrong with its files is said here, before the work."""
    if labels is None:
        with open_raster(path, bands=bands) as reader:
            return Scene(path=path, height=reader.grid.height, width=reader.grid.width)
    with open_pair(Pair(image=path, labels=labels, group=path, bands=tuple(bands))) as files:
        grid = files.grid
        truth = torch.from_numpy(files.read_labels(Window(0, 0, grid.height, grid.width)))
    return Scene(path=path, height=grid.height, width=grid.width, truth=truth)


def work_mpx(scene: Scene, ladder: Ladder) -> float:
    """Return about how many million pixels a network computes for a scene."""
    tiled = sum(_tiles_mpx(scene, ladder, halo_px) for halo_px in ladder.halos_px)
    return scene.mpx + (tiled if scene.is_tiled else 0)


def _tiles_mpx(scene: Scene, ladder: Ladder, halo_px: int) -> float:
    """Return about how many million pixels two grids of tiles take."""
    return 2 * scene.mpx * (1 + 2 * halo_px / ladder.core_px) ** 2


def measure(
    model: TrainedModel,
    original: TrainedModel,
    scenes: Sequence[Scene],
    *,
    ladder: Ladder,
    answers: Sequence[Answer] | None = None,
    on_mpx: Callable[[float], object] = lambda mpx: None,
) -> tuple[Measured, list[Answer]]:
    """Return the figures of a network, and its answer to each scene.

    Args:
        model: The network with local norms, or the original itself.
        original: The network as it was trained.
        scenes: What to measure on; at least one is tiled.
        ladder: How tiles are tried.
        answers: The original's answers; None: those found here.
        on_mpx: Called with the million pixels computed since the last call.
    """
    found: list[Answer] = []
    whole, tiles = _Tally(model.spec), [_Tally(model.spec) for _ in ladder.halos_px]
    pixels = differing = 0
    time_ratio, exact_halo_px = 1.0 if answers is None else math.nan, None
    for index, scene in enumerate(scenes):
        with _reading(scene, model, ladder) as (job, reader):
            exact_halo_px = job.geometry.core_halo_px
            answer = _answer(job, scene)
            found.append(answer)
            theirs = answer if answers is None else answers[index]
            pixels += int(answer.valid.sum())
            differing += int(((answer.labels != theirs.labels) & answer.valid).sum())
            whole.score(answer.labels, answer.valid, scene.truth)
            on_mpx(scene.mpx)
            if scene.is_tiled:
                for tally, halo_px in zip(tiles, ladder.halos_px, strict=True):
                    tally.add_tiles(_with_halo(job, halo_px), reader, ladder.shift_px, scene.truth)
                    on_mpx(_tiles_mpx(scene, ladder, halo_px))
                if math.isnan(time_ratio):
                    time_ratio = _time_ratio(job, original, ladder)
    measured = Measured(
        window_px=model.localized_px,
        exact_halo_px=exact_halo_px,
        iou=whole.iou,
        differing_percent=100 * differing / max(1, pixels),
        time_ratio=time_ratio,
        halos=tuple(tally.at_halo(halo_px) for tally, halo_px in zip(tiles, ladder.halos_px, strict=True)),
    )
    return measured, found


class _Tally:
    """Running sums over scenes."""

    def __init__(self, spec: DatasetSpec) -> None:
        self._scores = Scores(len(spec.class_names), spec.scored_classes)
        self._moved = no_disagreement(len(spec.class_names))
        self._overhead = 1.0

    def score(self, labels: Tensor, valid: Tensor, truth: Tensor | None) -> None:
        """Count labels against the truth, where it is known."""
        if truth is not None:
            self._scores.update("all", labels, torch.where(valid, truth, IGNORE_LABEL))

    def add_tiles(self, job: Job, reader: Reader, shift_px: int, truth: Tensor | None) -> None:
        """Count how the labels of a job change as its grid moves, and how good they are."""

        def score_rows(row: int, labels: list[Tensor], valid: Tensor) -> None:
            self.score(labels[0], valid, None if truth is None else truth[row : row + len(valid)])

        [moved] = compare_grids([job, job.moved(shift_px, reader)], on_rows=score_rows)
        self._moved += moved
        self._overhead = job.plan.overhead

    @property
    def iou(self) -> float | None:
        """Mean IoU of the scored classes; None without labels."""
        iou = self._scores.iou() if self._scores.counts else math.nan
        return None if math.isnan(iou) else iou

    def at_halo(self, halo_px: int) -> AtHalo:
        """Return the sums as figures."""
        return AtHalo(
            halo_px=halo_px,
            overhead=self._overhead,
            pixels=self._moved.pixels,
            flips=self._moved.flips,
            flips_percent=self._moved.flips_percent,
            change_mean=self._moved.change_mean,
            iou=self.iou,
        )


@contextmanager
def _reading(scene: Scene, model: TrainedModel, ladder: Ladder) -> Iterator[tuple[Job, Reader]]:
    """Open a scene: the job of labelling it with the largest halo, and another reader for a moved grid."""
    bands = range(1, len(model.spec.bands) + 1)
    with open_raster(scene.path, bands=bands) as reader, open_raster(scene.path, bands=bands) as another:
        with warnings.catch_warnings():
            # That the labels of the original depend on the tiles is what is being measured.
            warnings.simplefilter("ignore", GeonormWarning)
            job = prepare(model, reader, core_px=ladder.core_px, halo=ladder.halos_px[-1], device=ladder.device)
        yield job, another


def _with_halo(job: Job, halo_px: int) -> Job:
    return replace(job, plan=replace(job.plan, halo_px=halo_px))


def _answer(job: Job, scene: Scene) -> Answer:
    strips = [job.whole()] if scene.is_whole else list(job.strips())
    return Answer(torch.cat([strip.output for strip in strips]), torch.cat([torch.tensor(s.valid) for s in strips]))


def _time_ratio(job: Job, original: TrainedModel, ladder: Ladder) -> float:
    """Return the median, over a few tiles, of the time for one in multiples of what the original takes."""
    job = _with_halo(job, ladder.halos_px[len(ladder.halos_px) // 2])
    rows, cols = ([*axis.spans()] for axis in job.plan.axes)
    predict = predictor(original.network, torch.device(ladder.device))

    def seconds(predict: Predict, row: int, col: int) -> float:
        start = time.perf_counter()
        predict_tile(job.reader.read, predict, job.plan, rows[row], cols[col], fill=job.fill)
        return time.perf_counter() - start

    ratios = []
    for row, col in sampled_cores(job.plan, TIMED_CORES):
        # The quicker of two: the first finds cold caches, and either may be interrupted.
        ours, theirs = (min(seconds(one, row, col) for _ in range(2)) for one in (job.predict, predict))
        ratios.append(ours / theirs)
    return statistics.median(ratios)
