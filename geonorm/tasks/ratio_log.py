"""What Switchable Norm chooses while it trains: a log of its ratios that a resumed run carries on."""

from __future__ import annotations

import csv
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor, nn

from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.norms import SwitchableNorm

FILE_NAME = "ratios.csv"
HEAD = ("step", "layer", "statistic", "group", "normalizer", "ratio")
Row = tuple[int, str, str, int, str, float]


@dataclass(frozen=True, kw_only=True)
class LayerRatios:
    """The ratios of one layer: G channel groups (1 where the channels are not divided), K normalizers."""

    pool: tuple[str, ...]
    """Names of the normalizers."""
    mean: NDArray[np.float64]
    """Shares of their means, ``(G, K)``."""
    var: NDArray[np.float64]
    """Shares of their variances, ``(G, K)``."""


Snapshot = Mapping[str, LayerRatios]
"""The ratios of every layer at one step, by the layer's name within the network."""


class RatioLogger(Callback):
    """Write the ratios of every `SwitchableNorm` to ``ratios.csv`` in the log folder, and to TensorBoard.

    One row per step, layer, statistic, channel group and normalizer: when training begins, after every epoch and when
    training ends. A resumed run takes over what was logged before its first step, from its own folder or from the one
    its checkpoint lies in, so the log of the last run is that of the whole training. Networks without
    `SwitchableNorm` and runs without a logger leave no file.
    """

    def __init__(self) -> None:
        self._target: Path | None = None
        self._last_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the log of a run that is resumed, and add the step this one begins at."""
        folder = trainer.log_dir if trainer.loggers else None  # a collective call: every process makes it
        switchable = bool(ratios_of(_network(pl_module)))
        self._target = Path(folder) / FILE_NAME if folder and switchable and trainer.is_global_zero else None
        if self._target is None:
            return
        self._last_step = -1
        before = _rows_before(trainer.global_step, self._target, trainer.ckpt_path)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        partial = self._target.with_name(f"{FILE_NAME}.partial")
        _write(partial, [HEAD, *before], mode="w")
        os.replace(partial, self._target)
        self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the step that the epoch ends at."""
        self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the last step, if it is not there."""
        self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if self._target is None or step == self._last_step:
            return
        rows = list(_rows(step, ratios_of(_network(pl_module))))
        _write(self._target, rows, mode="a")
        self._last_step = step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_metrics(_scalars(rows), step)


def ratios_of(network: nn.Module) -> dict[str, LayerRatios]:
    """Return the ratios of every `SwitchableNorm` of a network, by its name."""
    return {
        name: LayerRatios(pool=tuple(module.pool), mean=_table(module.mean_ratios()), var=_table(module.var_ratios()))
        for name, module in network.named_modules()
        if isinstance(module, SwitchableNorm)
    }


def read_ratio_log(path: str | os.PathLike[str]) -> dict[int, dict[str, LayerRatios]]:
    """Return the ratios at every logged step, in order; a last step that was cut short is left out.

    Raises:
        InvalidConfigError: Not a log that `RatioLogger` wrote.
    """
    rows = _read(Path(path))
    counts = Counter(row[0] for row in rows)
    complete = [step for step in counts if counts[step] == max(counts.values())]
    try:
        return {step: _snapshot(row for row in rows if row[0] == step) for step in sorted(complete)}
    except KeyError as error:
        raise InvalidConfigError(f"{path} is damaged: it has no row for {error}.") from error


def _read(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()  # a last line without its end was cut short
    if lines[:1] != [",".join(HEAD)]:
        raise InvalidConfigError(f"{path} is no log of ratios: its first line is not {','.join(HEAD)}.")
    rows: list[Row] = []
    for number, cells in enumerate(csv.reader(lines[1:]), start=2):
        try:
            step, layer, statistic, group, normalizer, ratio = cells
            rows.append((int(step), layer, statistic, int(group), normalizer, float(ratio)))
        except ValueError as error:
            raise InvalidConfigError(f"{path} is damaged in line {number}: {','.join(cells)[:80]!r}.") from error
    return rows


def _snapshot(rows: Iterable[Row]) -> dict[str, LayerRatios]:
    layers: dict[str, dict[tuple[str, int, str], float]] = {}
    for _, layer, statistic, group, normalizer, ratio in rows:
        layers.setdefault(layer, {})[statistic, group, normalizer] = ratio
    return {layer: _layer(shares) for layer, shares in layers.items()}


def _layer(shares: Mapping[tuple[str, int, str], float]) -> LayerRatios:
    pool = tuple(dict.fromkeys(normalizer for _, _, normalizer in shares))
    groups = range(1 + max(group for _, group, _ in shares))
    mean, var = (
        np.array([[shares[statistic, group, normalizer] for normalizer in pool] for group in groups])
        for statistic in ("mean", "var")
    )
    return LayerRatios(pool=pool, mean=mean, var=var)


def _rows_before(step: int, own: Path, checkpoint: str | os.PathLike[str] | None) -> list[Row]:
    """Return what was logged before a step: in this folder, else beside the checkpoint that is gone on from."""
    beside = [Path(checkpoint).parent / FILE_NAME, Path(checkpoint).parent.parent / FILE_NAME] if checkpoint else []
    for path in (own, *beside):
        if path.is_file():
            try:
                return [row for row in _read(path) if row[0] < step]
            except InvalidConfigError as error:
                warnings.warn(f"{error} The log of ratios begins anew at step {step}.", GeonormWarning, stacklevel=2)
    return []


def _rows(step: int, snapshot: Snapshot) -> Iterator[Row]:
    for layer, ratios in snapshot.items():
        for statistic, table in (("mean", ratios.mean), ("var", ratios.var)):
            for group, shares in enumerate(table):
                for normalizer, share in zip(ratios.pool, shares, strict=True):
                    yield step, layer, statistic, group, normalizer, float(share)


def _scalars(rows: Iterable[Row]) -> dict[str, float]:
    """Return what TensorBoard shows: one curve per layer, statistic and normalizer, the mean over channel groups."""
    shares: dict[str, list[float]] = {}
    for _, layer, statistic, _, normalizer, ratio in rows:
        shares.setdefault(f"ratios/{layer}/{statistic}/{normalizer}", []).append(ratio)
    return {name: sum(values) / len(values) for name, values in shares.items()}


def _write(path: Path, rows: Iterable[Iterable[object]], *, mode: str) -> None:
    with path.open(mode, encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row] for row in rows)


def _network(pl_module: LightningModule) -> nn.Module:
    network = getattr(pl_module, "network", None)
    return network if isinstance(network, nn.Module) else pl_module


def _table(ratios: Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = ratios.detach().cpu().double().reshape(-1, ratios.shape[-1]).numpy()
    return values
