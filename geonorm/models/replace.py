"""Swap the norms of a network that exists: others for new ones, or global statistics for local ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from geonorm.errors import InvalidConfigError
from geonorm.models.geometry import SeenMap, seen_maps
from geonorm.norms import GroupNorm, InstanceNorm, LocalContextNorm, NormFactory, SwitchableNorm, make_norm
from geonorm.norms.base import Norm

FOREIGN_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What became of one norm."""

    name: str
    """Where it stands."""
    before: str
    """Class that stood there."""
    after: str
    """Class that stands there now; the same as before where it was left."""
    stride_px: int
    """Input pixels that one cell of its map spans."""
    affine_kept: bool
    """Whether its weight and bias were taken over."""
    note: str = ""
    """What was lost, or why it was left."""


def replace_norms(model: nn.Module, norm: NormFactory) -> tuple[nn.Module, tuple[Replacement, ...]]:
    """Return a copy of a network with every norm replaced, and what became of each.

    The stride of each norm's map is found by a traced pass and given to the new layer. Convolution weights stay;
    a norm's weight and bias are taken over. Running statistics of Batch Norm go over to norms that keep such
    statistics, else they are lost, and noted. A norm with an activation built in (timm) becomes norm and
    activation. Norms over tokens rather than maps (attention) are left, and noted.

    Args:
        model: A network from images ``(N, C, H, W)``; it is not changed.
        norm: Makes the new norms, called as ``norm(num_features, stride=...)``.

    Raises:
        InvalidConfigError: The network has no norm over maps, or the new norm does not fit some channels.
    """
    model = copy.deepcopy(model)
    maps = seen_maps(model, is_norm)
    done: dict[int, tuple[nn.Module, Replacement]] = {}
    for name, parent, key, old in _norm_places(model):
        if id(old) not in done:
            done[id(old)] = _replaced(name, old, maps.get(name), norm)
        parent._modules[key] = done[id(old)][0]
    report = tuple(replacement for _, replacement in done.values())
    if not any(replacement.before != replacement.after or not replacement.note for replacement in report):
        raise InvalidConfigError(f"{type(model).__name__} has no norm over maps that could be replaced.")
    return model, report


def localize_norms(model: nn.Module, window_px: int) -> tuple[nn.Module, tuple[Replacement, ...]]:
    """Return a copy of a trained network whose GN, IN and LN take their statistics over a window.

    Each becomes a `LocalContextNorm` of the same channel groups, with its weight and bias, so that the network's
    tiles can agree without training it again. How large a window must be to keep the accuracy depends
    on network and images: ``geonorm localize`` measures it. 1.5 to 2 training patches are a start.

    Args:
        model: A network trained with norms over the whole map; it is not changed.
        window_px: Window in pixels of the input image.

    Raises:
        InvalidConfigError: The network has no GroupNorm, InstanceNorm or LayerNorm over maps.
    """
    model = copy.deepcopy(model)
    maps = seen_maps(model, lambda module: group_size_of(module) is not None)
    report = []
    for name, parent, key, old in list(_norm_places(model)):
        group_size, seen = group_size_of(old), maps.get(name)
        if group_size is None or seen is None or not _is_map(old, seen):
            continue
        new = LocalContextNorm(
            seen.shape[1],
            stride=seen.stride_px,
            window_px=window_px,
            group_size=group_size,
            eps=float(old.eps),  # type: ignore[arg-type]  # every norm has one
        )
        kept = _take_affine(new, old)
        parent._modules[key] = _like(new, old)
        report.append(
            Replacement(
                name=name,
                before=type(old).__name__,
                after=type(new).__name__,
                stride_px=seen.stride_px,
                affine_kept=kept,
            )
        )
    if not report:
        raise InvalidConfigError(
            f"{type(model).__name__} has no GroupNorm, InstanceNorm or LayerNorm to make local. Batch Norm needs none, "
            "and Local Context Norm is local already: their labels do not depend on the tiles."
        )
    return model, tuple(report)


