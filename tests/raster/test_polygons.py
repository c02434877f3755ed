"""Polygons of label maps: against rasterio on the whole map, read back with geopandas, interrupted at will."""

from __future__ import annotations

import builtins
import importlib.util
import json
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import geopandas  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pyogrio  # type: ignore[import-untyped]  # ships no types
import pytest
import rasterio.features
import shapely  # type: ignore[import-untyped]  # ships no types
import shapely.affinity  # type: ignore[import-untyped]  # ships no types
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.raster import polygons as polygons_module
from geonorm.raster.grid import Grid
from geonorm.raster.polygons import LabelRows, write_polygons
from geonorm.raster.tracing import Polygons, trace_polygons
from tests.folders import files_end_at, names_in

HEIGHT, WIDTH = 60, 90
UTM = CRS.from_epsg(32633)
PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)
GRID = Grid(HEIGHT, WIDTH, UTM, PLACE)
NOWHERE = Grid(HEIGHT, WIDTH, None, Affine.identity())

NAMES = ["background", "Gebäude", "water"]
NODATA = 255
COLUMNS = ["class", "name", "pixels", "area_m2", "probability"]
FORMATS = [
    "gpkg",
    pytest.param(
        "parquet", marks=pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="pyarrow is not installed")
    ),
]

Map = NDArray[np.uint8]


def noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Map:
    """Return random labels of three classes and nodata."""
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, NODATA], dtype=np.uint8), (height, width))


def blobs(height: int = HEIGHT, width: int = WIDTH) -> Map:
    """Return labels with round borders: bands of a wave."""
    row, col = np.mgrid[:height, :width]
    return (np.sin(row / 5) + np.cos(col / 7 + row / 11) > 0.2).astype(np.uint8) * 2


def drawn(*rows: str) -> Map:
    """Return a map drawn in characters: digits are labels, dots nodata."""
    return np.array([[NODATA if label == "." else int(label) for label in row] for row in rows], dtype=np.uint8)


