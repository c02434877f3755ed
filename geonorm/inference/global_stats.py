"""Group, Layer and Instance Norm with the statistics of the whole raster, so that no label depends on a tile.

Such a norm with known statistics is one affine map per channel, and sees nothing beyond its pixel. The statistics of
the first norm follow from what comes before it, those of the second from what comes before that, with the first one
known: one pass over the raster for each norm, up to it, and then one to label. A raster that fits into memory is passed
whole, once, for all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from geonorm.errors import InvalidConfigError, name_some
from geonorm.inference.activations import activations, stream_bytes
from geonorm.inference.engines import usual_step_px, whole_strides
from geonorm.models.geometry import seen_maps, trial
from geonorm.models.predictor import Precision, predictor
from geonorm.models.rescale import rescale_of
from geonorm.models.row_predictor import RowPredictor, RowRun, row_network, trial_image
from geonorm.models.rows import RowNetwork
from geonorm.norms import FrozenBatchNorm, GroupNorm
from geonorm.raster.read import RasterSource
from geonorm.tasks.checkpoint import TrainedModel
from geonorm.tiling.engine import predict_whole
from geonorm.tiling.plan import Plan
from geonorm.tiling.rows import pass_rows
from geonorm.tiling.supply import Supply

Statistics = dict[str, tuple[list[float], list[float]]]
"""Mean and biased variance of each channel, by the name of the norm."""

AT_ONCE_SHARE = 1 / 3
"""Of the free memory, what the whole raster may take on its way through the network."""


@dataclass(frozen=True, kw_only=True)
class GlobalStats:
    """What is to be gathered before a raster is labelled."""

    network: nn.Module
    """As it was trained."""
    model: TrainedModel
    """The same with its statistics fixed, to those of `fill`."""
    names: tuple[str, ...]
    """The norms, in the order they run."""
    shares: tuple[float, ...]
    """What part of the network's compute lies before each of them."""
    at_once: bool
    """Whether the raster is passed whole."""

    @property
    def cost(self) -> float:
        """How often all of the network's compute goes into it."""
        return 1.0 if self.at_once else sum(self.shares)

    def in_words(self) -> str:
        """Return what it takes as text for a user."""
        if self.at_once:
            return f"stats    of the whole raster, for {len(self.names)} norms, from one pass over all of it at once"
        passes = f"{len(self.names)} passes before it, {self.cost:.1f} times the compute in all"
        return f"stats    of the whole raster, gathered in {passes}"

    def gather(
        self, reader: RasterSource, plan: Plan, *, fill: Tensor, precision: Precision, progress: bool
    ) -> Statistics:
        """Return the statistics, and fix the model's to them.

        Args:
            reader: The raster.
            plan: Its grid.
            fill: What pixels without data hold.
            precision: See `geonorm.models.predictor`.
            progress: Show a progress bar.
        """
        device = rescale_of(self.network).mean.device
        if self.at_once:
            found = _at_once(self.network, self.names, reader, plan, fill, precision)
            self.fix(found)
            return found
        found = {}
        image = trial_image(self.network, self.model.geometry)
        rows, cols = (axis.wholes[0].px for axis in plan.axes)
        with tqdm(total=rows * len(self.names), unit="row", desc="statistics", disable=not progress) as bar:
            for name in self.names:
                up_to = UpTo(self.model.network, name)
                network = row_network(up_to, image, device, precision)
                step_px = _step_px(cols, network, plan, device)
                moments = Moments(_norm(self.network, name).num_groups)

                def run(height: int, up_to: nn.Module = up_to, network: RowNetwork = network) -> RowRun:
                    return RowRun(network.stream(height), device, precision)

                with reader.reopen() as ahead:
                    supply = Supply([ahead.read], plan, block_rows=ahead.block_shape[0], dtype=ahead.dtype, fill=fill)
                    with supply:
                        for maps in pass_rows(supply, run, plan, step_px, on_rows=bar.update):
                            moments.add(maps)
                found[name] = moments.of_channels(_norm(self.network, name).num_features)
                self.fix({name: found[name]})
        return found

    def fix(self, statistics: Mapping[str, tuple[list[float], list[float]]]) -> None:
        """Fix the model's statistics."""
        for name, (mean, var) in statistics.items():
            frozen = self.model.network.get_submodule(name)
            frozen.get_buffer("running_mean").copy_(torch.tensor(mean, dtype=torch.float64))
            frozen.get_buffer("running_var").copy_(torch.tensor(var, dtype=torch.float64))


