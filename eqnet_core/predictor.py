"""CQAP inference: a subnet's accuracy from its encoding (EQ-Net, Eq. 9). NumPy only; see `training.fitting`.

The network is an ensemble of MLPs with two hidden layers and one additive path, over `SearchSpace.encode`:

    correction = mean over members of relu(relu(x @ W1 + b1) @ W2 + b2) @ W3 + b3
    logit = centre + spread * (x @ additive + correction)
    accuracy = 1 / (1 + exp(-logit))

Its weights are fixed-point numbers, so small that every matrix product is exact whatever order a BLAS adds
in: two machines rank the same configurations the same way, and a search is reproducible beyond the machine
it ran on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqnet_core.errors import BundleError

COVERAGE = 0.9
"""Share of measured accuracies that `AccuracyPredictor.interval` is made to contain."""

_FIRST_GRID = 2.0**-14
_FIRST_LIMIT = 2.0**10
_WEIGHT_GRID = 2.0**-16
_WEIGHT_LIMIT = 2.0**3
_GROUP = 7
_DECIMALS = 1e12
"""Accuracies are rounded to its inverse."""


@dataclass(frozen=True, kw_only=True)
class AccuracyPredictor:
    """E = encoding size, M = members, H = hidden units of one member.

    `first` float32 [E, M * H + 1] and `first_bias` float32 [M * H + 1]: the last column is the additive
    path. `second` float64 [M, H, H], `second_bias` float64 [M, 1, H], `third` float64 [M, H], `third_bias`
    float64 scalar. `centre` and `spread` (logits) turn the network's standardised output into a logit.
    `interval_accuracy` (ascending) and `interval_half_width`, float64 [K]: half the width of the 90 %
    interval at these predicted accuracies, linear in between and constant outside.

    Raises:
        BundleError: shapes do not fit together, or values are not the fixed-point numbers that make it exact.
    """

    first: NDArray[np.float32]
    first_bias: NDArray[np.float32]
    second: NDArray[np.float64]
    second_bias: NDArray[np.float64]
    third: NDArray[np.float64]
    third_bias: float
    centre: float
    spread: float
    interval_accuracy: NDArray[np.float64]
    interval_half_width: NDArray[np.float64]

    def __post_init__(self) -> None:
        members, hidden = self.third.shape if self.third.ndim == 2 else (0, 0)
        columns = members * hidden + 1
        fits = (
            members > 0
            and self.first.ndim == 2
            and (self.first.shape[0] - _GROUP) % _GROUP == 0
            and self.first.shape[1] == columns
            and self.first_bias.shape == (columns,)
            and self.second.shape == (members, hidden, hidden)
            and self.second_bias.shape == (members, 1, hidden)
            and self.interval_accuracy.ndim == 1
            and self.interval_accuracy.shape == self.interval_half_width.shape
            and len(self.interval_accuracy) > 0
        )
        if not fits:
            raise BundleError("the accuracy predictor's tensors do not fit together: fit it again")
        if (self.interval_half_width < 0).any() or (np.diff(self.interval_accuracy) <= 0).any():
            raise BundleError("the accuracy predictor's interval is none: fit it again")
        if not self._is_exact():
            raise BundleError("the accuracy predictor's weights are not fixed-point numbers: fit it again")

    @property
    def encoding_size(self) -> int:
        """Columns that `predict` expects."""
        return len(self.first)

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Accuracy in [0, 1], [N], of configurations encoded by `SearchSpace.encode`, [N, E]."""
        members, hidden = self.third.shape
        first = features @ self.first
        first += self.first_bias
        additive = first[:, -1].astype(np.float64)
        units = np.maximum(first, 0.0, dtype=np.float64)[:, :-1]
        second_scaled, bias_scaled, third_scaled = self._scaled
        second = units.reshape(-1, members, hidden).transpose(1, 0, 2) @ second_scaled
        second += bias_scaled
        np.rint(second, out=second)
        np.maximum(second, 0.0, out=second)
        correction = second.transpose(1, 0, 2).reshape(-1, members * hidden) @ third_scaled / members
        logit = self.centre + self.spread * (additive + correction + self.third_bias)
        # exp may differ by one unit in the last place between machines: do not hand that out
        accuracy: NDArray[np.float64] = np.rint(_DECIMALS * (1.0 / (1.0 + np.exp(-logit)))) / _DECIMALS
        return accuracy

    @cached_property
    def _scaled(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Second layer in units of the grid that it is rounded to, and the way back: powers of two, exact."""
        return (
            self.second / _FIRST_GRID,
            self.second_bias / _FIRST_GRID,
            (self.third * _FIRST_GRID).reshape(-1),
        )

    def interval(self, accuracy: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper end, [N] each, of the 90 % prediction interval around predicted accuracies [N].

        Split-conformal (Papadopoulos et al. 2002): residuals of configurations that the predicting network
        had not seen, normalised by their typical size at that predicted accuracy. It is of the accuracy on
        the images that the samples were measured on; on others fewer are inside (the card's report tells).
        """
        half = np.interp(accuracy, self.interval_accuracy, self.interval_half_width)
        return np.maximum(accuracy - half, 0.0), np.minimum(accuracy + half, 1.0)

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """Everything `from_tensors` needs, by name."""
        return {
            "first.weight": self.first,
            "first.bias": self.first_bias,
            "second.weight": self.second.astype(np.float32),
            "second.bias": self.second_bias.astype(np.float32),
            "third.weight": self.third.astype(np.float32),
            "third.bias": np.array([self.third_bias], dtype=np.float32),
            "logit": np.array([self.centre, self.spread]),
            "interval.accuracy": self.interval_accuracy,
            "interval.half_width": self.interval_half_width,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> AccuracyPredictor:
        """Inverse of `to_tensors`.

        Raises:
            BundleError: a tensor is missing or does not fit.
        """
        try:
            centre, spread = tensors["logit"].astype(np.float64)
            (third_bias,) = tensors["third.bias"]
            return cls(
                first=tensors["first.weight"].astype(np.float32),
                first_bias=tensors["first.bias"].astype(np.float32),
                second=tensors["second.weight"].astype(np.float64),
                second_bias=tensors["second.bias"].astype(np.float64),
                third=tensors["third.weight"].astype(np.float64),
                third_bias=float(third_bias),
                centre=float(centre),
                spread=float(spread),
                interval_accuracy=tensors["interval.accuracy"].astype(np.float64),
                interval_half_width=tensors["interval.half_width"].astype(np.float64),
            )
        except (KeyError, ValueError) as error:
            raise BundleError(f"not an accuracy predictor: {error}") from error

    @classmethod
    def rounded(
        cls,
        *,
        first: NDArray[Any],
        first_bias: NDArray[Any],
        second: NDArray[Any],
        second_bias: NDArray[Any],
        third: NDArray[Any],
        third_bias: float,
        centre: float,
        spread: float,
        interval_accuracy: NDArray[np.float64],
        interval_half_width: NDArray[np.float64],
    ) -> AccuracyPredictor:
        """Put freely fitted weights on the fixed-point grids. Moves an accuracy by about 1e-6."""

        def on_grid(values: NDArray[Any], grid: float, limit: float) -> NDArray[np.float64]:
            rounded: NDArray[np.float64] = np.rint(np.asarray(values, dtype=np.float64) / grid) * grid
            return np.clip(rounded, -limit, limit)

        return cls(
            first=on_grid(first, _FIRST_GRID, _FIRST_LIMIT).astype(np.float32),
            first_bias=on_grid(first_bias, _FIRST_GRID, _FIRST_LIMIT).astype(np.float32),
            second=on_grid(second, _WEIGHT_GRID, _WEIGHT_LIMIT),
            second_bias=on_grid(second_bias, _WEIGHT_GRID, _WEIGHT_LIMIT),
            third=on_grid(third, _WEIGHT_GRID, _WEIGHT_LIMIT),
            third_bias=float(on_grid(np.array(third_bias), _WEIGHT_GRID, _WEIGHT_LIMIT)),
            centre=centre,
            spread=spread,
            interval_accuracy=interval_accuracy,
            interval_half_width=interval_half_width,
        )

    def _is_exact(self) -> bool:
        """Whether no partial sum of `predict` can need more bits than its floating-point type has.

        First layer: at most one bit of each one-hot group is set, so the sums stay below `reach`; on a grid
        of 2^-14 and below 2^10 they fit float32's 24 bits. Second: 24 + 19 bits and 64 terms fit float64's
        53; third: 24 + 19 bits again, over members * hidden terms.
        """
        groups = np.abs(self.first[_GROUP:]).reshape(-1, _GROUP, self.first.shape[1]).max(axis=1)
        reach = np.abs(self.first[:_GROUP]).sum(axis=0) + groups.sum(axis=0) + np.abs(self.first_bias)
        weights = (self.second, self.second_bias, self.third)
        second_reach = np.abs(self.second_bias[:, 0]) + np.einsum(
            "mh,mhk->mk", reach[:-1].reshape(self.third.shape), np.abs(self.second)
        )
        logits = (
            self.centre,
            self.spread,
            self.third_bias,
            *self.interval_accuracy,
            *self.interval_half_width,
        )
        return bool(
            np.isfinite(logits).all()
            and reach.max() < _FIRST_LIMIT
            and second_reach.max() < _FIRST_LIMIT
            and self.third.size <= 1024
            and all(_on_grid(values, _FIRST_GRID) for values in (self.first, self.first_bias))
            and all(_on_grid(values, _WEIGHT_GRID) for values in weights)
            and all(np.abs(values).max() <= _WEIGHT_LIMIT for values in weights)
        )


def _on_grid(values: NDArray[Any], grid: float) -> bool:
    scaled = values.astype(np.float64) / grid
    return bool(np.array_equal(scaled, np.rint(scaled)))
