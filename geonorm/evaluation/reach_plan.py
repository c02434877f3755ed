"""What is read to measure a network's reach: which pixels and cores of which rasters, how far around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from geonorm.errors import InvalidConfigError, name_some
from geonorm.evaluation.reach_gradient import gradient_bytes
from geonorm.evaluation.reach_places import Point, core_at, pixel_in, points, spans_at
from geonorm.inference.activations import activation_bytes
from geonorm.inference.forecast import NETWORK_SHARE, USUAL_CORE_PX
from geonorm.inference.halo import LADDER_PX
from geonorm.inference.memory import available_memory
from geonorm.raster.read import Reader
from geonorm.raster.window import Window
from geonorm.tasks.checkpoint import TrainedModel
from geonorm.tasks.segmentation import network_of
from geonorm.tiling.plan import Plan

UNBOUNDED_REACH_PX = 256
"""How far is looked where a network sees everything."""
SLACK = 1.5
"""Memory that a gradient takes, in multiples of the maps that are kept for the way back."""
TRIES = 16
"""Places looked at for each that is wanted, until one has data."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An open raster, and how it is read."""

    reader: Reader
    plan: Plan

    @property
    def name(self) -> str:
        """Name of the file."""
        return Path(self.reader.path).name

    @property
    def side_px(self) -> int:
        """Its shorter side."""
        return min(self.plan.height, self.plan.width)

    def reading(self, *, core_px: int, halo_px: int) -> Scene:
        """Return the scene, read in cores of another size with another halo."""
        return replace(self, plan=replace(self.plan, core_px=core_px, halo_px=halo_px))


@dataclass(frozen=True, kw_only=True)
class Place:
    """A core of a scene, and a pixel in it."""

    scene: Scene
    core: tuple[int, int]
    """First row and column."""
    pixel: tuple[int, int]

    @property
    def read_px(self) -> int:
        """Pixels that the network computes for it."""
        row, col = spans_at(self.scene.plan, self.core)
        return row.reads[0].px * col.reads[0].px

    def with_halo(self, halo_px: int) -> Place:
        """Return the place, read with another halo."""
        return replace(self, scene=self.scene.reading(core_px=self.scene.plan.core_px, halo_px=halo_px))


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """How halos are tried."""

    core_px: int
    halos_px: tuple[int, ...]
    """Rising."""
    reference_px: int
    """The halo that the others are held against; one of them where it is exact."""
    inside_px: int
    """With larger halos a tile is as large as the smallest raster, so that nothing can change."""
    is_exact: bool
    """Whether the reference is the exact halo, rather than the largest that was to be tried."""


def scene_of(reader: Reader, model: TrainedModel) -> Scene:
    """Return an open raster, to be read in cores of one cell of the network."""
    grid, network = reader.grid, network_of(model.geometry)
    plan = Plan(
        height=grid.height,
        width=grid.width,
        core_px=network.stride_px,
        network=network,
        first_index=grid.first_index,
    )
    return Scene(reader=reader, plan=plan)


def choose_ladder(
    model: TrainedModel,
    scenes: Sequence[Scene],
    *,
    core_px: int | None,
    halos_px: Sequence[int] | None,
    device: str,
) -> tuple[Ladder, list[Scene]]:
    """Return which halos are tried with which core, and the scenes that are large enough for it.

    Raises:
        InvalidConfigError: A core that the network cannot have, or no scene of twice its size.
    """
    core_px = _core_px(model, scenes, core_px)
    large = [scene for scene in scenes if scene.side_px >= 2 * core_px]
    exact_px, stride_px = model.geometry.core_halo_px, model.geometry.stride_px
    inside_px = (min(scene.side_px for scene in large) - core_px) // 2 // stride_px * stride_px
    # Where none is exact, a read that the raster cuts off would be held against itself.
    most_px = min(inside_px, LADDER_PX[-1]) if exact_px is None else exact_px
    fitting_px = _fitting_halo(model, large, core_px, most_px, device=device)
    is_exact = fitting_px == exact_px
    if halos_px is None:
        halos = {halo for halo in LADDER_PX if halo < min(fitting_px, inside_px)} | {fitting_px}
    else:
        halos = {*halos_px, *([exact_px] if is_exact and exact_px is not None else [])}
    reference_px = fitting_px if is_exact else max(halos)
    tried = halos if is_exact else halos - {reference_px}
    if not tried:
        raise InvalidConfigError(
            f"No halo is exact here, so at least two are needed, the largest to hold the others against, got {halos}."
        )
    ladder = Ladder(
        core_px=core_px,
        halos_px=tuple(sorted(tried)),
        reference_px=reference_px,
        inside_px=inside_px,
        is_exact=is_exact,
    )
    return ladder, large


