"""What is measured, by the names it has in a report: checkpoints, and rasters with their labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from geonorm.data.inria import find_pairs
from geonorm.errors import InvalidConfigError
from geonorm.evaluation.comparison_runs import newest_checkpoint
from geonorm.tasks.checkpoint import TrainedModel

File = str | os.PathLike[str]


def named_checkpoints(words: Sequence[str]) -> dict[str, str]:
    """Return checkpoints by the names they are to have in a report.

    Args:
        words: Checkpoints, ``NAME=CHECKPOINT``, or folders of `geonorm.evaluation.compare`, which stand for the last
            checkpoint of each norm's first seed.

    Raises:
        InvalidConfigError: A folder without trainings, or a name that is given twice.
    """
    plain = [word for word in words if not Path(word).is_dir() and ("=" not in word or Path(word).exists())]
    names = dict(zip(plain, short_names(plain), strict=True))
    found: list[tuple[str, str]] = []
    for word in words:
        if word in names:
            found.append((names[word], word))
        elif Path(word).is_dir():
            done = sorted(Path(word).glob("runs/*/seed_*/trained"), key=lambda path: int(path.parent.name[5:]))
            trained = {path.parent.parent.name: path for path in reversed(done)}
            if not trained:
                raise InvalidConfigError(
                    f"{word} is a folder, but holds no training of geonorm compare (runs/NORM/seed_N). Name a "
                    "checkpoint, or the folder that geonorm compare wrote."
                )
            for name, path in sorted(trained.items()):
                checkpoint = newest_checkpoint(path.parent, "last")
                found += [] if checkpoint is None else [(name, str(checkpoint))]
        else:
            name, _, path_given = word.partition("=")
            found.append((name, path_given))
    doubles = [name for name, times in Counter(name for name, _ in found).items() if times > 1]
    if doubles:
        raise InvalidConfigError(f"two checkpoints are called {doubles[0]}. Give them names: NAME=CHECKPOINT.")
    return dict(found)


def models_by_name(
    checkpoints: Sequence[File | TrainedModel] | Mapping[str, File | TrainedModel],
) -> dict[str, File | TrainedModel]:
    """Return checkpoints or models by the names given, or by short ones made from their paths."""
    if isinstance(checkpoints, Mapping):
        return dict(checkpoints)
    paths = [one.name if isinstance(one, TrainedModel) else os.fspath(one) for one in checkpoints]
    return dict(zip(short_names(paths), checkpoints, strict=True))


def short_names(paths: Sequence[str]) -> list[str]:
    """Return a short name for each checkpoint: the folders and file names in which their paths differ."""
    parts = [Path(path or "model").with_suffix("").parts[::-1] for path in paths]
    if len(parts) < 2:
        return [path[0] for path in parts]
    differing = [at for at in range(min(map(len, parts))) if len({path[at] for path in parts}) > 1]
    for most in range(1, len(differing) + 1):
        names = ["-".join(path[at] for at in reversed(differing[:most])) for path in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path[0]}-{number}" for number, path in enumerate(parts, start=1)]


def paired(sources: Sequence[File], labels: Sequence[File]) -> list[tuple[str, str | None]]:
    """Return every source with its labels, if there are any; folders bring theirs along.

    Raises:
        InvalidConfigError: Folders beside files, or labels that are not one for each source.
    """
    folders = [source for source in sources if Path(source).is_dir()]
    if folders:
        if labels or len(folders) < len(sources):
            raise InvalidConfigError(
                f"{os.fspath(folders[0])} is a folder, which brings its labels along (images/ and gt/). Give folders "
                "alone, or rasters and, if there are any, their labels."
            )
        return [(pair.image, pair.labels) for folder in folders for pair in find_pairs(Path(folder))]
    if labels and len(labels) != len(sources):
        raise InvalidConfigError(
            f"labels need one raster for each source, in the same order, got {len(labels)} for {len(sources)}."
        )
    truths: list[str | None] = [os.fspath(truth) for truth in labels] or [None] * len(sources)
    return [(os.fspath(source), truth) for source, truth in zip(sources, truths, strict=True)]
