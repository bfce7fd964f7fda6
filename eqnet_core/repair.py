"""Bring bits back inside the budget, and spend what is left of it, for a whole population at once.

Layers give way, or gain, one step at a time in a random order of precedence that the population shares: sums
over the layers that come before decide for all of them in one pass who steps. Nothing loops over individuals,
and every loop ends after as many rounds as a gene has steps. The sums are matrix products of whole numbers
below 2^53 in float64, hence exact in whatever order a BLAS adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqnet_core.genome import Codes, Genome


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The budgets of N individuals: upper bounds on the sums of `Genome.size` [N, 2], and on bit operations
    [N] or None."""

    sizes: NDArray[np.int64]
    operations: NDArray[np.int64] | None

    @classmethod
    def of(cls, genome: Genome) -> Limits:
        """The genome's own budget, once."""
        operations = genome.operations_limit
        return cls(
            sizes=genome.limits[None, :],
            operations=None if operations is None else np.array([operations], dtype=np.int64),
        )

    def repeated(self, times: int) -> Limits:
        """All budgets in order, `times` times over."""
        operations = None if self.operations is None else np.tile(self.operations, times)
        return Limits(sizes=np.tile(self.sizes, (times, 1)), operations=operations)

    def __len__(self) -> int:
        return len(self.sizes)


def random_bytes(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Bytes 0..255, an eighth of the price of `Generator.bytes`."""
    count = shape[0] * shape[1]
    words = generator.bit_generator.random_raw(-(-count // 8)).astype("<u8", copy=False)
    return words.view(np.uint8)[:count].reshape(shape)


class Precedence:
    """Which of L layers steps first, and which side of a layer gives way first where bit operations are too
    many (`weights_first` [N, L]; None without a bound on them)."""

    def __init__(self, generator: np.random.Generator, limits: Limits, layers: int) -> None:
        rank = generator.permutation(layers)
        # [i, j]: whether layer i comes before layer j
        self.before = (rank[:, None] < rank).astype(np.float64)
        self.weights_first: NDArray[np.bool_] | None = None
        if limits.operations is not None:
            self.weights_first = random_bytes(generator, (len(limits), layers)) < 128


class Repair:
    """Shrinks and grows codes [N, 2, L] of one genome within the budgets of N individuals, in place."""

    def __init__(self, genome: Genome, limits: Limits) -> None:
        largest = max(
            int(genome.effective.max()) ** 2 * int(genome.macs.sum()),
            int(genome.size.take(genome.highest).sum()),
        )
        assert largest < 2**53, "sums would not be exact in float64"
        self._rounds = genome.most_steps
        self._limits = limits.sizes.astype(np.float64)
        self._operations = None if limits.operations is None else limits.operations.astype(np.float64)
        self._size, self._down, self._effective, self._macs, self._down_bits, self._up_bits = (
            table.astype(np.float64)
            for table in (
                genome.size,
                genome.down,
                genome.effective,
                genome.macs,
                genome.down_bits,
                genome.up_bits,
            )
        )
        self._up = genome.up.astype(np.float64)
        self._ones = np.ones(genome.lowest.shape[1])

    def shrink(self, codes: Codes, precedence: Precedence) -> None:
        """Lower codes step by step until each meets its budget, which must be feasible."""
        rows, within = np.arange(len(codes)), codes
        for _ in range(self._rounds):
            excess = self._sums(within) - self._limits[rows]
            over = (excess > 0).any(axis=1)
            if not over.any():
                break
            if not over.all():
                rows, within, excess = rows[over], within[over], excess[over]
            saving = self._down.take(within)
            within -= (_before(saving, precedence.before) < excess[:, :, None]) & (saving > 0)
            if within is not codes:
                codes[rows] = within
        if self._operations is not None:
            assert precedence.weights_first is not None
            self._shrink_operations(codes, precedence.before, precedence.weights_first)

    def _shrink_operations(
        self, codes: Codes, before: NDArray[np.float64], weights_first: NDArray[np.bool_]
    ) -> None:
        assert self._operations is not None
        rows, within = np.arange(len(codes)), codes
        for _ in range(2 * self._rounds):
            bits = self._effective.take(within)
            excess = (bits[:, 0] * bits[:, 1]) @ self._macs - self._operations[rows]
            over = excess > 0
            if not over.any():
                break
            if not over.all():
                rows, within, excess, bits = rows[over], within[over], excess[over], bits[over]
            savings = self._down_bits.take(within) * bits[:, ::-1] * self._macs
            # One side per layer and round: steps on both sides of a layer would not add up.
            weights = (weights_first[rows] & (savings[:, 0] > 0)) | (savings[:, 1] == 0)
            saving = np.where(weights, savings[:, 0], savings[:, 1])
            stepping = (saving @ before < excess[:, None]) & (saving > 0)
            within[:, 0] -= stepping & weights
            within[:, 1] -= stepping & ~weights
            if within is not codes:
                codes[rows] = within

    def grow(self, codes: Codes, precedence: Precedence, *, rows: slice, rounds: int) -> None:
        """Raise the feasible codes in `rows` by up to `rounds` steps each, staying within their budget.

        The order of precedence alternates between rounds, so that one large layer does not block the rest.
        """
        growing, limits, before = codes[rows], self._limits[rows], precedence.before
        for _ in range(rounds):
            slack = (limits - self._sums(growing))[:, :, None]
            need = self._up.take(growing)
            stepping = need <= slack
            if self._operations is None:
                need *= stepping
                stepping &= _before(need, before) + need <= slack
            else:
                assert precedence.weights_first is not None
                weights_first = precedence.weights_first[rows]
                bits = self._effective.take(growing)
                operations_slack = (self._operations[rows] - (bits[:, 0] * bits[:, 1]) @ self._macs)[:, None]
                operations_need = self._up_bits.take(growing) * bits[:, ::-1] * self._macs
                stepping &= operations_need <= operations_slack[:, :, None]
                stepping[:, 0] &= weights_first | ~stepping[:, 1]
                stepping[:, 1] &= ~stepping[:, 0]
                need *= stepping
                operations_need *= stepping
                stepping &= _before(need, before) + need <= slack
                either = operations_need[:, 0] + operations_need[:, 1]
                stepping &= (either @ before + either <= operations_slack)[:, None]
            if not stepping.any():
                break
            growing += stepping
            before = before.T

    def _sums(self, codes: Codes) -> NDArray[np.float64]:
        """The sums of `Genome.size` over either side, [N, 2]."""
        sizes = self._size.take(codes).reshape(-1, codes.shape[2])
        return (sizes @ self._ones).reshape(-1, 2)


def _before(amounts: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of amounts [N, 2, L] over the layers that come before each: one product, not N small ones."""
    return (amounts.reshape(-1, amounts.shape[2]) @ before).reshape(amounts.shape)