def _core_px(model: TrainedModel, scenes: Sequence[Scene], core_px: int | None) -> int:
    """Return the core that was asked for, or the usual one, halved until there is a raster of twice its size."""
    stride_px, most_px = model.geometry.stride_px, max(scene.side_px for scene in scenes)
    wanted_px = core_px or -(-USUAL_CORE_PX // stride_px) * stride_px
    if core_px is None:
        while 2 * wanted_px > most_px and wanted_px > stride_px:
            wanted_px = max(stride_px, wanted_px // 2 // stride_px * stride_px)
    if 2 * wanted_px > most_px:
        raise InvalidConfigError(
            f"No raster is large enough: cores of {wanted_px} px tell nothing of rasters whose shorter side is below "
            f"{2 * wanted_px} px, and the largest has {most_px} px. "
            + ("Name a larger one." if core_px is None else "Choose a smaller core_px, or a larger raster.")
        )
    replace(scenes[0].plan, core_px=wanted_px)  # raises where it is no multiple of the stride
    return wanted_px


def _fitting_halo(model: TrainedModel, large: Sequence[Scene], core_px: int, most_px: int, *, device: str) -> int:
    """Return a halo, or the largest below it that is usually tried if tiles with it do not fit into memory."""
    free = NETWORK_SHARE * available_memory(device)
    for halo_px in (most_px, *(halo for halo in reversed(LADDER_PX) if 0 < halo < most_px)):
        side_px = max(_longest_read(scene.reading(core_px=core_px, halo_px=halo_px)) for scene in large)
        if activation_bytes(model.network, bands=len(model.spec.bands), size_px=side_px) <= free:
            return halo_px
    return 0


def choose_reach(model: TrainedModel, scenes: Sequence[Scene], reach_px: int | None, *, device: str) -> int:
    """Return how far around a pixel to read: what was asked for, or as far as it sees; never more than that.

    Unless it was asked for, it is what fits into half of the free memory.
    """
    exact_px, stride_px = model.geometry.core_halo_px, model.geometry.stride_px
    if reach_px is not None:
        return reach_px if exact_px is None else min(reach_px, exact_px)
    halo_px = UNBOUNDED_REACH_PX if exact_px is None else exact_px
    free = available_memory(device) / 2
    while halo_px > stride_px:
        side_px = max(_longest_read(scene.reading(core_px=stride_px, halo_px=halo_px)) for scene in scenes)
        if SLACK * gradient_bytes(model.network, side_px) <= free:
            break
        halo_px = max(stride_px, halo_px * 4 // 5)
    return halo_px


def _longest_read(scene: Scene) -> int:
    return max(min(axis.reads_px[0], axis.wholes[0].px) for axis in scene.plan.axes)


def spread(scenes: Sequence[Scene], num: int, *, has_data: Callable[[Place], bool]) -> list[Place]:
    """Return places spread over the scenes, the same number in each as far as may be, that have data.

    Raises:
        InvalidConfigError: There is none.
    """
    found: list[Place] = []
    coming = points()
    for index, scene in enumerate(scenes):
        wanted = num // len(scenes) + (index < num % len(scenes))
        tried = (_place(scene, point) for point in islice(coming, TRIES * wanted))
        found += islice(filter(has_data, tried), wanted)
    if not found:
        names = name_some([scene.name for scene in scenes])
        raise InvalidConfigError(f"No place with data was found in {names}. Name a raster that has more.")
    return found


def _place(scene: Scene, point: Point) -> Place:
    core = core_at(scene.plan, point)
    return Place(scene=scene, core=core, pixel=pixel_in(scene.plan, core, point))


def pixel_has_data(place: Place) -> bool:
    """Say whether the pixel lies in the raster, and counts."""
    (row, col), plan = place.pixel, place.scene.plan
    inside = 0 <= row < plan.height and 0 <= col < plan.width
    return inside and bool(place.scene.reader.read(Window(row, col, 1, 1)).valid.all())


def core_has_data(place: Place) -> bool:
    """Say whether half of the core's pixels count."""
    window = Window(*place.core, place.scene.plan.core_px, place.scene.plan.core_px)
    return bool(place.scene.reader.read(window).valid.mean() >= 0.5)


def notes(
    model: TrainedModel, scenes: Sequence[Scene], ladder: Ladder, pixels: Sequence[Place], halo_px: int, radius_px: int
) -> Iterator[str]:
    """Yield what was measured otherwise than one would think.

    Args:
        model: The network.
        scenes: All rasters.
        ladder: How halos were tried.
        pixels: Output pixels whose gradient was taken.
        halo_px: How far around them was read.
        radius_px: How far from them the gradient was counted.
    """
    geometry = model.geometry
    if geometry.core_halo_px is None:
        yield (
            f"{name_some(geometry.unbounded)} see all that is read: the gradient was looked at to {radius_px} px, and "
            f"halos are held against {ladder.reference_px} px. What lies beyond is not known."
        )
    elif halo_px < geometry.core_halo_px:
        yield (
            f"The gradient was looked at to {radius_px} px only, of the {geometry.halo_px} px that a pixel can see. "
            "Shares are of what lies within."
        )
    if geometry.core_halo_px is not None and not ladder.is_exact:
        yield (
            f"The exact halo of {geometry.core_halo_px} px does not fit into memory: halos are held against "
            f"{ladder.reference_px} px."
        )
    untold = [halo for halo in LADDER_PX if ladder.inside_px <= halo < ladder.reference_px]
    if ladder.is_exact and untold:
        yield (
            f"Halos from {ladder.inside_px} px on cannot be told from the exact one on rasters of this size: around "
            f"cores of {ladder.core_px} px they are the whole of it. A larger raster or a smaller core_px shows more."
        )
    near = sum(_meets_edge(place) for place in pixels)
    if near:
        yield (
            f"{near} of the {len(pixels)} pixels lie nearer to the edge of their raster than {halo_px} px, and see "
            "nothing beyond it: larger rasters may give larger distances."
        )
    small = [scene.name for scene in scenes if scene.side_px < 2 * ladder.core_px]
    if small:
        yield f"Too small for cores of {ladder.core_px} px, so without halos: {name_some(small)}."


def _meets_edge(place: Place) -> bool:
    """Say whether more is wanted around a core than the raster has."""
    plan = place.scene.plan
    lengths = (plan.height, plan.width)
    ends = (min(start, length - start - plan.core_px) for start, length in zip(place.core, lengths, strict=True))
    return min(ends) < plan.halo_px
