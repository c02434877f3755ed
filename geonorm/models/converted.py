"""A network as OpenVINO computes it on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from geonorm.errors import GeonormError, InvalidConfigError, one_line
from geonorm.models.exported import exported, quiet
from geonorm.models.rescale import raw_noise, rescale_of
from geonorm.norms.compiled import plain_torch

TOLERANCE = 1e-3
"""Of the largest logit: by so much a conversion may differ from torch in float32 on noise. Usual is 1e-5 and less."""


def converted(network: nn.Module, *, half: bool = False) -> Callable[[Tensor], Tensor]:
    """Return a network in evaluation, on the CPU, that OpenVINO computes; it is converted when it is first called.

    Tiles of any number and size go through one conversion, which is held against torch on noise before it is used.

    Args:
        network: Raw band values in, logits out.
        half: Let OpenVINO compute in bfloat16 where it thinks that this pays, statistics of norms included.

    Raises:
        InvalidConfigError: OpenVINO is not installed; and when first called: it does not know an operator of the
            network, or does not compute what torch does.
    """
    openvino = require_openvino()
    runtime: Any = None

    def answer(tiles: Tensor) -> Tensor:
        nonlocal runtime
        if isinstance(tiles, FakeTensor):  # memory is being counted, nothing computed
            return network(tiles)
        runtime = runtime or _converted(openvino, network, tiles.shape, half=half)
        return torch.from_numpy(runtime(tiles.contiguous().numpy())[0])

    return answer


def require_openvino() -> Any:
    """Return the module, or raise `InvalidConfigError`."""
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise InvalidConfigError(
            f"backend=openvino needs the package openvino: {one_line(error)}. pip install 'geonorm[openvino]'."
        ) from error


def _converted(openvino: Any, network: nn.Module, shape: torch.Size, *, half: bool) -> Any:
    """Return what OpenVINO makes of a network, ready to run with as many threads as torch has."""
    try:
        with quiet():
            model = _model(_exported(network, shape))
        core = openvino.Core()
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        runtime = core.compile_model(model, "CPU", {**threads, "INFERENCE_PRECISION_HINT": "f32"})
        _check(runtime, network, shape)
        if half:
            runtime = core.compile_model(model, "CPU", {**threads, "INFERENCE_PRECISION_HINT": "bf16"})
    except GeonormError:
        raise
    except Exception as error:  # exporting and converting fail in many ways, some derived from nothing
        raise InvalidConfigError(
            f"OpenVINO does not take this network: {_reason(error)}. Leave out --backend openvino."
        ) from error
    return runtime


def _exported(network: nn.Module, shape: torch.Size) -> torch.export.ExportedProgram:
    """Return the network's operators, for any number and size of tiles."""
    # With other norms than Local Context Norm, torch's own operators in place of geonorm's.
    with plain_torch():
        return exported(network, tuple(shape[1:]), any_size=True)


def _model(program: torch.export.ExportedProgram) -> Any:
    """Return OpenVINO's model. ``openvino.convert_model`` would do the same, and report to its makers that it did."""
    frontend = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    module = importlib.import_module("openvino.frontend.pytorch.fx_decoder")
    decoder = module.TorchFXPythonDecoder.from_exported_program(program)  # named, for OpenVINO does not keep it alive
    return frontend.convert(frontend.load(decoder))


def _check(runtime: Any, network: nn.Module, shape: torch.Size) -> None:
    """Raise unless OpenVINO computes what torch does, of noise about the mean of the training."""
    image = raw_noise(rescale_of(network), 1, *shape[1:])
    with torch.no_grad():
        expected = network(image)
    error = (torch.from_numpy(runtime(image.numpy())[0]) - expected).abs().max() / expected.abs().max()
    if not error <= TOLERANCE:
        raise InvalidConfigError(
            f"OpenVINO does not compute this network as torch does: logits differ by {100 * float(error):.2g} % of the "
            f"largest, {100 * TOLERANCE:g} % would do. Leave out --backend openvino."
        )


def _reason(error: Exception) -> str:
    """Return what OpenVINO says is wrong, without where in its source it says so."""
    said = one_line(error, most=10_000).rpartition("-- ")[2][:200].rstrip(". ")
    own = " (Local Context Norm is an operator of geonorm's own)" if "geonorm.local_" in said else ""
    return said + own
