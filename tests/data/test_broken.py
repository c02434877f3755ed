"""Data sets that are broken in one way each: `check_data` lists it, and a training names it before its first step."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geonorm.cli import main
from geonorm.data.checking import Thoroughness, check_pairs
from geonorm.errors import DatasetError, GeonormError, RasterError
from geonorm.evaluation.data_report import check_data, screen, summary
from tests.data.broken import (
    BROKEN,
    HEIGHT,
    NAMES,
    WIDTH,
    Broken,
    both,
    copy,
    damage_block,
    draw_folder,
    image_of,
    inria,
    mask_of,
    new_image,
    new_mask,
    place,
    rasters,
    write,
)
from tests.folders import names_in
from tests.raster.odd_files import DAMAGED
from tests.tasks.trainings import QUIET, run

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Dataset has no geotransform"),  # rasterio, as it writes a mask without a place
    pytest.mark.filterwarnings("ignore:'crs' was not provided"),  # pyogrio, as it writes polygons without one
]

each_way = pytest.mark.parametrize("broken", BROKEN, ids=[broken.name for broken in BROKEN])


@each_way
@pytest.mark.parametrize("full", [False, True])
def test_check_data_lists_what_is_broken_with_the_file(broken: Broken, tmp_path: Path, full: bool) -> None:
    data = broken.module(tmp_path / "data")

    report = check_data(data, tmp_path / "out", windows=None if full else 8, pictures=0)

    found = [
        finding
        for finding in report.checked.findings.found
        if (finding.kind, finding.severity) == (broken.kind, broken.severity)
    ]
    assert found, report.checked.findings.found
    assert any(broken.file in finding.text and broken.said in finding.text for finding in found), found
    assert bool(report.errors) == (broken.severity == "error"), report.errors
    assert all("\n" not in finding.text for finding in report.checked.findings.found)
    written = json.loads((tmp_path / "out" / "check.json").read_text())["findings"]
    assert [one["text"] for one in written] == [one.text for one in report.checked.findings.found]


@each_way
def test_a_training_names_what_is_broken_before_its_first_step(
    broken: Broken, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = broken.module(tmp_path)

    with caplog.at_level(logging.WARNING, logger="geonorm.data"):
        if broken.severity == "error":
            with pytest.raises(GeonormError) as error:
                data.setup("fit")
            said = str(error.value)
        else:
            data.setup("fit")
            said = " ".join(record.getMessage() for record in caplog.records if broken.said in record.getMessage())

    assert broken.file in said
    assert broken.said in said
    assert "\n" not in said


def test_more_than_twenty_kinds_are_broken() -> None:
    assert len({(broken.kind, broken.file.split(".")[0]) for broken in BROKEN}) > 20


@pytest.mark.parametrize("module", [inria, rasters])
@pytest.mark.parametrize("full", [False, True])
def test_nothing_is_found_in_a_sound_data_set(
    tmp_path: Path, module: Any, full: bool, caplog: pytest.LogCaptureFixture
) -> None:
    draw_folder(tmp_path / "data")

    report = check_data(module(tmp_path / "data"), tmp_path / "out", windows=None if full else 8)
    module(tmp_path / "data").setup("fit")

    assert report.checked.findings.found == []
    assert caplog.records == []
    assert names_in(tmp_path / "out") == ["check.json", "check.md", "train.png", "val.png"]
    assert "Nothing is wrong" in screen(report)


@pytest.mark.parametrize("bands", [[1, 2, 3], [4, 1], [1, 2, 3, 4]])
def test_bands_that_were_left_out_on_purpose_are_not_told(tmp_path: Path, bands: list[int]) -> None:
    draw_folder(tmp_path)
    for number, name in enumerate(NAMES):
        values = np.concatenate([image_of(number), image_of(9 + number)[:1]]).astype(np.uint16)
        write(tmp_path / f"images/{name}.tif", values, place(number))

    report = check_data(rasters(tmp_path, bands=bands), tmp_path / "out", pictures=0)
    unchosen = check_data(rasters(tmp_path), tmp_path / "out", pictures=0)

    assert report.checked.findings.found == []
    [told] = unchosen.checked.findings.found
    assert told.text.startswith(f"band 4 of {tmp_path}/images/austin6.tif and 3 more is not used.")
    assert "--data.bands '[1, 2, 3, 4]'" in told.text


@pytest.mark.parametrize("tagged", [True, False])
def test_an_opacity_is_not_told_as_a_band_that_is_not_used(tmp_path: Path, tagged: bool) -> None:
    draw_folder(tmp_path)
    for number, name in enumerate(NAMES):
        values = np.concatenate([image_of(number), np.full((1, HEIGHT, WIDTH), 255, np.uint8)])
        write(tmp_path / f"images/{name}.tif", values, place(number), alpha="yes" if tagged else "no")

    report = check_data(inria(tmp_path), tmp_path / "out", pictures=0)

    assert [finding.kind for finding in report.checked.findings.found] == ([] if tagged else ["bands not used"])


def test_images_that_are_to_be_in_two_splits_are_not_found_twice(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data")

    report = check_data(inria(tmp_path / "data", train_on_all=True), tmp_path / "out", pictures=0)

    assert report.checked.findings.found == []
    assert (report.splits["train"]["images"], report.splits["val"]["images"]) == (4, 1)


def test_all_that_is_broken_is_told_at_once(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data")
    both(
        lambda folder: (folder / "gt/austin7.tif").unlink(),
        new_mask(np.full((1, HEIGHT, WIDTH), 7, np.uint8)),
        lambda folder: os.truncate(folder / "images/austin8.tif", 0),
        copy("images/austin1.tif", "images/austin1.tiff"),
    )(tmp_path / "data")

    report = check_data(inria(tmp_path / "data"), tmp_path / "out", pictures=0)

    assert {finding.kind for finding in report.errors} == {
        "no labels",
        "label values",
        "image does not open",
        "names twice",
    }
    assert summary(report).startswith("training could not work with these data: 4 error(s)")
    page = (tmp_path / "out" / "check.md").read_text()
    assert all(finding.text in page for finding in report.errors)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_folder(tmp_path)
    forbidden = str(tmp_path / "images" / "austin6.tif")
    may = os.access
    # Not chmod: an administrator may read what nobody may.
    monkeypatch.setattr(os, "access", lambda path, mode: path != forbidden and may(path, mode))

    with pytest.raises(DatasetError, match=r"austin6\.tif may not be read \(permissions\)"):
        inria(tmp_path).setup("fit")


def test_files_that_a_mac_leaves_beside_images_are_no_images(tmp_path: Path) -> None:
    draw_folder(tmp_path)
    for part in ("images", "gt"):
        (tmp_path / part / "._austin6.tif").write_bytes(b"\0\5\x16\7")

    for module in (inria, rasters):
        assert [pair.name for pair in module(tmp_path).pairs["train"]] == ["austin6", "austin7", "austin8"]


def test_images_of_two_types_keep_their_values_in_a_batch(tmp_path: Path) -> None:
    draw_folder(tmp_path)
    write(tmp_path / "images/austin6.tif", np.full((3, HEIGHT, WIDTH), 1000, np.uint16), place(1))
    data = inria(tmp_path, batch_size=16, patches_per_epoch=16)
    data.setup("fit")

    [batch] = data.train_dataloader()

    assert {1000} < {int(value) for value in batch["image"].unique()} <= {1000, *range(256)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # Python 3.12, of torch's workers
def test_images_of_two_types_keep_their_values_from_a_worker(tmp_path: Path) -> None:
    draw_folder(tmp_path)
    write(tmp_path / "images/austin6.tif", np.full((3, HEIGHT, WIDTH), 1000, np.uint16), place(1))
    data = inria(tmp_path, batch_size=16, patches_per_epoch=16, num_workers=1)
    data.setup("fit")

    [batch] = data.train_dataloader()

    assert {1000} < {int(value) for value in batch["image"].unique()} <= {1000, *range(256)}


# What shows only while a network is trained


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # Python 3.12, of torch's workers
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_block_damaged_after_the_check_is_one_line_with_the_file(tmp_path: Path, num_workers: int) -> None:
    draw_folder(tmp_path)
    data = inria(tmp_path, num_workers=num_workers, batch_size=8, patches_per_epoch=64)
    data.setup("fit")
    damage_block(tmp_path)

    with pytest.raises(RasterError) as error:
        for _ in data.train_dataloader():
            pass

    assert "images/austin6.tif" in str(error.value)
    assert "\n" not in str(error.value)


# How much is looked at


def test_a_quick_look_sees_few_windows_and_a_full_one_every_pixel(tmp_path: Path) -> None:
    values = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (1, 900, 1100))
    values[0, 450, 3] = 7
    for number, name in enumerate(("austin1", "austin6")):
        image = np.random.default_rng(number).integers(1, 256, (3, 900, 1100)).astype(np.uint8)
        write(tmp_path / f"images/{name}.tif", image, place(9 * number))
        write(tmp_path / f"gt/{name}.tif", values, place(9 * number))
    pairs = inria(tmp_path).pairs

    quick = check_pairs(pairs, ("a", "b"), patch_px=32)
    full = check_pairs(pairs, ("a", "b"), patch_px=32, thoroughness=Thoroughness(windows=None))

    assert not quick.findings.found
    assert all(one.pixels == 2 * 256**2 and not one.complete for one in quick.looked)
    assert all(one.pixels == 900 * 1100 and one.complete for one in full.looked)
    assert {finding.kind for finding in full.findings.errors} == {"label values"}
    assert all("7 (1 pixel)" in finding.text for finding in full.findings.errors)


def test_figures_are_numpys_over_every_pixel(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data")

    report = check_data(inria(tmp_path / "data"), tmp_path / "out", windows=None, pictures=0)

    images = np.stack([image_of(number) for number in (1, 2, 3)], axis=1).reshape(3, -1).astype(np.float64)
    houses = np.mean([mask_of(number) == 255 for number in (1, 2, 3)])
    figures = report.splits["train"]
    assert figures["class_shares"] == pytest.approx([1 - houses, houses])
    assert figures["pixels_looked_at"] == figures["pixels"] == 3 * HEIGHT * WIDTH
    for name, expected in (
        ("least", images.min(1)),
        ("most", images.max(1)),
        ("mean", images.mean(1)),
        ("deviation", images.std(1)),
    ):
        np.testing.assert_allclose([band[name] for band in figures["values"]], expected, rtol=1e-9)


def test_pictures_show_the_rarest_class(tmp_path: Path) -> None:
    from geonorm.evaluation.data_pictures import interesting

    data = tmp_path / "data"
    draw_folder(data)
    write(data / "gt/austin7.tif", np.where(np.arange(WIDTH) < 3, np.uint8(255), np.zeros_like(mask_of(2))), place(2))
    for name in ("austin6", "austin8"):
        write(data / f"gt/{name}.tif", np.zeros_like(mask_of(2)), place(1 + (name == "austin8") * 2))
    looked = check_pairs(inria(data).pairs, ("ground", "house"), patch_px=32).looked

    [(first, _)] = interesting([one for one in looked if one.split == "train"], most=1)

    assert first.pair.name == "austin7"


@pytest.mark.real
def test_nothing_is_found_in_real_images_but_what_is_there(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "buildings-rgb" / "oam-030"
    data = inria(folder, val_names=["zanzibar1", "kampala1"])

    report = check_data(data, tmp_path)

    assert report.checked.findings.found == []
    assert names_in(tmp_path) == ["check.json", "check.md", "train.png", "val.png"]


@pytest.mark.real
@pytest.mark.parametrize("name", [*DAMAGED])
def test_damaged_files_of_real_life_are_named(real_data: Path, tmp_path: Path, name: str) -> None:
    draw_folder(tmp_path)
    shutil.copy(real_data / "odd-geotiff" / name, tmp_path / "images" / "austin6.tif")

    report = check_data(inria(tmp_path), tmp_path / "out", pictures=0)

    assert any("images/austin6.tif" in finding.text for finding in report.errors)
    with pytest.raises(GeonormError, match="austin6"):
        inria(tmp_path).setup("fit")


# The command


def fit_words(folder: Path) -> list[str]:
    words = ["--data", "InriaDataModule", "--data.root", str(folder), "--data.patch_px=32", "--data.batch_size=2"]
    return [*words, "--data.patches_per_epoch=4", "--data.num_workers=0"]


def test_the_command_says_what_it_found_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_folder(tmp_path / "data")

    code = main(["check_data", str(tmp_path / "out"), *fit_words(tmp_path / "data"), "--model.norm", "x.y"])

    out = capsys.readouterr().out
    assert code == 0
    assert "not building" in out
    assert "Nothing is wrong with what was looked at." in out


def test_the_command_takes_configurations_of_a_training(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data")
    (tmp_path / "data.yaml").write_text(
        f"data:\n  class_path: geonorm.data.InriaDataModule\n  init_args:\n    root: {tmp_path / 'nowhere'}\n"
    )
    (tmp_path / "run.yaml").write_text("trainer:\n  max_epochs: 1\nmodel:\n  learning_rate: 0.1\n")
    words = ["check_data", str(tmp_path / "out"), "--config", str(tmp_path / "data.yaml")]
    words += [f"--config={tmp_path / 'run.yaml'}", "--pictures", "0"]

    assert main([*words, "--data.root", str(tmp_path / "data")]) == 0
    others = ["--augment.transforms", "[]", "--data_facts.bands=[red]", "--compare", "{seeds: [1]}", "--model.norm=x"]
    assert main([*words, *others, "--data.root", str(tmp_path / "data")]) == 0
    assert main(words) == 2


BY_COMMAND = ["a damaged block", "a value of no class", "a mask of another size", "empty masks alone", "cut off"]


@pytest.mark.parametrize("name", BY_COMMAND)
def test_both_commands_end_with_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [broken] = [broken for broken in BROKEN if broken.name == name]
    broken.module(tmp_path / "data")
    words = [*fit_words(tmp_path / "data"), "--model.norm", "geonorm.norms.BatchNorm"]

    for command in (["check_data", str(tmp_path / "out")], ["fit"]):
        code = run([*command, *words])

        said = capsys.readouterr().err.splitlines()
        assert code == 2
        assert said[-1].startswith("geonorm: error: ")
        assert broken.file in said[-1]
        assert not any("Traceback" in line for line in said)


def test_an_interrupted_check_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_folder(tmp_path / "data")
    new_image(image_of(9))(tmp_path / "data")

    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("geonorm.data.checking.look_at", interrupted)

    assert main(["check_data", str(tmp_path / "out"), *fit_words(tmp_path / "data")]) == 130
    assert names_in(tmp_path / "out") == []
