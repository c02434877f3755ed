"""The Triton kernels of Local Context Norm: in Triton's interpreter, compiled for a GPU, and where they do not work."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Literal

import pytest
import torch
from torch import Tensor

from geonorm.errors import GeonormWarning
from geonorm.norms import gpu
from geonorm.norms.local_context import local_context_norm, local_context_norm_backward
from tests.norms import oracles
from tests.norms.maps import random_map, relative_rms

pytest.importorskip("triton", reason="Triton is not installed")

COMPILED = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
"""Environment of processes in which kernels are compiled, not interpreted as in this one (tests/conftest.py)."""
BORDERS: list[Literal["nearest", "clip"]] = ["nearest", "clip"]

both_borders = pytest.mark.parametrize("border", BORDERS)


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """Return the kernels as Triton's interpreter runs them, on small tiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "TILE", 16)
        patch.setattr(gpu, "BLOCK", 16)
        yield importlib.import_module("geonorm.norms.gpu_kernels")


def numbers(channels: int) -> tuple[Tensor, Tensor]:
    """Return a weight and a bias that give nothing away."""
    return torch.linspace(0.5, 1.5, channels), torch.linspace(-1, 1, channels)


@both_borders
@pytest.mark.parametrize("window", [(3, 5), (4, 6), (1, 7), (9, 2), (20, 3), (20, 20)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(
    ("group_size", "mean"), [(2, 0), (4, 1000), pytest.param(1, 10, marks=pytest.mark.slow)], ids=str
)
def test_they_compute_what_the_oracle_computes(
    group_size: int,
    mean: float,
    memory_format: torch.memory_format,
    window: tuple[int, int],
    border: Literal["nearest", "clip"],
    kernels: ModuleType,
) -> None:
    x = random_map(2, 4, 5, 7, mean=mean).contiguous(memory_format=memory_format)
    upstream, (weight, bias) = random_map(2, 4, 5, 7, seed=3), numbers(4)
    wide = [value.double() for value in (x, weight, bias)]
    expected, wide_mean, wide_rstd = local_context_norm(*wide, group_size, list(window), border, 1e-5)
    expected_grads = local_context_norm_backward(
        upstream.double(), wide[0], wide[1], wide_mean, wide_rstd, group_size, list(window), border
    )

    y, kept_mean, rstd = gpu.forward(kernels, x, weight, bias, group_size, window, border, 1e-5, keep=True)
    grads = gpu.backward(kernels, upstream, x, weight, kept_mean, rstd, group_size, window, border)

    bound = max(2e-6, 4e-8 * mean)
    assert y.stride() == torch.empty_like(x).stride()
    assert relative_rms(y, expected=expected) < bound
    torch.testing.assert_close(kept_mean.double(), wide_mean, rtol=2e-7, atol=1e-6)
    assert relative_rms(rstd, expected=wide_rstd) < 3e-6
    for one, other in zip(grads, expected_grads, strict=True):
        assert relative_rms(one, expected=other) < 3 * bound


@both_borders
def test_half_precision_maps_are_normalized_in_float32(border: Literal["nearest", "clip"], kernels: ModuleType) -> None:
    x, (weight, bias) = random_map(1, 4, 9, 13, mean=3).bfloat16(), numbers(4)
    expected, *_ = local_context_norm(x.double(), weight.double(), bias.double(), 2, [3, 5], border, 1e-5)

    y, mean, rstd = gpu.forward(kernels, x, weight, bias, 2, (3, 5), border, 1e-5, keep=True)
    grad, *_ = gpu.backward(kernels, x, x, weight, mean, rstd, 2, (3, 5), border)

    assert y.dtype == grad.dtype == torch.bfloat16
    assert mean.dtype == rstd.dtype == torch.float32
    torch.testing.assert_close(y, expected.bfloat16(), rtol=2e-2, atol=1e-2)


@both_borders
def test_a_slice_and_an_expanded_gradient_are_read_where_they_lie(
    border: Literal["nearest", "clip"], kernels: ModuleType
) -> None:
    x, (weight, bias) = random_map(2, 4, 8, 12)[:, :, 2:7, 3:10], numbers(4)
    ones = torch.ones(()).expand(2, 4, 5, 7)

    y, mean, rstd = gpu.forward(kernels, x, weight, bias, 2, (3, 5), border, 1e-5, keep=True)
    grads = gpu.backward(kernels, ones, x, weight, mean, rstd, 2, (3, 5), border)

    other, mean, rstd = gpu.forward(kernels, x.contiguous(), weight, bias, 2, (3, 5), border, 1e-5, keep=True)
    others = gpu.backward(kernels, ones.contiguous(), x.contiguous(), weight, mean, rstd, 2, (3, 5), border)
    torch.testing.assert_close(y, other, rtol=0, atol=0)
    torch.testing.assert_close(grads, others, rtol=0, atol=0)


@both_borders
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")  # of numpy, in the interpreter
@pytest.mark.parametrize("intruder", [1e6, 1e30, float("inf"), float("nan")])
@pytest.mark.parametrize(("channel", "row", "col"), [(0, 0, 0), (1, 2, 5)])
def test_a_strange_cell_touches_only_the_windows_that_hold_it(
    channel: int, row: int, col: int, intruder: float, border: Literal["nearest", "clip"], kernels: ModuleType
) -> None:
    x, (weight, bias) = random_map(1, 4, 5, 9), numbers(4)
    strange = x.clone()
    strange[0, channel, row, col] = intruder

    clean, *_ = gpu.forward(kernels, x, weight, bias, 2, (3, 5), border, 1e-5, keep=False)
    changed, *_ = gpu.forward(kernels, strange, weight, bias, 2, (3, 5), border, 1e-5, keep=False)

    rows = torch.tensor([top <= row < bottom for top, bottom in oracles.spans(5, 3, border)])
    cols = torch.tensor([left <= col < right for left, right in oracles.spans(9, 5, border)])
    assert torch.equal((changed != clean)[0, :2].any(0), rows[:, None] & cols)
    assert torch.equal(changed[0, 2:], clean[0, 2:])


@both_borders
def test_the_gradient_far_from_an_outlier_keeps_its_digits(
    border: Literal["nearest", "clip"], kernels: ModuleType
) -> None:
    x, upstream, (weight, bias) = random_map(1, 4, 9, 13), random_map(1, 4, 9, 13, seed=3), numbers(4)
    x[0, 0, 0, 0] = 1e6
    wide = [value.double() for value in (x, weight, bias)]
    _, mean, rstd = local_context_norm(*wide, 2, [3, 3], border, 1e-5)
    expected, *_ = local_context_norm_backward(upstream.double(), *wide[:2], mean, rstd, 2, [3, 3], border)

    _, mean, rstd = gpu.forward(kernels, x, weight, bias, 2, (3, 3), border, 1e-5, keep=True)
    grad, *_ = gpu.backward(kernels, upstream, x, weight, mean, rstd, 2, (3, 3), border)

    assert relative_rms(grad[..., 6:, 6:], expected=expected[..., 6:, 6:]) < 2e-6


@both_borders
def test_turned_maps_and_parameters_with_gaps_are_read_right(
    border: Literal["nearest", "clip"], kernels: ModuleType
) -> None:
    x, (weight, bias) = random_map(2, 4, 5, 7), numbers(4)
    apart = torch.zeros(8)
    apart[::2] = weight

    y, *_ = gpu.forward(kernels, x, weight, bias, 2, (3, 5), border, 1e-5, keep=False)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    other, *_ = gpu.forward(kernels, turned, apart[::2], bias, 2, (3, 5), border, 1e-5, keep=False)

    assert other.stride() == torch.empty_like(turned).stride()
    assert torch.equal(y, other)


@both_borders
def test_statistics_are_those_of_each_window(border: Literal["nearest", "clip"], kernels: ModuleType) -> None:
    x = random_map(2, 4, 5, 7, mean=5)
    mean, variance = oracles.box_moments(x, window=(4, 5), group_size=2, border=border)

    got_mean, got_variance = gpu.statistics(kernels, x, 2, (4, 5), border)

    assert relative_rms(got_mean, expected=mean) < 1e-6
    assert relative_rms(got_variance, expected=variance) < 3e-6


def test_they_pass_their_own_check(kernels: ModuleType) -> None:
    assert gpu._fault(kernels, torch.device("cpu")) is None


@pytest.mark.parametrize(("name", "said"), [("forward", "output"), ("backward", "gradient")])
def test_wrong_numbers_are_found_by_their_own_check(
    name: str, said: str, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(gpu, name)

    def wrong(*args: object, **how: object) -> tuple[Tensor, ...]:
        first, *others = right(*args, **how)
        return first + 1e-3, *others

    monkeypatch.setattr(gpu, name, wrong)

    fault = gpu._fault(kernels, torch.device("cpu"))

    assert fault is not None
    assert said in fault


@pytest.mark.parametrize("error", [RuntimeError("no ptxas"), ImportError("No module named 'triton'")], ids=str)
def test_where_they_do_not_work_one_warning_says_so(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise error

    monkeypatch.setattr(gpu, "_fault", fail)
    gpu._working_kernels.cache_clear()

    with pytest.warns(GeonormWarning, match=rf"(?s)plain torch.*{type(error).__name__}: {error}"):
        assert gpu._working_kernels(torch.device("meta")) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gpu._working_kernels(torch.device("meta")) is None
    gpu._working_kernels.cache_clear()


def test_maps_on_the_cpu_are_left_to_others() -> None:
    assert gpu.kernels_for(torch.rand(1, 4, 9, 9), (3, 3)) is None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_they_compile_for_a_gpu_that_need_not_be_there(dtype: str) -> None:
    script = (
        "from triton import compile\n"
        "from triton.backends.compiler import GPUTarget\n"
        "from triton.compiler import ASTSource\n"
        "from geonorm.norms import gpu_kernels\n"
        "maps = {'x', 'y', 'grad', 'grad_x'}\n"
        "planes = {'start', 'mean', 'var', 'start_out', 'mean_out', 'var_out', 'kept_mean', 'kept_rstd', 'weight',\n"
        "          'bias', 'rstd', 'sums'}\n"
        "known = {'group_size': 4, 'block_cells': 1024, 'keep': True, 'at_once': 64, 'wide': 32}\n"
        "for name in ('group_moments', 'slide', 'normalize', 'weigh', 'pass_on'):\n"
        "    kernel = getattr(gpu_kernels, name)\n"
        "    types, constants = {}, {}\n"
        "    for place, argument in enumerate(kernel.arg_names):\n"
        "        if argument in known: types[argument], constants[(place,)] = 'constexpr', known[argument]\n"
        f"        elif argument in maps: types[argument] = '*{dtype}'\n"
        "        elif argument in planes: types[argument] = '*fp32'\n"
        "        elif argument in ('of_mean', 'of_var'): types[argument] = '*fp64'\n"
        "        else: types[argument] = 'fp32' if argument == 'eps' else 'i32'\n"
        "    source = ASTSource(kernel, types, constexprs=constants)\n"
        "    assert 'cubin' in compile(source, target=GPUTarget('cuda', 90, 32)).asm\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=COMPILED)

    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@both_borders
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_a_gpu(dtype: str, border: str) -> None:
    script = (
        "import torch\n"
        "from geonorm.norms import gpu\n"
        "from geonorm.norms.local_context import local_context_norm\n"
        f"dtype, how = torch.{dtype}, (4, [31, 30], '{border}', 1e-5)\n"
        "torch.manual_seed(0)\n"
        "x = (torch.randn(2, 16, 120, 200) + 5).to('cuda', dtype).requires_grad_()\n"
        "weight, bias = (torch.rand(16, device='cuda').requires_grad_() for _ in range(2))\n"
        "wide = [value.detach().double().cpu().requires_grad_() for value in (x, weight, bias)]\n"
        "upstream = torch.randn(2, 16, 120, 200).to('cuda', dtype)\n"
        "assert gpu.kernels_for(x, (31, 30)) is not None\n"
        "y, *_ = local_context_norm(x, weight, bias, *how)\n"
        "expected, *_ = local_context_norm(*wide, *how)\n"
        "got = [y, *torch.autograd.grad(y, [x, weight, bias], upstream)]\n"
        "others = [expected, *torch.autograd.grad(expected, wide, upstream.double().cpu())]\n"
        "for one, other in zip(got, others):\n"
        "    error = (one.double().cpu() - other).square().mean().sqrt() / other.square().mean().sqrt()\n"
        "    assert error < max(1e-5, 4 * torch.finfo(dtype).eps), error\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=COMPILED)

    assert done.returncode == 0, done.stderr
