"""Areas of interest: against every pixel's centre, asked of shapely one by one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import geopandas  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pyproj
import pytest
import shapely  # type: ignore[import-untyped]  # ships no types
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS

from geonorm.errors import GeonormError, InvalidConfigError, RasterError
from geonorm.raster import area as area_module
from geonorm.raster.area import Area, AreaOnGrid
from geonorm.raster.grid import Grid
from geonorm.raster.window import Window
from tests.raster.drawn import HEIGHT, PLACE, UTM, WIDTH

WHOLE = Window(0, 0, HEIGHT, WIDTH)
GRID = Grid(HEIGHT, WIDTH, UTM, PLACE)
GRIDS = [
    GRID,
    Grid(HEIGHT, WIDTH, UTM, Affine.translation(4e5, 5.3e6) @ Affine.rotation(30) @ Affine.scale(0.3, -0.3)),
    Grid(HEIGHT, WIDTH, UTM, Affine(0.3, 0, 4e5, 0, 0.3, 5.3e6)),  # south up
    Grid(HEIGHT, WIDTH, UTM, Affine(0, 2.0, 4e5, 0.5, 0, 5.3e6)),  # rows run along x, pixels are not square
]


def centres(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the coordinates of every pixel's centre, each (H, W)."""
    rows, cols = np.indices((grid.height, grid.width)) + 0.5
    t = grid.transform
    return t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f


def on_ground(grid: Grid, places: Any) -> NDArray[np.float64]:
    """Return pixel positions (x, y) as coordinates."""
    x, y = np.asarray(places, dtype=float).T
    t = grid.transform
    return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)


def whole(found: AreaOnGrid, grid: Grid) -> NDArray[np.bool_]:
    return found.inside(Window(0, 0, grid.height, grid.width))


def write(path: Path, *shapes: Any, crs: Any = UTM, **options: Any) -> Path:
    """Write shapes with geopandas."""
    geopandas.GeoDataFrame(geometry=list(shapes), crs=crs and pyproj.CRS.from_user_input(crs)).to_file(path, **options)
    return path


# Vertices on a lattice that no centre touches, so that nobody can argue about an edge.
vertices = st.tuples(st.integers(-60, 400), st.integers(-60, 300)).map(
    lambda place: (place[0] / 4 + 0.07, place[1] / 4 + 0.03)
)


@pytest.mark.parametrize("grid", GRIDS)
@settings(max_examples=30)
@given(outline=st.lists(vertices, min_size=3, max_size=7), hole=st.lists(vertices, min_size=3, max_size=3))
def test_a_pixel_counts_where_its_centre_lies_in_the_polygon(grid: Grid, outline: list[Any], hole: list[Any]) -> None:
    outer, inner = (shapely.make_valid(shapely.Polygon(on_ground(grid, ring))) for ring in (outline, hole))
    shape = shapely.difference(outer, inner)
    expected = shapely.contains_xy(shape, *centres(grid))
    area = Area(np.array([shape]), UTM, "the polygon")
    # Where a centre is all but on an edge, rounding decides.
    edge = shapely.distance(shapely.points(*centres(grid)), shapely.boundary(shape)) < 1e-6
    if not expected.any():
        return

    found = area.on(grid)

    inside = whole(found, grid)
    np.testing.assert_array_equal(inside | edge, expected | edge)
    rows, cols = np.nonzero(expected & ~edge)
    if len(rows):
        box = found.window
        assert box.row <= rows.min() <= rows.max() < box.row_end
        assert box.col <= cols.min() <= cols.max() < box.col_end


def test_the_window_is_the_rectangle_around_the_pixels() -> None:
    left, bottom, right, top = 4e5 + 3.1, 5.3e6 - 9.1, 4e5 + 6.1, 5.3e6 - 1.1

    found = Area.from_bounds((left, bottom, right, top)).on(GRID)

    xs, ys = centres(GRID)
    expected = (xs > left) & (xs < right) & (ys > bottom) & (ys < top)
    np.testing.assert_array_equal(whole(found, GRID), expected)
    rows, cols = np.nonzero(expected)
    assert found.window == Window(rows[0], cols.min(), rows[-1] - rows[0] + 1, np.ptp(cols).item() + 1)


def test_an_area_around_the_raster_is_all_of_it() -> None:
    found = Area.from_bounds((0, 0, 1e6, 1e7)).on(GRID)

    assert found.window == WHOLE
    assert found.inside(WHOLE).all()


