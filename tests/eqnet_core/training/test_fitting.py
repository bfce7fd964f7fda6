"""Fitted on samples as a real supernet's look: accuracy saturates, layers differ, measurements are noisy."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kendalltau

from eqnet_core.errors import TrainingError
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import FORMS, LayerSpec, SearchSpace
from eqnet_core.training.ensemble import EnsembleSettings
from eqnet_core.training.fitting import fit_predictor, fit_statistics
from eqnet_core.training.samples import Samples
from eqnet_core.training.subnets import sample_configuration

Fitted = tuple[AccuracyPredictor, dict[str, Any], list[str]]

QUICK = EnsembleSettings(members=2, hidden=24, steps=(150, 150))
IMAGES = 2500
CHANNELS = 4


def make_space(*names: str) -> SearchSpace:
    """Layers of `CHANNELS` channels; the first and the last are fixed."""
    return SearchSpace(
        tuple(
            LayerSpec(
                name=name,
                kind="linear" if name == "fc" else "conv",
                searchable=0 < position < len(names) - 1,
                output_channels=CHANNELS,
                weights=9 * CHANNELS**2,
                inputs=64 * CHANNELS,
                macs=9 * 64 * CHANNELS**2,
                nonnegative=True,
                float_parameters=2 * CHANNELS,
            )
            for position, name in enumerate(names)
        )
    )


RESNET20 = make_space(
    "conv1",
    *(f"layer{stage}.{block}.conv{i}" for stage in (1, 2, 3) for block in range(3) for i in (1, 2)),
    "fc",
)
THREE_LAYERS = make_space("stem", "a.0", "b.0", "c.0", "fc")


def make_samples(space: SearchSpace, count: int, seed: int) -> tuple[Samples, NDArray[np.float64]]:
    """Samples, and the accuracies that they would show on endless images, [N]."""
    generator = np.random.default_rng(seed)
    configurations = [sample_configuration(space, i, generator) for i in range(count)]
    weights = np.array([c.weight_bits for c in configurations])
    activations = np.array([c.activation_bits for c in configurations])
    form = np.array([c.form.index for c in configurations])
    narrow = np.array([c.narrow_range for c in configurations])
    accuracy = make_accuracy(form, narrow, weights, activations)
    # two subnets of one supernet err on much the same images: about a third of the variance of coins
    deviation = np.sqrt(0.35 * accuracy * (1 - accuracy) / IMAGES)
    shown = accuracy[:, None] + deviation[:, None] * generator.standard_normal((count, 2))
    means, variances = make_statistics(form, narrow, weights, activations)
    samples = Samples(
        space=space,
        form=form.astype(np.int8),
        narrow_range=narrow,
        weight_bits=weights.astype(np.int8),
        activation_bits=activations.astype(np.int8),
        correct=np.clip(np.rint(shown * IMAGES), 0, IMAGES).astype(np.int32),
        evaluated=np.array([IMAGES, IMAGES], dtype=np.int32),
        means=means.astype(np.float32),
        variances=variances.astype(np.float32),
        batch_norms=tuple((batch_norm(layer.name), CHANNELS) for layer in space.searchable),
    )
    return samples, accuracy


def batch_norm(layer: str) -> str:
    return layer.removesuffix("0") + "1" if layer.endswith(".0") else layer.replace("conv", "bn")


def make_accuracy(
    form: NDArray[np.int64],
    narrow: NDArray[np.bool_],
    weights: NDArray[np.int64],
    activations: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Quantisation noise of every layer, by its own sensitivity in each form, adds up; noise of a layer's
    weights and of its inputs, and that of neighbours, make each other worse; the sum saturates."""
    constants = np.random.default_rng(0)
    layers = weights.shape[1]
    sensitivity = constants.lognormal(0, 0.8, (2, layers))
    of_form = constants.lognormal(0, 0.35, (2, len(FORMS), layers))
    decay = constants.uniform(1.0, 1.5, layers)
    noise = sensitivity[0] * of_form[0, form] * np.exp(-decay * (weights - 2)) * (1 + 0.1 * narrow[:, None])
    other = 0.7 * sensitivity[1] * of_form[1, form] * np.exp(-decay[::-1] * (activations - 2))
    damage = noise.sum(1) + other.sum(1) + 1.5 * np.sqrt(noise * other).sum(1)
    damage += 0.7 * np.sqrt(noise[:, 1:] * noise[:, :-1]).sum(1)
    damage *= 18 / layers
    accuracy: NDArray[np.float64] = 0.92 - 0.1 * (1 - np.exp(-damage / 60)) - 0.00012 * damage
    return accuracy


