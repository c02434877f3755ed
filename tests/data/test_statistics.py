"""Band statistics and class shares, against numpy over whole files, and the cache that keeps them."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geonorm.data import statistics
from geonorm.data.statistics import FILE_NAME, cache_places, cached_statistics, fingerprint, measure
from geonorm.errors import DatasetError
from tests.data.broken import HEIGHT, NAMES, WIDTH, draw_folder, image_of, inria, mask_of, place, rasters, write
from tests.folders import names_in


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's folder of caches out of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw_folder(tmp_path / "data")
    return tmp_path / "data"


def whole(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means, deviations and class shares of the three training images, the slow and obvious way."""
    values = np.stack([image_of(number) for number in (1, 2, 3)], axis=1).reshape(3, -1).astype(np.float64)
    houses = np.mean([mask_of(number) == 255 for number in (1, 2, 3)])
    return values.mean(1), values.std(1), np.array([1 - houses, houses])


def test_statistics_and_shares_are_numpys_over_whole_files(folder: Path) -> None:
    means, deviations, shares = whole(folder)

    spec = inria(folder).spec

    np.testing.assert_allclose(np.array(spec.band_means), means, rtol=1e-12)
    np.testing.assert_allclose(np.array(spec.band_deviations), deviations, rtol=1e-12)
    np.testing.assert_allclose(np.array(spec.class_shares), shares, rtol=1e-12)


def test_pixels_that_do_not_count_have_no_share(folder: Path) -> None:
    image = image_of(1)
    image[:, :30] = 0
    mask = mask_of(1)
    mask[0, :, :20] = 9
    write(folder / "images/austin6.tif", image, place(1), nodata=0)
    write(folder / "gt/austin6.tif", mask, place(1))

    shares = rasters(folder, ignored=[9], test_names=["austin7", "austin8"]).spec.class_shares

    counting = mask[0, 30:, 20:]
    assert shares == pytest.approx([(counting == 0).mean(), (counting == 255).mean()])


def test_many_pixels_are_sampled_close_to_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "NUM_WINDOWS", 64)
    monkeypatch.setattr(statistics, "SIDE_PX", 16)
    values = np.random.default_rng(0).normal(100, 20, (3, 300, 400)).clip(0, 255).astype(np.uint8)
    mask = np.where(np.random.default_rng(1).random((1, 300, 400)) < 0.2, np.uint8(255), np.uint8(0))
    for number, name in enumerate(NAMES[:2]):
        write(tmp_path / f"images/{name}.tif", values, place(number * 9))
        write(tmp_path / f"gt/{name}.tif", mask, place(number * 9))
    data = inria(tmp_path)

    measured = measure(data.pairs["train"], data.grids["train"], num_classes=2, seed=0)

    assert not measured.exact
    np.testing.assert_allclose(measured.means, values.mean((1, 2)), rtol=0.02)
    np.testing.assert_allclose(measured.deviations, values.std((1, 2)), rtol=0.02)
    assert measured.class_shares[1] == pytest.approx(0.2, abs=0.02)


# The cache


