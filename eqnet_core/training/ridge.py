"""Ridge regression with its penalty chosen by leave-one-out, and a prior over functions of a bit-width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqnet_core.space import BIT_WIDTHS

PENALTIES: tuple[float, ...] = tuple(float(10.0**exponent) for exponent in np.arange(-2.0, 4.1, 0.5))


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """`features @ weights + offset`: `weights` float64 [F, T], `offset` float64 [T].

    `errors` float64 [N, T]: target minus prediction for each row by the fit that leaves that row out.
    """

    weights: NDArray[np.float64]
    offset: NDArray[np.float64]
    penalty: float
    errors: NDArray[np.float64]


def fit_ridge(features: NDArray[np.float64], targets: NDArray[np.float64]) -> Ridge:
    """Least squares with penalty `p * |weights|^2`, the offset free; one `p` of `PENALTIES` for all targets.

    `features` [N, F], `targets` [N, T]. Leave-one-out errors are exact (Allen's PRESS): error / (1 -
    leverage).
    """
    centre, middle = features.mean(axis=0), targets.mean(axis=0)
    x, y = features - centre, targets - middle
    values, vectors = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0.0)
    rotated = x @ vectors
    projected = rotated.T @ y
    best: tuple[float, float, NDArray[np.float64]] | None = None
    for penalty in PENALTIES:
        shrunk = 1.0 / (values + penalty)
        leverage = (rotated**2) @ shrunk + 1.0 / len(x)
        # rows that alone decide some weight have leverage 1 up to rounding
        errors = (y - rotated @ (shrunk[:, None] * projected)) / np.maximum(1.0 - leverage, 1e-6)[:, None]
        score = float(np.mean(errors**2))
        if best is None or score < best[0]:
            best = (score, penalty, errors)
    assert best is not None
    _, penalty, errors = best
    weights = vectors @ (projected / (values + penalty)[:, None])
    return Ridge(weights=weights, offset=middle - centre @ weights, penalty=penalty, errors=errors)


def bit_basis() -> NDArray[np.float64]:
    """Features [7, 7] of a bit-width such that a small penalty stands for a plausible effect of it.

    Row b are the features of `BIT_WIDTHS[b]`. Penalising the weights of these features is the same as a
    Gaussian process over the bit-width whose effects are close where quantisation steps (2^-bits) are
    close, with a slow trend in the bits themselves and a little freedom for each: with few samples of one
    layer at 5 bits, those at 4 and 6 tell most of it. One-hots know nothing of that and need several times
    the samples.
    """
    bits = np.array(BIT_WIDTHS, dtype=np.float64)
    steps = 2.0 ** -(bits - BIT_WIDTHS[0])
    covariance = (
        np.exp(-0.5 * ((steps[:, None] - steps) / 0.5) ** 2)
        + 0.3 * np.exp(-0.5 * ((bits[:, None] - bits) / 3.0) ** 2)
        + 0.02 * np.eye(len(bits))
    )
    return np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)


def encoding_basis(encoding_size: int) -> NDArray[np.float64]:
    """`bit_basis` for every one-hot group of `SearchSpace.encode`, identity for its head: [E, E]."""
    width = len(BIT_WIDTHS)
    head = encoding_size % width or width
    basis = np.eye(encoding_size)
    for begin in range(head, encoding_size, width):
        basis[begin : begin + width, begin : begin + width] = bit_basis()
    return basis
