"""Fits CQAP and the BatchNorm statistics predictor to samples, and measures both on samples held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau, pearsonr

from eqnet_core.errors import TrainingError
from eqnet_core.predictor import COVERAGE, AccuracyPredictor
from eqnet_core.space import BIT_WIDTHS, FORMS, SearchSpace, Symmetry
from eqnet_core.statistics import (
    NO_LAYER,
    TABLE_ROWS,
    StatisticsPredictor,
    find_owners,
    table_rows,
)
from eqnet_core.training.ensemble import EnsembleSettings, fit_ensemble
from eqnet_core.training.moments import QuantizedWeights, fit_moments
from eqnet_core.training.ridge import bit_basis, encoding_basis, fit_ridge
from eqnet_core.training.samples import Samples

MINIMUM_SAMPLES = 60
"""Fewer cannot be split into parts to fit on, to calibrate the interval with and to measure on."""

WEIGHT_DECAYS: tuple[float, ...] = (1.0, 3.0, 10.0)
"""What cross-validation chooses from: the fewer the samples, the more of it."""

_FLOOR = 1e-3
"""Least variance of a channel, as a share of its median over all samples."""

_OWN_SCALE = 2.0
"""Prior scale of what the own layer does, against that of any other layer."""

_FOLDS = 5


def fit_predictor(
    samples: Samples,
    space: SearchSpace,
    seed: int,
    *,
    settings: EnsembleSettings | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[AccuracyPredictor, dict[str, Any]]:
    """CQAP and its quality on held-out configurations. The same seed and samples give the same predictor.

    The held-out part (a quarter, at most 500 or an eighth) takes no part in fitting, in choosing the weight
    decay or in calibrating the interval. `report` is told one line per stage.

    Quality: `pearson`, `kendall`, `mean_absolute_error` (fraction) and `interval_coverage`,
    `interval_width` (mean, fraction) against measured accuracies; `noise_ceiling`, Kendall between
    accuracies measured on the two halves of the images; `forms` with the same per form; `samples`,
    `held_out`, `weight_decay`.

    Raises:
        TrainingError: too few samples, or samples of another space.
    """
    _check(samples, space)
    generator = np.random.default_rng(seed)
    features, accuracy = samples.features(), samples.accuracy
    groups = np.unique(features, axis=0, return_inverse=True)[1].reshape(-1)
    held_out = _draw_held_out(groups, generator)
    known = np.flatnonzero(~held_out)
    folds = (generator.permutation(groups.max() + 1) % _FOLDS)[groups[known]]
    torch_generator = torch.Generator().manual_seed(seed)

    best: tuple[float, EnsembleSettings, NDArray[np.float64]] | None = None
    for decay in WEIGHT_DECAYS:
        candidate = replace(settings or EnsembleSettings(), weight_decay=decay)
        predicted = np.empty(len(known))
        for fold in range(_FOLDS):
            inside, outside = known[folds != fold], known[folds == fold]
            model = fit_ensemble(features[inside], accuracy[inside], candidate, torch_generator)
            predicted[folds == fold] = model.predict(features[outside])
        error = float(np.abs(predicted - accuracy[known]).mean())
        report(f"weight decay {decay:g}: mean |error| {100 * error:.3f} points over {_FOLDS} folds")
        if best is None or error < best[0]:
            best = (error, candidate, predicted)
    assert best is not None
    _, chosen, predicted = best
    knots, half_widths = _conformal(predicted, accuracy[known])
    predictor = replace(
        fit_ensemble(features[known], accuracy[known], chosen, torch_generator),
        interval_accuracy=knots,
        interval_half_width=half_widths,
    )
    quality: dict[str, Any] = {
        "samples": len(samples),
        "held_out": int(held_out.sum()),
        "images": int(samples.evaluated.sum()),
        "weight_decay": chosen.weight_decay,
        **_quality(predictor, samples.select(held_out), features[held_out]),
    }
    quality["forms"] = {
        form.name: _quality(predictor, samples.select(rows), features[rows])
        for form in FORMS
        for rows in [held_out & (samples.form == form.index)]
        if rows.sum() >= 5
    }
    coverage, error = quality["interval_coverage"], quality["mean_absolute_error"]
    report(
        f"held out {quality['held_out']}: Kendall {quality['kendall']:.3f} (between halves "
        f"{quality['noise_ceiling']:.3f}), Pearson {quality['pearson']:.3f}, mean |error| "
        f"{100 * error:.3f} points, coverage {100 * coverage:.1f} %"
    )
    return predictor, quality


def fit_statistics(
    samples: Samples,
    space: SearchSpace,
    *,
    weights: QuantizedWeights | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[StatisticsPredictor, dict[str, Any]]:
    """The statistics predictor, fitted on all samples, and its leave-one-out quality. Deterministic.

    `weights` of the supernet (`quantized_weights`) tell most of what a layer's own bits and form do; without
    them every cell of the tables has to be learned from the samples that had it.

    Quality, over all channels: `mean_error`, root mean square error of the mean in the channel's own
    standard deviations, and `log_variance_error`, of the logarithm of the variance; `mean_explained`,
    `variance_explained`, shares of the spread between configurations that are predicted; `worst_mean_error`
    of any BatchNorm.

    Raises:
        TrainingError: too few samples, or samples of another space.
    """
    _check(samples, space)
    weights = weights or {}
    owners = find_owners(samples.batch_norms, space)
    features = samples.features().astype(np.float64)
    rows = table_rows([samples.configuration(row) for row in range(len(samples))], space)
    basis, table_basis = encoding_basis(space.encoding_size), _table_basis()
    typical = np.maximum(np.median(samples.variances, axis=0), 1e-12).astype(np.float64)
    variances = np.maximum(samples.variances, _FLOOR * typical)
    raw = np.concatenate([samples.means.astype(np.float64), np.log(variances)], axis=1)
    channels = len(typical)
    centre = raw.mean(axis=0)
    # what hardly moves between the samples must not become a huge number in cells that no sample had
    spread = np.maximum(raw.std(axis=0), 1e-2 * np.concatenate([np.sqrt(typical), np.ones(channels)]))
    targets = (raw - centre) / spread
    low, high = targets.min(axis=0), targets.max(axis=0)
    table = np.zeros((TABLE_ROWS, 2 * channels))
    shared = np.zeros((space.encoding_size, 2 * channels))
    errors = np.empty_like(targets)
    begin = 0
    for (name, count), owner in zip(samples.batch_norms, owners, strict=True):
        visible = _upstream(int(owner), space)
        local = basis[np.ix_(visible, visible)]
        design = features[:, visible] @ local
        both = np.concatenate([np.arange(begin, begin + count), np.arange(begin, begin + count) + channels])
        if owner != NO_LAYER:
            design = np.concatenate(
                [design, table_basis[rows[:, owner, 0]] + table_basis[rows[:, owner, 1]]], axis=1
            )
            if space.layers[owner].name in weights:
                moments = fit_moments(
                    weights[space.layers[owner].name],
                    rows[:, owner, 0],
                    samples.means[:, both[:count]].astype(np.float64),
                    variances[:, both[:count]],
                )
                possible = _possible_rows(int(owner), space)
                from_weights = (np.concatenate(moments, axis=1)[possible] - centre[both]) / spread[both]
                table[np.ix_(possible, both)] = from_weights
                low[both] = np.minimum(low[both], from_weights.min(axis=0))
                high[both] = np.maximum(high[both], from_weights.max(axis=0))
        for columns in (both[:count], both[count:]):
            remainder = targets[:, columns]
            if owner != NO_LAYER:
                remainder = remainder - table[np.ix_(rows[:, owner, 0], columns)]
            fitted = fit_ridge(design, remainder)
            coefficients = local @ fitted.weights[: len(visible)]
            coefficients[:2] += fitted.offset  # one of the two granularities is always set
            shared[np.ix_(visible, columns)] = coefficients
            if owner != NO_LAYER:
                table[:, columns] += table_basis @ fitted.weights[len(visible) :]
            errors[:, columns] = fitted.errors
        begin += count
        report(f"{name}: {_explained(errors[:, both[:count]]):.3f} of the means' spread explained")
    raw_errors = errors * spread
    mean_errors, log_errors = raw_errors[:, :channels], raw_errors[:, channels:]
    predictor = StatisticsPredictor(
        batch_norms=samples.batch_norms,
        owners=owners,
        table=table.astype(np.float16),
        shared=shared.astype(np.float16),
        centre=centre.astype(np.float32),
        spread=spread.astype(np.float32),
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        # an error of the mean must not become more than about one standard deviation of the output
        floor=np.maximum(_FLOOR * typical, (mean_errors**2).mean(axis=0)).astype(np.float32),
    )
    relative = mean_errors / np.sqrt(np.maximum(samples.variances, predictor.floor))
    ends = np.cumsum([count for _, count in samples.batch_norms])[:-1]
    per_batch_norm = [float(np.sqrt((part**2).mean())) for part in np.split(relative, ends, axis=1)]
    return predictor, {
        "samples": len(samples),
        "mean_error": float(np.sqrt((relative**2).mean())),
        "worst_mean_error": max(per_batch_norm),
        "log_variance_error": float(np.sqrt((log_errors**2).mean())),
        "mean_explained": _explained(errors[:, :channels]),
        "variance_explained": _explained(errors[:, channels:]),
        "bytes": sum(tensor.nbytes for tensor in predictor.to_tensors().values()),
    }


def _check(samples: Samples, space: SearchSpace) -> None:
    if samples.space != space:
        raise TrainingError("the samples are of another supernet: sample this one")
    if len(samples) < MINIMUM_SAMPLES:
        raise TrainingError(
            f"{len(samples)} samples are too few to fit and to measure a predictor: sample at least "
            f"{MINIMUM_SAMPLES}, better 300"
        )


def _draw_held_out(groups: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which samples to measure on, bool [N]; samples of one configuration (a group) stay together."""
    wanted = min(len(groups) // 4, max(500, len(groups) // 8))
    order = generator.permutation(groups.max() + 1)
    sizes = np.cumsum(np.bincount(groups)[order])
    held_out: NDArray[np.bool_] = np.isin(
        groups, order[: max(1, int(np.searchsorted(sizes, wanted, side="right")))]
    )
    return held_out


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


def _quality(
    predictor: AccuracyPredictor, samples: Samples, features: NDArray[np.float32]
) -> dict[str, float]:
    predicted, measured = predictor.predict(features), samples.accuracy
    lower, upper = predictor.interval(predicted)
    half = samples.half_accuracy
    return {
        "pearson": _correlation(pearsonr, predicted, measured),
        "kendall": _correlation(kendalltau, predicted, measured),
        "noise_ceiling": _correlation(kendalltau, half[:, 0], half[:, 1]),
        "mean_absolute_error": float(np.abs(predicted - measured).mean()),
        "interval_coverage": float(((lower <= measured) & (measured <= upper)).mean()),
        "interval_width": float((upper - lower).mean()),
    }


def _correlation(of: Callable[..., Any], one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """scipy's `of`, or 0 where a constant side leaves it undefined: JSON has no NaN."""
    return 0.0 if np.ptp(one) == 0 or np.ptp(other) == 0 else float(of(one, other).statistic)


def _explained(errors: NDArray[np.float64]) -> float:
    """1 - mean square error over variance, of standardised targets."""
    return float(1.0 - (errors**2).mean())


def _possible_rows(owner: int, space: SearchSpace) -> NDArray[np.int64]:
    """Weight rows of `owner`'s table that some configuration selects; a fixed layer has one bit-width."""
    configurations = [
        space.uniform(form, bits, narrow_range=narrow_range)
        for form, bits, narrow_range in product(FORMS, BIT_WIDTHS, (False, True))
        if not (narrow_range and form.weight_symmetry is Symmetry.ASYMMETRIC)
    ]
    return np.unique(table_rows(configurations, space)[:, owner, 0])


def _upstream(owner: int, space: SearchSpace) -> NDArray[np.int64]:
    """Columns of the encoding that can matter to `owner`'s output: the head, its own and earlier layers'."""
    width, count = len(BIT_WIDTHS), len(space.searchable)
    head = space.encoding_size - 2 * width * count
    names = {layer.name for layer in space.layers[: owner + 1]} if owner != NO_LAYER else None
    layers = [i for i, layer in enumerate(space.searchable) if names is None or layer.name in names]
    begins = [head + width * (i + kind * count) for kind in (0, 1) for i in layers]
    groups = [np.arange(begin, begin + width) for begin in begins]
    return np.concatenate([np.arange(head), *groups])


def _table_basis() -> NDArray[np.float64]:
    """Prior features of the rows of a statistics table, [TABLE_ROWS, F].

    Functions of the bits for all forms together, for each value of each axis, and for each cell: what few
    samples cannot tell of a cell they tell of its like. The own layer does most, hence the larger scale.
    """
    bits = bit_basis()
    axes = np.array(list(product((0, 1), repeat=4)))  # granularity, weight and activation symmetry, narrow
    cells = np.concatenate([np.ones((16, 1)), axes, 1 - axes, _pairs(axes), np.eye(16)], axis=1)
    weight = np.kron(bits, cells)
    forms = axes[::2, :3]
    activation = np.kron(bits, np.concatenate([np.ones((8, 1)), forms[:, 2:], np.eye(8)], axis=1))
    zeros = np.zeros((len(weight), activation.shape[1]))
    other = np.zeros((len(activation), weight.shape[1]))
    basis: NDArray[np.float64] = _OWN_SCALE * np.block([[weight, zeros], [other, activation]])
    assert len(basis) == TABLE_ROWS
    return basis


def _pairs(axes: NDArray[np.int64]) -> NDArray[np.int64]:
    """One-hots of weight symmetry x narrow range, and of granularity x weight symmetry: [16, 8]."""
    chosen = [axes[:, 1] * 2 + axes[:, 3], axes[:, 0] * 2 + axes[:, 1]]
    return np.concatenate([(values[:, None] == np.arange(4)).astype(np.int64) for values in chosen], axis=1)
