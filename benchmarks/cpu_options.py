"""Without a GPU, which option makes labelling a tile cheaper, and what does it change?

python benchmarks/cpu_options.py                                  four U-Nets with random weights, one thread
python benchmarks/cpu_options.py --threads 2 --networks bn-d3w16
python benchmarks/cpu_options.py --checkpoints bn.ckpt lcn.ckpt   networks of yours, in place of the four

The ratios are to float32 as `geonorm predict` ships it, in processor time and by the clock. `first_seconds` is the
first call by the clock, compiling and converting included. `labels_that_differ` and `largest_change` (of a probability)
are held against the same. Random weights have their Batch Norm statistics from the tile and the bias of their last
layer such that each class gets half of it, so their labels change as easily as labels can. ONNX Runtime and OpenVINO
are optional: where one is missing, a line says so. The limit is that of the network's convolutions, at the most
operations this machine computes in float32; ways that compute in fewer bits have none.
"""

from __future__ import annotations

import copy
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from _alternate import alternate_both
from _limits import flops_of, limit_of_flops
from _lines import print_line, print_skipped
from _options import option_parser, parse
from torch import Tensor, nn

from geonorm.data.drawn import draw_scene
from geonorm.errors import InvalidConfigError, one_line
from geonorm.models import UNet, build_smp, fold_norms
from geonorm.models.onnx_program import as_onnx
from geonorm.models.predictor import predictor
from geonorm.models.rescale import rescale_of
from geonorm.norms import BatchNorm, LocalContextNorm
from geonorm.tasks.checkpoint import load_model

Answer = Callable[[Tensor], Tensor]

CPU = torch.device("cpu")
LCN = partial(LocalContextNorm, window_px=31)
NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "bn-d3w16": (608, lambda: UNet(3, 2, norm=BatchNorm, depth=3, width=16)),
    "lcn-d3w16": (960, lambda: UNet(3, 2, norm=LCN, depth=3, width=16)),
    "bn-d4w32": (608, lambda: UNet(3, 2, norm=BatchNorm, depth=4, width=32)),
    "bn-resnet34": (608, lambda: build_smp("unet", "resnet34", in_channels=3, num_classes=2, norm=BatchNorm)),
}
"""The side of a tile in pixels, and the network."""


SHIPPED = "float32"
WAYS: dict[str, Callable[[nn.Module, Tensor], Answer]] = {
    SHIPPED: lambda network, tile: predictor(network, CPU),
    "float32, no guard": lambda network, tile: _bare(network),
    "float32, folded": lambda network, tile: predictor(fold_norms(network)[0], CPU),
    "bf16-mixed": lambda network, tile: predictor(network, CPU, precision="bf16-mixed"),
    "bfloat16": lambda network, tile: _bare(_cast(network), torch.bfloat16),
    "bfloat16, folded": lambda network, tile: _bare(_cast(fold_norms(network)[0]), torch.bfloat16),
    "compile": lambda network, tile: _compiled(network),
    "compile, bf16-mixed": lambda network, tile: _compiled(network, precision="bf16-mixed"),
    "compile, bfloat16": lambda network, tile: _bare(torch.compile(_cast(network)), torch.bfloat16),
    "onnxruntime": lambda network, tile: _onnxruntime(network, tile),
    "openvino": lambda network, tile: predictor(network, CPU, backend="openvino"),
    "openvino, bf16-mixed": lambda network, tile: predictor(network, CPU, backend="openvino", precision="bf16-mixed"),
}
"""What makes each way, from a network and a tile."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """With random weights."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Beside float32 as shipped."""
    tile_px: int = 0
    """Side of the tile; 0: that of the network, 608 for checkpoints."""
    threads: int = 1
    """Of torch."""
    rounds: int = 7
    """Of measuring."""


QUICK = {
    "networks": ("bn-d3w16",),
    "ways": ("float32, folded", "bf16-mixed", "openvino", "openvino, bf16-mixed"),
    "tile_px": 304,
    "rounds": 3,
}


def main(case: Case, checkpoints: list[str]) -> None:
    """Print JSON lines."""
    torch.set_num_threads(case.threads)
    for name in checkpoints:
        _measure(case, name, load_model(name).network, case.tile_px or 608)
    for name in () if checkpoints else case.networks:
        side_px, make = NETWORKS[name]
        torch.manual_seed(0)
        network = make().eval()
        side_px = case.tile_px or side_px
        _settle(network, _tile(side_px, 3))
        _measure(case, name, network, side_px)


