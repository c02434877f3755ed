"""Batches of polygons -> GeoPackage or GeoParquet. What appears, appears whole."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyogrio  # type: ignore[import-untyped]  # ships no types
import pyogrio.errors  # type: ignore[import-untyped]  # ships no types
import pyogrio.raw  # type: ignore[import-untyped]  # ships no types
import pyproj
import shapely  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray
from pyogrio._err import CPLE_BaseError  # type: ignore[import-untyped]  # GDAL's own errors have no public name
from rasterio.crs import CRS

from geonorm.errors import InvalidConfigError, RasterError
from geonorm.files import folder_beside, put_in_place
from geonorm.raster.write import check_target, failing_as

Columns = Mapping[str, NDArray[Any]]

SUFFIXES = (".gpkg", ".parquet")

_OGR_ERRORS = (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, CPLE_BaseError)


class PolygonWriter:
    """Writes polygons with attributes into one layer, as GeoPackage (``.gpkg``) or GeoParquet (``.parquet``).

    Use it in a ``with`` statement. The target appears at its end, whole; what was there is replaced. After an
    exception there is no trace of the attempt. Equal batches make equal bytes: no time of day gets in.
    """

    def __init__(
        self, target: str | os.PathLike[str], crs: CRS | None, *, layer: str, metadata: Mapping[str, str]
    ) -> None:
        """Check all that can be checked before work.

        Args:
            target: The file to make; its suffix says the format.
            crs: Coordinate system of the polygons.
            layer: Name of the layer; GeoParquet knows no layers.
            metadata: What else is to be known about the layer, such as its provenance.
        """
        self.target = check_polygon_target(target, overwrite=True)
        self._crs = crs
        self._layer = layer
        self._metadata = metadata
        self._num_written = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # undone here if a step fails, else by __exit__
            self._made = stack.enter_context(folder_beside(self.target)) / f"made{self.target.suffix}"
            open_file = _GeoPackage if self.target.suffix == ".gpkg" else _GeoParquet
            self._file = open_file(self._made, self._crs, layer=self._layer, metadata=self._metadata)
            self._stack = stack.pop_all()
        return self

    def write(self, polygons: NDArray[np.object_], columns: Columns) -> None:
        """Append polygons, and their attributes by name; no float is written as NaN but as null.

        The first batch, which may be empty, decides the types of the columns, and the file needs one.
        """
        with failing_as(self.target, errors=_OGR_ERRORS):
            self._file.append(shapely.to_wkb(polygons), columns)
        self._num_written += len(polygons)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            try:
                with failing_as(self.target, errors=_OGR_ERRORS):
                    self._file.close()
            except RasterError:
                if kind is None:  # else the first error says more
                    raise
            if kind is None:
                self._publish()

    def _publish(self) -> None:
        """Put the finished file in the place of the target; even a power cut leaves one or the other."""
        with failing_as(self.target, errors=_OGR_ERRORS):
            num_found = self._file.count()  # a driver may keep silent when the disk is full at the very end
            if num_found != self._num_written:
                raise RasterError(f"{self.target} could be written in part only. Free space and try again.")
            _check_not_open(self.target)
            put_in_place(self._made, self.target)


def check_polygon_target(target: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return ``target`` if a file of polygons can be made there, else raise in one line; nothing is touched.

    Raises:
        InvalidConfigError: Its suffix names no format, or one that needs pyarrow, which is not installed.
        RasterError: No file can be made there, or a program has it open.
        TargetExistsError: It exists and ``overwrite`` is off.
    """
    path = Path(target)
    if path.suffix not in SUFFIXES:
        raise InvalidConfigError(
            f"polygons go to .gpkg (GeoPackage) or .parquet (GeoParquet), got {path.name!r}. "
            f"Try {path.with_suffix('.gpkg').name if path.stem else 'labels.gpkg'}."
        )
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InvalidConfigError(
            f"{path.name} needs pyarrow: pip install geonorm[parquet]. Or name it {path.with_suffix('.gpkg').name}."
        )
    checked = check_target(path, overwrite=overwrite)
    _check_not_open(checked)
    return checked


class _GeoPackage:
    """A GeoPackage that grows by batches."""

    def __init__(self, path: Path, crs: CRS | None, *, layer: str, metadata: Mapping[str, str]) -> None:
        self._path, self._layer = path, layer
        self._wkt = None if crs is None else crs.to_wkt()
        self._metadata = dict(metadata)

    def append(self, wkb: NDArray[np.object_], columns: Columns) -> None:
        exists = self._path.exists()
        with _undated(), warnings.catch_warnings():
            # Polygons of a raster without a CRS have none either: nothing to warn of.
            warnings.filterwarnings("ignore", message="'crs' was not provided", category=UserWarning)
            pyogrio.raw.write(
                self._path,
                wkb,
                field_data=list(columns.values()),
                fields=list(columns),
                layer=self._layer,
                driver="GPKG",
                geometry_type="Polygon",
                crs=self._wkt,
                append=exists,
                layer_metadata=None if exists else self._metadata or None,
            )

    def close(self) -> None:
        """Do nothing: every batch closes the file."""

    def count(self) -> int:
        return int(pyogrio.read_info(self._path, layer=self._layer, force_feature_count=True)["features"])


class _GeoParquet:
    """A GeoParquet file that grows by batches, one row group each (version 1.0.0 of geoparquet.org)."""

    def __init__(self, path: Path, crs: CRS | None, *, layer: str, metadata: Mapping[str, str]) -> None:
        column = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            # Without the key it would be longitude and latitude; null says that it is unknown.
            "crs": None if crs is None else pyproj.CRS.from_wkt(crs.to_wkt()).to_json_dict(),
            "orientation": "counterclockwise",
        }
        geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column}}
        self._path = path
        self._writer: Any = None  # made with the first batch, which says the types
        self._metadata = {**metadata, "geo": json.dumps(geo)}

    def append(self, wkb: NDArray[np.object_], columns: Columns) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]  # ships no types; optional, and slow to import
        import pyarrow.parquet as pq  # type: ignore[import-untyped]  # ships no types

        arrays = {name: _arrow(values, pa.array) for name, values in columns.items()}
        table = pa.table({**arrays, "geometry": pa.array(wkb, pa.binary())}).replace_schema_metadata(self._metadata)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def count(self) -> int:
        import pyarrow.parquet as pq

        return int(pq.read_metadata(self._path).num_rows)


def _arrow(values: NDArray[Any], array: Callable[..., Any]) -> Any:
    """Return an Arrow array with null for NaN; objects are strings, even if there are none to tell by."""
    return array(values, "string") if values.dtype == object else array(values, from_pandas=True)


def _check_not_open(target: Path) -> None:
    """Raise if SQLite would apply the journal of another program to the file that is to come."""
    for ending in ("-wal", "-journal"):
        journal = target.with_name(target.name + ending)
        if target.suffix == ".gpkg" and journal.exists():
            raise RasterError(
                f"{target} is open in another program, or was when that one stopped: there is {journal.name}. "
                "Close it there (QGIS: remove the layer), or choose another name."
            )


@contextmanager
def _undated() -> Iterator[None]:
    """Let GDAL write a fixed time instead of the time of day."""
    name = "OGR_CURRENT_DATE"
    before = pyogrio.get_gdal_config_option(name)
    pyogrio.set_gdal_config_options({name: "1970-01-01T00:00:00.000Z"})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({name: before})
