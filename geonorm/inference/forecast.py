"""What a labelling run will need, told before it starts: memory, disk and time."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from geonorm.inference.activations import activation_bytes, activations
from geonorm.inference.halo import LADDER_PX, sampled_cores
from geonorm.inference.job import Job
from geonorm.inference.memory import resident_bytes
from geonorm.models import TileGeometry
from geonorm.models.rescale import rescale_of
from geonorm.raster.read import CACHE_BYTES, RasterSource, Reader
from geonorm.raster.window import Window
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.blending import blend_px
from geonorm.tiling.engine import Halving, core_of, labels_of, view_of
from geonorm.tiling.plan import Plan, Span, Stretch
from geonorm.tiling.rows import BAND_PX, runs_of, stretch_of, wanted_cores
from geonorm.tiling.supply import AS_THEY_ARE, chunk_rows, patches

CORES_PX = (256, 512, 1024, 2048)
"""Cores that ``core_px="auto"`` chooses from, each rounded up to the network's stride."""
USUAL_CORE_PX = 512
AMPLE_OVERHEAD = 2.0
"""A core is large enough once the network computes at most so many pixels for each it writes."""
NETWORK_SHARE = 1 / 3
"""Of the free memory, what one batch may take with a core chosen here."""
STRIPS_ALIVE = 3
"""One is being filled, one encoded, one read."""
TIMED_CORES = 3
"""On so many it is seen how long a tile takes."""
LIBRARIES_BYTES, GPU_LIBRARIES_BYTES = 128 * 10**6, 2 * 10**9
"""What the host's libraries, and those for a GPU, load when they are first called, and what the heap never returns."""
GAPS_SHARE = 2.0
"""The gaps, of the tensors on the heap."""
SLACK_SHARE = 0.1
"""Of all that is asked for, what operators hold for themselves and what nobody counts."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a labelling run will need."""

    memory: Mapping[str, int]
    """Bytes of the host's memory, by what they hold."""
    device_bytes: int | None
    """Memory of the GPU, without what CUDA itself takes; None on the CPU."""
    disk_bytes: int
    """Upper bound of what lies beside the target at once, the target included."""
    tiles: int
    """Tiles at most: those without data are passed over. Of a raster that goes through in rows, its rows."""
    seconds: float | None
    """Time for all of them, reading included; None where it was not measured."""
    unit: Literal["tiles", "rows"] = "tiles"
    """What goes through."""

    @property
    def memory_bytes(self) -> int:
        """Upper bound of the process's resident memory at its peak."""
        return sum(self.memory.values())

    def in_words(self) -> str:
        """Return the forecast as text for a user."""
        largest = sorted(self.memory.items(), key=lambda part: -part[1])[:3]
        parts = ", ".join(f"{what} {_bytes_in_words(num)}" for what, num in largest)
        lines = [f"memory   at most {_bytes_in_words(self.memory_bytes)} ({parts}, ...)"]
        if self.device_bytes is not None:
            lines.append(f"device   about {_bytes_in_words(self.device_bytes)}, and what CUDA itself takes")
        lines.append(f"disk     at most {_bytes_in_words(self.disk_bytes)} beside the target")
        if self.seconds is None:
            lines.append(f"time     not measured, {self.tiles:,} {self.unit} at most")
        else:
            each = _time_in_words(self.seconds / max(1, self.tiles))
            lines.append(
                f"time     about {_time_in_words(self.seconds)}, {self.tiles:,} {self.unit} at most of {each} each"
            )
        return "\n".join(lines)


