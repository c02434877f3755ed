"""Random windows: pure functions of their number, and what rasterio reads at that place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from geonorm.data import patches as module
from geonorm.data.pairs import Pair, open_pair
from geonorm.data.patches import PatchLoader, PatchNumbers, RandomPatches, Sample, WholeShare, packed, turned, unpacked
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import DatasetError

HEIGHT, WIDTH = 60, 90
PLACE = Affine(0.3, 0, 400_000, 0, -0.3, 5_300_000)


def draw(path: Path, values: NDArray[Any], **options: Any) -> str:
    """Write a raster (C, H, W) with rasterio alone."""
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=PLACE, **shape, **options) as dataset:
        dataset.write(values)
    return str(path)


def places(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint16]:
    """Return an image (2, H, W) in which every pixel holds its row and its column, both from 1."""
    rows, cols = np.mgrid[1 : height + 1, 1 : width + 1]
    return np.stack([rows, cols]).astype(np.uint16)


def random_labels(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 2, (height, width)).astype(np.uint8)


def patches(
    folder: Path,
    *images: NDArray[Any],
    labels: NDArray[np.uint8] | None = None,
    patch_px: int = 32,
    seed: int = 0,
    **options: Any,
) -> RandomPatches:
    """Write the images with their labels, and return the patches of them."""
    pairs, grids = [], []
    for number, image in enumerate(images):
        mask = random_labels(*image.shape[1:]) if labels is None else labels
        pair = Pair(
            image=draw(folder / f"{number}.tif", image, **options),
            labels=draw(folder / f"{number}_gt.tif", mask[None]),
            bands=tuple(range(1, len(image) + 1)),
        )
        with open_pair(pair) as files:
            pairs.append(pair)
            grids.append(files.grid)
    return RandomPatches(pairs, grids, patch_px=patch_px, seed=seed)


def same(one: Sample, other: Sample) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def top_left(sample: Sample) -> tuple[int, int]:
    """Return the place of the first pixel of a patch of `places`."""
    row, col = (sample["image"][:, 0, 0] - 1).tolist()
    return row, col


# What a sample is drawn from


def test_a_number_gives_the_same_sample_whenever_and_whoever_is_asked(tmp_path: Path) -> None:
    one, other = patches(tmp_path, places()), patches(tmp_path, places())

    forwards = [one[number] for number in range(10)]
    backwards = [other[number] for number in reversed(range(10))]

    assert all(map(same, forwards, reversed(backwards)))


def test_the_global_random_state_does_not_matter_and_is_left_alone(tmp_path: Path) -> None:
    dataset = patches(tmp_path, places())
    torch.manual_seed(0)
    first, state = dataset[3], torch.get_rng_state()
    torch.manual_seed(1)

    assert same(dataset[3], first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_files_stay_open_and_the_ones_used_longest_ago_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [places() + 1000 * number for number in range(3)]
    fresh = [patches(tmp_path, *images)[number] for number in range(30)]  # each from files just opened
    opened: list[Pair] = []

    def noted(pair: Pair) -> Any:
        opened.append(pair)
        return open_pair(pair)

    monkeypatch.setattr(module, "open_pair", noted)
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    dataset = patches(tmp_path, *images)

    samples = [dataset[number] for number in range(30)]

    assert all(map(same, samples, fresh))
    drawn = [int(sample["image"].max() // 1000) for sample in samples]  # which image each number drew
    held: list[int] = []
    expected = []
    for which in drawn:
        if which not in held:
            expected.append(which)
            held = held[-1:]
        held = [one for one in held if one != which] + [which]
    assert [int(Path(pair.image).stem) for pair in opened] == expected
    assert 3 < len(expected) < 30


def test_a_forked_process_opens_files_of_its_own(tmp_path: Path) -> None:
    dataset = patches(tmp_path, places())
    before = dataset[0]  # open from here on

    workers = DataLoader(dataset, sampler=range(40), batch_size=None, num_workers=2)
    there = list(workers)
    here = [dataset[number] for number in range(40)]

    assert all(map(same, there, here))
    assert same(before, here[0])


@pytest.mark.slow
def test_a_number_gives_the_same_sample_in_another_process(tmp_path: Path) -> None:
    dataset = patches(tmp_path, places())

    there = DataLoader(dataset, sampler=range(10), batch_size=None, num_workers=1, multiprocessing_context="spawn")

    assert [same(sample, dataset[number]) for number, sample in enumerate(there)] == [True] * 10


def test_other_numbers_and_other_seeds_give_other_samples(tmp_path: Path) -> None:
    dataset, reseeded = patches(tmp_path, places()), patches(tmp_path, places(), seed=1)

    drawn = {(*top_left(dataset[number]), int(dataset[number]["turn"])) for number in range(100)}

    assert len(drawn) > 90
    assert sum(top_left(dataset[number]) != top_left(reseeded[number]) for number in range(20)) > 15


# Where a window lies


def test_a_patch_is_what_rasterio_reads_at_its_place(tmp_path: Path) -> None:
    dataset = patches(tmp_path, places())
    for number in range(10):
        sample = dataset[number]
        row, col = top_left(sample)

        window = rasterio.windows.Window(col, row, 32, 32)
        with rasterio.open(tmp_path / "0.tif") as image, rasterio.open(tmp_path / "0_gt.tif") as labels:
            np.testing.assert_array_equal(sample["image"], image.read(window=window))
            np.testing.assert_array_equal(sample["mask"], labels.read(1, window=window))


def test_every_place_is_drawn_about_equally_often(tmp_path: Path) -> None:
    dataset = patches(tmp_path, places(33, 35))

    drawn = Counter(top_left(dataset[number]) for number in range(240))

    assert set(drawn) == {(row, col) for row in range(2) for col in range(4)}
    assert min(drawn.values()) > 10  # 30 are expected; 10 lie 3.9 deviations below


def test_every_turn_is_drawn_about_equally_often_and_apart_from_the_place(tmp_path: Path) -> None:
    dataset = patches(tmp_path, places(32, 33))
    samples = [dataset[number] for number in range(320)]

    drawn = Counter((top_left(sample), int(sample["turn"])) for sample in samples)

    assert len(drawn) == 2 * 8
    assert min(drawn.values()) > 4  # 20 are expected; 4 lie 3.7 deviations below


def test_an_image_is_drawn_in_proportion_to_its_pixels(tmp_path: Path) -> None:
    small, large = (np.full((1, 40, width), value, np.uint8) for width, value in ((40, 1), (120, 2)))
    dataset = patches(tmp_path, small, large)

    times = sum(int(dataset[number]["image"][0, 0, 0]) == 2 for number in range(200))

    assert abs(times - 150) < 25  # four deviations of a binomial of 200 and 3/4


# What a sample holds


def test_a_sample_holds_image_validity_labels_turn_and_number(tmp_path: Path) -> None:
    sample = patches(tmp_path, np.zeros((3, HEIGHT, WIDTH), np.uint8))[0]

    held = {key: (value.dtype, tuple(value.shape)) for key, value in sample.items()}

    assert held == {
        "image": (torch.uint8, (3, 32, 32)),
        "valid": (torch.uint8, (1, 32, 32)),
        "mask": (torch.uint8, (32, 32)),
        "turn": (torch.int64, ()),
        "number": (torch.int64, ()),
    }


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_values_of_every_type_come_out_as_they_are_in_the_file(tmp_path: Path, dtype: str) -> None:
    largest = 1.5 if dtype.startswith("float") else np.iinfo(dtype).max
    image = np.full((1, 32, 32), largest, dtype)

    found = patches(tmp_path, image)[0]["image"]

    assert float(found[0, 0, 0]) == largest
    assert torch.equal(found, found[0, 0, 0].expand_as(found))


@pytest.mark.parametrize("size", [(20, 90), (60, 20), (20, 25), (17, 17), (5, 8), (1, 90), (60, 1), (1, 1)])
def test_an_image_smaller_than_a_patch_is_reflected_with_its_labels(tmp_path: Path, size: tuple[int, int]) -> None:
    image, labels = places(*size), random_labels(*size)
    sample = patches(tmp_path, image, labels=labels)[0]

    rows, cols = (reflected(first, side) for first, side in zip(top_left(sample), size, strict=True))

    np.testing.assert_array_equal(sample["image"], image[:, rows][:, :, cols])
    np.testing.assert_array_equal(sample["mask"], labels[rows][:, cols])
    assert unpacked(sample["valid"], 2).all()


def reflected(first: int, size: int, side_px: int = 32) -> list[int]:
    """Return the positions along one side of a patch, walking to and fro where the image is too short."""
    to_and_fro = [*range(size), *range(size - 2, 0, -1)]
    return (to_and_fro * side_px)[first : first + side_px]


def test_pixels_without_data_do_not_count_and_have_no_label(tmp_path: Path) -> None:
    image = places()
    image[:, 10:40, 20:70] = 0
    dataset = patches(tmp_path, image, nodata=0)
    for number in range(5):
        sample = dataset[number]

        hole = (sample["image"] == 0).all(0)

        assert torch.equal(unpacked(sample["valid"], 2), ~hole.expand(2, 32, 32))
        assert torch.equal(sample["mask"] == IGNORE_LABEL, hole)


def test_holes_are_reflected_too(tmp_path: Path) -> None:
    image = places(20, 20)
    image[:, 5:9, 11:19] = 0

    sample = patches(tmp_path, image, nodata=0)[0]

    hole = (sample["image"] == 0).all(0)
    assert int(hole.sum()) > 4 * 8
    assert torch.equal(unpacked(sample["valid"], 2), ~hole.expand(2, 32, 32))
    assert torch.equal(sample["mask"] == IGNORE_LABEL, hole)


def test_a_pixel_that_only_one_band_lacks_keeps_its_label(tmp_path: Path) -> None:
    image = places(32, 32)
    image[0, 4:9, 6:20] = 0

    sample = patches(tmp_path, image, nodata=0)[0]

    assert not (sample["mask"] == IGNORE_LABEL).any()
    assert torch.equal(unpacked(sample["valid"], 2), sample["image"] != 0)


@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_bits_of_any_number_of_bands_come_back(bands: int, seed: int) -> None:
    valid = np.random.default_rng(seed).random((bands, 3, 5)) < 0.5

    bits = torch.from_numpy(packed(valid))

    assert bits.shape == (-(-bands // 8), 3, 5)
    assert np.array_equal(unpacked(bits, bands), valid)
    assert np.array_equal(unpacked(bits.expand(2, *bits.shape), bands), np.stack([valid, valid]))


def test_a_mask_with_another_value_is_an_error_that_names_it(tmp_path: Path) -> None:
    dataset = patches(tmp_path, places(32, 32), labels=np.full((32, 32), 7, np.uint8))

    with pytest.raises(DatasetError, match=r"0_gt\.tif holds the value 7"):
        dataset[0]


# Numbers of an epoch


@given(steps=st.integers(1, 9), batch_size=st.integers(1, 4), processes=st.integers(1, 3), rest=st.integers(0, 2))
def test_processes_share_the_numbers_step_by_step(steps: int, batch_size: int, processes: int, rest: int) -> None:
    whole = batch_size * processes
    length = steps * whole + min(rest, whole - 1)
    samplers = [
        PatchNumbers(length, batch_size=batch_size, rank=rank, processes=processes) for rank in range(processes)
    ]

    numbers = [[*sampler] for sampler in samplers]

    for step in range(steps):
        part = slice(step * batch_size, (step + 1) * batch_size)
        assert [number for one in numbers for number in one[part]] == [*range(step * whole, (step + 1) * whole)]
    assert [len(sampler) for sampler in samplers] == [len(one) for one in numbers] == [steps * batch_size] * processes


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_where_another_left_off(tmp_path: Path, num_workers: int) -> None:
    dataset = patches(tmp_path, places(32, 32))

    def loader() -> PatchLoader:
        return PatchLoader(dataset, PatchNumbers(8, batch_size=2), num_workers=num_workers)

    through = loader()
    expected = [batch["image"] for _ in range(3) for batch in through]  # 3 epochs of 4 steps
    begun = loader()
    for _ in begun:
        pass
    for _, _ in zip(range(2), begun, strict=False):  # workers have read further by now
        pass

    resumed = loader()
    resumed.numbers.next = begun.numbers.next

    got = [batch["image"] for _ in range(2) for batch in resumed]
    assert begun.numbers.next == 12
    assert all(torch.equal(one, other) for one, other in zip(got, expected[6:], strict=False))


@given(length=st.integers(0, 20), processes=st.integers(1, 5))
def test_every_item_belongs_to_one_process(length: int, processes: int) -> None:
    shares = [[*WholeShare(length, rank=rank, processes=processes)] for rank in range(processes)]

    assert sorted(item for share in shares for item in share) == [*range(length)]


# Turns


@pytest.mark.parametrize("turn", range(8))
def test_a_turn_is_numpys(turn: int) -> None:
    image = torch.arange(2 * 3 * 5).view(2, 3, 5)
    mirrored = image.numpy()[..., ::-1] if turn >= 4 else image.numpy()

    expected = np.rot90(mirrored, turn % 4, axes=(1, 2))

    np.testing.assert_array_equal(turned(image, turn), expected)


def test_the_turns_are_the_eight_symmetries_of_the_square() -> None:
    image = torch.arange(9).view(3, 3)
    turns = [turned(image, turn) for turn in range(8)]

    twice = [turned(once, turn) for once in turns for turn in range(8)]

    assert len({as_key(one) for one in turns}) == 8
    assert {as_key(one) for one in twice} == {as_key(one) for one in turns}


@given(turn=st.integers(0, 7))
def test_image_and_labels_turn_alike(turn: int) -> None:
    labels = torch.arange(36).view(6, 6)

    image = turned(torch.stack([labels, 100 + labels]), turn)

    assert torch.equal(image, torch.stack([turned(labels, turn), 100 + turned(labels, turn)]))


def as_key(image: Tensor) -> tuple[int, ...]:
    return tuple(image.flatten().tolist())
