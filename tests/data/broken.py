"""Small data sets, sound and broken in one way each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import geopandas  # type: ignore[import-untyped]
import numpy as np
import rasterio
import shapely  # type: ignore[import-untyped]
from affine import Affine
from numpy.typing import NDArray

from geonorm.data import InriaDataModule, RastersDataModule
from geonorm.data.patch_module import PatchDataModule

HEIGHT, WIDTH = 60, 90
CRS = "EPSG:32633"
NAMES = ("austin1", "austin6", "austin7", "austin8")  # the first is for validation
PATCH: dict[str, Any] = {"patch_px": 32, "batch_size": 2, "patches_per_epoch": 4, "num_workers": 0}


@dataclass(frozen=True)
class Broken:
    """A way to break a data set."""

    name: str
    how: Callable[[Path], Any]
    """Breaks the data set in a folder; may return settings."""
    kind: str
    file: str
    """Name that the message must hold."""
    severity: Literal["error", "warning"] = "error"
    layout: Literal["inria", "rasters"] = "inria"
    settings: dict[str, Any] = field(default_factory=dict)
    said: str = ""
    """What the message must hold, too."""

    def module(self, folder: Path) -> PatchDataModule:
        """Draw a sound data set in a folder, break it, and return its data module."""
        draw_folder(folder)
        more = self.how(folder)
        settings = {**self.settings, **(more if isinstance(more, dict) else {})}
        return inria(folder, **settings) if self.layout == "inria" else rasters(folder, **settings)


def inria(folder: Path, **settings: Any) -> InriaDataModule:
    return InriaDataModule(**{"root": folder, **PATCH, **settings})


def rasters(folder: Path, **settings: Any) -> RastersDataModule:
    usual: dict[str, Any] = {"classes": {"ground": [0], "house": [255]}, **PATCH}
    if "table" not in settings:
        usual |= {"images": str(folder / "images"), "labels": str(folder / "gt"), "val_names": ["austin1"]}
    return RastersDataModule(**{**usual, **settings})


def place(number: float, *, pixel_m: float = 0.3) -> Affine:
    """Return the transform of an image, so many images to the east of the first."""
    return Affine(pixel_m, 0, 400_000 + 40 * number, 0, -pixel_m, 5_300_000)


def image_of(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(1, 256, (3, HEIGHT, WIDTH)).astype(np.uint8)


def mask_of(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(100 + number).choice(np.array([0, 255], np.uint8), (1, HEIGHT, WIDTH))


def write(path: Path, values: NDArray[Any], transform: Affine | None, *, crs: str | None = CRS, **more: Any) -> Path:
    """Write a raster (C, H, W) with rasterio alone; without a transform it lies nowhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    where = {} if transform is None else {"crs": crs, "transform": transform}
    with rasterio.open(path, "w", driver="GTiff", **shape, **where, **more) as dataset:
        dataset.write(values)
    return path


def draw_folder(folder: Path) -> None:
    """Draw four images beside each other, and their masks."""
    for number, name in enumerate(NAMES):
        write(folder / "images" / f"{name}.tif", image_of(number), place(number))
        write(folder / "gt" / f"{name}.tif", mask_of(number), place(number))


def draw_more(folder: Path) -> Path:
    """Draw other images of the same names elsewhere, and return their folder."""
    for number, name in enumerate(NAMES):
        write(folder / "images" / f"{name}.tif", image_of(40 + number), place(200 + number))
        write(folder / "gt" / f"{name}.tif", mask_of(40 + number), place(200 + number))
    return folder


def new_image(values: NDArray[Any], where: Affine | None = None, **more: Any) -> Callable[[Path], None]:
    """Put another image in the place of austin6."""
    return lambda folder: _ignored(write(folder / "images/austin6.tif", values, where or place(1), **more))


def new_mask(values: NDArray[Any], where: Affine | None = None, **more: Any) -> Callable[[Path], None]:
    return lambda folder: _ignored(write(folder / "gt/austin6.tif", values, where or place(1), **more))


def _ignored(value: object) -> None:
    """Return nothing."""


def cut(path: str, share: float) -> Callable[[Path], None]:
    """Keep the first part of a file."""

    def how(folder: Path) -> None:
        os.truncate(folder / path, int(share * (folder / path).stat().st_size))

    return how