def forecast(
    job: Job,
    *,
    batch_size: int = 1,
    kept_bytes_per_px: int = 1,
    skip: Collection[int] = (),
    more_compute: float = 0.0,
    probe: bool = True,
    progress: bool = False,
) -> Forecast:
    """Return what `Job.strips` and writing its strips will need; reads one chunk of the raster.

    Polygons of the map are not counted.

    Args:
        job: The raster, the model and the plan.
        batch_size: Tiles per call of the network.
        kept_bytes_per_px: Bytes of a strip's pixel: 1 for labels.
        skip: First rows of strips that are done.
        more_compute: What goes through the network before, in times of what is labelled.
        probe: Label some tiles to see how long they take.
        progress: Show a progress bar meanwhile.

    Raises:
        RasterError: The raster cannot be read.
        InvalidConfigError: One tile does not fit into the memory of the device.
    """
    plan, device = job.plan, rescale_of(job.model.network).mean.device
    on_host = device.type == "cpu"
    read_px = [max(read.px for read in next(axis.spans()).reads) for axis in plan.axes]
    raw = job.reader.dtype if job.reader.dtype.type in AS_THEY_ARE else np.dtype(np.float32)
    bands = len(job.reader.bands)
    if job.rows is not None:
        shape: tuple[int, ...] = (1, bands, job.rows.plan.step_px, job.rows.plan.widest_px(plan))
        # The heap never gives all of it back as steps come and go.
        network_bytes = round((1 + SLACK_SHARE) * job.rows.peak_bytes)
        heap_bytes, blended_bytes = job.rows.heap_bytes, 0
    else:
        shape = (min(batch_size, plan.axes[1].num_cores), bands, *read_px)
        alive = activations(job.predict, shape, torch.from_numpy(np.empty(0, raw)).dtype, device)
        # The logits of the batch before are still there.
        network_bytes, heap_bytes = alive.peak_bytes + 4 * math.prod(alive.logits_shape), alive.heap_bytes
        if plan.phases > 1:  # the sum of those before
            network_bytes += 4 * math.prod(alive.logits_shape[:2]) * plan.core_px**2
        blended_bytes = 0 if job.blend == "none" else _blending_bytes(plan, alive.logits_shape[1])
    memory = {
        "process": resident_bytes(),
        "network": network_bytes if on_host else 0,
        # Cut out, filled, and stacked.
        "tiles": math.prod(shape) * (job.reader.dtype.itemsize + 1 + 2 * raw.itemsize),
        "pixels read ahead": _supply_bytes(job),
        "strips": _strips_alive(job) * plan.core_px * plan.width * (kept_bytes_per_px + 1),
        "blended rows": blended_bytes,
        "GDAL": 2 * CACHE_BYTES + 2 * _block_bytes(job),
    }
    growth = sum(memory.values()) - memory["process"]
    gaps = GAPS_SHARE * heap_bytes if on_host else 0
    libraries = LIBRARIES_BYTES if on_host else GPU_LIBRARIES_BYTES
    memory["slack"] = libraries + round(gaps + SLACK_SHARE * growth)
    tiles = _num_tiles(job, skip) if job.rows is None else _num_rows(job, skip)
    weights = sum(value.numel() * value.element_size() for value in job.model.network.state_dict().values())
    return Forecast(
        memory=memory,
        device_bytes=None if on_host else weights + round((1 + SLACK_SHARE) * network_bytes),
        # In the journal, and in the map with its overviews.
        disk_bytes=plan.height * plan.width * kept_bytes_per_px * 7 // 3,
        tiles=tiles,
        seconds=(1 + more_compute) * _seconds(job, tiles, batch_size, progress=progress) if probe else None,
        unit="tiles" if job.rows is None else "rows",
    )


