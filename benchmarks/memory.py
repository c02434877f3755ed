"""How much memory does a prediction take, and does it grow with the raster's height?

python benchmarks/memory.py CHECKPOINT RASTER [CORE_PX [HALO]]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from geonorm.raster.read import open_raster
from geonorm.raster.window import Window
from geonorm.raster.write import write_image

TIMES = 4

# The peak that the kernel counted for a process of its own.
LOAD = "import sys; from geonorm.tasks.checkpoint import load_model; load_model(sys.argv[1])"
PREDICT = """
import sys
from geonorm.inference import predict_raster
checkpoint, source, target, core_px, halo = sys.argv[1:]
halo = int(halo) if halo.isdigit() else halo
predict_raster(checkpoint, source, target, core_px=int(core_px), halo=halo, on_plan=lambda t: print(t, file=sys.stderr))
"""
# Not getrusage on Linux: there a child begins with the peak of its parent.
PEAK = """
import pathlib, resource, sys
status = pathlib.Path("/proc/self/status")
if status.exists():
    print(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main(checkpoint: str, raster: str, core_px: str = "512", halo: str = "auto") -> None:
    """Print one JSON line: peaks in MiB above loading the model, for the raster and one of four times the height."""
    with tempfile.TemporaryDirectory() as folder:
        tall = Path(folder) / "tall.tif"
        with open_raster(raster, bands=[1, 2, 3]) as reader:
            grid = reader.grid
            values = reader.read(Window(0, 0, grid.height, grid.width)).values
        write_image(tall, np.tile(values, (1, TIMES, 1)), crs=grid.crs, transform=grid.transform, tiled=True)
        del values
        base = _peak_mib(LOAD, checkpoint)
        line: dict[str, object] = {"benchmark": "memory", "width": grid.width, "height": grid.height, "base_mib": base}
        for name, source in (("raster", raster), ("tall", str(tall))):
            began = time.monotonic()
            peak = _peak_mib(PREDICT, checkpoint, source, str(Path(folder) / f"{name}_map.tif"), core_px, halo)
            line[f"{name}_above_base_mib"] = round(peak - base, 1)
            line[f"{name}_seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(line), flush=True)


def _peak_mib(code: str, *arguments: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", code + PEAK, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return round(int(done.stdout.split()[-1]) / (1024 if sys.platform == "linux" else 2**20), 1)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print(json.dumps({"benchmark": "memory", "skipped": "give a checkpoint and a raster"}))
    else:
        main(*sys.argv[1:])
