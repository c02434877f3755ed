"""Every norm compiles to one graph and can be exported, with the numbers it has without."""

import copy
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from tests.norms.cases import CHANNELS, Case, both_modes, every_norm
from tests.norms.maps import random_map

Results = dict[str, Tensor]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Forget what was compiled before, so that no test runs into the limit of recompilations."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def results(run: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> Results:
    """Return output, gradients and running statistics after one step of `run`, which stands for `layer`."""
    leaf = x.clone().requires_grad_()
    y = run(leaf)
    y.backward(random_map(*x.shape, seed=3))
    assert leaf.grad is not None
    gradients = {name: value.grad for name, value in layer.named_parameters() if value.grad is not None}
    return {"y": y.detach(), "x": leaf.grad} | gradients | dict(layer.named_buffers())


def assert_same(got: Results, expected: Results) -> None:
    """Check that two dictionaries hold the same numbers."""
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@every_norm
@both_modes
def test_it_compiles_to_one_graph(case: Case, training: bool) -> None:
    layer, x = case.layer(training=training), random_map(2, CHANNELS, 9, 14, mean=2)
    twin = copy.deepcopy(layer)

    # As the default compiler this one computes cheap values again in the backward pass, but it needs no g++.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager_decomp_partition")

    assert_same(results(compiled, layer, x), results(twin, twin, x))


@every_norm
@both_modes
def test_it_can_be_exported(case: Case, training: bool) -> None:
    layer, x = case.layer(training=training), random_map(2, CHANNELS, 9, 14, mean=2)

    exported = export(copy.deepcopy(layer), (x,)).module()

    assert_same({"y": exported(x)}, {"y": layer(x)})
    assert_same(dict(exported.named_buffers()), dict(layer.named_buffers()))


@every_norm
def test_one_export_serves_maps_of_any_size(case: Case) -> None:
    layer, example = case.layer(training=False), random_map(2, CHANNELS, 9, 14)
    any_size = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}

    exported = export(copy.deepcopy(layer), (example,), dynamic_shapes=(any_size,)).module()

    for size in [(3, 20, 33), (1, 60, 90), (2, 3, 4)]:
        x = random_map(size[0], CHANNELS, *size[1:], mean=2)
        torch.testing.assert_close(exported(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile writes C++, and there is no g++ to build it")
@every_norm
@both_modes
def test_the_default_compiler_changes_no_number(case: Case, training: bool) -> None:
    layer, x = case.layer(training=training), random_map(2, CHANNELS, 9, 14, mean=2)
    twin = copy.deepcopy(layer)

    compiled = torch.compile(layer, fullgraph=True)

    assert_same(results(compiled, layer, x), results(twin, twin, x))