def plan_global_stats(
    model: TrainedModel, plan: Plan, *, bands: int, dtype: torch.dtype, device: str, memory_bytes: int
) -> GlobalStats:
    """Return how the statistics of a raster are gathered; nothing is read yet.

    Args:
        model: A network with Group, Layer or Instance Norm.
        plan: The grid of the raster.
        bands: Its bands.
        dtype: Of its values.
        device: Where it is computed.
        memory_bytes: Free memory there.

    Raises:
        InvalidConfigError: It has no such norm, or something else sees the whole input, too.
    """
    network = model.network
    names = tuple(seen_maps(network, lambda module: isinstance(module, GroupNorm)))
    if not names:
        raise InvalidConfigError("global_stats is for networks with Group, Layer or Instance Norm; this one has none.")
    fixed = copy.deepcopy(network).eval()
    for name in names:
        parent, _, key = name.rpartition(".")
        fixed.get_submodule(parent)._modules[key] = _frozen(_norm(network, name))
    frozen = replace(model, network=fixed)
    if frozen.geometry.unbounded:
        raise InvalidConfigError(
            f"global_stats is of no use here: {name_some(frozen.geometry.unbounded)} see the whole input, too."
        )
    rows, cols = (axis.wholes[0].px for axis in plan.axes)
    on = torch.device(device)
    most_bytes = AT_ONCE_SHARE * memory_bytes
    at_once = activations(predictor(network, on), (1, bands, rows, cols), dtype, on).peak_bytes <= most_bytes
    if not at_once:
        by_rows = RowPredictor(fixed, frozen.geometry, on)
        step_px = _step_px(cols, by_rows.rows, plan, on)
        kept, _ = stream_bytes(by_rows, frozen.geometry, width_px=cols, step_px=step_px)
        if kept > most_bytes:
            raise InvalidConfigError(
                f"global_stats keeps rows of the whole width, which take {kept / 1e9:.1f} GB, more than a third of the "
                f"{memory_bytes / 1e9:.1f} GB of free memory."
            )
    return GlobalStats(network=network, model=frozen, names=names, shares=_shares(network, names), at_once=at_once)


def _step_px(width_px: int, network: RowNetwork, plan: Plan, device: torch.device) -> int:
    return whole_strides(usual_step_px(width_px, network.largest_window, device), plan.network.stride_px)


class Moments:
    """Mean and variance of groups of channels, of maps that come in parts, in float64."""

    def __init__(self, num_groups: int) -> None:
        """Take the number of groups."""
        self._num_groups = num_groups
        self._count = 0
        self._mean = torch.zeros(num_groups, dtype=torch.float64)
        self._sum_of_squares = torch.zeros(num_groups, dtype=torch.float64)

    def add(self, maps: Tensor) -> None:
        """Take some rows of a map, ``(1, C, h, W)``; merged by Chan's formula."""
        for rows in maps.split(ROWS_AT_ONCE, dim=2):  # float64 takes memory
            values = rows[0].to(torch.float64).reshape(self._num_groups, -1)
            var, mean = (value.cpu() for value in torch.var_mean(values, dim=1, correction=0))
            count = values.shape[1]
            total = self._count + count
            step = mean - self._mean
            self._sum_of_squares += var * count + step**2 * (self._count * count / total)
            self._mean += step * (count / total)
            self._count = total

    def of_channels(self, num_features: int) -> tuple[list[float], list[float]]:
        """Return mean and biased variance of each channel."""
        size = num_features // self._num_groups
        mean, var = self._mean, self._sum_of_squares / self._count
        return mean.repeat_interleave(size).tolist(), var.repeat_interleave(size).tolist()


ROWS_AT_ONCE = 32


class UpTo(nn.Module):
    """A network that ends with what one of its modules gets."""

    def __init__(self, network: nn.Module, name: str) -> None:
        """Take a network and the name of the module."""
        super().__init__()
        self.network = network
        self.name = name

    def forward(self, image: Tensor) -> Tensor:
        """Return the module's input."""

        def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            raise _ReachedError(inputs[0])

        handle = self.network.get_submodule(self.name).register_forward_pre_hook(stop)
        try:
            self.network(image)
        except _ReachedError as reached:
            return reached.map
        finally:
            handle.remove()
        raise InvalidConfigError(f"the network does not call {self.name}.")


class _ReachedError(Exception):
    def __init__(self, map: Tensor) -> None:
        super().__init__()
        self.map = map


def _at_once(
    network: nn.Module, names: tuple[str, ...], reader: RasterSource, plan: Plan, fill: Tensor, precision: Precision
) -> Statistics:
    """Return the statistics that the norms take in one pass over the whole raster."""
    moments = {name: Moments(_norm(network, name).num_groups) for name in names}
    answer = predictor(network, rescale_of(network).mean.device, precision=precision)
    with _noting(network, moments):
        predict_whole(reader.read, answer, plan, fill=fill)
    return {name: found.of_channels(_norm(network, name).num_features) for name, found in moments.items()}


@contextmanager
def _noting(network: nn.Module, moments: Mapping[str, Moments]) -> Iterator[None]:
    def noted(found: Moments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: found.add(inputs[0])

    handles = [network.get_submodule(name).register_forward_pre_hook(noted(one)) for name, one in moments.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _frozen(norm: GroupNorm) -> FrozenBatchNorm:
    frozen = FrozenBatchNorm(norm.num_features, eps=norm.eps).to(norm.weight.device)
    with torch.no_grad():
        frozen.weight.copy_(norm.weight)
        frozen.bias.copy_(norm.bias)
    return frozen.eval()


def _norm(network: nn.Module, name: str) -> GroupNorm:
    norm = network.get_submodule(name)
    assert isinstance(norm, GroupNorm)
    return norm


def _shares(network: nn.Module, names: tuple[str, ...]) -> tuple[float, ...]:
    """Return what part of the operations lies before each norm, in an image without values."""
    ghost, image = trial(network)
    before: list[float] = []
    counter = FlopCounterMode(display=False)
    for name in names:
        ghost.get_submodule(name).register_forward_pre_hook(lambda *_: before.append(counter.get_total_flops()))
    with torch.no_grad(), counter:
        ghost(image)
    whole = max(1, counter.get_total_flops())
    return tuple(flops / whole for flops in before[: len(names)])