def is_norm(module: nn.Module) -> bool:
    """Say whether a module is a norm: torch's, one derived from torch's, or geonorm's."""
    return isinstance(module, (*FOREIGN_NORMS, Norm))


def group_size_of(module: nn.Module) -> int | None:
    """Return over how many channels a norm with statistics of the whole map takes them; None for other modules."""
    if isinstance(module, GroupNorm):
        return module.num_features // module.num_groups
    if isinstance(module, nn.GroupNorm):
        return module.num_channels // module.num_groups
    if isinstance(module, _InstanceNorm) and not module.track_running_stats:
        return 1
    return None


def _norm_places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Yield every norm with its name, and the place it hangs at; one that hangs at several comes several times."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and is_norm(module):
            path, _, key = name.rpartition(".")
            yield name, model.get_submodule(path), key, module


def _replaced(name: str, old: nn.Module, seen: SeenMap | None, norm: NormFactory) -> tuple[nn.Module, Replacement]:
    def result(new: nn.Module, *, kept: bool, note: str = "") -> tuple[nn.Module, Replacement]:
        after = new[0] if isinstance(new, nn.Sequential) else new
        stride = seen.stride_px if seen is not None else 0
        return new, Replacement(
            name=name,
            before=type(old).__name__,
            after=type(after).__name__,
            stride_px=stride,
            affine_kept=kept,
            note=note,
        )

    if seen is None:
        return result(old, kept=True, note="left: the network does not use it")
    if not _is_map(old, seen):
        return result(old, kept=True, note=f"left: it normalizes {seen.shape}, not a map (N, C, H, W)")
    try:
        new = make_norm(norm, seen.shape[1], stride=seen.stride_px)
    except InvalidConfigError as error:
        raise InvalidConfigError(f"{name} ({type(old).__name__}): {error}") from error
    kept = _take_affine(new, old)
    notes = [note for note in (_take_statistics(new, old), _one_cell(new, seen)) if note]
    return result(_like(new, old), kept=kept, note="; ".join(notes))


def _is_map(module: nn.Module, seen: SeenMap) -> bool:
    """Say whether a norm gets maps with channels in the second place."""
    if len(seen.shape) != 4:
        return False
    if isinstance(module, nn.LayerNorm):
        # timm's LayerNorm2d normalizes the channels of a map; torch's own the last dimension.
        return type(module) is not nn.LayerNorm and module.normalized_shape[0] == seen.shape[1]
    return True


@torch.no_grad()
def _take_affine(new: nn.Module, old: nn.Module) -> bool:
    taken = False
    for name in ("weight", "bias"):
        value, place = getattr(old, name, None), getattr(new, name, None)
        if value is not None and place is not None and value.numel() == place.numel():
            place.copy_(value.flatten())
            taken = True
    return taken


@torch.no_grad()
def _take_statistics(new: nn.Module, old: nn.Module) -> str:
    if getattr(old, "running_mean", None) is None:
        return ""
    if getattr(new, "running_mean", None) is None:
        return "its running statistics are lost: train on before use"
    for name in ("running_mean", "running_var"):
        getattr(new, name).copy_(getattr(old, name))
    return ""


def _one_cell(new: nn.Module, seen: SeenMap) -> str:
    pooled = seen.shape[-2:] == (1, 1)
    if pooled and (isinstance(new, InstanceNorm) or (isinstance(new, SwitchableNorm) and "IN" in new.pool)):
        return "its map is one cell, where IN has no variance"
    return ""


def _like(new: nn.Module, old: nn.Module) -> nn.Module:
    """Return the new norm with the activation that the old one had built in, in the same mode."""
    act: Callable[..., object] | None = getattr(old, "act", None)
    if isinstance(act, nn.Module) and not isinstance(act, nn.Identity):
        new = nn.Sequential(new, act)
    return new.train(old.training)
