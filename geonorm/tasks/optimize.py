"""How weights move: any optimizer of torch, and learning rates that change with every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from geonorm.errors import InvalidConfigError, one_line
from geonorm.norms import SwitchableNorm
from geonorm.norms.factory import class_behind


class OptimizerFactory(Protocol):
    """Anything that makes an optimizer: ``torch.optim.AdamW``, a ``functools.partial`` of it, another class."""

    def __call__(self, params: Any, *, lr: float) -> Optimizer:
        """Make an optimizer for parameters, or for groups of them."""
        ...


class Schedule(Protocol):
    """What share of the learning rate each step takes: `Steps`, `Poly`, `Cosine`."""

    def share(self, step: int, *, steps: int, steps_per_epoch: int) -> float:
        """Return the share of the learning rate that a step takes, 0 being the first of ``steps``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A learning rate that falls to a share of itself at milestones."""

    milestones: list[int]
    """Epochs after which it falls."""
    factor: float = 0.1
    """What it falls to, as a share of what it was."""
    warmup_steps: int = 0
    """Steps over which it rises from near 0."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        if not 0 < self.factor <= 1:
            raise InvalidConfigError(f"factor must be in (0, 1], got {self.factor}. 0.1 is usual.")

    def share(self, step: int, *, steps: int, steps_per_epoch: int) -> float:
        """Return the share of the learning rate that a step takes."""
        passed = sum(step >= epoch * steps_per_epoch for epoch in self.milestones)
        return _warm(step, self.warmup_steps, steps) * self.factor**passed


@dataclass(frozen=True, kw_only=True)
class Poly:
    """A learning rate of ``(1 - t / T)^power`` over the T steps after the warm-up.

    Source: Chen et al., DeepLab, TPAMI 2018, section 4.1.2; used with power 0.9 by Ortiz et al., CVPR 2020,
    section 4.1, and Luo et al., SN journal version, section 4.3.1.
    """

    power: float = 0.9
    """The papers': 0.9. 1 falls in a straight line."""
    warmup_steps: int = 0
    """Steps over which it rises from near 0."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        if not self.power > 0:
            raise InvalidConfigError(f"power must be greater than 0, got {self.power}. 0.9 is the papers'.")

    def share(self, step: int, *, steps: int, steps_per_epoch: int) -> float:
        """Return the share of the learning rate that a step takes."""
        return _warm(step, self.warmup_steps, steps) * (1 - _progress(step, self.warmup_steps, steps)) ** self.power


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """A learning rate that falls along half a cosine over the steps after the warm-up.

    Source: Loshchilov and Hutter, ICLR 2017, equation (5), without restarts.
    """

    final_share: float = 0.0
    """Share of the learning rate that is left at the end."""
    warmup_steps: int = 0
    """Steps over which it rises from near 0."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        if not 0 <= self.final_share <= 1:
            raise InvalidConfigError(f"final_share must be in [0, 1], got {self.final_share}.")

    def share(self, step: int, *, steps: int, steps_per_epoch: int) -> float:
        """Return the share of the learning rate that a step takes."""
        left = (1 + math.cos(math.pi * _progress(step, self.warmup_steps, steps))) / 2
        return _warm(step, self.warmup_steps, steps) * (self.final_share + (1 - self.final_share) * left)


def make_optimizer(
    make: OptimizerFactory, network: nn.Module, *, learning_rate: float, ratio_weight_decay: float
) -> Optimizer:
    """Return an optimizer of all parameters of a module.

    The control parameters of Switchable Norm form a group of their own where their weight decay is not the others'.

    Raises:
        InvalidConfigError: Settings that the optimizer refuses, or a weight decay that it does not know.
    """
    parameters = list(network.parameters())
    optimizer = _made(make, parameters, learning_rate)
    controls = control_parameters(network)
    if not controls or optimizer.defaults.get("weight_decay", 0.0) == ratio_weight_decay:
        return optimizer
    if "weight_decay" not in optimizer.defaults:
        raise InvalidConfigError(
            f"ratio_weight_decay is {ratio_weight_decay}, but {type(optimizer).__name__} knows no weight decay. Leave "
            "it at 0, or use another optimizer (torch.optim.Adam)."
        )
    apart = {id(control) for control in controls}
    others = [parameter for parameter in parameters if id(parameter) not in apart]
    return _made(make, [{"params": others}, {"params": controls, "weight_decay": ratio_weight_decay}], learning_rate)


def control_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters behind the ratios of every `SwitchableNorm` that still learn."""
    layers = [module for module in network.modules() if isinstance(module, SwitchableNorm)]
    controls = [control for layer in layers for control in (layer.mean_weight, layer.var_weight)]
    return [control for control in controls if control is not None and control.requires_grad]


def check_optimizer(make: OptimizerFactory) -> None:
    """Refuse a learning rate among the settings of an optimizer: it has one name, ``learning_rate``."""
    given = class_behind(make)[1].get("lr")
    if given is not None:
        raise InvalidConfigError(f"Give the learning rate as learning_rate, not as lr of the optimizer (lr={given}).")


def follow(schedule: Schedule, optimizer: Optimizer, *, steps: int, steps_per_epoch: int) -> LambdaLR:
    """Return a scheduler of torch that sets the learning rate of every step.

    Each is computed from the number of the step alone, so a resumed run goes on exactly, and one that is made longer
    follows the longer curve from there.

    Args:
        schedule: What share each step takes.
        optimizer: Whose learning rates are the whole.
        steps: Steps of the whole training.
        steps_per_epoch: Steps of an epoch.
    """

    def share(step: int) -> float:
        return schedule.share(step, steps=steps, steps_per_epoch=steps_per_epoch)

    share(0)  # refuses a warm-up longer than the training
    return LambdaLR(optimizer, share)


def steps_of(trainer: Trainer) -> dict[str, int]:
    """Return the steps of a whole training and of one epoch of it, by the names that `follow` gives them.

    Raises:
        InvalidConfigError: The training has no end, or its epochs have none.
    """
    steps = trainer.estimated_stepping_batches
    batches = trainer.num_training_batches
    if not math.isfinite(steps) or not math.isfinite(batches) or steps < 1:
        raise InvalidConfigError(
            "A schedule needs to know where the training ends. Set trainer.max_epochs or trainer.max_steps."
        )
    return {"steps": int(steps), "steps_per_epoch": math.ceil(batches / trainer.accumulate_grad_batches)}


def _made(make: OptimizerFactory, params: Any, learning_rate: float) -> Optimizer:
    try:
        return make(params, lr=learning_rate)
    except (TypeError, ValueError) as error:
        name = getattr(class_behind(make)[0], "__name__", repr(make))
        raise InvalidConfigError(f"{name} cannot be made with these settings: {one_line(error)}") from error


def _check_warmup(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise InvalidConfigError(f"warmup_steps must not be negative, got {warmup_steps}.")


def _warm(step: int, warmup_steps: int, steps: int) -> float:
    """Return the share of the warm-up: rising in a straight line, never 0, whole at step ``warmup_steps``."""
    if warmup_steps >= steps:
        raise InvalidConfigError(
            f"warmup_steps must be fewer than the {steps} steps of the training, got {warmup_steps}."
        )
    return min(1.0, (step + 1) / (warmup_steps + 1))


def _progress(step: int, warmup_steps: int, steps: int) -> float:
    """Return how much of the training after the warm-up is over, 0 to 1."""
    return min(1.0, max(0, step - warmup_steps) / (steps - warmup_steps))