def _strips_alive(job: Job) -> int:
    """Return how many strips are held at once: of rows, those too whose pixels have come in and labels not yet."""
    if job.rows is None:
        return STRIPS_ALIVE
    if job.rows.plan.block_px is not None:
        return STRIPS_ALIVE + -(-BAND_PX // job.plan.core_px)
    return STRIPS_ALIVE + -(-job.plan.axes[0].aligned_halo_px // job.plan.core_px)


def _seconds(job: Job, num: int, batch_size: int, *, progress: bool) -> float:
    """Return the time for all tiles, or all rows."""
    each = _seconds_per_tile(job, batch_size, progress=progress) if job.rows is None else _seconds_per_row(job)
    return num * each


def choose_core_px(
    geometry: TileGeometry, *, network: nn.Module, bands: int, memory_bytes: int, batch_size: int = 1, phases: int = 1
) -> tuple[int, str]:
    """Return a core for a network, and why in words.

    The smallest core whose exact halo costs at most twice the compute, if a batch of its tiles fits into a third of
    the memory; else the largest that does. Where no halo is exact a larger core buys little: 512 px, if that fits.

    Args:
        geometry: What the network sees.
        network: Raw band values in, logits out.
        bands: Bands of the raster that it gets.
        memory_bytes: Free memory of the device.
        batch_size: Tiles per call of the network.
        phases: Phases of the pooling, along each axis, that are averaged.
    """
    exact_px = geometry.core_halo_px
    stride = geometry.stride_px
    # Where the halo is to be measured, tiles with the largest one go through the network too.
    halo_px = LADDER_PX[-1] if exact_px is None else exact_px
    plans = [
        Plan(height=px, width=px, core_px=px, halo_px=halo_px, network=network_of(geometry), phases=phases)
        for px in dict.fromkeys(-(-px // stride) * stride for px in CORES_PX)
    ]
    taken = [activation_bytes(network, bands=bands, size_px=plan.read_px, batch_size=batch_size) for plan in plans]
    fitting = [plan for plan, num in zip(plans, taken, strict=True) if num <= NETWORK_SHARE * memory_bytes]
    largest = fitting[-1] if fitting else plans[0]
    if exact_px is None:
        plan = min(largest, plans[:2][-1], key=lambda plan: plan.core_px)
        why = "no halo is exact for this network"
    else:
        usual = [plan for plan in plans if plan.core_px >= USUAL_CORE_PX]  # smaller ones only where memory is short
        enough = next((plan for plan in usual if plan.overhead <= AMPLE_OVERHEAD), plans[-1])
        plan = min(largest, enough, key=lambda plan: plan.core_px)
        why = f"the exact halo of {exact_px} px costs {plan.overhead:.1f} times the compute"
    needed = f"a batch of its tiles takes {_bytes_in_words(taken[plans.index(plan)])}"
    free = f"a third of the {_bytes_in_words(memory_bytes)} of free memory"
    if not fitting:
        needed += f", more than {free}, but no smaller core is tried"
    elif plan is largest and plan is not plans[-1]:
        needed += f", and that of a larger core might not fit into {free}"
    return plan.core_px, f"core of {plan.core_px} px: {why}; {needed}"


def _supply_bytes(job: Job) -> int:
    """Return what pixels that are read ahead take: the chunks of three rows of tiles, one of them being read."""
    plan = job.plan
    rows = chunk_rows(plan, job.reader.block_shape[0])
    needed = []
    for patch in patches(plan, range(plan.axes[0].num_cores)):
        window = patch.reads(plan)
        needed.append({*range(window.row // rows, -(-window.row_end // rows))})
    chunks = max(len(set().union(*needed[max(0, strip - 1) : strip + 2])) for strip in range(len(needed)))
    middle = plan.height // 2 // rows * rows
    kept, peak = _read_bytes(job.reader, Window(middle, 0, min(rows, plan.height - middle), plan.width))
    return chunks * kept + peak - kept


def _read_bytes(reader: RasterSource, window: Window) -> tuple[int, int]:
    """Return what the pixels of a window take, and what it takes to read them."""
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        pixels = reader.read(window)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not tracing:
            tracemalloc.stop()
    masks = _own_bytes(pixels.value_valid) + _own_bytes(pixels.valid)
    if not isinstance(reader, Reader):  # other windows may be read in another way
        masks = pixels.value_valid.size + pixels.valid.size
    kept = pixels.values.nbytes + masks
    return kept, max(kept, peak)


def _own_bytes(values: NDArray[Any]) -> int:
    """Return the bytes of an array that may repeat its values."""
    return values.itemsize * math.prod(
        length for length, stride in zip(values.shape, values.strides, strict=True) if stride
    )


def _block_bytes(job: Job) -> int:
    rows, cols = job.reader.block_shape
    return rows * cols * job.reader.count * job.reader.dtype.itemsize


def _blending_bytes(plan: Plan, num_classes: int) -> int:
    return 3 * num_classes * (plan.core_px + 2 * blend_px(plan)) * plan.width * 4


def _num_tiles(job: Job, skip: Collection[int]) -> int:
    rows, cols = ([*axis.spans()] for axis in job.plan.axes)
    tiles = 0
    for row in rows:
        if row.core_start not in skip:
            window = Window(row.core_start, 0, row.core_stop - row.core_start, job.plan.width)
            wanted = np.ones(job.plan.width, np.bool_) if job.counts is None else job.counts(window).any(axis=0)
            tiles += int(np.logical_or.reduceat(wanted, [span.core_start for span in cols]).sum())
    return tiles


def _wanted(job: Job, skip: Collection[int]) -> tuple[list[Span], list[Span]]:
    """Return the strips, and the cores along the columns, that go through in rows."""
    rows, cols = ([*axis.spans()] for axis in job.plan.axes)
    to_do = [row for row in rows if row.core_start not in skip]
    return wanted_cores(job.plan, to_do, cols, holds_data=job.reader.holds_data, counts=job.counts)


def _num_rows(job: Job, skip: Collection[int]) -> int:
    """Return the rows that go through, those of halos included."""
    assert job.rows is not None
    rows, _ = _wanted(job, skip)
    return sum(stretch_of(band).px for run in runs_of(job.plan, rows) for band in job.rows.plan.bands(run))


def _seconds_per_row(job: Job) -> float:
    """Return how long a row takes, reading included, from a few columns in the middle of the raster."""
    assert job.rows is not None
    plan, step_px = job.plan, job.rows.plan.step_px
    rows, cols = ([*axis.spans()] for axis in plan.axes)
    some = stretch_of([cols[len(cols) // 2]])
    halo_px, height = plan.axes[0].aligned_halo_px, stretch_of(rows).px
    needed = min(height, plan.network.side_px(2 * halo_px + 4 * step_px))
    start = stretch_of(rows).start + (height - needed) // 2 // plan.network.stride_px * plan.network.stride_px
    began = time.perf_counter()
    run = job.rows.network(needed)
    for row in range(start, start + needed, step_px):
        span = Span(0, plan.height, (Stretch(row, min(step_px, start + needed - row)),))
        view = view_of(job.reader.read, plan, span, [Span(0, plan.width, (some,))], fill=job.fill)
        logits = run.push(view.tiles(span.reads[0], [some]))
        if logits is not None:
            labels_of(logits).cpu()  # waits for a GPU
    across = sum(stretch_of(block).px for block in job.rows.plan.blocks(_wanted(job, ())[1]))
    return (time.perf_counter() - began) / needed * across / some.px


def _seconds_per_tile(job: Job, batch_size: int, *, progress: bool) -> float:
    """Return the median time of a tile, reading included, of some batches over the raster; the first warms up."""
    rows, cols = ([*axis.spans()] for axis in job.plan.axes)
    network = Halving(job.predict, batch_size, margin_px=job.plan.network.margin_px)
    places = list(sampled_cores(job.plan, TIMED_CORES))
    bar = tqdm(total=max(2, len(places)), unit="batch", desc="timing", disable=not progress, leave=False, delay=1)

    def timed(row: int, col: int) -> float:
        first = max(0, min(col, len(cols) - batch_size))
        batch = cols[first : first + batch_size]
        began = time.perf_counter()
        view = view_of(job.reader.read, job.plan, rows[row], batch, fill=job.fill)
        for _, cores in network.answers(view, rows[row], {span: core_of(rows[row], span) for span in batch}):
            for logits in cores:
                labels_of(logits[None]).cpu()  # waits for a GPU
        bar.update()
        return (time.perf_counter() - began) / len(batch)

    with bar:
        timed(*places[0])
        return median(timed(*place) for place in places[1:] or places)


def _bytes_in_words(num: float) -> str:
    mega = num / 10**6
    value, unit = (mega, "MB") if mega < 999.5 else (mega / 1000, "GB")
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"


def _time_in_words(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 119.5:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
