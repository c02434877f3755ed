"""The page of a consistency report: sound HTML, figures as they are, names that cannot break out, all in one file."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geonorm.errors import InvalidConfigError
from geonorm.evaluation.consistency_page import Layer, Scene, write_consistency_page
from geonorm.evaluation.consistency_tables import NOTHING
from tests.evaluation.consistency_reports import comparison, house, report, run, scene, skipped

ROOT = Path(__file__).parents[2]
VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta"})
NASTY = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


class Page(HTMLParser):
    """A page taken apart; an element that is not closed in turn raises."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.text: list[str] = []
        self._cell = False
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        self.text.append(data)
        if self._cell:
            self.tables[-1][-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def written(tmp_path: Path, runs: list[Any] | None = None, scenes: list[Scene] | None = None) -> str:
    if runs is None:
        runs = [run("GN", [comparison(flips=300)]), run("LCN", [comparison()])]
    write_consistency_page(tmp_path / "report.html", report(runs), [scene()] if scenes is None else scenes)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def held(text: str) -> Any:
    """Return what the page hands to its viewer."""
    [found] = re.findall(r'<script type="application/json" id="scenes">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


# The page as a whole


def test_the_page_is_sound_with_one_main_heading_landmarks_and_unique_ids(tmp_path: Path) -> None:
    page = Page(written(tmp_path))

    tags = [tag for tag, _ in page.elements]
    ids = page.attributes("id")
    assert len(ids) == len({*ids})
    assert [tags.count(tag) for tag in ("h1", "header", "main", "footer")] == [1, 1, 1, 1]
    for name in ("aria-labelledby", "aria-describedby"):
        assert {*page.attributes(name)} <= {*ids}
    assert {link[1:] for link in page.attributes("href") if link.startswith("#")} <= {*ids}


def test_headings_skip_no_level(tmp_path: Path) -> None:
    levels = [int(tag[1]) for tag, _ in Page(written(tmp_path)).elements if re.fullmatch("h[1-6]", tag)]

    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_page_loads_nothing_and_forbids_itself_to(tmp_path: Path) -> None:
    text = written(tmp_path)
    page = Page(text)

    assert not re.search(r"https?:|url\(|@import|\bfetch\(|\bimport\b", text)
    assert all(source.startswith("data:") for source in page.attributes("src"))
    assert all(link.startswith(("#", "./", "data:image/")) for link in page.attributes("href"))
    [policy] = page.attributes("content")[:1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_page_without_scenes_has_no_viewer(tmp_path: Path) -> None:
    text = written(tmp_path, scenes=[])

    Page(text)
    assert "<script" not in text
    assert 'id="viewer"' not in text


def test_names_from_files_stay_text(tmp_path: Path) -> None:
    runs = [
        run(
            NASTY,
            [
                comparison(flips=3, words=NASTY, files={"map": f"javascript:{NASTY}", "change": "//host/x.tif"}),
                skipped("whole", None, NASTY),
            ],
            source=NASTY.replace("/", "-"),
            class_names=[NASTY, "b"],
            halo_kind=NASTY,
            unbounded=[NASTY, NASTY],
        )
    ]
    place = scene(NASTY, models={NASTY: 3}, names=[NASTY, "b"], source=NASTY.replace("/", "-"))

    text = written(tmp_path, runs, [place])

    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert not page.attributes("onerror")
    assert all(tag != "img" for tag, _ in page.elements)
    assert not any(link.lower().startswith(("javascript", "/")) for link in page.attributes("href"))
    assert "alert(1)" in "".join(page.text)
    assert held(text)["scenes"][0]["layers"][0]["model"] == NASTY


def test_what_a_clone_has_a_built_package_has_too(tmp_path: Path) -> None:
    build = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "lib")]
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", *build]

    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    folder = Path("geonorm/evaluation/page")
    assert {path.name for path in (tmp_path / "lib" / folder).iterdir()} == {
        path.name for path in (ROOT / folder).iterdir()
    }


# Tables


def rows_of(page: Page) -> dict[str, list[str]]:
    """Return the cells of the first table by the words they begin with."""
    return {row[0]: row[1:] for row in page.tables[0]}


def test_the_table_tells_zero_from_next_to_nothing_and_marks_both(tmp_path: Path) -> None:
    runs = [
        run("GN", [comparison(flips=300)]),
        run("BN", [comparison(flips=4, pixels=1_000_000)]),
        run("LCN", [comparison(flips=0, pixels=1_000_000)]),
    ]

    rows = rows_of(Page(written(tmp_path, runs)))

    assert rows["Measure"] == ["GN", "BN", "LCN"]
    assert rows["Grid moved by 128 pxa multiple of the stride"] == [
        "3.0 %300 of 10,000",
        "0.00040 %4 of 1.0 million",
        "✓ 0 %0 of 1.0 million",
    ]


def test_the_best_of_a_row_is_marked_with_those_that_read_the_same(tmp_path: Path) -> None:
    scores = {"GN": 0.6, "BN": 0.61001, "LCN": 0.61002}
    runs = [
        run(name, [comparison(flips=1)], scores={"iou": [0.9, iou], "mean_iou": iou, "accuracy": 0.9})
        for name, iou in scores.items()
    ]

    rows = rows_of(Page(written(tmp_path, runs)))

    assert rows["Mean IoUgrid at rest"] == ["0.600", "★ 0.610", "★ 0.610"]
    assert rows["Accuracygrid at rest"] == ["0.900", "0.900", "0.900"]


def test_a_skipped_comparison_says_why_and_one_that_a_model_lacks_is_empty(tmp_path: Path) -> None:
    runs = [
        run("GN", [comparison(flips=1), skipped("whole", None, "it would need 40 GiB")]),
        run("LCN", [comparison()]),
    ]

    page = Page(written(tmp_path, runs))

    assert rows_of(page)["The whole image in one passno tiles"] == ["not measuredit would need 40 GiB", NOTHING]
    assert ["GN", "the whole image in one pass", "Not measured: it would need 40 GiB"] in page.tables[1]


def test_aligned_and_unaligned_moves_by_the_same_distance_stay_apart(tmp_path: Path) -> None:
    runs = [run("A", [comparison("aligned", 16, flips=1)]), run("B", [comparison("unaligned", 16, flips=2)])]

    rows = rows_of(Page(written(tmp_path, runs)))

    assert rows["Grid moved by 16 pxa multiple of the stride"] == ["0.010 %1 of 10,000", NOTHING]
    assert rows["Grid moved by 16 pxnot a multiple of the stride"] == [NOTHING, "0.020 %2 of 10,000"]


@pytest.mark.parametrize(
    ("seam", "expected"),
    [
        ((10, 100, 2, 900, 45.0), "45.0 times10 % at seams, 0.22 % elsewhere"),
        ((10, 100, 0, 900, None), "only at seams"),
        ((0, 100, 0, 900, None), "nothing changes"),
        ((0, 0, 2, 900, None), f"{NOTHING}no border between cores"),
    ],
)
def test_seam_energy_has_words_where_it_has_no_number(
    tmp_path: Path, seam: tuple[int, int, int, int, float | None], expected: str
) -> None:
    names = ("flips_on", "pixels_on", "flips_off", "pixels_off", "energy")
    runs = [run("A", [comparison(flips=12, pixels=1_000, seam=dict(zip(names, seam, strict=True)))])]

    rows = rows_of(Page(written(tmp_path, runs)))

    assert rows["Seam energygrid moved by 128 px"] == [expected]


def test_every_figure_of_the_report_is_on_the_page(tmp_path: Path) -> None:
    runs = [
        run(
            "GN",
            [comparison(flips=300, ties=7, consistent_and_correct_percent=91.2, change_max=0.41)],
            scores={"iou": [0.9, 0.61], "mean_iou": 0.61, "accuracy": 0.93},
            iou_spread=0.004,
            corner_consensus={"patches": 40, "mean": 0.993, "size_px": 128, "padding_px": 64},
        )
    ]

    text = " ".join(Page(written(tmp_path, runs)).text)

    for expected in ("7 of them ties", "91.2 %", "0.41", "0.610", "0.930", "0.0040", "99.30 %", "40 patches", "12.3 s"):
        assert expected in text


def test_files_are_linked_from_the_folder_of_the_page(tmp_path: Path) -> None:
    runs = [run("GN", [comparison(flips=1, files={"map": "gn a/moved#1.tif", "change": None})])]

    links = Page(written(tmp_path, runs)).attributes("href")

    assert "./gn%20a/moved%231.tif" in links
    assert "./report.json" in links


# Curves


def test_the_curve_lies_at_its_percentages_and_zero_on_the_axis_of_zero(tmp_path: Path) -> None:
    curve = {"from_px": [1, 2, 4], "pixels": [1000, 1000, 1000], "flips": [100, 10, 0]}
    text = written(tmp_path, [run("GN", [comparison(flips=110, curve=curve)])])

    [(heights)] = [
        [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
        for path in re.findall(r'<g class="series-0"><path d="([^"]+)"', text)
    ]

    ticks = {
        label: float(y) - 4.5
        for y, label in re.findall(r'<text class="tick" x="\d+" y="([\d.]+)" [^>]+>([\d.]+)<', text)
    }
    assert heights == pytest.approx([ticks["10"], ticks["1"], ticks["0"]], abs=0.1)


def test_a_class_of_distance_without_pixels_is_a_gap(tmp_path: Path) -> None:
    curve = {"from_px": [1, 2, 4], "pixels": [10, 0, 10], "flips": [1, 0, 1]}

    text = written(tmp_path, [run("GN", [comparison(flips=2, curve=curve)])])

    assert re.search(r'<path d="M[\d.]+ [\d.]+M[\d.]+ [\d.]+"/>', text)
    assert ["2 to 3 px", "no pixel"] in Page(text).tables[2]


def test_where_nothing_changes_words_stand_for_the_curve(tmp_path: Path) -> None:
    text = written(tmp_path, [run("LCN", [comparison()])])

    assert "No label changes at any distance." in text
    assert 'class="series-' not in text


# Scenes


def test_the_viewer_gets_the_labels_of_every_map(tmp_path: Path) -> None:
    place = scene(models={"GN": 10, "LCN": 0})

    [found] = held(written(tmp_path, scenes=[place]))["scenes"]

    layers: list[np.ndarray] = []
    for stored, layer in zip(found["layers"], place.layers, strict=True):
        labels = np.frombuffer(zlib.decompress(base64.b64decode(stored["labels"])), np.uint8).reshape(120, 170)
        layers.append(labels if stored["base"] is None else labels ^ layers[stored["base"]])
        np.testing.assert_array_equal(layers[-1], layer.pixels)
    assert [stored["base"] for stored in found["layers"]] == [None, 0, None, 2]


def test_the_viewer_begins_with_the_model_that_changes_most(tmp_path: Path) -> None:
    assert held(written(tmp_path, scenes=[scene(models={"LCN": 0, "GN": 10})]))["start"] == [2, 3]
    single = scene(models={"LCN": 0})
    lonely = replace(single, layers=single.layers[:1])
    assert held(written(tmp_path, scenes=[lonely]))["start"] == [0, 0]


def test_tile_borders_are_told_in_cells_of_the_window(tmp_path: Path) -> None:
    whole = scene(cell_px=2)
    place = replace(whole, row=100, col=300, seams={"at rest": ([100, 150, 400], [0, 310])})

    [found] = held(written(tmp_path, scenes=[place]))["scenes"]

    assert found["seams"] == {"at rest": [[25.0], [5.0]]}


def test_a_still_picture_shows_every_change_and_counts_them(tmp_path: Path) -> None:
    labels = np.zeros((1000, 1500), np.uint8)
    moved = labels.copy()
    moved[123, 456] = 1
    layers = [Layer(model="BN", grid="at rest", pixels=labels), Layer(model="BN", grid="moved", pixels=moved)]
    image = np.zeros((1000, 1500, 3), np.uint8)
    place = replace(scene(), height=1000, width=1500, image=image, layers=layers)

    text = written(tmp_path, scenes=[place])

    [png] = re.findall(r'href="data:image/png;base64,([^"]+)"', text)
    with Image.open(BytesIO(base64.b64decode(png))) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    rows, cols = np.nonzero(pixels[..., 3])
    assert len(rows) == 1
    assert 1000 / pixels.shape[0] * rows[0] <= 123 < 1000 / pixels.shape[0] * (rows[0] + 1)
    assert 1500 / pixels.shape[1] * cols[0] <= 456 < 1500 / pixels.shape[1] * (cols[0] + 1)
    assert "1 of 1.5\N{NO-BREAK SPACE}million differ (0.000067\N{NO-BREAK SPACE}%)" in text


def test_pixels_without_data_in_either_map_do_not_differ(tmp_path: Path) -> None:
    blank = house(120, 170, 0)
    blank[:60] = 255
    place = scene(models={"GN": 10})
    layers = [place.layers[0], Layer(model="GN", grid="moved", pixels=blank)]

    text = written(tmp_path, scenes=[replace(place, layers=layers)])

    assert "0 of 10,200 differ (0\N{NO-BREAK SPACE}%)" in text


def test_a_layer_of_another_shape_is_refused_by_name() -> None:
    place = scene()
    wrong = Layer(model="GN", grid="at rest", pixels=np.zeros((170, 120), np.uint8))

    with pytest.raises(InvalidConfigError, match=r"needs 120 x 170 cells .* got \(170, 120\) .* 'GN, at rest'"):
        replace(place, layers=[wrong])


@pytest.mark.slow
def test_a_page_of_three_models_and_eight_scenes_stays_small(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    shape = (1024, 1024)
    coarse = draw.integers(0, 255, (*(side // 4 for side in shape), 3), np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
    maps = [(np.asarray(image)[..., band] > 127).astype(np.uint8) for band in range(3)]
    flips = (draw.random(shape) < 0.03).astype(np.uint8)
    layers = [
        Layer(model=f"norm {band}", grid=grid, pixels=labels ^ flips if grid == "moved" else labels)
        for band, labels in enumerate(maps)
        for grid in ("at rest", "moved")
    ]
    overview = replace(scene(), height=1024, width=1024, image=image, layers=layers)
    near = np.s_[:512, :512]
    cut = [replace(one, pixels=one.pixels[near]) for one in layers]
    place = replace(overview, height=512, width=512, image=image[near], layers=cut)

    text = written(tmp_path, scenes=[overview, *[place] * 7])

    assert len(text) < 10e6