def chunks(labels: Map, cuts: Sequence[int] = (), confidence: Map | None = None) -> list[LabelRows]:
    """Return a map cut above some of its rows."""
    starts, ends = [0, *cuts], [*cuts, len(labels)]
    return [
        LabelRows(start, labels[start:end], None if confidence is None else confidence[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]


def trace(rows: Sequence[LabelRows], *, classes: Sequence[int] = (0, 1, 2)) -> Polygons:
    """Return all polygons of a map."""
    wanted = np.isin(np.arange(256), classes)
    return Polygons.joined(list(trace_polygons(rows, width=rows[0].labels.shape[1], wanted=wanted)))


def write(target: Path, labels: Map, grid: Grid | None = None, *, cuts: Sequence[int] = (), **options: Any) -> int:
    """Write the polygons of a map, which lies at `PLACE` if nothing else is said."""
    grid = Grid(labels.shape[0], labels.shape[1], UTM, PLACE) if grid is None else grid
    rows = chunks(labels, cuts, options.pop("confidence", None))
    return write_polygons(target, rows, grid, **{"class_names": NAMES, **options})


def read(path: Path) -> Any:
    """Return the columns and geometries of a file."""
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)


def expected(labels: Map, *, classes: Sequence[int] = (0, 1, 2)) -> list[tuple[Any, int]]:
    """Return the polygons that GDAL finds in the whole map, normalized, with their labels."""
    shapes = rasterio.features.shapes(labels, mask=np.isin(labels, classes), connectivity=4)
    return [(shapely.normalize(shapely.geometry.shape(shape)), int(label)) for shape, label in shapes]


def inside(geometry: Any, labels: Map) -> NDArray[np.bool_]:
    """Return the pixels of a polygon in pixel coordinates."""
    return rasterio.features.rasterize([geometry], out_shape=labels.shape, dtype="uint8") == 1


@st.composite
def cut_maps(draw: st.DrawFn) -> tuple[Map, list[int]]:
    """Draw a small map of a few labels and the rows above which it is cut."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    label = st.sampled_from(draw(st.sampled_from([[0, 1], [0, 1, 2], [1, NODATA], [0, 0, 0, 1, NODATA]])))
    rows = draw(st.lists(st.lists(label, min_size=width, max_size=width), min_size=height, max_size=height))
    cuts = draw(st.sets(st.integers(1, height - 1))) if height > 1 else set()
    return np.array(rows, dtype=np.uint8), sorted(cuts)


# Geometry


@given(cut_maps())
@settings(max_examples=300)
@example((drawn("101", "101", "111"), [1, 2]))  # two that join later
@example((drawn("111", "101", "111"), [1, 2]))  # a hole that the cuts open
@example((drawn("111", "101", "111"), [2]))
@example((drawn("10", "01"), [1]))  # a corner is no contact
@example((drawn("1110", "1001", "1111"), [1]))  # a ring that touches itself at a corner
@example((drawn("11111", "10101", "11011", "10101", "11111"), [2]))  # holes that touch at corners
@example((drawn("1.1.1", "1.1.1", "111.1", "....1", "11111"), [1, 2, 3, 4]))
def test_cuts_change_no_polygon_of_the_whole_map(case: tuple[Map, list[int]]) -> None:
    labels, cuts = case

    found = trace(chunks(labels, cuts))

    whole = expected(labels)
    assert sorted((polygon.wkt, label) for polygon, label in whole) == sorted(
        (polygon.wkt, label) for polygon, label in zip(found.geometry, found.label.tolist(), strict=True)
    )
    assert shapely.is_valid(found.geometry).all()


@given(cut_maps(), st.integers(0, 2**32))
@settings(max_examples=100)
def test_pixels_and_confidence_are_those_inside(case: tuple[Map, list[int]], seed: int) -> None:
    labels, cuts = case
    confidence = np.random.default_rng(seed).integers(0, 256, labels.shape).astype(np.uint8)

    found = trace(chunks(labels, cuts, confidence))

    for index, geometry in enumerate(found.geometry):
        pixels = inside(geometry, labels)
        assert (labels[pixels] == found.label[index]).all()
        assert found.pixels[index] == pixels.sum()
        assert found.confidence_sum[index] == confidence[pixels].sum(dtype=np.int64)
    assert found.pixels.sum() == (labels != NODATA).sum()


@given(cut_maps())
@settings(max_examples=100)
def test_cuts_change_neither_the_order_nor_a_vertex(case: tuple[Map, list[int]]) -> None:
    labels, cuts = case

    whole, cut = trace(chunks(labels)), trace(chunks(labels, cuts))

    assert shapely.to_wkb(cut.geometry).tolist() == shapely.to_wkb(whole.geometry).tolist()
    pixels = [inside(geometry, labels) for geometry in cut.geometry]
    ends = [(rows[-1], np.flatnonzero(part[rows[-1]])[0]) for part in pixels for rows in [np.flatnonzero(part.any(1))]]
    assert ends == sorted(ends)


@pytest.mark.parametrize("cuts", [[], [30], list(range(1, HEIGHT)), [1, 2, 50, 59]])
@pytest.mark.parametrize("labels", [noise(), blobs(), np.zeros_like(noise())], ids=["noise", "blobs", "one"])
def test_larger_maps_are_those_of_rasterio_too(labels: Map, cuts: list[int]) -> None:
    found = trace(chunks(labels, cuts))

    assert sorted(polygon.wkt for polygon in found.geometry) == sorted(polygon.wkt for polygon, _ in expected(labels))


def test_polygons_come_as_soon_as_they_are_finished() -> None:
    labels = drawn("1.1", "..1", "1.1")

    parts = trace_polygons(chunks(labels, [1, 2]), width=3, wanted=np.ones(256, dtype=bool) & (np.arange(256) < 3))

    assert [part.pixels.tolist() for part in parts] == [[], [1], [], [1, 3]]


def test_a_comb_of_many_teeth_is_one_polygon() -> None:
    labels = np.full((2000, 401), NODATA, dtype=np.uint8)
    labels[:, ::2] = 1
    labels[-1] = 1

    found = trace(chunks(labels, range(1, 2000, 7)))

    assert found.pixels.tolist() == [2000 * 201 + 200]
    assert (
        shapely.get_num_coordinates(found.geometry[0]) == 201 * 4 + 1
    )  # four corners a tooth, as the base adds those that the last gap lacks


# The file


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_holds_polygons_with_their_place_names_and_numbers(tmp_path: Path, suffix: str) -> None:
    labels, confidence = noise(), noise(seed=1)
    target = tmp_path / f"labels.{suffix}"

    count = write(target, labels, cuts=[7, 40], confidence=confidence, layer="cover", metadata={"model": "U-Net < 2"})

    table = read(target)
    assert len(table) == count == len(expected(labels))
    assert list(table.columns) == [*COLUMNS, "geometry"]
    assert [str(table[name].dtype) for name in ("class", "pixels", "area_m2")] == ["int32", "int64", "float64"]
    assert table.crs == "EPSG:32633"
    assert set(table.geometry.geom_type) == {"Polygon"}
    assert table.geometry.is_valid.all()
    assert table.geometry.exterior.is_ccw.all()
    assert table["name"].tolist() == [NAMES[label] for label in table["class"]]
    np.testing.assert_allclose(table["area_m2"], table["pixels"] * 0.09, rtol=1e-12)
    np.testing.assert_allclose(table["area_m2"], table.geometry.area, rtol=1e-5)
    for row in table.itertuples():
        pixels = inside(shapely.transform(row.geometry, lambda xy: np.round((xy - [4e5, 5.3e6]) / [0.3, -0.3])), labels)
        assert (labels[pixels] == row[1]).all()
        assert row.pixels == pixels.sum()
        assert row.probability == pytest.approx(confidence[pixels].mean() / 255, rel=1e-12)
    assert names_in(tmp_path) == [target.name]


def test_a_geopackage_has_the_layer_its_metadata_and_a_spatial_index(tmp_path: Path) -> None:
    write(tmp_path / "a.gpkg", noise(), layer="cover", metadata={"model": "ü < 2"})

    info = pyogrio.read_info(tmp_path / "a.gpkg")
    assert (info["layer_name"], info["geometry_type"]) == ("cover", "Polygon")
    assert info["layer_metadata"] == {"model": "ü < 2"}
    assert info["capabilities"]["fast_spatial_filter"]


def test_a_geoparquet_file_says_what_the_standard_asks_for(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")

    write(tmp_path / "a.parquet", noise(), metadata={"model": "ü < 2"})

    metadata = parquet.read_metadata(tmp_path / "a.parquet").metadata
    geo = json.loads(metadata[b"geo"])
    assert metadata[b"model"].decode() == "ü < 2"
    assert (geo["version"], geo["primary_column"], list(geo["columns"])) == ("1.0.0", "geometry", ["geometry"])
    assert geo["columns"]["geometry"]["encoding"] == "WKB"
    assert geo["columns"]["geometry"]["crs"]["id"] == {"authority": "EPSG", "code": 32633}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "grid",
    [
        Grid(HEIGHT, WIDTH, UTM, Affine(0.1, 0.2, 4e5, 0.25, -0.1, 5e6)),
        Grid(HEIGHT, WIDTH, UTM, Affine(0.5, 0, 4e5, 0, 0.5, 5e6)),
        Grid(HEIGHT, WIDTH, None, Affine(0.5, 0, 4, 0, -0.25, 5)),
        Grid(HEIGHT, WIDTH, CRS.from_epsg(4326), Affine(1e-5, 0, 13, 0, -1e-5, 52)),
        Grid(HEIGHT, WIDTH, CRS.from_user_input("ESRI:102039"), PLACE),
        Grid(HEIGHT, WIDTH, CRS.from_user_input("IAU_2015:49910"), PLACE),
        Grid(HEIGHT, WIDTH, CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]'), PLACE),
        NOWHERE,
    ],
    ids=["rotated", "south up", "no CRS", "degrees", "ESRI", "Mars", "local", "nowhere"],
)
def test_every_grid_is_kept(tmp_path: Path, grid: Grid, suffix: str) -> None:
    target, labels = tmp_path / f"labels.{suffix}", noise()

    write(target, labels, grid, cuts=[20])

    table = read(target)
    t = grid.transform
    matrix = (t.a, t.b, t.d, t.e, t.c, t.f)
    whole = [shapely.affinity.affine_transform(polygon, matrix) for polygon, _ in expected(labels)]
    assert {shapely.normalize(p).wkt for p in table.geometry} == {shapely.normalize(p).wkt for p in whole}
    assert table.geometry.exterior.is_ccw.all()
    assert table.geometry.is_valid.all()
    assert table["area_m2"].isna().all() == (grid.resolution_m is None)
    assert table["probability"].isna().all()
    assert (table.crs is None) == (grid.crs is None)
    if grid.crs is not None and grid.crs.to_epsg():
        assert table.crs.to_epsg() == grid.crs.to_epsg()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_map_without_polygons_makes_an_empty_layer_of_the_same_columns(tmp_path: Path, suffix: str) -> None:
    target, full = tmp_path / f"labels.{suffix}", tmp_path / f"full.{suffix}"

    assert write(target, np.full_like(noise(), NODATA)) == 0
    write(full, noise())

    assert len(read(target)) == 0
    assert list(read(target).columns) == [*COLUMNS, "geometry"]
    assert read(target).crs == UTM.to_string()
    if suffix == "gpkg":
        assert pyogrio.read_info(target)["ogr_types"] == pyogrio.read_info(full)["ogr_types"]


@pytest.mark.parametrize("suffix", FORMATS)
@given(cuts=st.sets(st.integers(1, HEIGHT - 1), max_size=10))
@settings(max_examples=5)  # every example makes two files
def test_the_bytes_depend_neither_on_the_cuts_nor_on_the_time(suffix: str, cuts: set[int]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        whole, cut = Path(folder, f"whole.{suffix}"), Path(folder, f"cut.{suffix}")
        patch.setattr(polygons_module, "_BATCH_VERTICES", 1000)
        write(whole, noise())
        patch.setattr(polygons_module, "_even", lambda rows, at_once: rows)
        write(cut, noise(), cuts=sorted(cuts))

        assert cut.read_bytes() == whole.read_bytes()


def test_no_time_of_day_gets_into_a_geopackage_and_gdal_keeps_its_settings(tmp_path: Path) -> None:
    write(tmp_path / "a.gpkg", noise(), metadata={"model": "U-Net"})

    with sqlite3.connect(tmp_path / "a.gpkg") as file:
        times = file.execute("select last_change from gpkg_contents").fetchall()
        times += file.execute("select timestamp from gpkg_metadata_reference").fetchall()
    file.close()
    assert {time for (time,) in times} == {"1970-01-01T00:00:00.000Z"}
    assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") is None


def test_memory_of_the_rows_may_be_reused(tmp_path: Path) -> None:
    def reusing() -> Iterator[LabelRows]:
        memory = np.empty((1, WIDTH), dtype=np.uint8)
        for row in range(HEIGHT):
            memory[:] = noise()[row]
            yield LabelRows(row, memory)

    write_polygons(tmp_path / "reused.gpkg", reusing(), GRID, class_names=NAMES)
    write(tmp_path / "plain.gpkg", noise())

    assert (tmp_path / "reused.gpkg").read_bytes() == (tmp_path / "plain.gpkg").read_bytes()


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_tall_chunks_are_cut_and_low_ones_gathered(at_once: int) -> None:
    rows = chunks(noise(), [1, 2, 3, 30, 31], noise(seed=1))

    even = list(polygons_module._even(rows, at_once=at_once))

    assert all(at_once <= len(part.labels) < 2 * at_once for part in even[:-1])
    assert [part.row for part in even] == np.cumsum([0, *(len(part.labels) for part in even[:-1])]).tolist()
    np.testing.assert_array_equal(np.concatenate([part.labels for part in even]), noise())
    np.testing.assert_array_equal(np.concatenate([part.confidence for part in even]), noise(seed=1))


# What is left out


def test_only_chosen_classes_become_polygons(tmp_path: Path) -> None:
    write(tmp_path / "a.gpkg", noise(), classes=[2, 0])

    assert len(read(tmp_path / "a.gpkg")) == len(expected(noise(), classes=[0, 2]))
    assert set(read(tmp_path / "a.gpkg")["class"]) == {0, 2}


def test_nodata_may_be_the_first_label(tmp_path: Path) -> None:
    write(tmp_path / "a.gpkg", drawn("012", "012"), nodata=0)

    assert read(tmp_path / "a.gpkg")["class"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [1, 2, 4]),
        ({"min_area_px": 2}, [2, 4]),
        ({"min_area_m2": 0.18}, [2, 4]),  # exactly two pixels of 0.3 m
        ({"min_area_m2": 0.19}, [4]),
        ({"min_area_m2": 0.18, "min_area_px": 3}, [4]),
        ({"min_area_m2": 0.3, "min_area_px": 1}, [4]),
        ({"min_area_px": 5}, []),
    ],
)
def test_polygons_that_are_too_small_are_left_out(tmp_path: Path, options: dict[str, Any], left: list[int]) -> None:
    labels = drawn("1.11.111", ".......1")

    count = write(tmp_path / "a.gpkg", labels, cuts=[1], **options)

    assert read(tmp_path / "a.gpkg")["pixels"].tolist() == left
    assert count == len(left)


def test_rounding_leaves_out_no_polygon_of_exactly_the_least_area(tmp_path: Path) -> None:
    grid = Grid(1, 5, UTM, Affine(0.7, 0, 4e5, 0, -0.7, 5e6))  # 0.7**2 is a little less than 0.49

    write(tmp_path / "a.gpkg", drawn("11.1."), grid, min_area_m2=0.98)

    assert read(tmp_path / "a.gpkg")["pixels"].tolist() == [2]


# Simpler outlines


@given(cut_maps(), st.floats(0.1, 4), st.booleans())
@settings(max_examples=150)
def test_simplified_polygons_are_valid_and_keep_the_numbers_of_their_pixels(
    case: tuple[Map, list[int]], simplify_px: float, rotated: bool
) -> None:
    labels, cuts = case
    grid = Grid(labels.shape[0], labels.shape[1], UTM, Affine(0.1, 0.2, 4e5, 0.25, -0.1, 5e6) if rotated else PLACE)
    pixels = trace(chunks(labels)).pixels.tolist()

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "a.gpkg"), labels, grid, cuts=cuts, simplify_px=simplify_px)
        table = read(Path(folder, "a.gpkg"))

    assert table["pixels"].tolist() == pixels
    assert set(table.geometry.geom_type) <= {"Polygon"}
    assert table.geometry.is_valid.all()
    assert (table.geometry.area > 0).all()
    assert table.geometry.exterior.is_ccw.all()


def test_what_simplifying_breaks_is_repaired_or_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_them(_: NDArray[np.object_], *__: float, **___: bool) -> NDArray[np.object_]:
        bow_tie = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 1)])  # two triangles, the right one is larger
        return np.array([bow_tie, shapely.Polygon(), shapely.Polygon([(4, 0), (5, 1), (4, 0)])], dtype=object)

    monkeypatch.setattr(shapely, "simplify", break_them)
    write(tmp_path / "a.gpkg", drawn("1.1.1"), Grid(1, 5, None, Affine.identity()), simplify_px=1)

    repaired, empty, flat = read(tmp_path / "a.gpkg").geometry
    assert repaired.equals_exact(shapely.Polygon([(2, 2), (2 / 3, 2 / 3), (2, 0)]), 1e-9, normalize=True)
    assert repaired.exterior.is_ccw
    assert (empty.bounds, flat.bounds) == ((2, 0, 3, 1), (4, 0, 5, 1))
    assert empty.area == flat.area == 1


def test_simplifying_removes_stairs_and_moves_no_border_further_than_asked(tmp_path: Path) -> None:
    labels = blobs()
    for name, simplify_px in (("exact", 0.0), ("simple", 1.0)):
        write(tmp_path / f"{name}.gpkg", labels, simplify_px=simplify_px)

    exact, simple = (read(tmp_path / f"{name}.gpkg") for name in ("exact", "simple"))

    assert simple.geometry.count_coordinates().sum() < exact.geometry.count_coordinates().sum() / 2
    assert exact.geometry.boundary.hausdorff_distance(simple.geometry.boundary).max() <= 0.3 * 1.0 + 1e-6
    assert (simple["area_m2"] == exact["area_m2"]).all()


# All or nothing


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_previous_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException], suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polygons_module, "_BATCH_VERTICES", 100)
    monkeypatch.setattr(polygons_module, "_even", lambda rows, at_once: rows)
    target = tmp_path / f"labels.{suffix}"
    write(target, noise())
    before = target.read_bytes()

    def interrupted() -> Iterator[LabelRows]:
        yield from chunks(noise(seed=1), [20, 40])[:2]
        raise error

    with pytest.raises(error):
        write_polygons(target, interrupted(), GRID, class_names=NAMES)

    assert target.read_bytes() == before
    assert names_in(tmp_path) == [target.name]


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_existing_file_is_replaced_whole(tmp_path: Path, suffix: str) -> None:
    target, fresh = tmp_path / f"labels.{suffix}", tmp_path / f"fresh.{suffix}"
    write(target, noise())
    before = target.read_bytes()

    with target.open("rb") as other:
        write(target, noise(seed=1))
        assert other.read() == before

    write(fresh, noise(seed=1))
    assert target.read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.95, 0.999])
def test_a_full_disk_is_one_clear_line_and_leaves_the_previous_file(
    tmp_path: Path, suffix: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polygons_module, "_BATCH_VERTICES", 2000)
    target, fresh = tmp_path / f"labels.{suffix}", tmp_path / f"fresh.{suffix}"
    write(target, noise())
    before = target.read_bytes()
    write(fresh, noise(200, 300))
    num_bytes = fresh.stat().st_size
    fresh.unlink()

    with files_end_at(int(share * num_bytes)), pytest.raises(RasterError, match=target.name) as caught:
        write(target, noise(200, 300))

    assert "\n" not in str(caught.value)
    assert target.read_bytes() == before
    assert names_in(tmp_path) == [target.name]


def test_a_driver_that_loses_polygons_in_silence_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyogrio, "read_info", lambda *_, **__: {"features": 7})

    with pytest.raises(RasterError, match=r"labels\.gpkg could be written in part only"):
        write(tmp_path / "labels.gpkg", noise())

    assert names_in(tmp_path) == []


@pytest.mark.parametrize("ending", ["-wal", "-journal"])
def test_a_geopackage_that_another_program_has_open_is_not_replaced(tmp_path: Path, ending: str) -> None:
    journal = tmp_path / f"labels.gpkg{ending}"
    journal.touch()

    with pytest.raises(RasterError, match=f"is open in another program.*labels.gpkg{ending}"):
        write(tmp_path / "labels.gpkg", noise())

    assert names_in(tmp_path) == [journal.name]


def test_a_geopackage_that_is_opened_meanwhile_is_not_replaced_either(tmp_path: Path) -> None:
    def rows() -> Iterator[LabelRows]:
        (tmp_path / "labels.gpkg-wal").touch()
        yield from chunks(noise())

    with pytest.raises(RasterError, match="is open in another program"):
        write_polygons(tmp_path / "labels.gpkg", rows(), GRID, class_names=NAMES)

    assert names_in(tmp_path) == ["labels.gpkg-wal"]


# Refusals


@pytest.mark.parametrize("name", ["labels.shp", "labels", "labels.tif", ".gpkg", "labels.gpkg.zip"])
def test_another_suffix_is_refused_in_a_line_that_names_those_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidConfigError, match=r"\.gpkg .*\.parquet .*Try .*\.gpkg\.") as caught:
        write(tmp_path / name, noise())

    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == []


def test_without_pyarrow_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))

    with pytest.raises(InvalidConfigError, match=r"pip install geonorm\[parquet\]"):
        write(tmp_path / "labels.parquet", noise())

    assert names_in(tmp_path) == []


def test_a_geopackage_needs_no_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", refuse)
        count = write(tmp_path / "labels.gpkg", noise())

    assert count == len(expected(noise()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [1, 3]}, r"classes must be labels in \[0, 2\] other than nodata=255, got 3"),
        ({"classes": [-1]}, "got -1"),
        ({"classes": [2], "nodata": 2}, "other than nodata=2, got 2"),
        ({"min_area_px": -1}, "min_area_px=-1"),
        ({"min_area_m2": -0.5}, "min_area_m2=-0.5"),
        ({"min_area_m2": float("nan")}, "min_area_m2=nan"),
        ({"simplify_px": -1}, "simplify_px must be 0 or more pixels, got -1"),
        ({"simplify_px": float("nan")}, "simplify_px"),
        ({"class_names": NAMES * 100}, "256 classes at most, got 300"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        write(tmp_path / "labels.gpkg", noise(), **options)

    assert names_in(tmp_path) == []


def test_square_metres_of_a_raster_without_a_place_are_refused_and_pixels_are_not(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="Use min_area_px"):
        write(tmp_path / "labels.gpkg", noise(), NOWHERE, min_area_m2=1)

    assert write(tmp_path / "labels.gpkg", noise(), NOWHERE, min_area_px=HEIGHT * WIDTH) == 0


def test_a_transform_that_flattens_the_raster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match="all pixels on one line"):
        write(tmp_path / "labels.gpkg", noise(), Grid(HEIGHT, WIDTH, UTM, Affine(1, 1, 0, 1, 1, 0)))


def test_a_place_where_no_file_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.gpkg").mkdir()

    with pytest.raises(RasterError, match="is a folder"):
        write(tmp_path / "folder.gpkg", noise())
    with pytest.raises(RasterError, match="there is no folder"):
        write(tmp_path / "missing" / "labels.gpkg", noise())


def test_a_label_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"holds label 5, 7, but class_names has 3 name\(s\)"):
        write(tmp_path / "labels.gpkg", drawn("017", "515"))

    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (chunks(noise())[:0], "only 0 of 60 rows came"),
        (chunks(noise(), [20])[:1], "only 20 of 60 rows came"),
        (chunks(noise(), [20])[1:], "row 0 of 60 is next, got rows 20 to 59"),
        (chunks(noise(61)), "row 0 of 60 is next, got rows 0 to 60"),
        (chunks(noise(60, 89)), "90 wide"),
        ([LabelRows(0, noise().astype(np.int64))], "must be uint8"),
        ([LabelRows(0, noise(), noise()[:30])], "must be uint8"),
        ([LabelRows(0, noise()[:30], noise()[:30]), LabelRows(30, noise()[30:])], "all chunks must have confidence"),
    ],
)
def test_rows_out_of_order_or_shape_are_our_bug(tmp_path: Path, rows: list[LabelRows], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        write_polygons(tmp_path / "labels.gpkg", rows, GRID, class_names=NAMES)

    assert type(caught.value) is ValueError
    assert names_in(tmp_path) == []
