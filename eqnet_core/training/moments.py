"""What a layer's quantised weights alone say about the mean and variance of its output.

The output of a convolution is a weighted sum of its inputs, so its mean is linear in the weights: the sum of
weight x mean input. The mean input is much the same in every subnet, as it comes out of a BatchNorm. The
weights of every form and bit-width are known, so that the few unknowns of a layer are fitted to all its
channels in all samples at once, and the outcome holds for forms and bit-widths that no sample had.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from eqnet_core.layers import ElasticConv2d
from eqnet_core.space import BIT_WIDTHS, FORMS, Symmetry
from eqnet_core.statistics import WEIGHT_ROWS, table_rows
from eqnet_core.supernet import Supernet

QuantizedWeights = Mapping[str, NDArray[np.float32]]
"""Layer name -> its dequantised weight for every weight row of a table, [WEIGHT_ROWS, C, inputs, kernel]."""


@torch.no_grad()
def quantized_weights(supernet: Supernet) -> QuantizedWeights:
    """What every form, bit-width and narrow range make of each layer; leaves another subnet active.

    Grouped convolutions are left out: their output channels do not share their inputs.
    """
    space = supernet.space
    found = {
        layer.spec.name: np.zeros((WEIGHT_ROWS, *layer.weight.flatten(2).shape), dtype=np.float32)
        for layer in supernet.layers
        if isinstance(layer, ElasticConv2d) and layer.geometry["groups"] == 1
    }
    # Rows that no configuration selects stay zero: a fixed layer at other bits than 8, and narrow range with
    # asymmetric weights.
    for form, bits, narrow_range in product(FORMS, BIT_WIDTHS, (False, True)):
        if narrow_range and form.weight_symmetry is Symmetry.ASYMMETRIC:
            continue
        configuration = space.uniform(form, bits, narrow_range=narrow_range)
        supernet.activate(configuration)
        rows = table_rows([configuration], space)[0, :, 0]
        for layer, row in zip(supernet.layers, rows, strict=True):
            if layer.spec.name in found:
                found[layer.spec.name][row] = layer.quantized_weight().flatten(2).cpu().numpy()
    return found


def fit_moments(
    weights: NDArray[np.float32],
    rows: NDArray[np.int64],
    means: NDArray[np.float64],
    variances: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and log-variance of every output channel for every weight row, float64 [WEIGHT_ROWS, C] each.

    Args:
        weights: [WEIGHT_ROWS, C, inputs, kernel].
        rows: int64 [N], the weight row of each sample.
        means, variances: [N, C], its calibrated statistics; variances > 0.

    Variances are modelled as a sum over input channels of what each contributes evenly over the kernel (the
    square of the kernel's sum: neighbouring pixels agree) and pixel by pixel (the sum of squares).
    """
    table = weights.astype(np.float64)
    typical = np.median(variances, axis=0)
    mean = _fit(table.reshape(*table.shape[:2], -1), rows, means, np.sqrt(typical), penalty=1e-3)
    powers = np.concatenate([table.sum(axis=3) ** 2, (table**2).sum(axis=3)], axis=2)
    variance = _fit(powers, rows, variances, typical, penalty=1e-4, nonnegative=True)
    # a channel whose weights are all zero
    return mean, np.log(np.maximum(variance, 1e-2 * typical))


def _fit(
    features: NDArray[np.float64],
    rows: NDArray[np.int64],
    targets: NDArray[np.float64],
    unit: NDArray[np.float64],
    *,
    penalty: float,
    nonnegative: bool = False,
) -> NDArray[np.float64]:
    """`features @ x` [WEIGHT_ROWS, C] for the one x that fits all channels, errors counted in `unit` [C].

    `features` [WEIGHT_ROWS, C, F], `targets` [N, C]; `penalty` is relative to the features' mean square.
    """
    seen, group = np.unique(rows, return_inverse=True)
    counts = np.bincount(group).astype(np.float64)
    average = np.zeros((len(seen), targets.shape[1]))
    np.add.at(average, group, targets)
    average /= counts[:, None]
    # samples of one row have the same features: their average, counted as often, is the same equation
    scale = np.sqrt(counts)[:, None] / unit
    x = (features[seen] * scale[:, :, None]).reshape(-1, features.shape[2])
    y = (average * scale).reshape(-1)
    gram = x.T @ x
    gram += penalty * np.trace(gram) / len(gram) * np.eye(len(gram))
    if nonnegative:
        # least squares in x is least squares in the Cholesky factor of its gram, which has fewer rows
        factor = np.linalg.cholesky(gram)
        solution = nnls(factor.T, np.linalg.solve(factor, x.T @ y))[0]
    else:
        solution = np.linalg.solve(gram, x.T @ y)
    fitted: NDArray[np.float64] = features @ solution
    return fitted
