"""Every norm as a user makes it, with its oracle, and what sets it apart from the others."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from geonorm.norms import (
    BatchNorm,
    BatchRenorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalContextNorm,
    LocalContrastNorm,
    NoNorm,
    PositionalNorm,
    SwitchableNorm,
)
from tests.norms import oracles
from tests.norms.maps import with_random_state

CHANNELS = 12
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

Oracle = Callable[..., Tensor]  # (x, layer, eps=1e-5); the layer lends its parameters only


@dataclass(frozen=True, kw_only=True)
class Case:
    """A norm, its oracle, and the promises that cannot hold for it."""

    norm: Callable[..., nn.Module]
    oracle: Oracle
    identity: bool = False
    """It hands back the very input: no weight, bias or eps, and nothing of its own that could be checked."""
    constants_show: bool = False
    """In training it takes its level from elsewhere than its input, so a constant added to the input shows."""
    least_values: int = 1
    """Values per channel that it needs in training: torch refuses to take the variance of a batch of one value."""
    advises_against_one_cell: bool = False
    """It warns while it trains on maps of one cell, as its paper does."""

    def layer(self, *, training: bool = True) -> nn.Module:
        """Return the norm of CHANNELS channels with random parameters and running statistics."""
        return with_random_state(self.norm(CHANNELS)).train(training)


def per_sample(norm: Callable[..., Tensor], **settings: object) -> Oracle:
    """Return the oracle of a norm that has weight and bias only."""

    def oracle(x: Tensor, layer: nn.Module, eps: float = 1e-5) -> Tensor:
        return norm(x, weight=layer.weight, bias=layer.bias, eps=eps, **settings)

    return oracle


def frozen_oracle(x: Tensor, layer: nn.Module, eps: float = 1e-5) -> Tensor:
    """Return what the running statistics of `layer` make of `x`, whatever its mode."""
    running = {"mean": layer.running_mean, "variance": layer.running_var}
    return per_sample(oracles.frozen_batch_norm, **running)(x, layer, eps)


def batch_oracle(x: Tensor, layer: nn.Module, eps: float = 1e-5) -> Tensor:
    """Return what BN makes of `x` in the mode of `layer`."""
    return (per_sample(oracles.batch_norm) if layer.training else frozen_oracle)(x, layer, eps)


def renorm_oracle(*, r_max: float, d_max: float) -> Oracle:
    """Return the oracle of Batch Renorm with these bounds at the step in question."""

    def oracle(x: Tensor, layer: nn.Module, eps: float = 1e-5) -> Tensor:
        if not layer.training:
            return frozen_oracle(x, layer, eps)
        running = {"running_mean": layer.running_mean, "running_var": layer.running_var}
        return per_sample(oracles.batch_renorm, **running, r_max=r_max, d_max=d_max)(x, layer, eps)

    return oracle


def switchable_oracle(x: Tensor, layer: nn.Module, eps: float = 1e-5) -> Tensor:
    """Return what SN makes of `x` in the mode of `layer`."""
    control = {"mean_weight": layer.mean_weight, "var_weight": layer.var_weight}
    running = {} if layer.training else {"running_mean": layer.running_mean, "running_var": layer.running_var}
    return per_sample(oracles.switchable_norm, **control, **running)(x, layer, eps)


def identity_oracle(x: Tensor, layer: nn.Module) -> Tensor:
    """Return `x`."""
    return x


def local(*, window: tuple[int, int], group_size: int = 4, border: str = "nearest") -> Oracle:
    """Return the oracle of LCN."""
    return per_sample(oracles.local_context_norm, window=window, group_size=group_size, border=border)


def renorm(*, ramp_steps: int, r_max: float, d_max: float) -> Callable[..., nn.Module]:
    """Return a Batch Renorm without warm-up, whose first training step is 1 of `ramp_steps`."""
    return partial(BatchRenorm, warmup_steps=0, ramp_steps=ramp_steps, r_max=r_max, d_max=d_max)


CASES = {
    "BatchNorm": Case(norm=BatchNorm, oracle=batch_oracle, least_values=2),
    "BatchRenorm": Case(norm=BatchRenorm, oracle=batch_oracle),  # a new layer is in its warm-up
    "BatchRenorm-ramp": Case(  # at the first of three steps the bounds are a third open: 1.1 and 0.2
        norm=renorm(ramp_steps=3, r_max=1.3, d_max=0.6),
        oracle=renorm_oracle(r_max=1.1, d_max=0.2),
        constants_show=True,
    ),
    "BatchRenorm-open": Case(
        norm=renorm(ramp_steps=0, r_max=1e3, d_max=1e6),
        oracle=renorm_oracle(r_max=1e3, d_max=1e6),
        constants_show=True,
    ),
    "FrozenBatchNorm": Case(norm=FrozenBatchNorm, oracle=frozen_oracle, constants_show=True),
    "GroupNorm": Case(norm=GroupNorm, oracle=per_sample(oracles.group_norm, group_size=4)),
    "GroupNorm-num_groups": Case(
        norm=partial(GroupNorm, num_groups=2), oracle=per_sample(oracles.group_norm, group_size=6)
    ),
    "InstanceNorm": Case(norm=InstanceNorm, oracle=per_sample(oracles.instance_norm)),
    "LayerNorm": Case(norm=LayerNorm, oracle=per_sample(oracles.layer_norm)),
    "LocalContextNorm": Case(norm=partial(LocalContextNorm, window_cells=5), oracle=local(window=(5, 5))),
    "LocalContextNorm-clip": Case(
        norm=partial(LocalContextNorm, window_cells=(4, 7), group_size=3, border="clip"),
        oracle=local(window=(4, 7), group_size=3, border="clip"),
    ),
    "LocalContextNorm-covering": Case(
        norm=partial(LocalContextNorm, window_cells=999), oracle=local(window=(999, 999))
    ),
    "LocalContrastNorm": Case(norm=LocalContrastNorm, oracle=per_sample(oracles.local_contrast_norm, window=9)),
    "LocalContrastNorm-window": Case(
        norm=partial(LocalContrastNorm, window_cells=3), oracle=per_sample(oracles.local_contrast_norm, window=3)
    ),
    "NoNorm": Case(norm=NoNorm, oracle=identity_oracle, identity=True, constants_show=True),
    "PositionalNorm": Case(norm=PositionalNorm, oracle=per_sample(oracles.positional_norm)),
    "SwitchableNorm": Case(norm=SwitchableNorm, oracle=switchable_oracle, advises_against_one_cell=True),
}


def norms_where(condition: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """Return the parameters of a test for the cases that meet a condition."""
    chosen = {name: case for name, case in CASES.items() if condition(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


every_norm = norms_where(lambda case: True)
every_norm_but_none = norms_where(lambda case: not case.identity)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
both_formats = pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "channels_last"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
