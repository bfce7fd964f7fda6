"""Fitted on statistics as a real supernet's look: own bits and form, and the noise of the layers before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from convolutions import CHANNELS, make_space
from numpy.typing import NDArray

from eqnet_core.errors import TrainingError
from eqnet_core.space import FORMS, SearchSpace
from eqnet_core.statistics import table_rows
from eqnet_core.training.samples import Calibrations, configuration_columns
from eqnet_core.training.statistics_fitting import fit_statistics
from eqnet_core.training.subnets import sample_configuration

DEEP, SHALLOW = (make_space("stem", *(f"block{k}.0" for k in range(layers)), "fc") for layers in (18, 3))


def make_samples(space: SearchSpace, count: int, seed: int) -> Calibrations:
    generator = np.random.default_rng(seed)
    configurations = [sample_configuration(space, i, generator) for i in range(count)]
    columns = configuration_columns(configurations)
    means, variances = make_statistics(
        *(
            columns[name].astype(np.int64)
            for name in ("form", "narrow_range", "weight_bits", "activation_bits")
        )
    )
    return Calibrations(
        space=space,
        draw=np.zeros(count, dtype=np.int32),
        index=np.arange(count, dtype=np.int32),
        **columns,
        means=means.astype(np.float32),
        variances=variances.astype(np.float32),
        batch_norms=tuple((layer.name.removesuffix("0") + "1", CHANNELS) for layer in space.searchable),
    )


def make_statistics(
    form: NDArray[np.int64],
    narrow: NDArray[np.int64],
    weights: NDArray[np.int64],
    activations: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each channel moves with its own layer's bits and form, and with the noise of the layers before it."""
    constants = np.random.default_rng(1)
    layers = weights.shape[1]
    noise = 0.5 ** (np.concatenate([weights, activations], axis=1) - 2)
    halving = 0.5 ** np.arange(7)[:, None, None, None]
    means, logs = [], []
    for layer in range(layers):
        own = constants.normal(size=(2, 7, len(FORMS), 2, CHANNELS)) * halving
        chosen = own[:, weights[:, layer] - 2, form // 2, narrow]
        visible = np.tile(np.arange(layers) <= layer, 2)
        upstream = (noise * visible) @ constants.normal(scale=0.3, size=(2 * layers, 2 * CHANNELS))
        means.append(1.0 + chosen[0] + upstream[:, :CHANNELS])
        logs.append(chosen[1] + upstream[:, CHANNELS:])
    return np.concatenate(means, axis=1), np.exp(np.concatenate(logs, axis=1))


def test_statistics_of_subnets_never_seen() -> None:
    samples = make_samples(DEEP, 500, 6)
    predictor, quality = fit_statistics(samples, DEEP)
    assert quality["mean_explained"] > 0.8
    assert quality["variance_explained"] > 0.8
    fresh = make_samples(DEEP, 80, 77)
    errors, spreads = [], samples.means.std(axis=0)
    for row in range(56, 80):  # the first 56 are the uniform nets, which are in both
        predicted = predictor.predict(fresh.configuration(row), DEEP)
        assert list(predicted) == [name for name, _ in samples.batch_norms]
        means = np.concatenate([mean for mean, _ in predicted.values()])
        variances = np.concatenate([variance for _, variance in predicted.values()])
        assert means.dtype == variances.dtype == np.float32
        assert (variances > 0).all()
        errors.append((means - fresh.means[row]) / spreads)
    assert np.sqrt(np.mean(np.square(errors))) < 0.5


def test_a_channel_that_dies_gets_a_variance_to_divide_by() -> None:
    samples = make_samples(SHALLOW, 200, 8)
    dead = samples.weight_bits[:, 0] == 2
    variances, means = samples.variances.copy(), samples.means.copy()
    variances[dead, 0] = 0.0
    means[dead, 0] = 0.0
    predictor, quality = fit_statistics(replace(samples, variances=variances, means=means), SHALLOW)
    assert np.isfinite(list(quality.values())).all()
    rows = np.flatnonzero(dead)
    name = samples.batch_norms[0][0]
    for row in rows[:20]:
        mean, variance = predictor.predict(samples.configuration(row), SHALLOW)[name]
        assert abs(mean[0]) / np.sqrt(variance[0]) < 4


def test_a_channel_that_hardly_moves_has_zeros_without_a_sign() -> None:
    """Which would be the luck of the last bits, differ between machines, and be in the digest."""
    samples = make_samples(SHALLOW, 60, 8)
    means, variances = samples.means.copy(), samples.variances.copy()
    means[:, 1], variances[:, 1] = 0.1 + 1e-8 * means[:, 1], 1e4
    predictor, _ = fit_statistics(replace(samples, means=means, variances=variances), SHALLOW)
    for coefficients in (predictor.table, predictor.shared):
        assert coefficients.dtype == np.float16
        assert not coefficients[:, 1].any()
        assert not np.signbit(coefficients[:, 1]).any()


def test_what_the_weights_tell_need_not_be_learned() -> None:
    """With the truth about own layers given, cells that no sample had are right as well."""
    samples = make_samples(SHALLOW, 400, 9)
    seen = samples.select(~((samples.weight_bits[:, 1] == 2) & (samples.form == 6)))
    unseen = samples.select((samples.weight_bits[:, 1] == 2) & (samples.form == 6))
    owned = slice(CHANNELS, 2 * CHANNELS)
    rows = table_rows(samples.configurations(), SHALLOW)[:, 2, 0]
    outputs = np.ones((2, 112, CHANNELS))
    for row in np.unique(rows):
        outputs[0, row] = samples.means[rows == row, owned].mean(axis=0)
        outputs[1, row] = samples.variances[rows == row, owned].mean(axis=0)
    errors = []
    for given in ({}, {"block1.0": (outputs[0], outputs[1])}):
        predictor, _ = fit_statistics(seen, SHALLOW, outputs=given)
        predicted = [predictor.predict(c, SHALLOW)["block1.1"][0] for c in unseen.configurations()]
        errors.append(np.abs(np.array(predicted) - unseen.means[:, owned]).mean())
    assert errors[1] < 0.5 * errors[0]


def test_too_few_and_those_of_another_supernet_are_refused() -> None:
    few = make_samples(SHALLOW, 30, 5)
    with pytest.raises(TrainingError, match="calibrate at least 60"):
        fit_statistics(few, SHALLOW)
    with pytest.raises(TrainingError, match="another supernet"):
        fit_statistics(few, DEEP)