def damage_block(folder: Path, path: str = "images/austin6.tif") -> None:
    """Write a compressed image again, with one block that cannot be unpacked; its header and block table are whole."""
    write(folder / path, image_of(1), place(1), compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    with rasterio.open(folder / path) as dataset:
        offset, size = (int(dataset.get_tag_item(f"BLOCK_{what}_2_1", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE"))
    with open(folder / path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)


def table(*rows: str) -> Callable[[Path], dict[str, Any]]:
    def how(folder: Path) -> dict[str, Any]:
        (folder / "table.csv").write_text("\n".join(rows) + "\n")
        return {"table": str(folder / "table.csv")}

    return how


def polygons(shapes: list[Any], *, crs: str | None = CRS, **columns: list[Any]) -> Callable[[Path], dict[str, Any]]:
    """Take a file of polygons for the labels."""

    def how(folder: Path) -> dict[str, Any]:
        geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(folder / "houses.gpkg")
        return {"labels": str(folder / "houses.gpkg")}

    return how


def rename(old: str, new: str) -> Callable[[Path], None]:
    def how(folder: Path) -> None:
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        (folder / old).rename(folder / new)

    return how


def copy(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: _ignored(shutil.copy(folder / old, folder / new))


def both(*ways: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Do several things; settings of the last count."""

    def how(folder: Path) -> Any:
        return [way(folder) for way in ways][-1]

    return how


def all_masks(values: NDArray[Any]) -> Callable[[Path], None]:
    def how(folder: Path) -> None:
        for number, name in enumerate(NAMES):
            write(folder / "gt" / f"{name}.tif", values, place(number))

    return how


def all_images(values: NDArray[Any], **more: Any) -> Callable[[Path], None]:
    def how(folder: Path) -> None:
        for number, name in enumerate(NAMES):
            write(folder / "images" / f"{name}.tif", values, place(number), **more)

    return how


def folder_named_like_a_file(path: str) -> Callable[[Path], None]:
    def how(folder: Path) -> None:
        (folder / path).unlink()
        (folder / path).mkdir()

    return how


HOUSE = shapely.box(400_003, 5_299_985, 400_150, 5_299_995)  # on all four images
HUGE = Affine(1e6, 0, 0, 0, -1e6, 0)
FAR = shapely.box(500_000, 5_200_000, 500_010, 5_200_010)
BOW_TIE = shapely.Polygon([(400_003, 5_299_985), (400_150, 5_299_995), (400_150, 5_299_985), (400_003, 5_299_995)])
FLOAT = image_of(1).astype(np.float32)
NAN = np.where(np.arange(WIDTH) < WIDTH // 3, np.float32(np.nan), FLOAT)
FRACTIONS = (mask_of(1) / 255).astype(np.float32) * 0.5
SEVENS = np.where(np.arange(WIDTH) < 10, np.uint8(7), mask_of(1))
ROWS = [f"images/{name}.tif,gt/{name}.tif,{'val' if name == NAMES[0] else 'train'}" for name in NAMES]
HEAD = "image,labels,split"
KINDS = {"classes": {"ground": ["none"], "house": ["house"]}, "attribute": "kind"}

BROKEN = [
    # Files that are missing, or are not what they are named
    Broken("no mask", lambda f: (f / "gt/austin6.tif").unlink(), "no labels", "austin6"),
    Broken("no label file", lambda f: (f / "gt/austin6.tif").unlink(), "no labels", "austin6.tif", layout="rasters"),
    Broken("empty file", cut("images/austin6.tif", 0), "image does not open", "images/austin6.tif"),
    Broken("header alone", cut("images/austin6.tif", 0.0006), "image does not open", "images/austin6.tif"),
    Broken("cut off", cut("images/austin6.tif", 0.7), "image does not open", "images/austin6.tif", said="cut off"),
    Broken("mask cut off", cut("gt/austin6.tif", 0.7), "labels do not open", "gt/austin6.tif", said="cut off"),
    Broken("a damaged block", damage_block, "cannot be read", "images/austin6.tif"),
    Broken(
        "text named like a raster",
        lambda f: _ignored((f / "images/austin6.tif").write_text("hello")),
        "image does not open",
        "images/austin6.tif",
    ),
    Broken(
        "a folder named like a raster",
        folder_named_like_a_file("images/austin6.tif"),
        "image does not open",
        "images/austin6.tif",
        said="folder",
    ),
    Broken(
        "a folder named like a raster of ours",
        folder_named_like_a_file("images/austin6.tif"),
        "no images",
        "images/austin6.tif",
        layout="rasters",
        said="folder",
    ),
    Broken("no images", lambda f: shutil.rmtree(f / "images"), "no images", "images"),
    Broken("an empty pattern", lambda f: {"images": str(f / "*.jp2")}, "no images", "*.jp2", layout="rasters"),
    Broken("an empty split", lambda f: {"val_names": []}, "empty split", "austin6"),
    Broken("a name that is not there", lambda f: {"val_names": ["paris1"]}, "names of a split", "paris1"),
    # Names
    Broken("two suffixes", copy("images/austin6.tif", "images/austin6.tiff"), "names twice", "austin6.tiff"),
    Broken("two masks", copy("gt/austin6.tif", "gt/austin6.tiff"), "names twice", "gt/austin6.tiff"),
    Broken("letters of two cases", copy("images/austin6.tif", "images/Austin6.tif"), "names twice", "Austin6.tif"),
    Broken(
        "one name in two folders",
        lambda f: {"root": [f, draw_more(f / "more")]},
        "names twice",
        "more/images/austin1.tif",
        "warning",
    ),
    # Grids
    Broken("a mask of another size", new_mask(mask_of(1)[:, :, 1:]), "labels do not open", "gt/austin6.tif"),
    Broken("a mask elsewhere", new_mask(mask_of(1), place(9999)), "labels elsewhere", "gt/austin6.tif"),
    Broken(
        "labels elsewhere, to be reprojected",
        new_mask(mask_of(1), Affine(1e-6, 0, 99, 0, -1e-6, 10), crs="EPSG:4326"),
        "labels elsewhere",
        "gt/austin6.tif",
        layout="rasters",
    ),
    Broken(
        "labels of a system that has no way to ours",
        new_mask(mask_of(1), place(1), crs='LOCAL_CS["mine",UNIT["metre",1]]'),
        "labels do not open",
        "gt/austin6.tif",
        layout="rasters",
    ),
    Broken("a shifted mask", new_mask(mask_of(1), place(1.1)), "labels shifted", "gt/austin6.tif", "warning"),
    Broken(
        "a mask without a place",
        lambda f: _ignored(write(f / "gt/austin6.tif", mask_of(1), None)),
        "labels without a place",
        "gt/austin6.tif",
        "warning",
    ),
    Broken(
        "pixels without a size",
        new_image(image_of(1), Affine(0.3, 0.3, 400_000, 0.3, 0.3, 5_300_000)),
        "absurd transform",
        "images/austin6.tif",
    ),
    Broken(
        "pixels of half a continent",
        both(new_image(image_of(1), HUGE), new_mask(mask_of(1), HUGE)),
        "absurd transform",
        "images/austin6.tif",
        "warning",
    ),
    Broken(
        "pixels of another size",
        both(new_image(image_of(1), place(9, pixel_m=0.6)), new_mask(mask_of(1), place(9, pixel_m=0.6))),
        "ground size of a pixel",
        "images/austin6.tif",
        "warning",
    ),
    Broken(
        "smaller than a patch",
        both(new_image(image_of(1)[:, :20]), new_mask(mask_of(1)[:, :20])),
        "smaller than a patch",
        "images/austin6.tif",
        "warning",
    ),
    # Bands and values of images
    Broken("a band that is not there", new_image(image_of(1)[:2]), "image does not open", "images/austin6.tif"),
    Broken(
        "another number of bands",
        new_image(np.concatenate([image_of(1), image_of(9)[:1]]), photometric="minisblack", alpha="no"),
        "number of bands",
        "images/austin6.tif",
        "warning",
    ),
    Broken(
        "bands that are not used",
        all_images(np.concatenate([FLOAT, FLOAT])),
        "bands not used",
        "images/austin6.tif",
        "warning",
        layout="rasters",
        said="--data.bands '[1, 2, 3, 4, 5, 6]'",
    ),
    Broken(
        "another type and range",
        new_image(image_of(1).astype(np.uint16) * 200),
        "range of values",
        "images/austin6.tif",
        "warning",
        said="uint16",
    ),
    Broken("many NaN", new_image(NAN), "not finite", "images/austin6.tif", "warning", said="33 %"),
    Broken(
        "an image without data", new_image(np.zeros_like(FLOAT), nodata=0), "no data", "images/austin6.tif", "warning"
    ),
    Broken("no data at all", all_images(np.zeros_like(FLOAT), nodata=0), "no data", "images/austin6.tif"),
    Broken(
        "a flat image",
        new_image(np.full((3, HEIGHT, WIDTH), 80, np.uint8)),
        "flat image",
        "images/austin6.tif",
        "warning",
    ),
    Broken(
        "near infrared tagged as alpha",
        new_image(np.concatenate([image_of(1), image_of(9)[:1]]), photometric="rgb", alpha="yes"),
        "image tagged as alpha",
        "images/austin6.tif",
        "warning",
        said="-colorinterp_4 undefined",
    ),
    # Values of labels
    Broken("a value of no class", new_mask(SEVENS), "label values", "gt/austin6.tif", said="7 (600 pixels)"),
    Broken("fractions", new_mask(FRACTIONS), "label values", "gt/austin6.tif", said="resampled"),
    Broken("a coloured mask", new_mask(image_of(5), photometric="rgb"), "labels in colours", "gt/austin6.tif"),
    Broken(
        "labels of two bands",
        new_mask(np.concatenate([mask_of(1), mask_of(2)])),
        "labels of several bands",
        "gt/austin6.tif",
        "warning",
    ),
    Broken("an empty mask", new_mask(np.zeros_like(mask_of(1))), "one class", "gt/austin6.tif", "warning",
           said="the class not building."),
    Broken("a full mask", new_mask(np.full_like(mask_of(1), 255)), "one class", "gt/austin6.tif", "warning",
           layout="rasters", said="the class house."),
    Broken("empty masks alone", all_masks(np.zeros_like(mask_of(1))), "one class", "gt/austin6.tif", said="alone"),
    Broken(
        "all ignored",
        new_mask(np.full_like(mask_of(1), 9)),
        "all ignored",
        "gt/austin6.tif",
        "warning",
        layout="rasters",
        settings={"ignored": [9]},
    ),
    Broken(
        "all of all ignored",
        all_masks(np.full_like(mask_of(1), 9)),
        "all ignored",
        "gt/austin6.tif",
        layout="rasters",
        settings={"ignored": [9]},
    ),
    Broken(
        "a class without an example",
        lambda f: {"classes": {"ground": [0], "house": [255], "water": [7]}},
        "class missing",
        "gt/austin6.tif",
        "warning",
        layout="rasters",
        said="water",
    ),
    # Splits that share what they show
    Broken(
        "one file in two splits",
        both(
            new_mask(mask_of(0), place(0)),
            lambda f: (f / "images/austin6.tif").unlink(),
            lambda f: os.link(f / "images/austin1.tif", f / "images/austin6.tif"),
        ),
        "same image twice",
        "images/austin6.tif",
        said="is the same file as",
    ),
    Broken(
        "a copy in two splits",
        new_image(image_of(0)),
        "same image twice",
        "images/austin6.tif",
        "warning",
        said="holds the same pixels as",
    ),
    Broken(
        "one place in two splits",
        both(new_image(image_of(1), place(0.3)), new_mask(mask_of(1), place(0.3))),
        "same ground in two splits",
        "images/austin6.tif",
        "warning",
    ),
    # Polygons
    Broken("no such attribute", polygons([HOUSE], use=["house"]), "labels do not open", "houses.gpkg", layout="rasters",
           settings=KINDS, said="use"),
    Broken("an unknown value", polygons([HOUSE], kind=["castle"]), "label values", "houses.gpkg", layout="rasters",
           settings=KINDS, said="castle"),
    Broken("polygons elsewhere", polygons([FAR], kind=["house"]), "one class", "houses.gpkg", layout="rasters"),
    Broken("polygons without a CRS", polygons([HOUSE], crs=None), "labels do not open", "houses.gpkg",
           layout="rasters"),
    Broken("points", polygons([shapely.Point(400_010, 5_299_990)]), "no polygons", "houses.gpkg", layout="rasters"),
    Broken("a polygon that crosses itself", polygons([BOW_TIE]), "broken polygons", "houses.gpkg", "warning",
           layout="rasters"),
    Broken(
        "text named like polygons",
        both(
            lambda f: (f / "houses.gpkg").write_text("hello"),
            lambda f: {"labels": str(f / "houses.gpkg")},
        ),
        "labels do not open",
        "houses.gpkg",
        layout="rasters",
    ),
    # Tables
    Broken("no column", table("image,split", "images/austin1.tif,val"), "table", "table.csv", layout="rasters",
           said="labels"),
    Broken("a missing file", table(HEAD, *ROWS, "images/x.tif,gt/austin6.tif,train"), "no images", "images/x.tif",
           layout="rasters"),
    Broken("a row twice", table(HEAD, *ROWS, ROWS[1]), "table", "images/austin6.tif", layout="rasters",
           said="lines 3 and 6"),
    Broken("a split unheard of", table(HEAD, *ROWS[:3], "images/austin8.tif,gt/austin8.tif,valid"), "table",
           "table.csv", layout="rasters", said="line 5"),
]  # fmt: skip
