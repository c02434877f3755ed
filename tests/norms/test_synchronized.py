"""Two processes with a part of the batch each are one process with the whole batch."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from geonorm.norms import BatchNorm, BatchRenorm, SwitchableNorm, average_batches, synchronize_norms
from geonorm.norms.synchronized import batch_moments
from tests.norms.maps import random_map

CHANNELS, SAMPLES, STEPS = 6, 5, 3
NORMS: dict[str, Any] = {
    "BatchNorm": BatchNorm,
    "SwitchableNorm": SwitchableNorm,
    "SwitchableNorm-tied": partial(SwitchableNorm, tied=True, pool=("BN", "GN"), group_size=2),
    "BatchRenorm": partial(BatchRenorm, warmup_steps=1, ramp_steps=1),
}


def network_of(norm: Any) -> nn.Module:
    """Return a small network with two norms, the same in every process."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, CHANNELS, 3, padding=1), norm(CHANNELS), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3)]
    return nn.Sequential(*layers, norm(CHANNELS)).double()


def batch_of(step: int) -> Tensor:
    """Return the whole batch of a step."""
    samples = torch.arange(SAMPLES).reshape(-1, 1, 1, 1)
    return random_map(SAMPLES, 3, 7, 9, seed=step, mean=step, dtype=torch.float64) * (1 + samples) + samples


def train(network: nn.Module, part: slice) -> dict[str, Tensor]:
    """Take some steps of plain descent on a part of each batch; return outputs, state and gradients, summed over all.

    The loss is a sum over samples, so that gradients of the parts add up to those of the whole.
    """
    facts: dict[str, Tensor] = {}
    for step in range(STEPS):
        x = batch_of(step)[part].requires_grad_()
        y = network(x)
        network.zero_grad()
        (y * y.detach().roll(1, dims=3)).sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            if part != slice(None):
                distributed.all_reduce(parameter.grad)
            facts[f"{step} gradient of {name}"] = parameter.grad.clone()
            parameter.data -= 1e-4 * parameter.grad
        facts[f"{step} output"] = y.detach()
        assert x.grad is not None
        facts[f"{step} gradient of the input"] = x.grad
    average_batches(network, (batch_of(step)[part] for step in range(STEPS)))
    return facts | {f"averaged {name}": value for name, value in network.state_dict().items()}


def work(rank: int, folder: str) -> None:
    """Be one of two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    part = (slice(0, 2), slice(2, SAMPLES))[rank]
    facts = {}
    for name, norm in NORMS.items():
        network = network_of(norm)
        assert synchronize_norms(network) == 2
        facts[name] = train(network, part)
    torch.save(facts, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """Return what two processes computed."""
    folder = tmp_path_factory.mktemp("processes")
    spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_two_processes_with_unequal_parts_are_one_with_the_whole_batch(
    name: str, of_two: list[dict[str, dict[str, Tensor]]]
) -> None:
    whole = train(network_of(NORMS[name]), slice(None))

    for fact, expected in whole.items():
        first, second = (facts[name][fact] for facts in of_two)
        if fact.endswith(("output", "gradient of the input")):
            torch.testing.assert_close(torch.cat([first, second]), expected, rtol=1e-9, atol=1e-9, msg=fact)
        else:
            torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-9, msg=fact)
            torch.testing.assert_close(second, expected, rtol=1e-9, atol=1e-9, msg=fact)


def test_alone_a_synchronized_layer_is_as_before() -> None:
    for name, norm in NORMS.items():
        plain, synchronized = network_of(norm), network_of(norm)
        synchronize_norms(synchronized)
        expected = train(plain, slice(None))

        got = train(synchronized, slice(None))

        for fact, value in expected.items():
            torch.testing.assert_close(got[fact], value, rtol=1e-9, atol=1e-9, msg=f"{name}: {fact}")


def test_synchronization_can_be_switched_off_again() -> None:
    network = network_of(BatchNorm)
    synchronize_norms(network)
    assert synchronize_norms(network, on=False) == 2

    assert not any(module.synchronized for module in network.modules() if isinstance(module, BatchNorm))


def test_the_moments_of_samples_merge_to_those_of_the_batch() -> None:
    x = random_map(4, CHANNELS, 5, 6, mean=100, dtype=torch.float64) + torch.arange(4).reshape(-1, 1, 1, 1)
    var, mean = torch.var_mean(x, dim=(2, 3), correction=0)

    merged_mean, merged_var, count = batch_moments(mean, var, cells=30, synchronized=False)

    torch.testing.assert_close(merged_mean, x.mean(dim=(0, 2, 3)), rtol=1e-12, atol=0)
    torch.testing.assert_close(merged_var, x.var(dim=(0, 2, 3), correction=0), rtol=1e-10, atol=0)
    assert count == 120
