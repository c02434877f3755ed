"""What a run is said to need, held against counts by hand and what runs took."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.windows
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geonorm.inference.activations import activations
from geonorm.inference.forecast import Forecast, choose_core_px, forecast
from geonorm.inference.job import Job, as_trained, prepare
from geonorm.models import TileGeometry
from geonorm.raster.mosaic import Mosaic
from geonorm.raster.read import open_raster
from geonorm.raster.window import Window
from tests.inference.rasters import UTM, draw, noise, place
from tests.inference.test_activations import Plain
from tests.models.networks import unet

MB = 10**6
GB = 10**9
EXACT = TileGeometry(
    stride_px=16, halo_px=90, core_halo_px=90, margin_px=0, unbounded=(), local_halo_px=90, least_px=16
)
UNBOUNDED = replace(EXACT, halo_px=None, core_halo_px=None, unbounded=("body.3 (GroupNorm)",))


class Slow(Plain):
    """Takes a tenth of a second for whatever it gets."""

    def forward(self, image: Tensor) -> Tensor:
        """Return logits."""
        time.sleep(0.1)
        return super().forward(image)


@contextmanager
def opened(
    path: Path, values: NDArray[Any], network: nn.Module | None = None, *, nodata: int | None = None, **settings: Any
) -> Iterator[Job]:
    """Yield a job for a drawn raster, with cores of 32 px and no halo unless told otherwise."""
    draw(path, values, nodata=nodata, tiled=True, blockxsize=32, blockysize=32)
    with open_raster(path) as reader:
        yield prepare(as_trained(network or Plain()), reader, **{"core_px": 32, "halo": "exact", **settings})


def test_a_compiled_network_is_not_compiled_for_it(tmp_path: Path) -> None:
    told = []
    for compiled in (False, True):
        with opened(tmp_path / "raster.tif", noise(3, 100, 200), compile=compiled) as job:
            told.append(forecast(job, probe=False).memory["network"])

    assert told[1] == pytest.approx(told[0], rel=0.02)


def test_the_memory_of_pixels_covers_what_a_run_takes(tmp_path: Path) -> None:
    with opened(tmp_path / "raster.tif", noise(3, 1200, 1500), nodata=0, core_px=128) as job:
        told = forecast(job, batch_size=2, probe=False).memory
        tracemalloc.start()
        try:
            kept: list[Any] = []
            for strip in job.strips(batch_size=2):
                kept = [strip, *kept][:2]
            taken = tracemalloc.get_traced_memory()[1]  # numpy's arrays; torch's are not seen
        finally:
            tracemalloc.stop()

    bound = told["pixels read ahead"] + told["tiles"] + told["strips"]
    assert taken < bound < 3 * taken


def test_memory_follows_the_width_and_what_is_kept_and_never_the_height(tmp_path: Path) -> None:
    def memory(height: int, width: int, **asked: Any) -> int:
        with opened(tmp_path / "raster.tif", noise(3, height, width)) as job:
            told = forecast(job, probe=False, **asked)
        return told.memory_bytes - told.memory["process"]

    low = memory(300, 400)

    assert memory(900, 400) == pytest.approx(low, abs=5000)
    assert memory(300, 800) - low > 400 * 32 * (3 * 2 + 3 * 3)
    all_of_a_row = memory(300, 400, batch_size=14)
    assert low < memory(300, 400, batch_size=4) < all_of_a_row
    assert memory(300, 400, batch_size=99) == pytest.approx(all_of_a_row, abs=5000)
    assert memory(300, 400, kept_bytes_per_px=9) - low >= 3 * 32 * 400 * 8


def test_values_without_data_keep_their_masks(tmp_path: Path) -> None:
    ahead = []
    for nodata in (None, 0):
        with opened(tmp_path / f"{nodata}.tif", noise(3, 320, 640), nodata=nodata) as job:
            ahead.append(forecast(job, probe=False).memory["pixels read ahead"])

    chunks = 4  # three rows of tiles, which begin between those of the chunks
    assert ahead[0] == pytest.approx(chunks * 32 * 640 * 3, rel=0.05)
    assert ahead[1] > chunks * 32 * 640 * (3 + 3 + 1)


def test_of_several_files_any_chunk_may_keep_masks(tmp_path: Path) -> None:
    with opened(tmp_path / "raster.tif", noise(3, 320, 640)) as job, Mosaic([job.reader]) as mosaic:
        ahead = forecast(replace(job, reader=mosaic), probe=False).memory["pixels read ahead"]

    assert ahead >= 4 * 32 * 640 * (3 + 3 + 1)


@pytest.mark.parametrize(("dtype", "bytes_per_value"), [("uint8", 1 + 1 + 2), ("uint16", 2 + 1 + 2 * 4)])
def test_tiles_are_cut_out_filled_and_stacked(dtype: str, bytes_per_value: int, tmp_path: Path) -> None:
    with opened(tmp_path / "raster.tif", noise(3, 100, 200, dtype=dtype)) as job:
        told = forecast(job, batch_size=2, probe=False).memory["tiles"]

    assert told == 2 * 3 * job.plan.read_px**2 * bytes_per_value


def test_blending_keeps_three_rows_of_logits(tmp_path: Path) -> None:
    with opened(tmp_path / "raster.tif", noise(3, 100, 200), halo=8, blend="hann") as job:
        told = forecast(job, probe=False)

    assert told.memory["blended rows"] == 3 * 2 * (32 + 2 * 8) * 200 * 4


def test_several_phases_keep_the_sum_of_their_logits(tmp_path: Path) -> None:
    with opened(tmp_path / "raster.tif", noise(3, 96, 80), unet(), tta="phases") as job:
        told = forecast(job, probe=False)
        alive = activations(job.predict, (1, 3, 50, 50), torch.uint8, torch.device("cpu"))

    assert told.memory["network"] == alive.peak_bytes + 4 * 2 * 50**2 + 4 * 2 * 32**2


def test_the_disk_holds_the_strips_and_the_map_with_its_overviews(tmp_path: Path) -> None:
    with opened(tmp_path / "raster.tif", noise(3, 100, 200)) as job:
        assert forecast(job, probe=False, kept_bytes_per_px=3).disk_bytes == 100 * 200 * 3 * 7 // 3


def test_tiles_that_are_done_or_not_wanted_are_not_counted(tmp_path: Path) -> None:
    def inside(window: Window) -> NDArray[np.bool_]:
        rows, cols = np.arange(window.row, window.row_end), np.arange(window.col, window.col_end)
        return (rows[:, None] >= 0) & (cols < 70)

    with opened(tmp_path / "raster.tif", noise(3, 100, 200), counts=inside) as job:
        rows, cols = ([*axis.spans()] for axis in job.plan.axes)
        wanted = sum(span.core_start < 70 for span in cols)
        assert forecast(job, probe=False).tiles == len(rows) * wanted
        assert forecast(job, probe=False, skip={0, rows[1].core_start}).tiles == (len(rows) - 2) * wanted
        assert forecast(replace(job, counts=None), probe=False).tiles == job.plan.num_tiles


def test_time_is_that_of_a_tile_times_their_number(tmp_path: Path) -> None:
    with opened(tmp_path / "raster.tif", noise(3, 100, 200), Slow()) as job:
        each = [forecast(job, batch_size=size).seconds or 0 for size in (1, 4)]
        tiles = job.plan.num_tiles

    assert 0.1 * tiles < each[0] < 0.5 * tiles
    assert 0.1 * tiles / 4 < each[1] < 0.6 * each[0]


def test_without_a_probe_the_network_sees_no_tile(tmp_path: Path) -> None:
    with opened(tmp_path / "raster.tif", noise(3, 40, 50)) as job:
        shapes: list[Any] = []

        def predict(tiles: Tensor) -> Tensor:
            shapes.append(type(tiles))
            return job.predict(tiles)

        told = forecast(replace(job, predict=predict), probe=False)

    assert told.seconds is None
    assert Tensor not in shapes


def test_a_single_tile_is_timed_too(tmp_path: Path) -> None:
    with opened(tmp_path / "raster.tif", noise(3, 10, 12), core_px=512) as job:
        told = forecast(job, batch_size=4)

    assert told.seconds is not None
    assert told.seconds > 0


def test_the_forecast_in_words() -> None:
    told = Forecast(
        memory={"process": 500 * MB, "network": 1200 * MB, "strips": 30 * MB, "slack": 270 * MB},
        device_bytes=None,
        disk_bytes=999_600_000,
        tiles=12_000,
        seconds=12_000 * 0.75,
    )

    assert told.in_words() == (
        "memory   at most 2.0 GB (network 1.2 GB, process 500 MB, slack 270 MB, ...)\n"
        "disk     at most 1.0 GB beside the target\n"
        "time     about 2 h 30 min, 12,000 tiles at most of 750 ms each"
    )
    on_gpu = replace(told, device_bytes=3 * GB, seconds=None).in_words().splitlines()
    assert on_gpu[1] == "device   about 3.0 GB, and what CUDA itself takes"
    assert on_gpu[3] == "time     not measured, 12,000 tiles at most"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0123, "12.3 ms"), (1, "1 s"), (61.26, "61.3 s"), (600, "10 min"), (7261, "2 h 01 min")]
)
def test_times_in_words(seconds: float, words: str) -> None:
    told = Forecast(memory={}, device_bytes=None, disk_bytes=0, tiles=1, seconds=seconds)

    assert f"about {words}," in told.in_words()


@pytest.mark.parametrize(
    ("geometry", "memory_bytes", "core_px", "why"),
    [
        # 2 * 90 px of halo, aligned to 96: 512 reads 704 and costs 1.9 times.
        (EXACT, 8 * GB, 512, "exact halo of 90 px costs 1.9 times"),
        (replace(EXACT, core_halo_px=250), 8 * GB, 2048, "exact halo of 250 px costs 1.6 times"),
        (replace(EXACT, core_halo_px=900), 8 * GB, 2048, "exact halo of 900 px costs 3.6 times"),
        (EXACT, 50 * MB, 256, "that of a larger core might not fit into a third of the 50 MB"),
        (EXACT, 5 * MB, 256, "more than a third of the 5.0 MB of free memory, but no smaller core is tried"),
        (UNBOUNDED, 8 * GB, 512, "no halo is exact for this network"),
        (UNBOUNDED, 300 * MB, 256, "might not fit"),
        (replace(EXACT, stride_px=96, least_px=96), 8 * GB, 576, "exact halo of 90 px costs 1.8 times"),
    ],
)
def test_the_core_that_is_chosen(geometry: TileGeometry, memory_bytes: int, core_px: int, why: str) -> None:
    chosen, words = choose_core_px(geometry, network=Plain(), bands=3, memory_bytes=memory_bytes)

    assert chosen == core_px
    assert words.startswith(f"core of {core_px} px: ")
    assert why in words


def test_a_batch_that_is_larger_asks_for_a_smaller_core() -> None:
    one, many = (
        choose_core_px(EXACT, network=Plain(), bands=3, memory_bytes=300 * MB, batch_size=size)[0] for size in (1, 8)
    )

    assert (one, many) == (512, 256)


def test_a_stride_larger_than_every_core_is_the_core() -> None:
    geometry = replace(UNBOUNDED, stride_px=4096, least_px=4096)

    assert choose_core_px(geometry, network=Plain(), bands=3, memory_bytes=8 * GB)[0] == 4096


def draw_sparse(path: Path, *, height: int, width: int, nodata: int | None) -> Path:
    """Write a raster of 3 bands with values in 2048 columns; what is below and beside them takes no place."""
    form: dict[str, Any] = {"width": width, "height": height, "count": 3, "dtype": "uint8", "nodata": nodata}
    where: dict[str, Any] = {"crs": UTM, "transform": place((0, 0)), "photometric": "minisblack"}
    blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True}
    with rasterio.open(path, "w", driver="GTiff", **form, **where, **blocks) as new:
        for row in range(0, height // 512 * 512, 512):
            new.write(noise(3, 512, 2048), window=rasterio.windows.Window(512 * 7, row, 2048, 512))
    return path


def printed(code: str, *words: str) -> list[str]:
    """Return what Python code prints in a process of its own; in the end, the peak of its memory in kilobytes."""
    peak = '\nprint(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])'
    done = subprocess.run([sys.executable, "-c", code + peak, *words], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split("\n")[:-1]


STRIPS = """
import sys
import torch
from geonorm.inference.forecast import forecast
from geonorm.inference.job import as_trained, prepare
from geonorm.models import UNet
from geonorm.norms import BatchNorm
from geonorm.raster.read import open_raster

