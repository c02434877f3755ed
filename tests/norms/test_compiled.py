"""The compiled loops beside plain torch, and what happens where they cannot be had."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geonorm.errors import GeonormWarning
from geonorm.norms import LocalContextNorm, SwitchableNorm, compiled
from geonorm.norms.local_context import local_context_norm, local_context_norm_of_rows, local_statistics
from geonorm.norms.planes import plane_affine, plane_moments
from geonorm.norms.switchable import Normalizer
from tests.norms import oracles
from tests.norms.maps import random_map, relative_rms, with_random_state
from tests.norms.oracles import Border

BORDERS: list[Literal["nearest", "clip"]] = ["nearest", "clip"]


def operator(x: Tensor, group_size: int, window: list[int], border: str, *, keep: bool = True) -> tuple[Tensor, ...]:
    """Return what the operator returns for weights and biases that differ."""
    weight = torch.linspace(0.5, 1.5, x.shape[1])
    return local_context_norm(x, weight, weight - 1, group_size, window, border, 1e-5, keep)


@settings(deadline=None, max_examples=150)
@given(
    samples=st.integers(1, 3),
    groups=st.integers(1, 5),
    group_size=st.integers(1, 5),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    window=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    border=st.sampled_from(BORDERS),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    threads=st.sampled_from([1, 2, 5]),
)
def test_the_loops_compute_what_plain_torch_computes(
    samples: int,
    groups: int,
    group_size: int,
    height: int,
    width: int,
    window: tuple[int, int],
    border: Literal["nearest", "clip"],
    memory_format: torch.memory_format,
    dtype: torch.dtype,
    threads: int,
    monkeypatch_values_per_thread: None,
) -> None:
    channels = groups * group_size
    layer = with_random_state(LocalContextNorm(channels, window_cells=window, group_size=group_size, border=border))
    x = random_map(samples, channels, height, width, mean=2).to(dtype).contiguous(memory_format=memory_format)
    upstream = random_map(samples, channels, height, width, seed=3).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    got = torch.autograd.grad(y, [leaf, layer.weight, layer.bias], upstream)
    with compiled.plain_torch():
        expected_y = layer(leaf)
        expected = torch.autograd.grad(expected_y, [leaf, layer.weight, layer.bias], upstream)

    torch.set_num_threads(before)
    step = torch.finfo(dtype).eps
    # Windows of a few cells may hold nearly equal values, of whose deviation float32 knows little.
    rtol, atol = 4 * step, max(2e-5 if min(window) * group_size > 4 else 2e-4, 4 * step)
    torch.testing.assert_close(y, expected_y, rtol=rtol, atol=atol)
    for one, other in zip(got, expected, strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one / scale, other / scale, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def monkeypatch_values_per_thread() -> Iterator[None]:
    """Spread even the smallest map over the threads."""
    before, compiled.VALUES_PER_THREAD = compiled.VALUES_PER_THREAD, 1
    yield
    compiled.VALUES_PER_THREAD = before


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("window", [(31, 31), (7, 90), (91, 3), (200, 200)], ids=str)
def test_what_is_kept_for_the_gradient_is_the_mean_and_the_reciprocal_deviation(
    window: tuple[int, int], border: Literal["nearest", "clip"]
) -> None:
    x = random_map(2, 8, 120, 130, mean=5)
    mean, variance = oracles.box_moments(x, window=window, group_size=4, border=border)

    _, kept_mean, kept_rstd = operator(x, 4, list(window), border)

    assert relative_rms(kept_mean, expected=mean) < 1e-6
    assert relative_rms(kept_rstd, expected=(variance + 1e-5).rsqrt()) < 1e-6


def test_nothing_is_kept_without_a_gradient() -> None:
    x = random_map(1, 8, 20, 30)

    y, mean, rstd = operator(x, 4, [5, 5], "nearest", keep=False)

    assert torch.equal(y, operator(x, 4, [5, 5], "nearest")[0])
    assert mean.numel() == rstd.numel() == 0


def test_a_gradient_through_what_was_computed_without_is_refused() -> None:
    x = random_map(1, 8, 20, 30).requires_grad_()

    y, _, _ = operator(x, 4, [5, 5], "nearest", keep=False)

    with pytest.raises(RuntimeError, match="without gradients"):
        y.sum().backward()


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("group_size", [1, 4, 6])
@pytest.mark.parametrize("threads", [2, 3, 16])
@pytest.mark.usefixtures("monkeypatch_values_per_thread")
def test_rows_cut_into_strips_for_many_threads_keep_their_bits(
    threads: int, group_size: int, border: Literal["nearest", "clip"]
) -> None:
    x = random_map(1, group_size, 83, 140, mean=20)
    expected = operator(x, group_size, [31, 14], border)
    before = torch.get_num_threads()

    torch.set_num_threads(threads)
    got = operator(x, group_size, [31, 14], border)
    torch.set_num_threads(before)

    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@settings(deadline=None, max_examples=60)
@given(
    ends=st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda ends: ends[0] != ends[1]),
    window=st.tuples(st.integers(1, 50), st.integers(1, 20)),
    border=st.sampled_from(BORDERS),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    threads=st.sampled_from([1, 3]),
)
def test_some_rows_have_the_bits_that_they_have_in_the_whole_map(
    ends: tuple[int, int],
    window: tuple[int, int],
    border: Literal["nearest", "clip"],
    memory_format: torch.memory_format,
    dtype: torch.dtype,
    threads: int,
    monkeypatch_values_per_thread: None,
) -> None:
    x = random_map(2, 6, 40, 17).to(dtype).contiguous(memory_format=memory_format)
    weight = torch.linspace(0.5, 1.5, 6)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = range(*sorted(ends))
        some = local_context_norm_of_rows(rows, x, weight, weight - 1, 3, [*window], border, 1e-5)
        whole = operator(x, 3, [*window], border, keep=False)[0]
    finally:
        torch.set_num_threads(before)

    torch.testing.assert_close(some, whole[:, :, rows.start : rows.stop], rtol=0, atol=0)


def test_a_map_in_large_pages_is_as_any_other() -> None:
    x = random_map(1, 8, 600, 700)  # 13 MiB
    moments = oracles.box_moments(x, window=(31, 31), group_size=4, border="nearest")
    mean, variance = (oracles.per_channel(plane, 4) for plane in moments)
    expected = (x.double() - mean) / (variance + 1e-5).sqrt()

    with torch.no_grad():
        y = LocalContextNorm(8, window_cells=31)(x)

    assert relative_rms(y, expected=expected) < 2e-6


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("keep", [True, False])
def test_the_operator_is_well_behaved(keep: bool) -> None:
    x = random_map(2, 4, 9, 7).requires_grad_(keep)
    weight, bias = (torch.rand(4).requires_grad_(keep) for _ in range(2))

    torch.library.opcheck(local_context_norm, (x, weight, bias, 2, [3, 5], "nearest", 1e-5, keep))


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels last"])
@pytest.mark.parametrize(("mean", "window", "border"), [(1000, 31, "nearest"), (0, 227, "clip")])
def test_a_map_of_8192_cells_a_side_is_as_accurate_at_both_ends_and_in_the_middle(
    mean: float, window: int, border: Border, memory_format: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(1, 4, 8192, 8192).normal_(mean=mean, generator=generator).contiguous(memory_format=memory_format)
    layer = LocalContextNorm(4, window_cells=window, border=border)

    with torch.inference_mode():
        y = layer(x)

    for top, bottom in ((0, 40), (4100, 4140), (8152, 8192)):
        first, end = max(0, top - 2 * window), min(8192, bottom + 2 * window)  # what these rows see, and more
        rows = x[:, :, first:end].contiguous()
        moments = oracles.box_moments(rows, window=(window, window), group_size=4, border=border)
        middle, variance = (oracles.per_channel(plane, 4) for plane in moments)
        expected = ((rows.double() - middle) / (variance + 1e-5).sqrt())[:, :, top - first : bottom - first]
        assert relative_rms(y[:, :, top:bottom], expected=expected) < max(2e-6, 4e-8 * mean)


# --- where they cannot be had -----------------------------------------------------------------------


@pytest.fixture
def fresh_loops() -> Iterator[None]:
    """Look for the loops anew, in the test and after it."""
    for cached in (compiled._loops, compiled._warn_of):
        cached.cache_clear()
    yield
    for cached in (compiled._loops, compiled._warn_of):
        cached.cache_clear()


@pytest.mark.usefixtures("fresh_loops")
@pytest.mark.parametrize(
    "error", [ImportError("No module named 'numba'"), OSError("no libLLVM"), RuntimeError("numba and numpy disagree")]
)
def test_without_numba_it_says_so_once_and_computes_in_plain_torch(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> ModuleType:
        raise error

    x = random_map(1, 8, 20, 30)
    with compiled.plain_torch():
        expected = operator(x, 4, [5, 5], "nearest")
        expected_statistics = local_statistics(x, 4, [5, 5], "nearest")
    monkeypatch.setattr(importlib, "import_module", refuse)

    with pytest.warns(GeonormWarning, match=rf"(?s)plain torch.*{error}.*pip install numba"):
        got = operator(x, 4, [5, 5], "nearest")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = operator(x, 4, [5, 5], "nearest")
        statistics = local_statistics(x, 4, [5, 5], "nearest")

    for way in (got, again):
        assert all(torch.equal(one, other) for one, other in zip(way, expected, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(statistics, expected_statistics, strict=True))


@pytest.mark.slow
def test_where_nothing_can_be_written_it_compiles_for_this_process_alone() -> None:
    script = (
        "import numba.core.caching as caching, torch\n"
        "for locator in (caching.UserProvidedCacheLocator, caching.InTreeCacheLocator, caching.UserWideCacheLocator):\n"
        "    usual = locator.ensure_cache_path\n"
        "    def ensure(self, usual=usual):\n"
        "        if 'geonorm-' not in self.get_cache_path(): raise OSError('read-only')\n"
        "        usual(self)\n"
        "    locator.ensure_cache_path = ensure\n"
        "from geonorm.norms import LocalContextNorm, compiled\n"
        "LocalContextNorm(4, window_cells=3)(torch.rand(1, 4, 9, 9))\n"
        "print(compiled.loops_for(torch.rand(1, 4, 9, 9)).__name__, compiled._scratch_folder().name)\n"
    )

    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    name, folder = done.stdout.split()
    assert name == "geonorm.norms.loops"
    assert "geonorm-" in folder


def test_plain_torch_by_the_environment() -> None:
    script = "from geonorm.norms import compiled; import torch; print(compiled.loops_for(torch.rand(1, 4, 9, 9)))"

    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"GEONORM_COMPILED": "0", "PATH": ""},
    )

    assert done.stdout.strip() == "None"


@pytest.mark.usefixtures("fresh_loops")
def test_switchable_norm_alone_does_not_wait_for_the_loops_of_local_context_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    import_module = importlib.import_module

    def note(name: str, package: str | None = None) -> ModuleType:
        asked.append(name)
        return import_module(name, package)

    monkeypatch.setattr(importlib, "import_module", note)

    SwitchableNorm(4)(torch.rand(2, 4, 9, 9))

    assert "geonorm.norms.plane_loops" in asked
    assert "geonorm.norms.loops" not in asked


def test_float64_and_empty_maps_are_left_to_plain_torch() -> None:
    assert compiled.loops_for(torch.rand(1, 4, 9, 9)) is not None
    assert compiled.loops_for(torch.rand(1, 4, 9, 9, dtype=torch.float64)) is None
    assert compiled.loops_for(torch.rand(0, 4, 9, 9)) is None
    assert LocalContextNorm(4, window_cells=3)(torch.rand(0, 4, 9, 9)).shape == (0, 4, 9, 9)


@pytest.mark.slow
def test_where_the_disk_is_full_it_compiles_elsewhere_or_goes_on_in_plain_torch(tmp_path: Path) -> None:
    script = (
        "import resource, torch\n"
        "from geonorm.norms import LocalContextNorm\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "x = torch.rand(1, 4, 9, 9)\n"
        "y = LocalContextNorm(4, window_cells=3)(x)\n"
        "print(float((y.double() - LocalContextNorm(4, window_cells=3).double()(x.double())).abs().max()) < 1e-5)\n"
    )
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env)

    assert done.stdout.strip() == "True", done.stderr
    assert "computed in plain torch" in done.stderr


def test_leaving_one_of_two_contexts_leaves_the_other_alone() -> None:
    x = torch.rand(1, 4, 9, 9)
    with compiled.plain_torch():
        with compiled.plain_torch():
            assert compiled.loops_for(x) is None
        assert compiled.loops_for(x) is None
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(compiled.loops_for, x).result() is not None
    assert compiled.loops_for(x) is not None


def in_a_child(x: Tensor, pipe: multiprocessing.connection.Connection) -> None:
    """Send the sum of the normalized map."""
    pipe.send(float(operator(x, 4, [5, 5], "nearest")[0].double().sum()))


@pytest.mark.usefixtures("monkeypatch_values_per_thread")
def test_a_forked_child_has_threads_of_its_own() -> None:
    x = random_map(2, 8, 20, 30)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = float(operator(x, 4, [5, 5], "nearest")[0].double().sum())  # the threads have started
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where threads run
        child = context.Process(target=in_a_child, args=(x, theirs))
        child.start()

    arrived = ours.poll(60)
    answer = ours.recv() if arrived else None
    child.terminate()
    child.join()
    torch.set_num_threads(before)

    assert answer == expected


# --- whole planes -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    pool=st.sampled_from([("IN", "LN", "BN"), ("IN",), ("LN", "GN"), ("BN",), ("BN", "GN")]),
    samples=st.integers(1, 3),
    size=st.tuples(st.integers(2, 40), st.integers(1, 40)),
    selection=st.sampled_from(["soft", "hard"]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    training=st.booleans(),
    threads=st.sampled_from([1, 2, 5]),
)
@pytest.mark.usefixtures("monkeypatch_values_per_thread")
def test_switchable_norm_in_loops_computes_what_plain_torch_computes(
    pool: tuple[Normalizer, ...],
    samples: int,
    size: tuple[int, int],
    selection: Literal["soft", "hard"],
    memory_format: torch.memory_format,
    dtype: torch.dtype,
    training: bool,
    threads: int,
) -> None:
    layer = with_random_state(SwitchableNorm(8, pool=pool, group_size=2)).train(training)
    layer.select(selection)
    other = copy.deepcopy(layer)
    x = random_map(samples, 8, *size, mean=2).to(dtype).contiguous(memory_format=memory_format)
    upstream = random_map(samples, 8, *size, seed=3).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    got = results(layer, x, upstream)
    with compiled.plain_torch():
        expected = results(other, x, upstream)

    torch.set_num_threads(before)
    step = torch.finfo(dtype).eps
    for one, another in zip(got, expected, strict=True):
        scale = max(1.0, float(another.abs().max()))
        torch.testing.assert_close(one / scale, another / scale, rtol=4 * step, atol=max(1e-4, 4 * step))


def results(layer: SwitchableNorm, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """Return the normalized map, all gradients, and the running statistics."""
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    learning = [leaf, *(value for value in layer.parameters() if value.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y, learning, upstream), *layer.buffers()]


def test_switchable_norm_has_a_gradient_of_its_gradient() -> None:
    x, upstream = random_map(2, 8, 5, 6), random_map(2, 8, 5, 6, seed=3)
    layer = with_random_state(SwitchableNorm(8))

    got = second_gradient(layer, x, upstream)
    with compiled.plain_torch():
        expected = second_gradient(layer, x, upstream)

    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def second_gradient(layer: SwitchableNorm, x: Tensor, upstream: Tensor) -> Tensor:
    """Return the gradient of the squares of a gradient."""
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(copy.deepcopy(layer)(leaf), leaf, upstream, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), leaf)
    return second


def test_switchable_norm_works_under_torch_func() -> None:
    layer, x = with_random_state(SwitchableNorm(8)).eval(), random_map(2, 8, 5, 6)

    got = torch.func.grad(lambda values: layer(values).square().sum())(x)

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(leaf).square().sum(), leaf)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_parameters_of_planes_may_lie_anyhow() -> None:
    x = random_map(2, 3, 5, 6).requires_grad_()
    mean, scale, bias = (torch.rand(3, 2).t().requires_grad_() for _ in range(3))

    got = torch.autograd.grad(plane_affine(x, mean, scale, bias), [x, mean, scale, bias], x.detach())

    wide = [value.detach().double().requires_grad_() for value in (x, mean, scale, bias)]
    y = (wide[0] - wide[1][..., None, None]) * wide[2][..., None, None] + wide[3][..., None, None]
    for one, other in zip(got, torch.autograd.grad(y, wide, x.detach().double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_the_operators_on_planes_are_well_behaved() -> None:
    x = random_map(2, 4, 9, 7).requires_grad_()
    mean, scale, bias = (torch.rand(2, 4).requires_grad_() for _ in range(3))

    torch.library.opcheck(plane_affine, (x, mean, scale, bias))
    torch.library.opcheck(plane_moments, (x.detach(),))


def test_statistics_of_a_plane_are_exact_at_a_large_mean() -> None:
    x = random_map(2, 4, 300, 500, mean=1000)

    mean, var = plane_moments(x)

    exact_var, exact_mean = torch.var_mean(x.double(), dim=(2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-6, atol=0)


# The first use


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_process_says_that_it_compiles_where_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kept: bool, rank: str
) -> None:
    loops = importlib.import_module(compiled.LOOPS)
    stats = loops.forward.stats._replace(cache_path=str(tmp_path / "cache"))
    monkeypatch.setattr(type(loops.forward), "stats", stats)
    monkeypatch.setitem(compiled.PROBES, compiled.LOOPS, lambda loops: None)
    monkeypatch.setenv("LOCAL_RANK", rank)
    if kept:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "loops.forward-38.py311.nbi").touch()

    compiled._probed(compiled.LOOPS)

    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (not kept and rank == "0")
    assert all("geonorm: compiling the loops of Local Context Norm" in line and "\n" not in line for line in told)


def test_what_numba_keeps_is_recognised(tmp_path: Path) -> None:
    loops = importlib.import_module(compiled.LOOPS)
    compiled._normalize_one_cell(loops)  # kept beside the package, or where numba was told to

    assert compiled._is_kept(loops.forward)
