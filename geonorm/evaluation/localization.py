"""Make a trained GN, IN or LN network consistent between tiles, without training it again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from geonorm import __version__
from geonorm.errors import InvalidConfigError, TargetExistsError
from geonorm.evaluation.shift import check_shifts
from geonorm.evaluation.shift_tables import in_columns
from geonorm.evaluation.subjects import paired
from geonorm.evaluation.windows import (
    STEADY_PERCENT,
    WHOLE_PIXELS,
    Answer,
    Ladder,
    Measured,
    Scene,
    measure,
    read_scene,
    work_mpx,
)
from geonorm.models import localize_norms
from geonorm.tasks.checkpoint import TrainedModel, load_model, save_model

File = str | os.PathLike[str]

FORMAT = 1
HALOS_PX = (0, 64, 128, 192, 256, 384, 512)
"""Halos that are tried, as far as the rasters are larger than what a moved tile then reads."""
BAR = "{l_bar}{bar}| {n:.1f}/{total:.1f} Mpx [{elapsed}<{remaining}]"


@dataclass(frozen=True, kw_only=True)
class Localization:
    """What was written, and why."""

    target: str | None
    """The checkpoint with local norms; None where no window was good enough."""
    report: str | None
    """The JSON file with the figures; None where nothing was measured."""
    window_px: int | None
    """The window of the norms in ``target``."""
    why: str
    """One sentence for the user."""
    original: Measured | None = None
    """The network as it was trained."""
    windows: tuple[Measured, ...] = ()
    """The same network with local norms."""
    notes: tuple[str, ...] = ()
    """What was measured otherwise than usual."""


def localize(
    checkpoint: File,
    target: File,
    *,
    windows_px: Sequence[int],
    sources: Sequence[File] = (),
    labels: Sequence[File] = (),
    core_px: int = 256,
    halos_px: Sequence[int] | None = None,
    shift_px: int = 128,
    tolerance: float = 0.01,
    device: str = "cpu",
    report: File | None = None,
    overwrite: bool = False,
    trust: bool = False,
    progress: bool = False,
) -> Localization:
    """Write a checkpoint of a trained network whose GN, IN and LN take their statistics over a window.

    One window without sources is simply written. With sources each window is held against the network as it was
    trained: the answer to the whole image (differing labels, and IoU where there are labels), labels that flip when the
    tile grid moves, time. Written is the window with the fewest flips at the largest halo, and of equals the smallest,
    among those as good as the original: whose IoU is at most ``tolerance`` below the original's or, without labels,
    whose answers differ in at most that share of labels. Where none is, or none flips fewer labels than the original,
    nothing is written but the report.

    Args:
        checkpoint: Checkpoint of a network with GN, IN or LN.
        target: Checkpoint to write.
        windows_px: Windows to try, in pixels of the input image; 1.5 training patches is a good start (Chu et al.,
            ECCV 2022).
        sources: Rasters to measure on, or folders with ``images/`` and ``gt/``.
        labels: Building masks of the sources, as for training, in the same order.
        core_px: Side of the square that one network call writes.
        halos_px: Halos to try; None: 0, 64, 128, 192, 256, 384, 512, as far as the sources are larger than a tile.
        shift_px: Move of the grid, a multiple of the network's stride.
        tolerance: How much worse than the original a window may be, 0 to 1.
        device: Device to compute on.
        report: JSON file for the figures; None: the target's name and ``.json``.
        overwrite: Replace existing files.
        trust: Make networks of any module the checkpoint names.
        progress: Show a progress bar.

    Raises:
        InvalidConfigError: The network has no GN, IN or LN, or a setting that cannot work.
        CheckpointError: The checkpoint is not one of geonorm, or cannot be written.
        TargetExistsError: A file is in the way.
        RasterError: A source that cannot be read.
        DatasetError: Labels that do not lie on their source.
    """
    _check_file(target, overwrite=overwrite, keep=checkpoint)
    if not windows_px:
        raise InvalidConfigError("windows_px needs at least one window. 1.5 training patches is a good start.")
    original = load_model(checkpoint, trust=trust)
    models = [localized(original, window_px) for window_px in sorted(set(windows_px))]
    if not sources:
        _check_unmeasured(windows_px, labels, report)
        save_model(models[0], target)
        why = f"{windows_px[0]} px, as asked for; nothing was measured."
        return Localization(target=os.fspath(target), report=None, window_px=windows_px[0], why=why)

    report = Path(f"{os.fspath(target)}.json" if report is None else report)
    _check_file(report, overwrite=overwrite, keep=checkpoint)
    if not 0 <= tolerance <= 1:
        raise InvalidConfigError(f"tolerance is a share, 0 to 1, got {tolerance}.")
    scenes = [
        read_scene(path, truth, bands=range(1, len(original.spec.bands) + 1)) for path, truth in paired(sources, labels)
    ]
    scenes, ladder = _laddered(scenes, original, core_px=core_px, halos_px=halos_px, shift_px=shift_px, device=device)
    first, *others = _measured(original, models, scenes, ladder, progress=progress)
    best, why = choose(first, others, tolerance=tolerance)
    found = Localization(
        target=None if best is None else os.fspath(target),
        report=os.fspath(report),
        window_px=None if best is None else best.window_px,
        why=why,
        original=first,
        windows=tuple(others),
        notes=tuple(_notes(scenes, ladder)),
    )
    if best is not None:
        save_model(next(model for model in models if model.localized_px == best.window_px), target)
    settings = {**asdict(ladder), "tolerance": tolerance, "sources": [scene.path for scene in scenes]}
    content = {"format": FORMAT, "version": __version__, "checkpoint": original.name, **settings, **_plain(found)}
    report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return found


def localized(model: TrainedModel, window_px: int) -> TrainedModel:
    """Return a model whose GN, IN and LN take their statistics over a window.

    Raises:
        InvalidConfigError: It has none, or the window is smaller than a pixel.
    """
    network, _ = localize_norms(model.network, window_px)
    return replace(model, network=network, localized_px=window_px)


def choose(original: Measured, windows: Sequence[Measured], *, tolerance: float) -> tuple[Measured | None, str]:
    """Return the window to take, None if none is as good as the original, and the reason in words."""
    if original.iou is not None:
        quality = {one: one.iou or 0.0 for one in windows}
        least = original.iou - tolerance
        rule = f"IoU at most {tolerance:g} below the original's {original.iou:.4f}"
    else:
        quality = {one: 1 - one.differing_percent / 100 for one in windows}
        least = 1 - tolerance
        rule = f"at most {100 * tolerance:g} % of the labels other than the original's"
    good = [one for one in windows if quality[one] >= least]
    if not good:
        nearest = max(windows, key=quality.__getitem__)
        return None, (
            f"No window has {rule}; nearest is {nearest.window_px} px ({_quality(nearest)}). Try larger ones, or "
            f"{_training_on(nearest)}."
        )
    best = min(good, key=lambda one: (one.halos[-1].flips, one.window_px))
    at = f"at halo {best.halos[-1].halo_px} px"
    flips, theirs = (f"{one.halos[-1].flips_percent:.4f} %" for one in (best, original))
    if best.halos[-1].flips >= original.halos[-1].flips:
        return None, (
            f"No window with {rule} flips fewer labels {at} than the original ({theirs}). Try smaller ones or larger "
            f"halos, or {_training_on(best)}."
        )
    return best, f"{best.window_px} px flips the fewest labels {at} ({flips}) of the windows with {rule}."


def table(found: Localization) -> str:
    """Return the figures as a table for the terminal."""
    rows = [one for one in (found.original, *found.windows) if one is not None]
    head = ["network", "IoU", "other labels", *(f"flips, halo {at.halo_px}" for at in rows[0].halos)]
    return in_columns([[*head, f"below {STEADY_PERCENT} % from", "exact halo", "time"], *map(_table_row, rows)])


def _table_row(one: Measured) -> list[str]:
    return [
        "original" if one.window_px is None else f"window {one.window_px} px",
        "-" if one.iou is None else f"{one.iou:.4f}",
        f"{one.differing_percent:.3f} %",
        *(f"{at.flips_percent:.4f} %" for at in one.halos),
        f"over {one.halos[-1].halo_px} px" if one.steady_halo_px is None else f"{one.steady_halo_px} px",
        "none" if one.exact_halo_px is None else f"{one.exact_halo_px} px",
        f"{one.time_ratio:.2f} x",
    ]


def _training_on(one: Measured) -> str:
    return f"train on for a while with geonorm fit --model.init_from CHECKPOINT --model.localize_px {one.window_px}"


def _quality(one: Measured) -> str:
    return f"{one.differing_percent:.3f} % other labels" + ("" if one.iou is None else f", IoU {one.iou:.4f}")


def _measured(
    original: TrainedModel, models: Sequence[TrainedModel], scenes: Sequence[Scene], ladder: Ladder, *, progress: bool
) -> list[Measured]:
    """Return the figures of the original, then those of every window."""
    work = sum(work_mpx(scene, ladder) for scene in scenes) * (1 + len(models))
    with tqdm(total=math.ceil(10 * work) / 10, unit="Mpx", bar_format=BAR, disable=not progress) as bar:
        found: list[Measured] = []
        answers: list[Answer] | None = None
        for model in (original, *models):
            bar.set_description("original" if model.localized_px is None else f"window {model.localized_px} px")
            measured, own = measure(model, original, scenes, ladder=ladder, answers=answers, on_mpx=bar.update)
            answers = own if answers is None else answers
            found.append(measured)
    return found


def _laddered(
    scenes: Sequence[Scene],
    model: TrainedModel,
    *,
    core_px: int,
    halos_px: Sequence[int] | None,
    shift_px: int,
    device: str,
) -> tuple[list[Scene], Ladder]:
    """Return the scenes, those marked that are large enough for tiles, and how tiles are tried on them."""
    check_shifts([shift_px], core_px)
    stride_px = model.geometry.stride_px
    if shift_px % stride_px or core_px % stride_px:
        raise InvalidConfigError(
            f"core_px and shift_px must be multiples of the network's stride of {stride_px} px, got {core_px} and "
            f"{shift_px}: other moves show its pooling, not its norms."
        )
    if halos_px is not None and (not halos_px or min(halos_px) < 0):
        raise InvalidConfigError(f"halos_px needs halos of 0 px or more, got {list(halos_px)}.")
    # A raster must be larger than a tile by the move, or the moved tile reads the same, and its flips would be 0 by
    # themselves.
    least_px = max(core_px + shift_px + 2 * max(halos_px or (0,)), 2 * core_px)
    sides = [min(scene.height, scene.width) for scene in scenes]
    if max(sides) < least_px:
        raise InvalidConfigError(
            f"No source is large enough: tiles of core {core_px} px tell nothing of rasters whose shorter side is "
            f"below {least_px} px, and the largest has {max(sides)} px. Choose a smaller core_px or halos_px, or "
            "another source."
        )
    if halos_px is None:
        most_px = (min(side for side in sides if side >= least_px) - core_px - shift_px) // 2
        halos_px = [halo for halo in HALOS_PX if halo <= most_px]
    ladder = Ladder(core_px=core_px, halos_px=tuple(sorted(set(halos_px))), shift_px=shift_px, device=device)
    return [replace(scene, is_tiled=side >= least_px) for scene, side in zip(scenes, sides, strict=True)], ladder


def _notes(scenes: Sequence[Scene], ladder: Ladder) -> Iterator[str]:
    small = [scene.name for scene in scenes if not scene.is_tiled]
    if small:
        yield f"Too small for tiles, so without flips: {', '.join(small)}."
    large = [scene.name for scene in scenes if not scene.is_whole]
    if large:
        yield (
            f"Over {WHOLE_PIXELS / 1e6:.1f} million pixels, so labelled in tiles with halo {ladder.halos_px[-1]} px "
            f"rather than whole: {', '.join(large)}."
        )


def _plain(found: Localization) -> dict[str, Any]:
    """Return what was found as plain data, with what follows from it."""
    plain = asdict(found)
    measured = [(plain["original"], found.original), *zip(plain["windows"], found.windows, strict=True)]
    for one, source in measured:
        if source is not None:
            one["steady_halo_px"] = source.steady_halo_px
    return plain


def _check_file(path: File, *, overwrite: bool, keep: File) -> None:
    """Raise in one line where a file cannot be made; nothing is touched."""
    path, keep = Path(path), Path(keep)
    if path.is_dir():
        raise InvalidConfigError(f"{path} is a folder, a file is needed. Try {path / 'local.ckpt'}.")
    if path.exists() and keep.exists() and path.samefile(keep):
        raise InvalidConfigError(f"{path} is the checkpoint to start from, it must stay. Choose another name.")
    if path.exists() and not overwrite:
        raise TargetExistsError(f"{path} exists. Choose another name, or replace it with --overwrite.")
    if not path.parent.is_dir():
        raise InvalidConfigError(f"There is no folder {path.parent} for {path.name}. Make it, or check the name.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidConfigError(f"The folder {path.parent} cannot be written to. Choose another one.")


def _check_unmeasured(windows_px: Sequence[int], labels: Sequence[File], report: File | None) -> None:
    """Raise where something was asked for that takes measuring."""
    if len(windows_px) > 1 or labels or report is not None:
        raise InvalidConfigError(
            "Without sources nothing can be measured: give one window, no labels and no report, or name rasters with "
            "--sources."
        )
