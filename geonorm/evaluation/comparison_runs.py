"""The trainings of a comparison: those that are missing are run, one process each, and what stopped goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any, Literal

import yaml
from tqdm import tqdm

from geonorm.errors import InvalidConfigError, name_some
from geonorm.evaluation.comparison_plan import Run
from geonorm.files import write_text
from geonorm.tasks.record import COST_FILE, SCORE_FILE

Checkpoint = Literal["last", "best"]

SETTINGS_FILE = "settings.json"
_POLL_S = 0.5
_PATIENCE_S = 20.0
"""So long a training that is told to stop may take."""


def is_done(run: Run) -> bool:
    """Say whether a training is finished and scored."""
    return (run.folder / SCORE_FILE).is_file()


def check_settings(runs: Sequence[Run], checkpoint: Checkpoint) -> None:
    """Raise `InvalidConfigError` if what lies there was begun with other settings."""
    for run in runs:
        file = run.folder / SETTINGS_FILE
        wanted = _settings(run, checkpoint)
        if file.is_file() and (there := json.loads(file.read_text(encoding="utf-8"))) != wanted:
            raise InvalidConfigError(
                f"{run.folder} was begun with other settings ({_difference(there, wanted)}). Choose another folder, or "
                "discard what is there with --restart."
            )


def discard(runs: Sequence[Run]) -> None:
    """Delete what lies there of these trainings."""
    for run in runs:
        shutil.rmtree(run.folder, ignore_errors=True)


def run_missing(runs: Sequence[Run], *, checkpoint: Checkpoint, jobs: int, progress: bool) -> list[Run]:
    """Run the trainings that are not done, and return those that failed.

    Each is a process of its own: ``geonorm fit``, then ``geonorm test`` of the checkpoint; what they print is in
    ``fit.log`` and ``test.log``. A training that was stopped goes on from the end of its last epoch. If the caller is
    interrupted, so are they, and nothing that is finished is lost.
    """
    missing = [run for run in runs if not is_done(run)]
    stop = Event()
    bar = tqdm(total=len(runs), initial=len(runs) - len(missing), desc="comparing", unit="run", disable=not progress)
    failed: list[Run] = []
    with bar, ThreadPoolExecutor(jobs) as pool:
        waiting: dict[Future[bool], Run] = {
            pool.submit(_run, run, checkpoint=checkpoint, threads=max(1, (os.cpu_count() or 1) // jobs), stop=stop): run
            for run in missing
        }
        try:
            while waiting:
                finished, _ = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in finished:
                    run = waiting.pop(future)
                    if not future.result():
                        failed.append(run)
                bar.n = len(runs) - len(missing) + sum(map(_share_done, missing))
                bar.set_postfix_str(_at_work(missing), refresh=False)
                bar.refresh()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return sorted(failed, key=list(runs).index)


def last_line(run: Run) -> str:
    """Return the last thing that a training said, for a message about its failure."""
    for name in ("test.log", "fit.log"):
        file = run.folder / name
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.is_file() else []
        said = [line.rpartition("\r")[2].strip() for line in lines]
        if any(said):
            return f"{[line for line in said if line][-1][:300]} ({file})"
    return f"nothing in {run.folder}"


def _run(run: Run, *, checkpoint: Checkpoint, threads: int, stop: Event) -> bool:
    if stop.is_set():
        return False
    write_text(run.folder / "run.yaml", yaml.safe_dump(dict(run.config), sort_keys=False))
    write_text(run.folder / SETTINGS_FILE, json.dumps(_settings(run, checkpoint), indent=1))
    quiet = ["--trainer.enable_progress_bar=false"]
    if not _is_trained(run):
        last = newest_checkpoint(run.folder, "last")
        resumed = [f"--ckpt_path={last}"] if last else []
        if not _call("fit", [*run.words, *quiet, *resumed], run.folder / "fit.log", threads=threads, stop=stop):
            return False
        (run.folder / "trained").touch()
    path = newest_checkpoint(run.folder, checkpoint)
    scored = [f"--ckpt_path={path}", "--trainer.logger=false"]
    return _call("test", [*run.words, *quiet, *scored], run.folder / "test.log", threads=threads, stop=stop)


def newest_checkpoint(folder: Path, name: Checkpoint) -> Path | None:
    """Return the checkpoint of the latest start of the training in a folder; None where there is none."""
    found = (folder / "lightning_logs").glob(f"version_*/checkpoints/{name}.ckpt")
    return max(found, key=lambda path: int(path.parts[-3].removeprefix("version_")), default=None)


def _is_trained(run: Run) -> bool:
    return (run.folder / "trained").is_file()


def _call(command: str, words: Sequence[str], log: Path, *, threads: int, stop: Event) -> bool:
    """Run a command of geonorm until it ends or is to stop; say whether it worked."""
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"} | dict(os.environ)
    with log.open("a", encoding="utf-8") as file:
        print(f"geonorm {command} {' '.join(words)}", file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "geonorm", command, *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            # So that an interrupt from the keyboard reaches it once, by way of this process.
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if stop.wait(_POLL_S):
                    return False
        finally:
            _end(process)
    return process.returncode == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _share_done(run: Run) -> float:
    """Return how much of a training is done, 0 to 1."""
    if is_done(run):
        return 1.0
    try:
        cost = json.loads((run.folder / COST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0
    return min(0.98, cost["steps"] / cost["of"]) if cost["of"] else 0.0


def _at_work(runs: Sequence[Run]) -> str:
    return name_some([run.name for run in runs if 0 < _share_done(run) < 1], 2)


def _settings(run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    # As JSON gives them back: keys that are strings, lists instead of tuples.
    content: dict[str, Any] = json.loads(json.dumps({**run.settings, "checkpoint": checkpoint}, default=str))
    return content


def _difference(there: Any, wanted: Any, name: str = "") -> str:
    """Return the first setting that differs, in words."""
    if isinstance(there, list) and isinstance(wanted, list) and len(there) == len(wanted):
        there, wanted = ({str(at): one for at, one in enumerate(some)} for some in (there, wanted))
    if isinstance(there, dict) and isinstance(wanted, dict):
        for key in sorted({*there, *wanted}):
            if there.get(key) != wanted.get(key):
                return _difference(there.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    return f"{name}: there {there!r:.60}, now {wanted!r:.60}"
