"""Divergences, choices and averages of ratios: by hand, and against torch's Kullback-Leibler divergence."""

from __future__ import annotations

from math import inf, log

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geonorm.evaluation.ratios import (
    Layer,
    Ratios,
    average,
    between_runs,
    by_part,
    by_range,
    choices,
    differing_share,
    divergence,
    own_divergence,
    parts_of,
    range_of,
)
from geonorm.models.geometry import SeenMap
from geonorm.tasks.ratio_log import LayerRatios

POOL = ("IN", "LN", "BN")
BOTH = arrays(np.float64, (2, 4, 3), elements=st.floats(-9, 9))
"""Control parameters of two times four distributions."""


def softmax(values: Ratios) -> Ratios:
    exponents = np.exp(values)
    shares: Ratios = exponents / exponents.sum(-1, keepdims=True)
    return shares


def layer_ratios(mean: list[list[float]], var: list[list[float]], pool: tuple[str, ...] = POOL) -> LayerRatios:
    return LayerRatios(pool=pool, mean=np.array(mean), var=np.array(var))


# Divergence


def test_the_divergence_of_two_distributions_by_hand() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])

    # KL(p || q) = 0.5 ln 2 - 0.25 ln 2 = KL(q || p)
    assert divergence(p, q) == pytest.approx(0.5 * log(2))


@given(BOTH)
def test_the_divergence_is_the_sum_of_both_directions_of_torch(values: Ratios) -> None:
    p, q = map(torch.from_numpy, softmax(values))

    both = [
        torch.nn.functional.kl_div(a.log(), b, reduction="none").sum(-1)  # KL(b || a)
        for a, b in ((p, q), (q, p))
    ]
    torch.testing.assert_close(torch.from_numpy(divergence(p.numpy(), q.numpy())), both[0] + both[1])


@given(BOTH)
def test_the_divergence_is_symmetric_and_never_negative(values: Ratios) -> None:
    p, q = softmax(values)

    assert (divergence(p, q) >= 0).all()
    np.testing.assert_array_equal(divergence(p, q), divergence(q, p))
    assert not divergence(p, p).any()


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [([1, 0, 0], [1, 0, 0], 0), ([1, 0, 0], [0, 1, 0], inf), ([0.5, 0.5, 0], [0.25, 0.75, 0], 0.25 * log(3))],
    ids=["the same choice", "another choice", "a share that neither has"],
)
def test_the_divergence_of_ratios_with_zeros(p: list[float], q: list[float], expected: float) -> None:
    assert divergence(np.array(p), np.array(q)) == pytest.approx(expected)


def test_channel_groups_are_averaged() -> None:
    ratios = layer_ratios([[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [0.8, 0.2]], pool=("LN", "BN"))

    one = 0.3 * log(0.8 / 0.5) + 0.3 * log(0.5 / 0.2)
    assert own_divergence(ratios) == pytest.approx(one / 2)


def test_runs_differ_in_means_and_variances_apart() -> None:
    one = layer_ratios([[0.5, 0.5]], [[0.5, 0.5]], pool=("LN", "BN"))
    other = layer_ratios([[0.5, 0.5]], [[0.8, 0.2]], pool=("LN", "BN"))

    assert between_runs(one, other) == pytest.approx({"mean": 0, "var": 0.3 * log(4)})


# Choices


def test_the_largest_ratio_is_the_choice_of_each_channel_group() -> None:
    assert choices(np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]]), POOL) == ("LN", "IN")


@pytest.mark.parametrize("table", [[1 / 3, 1 / 3, 1 / 3], [0.2, 0.4, 0.4], [0.2, 0.4, 0.4 + 1e-8]])
def test_where_two_are_as_large_nothing_is_chosen(table: list[float]) -> None:
    assert choices(np.array([table]), POOL) == ("",)


def test_the_only_member_of_a_pool_is_chosen() -> None:
    assert choices(np.array([[1.0]]), ("BN",)) == ("BN",)


