"""What is true of a data set: checked when it is made, and the same after a journey through a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geonorm.data.spec import IGNORE_LABEL, INRIA, DatasetSpec
from geonorm.errors import InvalidConfigError

statistics = st.floats(min_value=0.01, max_value=1e5)


@st.composite
def specs(draw: st.DrawFn) -> DatasetSpec:
    bands, classes = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    values = st.none() | st.tuples(*[statistics] * bands)
    byte = st.integers(0, 255)
    return DatasetSpec(
        bands=draw(st.tuples(*[st.text(max_size=8)] * bands)),
        class_names=draw(st.tuples(*[st.text(max_size=8)] * classes)),
        class_colors=draw(st.tuples(*[st.tuples(byte, byte, byte)] * classes)),
        scored_classes=tuple(draw(st.sets(st.integers(0, classes - 1)))),
        band_means=draw(values),
        band_deviations=draw(values),
        resolution_m=draw(st.none() | statistics),
    )


def three_classes(**changes: Any) -> DatasetSpec:
    """Two bands and three classes, with some facts replaced."""
    facts: dict[str, Any] = {
        "bands": ("red", "near infrared"),
        "class_names": ("water", "forest", "built"),
        "class_colors": ((0, 0, 255), (0, 255, 0), (255, 0, 0)),
        "scored_classes": (1, 2),
    }
    return DatasetSpec(**{**facts, **changes})


@given(spec=specs())
def test_facts_come_back_from_plain_data(spec: DatasetSpec) -> None:
    assert DatasetSpec.from_plain(spec.as_plain()) == spec


@given(spec=specs())
def test_plain_data_are_lists_numbers_and_strings(spec: DatasetSpec) -> None:
    assert only_plain(spec.as_plain())


def test_plain_data_are_loaded_weights_only(tmp_path: Path) -> None:
    spec = three_classes(band_means=(1.5, 2.5), resolution_m=0.3)

    torch.save(spec.as_plain(), tmp_path / "spec.pt")

    assert DatasetSpec.from_plain(torch.load(tmp_path / "spec.pt", weights_only=True)) == spec


def test_statistics_are_added_and_nothing_else_changes() -> None:
    spec = three_classes(resolution_m=0.3)

    measured = spec.with_statistics((1.0, 2.0), (3.0, 4.0))

    assert (measured.band_means, measured.band_deviations) == ((1.0, 2.0), (3.0, 4.0))
    assert dataclasses.replace(measured, band_means=None, band_deviations=None) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("water",)}, "needs 2 to 255 classes, got 1"),
        ({"class_names": ("water",) * 256}, "needs 2 to 255 classes, got 256"),
        ({"class_colors": ((0, 0, 0),) * 2}, "3 classes need as many colors, got 2"),
        ({"band_means": (1.0,)}, "2 bands need as many band_means, got 1"),
        ({"band_deviations": (1.0, 1.0, 1.0)}, "2 bands need as many band_deviations, got 3"),
    ],
)
def test_facts_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        three_classes(**changes)


def test_as_many_classes_fit_as_there_are_labels_beside_the_ignored_one() -> None:
    most = three_classes(class_names=("water",) * IGNORE_LABEL, class_colors=((0, 0, 0),) * IGNORE_LABEL)

    assert len(most.class_names) - 1 < IGNORE_LABEL


def test_inria_scores_its_buildings_alone_and_leaves_statistics_to_the_images() -> None:
    assert [INRIA.class_names[label] for label in INRIA.scored_classes] == ["building"]
    assert INRIA.bands == ("red", "green", "blue")
    assert INRIA.band_means is INRIA.band_deviations is None


def only_plain(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(only_plain, value.values() if isinstance(value, dict) else value))
    return value is None or type(value) in (int, float, str)
