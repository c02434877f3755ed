"""What a run is said to need, held against counts by hand, torch's profiler and what runs took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geonorm.inference import forecast as module
from geonorm.inference.forecast import (
    Forecast,
    activation_bytes,
    available_memory,
    choose_core_px,
    forecast,
    resident_bytes,
)
from geonorm.inference.job import Job, as_trained, prepare
from geonorm.models import Rescale, TileGeometry, UNet, tile_geometry
from geonorm.models.predictor import predictor
from geonorm.norms import BatchNorm, GroupNorm
from geonorm.raster.mosaic import Mosaic
from geonorm.raster.read import open_raster
from geonorm.raster.window import Window
from tests.inference.rasters import draw, noise

MB = 10**6
GB = 10**9
EXACT = TileGeometry(
    stride_px=16, halo_px=90, core_halo_px=90, margin_px=0, unbounded=(), local_halo_px=90, least_px=16
)
UNBOUNDED = replace(EXACT, halo_px=None, core_halo_px=None, unbounded=("body.3 (GroupNorm)",))


class Plain(nn.Module):
    """Two convolutions: 3 bands to 8 channels to 2 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.rescale = Rescale(3)
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.body(self.rescale(image)))


class Asking(Plain):
    """Looks at values before it goes on."""

    def forward(self, image: Tensor) -> Tensor:
        """Return logits."""
        return super().forward(image if image.mean().item() > 0 else image + 1)


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


def test_what_two_convolutions_need_is_what_a_count_by_hand_says() -> None:
    pixels = 2 * 64 * 64
    raw, as_float = 3, 4 * 3
    # At the first convolution: the raw tiles, the same in float32, scaled, and 8 channels.
    by_hand = pixels * (raw + as_float + as_float + 4 * 8)

    assert activation_bytes(Plain(), bands=3, size_px=64, batch_size=2) == pytest.approx(by_hand, rel=0.01)


def test_raw_values_of_another_type_count_as_large_as_they_are() -> None:
    wide = activation_bytes(Plain(), bands=3, size_px=64, dtype=torch.int32)

    assert wide - activation_bytes(Plain(), bands=3, size_px=64) == 64 * 64 * 3 * (4 - 1)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"padding": "valid"}, {"norm": GroupNorm}])
def test_what_a_unet_needs_is_what_the_profiler_counts(settings: Any, batch_size: int, tmp_path: Path) -> None:
    network = UNet(3, 2, **{"norm": BatchNorm, "width": 8, "depth": 3, **settings})
    size_px = tile_geometry(network).read_px(200)

    told = activation_bytes(network, bands=3, size_px=size_px, batch_size=batch_size)

    tiles = torch.zeros(batch_size, 3, size_px, size_px, dtype=torch.uint8)
    counted = tiles.numel() + profiled_bytes(predictor(network, torch.device("cpu")), tiles, tmp_path / "trace.json")
    assert told == pytest.approx(counted, rel=0.02)


def profiled_bytes(predict: Callable[[Tensor], Tensor], tiles: Tensor, path: Path) -> int:
    """Return by how much the tensors grow at the peak, as torch's profiler sees its own allocator."""
    predict(tiles)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        predict(tiles)
    profile.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