@given(
    outline=st.lists(st.tuples(st.integers(0, 180), st.integers(0, 120)), min_size=3, max_size=8),
    row=st.integers(-5, HEIGHT),
    col=st.integers(-5, WIDTH),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    block_px=st.sampled_from([7, 16, 512]),
    max_edges=st.sampled_from([4, 2000]),
)
def test_windows_tile_seamlessly_even_where_edges_meet_centres(
    outline: list[Any], row: int, col: int, height: int, width: int, block_px: int, max_edges: int
) -> None:
    shape = shapely.Polygon(on_ground(GRID, np.array(outline) / 2))  # corners and centres of pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(area_module, "BLOCK_PX", block_px)
        patch.setattr(area_module, "MAX_EDGES", max_edges)
        try:
            found = Area(shapely.make_valid(np.array([shape])), UTM, "the polygon").on(GRID)
        except InvalidConfigError:
            return  # holds no pixel

        padded = np.pad(found.inside(WHOLE), 50)
        part = found.inside(Window(row, col, height, width))

    np.testing.assert_array_equal(part, padded[row + 50 : row + 50 + height, col + 50 : col + 50 + width])


def test_a_long_coastline_is_filled_like_a_short_one() -> None:
    angles = np.linspace(0, 2 * math.pi, 30_000)
    waves = 25 + 3 * np.sin(40 * angles) + 0.1 * np.sin(9999 * angles)
    coast = shapely.Polygon(
        on_ground(GRID, np.stack([45 + waves * np.cos(angles), 30 + waves * np.sin(angles)], axis=1))
    )

    found = Area(np.array([coast]), UTM, "the island").on(GRID)

    np.testing.assert_array_equal(whole(found, GRID), shapely.contains_xy(coast, *centres(GRID)))


def test_two_areas_that_share_an_edge_share_no_pixel() -> None:
    middle = 4e5 + 30 * 0.3 + 0.15  # through centres

    left = Area.from_bounds((4e5, 5.2e6, middle, 5.4e6)).on(GRID)
    right = Area.from_bounds((middle, 5.2e6, 5e5, 5.4e6)).on(GRID)

    assert (left.inside(WHOLE) ^ right.inside(WHOLE)).all()


def test_an_area_of_a_huge_raster_needs_only_the_memory_of_its_windows() -> None:
    grid = Grid(10**6, 10**6, UTM, PLACE)
    found = Area.from_bounds((4e5 + 1e4, 5.2e6, 4e5 + 2e5, 5.3e6 - 1e4)).on(grid)

    corner = found.window.row, found.window.col
    assert found.inside(Window(*corner, 3, 5)).all()
    assert not found.inside(Window(corner[0] - 5, corner[1] - 5, 5, 9)).any()


# Another CRS


@pytest.mark.parametrize("grid", GRIDS)
def test_bounds_in_degrees_are_laid_on_a_raster_in_metres(grid: Grid) -> None:
    to_degrees = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    lons, lats = to_degrees.transform(*centres(grid))
    bounds = tuple(np.quantile(values, part) + 1e-10 for part in (0.3, 0.7) for values in (lons, lats))

    found = Area.from_bounds(bounds, "EPSG:4326").on(grid)

    left, bottom, right, top = bounds
    np.testing.assert_array_equal(whole(found, grid), (lons > left) & (lons < right) & (lats > bottom) & (lats < top))


def test_a_parallel_is_bent_where_it_is_long() -> None:
    grid = Grid(600, 900, UTM, Affine(500, 0, 3e5, 0, -500, 5.6e6))  # 450 km wide
    to_degrees = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    _, lats = to_degrees.transform(*centres(grid))

    found = Area.from_bounds((0, 49.0, 40, 80), "EPSG:4326").on(grid)

    sure = np.abs(lats - 49) > 1e-5  # a metre
    np.testing.assert_array_equal(whole(found, grid)[sure], (lats > 49)[sure])
    assert np.ptp(whole(found, grid).argmin(axis=0)) > 5  # rows by which it bends


def test_what_has_no_coordinates_in_the_rasters_crs_does_no_harm(tmp_path: Path) -> None:
    world = shapely.box(-180, -90, 180, 90)

    assert Area.from_file(write(tmp_path / "world.geojson", world, crs="EPSG:4326")).on(GRID).window == WHOLE
    assert Area.from_bounds((-180, -90, 180, 90), "EPSG:4326").on(GRID).inside(WHOLE).all()


# Files


@pytest.mark.parametrize("name", ["area.gpkg", "area.geojson", "area.shp", "area.fgb"])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "EPSG:3857"])
def test_the_polygons_of_a_file_are_laid_on_the_raster(tmp_path: Path, name: str, crs: str) -> None:
    shapes = geopandas.GeoSeries(
        [
            shapely.Polygon(on_ground(GRID, [(5.2, 5.1), (40.3, 9.2), (20.1, 50.3)])),
            shapely.MultiPolygon(
                [shapely.box(*on_ground(GRID, [(x, 30.2), (x + 7, 15.1)]).ravel()) for x in (60.2, 80.3)]
            ),
        ],
        crs="EPSG:32633",
    ).to_crs(crs)
    path = write(tmp_path / name, *shapes, crs=crs)

    found = Area.from_file(path).on(GRID)

    to_file = pyproj.Transformer.from_crs("EPSG:32633", crs, always_xy=True)
    expected = shapely.contains_xy(shapely.union_all(list(shapes)), *to_file.transform(*centres(GRID)))
    np.testing.assert_array_equal(whole(found, GRID), expected)


