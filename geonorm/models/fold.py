"""Make trained norms cheaper: those that are an affine map in evaluation become one, or go into the convolution."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from geonorm.errors import InvalidConfigError
from geonorm.models.geometry import trial
from geonorm.models.replace import Replacement
from geonorm.norms import BatchNorm, BatchRenorm, FrozenBatchNorm, SwitchableNorm

Convolution = nn.Conv2d | nn.ConvTranspose2d


@torch.no_grad()
def fold_norms(network: nn.Module, *, into_convolutions: bool = True) -> tuple[nn.Module, tuple[Replacement, ...]]:
    """Return a copy of a network, for evaluation, whose affine norms cost less, and what became of each.

    Batch Norm, frozen Batch Norm, BatchRenorm and Switchable Norm with hard choices of BN alone are one affine map
    per channel in evaluation. Where the input of such a norm is the output of a convolution that nothing else
    uses, the map goes into the convolution's weight and bias (the same output, but for rounding); elsewhere a
    `FrozenBatchNorm` stands in its place (the same output bit for bit). Train a folded network no further.

    Args:
        network: A trained network from images ``(N, C, H, W)``; it is not changed.
        into_convolutions: Whether to change convolutions.

    Raises:
        InvalidConfigError: No norm of the network is an affine map in evaluation.
    """
    network = copy.deepcopy(network).eval()
    norms = {name: module for name, module in network.named_modules() if is_affine(module)}
    if not norms:
        raise InvalidConfigError(
            f"No norm of this {type(network).__name__} is an affine map in evaluation: only Batch Norm is, and "
            "Switchable Norm with hard choices of BN alone (geonorm.norms.harden)."
        )
    before = _convolutions_before(network) if into_convolutions else {}
    report = []
    for name, norm in norms.items():
        conv_name = before.get(name)
        entry = Replacement(
            name=name, before=type(norm).__name__, after="FrozenBatchNorm", stride_px=0, affine_kept=True
        )
        if conv_name is None:
            _put(network, name, _frozen(norm))
        else:
            _fold_into(network.get_submodule(conv_name), *_affine_of(norm))
            _put(network, name, nn.Identity())
            entry = replace(entry, after="Identity", note=f"in the weight and bias of {conv_name}")
        report.append(entry)
    return network, tuple(report)


def is_affine(module: nn.Module) -> bool:
    """Say whether a norm is one affine map per channel in evaluation."""
    if isinstance(module, SwitchableNorm):
        return module.chosen == (("BN",), ("BN",))
    known = isinstance(module, BatchNorm | BatchRenorm | FrozenBatchNorm) or type(module) is nn.BatchNorm2d
    return known and getattr(module, "running_mean", None) is not None


def _frozen(norm: nn.Module) -> FrozenBatchNorm:
    mean, var, weight, bias = _numbers(norm)
    frozen = FrozenBatchNorm(len(mean), eps=float(norm.eps)).to(mean.device, mean.dtype)  # type: ignore[arg-type]  # a norm
    for place, value in zip((frozen.running_mean, frozen.running_var), (mean, var), strict=True):
        place.copy_(value)
    frozen.weight.copy_(weight)
    frozen.bias.copy_(bias)
    return frozen.eval()


def _affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return factor and summand of each channel in float64."""
    mean, var, weight, bias = (value.double() for value in _numbers(norm))
    scale = weight / (var + float(norm.eps)).sqrt()  # type: ignore[arg-type]  # every norm has one
    return scale, bias - mean * scale


def _numbers(norm: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    weight, bias = (getattr(norm, name) for name in ("weight", "bias"))
    return (
        mean,
        var,
        torch.ones_like(mean) if weight is None else weight,
        torch.zeros_like(mean) if bias is None else bias,
    )


def _fold_into(convolution: nn.Module, scale: Tensor, shift: Tensor) -> None:
    weight = convolution.get_parameter("weight")
    bias: Tensor | None = getattr(convolution, "bias", None)
    axis = 1 if isinstance(convolution, nn.ConvTranspose2d) else 0
    shape = [1] * weight.dim()
    shape[axis] = -1
    folded = weight.double() * scale.view(shape)
    convolution._parameters["weight"] = nn.Parameter(folded.to(weight.dtype))
    offset = shift if bias is None else bias.double() * scale + shift
    convolution._parameters["bias"] = nn.Parameter(offset.to(weight.dtype))


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    path, _, key = name.rpartition(".")
    network.get_submodule(path)._modules[key] = module


def _convolutions_before(network: nn.Module) -> dict[str, str]:
    """Return for each affine norm the convolution whose output it alone gets, found by a pass without values."""
    ghost, image = trial(network)
    names: dict[nn.Module, list[str]] = {}
    for name, module in ghost.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    uses = _Uses()
    for module in ghost.modules():
        # A module in several places, or one whose weight is computed, is left alone.
        if len(names[module]) > 1:
            continue
        if isinstance(module, Convolution) and not is_parametrized(module) and _can_fold(module):
            module.register_forward_hook(uses.made_by(names[module][0]))
        if is_affine(module):
            module.register_forward_pre_hook(uses.enter(names[module][0]))
            module.register_forward_hook(uses.leave)
    with uses:
        ghost(image)
    return uses.pairs()


def _can_fold(convolution: Convolution) -> bool:
    return isinstance(convolution, nn.Conv2d) or convolution.groups == 1


class _Uses(TorchFunctionMode):
    """Counts what is done with the output of each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[str, Tensor]] = {}
        self._calls: Counter[str] = Counter()
        self._taken: list[tuple[str, str]] = []
        self._others: Counter[str] = Counter()
        self._inside = 0

    def made_by(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._made[id(output)] = (name, output)  # kept alive, so that the id stays its own
            self._calls[name] += 1

        return note

    def enter(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._inside += 1
            self._calls[name] += 1
            if id(inputs[0]) in self._made:
                self._taken.append((name, self._made[id(inputs[0])][0]))

        return note

    def leave(self, *_: Any) -> None:
        self._inside -= 1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._inside:
            for value in _flat((args, tuple(kwargs.values()))):
                if id(value) in self._made and not _reads_facts(func):
                    self._others[self._made[id(value)][0]] += 1
        return func(*args, **kwargs)

    def pairs(self) -> dict[str, str]:
        """Return norm -> convolution where each runs once and the norm alone takes the convolution's output."""
        takers = Counter(conv for _, conv in self._taken)
        return {
            norm: conv
            for norm, conv in self._taken
            if takers[conv] == self._calls[conv] == self._calls[norm] == 1 and not self._others[conv]
        }


def _flat(values: Any) -> list[Any]:
    if isinstance(values, tuple | list):
        return [item for value in values for item in _flat(value)]
    return [values]


def _reads_facts(func: Callable[..., Any]) -> bool:
    """Say whether a call asks for shape, dtype or device rather than for values."""
    return getattr(func, "__name__", "") in {"__get__", "size", "dim", "is_floating_point", "numel", "stride"}
