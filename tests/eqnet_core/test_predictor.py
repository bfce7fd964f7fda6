from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from eqnet_core.errors import BundleError
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import FORMS, LayerSpec, SearchSpace


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    layers = [
        LayerSpec(
            name=f"layer{position}",
            kind="conv",
            searchable=0 < position < 19,
            output_channels=4,
            weights=144,
            inputs=64,
            macs=1000,
            nonnegative=True,
            float_parameters=8,
        )
        for position in range(20)
    ]
    return SearchSpace(tuple(layers))


@pytest.fixture(scope="module")
def features(space: SearchSpace) -> NDArray[np.float32]:
    generator = np.random.default_rng(4)
    bits = generator.integers(2, 9, size=(2, 300, len(space.searchable)))
    return space.encode_population(FORMS[5], bits[0], bits[1], narrow_range=True)


@pytest.fixture(scope="module")
def predictor(space: SearchSpace) -> AccuracyPredictor:
    generator = np.random.default_rng(8)
    members, hidden, size = 3, 24, space.encoding_size
    return AccuracyPredictor.rounded(
        first=generator.normal(scale=0.3, size=(size, members * hidden + 1)),
        first_bias=generator.normal(size=members * hidden + 1),
        second=generator.normal(scale=0.3, size=(members, hidden, hidden)),
        second_bias=generator.normal(size=(members, 1, hidden)),
        third=generator.normal(scale=0.3, size=(members, hidden)),
        third_bias=0.1,
        centre=2.0,
        spread=0.3,
        interval_accuracy=np.array([0.7, 0.8, 0.9]),
        interval_half_width=np.array([0.03, 0.02, 0.01]),
    )


def test_it_computes_the_documented_network(
    predictor: AccuracyPredictor, features: NDArray[np.float32]
) -> None:
    first = features.astype(np.float64) @ predictor.first + predictor.first_bias
    members, hidden = predictor.third.shape
    correction = np.zeros(len(features))
    for member in range(members):
        units = np.maximum(first[:, member * hidden : (member + 1) * hidden], 0)
        units = np.maximum(units @ predictor.second[member] + predictor.second_bias[member, 0], 0)
        correction += units @ predictor.third[member] / members
    logit = 2.0 + 0.3 * (first[:, -1] + correction + predictor.third_bias)
    accuracy = predictor.predict(features)
    assert accuracy.dtype == np.float64
    assert np.ptp(accuracy) > 0.1
    np.testing.assert_allclose(accuracy, 1 / (1 + np.exp(-logit)), atol=1e-4)


def test_no_order_of_addition_changes_a_bit(
    predictor: AccuracyPredictor, features: NDArray[np.float32]
) -> None:
    """What makes a search give the same subnet on machines whose BLAS adds in another order."""
    members, hidden = predictor.third.shape
    units = np.random.default_rng(0).permutation(hidden)
    columns = np.concatenate([member * hidden + units for member in range(members)] + [[members * hidden]])
    # one-hot groups in reverse order, hidden units shuffled: the same sums, added in other orders
    rows = np.concatenate([np.arange(7), np.arange(predictor.encoding_size - 1, 6, -1)])
    shuffled = replace(
        predictor,
        first=predictor.first[rows][:, columns],
        first_bias=predictor.first_bias[columns],
        second=predictor.second[:, units][:, :, units],
        second_bias=predictor.second_bias[:, :, units],
        third=predictor.third[:, units],
    )
    expected = predictor.predict(features)
    np.testing.assert_array_equal(shuffled.predict(features[:, rows]), expected)
    np.testing.assert_array_equal([predictor.predict(row[None])[0] for row in features[:20]], expected[:20])


def test_stored_and_read_again_it_predicts_the_same(
    predictor: AccuracyPredictor, features: NDArray[np.float32]
) -> None:
    again = AccuracyPredictor.from_tensors(predictor.to_tensors())
    np.testing.assert_array_equal(again.predict(features), predictor.predict(features))
    accuracy = np.array([0.5, 0.85, 0.99])
    np.testing.assert_array_equal(again.interval(accuracy), predictor.interval(accuracy))


def test_intervals_follow_the_region_of_accuracy_and_stay_fractions(predictor: AccuracyPredictor) -> None:
    low, high = predictor.interval(np.array([0.1, 0.75, 0.9, 0.998]))
    np.testing.assert_allclose(low, [0.07, 0.725, 0.89, 0.988])
    np.testing.assert_allclose(high, [0.13, 0.775, 0.91, 1.0])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("third.weight", None),
        ("second.weight", lambda value: value[:, :-1]),
        ("first.weight", lambda value: value[:-1]),
        ("first.weight", lambda value: value + np.float32(1e-6)),
        ("first.weight", lambda value: value * np.float32(2**8)),
        ("third.weight", lambda value: value / np.float32(3)),
        ("third.bias", lambda value: value * np.nan),
        ("interval.half_width", lambda value: value[:-1]),
        ("interval.half_width", lambda value: -value),
        ("interval.accuracy", lambda value: value[::-1]),
        ("logit", lambda value: value[:1]),
    ],
)
def test_tensors_that_do_not_fit_are_refused(predictor: AccuracyPredictor, name: str, change: object) -> None:
    tensors = predictor.to_tensors()
    value = tensors.pop(name)
    if callable(change):
        tensors[name] = change(value)
    with pytest.raises(BundleError, match="predictor"):
        AccuracyPredictor.from_tensors(tensors)
