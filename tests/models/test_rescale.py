"""Scaling of raw band values: the numbers, what travels in a checkpoint, and what is refused."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geonorm.errors import InvalidConfigError
from geonorm.models import Rescale
from tests.models.networks import random_image

MEANS, DEVIATIONS = [90.5, 101.0, 84.25], [40.0, 35.5, 50.0]


def test_each_band_is_shifted_and_scaled_by_its_own_numbers() -> None:
    image = random_image(2, 3, 5, 7)

    scaled = Rescale(3, mean=MEANS, deviation=DEVIATIONS)(image)

    for band in range(3):
        expected = (image[:, band].double() - MEANS[band]) / DEVIATIONS[band]
        torch.testing.assert_close(scaled[:, band].double(), expected, rtol=1e-6, atol=1e-6)


def test_without_numbers_nothing_changes() -> None:
    image = random_image(1, 2, 5, 7)

    assert torch.equal(Rescale(2)(image), image)


@given(mean=st.floats(-1e6, 1e6), deviation=st.floats(1e-3, 1e6))
def test_a_pixel_that_holds_the_mean_becomes_exactly_zero(mean: float, deviation: float) -> None:
    rescale = Rescale(1, mean=[mean], deviation=[deviation])

    scaled = rescale(rescale.mean.expand(1, 1, 2, 3))

    assert torch.equal(scaled, torch.zeros(1, 1, 2, 3))


def test_the_image_is_not_written_to() -> None:
    image = random_image(1, 3, 5, 7)
    before = image.clone()

    Rescale(3, mean=MEANS, deviation=DEVIATIONS)(image)

    assert torch.equal(image, before)


def test_the_numbers_travel_with_the_weights_and_are_not_trained() -> None:
    rescale = Rescale(3, mean=MEANS, deviation=DEVIATIONS)

    other = Rescale(3)
    other.load_state_dict(rescale.state_dict())

    assert torch.equal(other(random_image(1, 3, 5, 7)), rescale(random_image(1, 3, 5, 7)))
    assert not list(rescale.parameters())


@pytest.mark.parametrize(
    ("settings", "given"),
    [({}, set()), ({"mean": MEANS}, {"mean"}), ({"mean": MEANS, "deviation": DEVIATIONS}, {"mean", "deviation"})],
)
def test_it_knows_which_numbers_were_given(settings: dict[str, Any], given: set[str]) -> None:
    assert Rescale(3, **settings).given == given


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"mean": [1.0, 2.0]}, "mean needs one number per band, got 2 numbers for 3 bands"),
        ({"deviation": [1.0] * 4}, "deviation needs one number per band, got 4 numbers for 3 bands"),
        ({"deviation": [1.0, 0.0, 1.0]}, "greater than 0, got"),
        ({"deviation": [1.0, -1.0, 1.0]}, "greater than 0, got"),
        ({"deviation": [1.0, float("nan"), 1.0]}, "greater than 0, got"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidConfigError, match=reason):
        Rescale(3, **settings)


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 4, 5, 7), (1, 1, 5, 7), (1, 3, 2, 5, 7)])
def test_another_number_of_bands_or_axes_is_one_clear_line(shape: Sequence[int]) -> None:
    with pytest.raises(InvalidConfigError, match=r"takes images \(N, 3, H, W\), got \(") as caught:
        Rescale(3)(torch.zeros(*shape))

    assert "\n" not in str(caught.value)