def test_the_layer_that_is_named_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "layers.gpkg"
    write(path, shapely.box(4e5, 5.29e6, 4e5 + 9, 5.31e6), layer="left")
    write(path, shapely.box(4e5 + 9, 5.29e6, 4.1e5, 5.31e6), layer="right")

    found = Area.from_file(path, layer="right").on(GRID)

    assert found.window == Window(0, 30, HEIGHT, WIDTH - 30)
    with pytest.raises(RasterError, match="has the layers left, right, but none is named"):
        Area.from_file(path)
    with pytest.raises(RasterError, match="has the layers left, right, but 'top' is asked for"):
        Area.from_file(path, layer="top")


def test_crossed_outlines_heights_and_shapes_without_an_area_do_no_harm(tmp_path: Path) -> None:
    bow = shapely.Polygon(
        [(*place, 3.0) for place in on_ground(GRID, [(0.2, 0.1), (30.2, 30.1), (30.2, 0.1), (0.2, 30.1)])]
    )
    point, empty = shapely.Point(4e5 + 20, 5.3e6 - 15), shapely.Polygon()
    path = write(tmp_path / "odd.gpkg", bow, point, empty, None)

    found = Area.from_file(path).on(GRID)

    np.testing.assert_array_equal(whole(found, GRID), shapely.contains_xy(shapely.make_valid(bow), *centres(GRID)))


# Errors


def assert_one_clear_line(error: BaseException, name: str) -> None:
    assert name in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 400 + len(name)


def test_files_that_hold_no_area_are_refused_in_one_line(tmp_path: Path) -> None:
    square = shapely.box(4e5, 5.29e6, 4.1e5, 5.31e6)
    (tmp_path / "empty.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    (tmp_path / "text.gpkg").write_text("polygons?")
    write(tmp_path / "points.gpkg", shapely.Point(4e5, 5.3e6))
    write(tmp_path / "nowhere.shp", square).with_suffix(".prj").unlink()
    reasons = {
        "missing.gpkg": "there is no file",
        "empty.geojson": "holds no polygons",
        "points.gpkg": "holds no polygons",
        "text.gpkg": "does not open as a vector file",
        "nowhere.shp": "has no coordinate system",
    }

    for name, reason in reasons.items():
        with pytest.raises(RasterError, match=reason) as caught:
            Area.from_file(tmp_path / name)
        assert_one_clear_line(caught.value, str(tmp_path / name))


@pytest.mark.parametrize(
    "bounds", [(1, 1, 0, 2), (0, 2, 1, 1), (0, 0, 0, 1), (0, 0, math.inf, 1), (math.nan, 0, 1, 1), (0, 0, 1)]
)
def test_bounds_that_hold_nothing_are_refused(bounds: Any) -> None:
    with pytest.raises(InvalidConfigError, match="left < right and bottom < top"):
        Area.from_bounds(bounds)


def test_a_crs_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="'EPSG:nonsense' is no coordinate system"):
        Area.from_bounds((0, 0, 1, 1), "EPSG:nonsense")


@pytest.mark.parametrize(
    ("area", "grid", "reason"),
    [
        (Area.from_bounds((0, 0, 1, 1)), GRID, "misses the raster"),
        (Area.from_bounds((100, 10, 101, 11), "EPSG:4326"), GRID, "misses the raster"),
        (Area.from_bounds((4e5 - 5, 5.3e6, 4e5, 5.31e6)), GRID, "misses the raster"),
        (Area.from_bounds((4e5, 5.3e6 - 0.1, 4e5 + 9, 5.3e6)), GRID, "between the centres"),
        (Area.from_bounds((0, 0, 1, 1), "EPSG:4326"), Grid(9, 9, None, PLACE), "lies nowhere"),
        (Area.from_bounds((0, 0, 1, 1), "EPSG:4326"), Grid(9, 9, UTM, Affine.identity()), "lies nowhere"),
        (Area.from_bounds((0, 0, 1, 1)), Grid(9, 9, UTM, Affine(0, 0, 1, 0, 0, 1)), "no size"),
    ],
)
def test_an_area_that_does_not_meet_the_raster_is_refused(area: Area, grid: Grid, reason: str) -> None:
    with pytest.raises(GeonormError, match=reason) as caught:
        area.on(grid)

    assert_one_clear_line(caught.value, area.name)


def test_bounds_of_a_raster_without_a_place_are_columns_and_rows() -> None:
    found = Area.from_bounds((3, 5, 20, 9)).on(Grid(HEIGHT, WIDTH, None, Affine.identity()))

    assert found.window == Window(5, 3, 4, 17)
    assert found.inside(found.window).all()


def test_a_vector_file_for_a_raster_without_a_crs_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "area.gpkg", shapely.box(4e5, 5.29e6, 4.1e5, 5.31e6))

    with pytest.raises(InvalidConfigError, match="lacks a CRS") as caught:
        Area.from_file(path).on(Grid(HEIGHT, WIDTH, CRS() or None, PLACE))

    assert_one_clear_line(caught.value, str(path))