def _measure(case: Case, name: str, network: nn.Module, side_px: int) -> None:
    """Print two lines for each way."""
    tile = _tile(side_px, len(rescale_of(network).mean))
    answers: dict[str, Answer] = {}
    first: dict[str, float] = {}
    for way, make in WAYS.items():
        if way not in (SHIPPED, *case.ways):
            continue
        began = time.monotonic()
        try:
            answer = make(network, tile)
            answer(tile)
        except (ImportError, InvalidConfigError, NotImplementedError, TypeError) as error:
            print_skipped("cpu_options", way, f"{name}: {one_line(error)[:200]}")
            continue
        answers[way], first[way] = answer, time.monotonic() - began
    cpu, clock = alternate_both({way: partial(answer, tile) for way, answer in answers.items()}, rounds=case.rounds)
    with torch.no_grad():
        flops = flops_of(lambda: network(tile.float()))
    usual = answers[SHIPPED](tile)
    for unit, seconds in (("s CPU", cpu), ("s", clock)):
        limit = limit_of_flops(flops, by_the_clock=unit == "s")
        for way, answer in answers.items():
            said = answer(tile)
            print_line(
                "cpu_options",
                f"{name}, {side_px} px",
                way,
                statistics.median(seconds[way]),
                unit,
                ratios=None if way == SHIPPED else [a / b for a, b in zip(seconds[way], seconds[SHIPPED], strict=True)],
                peer=SHIPPED,
                limit=None if "bf" in way else limit,
                first_seconds=round(first[way], 2),
                labels_that_differ=float((said.argmax(1) != usual.argmax(1)).double().mean()),
                largest_change=float((said.softmax(1) - usual.softmax(1)).abs().max()),
            )


def _bare(network: Any, dtype: torch.dtype = torch.float32) -> Answer:
    """Return the network in channels_last without what makes its bits independent of the tiles."""

    def answer(tile: Tensor) -> Tensor:
        with torch.no_grad():
            seen = tile.to(torch.float32, memory_format=torch.channels_last)
            return network(seen).to(torch.float32)

    return answer


def _cast(network: nn.Module) -> nn.Module:
    """Return a copy in bfloat16 but for the rescaling: raw values need more digits."""
    half = copy.deepcopy(network).to(torch.bfloat16)
    rescale_of(half).float().load_state_dict(rescale_of(network).state_dict())
    rescale_of(half).register_forward_hook(lambda module, inputs, output: output.to(torch.bfloat16))
    return half


def _compiled(network: nn.Module, **how: Any) -> Answer:
    torch.compiler.reset()
    return predictor(network, CPU, compile=True, **how)


def _onnxruntime(network: nn.Module, tile: Tensor) -> Answer:
    runtime = importlib.import_module("onnxruntime")
    program = as_onnx(network, tuple(tile.shape[1:]), any_size=False)
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # would take time from the others
    session = runtime.InferenceSession(program.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    [entry] = session.get_inputs()
    return lambda tile: torch.from_numpy(session.run(None, {entry.name: tile.float().numpy()})[0])


def _tile(side_px: int, bands: int) -> Tensor:
    """Return a drawn scene, its bands repeated as often as needed, ``(1, C, h, w)``, uint8."""
    scene = draw_scene("alder", side_px, side_px, seed=0)
    image = torch.from_numpy(scene.image.copy())
    return torch.cat([image] * -(-bands // len(image)))[None, :bands].contiguous()


@torch.no_grad()
def _settle(network: nn.Module, tile: Tensor) -> None:
    """Scale the values, take the statistics of Batch Norm from the tile, and give each class half of it."""
    rescale = rescale_of(network)
    rescale.mean.copy_(tile.float().mean((0, 2, 3)))
    rescale.deviation.copy_(tile.float().std((0, 2, 3)))
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.momentum = 1.0
    network.train()
    network(tile.float())
    network.eval()
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    logits = network(tile.float())
    assert last.bias is not None
    last.bias[1] -= (logits[:, 1] - logits[:, 0]).median()


if __name__ == "__main__":
    _parser = option_parser(__doc__, Case(), choices={"networks": list(NETWORKS), "ways": list(WAYS)})
    _parser.add_argument("--checkpoints", nargs="+", default=[])
    _case, _options = parse(_parser, Case, sys.argv[1:], quick=QUICK)
    main(_case, _options.checkpoints)
