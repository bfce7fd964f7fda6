"""A Gaussian process over subnets: what a few hundred measured ones tell of all others.

It learns from far fewer samples than a network because it is told what is known beforehand: that bits of one
layer act much like one bit more or less does, that what layers do adds up where it does not add to much, and
that forms are alike, the more axes they share. A network that serves is taught by it (`training.fitting`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from eqnet_core.space import BIT_WIDTHS
from eqnet_core.training.ridge import encoding_basis

_WIDTH = len(BIT_WIDTHS)
_AXES = 3
"""One-hot pairs at the head of an encoding: granularity, weight symmetry, activation symmetry."""

_HEAD = 2 * _AXES + 1

_LENGTHS: tuple[float, ...] = (0.7, 1.2)
_OF_FORM: tuple[float, ...] = (0.15, 0.4, 0.7)
_CURVED = 2.0
"""How much more than what adds up the rest may do, which falls off with the distance."""

_NOISES: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2, 0.4, 1.0)
_FORM_OFFSET = 0.3
_NARROW = 0.3
"""What a narrow range of weights does besides: it takes a level away, one of 4 at 2 bits, one of 256 at 8, so
that it matters as much as the bits of each layer let it."""

_ROUNDS = 3
"""Times that layers are weighted by how much they turned out to matter."""

_MOST_TO_CHOOSE_BY = 1200
"""Samples that hyperparameters are chosen by: the time grows with the cube."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Covariance of two encoded subnets, with x and y the features of their bits:

        (x.y + 2 exp(-|x - y|^2 / (2 length^2))) * (1 - of_form + of_form * s^3 + 0.3 n)
            + what depends on forms alone

    with s the share of the form's axes that agree, and n 1 if the weights of both have a narrow range or 0.
    `relevance` float64 [genes] scales the features of each layer's weights and activations; `centre` float64
    [E - head] and `scale` make |x|^2 1 on average.
    """

    relevance: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: float
    length: float
    of_form: float

    def bits(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """The features of bits [N, E - head]."""
        encoded = features.astype(np.float64) @ encoding_basis(features.shape[1])
        centred = encoded[:, _HEAD:] - self.centre
        scaled: NDArray[np.float64] = centred * np.repeat(self.relevance, _WIDTH) / np.sqrt(self.scale)
        return scaled

    def __call__(self, one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
        """Covariances [N, M] of encodings [N, E] and [M, E]."""
        x, y = self.bits(one), self.bits(other)
        products = x @ y.T
        distances = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2.0 * products
        curved = np.exp(-np.maximum(distances, 0.0) / (2.0 * self.length**2))
        shared = one[:, : 2 * _AXES].astype(np.float64) @ other[:, : 2 * _AXES].T / _AXES
        narrow = np.outer(one[:, _HEAD - 1], other[:, _HEAD - 1])
        form = _FORM_OFFSET * (shared**2 + (shared > 1.0 - 1e-6) + narrow)
        alike = 1.0 - self.of_form + self.of_form * shared**3 + _NARROW * narrow
        covariance: NDArray[np.float64] = (products + _CURVED * curved) * alike + form + 1.0
        return covariance


@dataclass(frozen=True, kw_only=True)
class Process:
    """Fitted to N samples: `support` float64 [N, E] are their encodings, `weights` [N] what each adds."""

    kernel: Kernel
    support: NDArray[np.float64]
    weights: NDArray[np.float64]
    offset: float
    noise: float

    def predict(self, features: NDArray[np.floating], *, batch: int = 4096) -> NDArray[np.float64]:
        """Means [M] of encodings [M, E]."""
        parts = [
            self.kernel(features[start : start + batch], self.support) @ self.weights
            for start in range(0, len(features), batch)
        ]
        return np.concatenate(parts) + self.offset


def fit_process(
    features: NDArray[np.floating], targets: NDArray[np.float64], generator: np.random.Generator
) -> Process:
    """The process for `targets` [N] of encodings [N, E], no two of them equal.

    Length, form share and noise are those of least leave-one-out error, which for a Gaussian process is
    exact without fitting N times (Rasmussen and Williams 2006, Eq. 5.12).
    """
    chosen = generator.permutation(len(features))[:_MOST_TO_CHOOSE_BY]
    few, offset = features[chosen].astype(np.float64), float(targets.mean())
    wanted = targets[chosen] - offset
    encoded = (few @ encoding_basis(few.shape[1]))[:, _HEAD:]
    centre = encoded.mean(axis=0)
    relevance = np.ones(len(centre) // _WIDTH)
    best: tuple[float, Kernel, float] | None = None
    for _ in range(_ROUNDS):
        bits = (encoded - centre) * np.repeat(relevance, _WIDTH)
        scale = max(float((bits**2).sum(axis=1).mean()), 1e-12)
        found: tuple[float, Kernel, float, NDArray[np.float64]] | None = None
        for length, of_form in product(_LENGTHS, _OF_FORM):
            kernel = Kernel(
                relevance=relevance,
                centre=centre,
                scale=scale,
                length=length,
                of_form=of_form,
            )
            values, vectors = np.linalg.eigh(kernel(few, few))
            projected = vectors.T @ wanted
            for noise in _NOISES:
                inverse = 1.0 / (np.maximum(values, 0.0) + noise)
                weights = vectors @ (inverse * projected)
                error = float(np.mean((weights / (vectors**2 @ inverse)) ** 2))
                if found is None or error < found[0]:
                    found = (error, kernel, noise, weights)
        assert found is not None
        if best is None or found[0] < best[0]:
            best = found[:3]
        slopes = (found[3] @ bits).reshape(-1, _WIDTH)
        size = np.sqrt((slopes**2).sum(axis=1))
        relevance = relevance * np.clip(np.sqrt(size / max(size.mean(), 1e-12)), 0.4, 2.5) ** 0.7
    assert best is not None
    _, kernel, noise = best
    support = features.astype(np.float64)
    covariance = kernel(support, support) + noise * np.eye(len(support))
    return Process(
        kernel=kernel,
        support=support,
        weights=np.linalg.solve(covariance, targets - offset).astype(np.float64),
        offset=offset,
        noise=noise,
    )
