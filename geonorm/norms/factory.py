"""A norm as an argument: what makes one, and what it is called with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from geonorm.errors import InvalidConfigError

COUNTERPARTS = {
    "BatchNorm2d": "BatchNorm",
    "SyncBatchNorm": "BatchNorm",
    "GroupNorm": "GroupNorm",
    "LayerNorm": "LayerNorm",
    "InstanceNorm2d": "InstanceNorm",
}
"""Class in torch.nn -> class in geonorm.norms."""


class NormFactory(Protocol):
    """Anything that makes a norm: a class of `geonorm.norms`, a ``functools.partial`` of one, a function."""

    def __call__(self, num_features: int, *, stride: int) -> nn.Module:
        """Make a norm for a map of ``num_features`` channels, one cell of which spans ``stride`` input pixels."""
        ...


def make_norm(norm: NormFactory, num_features: int, *, stride: int) -> nn.Module:
    """Call a factory; one clear line where it does not take ``stride``."""
    if not _takes_stride(norm):
        name = getattr(class_behind(norm)[0], "__name__", repr(norm))
        ours = COUNTERPARTS.get(name)
        hint = f"Use geonorm.norms.{ours}." if ours else "Wrap it in a function (num_features, *, stride)."
        raise InvalidConfigError(
            f"A norm is called as norm(num_features, stride=...), and {name} has no stride. {hint}"
        )
    return norm(num_features, stride=stride)


def class_behind(factory: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """Return what a (nested) ``functools.partial`` calls in the end, and the arguments it gives by name."""
    arguments: dict[str, Any] = {}
    target: Any = factory
    while isinstance(target, functools.partial):
        arguments = {**target.keywords, **arguments}
        # jsonargparse hands over partial(instantiate, class, **arguments).
        classes = [arg for arg in target.args if isinstance(arg, type)]
        target = classes[0] if classes else target.func
    return target, arguments


def _takes_stride(norm: NormFactory) -> bool:
    parameters = inspect.signature(class_behind(norm)[0]).parameters.values()
    return any(p.name == "stride" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
