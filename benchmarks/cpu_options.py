"""Without a GPU, which option makes labelling a tile cheaper, and what does it change?

python benchmarks/cpu_options.py                                  four U-Nets with random weights, one thread
python benchmarks/cpu_options.py --threads 2 --networks bn-d3w16
python benchmarks/cpu_options.py --checkpoints bn.ckpt lcn.ckpt   networks of yours, in place of the four

JSON lines. `first_seconds` is the first call by the clock, compiling and converting included; the ratios are those of
processor time, and of the clock in `clock_ratio`, round by round, to float32 as `geonorm predict` ships it.
`labels_that_differ` and `largest_change` (of a probability) are held against the same. Random weights have their Batch
Norm statistics from the tile and the bias of their last layer such that each class gets half of it, so their labels
change as easily as labels can. ONNX Runtime and OpenVINO are optional: where one is missing, a line says so.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from geonorm.data.drawn import draw_scene
from geonorm.errors import InvalidConfigError
from geonorm.models import UNet, build_smp, fold_norms
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


def main(options: argparse.Namespace) -> None:
    """Print JSON lines."""
    torch.set_num_threads(options.threads)
    for name in options.checkpoints:
        trained = load_model(name)
        _measure(name, trained.network.eval(), options.tile_px or 608, options)
    for name in [] if options.checkpoints else options.networks:
        side_px, make = NETWORKS[name]
        torch.manual_seed(0)
        network = make().eval()
        side_px = options.tile_px or side_px
        _settle(network, _tile(side_px, 3))
        _measure(name, network, side_px, options)


def _measure(name: str, network: nn.Module, side_px: int, options: argparse.Namespace) -> None:
    """Print one line for each way."""
    tile = _tile(side_px, len(rescale_of(network).mean))
    facts = {"benchmark": "cpu_options", "network": name, "tile_px": side_px, "threads": torch.get_num_threads()}
    usual = predictor(network, CPU)(tile)
    ways: dict[str, Answer] = {}
    first: dict[str, float] = {}
    for way, make in _ways(network, tile).items():
        if options.ways and way not in options.ways and way != "float32":
            continue
        began = time.monotonic()
        try:
            ways[way] = make()
            ways[way](tile)
        except (ImportError, InvalidConfigError, NotImplementedError, TypeError) as error:
            ways.pop(way, None)
            print(json.dumps({**facts, "way": way, "skipped": str(error).splitlines()[0][:200]}), flush=True)
            continue
        first[way] = time.monotonic() - began
    cpu, clock = _alternate(ways, tile, rounds=options.rounds)
    for way, answer in ways.items():
        said = answer(tile)
        change = (said.softmax(1) - usual.softmax(1)).abs().max()
        line = {
            **facts,
            "way": way,
            "first_seconds": round(first[way], 2),
            "cpu_seconds": round(statistics.median(cpu[way]), 4),
            **_ratios("", cpu, way),
            **_ratios("clock_", clock, way),
            "labels_that_differ": float((said.argmax(1) != usual.argmax(1)).double().mean()),
            "largest_change": float(change),
            "rounds": options.rounds,
            "torch": torch.__version__,
        }
        print(json.dumps(line), flush=True)


def _ways(network: nn.Module, tile: Tensor) -> dict[str, Callable[[], Answer]]:
    """Return what makes each way."""
    return {
        "float32": lambda: predictor(network, CPU),
        "float32, no guard": lambda: _bare(network),
        "float32, folded": lambda: predictor(fold_norms(network)[0], CPU),
        "bf16-mixed": lambda: predictor(network, CPU, precision="bf16-mixed"),
        "bfloat16": lambda: _bare(_cast(network), torch.bfloat16),
        "bfloat16, folded": lambda: _bare(_cast(fold_norms(network)[0]), torch.bfloat16),
        "compile": lambda: _compiled(network),
        "compile, bf16-mixed": lambda: _compiled(network, precision="bf16-mixed"),
        "compile, bfloat16": lambda: _bare(torch.compile(_cast(network)), torch.bfloat16),
        "onnxruntime": lambda: _onnxruntime(network, tile),
        "openvino": lambda: predictor(network, CPU, backend="openvino"),
        "openvino, bf16-mixed": lambda: predictor(network, CPU, backend="openvino", precision="bf16-mixed"),
    }


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
    importlib.import_module("onnxscript")  # torch writes ONNX with it
    _check_operators(network, tile)
    with _quiet():
        program = torch.onnx.export(network, (tile.float(),), dynamo=True, verbose=False)
    assert program is not None
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # would take time from the others
    session = runtime.InferenceSession(
        program.model_proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    [entry] = session.get_inputs()
    return lambda tile: torch.from_numpy(session.run(None, {entry.name: tile.float().numpy()})[0])


def _check_operators(network: nn.Module, tile: Tensor) -> None:
    """Raise for a network with operators of geonorm's own, which ONNX has no word for."""
    with _quiet():
        program = torch.export.export(network, (tile.float(),))
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, GraphModule)]
    own = sorted({str(node.target) for graph in graphs for node in graph.nodes if "geonorm." in str(node.target)})
    if own:
        raise NotImplementedError(f"it does not know {', '.join(own)}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from talking, and gradients off."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _alternate(
    ways: dict[str, Answer], tile: Tensor, *, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return processor seconds and seconds by the clock of each way, one figure a round; the first is not counted."""
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    clock: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, answer in ways.items():
            began, cpu_began = time.monotonic(), time.process_time()
            answer(tile)
            if turn:
                cpu[way].append(time.process_time() - cpu_began)
                clock[way].append(time.monotonic() - began)
    return cpu, clock


def _ratios(prefix: str, seconds: dict[str, list[float]], way: str) -> dict[str, object]:
    ratios = [value / base for value, base in zip(seconds[way], seconds["float32"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {f"{prefix}ratio": round(middle, 3), f"{prefix}quartiles": [round(low, 3), round(high, 3)]}


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
    _parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    _parser.add_argument("--checkpoints", nargs="+", default=[])
    _parser.add_argument("--ways", nargs="+", default=[], help="some of the ways; all if not given")
    _parser.add_argument("--tile-px", type=int, default=None)
    _parser.add_argument("--threads", type=int, default=1)
    _parser.add_argument("--rounds", type=int, default=7)
    main(_parser.parse_args(sys.argv[1:]))
