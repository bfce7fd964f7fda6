from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from eqnet_core.errors import BundleError, InvalidConfigurationError
from eqnet_core.space import FORMS, LayerSpec, SearchSpace, SubnetConfiguration, Symmetry
from eqnet_core.statistics import NO_LAYER, TABLE_ROWS, StatisticsPredictor, find_owners, table_rows


def layer(name: str, *, searchable: bool = True, channels: int = 2) -> LayerSpec:
    return LayerSpec(
        name=name,
        kind="conv",
        searchable=searchable,
        output_channels=channels,
        weights=9,
        inputs=16,
        macs=100,
        nonnegative=True,
        float_parameters=4,
    )


SPACE = SearchSpace(
    (layer("conv1", searchable=False), layer("block.0"), layer("block.3"), layer("fc", searchable=False))
)
BATCH_NORMS = (("bn1", 2), ("block.1", 2), ("block.4", 2))


@pytest.fixture
def predictor() -> StatisticsPredictor:
    generator = np.random.default_rng(0)
    return StatisticsPredictor(
        batch_norms=BATCH_NORMS,
        owners=find_owners(BATCH_NORMS, SPACE),
        table=generator.normal(size=(TABLE_ROWS, 12)).astype(np.float16),
        shared=generator.normal(size=(SPACE.encoding_size, 12)).astype(np.float16),
        centre=generator.normal(size=12).astype(np.float32),
        spread=generator.uniform(0.5, 2, 12).astype(np.float32),
        low=np.full(12, -50, dtype=np.float32),
        high=np.full(12, 50, dtype=np.float32),
        floor=np.full(6, 1e-3, dtype=np.float32),
    )


CONFIGURATION = SubnetConfiguration(
    form=FORMS[5], weight_bits=(3, 8), activation_bits=(2, 5), narrow_range=True, signed=False
)


def test_a_prediction_is_the_table_plus_the_shared_part(predictor: StatisticsPredictor) -> None:
    found = predictor.predict(CONFIGURATION, SPACE)
    assert list(found) == ["bn1", "block.1", "block.4"]
    encoding = SPACE.encode([CONFIGURATION])[0]
    standard = encoding @ predictor.shared.astype(np.float64)
    own = {0: (8, 8), 1: (3, 2), 2: (8, 5)}
    for position, (weight_bits, activation_bits) in own.items():
        rows = [((weight_bits - 2) * 8 + 5) * 2 + 1, 112 + (activation_bits - 2) * 8 + 5]
        columns = [2 * position, 2 * position + 1, 6 + 2 * position, 7 + 2 * position]
        standard[columns] += predictor.table[rows][:, columns].astype(np.float64).sum(axis=0)
    values = standard * predictor.spread + predictor.centre
    means = np.concatenate([mean for mean, _ in found.values()])
    variances = np.concatenate([variance for _, variance in found.values()])
    assert means.dtype == variances.dtype == np.float32
    np.testing.assert_allclose(means, values[:6], rtol=1e-4)
    np.testing.assert_allclose(variances, np.maximum(np.exp(values[6:]), 1e-3), rtol=1e-3)


def test_variances_are_the_nearest_numbers_to_the_exponentials(predictor: StatisticsPredictor) -> None:
    """On every processor: exp in float32 is off by a bit, by another one elsewhere."""
    zero = replace(predictor, table=predictor.table * 0, shared=predictor.shared * 0)
    for start in np.linspace(-5, 5, 200):
        centre = (start + np.arange(12) / 13).astype(np.float32)
        predicted = replace(zero, centre=centre).predict(CONFIGURATION, SPACE)
        variances = np.concatenate([variance for _, variance in predicted.values()])
        nearest = np.array([math.exp(value) for value in centre[6:]], dtype=np.float32)
        np.testing.assert_array_equal(variances, nearest)


def test_predictions_stay_within_what_was_seen(predictor: StatisticsPredictor) -> None:
    narrow = replace(
        predictor,
        low=np.full(12, -0.1, dtype=np.float32),
        high=np.full(12, 0.1, dtype=np.float32),
        floor=np.full(6, 7.0, dtype=np.float32),
    )
    for position, (mean, variance) in enumerate(narrow.predict(CONFIGURATION, SPACE).values()):
        columns = slice(2 * position, 2 * position + 2)
        assert (np.abs(mean - narrow.centre[columns]) <= 0.1001 * narrow.spread[columns]).all()
        assert (variance >= 7).all()


def test_signed_runtimes_change_what_eight_bits_mean(predictor: StatisticsPredictor) -> None:
    eight = replace(CONFIGURATION, activation_bits=(8, 8))
    seven = replace(CONFIGURATION, activation_bits=(7, 7))
    signed = predictor.predict(replace(eight, signed=True), SPACE)
    for name, (mean, variance) in predictor.predict(replace(seven, signed=True), SPACE).items():
        np.testing.assert_array_equal(signed[name][0], mean)
        np.testing.assert_array_equal(signed[name][1], variance)
    assert not np.array_equal(predictor.predict(eight, SPACE)["block.1"][0], signed["block.1"][0])


def test_stored_and_read_again_it_predicts_the_same(predictor: StatisticsPredictor) -> None:
    again = StatisticsPredictor.from_tensors(predictor.to_tensors())
    expected = predictor.predict(CONFIGURATION, SPACE)
    for name, (mean, variance) in again.predict(CONFIGURATION, SPACE).items():
        np.testing.assert_array_equal(mean, expected[name][0])
        np.testing.assert_array_equal(variance, expected[name][1])


def test_the_layer_in_front_is_found_by_name() -> None:
    assert find_owners(BATCH_NORMS, SPACE).tolist() == [0, 1, 2]
    # another number of channels, or a name that says nothing: no table rather than a wrong one
    assert find_owners((("block.1", 3), ("norm", 2), ("block.0", 2)), SPACE).tolist() == [NO_LAYER] * 3


def test_every_bit_width_and_form_has_a_row_of_its_own() -> None:
    configurations = [
        SPACE.uniform(form, bits, narrow_range=narrow)
        for form in FORMS
        for bits in range(2, 9)
        for narrow in (False, form.weight_symmetry is Symmetry.SYMMETRIC)
    ]
    rows = table_rows(configurations, SPACE)
    assert rows.shape == (112, 4, 2)
    weight, activation = (set(rows[:, 1, side].tolist()) for side in (0, 1))
    # rows of narrow range with asymmetric weights are there, but nothing selects them
    assert len(weight) == 7 * (2 * 4 + 4)
    assert activation == set(range(112, TABLE_ROWS))
    assert set(rows[:, 0, 1].tolist()) == set(range(TABLE_ROWS - 8, TABLE_ROWS))


def test_other_spaces_and_tensors_are_refused(predictor: StatisticsPredictor) -> None:
    other = SearchSpace(SPACE.layers[:2] + SPACE.layers[3:])
    with pytest.raises(BundleError, match="another supernet"):
        predictor.predict(other.uniform(FORMS[0], 4), other)
    with pytest.raises(InvalidConfigurationError, match="searchable"):
        predictor.predict(other.uniform(FORMS[0], 4), SPACE)
    for name, value in predictor.to_tensors().items():
        tensors = predictor.to_tensors()
        del tensors[name]
        with pytest.raises(BundleError, match="statistics predictor"):
            StatisticsPredictor.from_tensors(tensors)
        # a shorter `shared` is one of another space, which the tensors alone cannot tell
        changed = value[:-1] if name != "shared" else value[:, :-1]
        with pytest.raises(BundleError, match="statistics predictor"):
            StatisticsPredictor.from_tensors({**tensors, name: changed})
