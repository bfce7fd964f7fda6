"""Fitted on samples as a real supernet's look: accuracy saturates, layers differ, measurements are noisy."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from convolutions import make_space
from numpy.typing import NDArray
from scipy.stats import kendalltau

from eqnet_core.errors import TrainingError
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import FORMS, SearchSpace
from eqnet_core.training.ensemble import EnsembleSettings
from eqnet_core.training.fitting import _cross_conformal, fit_predictor
from eqnet_core.training.samples import SPREAD, Samples, configuration_columns
from eqnet_core.training.subnets import sample_configuration

Fitted = tuple[AccuracyPredictor, dict[str, Any], list[str]]

QUICK = EnsembleSettings(members=2, hidden=24, steps=(150, 150))
IMAGES = 2500


RESNET20 = make_space(
    "conv1",
    *(f"layer{stage}.{block}.conv{i}" for stage in (1, 2, 3) for block in range(3) for i in (1, 2)),
    "fc",
)
RESNET20_BITS = 2 * len(RESNET20.searchable)
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
    samples = Samples(
        space=space,
        draw=np.zeros(count, dtype=np.int32),
        index=np.arange(count, dtype=np.int32),
        **configuration_columns(configurations),
        half_accuracy=shown,
        plain_accuracy=shown.mean(axis=1),
        smooth_accuracy=0.98 * shown.mean(axis=1),
        images=2 * IMAGES,
        views=0,
    )
    return samples, accuracy


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


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    samples, _ = make_samples(RESNET20, 300, 1)
    lines: list[str] = []
    predictor, quality, _ = fit_predictor(
        samples, RESNET20, 0, settings=QUICK, lessons=4000, report=lines.append
    )
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
    assert (quality["samples"], quality["held_out"], quality["images"]) == (300, 300, 5000)
    assert quality["kendall"] > 0.7
    assert quality["pearson"] > 0.9
    assert 0.5 < quality["noise_ceiling"] < 0.95
    # few bits are noisier
    assert 0 < quality["mean_absolute_error_from_3_bits"] < quality["mean_absolute_error"] < 0.005
    # the residuals that an interval was made of are in it to just this share, however good it is for others
    assert quality["interval_coverage"] != pytest.approx(271 / 300)
    assert quality["interval_coverage"] == pytest.approx(0.9, abs=0.04)
    assert set(quality["forms"]) == {form.name for form in FORMS}
    assert json.loads(json.dumps(quality, allow_nan=False)) == quality
    assert quality["distillation_error"] < 0.002
    assert len(lines) == 3


def test_what_images_happen_to_like_shows_on_other_images(fitted: Fitted) -> None:
    """All subnets are measured on the same images: some of their luck can be told from the configuration."""
    samples, _ = make_samples(RESNET20, 300, 1)
    taste = np.random.default_rng(5).normal(0, 1, (RESNET20_BITS, 2))
    bits = np.concatenate([samples.weight_bits, samples.activation_bits], axis=1)
    luck = (bits - bits.mean(axis=0)) @ taste
    biased = replace(samples, half_accuracy=samples.half_accuracy + 0.004 * luck / luck.std(axis=0))
    _, quality, _ = fit_predictor(biased, RESNET20, 0, settings=QUICK, lessons=500)
    halves, fair = quality["half"], fitted[1]["half"]
    assert abs(fair["fitted"]["pearson"] - fair["other"]["pearson"]) < 0.02
    assert halves["fitted"]["pearson"] - halves["other"]["pearson"] > 0.02
    assert halves["other"]["mean_absolute_error"] > 1.3 * halves["fitted"]["mean_absolute_error"]
    assert 0.83 < halves["fitted"]["interval_coverage"] < 0.97
    assert halves["other"]["interval_coverage"] < 0.8


def test_the_same_seed_fits_the_same_predictor() -> None:
    samples, _ = make_samples(THREE_LAYERS, 100, 2)
    quick = replace(QUICK, steps=(20, 20))
    one, other, another = (
        fit_predictor(samples, THREE_LAYERS, seed, settings=quick, lessons=500)[0].to_tensors()
        for seed in (7, 7, 8)
    )
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(one["first.weight"], another["first.weight"])


def test_samples_of_one_configuration_are_not_split_between_fitting_and_measuring() -> None:
    """Measured on a copy of what it was fitted on, a predictor of pure noise would look good."""
    samples, _ = make_samples(THREE_LAYERS, 120, 3)
    generator = np.random.default_rng(0)
    noise = np.repeat(generator.uniform(0.6, 1.0, size=(120, 1)), 2, axis=1)
    doubled = replace(samples, half_accuracy=noise, plain_accuracy=noise[:, 0], smooth_accuracy=noise[:, 0])
    doubled = doubled.select(np.tile(np.arange(120), 6))
    _, quality, left_out = fit_predictor(
        doubled, THREE_LAYERS, 0, settings=replace(QUICK, steps=(100, 100)), lessons=500
    )
    assert len(left_out.predicted) == quality["samples"] <= 120
    assert quality["noise_ceiling"] > 0.99
    assert quality["kendall"] < 0.4


def test_a_sample_does_not_widen_the_interval_that_it_is_judged_by() -> None:
    predicted, measured = np.full(10, 0.9), 0.9 + np.arange(10) / 1e4
    measured[3] = 0.5
    inside = _cross_conformal(predicted, measured, np.random.default_rng(0))
    assert not inside[3]
    assert inside.sum() >= 8


def test_views_rank_subnets_and_the_images_as_they_are_set_the_level() -> None:
    samples, accuracy = make_samples(RESNET20, 300, 1)
    luck = np.random.default_rng(7).normal(0, 0.006, len(samples))
    viewed = replace(samples, plain_accuracy=accuracy + 0.02 + luck, views=4000)
    predictor, quality, left_out = fit_predictor(viewed, RESNET20, 0, settings=QUICK, lessons=500)
    np.testing.assert_array_equal(np.sort(left_out.measured), np.sort(samples.accuracy))
    assert quality["views"] == 4000
    assert np.mean(left_out.predicted) == pytest.approx(accuracy.mean() + 0.02, abs=0.001)
    assert abs(quality["mean_error"]) < 0.001
    assert 0.003 < quality["mean_absolute_error"] < 0.008
    assert quality["pearson"] > quality["plain_pearson"] + 0.01
    assert quality["kendall"] > quality["plain_kendall"] + 0.01
    assert 0.85 < quality["interval_coverage"] < 0.95
    low, high = predictor.interval(left_out.predicted)
    plain = np.sort(viewed.plain_accuracy)
    assert low.mean() < plain.mean() < high.mean()


def test_searched_samples_are_judged_apart() -> None:
    samples, _ = make_samples(THREE_LAYERS, 100, 6)
    found = np.arange(100) >= 80
    worse = np.where(found, 0.03, 0.0)  # than is predicted
    searched = replace(
        samples,
        draw=np.where(found, 5, SPREAD).astype(np.int32),
        half_accuracy=samples.half_accuracy - worse[:, None],
        plain_accuracy=samples.plain_accuracy - worse,
        smooth_accuracy=samples.smooth_accuracy - worse,
    )
    _, quality, left_out = fit_predictor(
        searched, THREE_LAYERS, 0, settings=replace(QUICK, steps=(20, 20)), lessons=500
    )
    assert quality["held_out"] + quality["searched"]["held_out"] == quality["samples"]
    assert quality["searched"]["held_out"] == left_out.searched.sum() <= 20
    assert quality["searched"]["mean_error"] > 0.01 > abs(quality["mean_error"])


def test_equal_accuracies_are_no_error() -> None:
    samples, _ = make_samples(THREE_LAYERS, 80, 4)
    flat = replace(
        samples,
        half_accuracy=np.full((80, 2), 0.9),
        plain_accuracy=np.full(80, 0.9),
        smooth_accuracy=np.full(80, 0.88),
    )
    predictor, quality, _ = fit_predictor(
        flat, THREE_LAYERS, 0, settings=replace(QUICK, steps=(20, 20)), lessons=500
    )
    assert quality["kendall"] == 0.0
    np.testing.assert_allclose(predictor.predict(samples.features()), 0.9, atol=1e-3)


def test_too_few_samples_and_other_spaces_are_refused() -> None:
    few, _ = make_samples(THREE_LAYERS, 30, 5)
    with pytest.raises(TrainingError, match=r"30 random subnets .* at least 60, .* `sample --samples`"):
        fit_predictor(few, THREE_LAYERS, 0)
    many, _ = make_samples(THREE_LAYERS, 100, 5)
    searched = replace(many, draw=np.where(np.arange(100) < 59, SPREAD, 5).astype(np.int32))
    with pytest.raises(TrainingError, match="59 random subnets"):
        fit_predictor(searched, THREE_LAYERS, 0)
    with pytest.raises(TrainingError, match="another supernet"):
        fit_predictor(few, RESNET20, 0)
