"""Local search: two changes that only pay together, such as a bit taken from one layer and given to another.

A genetic search ends near an optimum, seldom on it. Here every single change of bits is judged, within the
budget or not; what a pair of changes gains is estimated as the sum of what they gain alone, and the most
promising pairs within the budget are judged too. The best of all is taken, until nothing is better.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eqnet_core.genome import Codes, Genome
from eqnet_core.repair import Limits

PAIRS = 64
"""Pairs of changes that are judged per round and budget."""

PROMISING = 192
"""Changes that pairs are made of: those that gain most, or lose least."""

Judge = Callable[[Codes], NDArray[np.float64]]
"""Fitness [N] of codes [N, 2, L]."""


class Polish:
    """Improves one subnet for each budget of `limits` [I], all of them at once."""

    def __init__(self, genome: Genome, limits: Limits, judge: Judge) -> None:
        self._genome, self._limits, self._judge = genome, limits, judge
        counts = (genome.highest - genome.lowest + 1).ravel()
        # A change is a code of a gene that has a choice: [C] codes, genes, sides (0 weights, 1 activations).
        free = np.repeat(counts > 1, counts)
        self._codes = np.arange(counts.sum())[free]
        self._genes = np.repeat(np.arange(len(counts)), counts)[free]
        self._sides = (self._genes >= genome.lowest.shape[1]).astype(np.int64)
        self._promising = min(PROMISING, len(self._codes))
        self._pairs = np.stack(np.triu_indices(self._promising, k=1))

    @property
    def evaluations(self) -> int:
        """The most that one round judges per budget."""
        return len(self._codes) + PAIRS

    def improve(
        self, codes: Codes, scores: NDArray[np.float64], *, rounds: int
    ) -> tuple[Codes, NDArray[np.float64]]:
        """Codes [I, 2, L] within their budgets and their fitness [I], improved in up to `rounds` rounds."""
        codes, scores = codes.copy(), scores.copy()
        active = np.arange(len(codes))
        for _ in range(rounds if self._pairs.size else 0):
            found, found_scores = self._best_neighbour(codes[active], scores[active], active)
            better = found_scores > scores[active]
            active = active[better]
            if not len(active):
                break
            codes[active], scores[active] = found[better], found_scores[better]
        return codes, scores

    def _best_neighbour(
        self, codes: Codes, scores: NDArray[np.float64], budgets: NDArray[np.int64]
    ) -> tuple[Codes, NDArray[np.float64]]:
        """For subnets [A, 2, L] with `budgets` [A] of the limits."""
        genome, rows = self._genome, np.arange(len(codes))[:, None]
        changes = np.broadcast_to(np.arange(len(self._codes)), (len(codes), len(self._codes)))
        singles = self._changed(codes, changes[:, :, None])
        judged = self._judge(singles.reshape(-1, *codes.shape[1:])).reshape(changes.shape)
        flat = codes.reshape(len(codes), -1)
        gains = judged - scores[:, None]
        # What a gene has already changes nothing: a pair with it is a single change once more.
        gains[self._codes == flat[:, self._genes]] = -np.inf
        grown = np.zeros((2, *changes.shape), dtype=np.int64)  # by how much a change enlarges either side
        sizes = genome.size.take(self._codes) - genome.size.take(flat[:, self._genes])
        for side in range(2):
            grown[side] = sizes * (self._sides == side)
        slack = (self._limits.sizes[budgets] - genome.size.take(codes).sum(axis=2)).T[:, :, None]
        judged[~(grown <= slack).all(axis=0)] = -np.inf
        top = _largest(gains, self._promising)
        one, other = self._pairs
        gains, grown, genes = gains[rows, top], grown[:, rows, top], self._genes[top]
        hopes = gains[:, one] + gains[:, other]
        hopes[genes[:, one] == genes[:, other]] = -np.inf
        hopes[~(grown[:, :, one] + grown[:, :, other] <= slack).all(axis=0)] = -np.inf
        chosen = _largest(hopes, min(PAIRS, hopes.shape[1]))
        pairs = self._changed(codes, np.stack([top[rows, one[chosen]], top[rows, other[chosen]]], axis=2))
        pair_scores = self._judge(pairs.reshape(-1, *codes.shape[1:])).reshape(chosen.shape)
        pair_scores[np.isneginf(hopes[rows, chosen])] = -np.inf

        neighbours = np.concatenate([singles, pairs], axis=1)
        found = np.concatenate([judged, pair_scores], axis=1)
        if self._limits.operations is not None:
            found[genome.operations(neighbours) > self._limits.operations[budgets, None]] = -np.inf
        best = found.argmax(axis=1)
        return neighbours[rows[:, 0], best], found[rows[:, 0], best]

    def _changed(self, codes: Codes, changes: NDArray[np.int64]) -> Codes:
        """Subnets [A, 2, L] with each of N sets of K changes [A, N, K] applied: [A, N, 2, L]."""
        count, sets, _ = changes.shape
        changed = np.repeat(codes.reshape(count, 1, -1), sets, axis=1)
        np.put_along_axis(changed, self._genes[changes], self._codes[changes], axis=2)
        return changed.reshape(count, sets, *codes.shape[1:])


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions [A, count] of the largest of values [A, N] in ascending order; of equal ones the first.

    `argpartition` alone takes other ones of the equal on other processors (AVX-512, AVX2, neither).
    """
    least = np.partition(values, -count, axis=1)[:, -count, None]
    above, equal = values > least, values == least
    room = count - above.sum(axis=1, keepdims=True)
    taken = above | (equal & (equal.cumsum(axis=1) <= room))
    positions: NDArray[np.int64] = taken.nonzero()[1].reshape(len(values), count)
    return positions
