"""Small scenes in the folders that data sets of torchgeo expect."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from pyproj import Transformer
from torchgeo.datasets import ChesapeakeCVPR, DeepGlobeLandCover, Potsdam2D, Vaihingen2D

HEIGHT, WIDTH = 60, 90
Array = NDArray[Any]


def scene(seed: int, *, values: Sequence[int], bands: int = 3) -> tuple[Array, Array]:
    """Return an image ``(C, H, W)``, uint8, and a mask ``(H, W)`` of some values: blocks of about equal brightness."""
    random = np.random.default_rng(seed)
    which = random.integers(0, len(values), (6, 9)).repeat(10, 0).repeat(10, 1)
    image = 20 + which * (180 // len(values)) + random.integers(0, 30, (bands, HEIGHT, WIDTH))
    return image.astype(np.uint8), np.asarray(values, dtype=np.uint8)[which]


def write_tif(
    path: Path, image: Array, *, crs: str = "EPSG:32633", place: Affine | None = None, driver: str = "GTiff"
) -> None:
    """Write a raster ``(C, H, W)``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    # The first pixel has an even number, counted from the origin: pooling begins with it.
    place = place or Affine(0.3, 0, 390_000, 0, -0.3, 5_280_000)
    shape = {"count": count, "height": height, "width": width, "dtype": image.dtype.name}
    with rasterio.open(path, "w", driver=driver, crs=crs, transform=place, **shape) as dataset:
        dataset.write(image)