def test_nothing_is_computed_and_nothing_kept() -> None:
    network = UNet(3, 2, norm=BatchNorm, depth=1, width=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    large, larger = (activation_bytes(network, bands=3, size_px=px) for px in (2**15, 2**16))

    assert large > 50 * GB
    assert larger == pytest.approx(4 * large, rel=1e-6)
    assert all(type(value) is Tensor and value.equal(before[name]) for name, value in network.state_dict().items())


def test_a_compiled_network_is_not_compiled_for_it(tmp_path: Path) -> None:
    told = []
    for compiled in (False, True):
        with opened(tmp_path / "raster.tif", noise(3, 100, 200), compile=compiled) as job:
            told.append(forecast(job, probe=False).memory["network"])

    assert told[1] == pytest.approx(told[0], rel=0.02)


def test_a_network_that_asks_for_values_is_measured_on_one_tile() -> None:
    asking, plain = (activation_bytes(made(), bands=3, size_px=64, batch_size=3) for made in (Asking, Plain))

    assert plain <= asking < 1.5 * plain


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
    assert low < memory(300, 400, batch_size=4) < memory(300, 400, batch_size=14) == memory(300, 400, batch_size=99)
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


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what draws a machine with 10,000 kB of free memory and some control groups."""
    monkeypatch.setattr(module, "PROC", tmp_path / "proc")
    monkeypatch.setattr(module, "CGROUP", tmp_path / "cgroup")

    def make(membership: str | None, **files: str) -> None:
        process = tmp_path / "proc" / "self"
        process.mkdir(parents=True)
        (tmp_path / "proc" / "meminfo").write_text("MemTotal: 90000 kB\nMemAvailable:    10000 kB\nSwapFree: 7 kB\n")
        if membership is not None:
            (process / "cgroup").write_text(membership)
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return make


@pytest.mark.parametrize(
    ("membership", "files", "free"),
    [
        (None, {}, 10_240_000),
        ("0::/\n", {}, 10_240_000),
        ("0::/\n", {"memory.max": "max\n"}, 10_240_000),
        (
            "0::/\n",
            {"memory.max": "9000000\n", "memory.current": "4000000\n", "memory.stat": "anon 9\ninactive_file 1000\n"},
            5_001_000,
        ),
        (
            "0::/user/job\n",
            {
                "user/job/memory.max": "max",
                "user/memory.max": "7000000",
                "user/memory.current": "1000000",
                "user/memory.stat": "inactive_file 0\n",
            },
            6_000_000,
        ),
        (
            "11:cpu,cpuacct:/elsewhere\n3:memory:/there\n0::/\n",
            {
                "memory/there/memory.limit_in_bytes": "3000000",
                "memory/there/memory.usage_in_bytes": "1000000",
                "memory/there/memory.stat": "inactive_file 5\ntotal_inactive_file 70\n",
            },
            2_000_070,
        ),
        (
            "0::/\n",
            {"memory.max": "90000000000", "memory.current": "0", "memory.stat": "inactive_file 0\n"},
            10_240_000,
        ),
        ("0::/\n", {"memory.max": "1000", "memory.current": "5000", "memory.stat": "inactive_file 0\n"}, 0),
    ],
)
def test_free_memory_is_what_the_system_and_the_groups_leave(
    system: Callable[..., None], membership: str | None, files: dict[str, str], free: int
) -> None:
    system(membership, **files)

    assert available_memory() == free


def test_without_proc_all_memory_counts(system: Callable[..., None]) -> None:
    assert available_memory("cpu") == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_free_memory_of_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (device.index, 99))

    assert available_memory("cuda:7") == 7


def test_the_process_holds_what_it_wrote(system: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    from_peak = resident_bytes()  # there is no /proc here
    monkeypatch.undo()
    before = resident_bytes()
    block = np.ones(80 * MB, np.uint8)

    assert 79 * MB < resident_bytes() - before < 120 * MB
    assert from_peak >= 0.9 * before
    del block


LABEL = """
import sys
import numpy as np, rasterio, torch
from rasterio.windows import Window
from geonorm.inference.forecast import forecast
from geonorm.inference.job import as_trained, prepare
from geonorm.models import UNet
from geonorm.norms import BatchNorm
from geonorm.raster.read import open_raster

path, batch_size, blend, nodata = sys.argv[1], int(sys.argv[2]), sys.argv[3], {"nodata": 0} if sys.argv[4] else {}
form = dict(width=20_000, height=4000, count=3, dtype="uint8", photometric="minisblack")
blocks = dict(tiled=True, blockxsize=512, blockysize=512, sparse_ok=True)
with rasterio.open(path, "w", driver="GTiff", **form, **blocks, **nodata) as new:
    for row in range(0, 3584, 512):
        noise = np.random.default_rng(row).integers(1, 256, (3, 512, 2048), np.uint8)
        new.write(noise, window=Window(512 * 7, row, 2048, 512))

torch.set_num_threads(1)
with open_raster(path) as reader:
    model = as_trained(UNet(3, 2, norm=BatchNorm, depth=2, width=4))
    job = prepare(model, reader, halo="exact", blend=blend)
    told = forecast(job, batch_size=batch_size)
    assert told.seconds
    strips = []
    for strip in job.strips(batch_size=batch_size):
        strips = [*strips, strip][-2:]
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(told.memory["process"], 1024 * int(peak), told.memory_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc for the peak of a process of its own")
@pytest.mark.parametrize(("batch_size", "blend", "nodata"), [(1, "none", "0"), (4, "hann", "0"), (1, "none", "")])
def test_the_peak_of_a_run_stays_under_the_forecast(batch_size: int, blend: str, nodata: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LABEL, str(tmp_path / "sparse.tif"), str(batch_size), blend, nodata],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    before, peak, bound = (int(word) for word in done.stdout.split()[-3:])

    assert peak < bound < 3 * peak
    assert bound - before < 3 * (peak - before)
