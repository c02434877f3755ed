"""Switchable Normalization."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args
from weakref import WeakSet

import torch
from torch import Tensor, nn

from geonorm.errors import GeonormWarning, InvalidConfigError
from geonorm.norms.base import Norm, memory_format_of, wide_dtype
from geonorm.norms.compiled import plane_loops_for
from geonorm.norms.group import check_group_size
from geonorm.norms.local_context import Border, statistics_of, window_in_cells
from geonorm.norms.planes import plane_affine, with_moments
from geonorm.norms.synchronized import batch_moments, move_running

Normalizer = Literal["IN", "LN", "BN", "GN", "LCN"]
Selection = Literal["soft", "hard", "sparse"]
Statistics = tuple[Tensor, Tensor]
"""Mean and variance, of a shape that broadcasts to ``(N, C, H, W)``."""
_WARNED: WeakSet[nn.Module] = WeakSet()
"""Layers that have warned; kept apart, since a layer's attributes are its settings."""


class SwitchableNorm(Norm):
    """Mix the statistics of several norms by learned ratios.

    ``y = (x - sum_k w_k mean_k) / sqrt(sum_k w'_k var_k + eps) * weight_c + bias_c``, k over ``pool``, with
    ``w = softmax(mean_weight)`` and ``w' = softmax(var_weight)``. In evaluation BN's statistics are the running
    ones; those of IN, LN and GN are still taken over the map, so a pixel's answer depends on its tile. A layer
    whose hard choices are BN alone is one affine map per channel.

    The ratios learn while they are soft or sparse. ``hard`` takes the largest ratio alone and computes nothing
    else: to finetune a trained layer and to make it cheap (`harden`), hardly to train one from scratch.

    Source: Luo et al., ICLR 2019 (journal version: equations (3) to (5)); hard ratios: Luo et al., "Do
    normalization layers in a deep ConvNet really need to be distinct?", section 3; sparse ratios: sparsemax of
    Martins and Astudillo, ICML 2016, in place of the SparsestMax of Shao et al., CVPR 2019.
    Differs: the variances of LN, GN and BN come from IN's in the centred form, ``var_ln = mean_c(var_in) +
    var_c(mean_in)``, because equation (4) as printed cancels for large means; variances are biased throughout;
    the running variance starts at 1 and ``momentum`` is torch's (the share of the newest batch). GN and LCN in the
    pool are not in the papers.

    On maps of one cell IN has no variance and LN only that over the channels; the papers advise against SN after
    global pooling. Numbers stay finite there, and a warning says so once.

    Args:
        num_features: Channels C.
        stride: Input pixels per cell of this map; only LCN uses it.
        pool: Which statistics to mix, of IN, LN, BN, GN and LCN, in the order of the control parameters. Without BN
            nothing is kept between batches: the choice for one image per process, where BN is a noisy IN.
        tied: One set of ratios for means and variances.
        channel_groups: Sets of ratios, each for as many consecutive channels; must divide C.
        selection: ``"soft"`` (softmax), ``"hard"`` (the largest alone) or ``"sparse"`` (sparsemax).
        group_size: Channels per group of GN and LCN in the pool; must divide C.
        window_cells: Window of LCN in the pool, see `LocalContextNorm`.
        window_px: The same in pixels of the input image.
        border: The same near the border.
        compat: ``"authors"`` takes IN's variance unbiased, as the released layer does; for its state dicts.
        eps: Added to the variance.
        momentum: Share of the newest batch in the running statistics.

    Raises:
        InvalidConfigError: An unknown or repeated member of the pool, a window without LCN or LCN without one, or
            groups that do not divide C.
    """

    chosen: tuple[tuple[str, ...], tuple[str, ...]]
    """What the mean and the variance are mixed from: the pool, or the hard choices."""
    mean_weight: nn.Parameter
    var_weight: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        stride: int = 1,
        pool: Sequence[Normalizer] = ("IN", "LN", "BN"),
        tied: bool = False,
        channel_groups: int = 1,
        selection: Selection = "soft",
        group_size: int = 4,
        window_cells: int | tuple[int, int] | None = None,
        window_px: int | None = None,
        border: Border = "nearest",
        compat: Literal["authors"] | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps=eps)
        self.pool = _checked_pool(pool)
        if channel_groups < 1 or num_features % channel_groups:
            raise InvalidConfigError(
                f"channel_groups must divide the channels, got {channel_groups} with {num_features} channels."
            )
        if compat not in (None, "authors"):
            raise InvalidConfigError(f'compat must be "authors" or None, got {compat!r}.')
        self.channel_groups = channel_groups
        self.group_size = check_group_size(num_features, group_size) if {"GN", "LCN"} & set(self.pool) else group_size
        self.window = None
        if "LCN" in self.pool:
            self.window = window_in_cells(window_cells, window_px, stride, layer="LCN in the pool")
        elif window_cells is not None or window_px is not None:
            raise InvalidConfigError(f"A window belongs to LCN, which is not in the pool {', '.join(self.pool)}.")
        self.border: Border = border
        self.compat = compat
        self.momentum = momentum
        self.synchronized = False
        shape = (len(self.pool),) if channel_groups == 1 else (channel_groups, len(self.pool))
        self.mean_weight = nn.Parameter(torch.ones(shape))
        self.var_weight = None if tied else nn.Parameter(torch.ones(shape))
        if "BN" in self.pool:
            self.register_buffer("running_mean", torch.zeros(num_features))
            self.register_buffer("running_var", torch.ones(num_features))
        self.select(selection)

    @property
    def tied(self) -> bool:
        """Whether means and variances have one set of ratios."""
        return self.var_weight is None

    def select(self, selection: Selection) -> None:
        """Make the ratios soft, hard or sparse from now on.

        Hard ratios do not learn, and which they are is settled here and when a state dict is loaded: call this again
        after writing to the control parameters by hand.
        """
        if selection not in get_args(Selection):
            raise InvalidConfigError(f'selection must be "soft", "hard" or "sparse", got {selection!r}.')
        self.selection: Selection = selection
        for control in (self.mean_weight, self.var_weight):
            if control is not None:
                control.requires_grad_(selection != "hard")
        self.chosen = self._members(self.mean_ratios()), self._members(self.var_ratios())

    def mean_ratios(self) -> Tensor:
        """Return the ratios of the means, in the order of ``pool``: ``(K,)``, or ``(channel_groups, K)``."""
        return _ratios(self.mean_weight, self.selection)

    def var_ratios(self) -> Tensor:
        """Return the ratios of the variances, shaped as those of the means."""
        return _ratios(self.mean_weight if self.var_weight is None else self.var_weight, self.selection)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize a checked input with autocast off."""
        if x.shape[2] * x.shape[3] == 1:
            self._note_one_cell()
        wide = wide_dtype(x.dtype)
        values = x.to(wide)
        fused = self._is_fused(values)
        if fused:
            values = values.contiguous()
        values, members = self._statistics(values, fused=fused)
        for_mean, for_var = self.chosen
        mean = _mixed({k: members[k][0] for k in for_mean}, self.pool, self.mean_ratios().to(wide), values)
        var = _mixed({k: members[k][1] for k in for_var}, self.pool, self.var_ratios().to(wide), values)
        scale = torch.rsqrt(var + self.eps) * self.weight.to(wide)[:, None, None]
        bias = self.bias.to(wide)[:, None, None]
        if fused:
            y = plane_affine(values, *(part.expand(*x.shape[:2], 1, 1)[..., 0, 0] for part in (mean, scale, bias)))
        else:
            y = (values - mean) * scale + bias
        return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))

    @property
    def _used(self) -> set[str]:
        """Members whose mean or variance is taken."""
        return {*self.chosen[0], *self.chosen[1]}

    def _is_fused(self, x: Tensor) -> bool:
        """Return whether everything is one number per channel and sample, and the compiled loops take it.

        torch.compile makes as good ones of plain torch, which it can see through.
        """
        if "LCN" in self._used or self.compat is not None or torch.compiler.is_compiling():
            return False
        if torch._C._are_functorch_transforms_active():  # torch.func sees through plain torch only
            return False
        return plane_loops_for(x) is not None

    def _statistics(self, x: Tensor, *, fused: bool) -> tuple[Tensor, dict[str, Statistics]]:
        """Return x, and mean and variance of every member that is used."""
        used = self._used
        members: dict[str, Statistics] = {}
        if used & {"IN", "LN", "GN"} or ("BN" in used and self.training):
            if fused:
                x, mean_in, var_in = with_moments(x)
            else:
                # Statistics of a contiguous copy: torch's reduction over channels_last maps loses accuracy.
                correction = 1 if self.compat == "authors" else 0
                var_in, mean_in = torch.var_mean(x.contiguous(), dim=(2, 3), correction=correction)
            if "IN" in used:
                members["IN"] = _planes(mean_in, var_in)
            if "LN" in used:
                members["LN"] = _planes(*_merged(mean_in, var_in, self.num_features))
            if "GN" in used:
                members["GN"] = _planes(*_merged(mean_in, var_in, self.group_size))
            if "BN" in used and self.training:
                members["BN"] = _planes(*self._batch_statistics(mean_in, var_in, x.shape[2] * x.shape[3]))
        if "BN" in used and not self.training:
            members["BN"] = _planes(self.running_mean.to(x.dtype), self.running_var.to(x.dtype))
        if "LCN" in used and self.window is not None:
            statistics = statistics_of(x, self.group_size, list(self.window), self.border)
            mean, var = (values.to(x.dtype) for values in statistics)
            members["LCN"] = _per_channel(mean, self.group_size), _per_channel(var, self.group_size)
        return x, members

    def _batch_statistics(self, mean_in: Tensor, var_in: Tensor, cells: int) -> Statistics:
        mean, var, _ = batch_moments(mean_in, var_in, cells=cells, synchronized=self.synchronized)
        move_running(self.running_mean, self.running_var, mean, var, momentum=self.momentum)
        return mean, var

    def _members(self, ratios: Tensor) -> tuple[str, ...]:
        """Return what must be computed: all, or what was chosen."""
        if self.selection != "hard":
            return self.pool
        chosen = ratios.detach().reshape(-1, len(self.pool)).amax(dim=0).tolist()
        return tuple(member for member, ratio in zip(self.pool, chosen, strict=True) if ratio > 0)

    def _note_one_cell(self) -> None:
        if self.compat == "authors":
            raise InvalidConfigError(
                "SwitchableNorm with compat='authors' has no variance on a map of one cell, as the released layer has "
                "none. Leave compat out there."
            )
        if torch.compiler.is_compiling() or self in _WARNED:
            return
        if self.training and "IN" in self.pool:
            _WARNED.add(self)
            warnings.warn(
                f"SwitchableNorm({self.num_features}) normalizes a map of one cell, where IN has no variance and LN "
                "only that over the channels. After global pooling another norm or none does better.",
                GeonormWarning,
                stacklevel=2,
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("running_mean", "running_var"):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.dim() == 3:  # (1, C, 1) in the released layer
                state_dict[prefix + name] = value.flatten()
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.select(self.selection)

    def extra_repr(self) -> str:
        """Return the settings that ``print(model)`` shows."""
        parts = [str(self.num_features), f"pool={'+'.join(self.pool)}", f"selection={self.selection!r}"]
        parts += ["tied"] if self.tied else []
        parts += [f"channel_groups={self.channel_groups}"] if self.channel_groups > 1 else []
        parts += [f"group_size={self.group_size}"] if {"GN", "LCN"} & set(self.pool) else []
        parts += [f"window={self.window[0]}x{self.window[1]} cells, border={self.border!r}"] if self.window else []
        parts += [f"compat={self.compat!r}"] if self.compat else []
        return ", ".join([*parts, f"eps={self.eps}", f"momentum={self.momentum}"])


def harden(network: nn.Module) -> int:
    """Switch every trained `SwitchableNorm` of a network to its hard choices, in place; return how many there are.

    The control parameters stop learning; everything else may be finetuned.
    """
    layers = [module for module in network.modules() if isinstance(module, SwitchableNorm)]
    for layer in layers:
        layer.select("hard")
    return len(layers)


def sparsemax(x: Tensor) -> Tensor:
    """Return the point of the simplex nearest to ``x`` along its last axis: like softmax, but with exact zeros.

    Source: Martins and Astudillo, ICML 2016, algorithm 1.
    """
    ordered = x.sort(dim=-1, descending=True).values
    ranks = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    total = ordered.cumsum(dim=-1)
    support = (1 + ranks * ordered > total).sum(dim=-1, keepdim=True)
    threshold = (total.gather(-1, support - 1) - 1) / support
    return (x - threshold).clamp(min=0)


def _ratios(control: Tensor, selection: Selection) -> Tensor:
    control = control.to(wide_dtype(control.dtype))
    if selection == "soft":
        return control.softmax(dim=-1)
    if selection == "sparse":
        return sparsemax(control)
    return nn.functional.one_hot(control.detach().argmax(dim=-1), control.shape[-1]).to(control.dtype)


def _checked_pool(pool: Sequence[str]) -> tuple[str, ...]:
    known = get_args(Normalizer)
    if isinstance(pool, str) or not pool or not set(pool) <= set(known) or len(set(pool)) < len(pool):
        given = pool if isinstance(pool, str) else ", ".join(map(str, pool))
        raise InvalidConfigError(
            f"pool takes some of {', '.join(known)}, each once, got {given!r}. The papers use IN, LN, BN."
        )
    return tuple(pool)


def _merged(mean: Tensor, var: Tensor, group_size: int) -> Statistics:
    """Merge the statistics ``(N, C)`` of the channels of each group; each channel gets those of its group."""
    grouped = mean.unflatten(1, (-1, group_size))
    spread, group_mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    group_var = var.unflatten(1, (-1, group_size)).mean(dim=2, keepdim=True) + spread
    return group_mean.expand_as(grouped).flatten(1), group_var.expand_as(grouped).flatten(1)


def _planes(mean: Tensor, var: Tensor) -> Statistics:
    return mean[..., None, None], var[..., None, None]


def _per_channel(planes: Tensor, group_size: int) -> Tensor:
    """Give every channel the plane ``(N, groups, H, W)`` of its group."""
    return planes if group_size == 1 else torch.stack([planes] * group_size, dim=2).flatten(1, 2)


def _mixed(members: dict[str, Tensor], pool: tuple[str, ...], ratios: Tensor, like: Tensor) -> Tensor:
    """Return the sum of statistics times their ratios, which may differ between groups of channels."""
    if ratios.dim() == 2:
        ratios = ratios.repeat_interleave(like.shape[1] // ratios.shape[0], dim=0)[..., None, None]
    parts = [ratios.select(0 if ratios.dim() == 1 else 1, pool.index(k)) * value for k, value in members.items()]
    return sum(parts[1:], parts[0])
