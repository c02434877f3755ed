"""Small archives like those that are downloaded."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from geonorm.raster.write import write_image


def make_tile(path: Path, *, bands: int, height: int, width: int, seed: int = 0, resolution_m: float = 0.3) -> None:
    """Write a tile of noise, or of 0 and 255 where it has one band."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    top = 256 if bands > 1 else 2
    values = rng.integers(0, top, (bands, height, width)).astype(np.uint8) * np.uint8(1 if bands > 1 else 255)
    place = Affine(resolution_m, 0, 600_000, 0, -resolution_m, 4_400_000)
    write_image(path, values, crs="EPSG:32614", transform=place)


def zip_folder(folder: Path, target: Path, *, prefix: str = "") -> str:
    """Put all files of a folder into a zip, and return its MD5."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{prefix}{path.relative_to(folder).as_posix()}")
    return hashlib.md5(target.read_bytes(), usedforsecurity=False).hexdigest()


def cut(path: Path, count: int) -> list[Path]:
    """Cut a file into parts ``.001`` ... and remove it."""
    held = path.read_bytes()
    side = -(-len(held) // count)
    parts = []
    for number in range(count):
        part = path.with_name(f"{path.name}.{number + 1:03d}")
        part.write_bytes(held[number * side : (number + 1) * side])
        parts.append(part)
    path.unlink()
    return parts


def break_after(monkeypatch: pytest.MonkeyPatch, target: str, count: int, error: BaseException) -> None:
    """Let a function (``module.name``) work ``count`` times, then raise."""
    module, _, name = target.rpartition(".")
    whole = __import__(module, fromlist=[name])
    real, calls = getattr(whole, name), []

    def stub(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) > count:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(whole, name, stub)