def test_the_share_of_different_choices_counts_channel_groups_and_no_ties() -> None:
    ratios = layer_ratios(
        [[0.6, 0.2, 0.2], [0.6, 0.2, 0.2], [0.6, 0.2, 0.2], [0.6, 0.2, 0.2]],
        [[0.2, 0.6, 0.2], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.1, 0.1, 0.8]],
    )

    assert differing_share(ratios) == 0.5


# Averages


def test_averages_over_two_layers_by_hand() -> None:
    one = layer_ratios([[0.6, 0.2, 0.2]], [[0.2, 0.6, 0.2]])
    two = layer_ratios([[0.2, 0.2, 0.6]], [[0.2, 0.2, 0.6]])

    found = average([one, two])

    assert found.layers == 2
    assert found.mean == pytest.approx({"IN": 0.4, "LN": 0.2, "BN": 0.4})
    assert found.var == pytest.approx({"IN": 0.2, "LN": 0.4, "BN": 0.4})
    assert found.divergence == pytest.approx(0.8 * log(3) / 2)
    assert found.differing == 0.5


def test_a_normalizer_that_a_layer_does_not_have_has_no_share_in_it() -> None:
    one, two = layer_ratios([[0.5, 0.5]], [[0.5, 0.5]], ("IN", "BN")), layer_ratios([[1.0]], [[1.0]], ("BN",))

    assert average([one, two]).mean == pytest.approx({"IN": 0.25, "BN": 0.75})


# Depth


@pytest.mark.parametrize(
    ("receptive_px", "name"),
    [
        (1, "<49"),
        (48, "<49"),
        (49, "49-99"),
        (98, "49-99"),
        (99, "99-199"),
        (198, "99-199"),
        (199, "199-299"),
        (298, "199-299"),
        (299, ">299"),
        (427, ">299"),
        (None, None),
    ],
)
def test_a_bound_belongs_to_the_range_above_it(receptive_px: int | None, name: str | None) -> None:
    assert range_of(receptive_px) == name


def test_layers_are_grouped_in_the_order_of_ranges_and_parts() -> None:
    ratios = layer_ratios([[1, 0, 0]], [[1, 0, 0]])
    layers = [
        Layer(name=name, part=part, receptive_px=px, stride_px=1, ratios=ratios)
        for name, part, px in (("c", "decoder", 300), ("a", "encoder", 5), ("b", "encoder", None), ("d", "encoder", 7))
    ]

    ranges = {name: [layer.name for layer in members] for name, members in by_range(layers).items()}
    parts = {name: [layer.name for layer in members] for name, members in by_part(layers).items()}

    assert list(ranges.items()) == [("<49", ["a", "d"]), (">299", ["c"])]
    assert list(parts.items()) == [("encoder", ["a", "b", "d"]), ("decoder", ["c"])]


def maps(**strides: int | None) -> dict[str, SeenMap | None]:
    """Return maps by the names of their layers, with an underscore for each dot."""
    return {
        name.replace("_", "."): SeenMap(shape=(1, 4, 8, 8), stride_px=stride, receptive_px=3) if stride else None
        for name, stride in strides.items()
    }


@pytest.mark.parametrize(
    ("seen", "parts"),
    [
        (
            maps(encoder_0_1=1, encoder_1_1=2, bottom_1=4, decoder_0_1=2),
            ["encoder", "encoder", "bottleneck", "decoder"],
        ),
        (maps(encoder_0_1=1, decoder_0_1=1), ["encoder", "decoder"]),
        (maps(network_encoder_bn1=2, network_encoder_layer4_bn1=32, network_decoder_x=16, network_extra=1), None),
        (maps(network_encoder_bn1=None, network_encoder_layer4_bn1=None), ["encoder", "encoder"]),
        (maps(stem_1=1, encoder=4), ["other", "encoder"]),
    ],
    ids=["U-Net", "U-Net with norms at its ends", "smp", "smp, strides not known", "another"],
)
def test_parts_of_networks(seen: dict[str, SeenMap | None], parts: list[str] | None) -> None:
    expected = parts or ["encoder", "bottleneck", "decoder", "other"]

    assert list(parts_of(seen).values()) == expected
