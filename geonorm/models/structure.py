"""What a network is made of: two of one structure and the same weights answer alike."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TOLD_ELSEWHERE = frozenset(vars(nn.Module()))
"""What torch keeps in every module: its mode, its hooks, its children, and what its state dict holds."""
BY_COMPILING = frozenset({"_is_torch_compile", "_compile_kwargs", "_compiled_call_impl"})
"""What torch.compile leaves in a module that it compiles; addresses among it."""
COMPILER = "torch._dynamo."
SHOWN_AS_TEXT = (complex, bytes, range, slice, Enum, PurePath, torch.dtype, torch.device, torch.memory_format)


def structure_of(network: nn.Module) -> dict[str, Any]:
    """Return every setting of every module by ``module.setting``, as plain data that is the same in each process.

    A setting is any attribute that torch does not keep itself: not only what ``extra_repr`` shows. Buffers that the
    state dict leaves out and hooks count, too. Of an object that is not plain data the class is told, of a function
    its name and what it is bound to; where they lie in memory is not. Code is taken to be the same.
    """
    told: dict[str, Any] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        told[f"{prefix}class"] = _path_of(type(module))
        for setting, value in _settings_of(module).items():
            told[f"{prefix}{setting}"] = _plain(value)
        for buffer in sorted(module._non_persistent_buffers_set):
            told[f"{prefix}{buffer}"] = _plain(module._buffers[buffer])
        if hooks := [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:
            told[f"{prefix}hooks"] = _plain(hooks)
        if children := [child for child, made in module._modules.items() if made is not None]:
            told[f"{prefix}children"] = children
    return told


def weights_hash(network: nn.Module) -> str:
    """Return letters that two networks share only if all their weights and statistics are the same."""
    weights = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        weights.update(name.encode())
        weights.update(_bytes_of(value) if isinstance(value, Tensor) else json.dumps(_plain(value)).encode())
    return weights.hexdigest()


def _settings_of(module: nn.Module) -> dict[str, Any]:
    if type(module).__module__.startswith(COMPILER):  # it only wraps another one
        return {}
    return {name: value for name, value in vars(module).items() if name not in TOLD_ELSEWHERE | BY_COMPILING}


def _plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Return a value as JSON can hold it; ``above`` are the containers that it lies in."""
    if isinstance(value, Tensor | np.ndarray):
        tensor = torch.as_tensor(value)
        return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(_bytes_of(tensor)).hexdigest()}"
    if isinstance(value, SHOWN_AS_TEXT):
        return str(value)
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, str):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # NaN is not even itself
    if value is None or isinstance(value, int):
        return value
    if id(value) in above:
        return "..."
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return {str(_plain(key, above)): _plain(item, above) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, above) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item, above) for item in value), key=json.dumps)
    if isinstance(value, functools.partial):
        return [_plain(part, above) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, types.FunctionType):
        bound = [value.__defaults__, value.__kwdefaults__, [_inside(cell) for cell in value.__closure__ or ()]]
        return [_path_of(value), *(_plain(part, above) for part in bound if part)]
    if isinstance(value, types.MethodType):
        return [_plain(value.__func__, above), _path_of(type(value.__self__))]
    if isinstance(value, type | types.BuiltinFunctionType):
        return _path_of(value)
    if is_dataclass(value):
        return [_path_of(type(value)), {f.name: _plain(getattr(value, f.name, None), above) for f in fields(value)}]
    return _path_of(type(value))


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _inside(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def _path_of(named: Any) -> str:
    return f"{getattr(named, '__module__', None)}.{named.__qualname__}"
