"""Fits the BatchNorm statistics predictor to calibrated subnets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqnet_core.errors import TrainingError
from eqnet_core.space import BIT_WIDTHS, FORMS, SearchSpace, Symmetry
from eqnet_core.statistics import NO_LAYER, TABLE_ROWS, StatisticsPredictor, find_owners, table_rows
from eqnet_core.training.ridge import bit_basis, encoding_basis, fit_ridge
from eqnet_core.training.samples import Calibrations

MINIMUM_CALIBRATIONS = 60
"""Fewer say too little about layers that hardly any of them has at low bits."""

OutputTables = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Layer name -> mean and variance of its output for every weight row, [WEIGHT_ROWS, C] each."""

_FLOOR = 1e-3
"""Least variance of a channel, as a share of its median over all samples."""

_OWN_SCALE = 2.0
"""Prior scale of what the own layer does, against that of any other layer."""


def fit_statistics(
    samples: Calibrations,
    space: SearchSpace,
    *,
    outputs: OutputTables | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[StatisticsPredictor, dict[str, Any]]:
    """The statistics predictor, fitted on all samples, and its leave-one-out quality. Deterministic.

    `outputs` (see `training.moments`) tell most of what a layer's own bits and form do; without them every
    cell of the tables has to be learned from the samples that had it.

    Quality, over all channels: `mean_error`, root mean square error of the mean in the channel's own
    standard deviations, and `log_variance_error`, of the logarithm of the variance; `mean_explained`,
    `variance_explained`, shares of the spread between configurations that are predicted; `worst_mean_error`
    of any BatchNorm.

    Raises:
        TrainingError: too few samples, or samples of another space.
    """
    if samples.space != space:
        raise TrainingError("the samples are of another supernet: calibrate subnets of this one")
    if len(samples) < MINIMUM_CALIBRATIONS:
        raise TrainingError(
            f"{len(samples)} calibrated subnets are too few: calibrate at least {MINIMUM_CALIBRATIONS}, "
            "better 400"
        )
    outputs = outputs or {}
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
            if space.layers[owner].name in outputs:
                mean, variance = outputs[space.layers[owner].name]
                # a channel whose weights all round to one value varies by next to nothing
                variance = np.maximum(variance, _FLOOR * typical[both[:count]])
                possible = _possible_rows(int(owner), space)
                known = np.concatenate([mean, np.log(variance)], axis=1)
                from_weights = (known[possible] - centre[both]) / spread[both]
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
        # + 0.0: which zeros are negative is rounding's luck, and the digest would tell
        table=table.astype(np.float16) + np.float16(0.0),
        shared=shared.astype(np.float16) + np.float16(0.0),
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


def _possible_rows(owner: int, space: SearchSpace) -> NDArray[np.int64]:
    """Weight rows of `owner`'s table that some configuration selects; a fixed layer has one bit-width."""
    configurations = [
        space.uniform(form, bits, narrow_range=narrow_range)
        for form, bits, narrow_range in product(FORMS, space.bit_widths, (False, True))
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


def _explained(errors: NDArray[np.float64]) -> float:
    """1 - mean square error over variance, of standardised targets."""
    return float(1.0 - (errors**2).mean())
