"""Imports point one way: the list of the parts, and a walk through every import in geonorm."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

# A part may use any line above its own, never its neighbour on the same line (docs/design.md).
LAYERS = (
    ("errors",),
    ("files",),
    ("norms", "raster"),
    ("tiling",),
    ("models", "data"),
    ("tasks",),
    ("inference",),
    ("evaluation",),
    ("demo",),
    ("cli",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
LEVEL["__init__"] = -1  # geonorm/__init__.py runs before every import, so it imports no part
LEVEL["__main__"] = len(LAYERS)

TORCH_FAMILY = frozenset(
    {
        "kornia",
        "lightning",
        "pytorch_lightning",
        "segmentation_models_pytorch",
        "timm",
        "torch",
        "torchgeo",
        "torchmetrics",
        "torchvision",
    }
)
LIGHTNING = frozenset({"lightning", "pytorch_lightning"})
RASTER_OPENERS = frozenset({"osgeo", "rasterio", "rio_cogeo"})
MAY_OPEN_RASTERS = frozenset(
    f"geonorm/raster/{name}.py"
    for name in ("area", "grid", "read", "shapes", "strips", "tracing", "vector_file", "warped", "write")
)
NOT_INSTALLED = frozenset({"benchmarks", "data_scripts", "tests"})
NORMS_MAY_USE = frozenset({"torch"}) | sys.stdlib_module_names
COMPILERS = frozenset({"numba", "numpy"})
KERNELS = "geonorm/norms/gpu_kernels.py"
MAY_COMPILE = frozenset(f"geonorm/norms/{name}.py" for name in ("compiled", "loops", "plane_loops"))

ROOT = Path(__file__).parent.parent
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "geonorm").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES)
def test_a_module_imports_only_what_its_part_may_use(path: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")

    found = violations(source, path)

    assert not found, "\n".join(found)


def test_the_walk_finds_the_modules() -> None:
    assert "geonorm/errors.py" in MODULES


def test_the_design_page_shows_the_same_list() -> None:
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")

    indented = [tuple(line.split()) for line in page.splitlines() if line.startswith("    ")]

    first = indented.index(LAYERS[0])
    assert tuple(indented[first : first + len(LAYERS)]) == LAYERS


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("geonorm/norms/batch.py", "from geonorm.models import UNet", "norms may not use models"),
        ("geonorm/norms/batch.py", "from geonorm.raster.window import Window", "norms may not use raster"),
        ("geonorm/norms/batch.py", "import numpy as np", "norms may use only torch"),
        ("geonorm/norms/batch.py", "from geonorm import cli", "norms may not use cli"),
        ("geonorm/norms/batch.py", "from ..tiling import plan", "norms may not use tiling"),
        ("geonorm/norms/__init__.py", "from ..tiling import plan", "norms may not use tiling"),
        ("geonorm/norms/kernels/cpu.py", "from ... import tasks", "norms may not use tasks"),
        ("geonorm/raster/read.py", "import torch.nn as nn", "raster may not use torch"),
        ("geonorm/raster/window.py", "import rasterio", "opens rasters"),
        ("geonorm/tiling/engine.py", "from rasterio.windows import Window", "opens rasters"),
        ("geonorm/tiling/engine.py", "import lightning.pytorch", "tiling may not use lightning"),
        ("geonorm/data/inria.py", "from rasterio import open", "opens rasters"),
        ("geonorm/data/inria.py", "import geonorm.models.unet", "data may not use models"),
        ("geonorm/inference/predict.py", "from data_scripts import inria", "data_scripts is not installed"),
        ("geonorm/errors.py", "import geonorm.norms", "errors may not use norms"),
        ("geonorm/demo.py", "from geonorm.cli import main", "demo may not use cli"),
        ("geonorm/__init__.py", "from geonorm.norms import BatchNorm", "__init__ may not use norms"),
        ("geonorm/cli/entry.py", "import geonorm", "name the part"),
        ("geonorm/cli/entry.py", "from geonorm import *", "name the part"),
        ("geonorm/cli/entry.py", "from geonorm.utils import clamp", "unknown part 'utils'"),
        ("geonorm/utils.py", "", "unknown part 'utils'"),
        ("geonorm/utils/clamp.py", "", "unknown part 'utils'"),
    ],
)
def test_a_forbidden_import_is_found_with_its_reason(path: str, source: str, expected: str) -> None:
    [message] = violations(source, path)

    assert expected in message


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("geonorm/norms/batch.py", "import math\nimport torch.nn.functional as F\nfrom torch import nn"),
        ("geonorm/norms/batch.py", "from __future__ import annotations\nfrom geonorm.norms import moments"),
        ("geonorm/norms/batch.py", "from . import moments\nfrom ..errors import InvalidConfigError"),
        ("geonorm/norms/loops.py", "import numpy as np\nfrom numba import njit"),
        ("geonorm/norms/gpu_kernels.py", "import triton"),
        ("geonorm/raster/read.py", "import numpy\nimport rasterio\nfrom geonorm.raster.window import Window"),
        ("geonorm/tiling/engine.py", "import torch\nfrom geonorm.raster.window import Window"),
        ("geonorm/data/inria.py", "from torchgeo.datasets import InriaAerialImageLabeling"),
        ("geonorm/tasks/segmentation.py", "from geonorm.models import UNet\nfrom geonorm.data import spec"),
        ("geonorm/cli/entry.py", "from geonorm import __version__, demo, evaluation"),
        ("geonorm/__main__.py", "from geonorm.cli import main"),
        ("geonorm/__init__.py", "__version__ = '0'"),
    ],
)
def test_a_permitted_import_is_let_through(path: str, source: str) -> None:
    assert violations(source, path) == []


def test_an_import_inside_a_function_counts_with_its_line() -> None:
    source = "def late():\n    if True:\n        from geonorm import cli\n"

    [message] = violations(source, "geonorm/tiling/plan.py")

    assert message.startswith("geonorm/tiling/plan.py:3: ")


def violations(source: str, path: str) -> list[str]:
    """Return one message for every import in ``source`` that its part may not use.

    Args:
        source: Python source.
        path: Where the source lies, from the root of the repository, with forward slashes.
    """
    part = PurePosixPath(path).with_suffix("").parts[1]
    if part not in LEVEL:
        return [f"{path}: {unknown(part)}"]
    reasons = ((line, objection(part, target, path)) for line, target in imports(source, path))
    return [f"{path}:{line}: {reason}" for line, reason in sorted(reasons) if reason]


def objection(part: str, target: str, path: str) -> str:
    """Return why ``part`` may not import the dotted name ``target``, empty if it may."""
    top, _, rest = target.partition(".")
    if top == "geonorm":
        return objection_to_part(part, rest.partition(".")[0])
    if top in NOT_INSTALLED:
        return f"{top} is not installed with geonorm, which must work without it"
    if top in RASTER_OPENERS and path not in MAY_OPEN_RASTERS:
        return f"{top} opens rasters: that is left to {' and '.join(sorted(MAY_OPEN_RASTERS))}"
    if top == "triton" and path == KERNELS:
        return ""
    if part == "norms" and top not in NORMS_MAY_USE and not (top in COMPILERS and path in MAY_COMPILE):
        return f"norms may use only torch, the standard library and geonorm.errors, not {top}"
    if (part == "raster" and top in TORCH_FAMILY) or (part == "tiling" and top in LIGHTNING):
        return f"{part} may not use {top}"
    return ""


def objection_to_part(part: str, used: str) -> str:
    """Return why one part of geonorm may not use another, empty if it may."""
    if used in ("", "*"):
        return "name the part: `from geonorm.part import name`"
    if used in (part, "__version__"):
        return ""
    if used not in LEVEL:
        return unknown(used)
    if LEVEL[used] >= LEVEL[part]:
        return f"{part} may not use {used}: imports point one way (LAYERS in tests/test_layers.py)"
    return ""


def unknown(part: str) -> str:
    """Return what to do about a part that is not in the list."""
    return (
        f"unknown part {part!r}. Move it into one of {', '.join(p for line in LAYERS for p in line)}, "
        "or give it a line in LAYERS (tests/test_layers.py) and in docs/design.md."
    )


def imports(source: str, path: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the absolute dotted name of every import, those inside functions too."""
    package = PurePosixPath(path).parent.parts  # the same for a module and for its __init__.py
    for node in ast.walk(ast.parse(source, filename=path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def test_labelling_a_raster_does_without_the_libraries_of_data_sets() -> None:
    program = "import sys, geonorm.inference; print(sorted({'torchgeo', 'tensorboard'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