def count_measures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every measurement add to a list."""
    done: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        done.append(1)
        return measure(*args, **options)

    monkeypatch.setattr(statistics, "measure", counted)
    return done


def test_what_was_measured_is_not_measured_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = count_measures(monkeypatch)

    first, second = inria(folder).spec, inria(folder).spec

    assert first == second
    assert len(done) == 1
    assert FILE_NAME in names_in(folder / "images")
    assert all(not name.startswith(f"{FILE_NAME}.") for name in names_in(folder / "images"))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: write(folder / "images/austin6.tif", image_of(9), place(1)),
        lambda folder: write(folder / "gt/austin6.tif", mask_of(9), place(1)),
        lambda folder: os.utime(folder / "images/austin6.tif", ns=(1, 1)),
        lambda folder: {"val_names": ["austin6"]},
        lambda folder: {"seed": 3},
    ],
    ids=["image", "labels", "time", "split", "seed"],
)
def test_what_has_changed_is_measured_again(folder: Path, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    before = inria(folder).spec
    done = count_measures(monkeypatch)

    settings = change(folder)
    after = inria(folder, **(settings if isinstance(settings, dict) else {}))

    assert after.spec.band_means is not None
    assert len(done) == 1
    assert inria(folder, **(settings if isinstance(settings, dict) else {})).spec == after.spec
    assert len(done) == 1
    assert before.class_names == after.spec.class_names


@pytest.mark.parametrize("settings", [{"bands": [3, 1]}, {"nodata": 7.0}, {"ignored": [9]}, {"nodata_rule": "any"}])
def test_every_setting_that_matters_is_part_of_the_key(folder: Path, settings: dict[str, Any]) -> None:
    usual, other = (rasters(folder, **some).pairs["train"] for some in ({}, settings))

    assert fingerprint(usual, num_classes=2, seed=0) != fingerprint(other, num_classes=2, seed=0)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', "null", "\0"])
def test_a_cache_that_is_not_whole_is_written_anew(folder: Path, content: str) -> None:
    expected = inria(folder).spec
    (folder / "images" / FILE_NAME).write_text(content)

    assert inria(folder).spec == expected
    assert len(json.loads((folder / "images" / FILE_NAME).read_text())) >= 1


@pytest.mark.parametrize(
    "entry",
    [None, 3, {}, {"means": [1, 2, 3]}, {"means": [1], "deviations": [1], "class_shares": [1], "exact": True}],
)
def test_an_entry_that_is_not_whole_is_measured_anew(folder: Path, entry: Any) -> None:
    data = inria(folder)
    expected = data.spec
    key = fingerprint(data.pairs["train"], num_classes=2, seed=0)
    (folder / "images" / FILE_NAME).write_text(json.dumps({key: entry}))

    assert inria(folder).spec == expected


def test_a_folder_that_is_not_to_be_written_to_is_left_alone(folder: Path, tmp_path: Path) -> None:
    before = names_in(folder / "images")
    os.chmod(folder / "images", 0o555)
    try:
        spec = inria(folder).spec
    finally:
        os.chmod(folder / "images", 0o755)

    assert names_in(folder / "images") == before
    [kept] = (tmp_path / "cache").rglob("*.json")
    assert json.loads(kept.read_text()).popitem()[1]["means"] == list(spec.band_means or ())


def test_without_a_folder_to_write_to_statistics_are_measured_every_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("in the way")
    os.chmod(folder / "images", 0o555)
    done = count_measures(monkeypatch)
    try:
        first, second = inria(folder).spec, inria(folder).spec
    finally:
        os.chmod(folder / "images", 0o755)

    assert first == second
    assert len(done) == 2


def test_only_the_newest_entries_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_ENTRIES", 2)

    for seed in range(4):
        _ = inria(folder, seed=seed).spec

    kept = json.loads((folder / "images" / FILE_NAME).read_text())
    pairs = inria(folder).pairs["train"]
    assert list(kept) == [fingerprint(pairs, num_classes=2, seed=seed) for seed in (2, 3)]


def test_several_at_once_get_the_same_and_leave_a_whole_cache(folder: Path) -> None:
    data = inria(folder)
    pairs, grids = data.pairs["train"], data.grids["train"]
    found: list[Any] = []

    def run(seed: int) -> None:
        found.append(cached_statistics(pairs, grids, num_classes=2, seed=seed))

    threads = [threading.Thread(target=run, args=(number % 2,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert len({one.means for one in found}) == 1  # every pixel was read: the seed changes nothing
    assert json.loads(cache_places(pairs[0].image)[0].read_text())
    assert [name for name in names_in(folder / "images") if name.startswith(".")] == [FILE_NAME]


def test_a_band_without_a_value_is_one_clear_line(folder: Path) -> None:
    image = image_of(1).astype(np.float32)
    image[1] = np.nan
    for number, name in enumerate(NAMES):
        write(folder / f"images/{name}.tif", image, place(number))

    with pytest.raises(DatasetError, match=r"austin6\.tif the first, hold a band with no valid pixel"):
        _ = inria(folder).spec


def test_the_drawn_images_are_not_square() -> None:
    assert HEIGHT != WIDTH