path, batch_size, blend = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
with open_raster(path) as reader:
    model = as_trained(UNet(3, 2, norm=BatchNorm, depth=2, width=4))
    job = prepare(model, reader, halo="exact", blend=blend)
    told = forecast(job, batch_size=batch_size)
    assert told.seconds
    strips = []
    for strip in job.strips(batch_size=batch_size):
        strips = [*strips, strip][-2:]
print(told.memory["process"], told.memory_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc for the peak of a process of its own")
@pytest.mark.parametrize(("batch_size", "blend", "nodata"), [(1, "none", 0), (4, "hann", 0), (1, "none", None)])
def test_the_peak_of_a_run_stays_under_the_forecast(
    batch_size: int, blend: str, nodata: int | None, tmp_path: Path
) -> None:
    source = draw_sparse(tmp_path / "sparse.tif", height=4000, width=20_000, nodata=nodata)

    *_, said, kilobytes = printed(STRIPS, str(source), str(batch_size), blend)

    before, bound = map(int, said.split())
    peak = 1024 * int(kilobytes)
    assert peak < bound < 3 * peak
    assert bound - before < 3 * (peak - before)


MAP = """
import sys
import torch
from geonorm.inference import predict_raster
from geonorm.inference.job import as_trained
from geonorm.models import UNet
from geonorm.norms import BatchNorm

torch.set_num_threads(1)
torch.manual_seed(0)
model = as_trained(UNet(3, 2, norm=BatchNorm, depth=2, width=4))
for dry_run in (True, False):
    predict_raster(
        model, *sys.argv[1:], halo="exact", outputs=("labels", "probabilities"), dry_run=dry_run, on_plan=print
    )
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc for the peak of a process of its own")
def test_the_peak_from_file_to_map_stays_under_what_a_dry_run_says_whatever_the_height(tmp_path: Path) -> None:
    bounds, peaks = [], []
    for height in (3000, 6000):
        source = draw_sparse(tmp_path / f"{height}.tif", height=height, width=12_000, nodata=0)
        *words, kilobytes = printed(MAP, str(source), str(tmp_path / f"{height}-map.tif"))
        [(number, unit)] = re.findall(r"^memory +at most ([\d.]+) (MB|GB)", "\n".join(words), re.MULTILINE)
        bounds.append(float(number) * {"MB": MB, "GB": GB}[unit])
        peaks.append(1024 * int(kilobytes))

    assert peaks[0] < bounds[0] < 2 * peaks[0]
    assert peaks[1] < bounds[1]
    assert peaks[1] < 1.08 * peaks[0]
