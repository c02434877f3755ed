"""Which trainings a comparison consists of: read from configuration files, one for each norm and seed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from geonorm.errors import InvalidConfigError, name_some

STANDARD_NORMS: Mapping[str, dict[str, Any]] = {
    "BN": {"class_path": "geonorm.norms.BatchNorm"},
    "GN": {"class_path": "geonorm.norms.GroupNorm", "init_args": {"group_size": 4}},
    "LCN": {"class_path": "geonorm.norms.LocalContextNorm", "init_args": {"window_px": 31, "group_size": 4}},
    "SN": {"class_path": "geonorm.norms.SwitchableNorm"},
    "IN": {"class_path": "geonorm.norms.InstanceNorm"},
    "LN": {"class_path": "geonorm.norms.LayerNorm"},
}
"""Norms that a name stands for where the configuration does not say otherwise; those of ``configs/norm``."""
USUAL_NORMS = ("BN", "GN", "LCN", "SN")
USUAL_SEEDS = (0, 1, 2)

_SECTION = ("norms", "seeds", "pools", "drawn")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a norm and a seed."""

    norm: str
    """Name of the norm, as in the table."""
    seed: int
    folder: Path
    """Where everything of this training lies."""
    config: Mapping[str, Any]
    """What this training adds to the configuration of all: norm, seed, folder."""
    words: tuple[str, ...]
    """What follows ``geonorm fit`` or ``geonorm test``."""
    settings: Mapping[str, Any]
    """All that the result depends on, as far as the files say."""

    @property
    def name(self) -> str:
        """Return norm and seed in words."""
        return f"{self.norm}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is to be compared."""

    runs: tuple[Run, ...]
    """Every norm with the first seed, then with the next."""
    pools: Mapping[str, tuple[str, ...]]
    """Groups (cities, states) that are scored together as well, by the name of the pool."""
    drawn: Mapping[str, Any]
    """Scenes to draw before the trainings; empty: none."""
    stripped: Mapping[Path, Mapping[str, Any]]
    """Files to write before the trainings: what the configuration says, but for its norm."""


def plan_comparison(
    out_dir: Path,
    configs: Sequence[Path],
    *,
    norms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    budget: str | None = None,
    more: Sequence[str] = (),
) -> Comparison:
    """Return the trainings that the configuration and the choices of norms and seeds stand for.

    Raises:
        InvalidConfigError: A file, a norm or a setting of the section ``compare`` that cannot be used.
    """
    files = _with_budget(configs, budget)
    contents = [_read(file) for file in files]
    section = _section(contents)
    chosen = _norms(norms, section)
    numbers = [int(seed) for seed in (section.get("seeds", USUAL_SEEDS) if seeds is None else seeds)]
    if len({*numbers}) < len(numbers) or min(numbers, default=-1) < 0:
        raise InvalidConfigError(f"seeds must be different numbers of 0 or more, got {' '.join(map(str, numbers))}.")
    drawn = section.get("drawn", {})
    own_norm = [word for word in more if word.startswith("--model.norm")]
    if own_norm:
        raise InvalidConfigError(f"compare sets the norm itself, got {own_norm[0]}. Name norms with --norms.")
    stripped = {
        out_dir / "configs" / f"{at}_{file.name}": _without_norm(content)
        for at, (file, content) in enumerate(zip(files, contents, strict=True))
    }
    words = [*(f"--config={file}" for file in stripped), *more]
    if drawn:
        words.append(f"--data.root={out_dir / 'scenes'}")
    seeded = _takes_seed(contents, more)

    def run(name: str, norm: Mapping[str, Any], seed: int) -> Run:
        folder = out_dir / "runs" / name / f"seed_{seed}"
        config = {
            "seed_everything": seed,
            "model": {"norm": norm},
            "trainer": {
                "default_root_dir": str(folder),
                "callbacks+": [
                    {"class_path": "geonorm.tasks.RunRecord", "init_args": {"folder": str(folder)}},
                ],
            },
        }
        own = [f"--config={folder / 'run.yaml'}", *([f"--data.seed={seed}"] if seeded else [])]
        settings = {"norm": norm, "configs": contents, "words": list(more), "drawn": drawn}
        return Run(
            norm=name,
            seed=seed,
            folder=folder,
            config=config,
            words=(*words, *own),
            settings=_without_compare(settings),
        )

    # Seed by seed, so that a comparison that is stopped half way holds all norms.
    runs = [run(name, norm, seed) for seed in numbers for name, norm in chosen.items()]
    pools = {str(pool): tuple(map(str, groups)) for pool, groups in section.get("pools", {}).items()}
    return Comparison(runs=tuple(runs), pools=pools, drawn=drawn, stripped=stripped)


