"""Headlines, verdicts and numbers of consistency reports."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geonorm.evaluation.consistency_words import count, halos, headline, name_of, percent, share, verdicts
from tests.evaluation.consistency_reports import comparison, run, skipped


def said(runs: list[Any]) -> str:
    """Return the headline with plain spaces."""
    return headline(runs).replace("\N{NO-BREAK SPACE}", " ")


def test_the_headline_begins_with_the_model_that_changes_least() -> None:
    runs = [
        run("GN", [comparison(flips=1_200_000, pixels=33_177_600)]),
        run("LCN", [comparison(flips=0, pixels=33_177_600)]),
    ]

    assert said(runs) == (
        "Moving the tile grid by 128 px changes 0 of 33.2 million labels with LCN and 1.2 million (3.6 %) with GN."
    )


def test_the_halo_of_every_model_is_told_with_its_cost() -> None:
    runs = [run("LCN", [], halo_px=160, overhead=2.64), run("BN", [], halo_px=48, overhead=1.41)]

    assert halos(runs).replace("\N{NO-BREAK SPACE}", " ") == (
        "Halos: LCN 160 px exact at 2.64 times the compute; BN 48 px exact at 1.41 times the compute."
    )


def test_halos_of_different_kinds_are_warned_of() -> None:
    runs = [run("LCN", []), run("GN", [], halo_px=384, halo_kind="measured", overhead=16.0)]

    assert "GN 384\N{NO-BREAK SPACE}px measured at 16.00 times the compute. The halos are of different kinds" in halos(
        runs
    )


def test_rasters_that_a_tile_reads_whole_are_warned_of() -> None:
    small = {"height": 300, "width": 300, "source": "images/small.tif"}
    runs = [
        run("LCN", [], **small),
        run("GN", [], tile_independent=False, **small),
        run("GN", [], tile_independent=False),
    ]

    assert "Every tile of small.tif reads about all there is, so moves of the grid tell nothing of GN there" in halos(
        runs
    )
    assert "Every tile" not in halos([runs[0], runs[2]])


def test_models_that_change_as_little_are_named_together() -> None:
    runs = [run(name, [comparison(flips=flips)]) for name, flips in (("GN", 360), ("BN", 0), ("LCN", 0))]

    assert said(runs) == (
        "Moving the tile grid by 128 px changes 0 of 10,000 labels with BN and LCN and 360 (3.6 %) with GN."
    )


def test_a_single_model_gets_a_sentence_of_its_own() -> None:
    assert said([run("GN", [comparison(flips=12)])]) == (
        "Moving the tile grid by 128 px changes 12 of 10,000 labels (0.12 %) with GN."
    )


def test_rasters_are_summed() -> None:
    runs = [
        run(name, [comparison(flips=flips, pixels=5_000)], source=source)
        for source in ("a.tif", "b.tif")
        for name, flips in (("GN", 50), ("LCN", 0))
    ]

    assert said(runs) == (
        "Moving the tile grid by 128 px changes 0 of 10,000 labels of 2 rasters with LCN and 100 (1.0 %) with GN."
    )


def test_a_few_flips_of_many_are_not_told_as_zero() -> None:
    assert "12 of 33.2 million labels (0.000036 %)" in said([run("BN", [comparison(flips=12, pixels=33_177_600)])])


def test_totals_that_differ_are_told_one_by_one() -> None:
    runs = [run("GN", [comparison(flips=5, pixels=1_000)]), run("LCN", [comparison(pixels=900)])]

    assert said(runs).endswith("changes 0 of 900 labels with LCN and 5 of 1,000 labels (0.50 %) with GN.")


def test_the_headline_prefers_the_move_that_most_models_share() -> None:
    runs = [run("A", [comparison(by_px=64, flips=9), comparison(flips=1)]), run("B", [comparison(flips=2)])]

    assert said(runs).startswith("Moving the tile grid by 128 px changes 1 of")


def test_a_model_without_that_move_gets_a_sentence_of_its_own() -> None:
    runs = [run("A", [comparison(flips=1)]), run("B", [comparison(by_px=96, flips=2)])]

    assert said(runs) == (
        "Moving the tile grid by 96 px changes 2 of 10,000 labels (0.020 %) with B. "
        "Moving the tile grid by 128 px changes 1 of 10,000 labels (0.010 %) with A."
    )


def test_without_an_aligned_move_the_headline_says_what_kind_of_move_it_tells() -> None:
    runs = [run("A", [comparison("unaligned", 3, flips=1), skipped("whole", None, "no memory")])]

    assert said(runs).startswith("Moving the tile grid by 3 px, which is not a multiple of the stride, changes 1 of")


@pytest.mark.parametrize("comparisons", [[], [skipped("aligned", 128, "no time")], [comparison("core", 256)]])
def test_where_no_grid_was_moved_the_headline_says_so(comparisons: list[Any]) -> None:
    assert said([run("A", comparisons)]) == "How labels change when the tile grid moves was not measured."


def test_localization_tells_models_apart() -> None:
    assert name_of(run("GN", [], localized_px=127)) == "GN (localized, 127 px)"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"tile_independent": True}, "A: the map does not depend on the tiles."),
        ({"tile_independent": False, "unbounded": ["GroupNorm e.0"]}, "depends on the tiles. GroupNorm e.0 looks at"),
        ({"tile_independent": False, "unbounded": ["e.0", "e.1"]}, "depends on the tiles. 2 layers look at"),
        (
            {"tile_independent": False, "unbounded": [], "halo_px": 64, "halo_kind": "given"},
            "may depend on the tiles. With a halo of 64",
        ),
        (
            {"tile_independent": False, "unbounded": [], "halo_kind": "exact", "rounding": ["bf16-mixed"]},
            "within the rounding of bf16-mixed",
        ),
    ],
)
def test_a_verdict_says_why_the_map_depends_on_the_tiles(more: dict[str, Any], expected: str) -> None:
    [verdict] = verdicts([run("A", [comparison()], **more)])

    assert expected in verdict


def test_a_verdict_does_not_hide_labels_that_rounding_changed() -> None:
    [verdict] = verdicts([run("A", [comparison(flips=3, ties=2)], tile_independent=True)])

    assert verdict.endswith("Rounding still changed 3 labels, 2 of them ties.")


@given(st.floats(0, 100))
def test_a_percentage_is_right_to_two_digits_and_only_zero_reads_as_zero(value: float) -> None:
    text = percent(value).replace("\N{NO-BREAK SPACE}", " ")

    if text.startswith("<"):
        assert 0 < value < 1e-6
        return
    read = float(text.removesuffix(" %"))
    assert read == pytest.approx(value, abs=0.051 * min(value, 100 - value) + 1e-12)
    assert "e" not in text
    if 100 - value > 1e-9:
        assert (read == 0, read == 100) == (value == 0, False)


@given(st.floats(1e-9, 1 - 1e-9))
def test_a_score_below_one_never_reads_as_one(value: float) -> None:
    assert 0 < float(share(value)) < 1
    assert float(share(value)) == pytest.approx(value, abs=5e-4)


@given(st.integers(0, 10**11))
def test_a_count_in_words_is_right_to_a_twentieth(number: int) -> None:
    digits, _, word = count(number).partition("\N{NO-BREAK SPACE}")

    size = {"": 1, "million": 10**6, "billion": 10**9}[word]
    assert float(digits.replace(",", "")) * size == pytest.approx(number, rel=0.05)


def test_what_an_unaligned_move_changes_is_not_blamed_on_rounding() -> None:
    [verdict] = verdicts([run("A", [comparison("unaligned", 3, flips=9)], tile_independent=True)])

    assert "ounding" not in verdict