def make_statistics(
    form: NDArray[np.int64],
    narrow: NDArray[np.bool_],
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
        chosen = own[:, weights[:, layer] - 2, form // 2, narrow.astype(int)]
        visible = np.tile(np.arange(layers) <= layer, 2)
        upstream = (noise * visible) @ constants.normal(scale=0.3, size=(2 * layers, 2 * CHANNELS))
        means.append(1.0 + chosen[0] + upstream[:, :CHANNELS])
        logs.append(chosen[1] + upstream[:, CHANNELS:])
    return np.concatenate(means, axis=1), np.exp(np.concatenate(logs, axis=1))


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    samples, _ = make_samples(RESNET20, 300, 1)
    lines: list[str] = []
    predictor, quality = fit_predictor(samples, RESNET20, 0, settings=QUICK, report=lines.append)
    return predictor, quality, lines


def test_three_hundred_samples_rank_subnets_never_seen(fitted: Fitted) -> None:
    predictor, _, _ = fitted
    fresh, true_accuracy = make_samples(RESNET20, 600, 99)
    predicted = predictor.predict(fresh.features())
    assert kendalltau(predicted, true_accuracy).statistic > 0.8
    assert np.abs(predicted - true_accuracy).mean() < 0.003
    low, high = predictor.interval(predicted)
    assert 0.83 < ((low <= fresh.accuracy) & (fresh.accuracy <= high)).mean() < 0.97
    assert (high - low).mean() < 0.03


def test_quality_is_that_of_held_out_samples_and_plain_json(fitted: Fitted) -> None:
    _, quality, lines = fitted
    assert (quality["samples"], quality["held_out"], quality["images"]) == (300, 75, 5000)
    assert quality["kendall"] > 0.7
    assert quality["pearson"] > 0.9
    assert 0.5 < quality["noise_ceiling"] < 0.95
    assert 0 < quality["mean_absolute_error"] < 0.005
    assert set(quality["forms"]) <= {form.name for form in FORMS}
    assert json.loads(json.dumps(quality, allow_nan=False)) == quality
    assert len(lines) == 4


def test_the_same_seed_fits_the_same_predictor() -> None:
    samples, _ = make_samples(THREE_LAYERS, 100, 2)
    quick = replace(QUICK, steps=(20, 20))
    one, other, another = (
        fit_predictor(samples, THREE_LAYERS, seed, settings=quick)[0].to_tensors() for seed in (7, 7, 8)
    )
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(one["first.weight"], another["first.weight"])


def test_samples_of_one_configuration_are_not_split_between_fitting_and_measuring() -> None:
    """Measured on a copy of what it was fitted on, a predictor of pure noise would look good."""
    samples, _ = make_samples(THREE_LAYERS, 120, 3)
    generator = np.random.default_rng(0)
    noise = np.repeat(generator.integers(1500, 2500, size=(120, 1)), 2, axis=1).astype(np.int32)
    doubled = replace(samples, correct=noise).select(np.tile(np.arange(120), 6))
    _, quality = fit_predictor(doubled, THREE_LAYERS, 0, settings=replace(QUICK, steps=(100, 100)))
    assert quality["noise_ceiling"] > 0.99
    assert quality["kendall"] < 0.4


def test_equal_accuracies_are_no_error() -> None:
    samples, _ = make_samples(THREE_LAYERS, 80, 4)
    flat = replace(samples, correct=np.full((80, 2), 2250, dtype=np.int32))
    predictor, quality = fit_predictor(flat, THREE_LAYERS, 0, settings=replace(QUICK, steps=(20, 20)))
    assert quality["kendall"] == 0.0
    np.testing.assert_allclose(predictor.predict(samples.features()), 0.9, atol=1e-3)


def test_too_few_samples_and_other_spaces_are_refused() -> None:
    few, _ = make_samples(THREE_LAYERS, 30, 5)
    with pytest.raises(TrainingError, match="sample at least 60"):
        fit_predictor(few, THREE_LAYERS, 0)
    with pytest.raises(TrainingError, match="another supernet"):
        fit_statistics(few, RESNET20)


def test_statistics_of_subnets_never_seen() -> None:
    samples, _ = make_samples(RESNET20, 500, 6)
    predictor, quality = fit_statistics(samples, RESNET20)
    assert quality["mean_explained"] > 0.8
    assert quality["variance_explained"] > 0.8
    fresh, _ = make_samples(RESNET20, 80, 77)
    errors, spreads = [], samples.means.std(axis=0)
    for row in range(56, 80):  # the first 56 are the uniform nets, which are in both
        predicted = predictor.predict(fresh.configuration(row), RESNET20)
        assert list(predicted) == [name for name, _ in samples.batch_norms]
        means = np.concatenate([mean for mean, _ in predicted.values()])
        variances = np.concatenate([variance for _, variance in predicted.values()])
        assert means.dtype == variances.dtype == np.float32
        assert (variances > 0).all()
        errors.append((means - fresh.means[row]) / spreads)
    assert np.sqrt(np.mean(np.square(errors))) < 0.5


def test_a_channel_that_dies_gets_a_variance_to_divide_by() -> None:
    samples, _ = make_samples(THREE_LAYERS, 200, 8)
    dead = samples.weight_bits[:, 0] == 2
    variances, means = samples.variances.copy(), samples.means.copy()
    variances[dead, 0] = 0.0
    means[dead, 0] = 0.0
    predictor, quality = fit_statistics(replace(samples, variances=variances, means=means), THREE_LAYERS)
    assert np.isfinite(list(quality.values())).all()
    rows = np.flatnonzero(dead)
    name = samples.batch_norms[0][0]
    for row in rows[:20]:
        mean, variance = predictor.predict(samples.configuration(row), THREE_LAYERS)[name]
        assert abs(mean[0]) / np.sqrt(variance[0]) < 4
