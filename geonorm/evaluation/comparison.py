"""Norms against norms: the same training with each of them and several seeds, in one table."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from geonorm.errors import GeonormError, InvalidConfigError, name_some
from geonorm.evaluation.comparison_picture import draw_comparison
from geonorm.evaluation.comparison_plan import Comparison, plan_comparison
from geonorm.evaluation.comparison_runs import (
    Checkpoint,
    check_settings,
    discard,
    is_done,
    last_line,
    run_missing,
)
from geonorm.evaluation.comparison_table import Summary, gather, write_tables
from geonorm.files import make_folder, only_one, write_text

SCENES = "scenes"


def compare(
    out_dir: str | os.PathLike[str],
    configs: Sequence[str | os.PathLike[str]],
    *,
    norms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    budget: str | None = None,
    more: Sequence[str] = (),
    checkpoint: Checkpoint = "last",
    jobs: int = 1,
    restart: bool = False,
    dry_run: bool = False,
    progress: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[Summary]:
    """Train and test a network with each norm and seed, and return their scores, norm by norm.

    Trainings that are finished are not run again, one that was stopped goes on. Writes ``table.md``, ``summary.csv``,
    ``runs.csv`` and ``comparison.png``; each training has its folder ``runs/NORM/seed_N``.

    A section ``compare`` of the configuration may set ``norms`` (class and arguments of each, by name), ``seeds``,
    ``pools`` (names of groups to score together) and ``drawn`` (scenes to draw into ``scenes``, the ``data.root``).

    Args:
        out_dir: Folder for all of it; made if need be.
        configs: Files of ``geonorm fit``, laid over one another.
        norms: Names of the section ``compare``, of the usual norms (BN, GN, LCN, SN, IN, LN), or files that set
            ``model.norm``; None: those of the section, else BN, GN, LCN and SN.
        seeds: Seeds of weights and patches; None: those of the section, else 0, 1 and 2.
        budget: Lay ``NAME.BUDGET.yaml`` over ``NAME.yaml`` where there is one.
        more: Further words for every training, as ``geonorm fit`` takes them.
        checkpoint: Which one is tested: of the ``"last"`` epoch, or the ``"best"`` in validation.
        jobs: Trainings at once.
        restart: Discard the trainings that are there.
        dry_run: Change nothing; `say` tells what would be run.
        progress: Show a bar.
        say: Told what is skipped and what is run.

    Raises:
        InvalidConfigError: Settings that cannot be compared, or other ones than those of the trainings there.
        GeonormError: A training failed; the tables hold the others.
    """
    folder, say = Path(out_dir), say or _nothing
    if jobs < 1:
        raise InvalidConfigError(f"jobs must be at least 1, got {jobs}.")
    planned = plan_comparison(
        folder, [Path(file) for file in configs], norms=norms, seeds=seeds, budget=budget, more=more
    )
    if dry_run:
        for run in planned.runs:
            say(
                f"{'done' if is_done(run) and not restart else 'to run'}: {run.name}: geonorm fit {' '.join(run.words)}"
            )
        return gather(planned.runs, planned.pools)
    make_folder(folder)
    with only_one(folder):
        if restart:
            discard(planned.runs)
        check_settings(planned.runs, checkpoint)
        _draw_scenes(planned, folder / SCENES, progress=progress)
        for path, content in planned.stripped.items():
            write_text(path, yaml.safe_dump(dict(content), sort_keys=False))
        done = sum(map(is_done, planned.runs))
        if done:
            say(f"{done} of {len(planned.runs)} trainings are done and stay as they are.")
        failed = run_missing(planned.runs, checkpoint=checkpoint, jobs=jobs, progress=progress)
        summaries = gather(planned.runs, planned.pools)
        write_tables(summaries, folder, missing=failed)
        if summaries:
            draw_comparison(summaries, folder / "comparison.png")
    if failed:
        raise GeonormError(
            f"{len(failed)} of {len(planned.runs)} trainings failed ({name_some([run.name for run in failed])}); the "
            f"first said: {last_line(failed[0])}. The same command runs them again."
        )
    return summaries


def _draw_scenes(planned: Comparison, folder: Path, *, progress: bool) -> None:
    """Draw the scenes, unless they are there."""
    if not planned.drawn:
        return
    wanted: dict[str, Any] = json.loads(json.dumps(planned.drawn))
    marker = folder / "drawn.json"
    if marker.is_file():
        if json.loads(marker.read_text(encoding="utf-8")) != wanted:
            raise InvalidConfigError(f"{folder} holds scenes drawn with other settings. Choose another folder.")
        return
    shutil.rmtree(folder, ignore_errors=True)
    _draw(wanted, folder, progress=progress)
    marker.write_text(json.dumps(wanted), encoding="utf-8")


def _draw(settings: Mapping[str, Any], folder: Path, *, progress: bool) -> None:
    from geonorm.data.drawn import write_inria_layout
    from geonorm.data.drawn_land import write_chesapeake_layout

    layouts: Mapping[str, Callable[..., Any]] = {"inria": write_inria_layout, "chesapeake": write_chesapeake_layout}
    layout = str(settings.get("layout"))
    if layout not in layouts:
        raise InvalidConfigError(f"compare.drawn.layout must be one of {', '.join(layouts)}, got {layout!r}.")
    arguments = {name: value for name, value in settings.items() if name != "layout"}
    try:
        layouts[layout](folder, **arguments, progress=progress)
    except TypeError as error:
        raise InvalidConfigError(f"compare.drawn: {error}.") from error


def _nothing(text: str) -> None:
    """Say nothing."""