def _with_budget(configs: Sequence[Path], budget: str | None) -> list[Path]:
    if not configs:
        raise InvalidConfigError("compare needs the configuration of a training; name a file with --config.")
    if budget is None:
        return list(configs)
    found = {file: file.with_name(f"{file.stem}.{budget}{file.suffix}") for file in configs}
    if not any(small.is_file() for small in found.values()):
        raise InvalidConfigError(
            f"there is no budget {budget}: {name_some([str(small) for small in found.values()])} is not there."
        )
    return [one for file, small in found.items() for one in (file, small) if one is file or small.is_file()]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfigError(f"{file} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidConfigError(f"{file} is no YAML file: {' '.join(str(error).split())[:200]}.") from error
    if not isinstance(content, dict):
        raise InvalidConfigError(f"{file} must hold settings by name (data, model, trainer), got {content!r:.50}.")
    return content


def _section(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    section: dict[str, Any] = {}
    for content in contents:
        section |= content.get("compare") or {}
    unknown = sorted({*section} - {*_SECTION})
    if unknown:
        raise InvalidConfigError(f"compare takes {', '.join(_SECTION)}, got {name_some(unknown)}.")
    return section


def _norms(words: Sequence[str] | None, section: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    own: dict[str, dict[str, Any]] = section.get("norms", {})
    known = {**STANDARD_NORMS, **own}
    if words is None:
        return own or {name: known[name] for name in USUAL_NORMS}
    chosen: dict[str, dict[str, Any]] = {}
    for word in words:
        name, norm = _norm(word, known)
        if name in chosen:
            raise InvalidConfigError(f"the norm {name} is named twice. Give one of them a name: NAME={word}.")
        chosen[name] = norm
    if not chosen:
        raise InvalidConfigError("norms must name at least one norm.")
    return chosen


def _norm(word: str, known: Mapping[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    by_name = {name.lower(): name for name in known}
    if word.lower() in by_name:
        name = by_name[word.lower()]
        return name, known[name]
    name, _, file = word.rpartition("=")
    if not file.endswith((".yaml", ".yml")):
        raise InvalidConfigError(
            f"norms must be some of {', '.join(known)}, or files like configs/norm/lcn.yaml (NAME=FILE gives another "
            f"name), got {word}."
        )
    name = name or Path(file).stem.upper()
    if not re.fullmatch(r"[\w.+-][\w.+ -]*", name) or not name.strip("."):
        raise InvalidConfigError(
            f"a norm's name is that of a folder too: letters, digits and . + - only, got {name!r}."
        )
    model = _read(Path(file)).get("model")
    norm = model.get("norm") if isinstance(model, dict) else None
    if norm is None:
        raise InvalidConfigError(f"{file} does not say model.norm. Try a file like configs/norm/lcn.yaml.")
    return name, norm if isinstance(norm, dict) else {"class_path": norm}


def _takes_seed(contents: Sequence[Mapping[str, Any]], words: Sequence[str]) -> bool:
    """Say whether the data module draws by a seed of its own, as ours do."""
    path = next((data["class_path"] for data in _said(contents, "data") if "class_path" in data), "")
    for word, after in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if option in ("--data", "--data.class_path"):
            path = value if equals else after
    module, _, name = (path if "." in path else f"geonorm.data.{path}").rpartition(".")
    try:
        return "seed" in inspect.signature(getattr(import_module(module), name).__init__).parameters
    except (ImportError, AttributeError, ValueError):
        return False  # the training says what is wrong with it


def _said(contents: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return what the files say of something, the last first."""
    return [content[key] for content in reversed(contents) if isinstance(content.get(key), dict)]


def _without_norm(content: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the norm: where one class is laid over another, the parser hands it the other's arguments."""
    rest = {key: value for key, value in content.items() if key not in ("compare", "model")}
    model = content.get("model")
    if isinstance(model, dict):
        model = {key: value for key, value in model.items() if key != "norm"}
    return {**rest, "model": model} if model else rest


def _without_compare(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out which norms, seeds and pools there are beside: no training depends on them."""
    contents = [{key: value for key, value in one.items() if key != "compare"} for one in settings["configs"]]
    return settings | {"configs": contents}