def write_picture(path: Path, image: Array) -> None:
    """Write a picture ``(C, H, W)`` or ``(H, W)``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image.transpose(1, 2, 0) if image.ndim == 3 else image)
    picture.save(path)


def in_colors(mask: Array, colors: Sequence[Sequence[int]]) -> Array:
    """Return a mask as a picture ``(3, H, W)``."""
    return np.asarray(colors, dtype=np.uint8)[mask].transpose(2, 0, 1)


def inria(root: Path) -> Path:
    for seed, name in enumerate(["austin1", "austin6", "vienna2", "vienna7"]):
        image, mask = scene(seed, values=[0, 255])
        write_tif(root / "AerialImageDataset/train/images" / f"{name}.tif", image)
        write_tif(root / "AerialImageDataset/train/gt" / f"{name}.tif", mask[None])
    write_tif(root / "AerialImageDataset/test/images/bellingham1.tif", image)
    return root


def potsdam(root: Path) -> Path:
    names = [*Potsdam2D.splits["train"][:5], *Potsdam2D.splits["test"][:2]]
    for seed, name in enumerate(names):
        image, mask = scene(seed, values=range(6), bands=4)
        write_tif(root / "4_Ortho_RGBIR" / f"{name}_RGBIR.tif", image)
        write_tif(root / f"{name}_label.tif", in_colors(mask, Potsdam2D.colormap))
    return root


def vaihingen(root: Path) -> Path:
    names = [*Vaihingen2D.splits["train"][:5], *Vaihingen2D.splits["test"][:2]]
    for seed, name in enumerate(names):
        image, mask = scene(seed, values=range(6))
        write_tif(root / "top" / name, image)
        write_tif(root / name, in_colors(mask, Vaihingen2D.colormap))
    return root


def loveda(root: Path) -> Path:
    for seed, folder in enumerate(["Train/Urban", "Train/Rural", "Val/Urban", "Val/Rural"]):
        for number in range(2):
            image, mask = scene(10 * seed + number, values=range(8))  # 0 is no data
            write_picture(root / folder / "images_png" / f"{number}.png", image)
            write_picture(root / folder / "masks_png" / f"{number}.png", mask)
    return root


def landcoverai(root: Path) -> Path:
    for seed, split in enumerate(["train", "val", "test"]):
        names = [f"M-33_{seed}{number}" for number in range(4)]
        for number, name in enumerate(names):
            image, mask = scene(10 * seed + number, values=range(5))
            write_picture(root / "output" / f"{name}.jpg", image)
            write_picture(root / "output" / f"{name}_m.png", mask)
        (root / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return root


def etci(root: Path) -> Path:
    for seed, split in enumerate(["train", "test"]):
        for number in range(4):
            image, mask = scene(10 * seed + number, values=[0, 255])
            tiles = root / split / "scene" / "tiles"
            write_picture(tiles / "vv" / f"{number}.png", image)
            write_picture(tiles / "vh" / f"{number}.png", 255 - image)
            write_picture(tiles / "flood_label" / f"{number}.png", mask)
            write_picture(tiles / "water_body_label" / f"{number}.png", mask * 0)
    return root


def deepglobe(root: Path) -> Path:
    for folder, count in (("training_data", 5), ("test_data", 2)):
        for number in range(count):
            image, mask = scene(100 * count + number, values=range(7))
            colored = in_colors(mask, DeepGlobeLandCover.colormap)
            write_picture(root / "data" / folder / "images" / f"{number}_sat.jpg", image)
            write_picture(root / "data" / folder / "masks" / f"{number}_mask.png", colored)
    return root


def spacenet(root: Path) -> Path:
    """Draw chips of 406 x 439 px as distributed, with one building each."""
    folder = root / "SN1_buildings/train"
    place = Affine(5e-6, 0, -43.6, 0, -5e-6, -22.8)
    for number in range(1, 11):
        image = np.random.default_rng(number).integers(1, 255, (3, 406, 439)).astype(np.uint8)
        write_tif(folder / f"3band/3band_AOI_1_RIO_img{number}.tif", image, crs="EPSG:4326", place=place)
        corners = [place @ corner for corner in ((100, 50), (300, 50), (300, 250), (100, 250), (100, 50))]
        shape = {"type": "Polygon", "coordinates": [corners]}
        feature = {"type": "Feature", "properties": {}, "geometry": shape}
        target = folder / f"geojson/Geo_AOI_1_RIO_img{number}.geojson"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}), encoding="utf-8")
    return root


def chesapeake(root: Path) -> Path:
    """Draw tiles of three splits of Delaware beside each other, in UTM, with the index in web Mercator."""
    for name in ChesapeakeCVPR._files:
        target = root / name
        (target if target.suffix else target / "none").parent.mkdir(parents=True, exist_ok=True)
        target.touch() if target.suffix else target.mkdir(exist_ok=True)
    features = []
    for number, split in enumerate(["train", "val", "test"]):
        random = np.random.default_rng(number)
        which = random.integers(0, 8, (40, 40)).repeat(10, 0).repeat(10, 1)
        mask = np.asarray([0, 1, 2, 3, 4, 5, 6, 15], dtype=np.uint8)[which]
        image = (20 + which * 20 + random.integers(0, 20, (4, 400, 400))).astype(np.uint8)
        place = Affine(1, 0, 450_000 + 2000 * number, 0, -1, 4_300_000)
        folder = f"de_1m_2013_extended-debuffered-{split}_tiles"
        layers = {"naip-new": image, "lc": mask[None]}
        for layer, values in layers.items():
            write_tif(root / folder / f"m_{number}_{layer}.tif", values, crs="EPSG:26918", place=place)
        to_index = Transformer.from_crs("EPSG:26918", "EPSG:3857", always_xy=True)
        corners = [to_index.transform(*(place @ corner)) for corner in ((0, 0), (400, 0), (400, 400), (0, 400), (0, 0))]
        features.append(
            {
                "type": "Feature",
                "properties": {"split": f"de-{split}"}
                | {layer: f"{folder}/m_{number}_{layer}.tif" for layer in (*layers, "naip-old", "nlcd", "buildings")},
                "geometry": {"type": "Polygon", "coordinates": [corners]},
            }
        )
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    index = {"type": "FeatureCollection", "crs": crs, "features": features}
    (root / "spatial_index.geojson").write_text(json.dumps(index), encoding="utf-8")
    return root


def l8biome(root: Path) -> Path:
    """Draw ten scenes of 11 bands and 16 bits in web Mercator; masks hold 0, 64, 128, 192, 255."""
    for number in range(10):
        image, mask = scene(number, values=[0, 64, 128, 192, 255], bands=11)
        name = f"LC80{number:02d}0012013{number + 1:03d}AAA00"
        place = Affine(30, 0, 1_000_000 + 10_000 * number, 0, -30, 5_000_000)
        write_tif(root / name / f"{name}.TIF", image.astype(np.uint16) * 40, crs="EPSG:3857", place=place)
        write_tif(root / name / f"{name}_fixedmask.TIF", mask[None], crs="EPSG:3857", place=place)
    return root


def l7irish(root: Path) -> Path:
    """Draw ten scenes of 9 bands in web Mercator; masks hold 0, 64, 128, 192, 255."""
    for number in range(1, 11):
        image, mask = scene(number, values=[0, 64, 128, 192, 255], bands=9)
        place = Affine(30, 0, 1_000_000 + 10_000 * number, 0, -30, 5_000_000)
        name = f"L71{number:03d}001_0012000{number:02d}01.TIF"
        write_tif(root / f"p{number}" / name, image, crs="EPSG:3857", place=place)
        write_tif(root / f"p{number}" / f"L7_p{number}_r1_newmask2015.TIF", mask[None], crs="EPSG:3857", place=place)
    return root


def naip_chesapeake(root: Path) -> Path:
    """Draw one image of NAIP and land use of seven states, all of the same ground."""
    values = [11, 21, 22, 23, 27, 28, 41, 42, 0]
    image, mask = scene(0, values=values, bands=4)
    image, mask = (part.repeat(4, -1).repeat(4, -2) for part in (image, mask))
    write_tif(root / "naip" / "m_3807511_ne_18_060_20181104.tif", image, crs="EPSG:26918")
    for state in ("dc", "de", "md", "ny", "pa", "va", "wv"):
        write_tif(root / "lulc" / f"{state}_lulc_2018_2022-Edition.tif", mask[None], crs="EPSG:26918")
    return root


def gid15(root: Path) -> Path:
    for split, count in (("train", 5), ("test", 1)):
        for number in range(count):
            image, mask = scene(number, values=range(16))
            write_tif(root / "GID/img_dir" / split / f"{number}.tif", image)
            write_picture(root / "GID/ann_dir" / split / f"{number}_15label.png", mask)
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "InriaAerialImageLabelingDataModule": inria,
    "Potsdam2DDataModule": potsdam,
    "Vaihingen2DDataModule": vaihingen,
    "LoveDADataModule": loveda,
    "LandCoverAIDataModule": landcoverai,
    "ETCI2021DataModule": etci,
    "DeepGlobeLandCoverDataModule": deepglobe,
    "SpaceNet1DataModule": spacenet,
    "ChesapeakeCVPRDataModule": chesapeake,
    "L8BiomeDataModule": l8biome,
    "L7IrishDataModule": l7irish,
    "NAIPChesapeakeDataModule": naip_chesapeake,
    "GID15DataModule": gid15,
}
"""What draws the folder of a data module, by the name of its class."""

SETTINGS: dict[str, dict[str, Any]] = {
    "InriaAerialImageLabelingDataModule": {"patch_size": 32},
    "Potsdam2DDataModule": {"patch_size": 32},
    "Vaihingen2DDataModule": {"patch_size": 32},
    "DeepGlobeLandCoverDataModule": {"patch_size": 32},
    "ChesapeakeCVPRDataModule": {
        "patch_size": 32,
        "length": 4,
        "train_splits": ["de-train"],
        "val_splits": ["de-val"],
        "test_splits": ["de-test"],
    },
    "L8BiomeDataModule": {"patch_size": 32, "length": 4},
    "L7IrishDataModule": {"patch_size": 32, "length": 4},
    "NAIPChesapeakeDataModule": {"patch_size": 32, "length": 4},
    "GID15DataModule": {"patch_size": 32},
}
"""Settings of a data module beside its root and its batch size."""


def folders_of(name: str, root: Path) -> dict[str, Path]:
    """Return what the data set behind a data module calls its folders."""
    if name == "NAIPChesapeakeDataModule":
        return {"naip_paths": root / "naip", "chesapeake_paths": root / "lulc"}
    return {"paths" if name in ("L7IrishDataModule", "L8BiomeDataModule") else "root": root}
