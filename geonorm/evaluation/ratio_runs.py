"""Trainings whose ratios are looked into: read from checkpoints and from the log folders of ``geonorm fit``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from geonorm.errors import CheckpointError, InvalidConfigError
from geonorm.evaluation.ratios import Layer, parts_of
from geonorm.evaluation.subjects import short_names
from geonorm.models.receptive import norm_maps
from geonorm.tasks.checkpoint import load_model
from geonorm.tasks.ratio_log import FILE_NAME, LayerRatios, Snapshot, ratios_of, read_ratio_log

ENDS = ("last.ckpt", "best.ckpt")
"""Checkpoints of a log folder that tell the ratios at the end; the first that there is."""

Kind = tuple[tuple[str, ...], tuple[int, ...]]
"""Normalizers and channel groups of a layer: what must agree for ratios to be compared."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The ratios of one training."""

    label: str
    """Short name, another one for every run that is looked into together."""
    source: str
    """The checkpoint or log folder it was read from."""
    end: str
    """Where the ratios at the end come from."""
    step: int | None
    """Step of the end; None where the checkpoint does not say."""
    layers: tuple[Layer, ...]
    """Every layer with its ratios at the end, in the order they run."""
    history: Mapping[int, Snapshot]
    """The ratios at every logged step, in order; empty for a checkpoint alone."""

    def moments(self) -> Iterator[tuple[str, int | None, Snapshot]]:
        """Yield every logged step and the end: ``"training"`` or ``"end"``, the step, the ratios."""
        for step, snapshot in self.history.items():
            yield "training", step, snapshot
        yield "end", self.step, {layer.name: layer.ratios for layer in self.layers}

    def ordered_like(self, other: Run) -> list[Layer]:
        """Return the layers in the order of another run of the same layers."""
        mine = {layer.name: layer for layer in self.layers}
        return [mine[layer.name] for layer in other.layers]


def load_runs(paths: Sequence[str | os.PathLike[str]], *, trust: bool = False) -> list[Run]:
    """Return the runs that checkpoints or log folders hold.

    Raises:
        CheckpointError: No such file, or a network without Switchable Norm.
        InvalidConfigError: A folder without log and checkpoint, or runs whose layers do not correspond.
    """
    sources = [os.fspath(path) for path in paths]
    labels = short_names([os.path.abspath(source) for source in sources])
    runs = [replace(_load(Path(path), trust=trust), label=label) for path, label in zip(sources, labels, strict=True)]
    for run in runs[1:]:
        _check_correspond(runs[0], run)
    return runs


def _load(path: Path, *, trust: bool) -> Run:
    if not path.is_dir():
        return _of_checkpoint(path, trust=trust)
    log = path / FILE_NAME
    history = read_ratio_log(log) if log.is_file() else {}
    checkpoint = next((path / "checkpoints" / name for name in ENDS if (path / "checkpoints" / name).is_file()), None)
    if checkpoint is not None:
        run = _of_checkpoint(checkpoint, trust=trust)
        if any(_kinds(snapshot) != _kinds(_end(run)) for snapshot in history.values()):
            raise InvalidConfigError(f"{log} is not the log of the network in {checkpoint.name} beside it.")
        return replace(run, source=os.fspath(path), end=f"checkpoints/{checkpoint.name}", history=history)
    if not history:
        raise InvalidConfigError(
            f"{path} is no log folder of a network with Switchable Norm: it has neither checkpoints/last.ckpt nor a "
            f"{FILE_NAME} with a step. Give a checkpoint, or a folder such as runs/lightning_logs/version_0."
        )
    return _of_log(path, history)


def _of_checkpoint(path: Path, *, trust: bool) -> Run:
    model = load_model(path, trust=trust)
    ratios = ratios_of(model.network)
    if not ratios:
        norm = model.norm_path.get("class_path", "not known")
        raise CheckpointError(
            f"{path} has no Switchable Norm whose ratios could be shown: its norm is {norm}. Train one with "
            "configs/norm/sn.yaml."
        )
    maps = norm_maps(model.network)
    # In the order they run; a layer that never runs comes last.
    seen = {name: maps.get(name) for name in dict.fromkeys([*(name for name in maps if name in ratios), *ratios])}
    parts = parts_of(seen)
    layers = tuple(
        Layer(
            name=name,
            part=parts[name],
            receptive_px=one.receptive_px if one else None,
            stride_px=one.stride_px if one else None,
            ratios=ratios[name],
        )
        for name, one in seen.items()
    )
    return Run(label="", source=os.fspath(path), end=path.name, step=model.step, layers=layers, history={})


def _of_log(path: Path, history: Mapping[int, Snapshot]) -> Run:
    step = max(history)
    parts = parts_of(dict.fromkeys(history[step]))
    layers = tuple(
        Layer(name=name, part=parts[name], receptive_px=None, stride_px=None, ratios=ratios)
        for name, ratios in history[step].items()
    )
    return Run(label="", source=os.fspath(path), end=FILE_NAME, step=step, layers=layers, history=history)


def _check_correspond(first: Run, other: Run) -> None:
    one, two = _kinds(_end(first)), _kinds(_end(other))
    name = next((name for name in (*one, *two) if one.get(name) != two.get(name)), None)
    if name is not None:
        raise InvalidConfigError(
            f"The layers of the runs do not correspond: {name} is {_in_words(one.get(name))} in {first.source} and "
            f"{_in_words(two.get(name))} in {other.source}. Compare runs of the same network and pool."
        )


def _end(run: Run) -> dict[str, LayerRatios]:
    return {layer.name: layer.ratios for layer in run.layers}


def _kinds(snapshot: Snapshot) -> dict[str, Kind]:
    return {name: (ratios.pool, ratios.mean.shape) for name, ratios in snapshot.items()}


def _in_words(kind: Kind | None) -> str:
    if kind is None:
        return "no Switchable Norm"
    pool, (groups, _) = kind
    return f"one of {'+'.join(pool)}" + (f" in {groups} channel groups" if groups > 1 else "")
