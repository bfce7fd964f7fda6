"""Fits CQAP to samples, and measures it on samples that it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import kendalltau, pearsonr

from eqnet_core.errors import TrainingError
from eqnet_core.predictor import COVERAGE, AccuracyPredictor
from eqnet_core.space import FORMS, SearchSpace
from eqnet_core.training.ensemble import EnsembleSettings, accuracy_logits, fit_ensemble
from eqnet_core.training.process import fit_process
from eqnet_core.training.samples import SPREAD, Samples
from eqnet_core.training.subnets import spread_encodings

MINIMUM_SAMPLES = 60
"""Random subnets. Fewer cannot tell what matters."""

LESSONS = 20_000
"""Subnets that the process teaches the network by."""

_LOW_BITS = 3
"""Averages from which errors are stated separately: below, few devices go."""

_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What a fit to other samples predicted of each of N, and what was measured: float64 [N].

    `form` int8 [N], an index into `FORMS`; `searched` bool [N]: found by a search.
    """

    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]
    form: NDArray[np.int8]
    searched: NDArray[np.bool_]


def fit_predictor(
    samples: Samples,
    space: SearchSpace,
    seed: int,
    *,
    settings: EnsembleSettings | None = None,
    lessons: int = LESSONS,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[AccuracyPredictor, dict[str, Any], LeftOut]:
    """CQAP, its quality and what that is judged by. The same seed and samples give the same predictor.

    A Gaussian process learns from the samples, and the network from it, on `lessons` random subnets: the one
    needs few samples, the other no time. Targets are the smooth accuracies, put on the scale of the
    accuracies on images as they are, which single images make noisier. `report` is told one line per stage.

    Quality is that of predicting each fifth of the samples by a process that saw only the others (the network
    is `distillation_error` off the process on fresh subnets, root mean square): `pearson` and `kendall`
    against accuracies measured in all views; `plain_pearson`, `plain_kendall`, `mean_absolute_error`
    (fraction; `..._from_3_bits` for averages of 3 bits and more), `mean_error`, `interval_coverage` and
    `interval_width` (mean, fraction) against those on images as they are alone, which is what users can
    measure; `noise_ceiling`, Kendall between accuracies, in all views, of the two halves of the images; all
    this for samples spread over the space, per form in `forms`, and in `searched` for what a search found;
    `samples`, `held_out`, `images`, `views`.
    Samples may be fitted and judged by the same images, and then part of what is predicted is what those
    happen to like: `half` tells how much (`_by_halves`).

    Raises:
        TrainingError: too few random subnets, or samples of another space.
    """
    _check(samples, space)
    samples = _merge(samples)
    generator = np.random.default_rng(seed)
    features, plain = samples.features(), samples.plain_accuracy
    targets = _targets(samples)
    process = fit_process(features, targets, generator)
    report(
        f"process: length {process.kernel.length:g}, forms {process.kernel.of_form:g}, "
        f"noise {process.noise:g}"
    )
    taught = np.concatenate([features, spread_encodings(space, lessons, generator)])
    predictor = fit_ensemble(
        taught,
        expit(process.predict(taught)),
        settings or EnsembleSettings(),
        torch.Generator().manual_seed(seed),
    )
    fresh = spread_encodings(space, 2000, generator)
    distillation = predictor.predict(fresh) - expit(process.predict(fresh))
    report(f"network: {100 * distillation.std():.3f} points from the process")
    left_out = _leave_out(features, targets, generator)
    knots, half_widths = _conformal(left_out, plain)
    predictor = replace(predictor, interval_accuracy=knots, interval_half_width=half_widths)
    inside = _cross_conformal(left_out, plain, generator)
    spread = samples.draw == SPREAD
    quality: dict[str, Any] = {
        "samples": len(samples),
        "held_out": int(spread.sum()),
        "images": samples.images,
        "views": samples.views,
        "distillation_error": float(np.sqrt((distillation**2).mean())),
        **_quality(predictor, samples, left_out, inside, spread),
        "forms": {
            form.name: _quality(predictor, samples, left_out, inside, rows)
            for form in FORMS
            for rows in [spread & (samples.form == form.index)]
            if rows.sum() >= 5
        },
    }
    if (~spread).sum() >= 5:
        quality["searched"] = {
            "held_out": int((~spread).sum()),
            **_quality(predictor, samples, left_out, inside, ~spread),
        }
    quality["half"] = _by_halves(samples.select(np.flatnonzero(spread)), generator)
    coverage, error = quality["interval_coverage"], quality["mean_absolute_error"]
    report(
        f"left out {quality['held_out']}: Kendall {quality['kendall']:.3f} (between halves "
        f"{quality['noise_ceiling']:.3f}), Pearson {quality['pearson']:.3f}, mean |error| "
        f"{100 * error:.3f} points, coverage {100 * coverage:.1f} %"
    )
    return (
        predictor,
        quality,
        LeftOut(predicted=left_out, measured=samples.accuracy, form=samples.form, searched=~spread),
    )


def _check(samples: Samples, space: SearchSpace) -> None:
    if samples.space != space:
        raise TrainingError("the samples are of another supernet: sample this one")
    spread = int((samples.draw == SPREAD).sum())
    if spread < MINIMUM_SAMPLES:
        raise TrainingError(
            f"{spread} random subnets are too few to fit and to measure a predictor: ask for at least "
            f"{MINIMUM_SAMPLES}, better 300, with `sample --samples`"
        )


def _merge(samples: Samples) -> Samples:
    """Samples of one configuration put together: one left out would be predicted by its double."""
    _, first, group = np.unique(samples.features(), axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    counts = np.bincount(group)[:, None]
    halves = np.stack([np.bincount(group, half) for half in samples.half_accuracy.T], axis=1) / counts
    plain, smooth = (
        np.bincount(group, each) / counts[:, 0] for each in (samples.plain_accuracy, samples.smooth_accuracy)
    )
    return replace(samples.select(first), half_accuracy=halves, plain_accuracy=plain, smooth_accuracy=smooth)


def _targets(samples: Samples) -> NDArray[np.float64]:
    """Logits of the smooth accuracies, on the line that is nearest to the plain accuracies' logits."""
    smooth, accuracy = accuracy_logits(samples.smooth_accuracy), accuracy_logits(samples.plain_accuracy)
    if np.ptp(smooth) < 1e-6:
        return accuracy
    slope, intercept = np.polyfit(smooth, accuracy, 1)
    return np.asarray(slope * smooth + intercept, dtype=np.float64)


def _leave_out(
    features: NDArray[np.float32], targets: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Accuracy [N] of each fifth as a process predicts it that saw the logits of the others only."""
    left_out = np.empty(len(targets))
    folds = generator.permutation(len(targets)) % _FOLDS
    for fold in range(_FOLDS):
        outside = folds == fold
        without = fit_process(features[~outside], targets[~outside], generator)
        left_out[outside] = expit(without.predict(features[outside]))
    return left_out


def _by_halves(samples: Samples, generator: np.random.Generator) -> dict[str, dict[str, float]]:
    """Predictions of left-out subnets by fits to one half of the images, against that half (`fitted`) and the
    other (`other`), whose mean difficulty does not count: `pearson`, `mean_absolute_error`,
    `interval_coverage` with the interval of the fitted half's residuals. Means of both ways round.
    """
    found: dict[str, list[dict[str, float]]] = {"fitted": [], "other": []}
    for fitted, other in (samples.half_accuracy.T, samples.half_accuracy.T[::-1]):
        predicted = _leave_out(samples.features(), accuracy_logits(fitted), generator)
        knots, half_widths = _conformal(predicted, fitted)
        half_width = np.interp(predicted, knots, half_widths)
        as_difficult = other + (fitted.mean() - other.mean())
        for name, measured, inside in (
            ("fitted", fitted, _cross_conformal(predicted, fitted, generator)),
            ("other", as_difficult, np.abs(as_difficult - predicted) <= half_width),
        ):
            found[name].append(
                {
                    "pearson": _correlation(pearsonr, predicted, measured),
                    "mean_absolute_error": float(np.abs(predicted - measured).mean()),
                    "interval_coverage": float(inside.mean()),
                }
            )
    return {
        name: {key: float(np.mean([way[key] for way in ways])) for key in ways[0]}
        for name, ways in found.items()
    }


def _conformal(
    predicted: NDArray[np.float64], measured: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots and half-widths of the 90 % interval, from out-of-fold predictions [N].

    The typical |residual| of each region of predicted accuracy scales the residuals, one conformal quantile
    of the scaled residuals makes the coverage right overall.
    """
    residuals = np.abs(measured - predicted)
    regions = np.array_split(np.argsort(predicted, kind="stable"), min(max(len(predicted) // 60, 1), 8))
    knots = np.array([predicted[region].mean() for region in regions])
    typical = np.array([max(float(residuals[region].mean()), 1e-5) for region in regions])
    scaled = np.sort(residuals / np.interp(predicted, knots, typical))
    rank = min(int(np.ceil((len(scaled) + 1) * COVERAGE)), len(scaled)) - 1
    return knots, typical * scaled[rank]


def _cross_conformal(
    predicted: NDArray[np.float64], measured: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Whether each [N] is inside the interval that the residuals of the other folds give."""
    folds = generator.permutation(len(predicted)) % _FOLDS
    inside = np.zeros(len(predicted), dtype=bool)
    for fold in range(_FOLDS):
        knots, half_widths = _conformal(predicted[folds != fold], measured[folds != fold])
        here = folds == fold
        half = np.interp(predicted[here], knots, half_widths)
        inside[here] = np.abs(measured[here] - predicted[here]) <= half
    return inside


def _quality(
    predictor: AccuracyPredictor,
    samples: Samples,
    predicted: NDArray[np.float64],
    inside: NDArray[np.bool_],
    rows: NDArray[np.bool_],
) -> dict[str, float]:
    """Of the samples in `rows`, as `fit_predictor` says."""
    predicted, measured, half = predicted[rows], samples.accuracy[rows], samples.half_accuracy[rows]
    plain = samples.plain_accuracy[rows]
    lower, upper = predictor.interval(predicted)
    errors = np.abs(predicted - plain)
    averages = np.minimum(samples.weight_bits[rows].mean(axis=1), samples.activation_bits[rows].mean(axis=1))
    usual = errors[averages >= _LOW_BITS]
    return {
        "pearson": _correlation(pearsonr, predicted, measured),
        "kendall": _correlation(kendalltau, predicted, measured),
        "plain_pearson": _correlation(pearsonr, predicted, plain),
        "plain_kendall": _correlation(kendalltau, predicted, plain),
        "noise_ceiling": _correlation(kendalltau, half[:, 0], half[:, 1]),
        "half_pearson": _correlation(pearsonr, half[:, 0], half[:, 1]),
        "mean_absolute_error": float(errors.mean()),
        "mean_absolute_error_from_3_bits": float(usual.mean()) if len(usual) else 0.0,
        "mean_error": float((predicted - plain).mean()),
        "interval_coverage": float(inside[rows].mean()),
        "interval_width": float((upper - lower).mean()),
    }


def _correlation(of: Callable[..., Any], one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """scipy's `of`, or 0 where a constant side leaves it undefined: JSON has no NaN."""
    return 0.0 if np.ptp(one) == 0 or np.ptp(other) == 0 else float(of(one, other).statistic)
