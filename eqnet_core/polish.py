"""Local search: changes that only pay together, such as a bit taken from one layer and given to another.

A genetic search ends near an optimum, seldom on it. Here every single change of bits is judged, within the
budget or not, and what several changes gain is estimated as the sum of what they gain alone. The most
promising pairs within the budget are judged too, and the most promising exchanges: a change with the cheapest
others that pay for it, or with the best that it pays for, since a bit of a large layer is worth one of many
small layers. The best of all is taken, until nothing is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from eqnet_core.genome import Codes, Genome
from eqnet_core.repair import Limits

PAIRS = 64
"""Pairs of changes that are judged per round and budget."""

EXCHANGES = 64
"""Exchanges that are judged per round and budget."""

PROMISING = 96
"""Changes that pairs are made of: those that gain most, or lose least."""

Scores = NDArray[np.float64]

Judge = Callable[[Codes], Scores]
"""Fitness [N] of codes [N, 2, L]."""

Subnets = tuple[Codes, Scores]
"""One for each budget: codes [I, 2, L] and their fitness [I]."""


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
        # The changes of each gene that has a choice, [G, most of any]; the last of a gene again where it has
        # fewer. `_gene` [C]: which of these genes a change is of.
        counts = counts[counts > 1]
        self._gene = np.repeat(np.arange(len(counts)), counts)
        steps = np.minimum(np.arange(counts.max(initial=0)), counts[:, None] - 1)
        self._choices = (counts.cumsum() - counts)[:, None] + steps

    @property
    def evaluations(self) -> int:
        """The most that one round judges per budget."""
        return len(self._codes) + PAIRS + EXCHANGES

    def improve(self, starts: Sequence[Subnets], *, predictions: int) -> Subnets:
        """The best that climbing finds from any of the `starts`, one after the other.

        Codes of a start are within their budgets. With several budgets, each must be within the next one:
        what the first start leads to is then also where the next budget starts from.

        Args:
            starts: at least one.
            predictions: how many may be made; what then has not been tried is left out.
        """
        best, predictions = self._climb(starts[0], predictions)
        tighter = np.maximum(np.arange(len(best[0])) - 1, 0)
        while len(tighter) > 1:
            found, predictions = self._climb((best[0][tighter], best[1][tighter]), predictions)
            if not (found[1] > best[1]).any():
                break
            best = _better(best, found)
        for start in starts[1:]:
            found, predictions = self._climb(start, predictions)
            best = _better(best, found)
        return best

    def _climb(self, start: Subnets, predictions: int) -> tuple[Subnets, int]:
        """What is reached from the start when every round takes the best, and the predictions that are left;
        each round counts as if none of what it judges were known."""
        codes, scores = start[0].copy(), start[1].copy()
        active = np.arange(len(codes) if self._pairs.size else 0)
        while len(active) and len(active) * self.evaluations <= predictions:
            predictions -= len(active) * self.evaluations
            found, found_scores = self._best_neighbour(codes[active], scores[active], active)
            better = found_scores > scores[active]
            active = active[better]
            codes[active], scores[active] = found[better], found_scores[better]
        return (codes, scores), predictions

    def _best_neighbour(self, codes: Codes, scores: Scores, budgets: NDArray[np.int64]) -> Subnets:
        """For subnets [A, 2, L] with `budgets` [A] of the limits."""
        genome, rows = self._genome, np.arange(len(codes))[:, None]
        flat = codes.reshape(len(codes), -1)
        singles = np.repeat(flat[:, None], len(self._codes), axis=1)
        singles[:, np.arange(len(self._codes)), self._genes] = self._codes
        judged = self._judged(singles, codes)
        gains = judged - scores[:, None]
        # What a gene has already changes nothing: a pair with it is a single change once more.
        gains[self._codes == flat[:, self._genes]] = -np.inf
        sizes = genome.size.take(self._codes) - genome.size.take(flat[:, self._genes])
        slack = self._limits.sizes[budgets] - genome.size.take(codes).sum(axis=2)
        judged[sizes > slack[:, self._sides]] = -np.inf
        pairs, pairs_fit = self._best_pairs(flat, gains, sizes, slack)
        exchanges, exchanges_fit = self._best_exchanges(flat, gains, sizes, slack)
        several = np.concatenate([pairs, exchanges], axis=1)
        several_judged = self._judged(several, codes)
        several_judged[~np.concatenate([pairs_fit, exchanges_fit], axis=1)] = -np.inf

        neighbours = np.concatenate([singles, several], axis=1).reshape(len(codes), -1, *codes.shape[1:])
        found = np.concatenate([judged, several_judged], axis=1)
        if self._limits.operations is not None:
            found[genome.operations(neighbours) > self._limits.operations[budgets, None]] = -np.inf
        best = found.argmax(axis=1)
        return neighbours[rows[:, 0], best], found[rows[:, 0], best]

    def _judged(self, flat: Codes, codes: Codes) -> Scores:
        """Fitness [A, N] of `flat` [A, N, 2 * L], which are shaped like codes [A, 2, L] otherwise."""
        return self._judge(flat.reshape(-1, *codes.shape[1:])).reshape(flat.shape[:2])

    def _best_pairs(
        self, flat: Codes, gains: Scores, sizes: NDArray[np.int64], slack: NDArray[np.int64]
    ) -> tuple[Codes, NDArray[np.bool_]]:
        """Pairs of changes [A, N, 2 * L] that promise most, and whether they are within the budget [A, N].

        `gains` and `sizes` [A, C]: what each change gains and by how much it enlarges its side, of which
        `slack` [A, 2] is left.
        """
        rows = np.arange(len(flat))[:, None]
        top = _largest(gains, self._promising)
        one, other = self._pairs
        gains, genes = gains[rows, top], self._genes[top]
        hopes = gains[:, one] + gains[:, other]
        hopes[genes[:, one] == genes[:, other]] = -np.inf
        for side in range(2):
            grown = np.where(self._sides[top] == side, sizes[rows, top], 0)
            hopes[grown[:, one] + grown[:, other] > slack[:, side, None]] = -np.inf
        chosen = _largest(hopes, min(PAIRS, hopes.shape[1]))
        changed = np.repeat(flat[:, None], chosen.shape[1], axis=1)
        for part in (one, other):
            change = top[rows, part[chosen]]
            np.put_along_axis(
                changed, self._genes[change][:, :, None], self._codes[change][:, :, None], axis=2
            )
        return changed, hopes[rows, chosen] > -np.inf

    def _best_exchanges(
        self, flat: Codes, gains: Scores, sizes: NDArray[np.int64], slack: NDArray[np.int64]
    ) -> tuple[Codes, NDArray[np.bool_]]:
        """Exchanges, as `_best_pairs` has pairs.

        Each change first takes those others that lose least for what they free until it is within the
        budget, then those that gain most for what they need while there is room: the greedy solution of a
        knapsack problem (Dantzig 1957), of either side by itself.
        """
        rows = np.arange(len(flat))
        room, hopes = slack[:, self._sides] - sizes, gains.copy()
        # The change that each gene takes besides, [A, C, G].
        taken = np.full((*gains.shape, len(self._choices)), -1)
        with np.errstate(divide="ignore"):
            worth = gains / np.abs(sizes)
        for paying in (True, False):
            useful = sizes < 0 if paying else (sizes > 0) & (gains > 0)
            value = np.where(useful, worth, -np.inf)
            of_genes = value[:, self._choices].argmax(axis=2)
            best = self._choices[np.arange(len(self._choices)), of_genes]
            order = (-value[rows[:, None], best]).argsort(axis=1, kind="stable")
            for gene in order.T:
                change = best[rows, gene]
                size = sizes[rows, change][:, None]
                takes = (room < 0) if paying else (room >= size)
                takes &= (value[rows, change] > -np.inf)[:, None]
                takes &= self._sides == self._sides[change][:, None]
                takes &= (self._gene != gene[:, None]) & (taken[rows, :, gene] < 0)
                room -= takes * size
                hopes += np.where(takes, gains[rows, change][:, None], 0.0)
                taken[rows, :, gene] = np.where(takes, change[:, None], taken[rows, :, gene])
        # One that takes no other is a single change, judged already.
        hopes[(room < 0) | (taken < 0).all(axis=2)] = -np.inf
        chosen = _largest(hopes, min(EXCHANGES, hopes.shape[1]))
        changed = np.repeat(flat[:, None], chosen.shape[1], axis=1)
        np.put_along_axis(changed, self._genes[chosen][:, :, None], self._codes[chosen][:, :, None], axis=2)
        others = taken[rows[:, None], chosen]
        genes = self._genes[self._choices[:, 0]]
        changed[:, :, genes] = np.where(others < 0, changed[:, :, genes], self._codes[others])
        return changed, hopes[rows[:, None], chosen] > -np.inf


def _better(one: Subnets, other: Subnets) -> Subnets:
    """For each budget the one of higher fitness, the first where they are equal."""
    other_is = other[1] > one[1]
    return np.where(other_is[:, None, None], other[0], one[0]), np.where(other_is, other[1], one[1])


def _largest(values: Scores, count: int) -> NDArray[np.int64]:
    """Positions [A, count] of the largest of values [A, N] in ascending order; of equal ones the first.

    `argpartition` alone takes other ones of the equal on other processors (AVX-512, AVX2, neither).
    """
    least = np.partition(values, -count, axis=1)[:, -count, None]
    above, equal = values > least, values == least
    room = count - above.sum(axis=1, keepdims=True)
    taken = above | (equal & (equal.cumsum(axis=1) <= room))
    positions: NDArray[np.int64] = taken.nonzero()[1].reshape(len(values), count)
    return positions
