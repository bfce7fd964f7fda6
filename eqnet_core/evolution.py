"""The genetic algorithm: a population of codes for one budget, or for several budgets side by side.

Each generation makes as many children as there are individuals, repairs them into the budget, and keeps the
best of both. Since only the best ever seen survive, a child that was seen before cannot enter the population
again: it is dropped without a prediction. Budgets that are searched side by side (`limits` [I, 2]) are
islands that learn from their neighbours, which have a little more or a little less to spend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqnet_core.genome import Codes, Genome
from eqnet_core.repair import grow, shrink

Fitness = Callable[[Codes], NDArray[np.float64]]
"""Fitness [N], higher is better, of codes [N, 2, L]."""

MUTATION_RATES = (0.5, 1.5, 4.0)
"""Genes that step up or down by themselves, on average; each child gets one of these."""

FATHER_SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""Share of the genes that come from the father; each child gets one of these."""

GROWN = 7 / 8
"""Share of children that spend what is left of the budget; the others are judged as they are."""

LEAST_GROWN = GROWN / 128
GROWTH_ROUNDS = 2
NEIGHBOUR = 1 / 4
"""Share of fathers that come from the next island."""


@dataclass(frozen=True, kw_only=True)
class Evolved:
    """The best codes [I, 2, L] and their fitness [I] per island, and how many predictions that took."""

    codes: Codes
    fitness: NDArray[np.float64]
    evaluations: int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The budgets of I islands: upper bounds on the sums of `Genome.size` [I, 2], and on bit operations [I]
    or None."""

    sizes: NDArray[np.int64]
    operations: NDArray[np.int64] | None

    @classmethod
    def of(cls, genome: Genome) -> Limits:
        """One island with the genome's own budget."""
        operations = genome.operations_limit
        return cls(
            sizes=genome.limits[None, :],
            operations=None if operations is None else np.array([operations], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.sizes)


def evolve(
    genome: Genome,
    limits: Limits,
    fitness: Fitness,
    *,
    population: int,
    generations: int,
    generator: np.random.Generator,
    progress: Callable[[float], None] | None = None,
) -> Evolved:
    """Search `generations` x `population` subnets per island; deterministic in `generator`. Budgets must be
    feasible.

    The first generation is uniform subnets and Monte-Carlo samples, inside the budget and at its boundary.
    `progress` is told the fraction done after every generation.
    """
    islands = len(limits)
    nursery = _Nursery(genome, limits, population, generator)
    census = _Census(genome, islands, population, fitness)
    codes = nursery.first()  # [P * I, 2, L], individual-major: row p * I + i
    scores = census.judge(codes).reshape(population, islands)
    rows = np.arange(islands)
    for generation in range(generations):
        if generation > 0:
            children = nursery.children(codes, news=census.news)
            codes = np.concatenate([codes, children])
            scores = np.concatenate([scores, census.judge(children).reshape(population, islands)])
        order = np.argsort(-scores, axis=0, kind="stable")[:population]
        codes = codes[(order * islands + rows).ravel()]
        scores = np.take_along_axis(scores, order, axis=0)
        if progress is not None:
            progress((generation + 1) / generations)
    return Evolved(codes=codes[:islands], fitness=scores[0], evaluations=census.evaluations)


class _Census:
    """Judges codes that were never seen before; the others get -inf, since they are no news."""

    def __init__(self, genome: Genome, islands: int, population: int, fitness: Fitness) -> None:
        # Fixed multipliers: an individual's key is the same in every search. Among 50,000 individuals two
        # share a 64-bit key with probability 1e-10, and all that happens then is that one of them is not
        # looked at.
        multipliers = np.random.default_rng(2023).integers(2**64, size=genome.lowest.size, dtype=np.uint64)
        self._multipliers = multipliers.view(np.int64)
        self._offsets = np.tile(np.arange(islands) * np.int64(0x9E3779B97F4A7C1), population)
        self._fitness = fitness
        self._seen: set[int] = set()
        self.evaluations = 0
        self.news = 1.0  # share of the codes judged last that had never been seen before

    def judge(self, codes: Codes) -> NDArray[np.float64]:
        """Fitness [N] of codes [N, 2, L]."""
        keys = codes.reshape(len(codes), -1) @ self._multipliers + self._offsets
        listed = keys.tolist()
        fresh = ~np.fromiter(map(self._seen.__contains__, listed), dtype=bool, count=len(listed))
        self._seen.update(listed)
        order = keys.argsort(kind="stable")
        ordered = keys[order]
        fresh[order[1:][ordered[1:] == ordered[:-1]]] = False  # repeated among these codes themselves
        scores = np.full(len(codes), -np.inf)
        positions = fresh.nonzero()[0]
        if len(positions):
            scores[positions] = self._fitness(codes[positions])
        self.evaluations += len(positions)
        self.news = len(positions) / len(codes)
        return scores


class _Nursery:
    """Makes individuals, all of them within their island's budget."""

    def __init__(
        self, genome: Genome, limits: Limits, population: int, generator: np.random.Generator
    ) -> None:
        self._genome = genome
        self._generator = generator
        self._population = population
        self._islands = len(limits)
        self._count = population * self._islands
        self._layers = genome.lowest.shape[1]
        self._limits = np.tile(limits.sizes, (population, 1))
        self._operations = None if limits.operations is None else np.tile(limits.operations, population)
        self._own = np.tile(np.arange(self._islands), population)
        # Chances in 1/256: a random byte below `down` steps down, one from `up` on steps up.
        chances = np.clip(256 * np.array(MUTATION_RATES) / (2 * genome.lowest.size), 1, 127).round()
        self._down = np.resize(chances, self._count).astype(np.uint8)[:, None]
        self._up = (256 - self._down.astype(np.int64)).astype(np.uint8)
        self._share = np.resize(256 * np.array(FATHER_SHARES), self._count).astype(np.uint8)[:, None]
        self._grown = GROWN

    def first(self) -> Codes:
        """Uniform subnets, then Monte-Carlo samples; every second one is grown to the budget's boundary."""
        genome, generator = self._genome, self._generator
        levels = np.unique(genome.effective)
        pairs = np.stack(np.meshgrid(levels, levels, indexing="ij"), axis=-1).reshape(-1, 2)
        # Balanced pairs first, so that a small population gets the most telling ones.
        pairs = pairs[np.argsort(np.abs(pairs[:, 0] - pairs[:, 1]), kind="stable")]
        uniform = min(len(pairs), max(1, self._population // 2))
        shape = (self._population, 2, self._layers)
        bits = np.empty(shape, dtype=np.int64)
        bits[:uniform] = pairs[:uniform, :, None]
        samples = self._population - uniform
        average = generator.integers(levels[0], levels[-1], size=(samples, 2, 1), endpoint=True)
        spread = generator.integers(-2, 2, size=(samples, 2, self._layers), endpoint=True)
        bits[uniform:] = average + spread
        codes = np.repeat(genome.at_most(bits), self._islands, axis=0)
        every_second = (np.arange(self._count) // self._islands) % 2 == 0
        return self._repaired(codes, every_second, rounds=self._genome.most_steps)

    def children(self, parents: Codes, *, news: float) -> Codes:
        """As many children as parents [P * I, 2, L], which are ordered best first.

        `news`: share of the last generation that had never been seen. Subnets at the budget's boundary run
        out first: while most children are known already, fewer and fewer of them are grown.
        """
        if news < 1 / 2:
            self._grown = max(self._grown / 2, LEAST_GROWN)
        elif news > 3 / 4:
            self._grown = min(self._grown * 2, GROWN)
        generator, count, islands = self._generator, self._count, self._islands
        # The rank of the better of two individuals drawn at random.
        ranks = (self._population * (1 - np.sqrt(1 - generator.random((2, count))))).astype(np.int64)
        mothers = parents[ranks[0] * islands + self._own]
        father_islands = self._own
        if islands > 1:
            draw = generator.random(count)
            step = (draw < NEIGHBOUR / 2).astype(np.int64) - (draw > 1 - NEIGHBOUR / 2)
            father_islands = np.clip(father_islands + step, 0, islands - 1)
        fathers = parents[ranks[1] * islands + father_islands]

        genes = self._genome.lowest.size
        noise = np.frombuffer(generator.bytes(2 * count * genes), dtype=np.uint8).reshape(2, count, genes)
        codes = np.where((noise[0] < self._share).reshape(mothers.shape), fathers, mothers)
        codes += (noise[1] >= self._up).reshape(codes.shape)
        codes -= (noise[1] < self._down).reshape(codes.shape)
        np.maximum(codes, self._genome.lowest, out=codes)
        np.minimum(codes, self._genome.highest, out=codes)
        grown = round(self._grown * self._population) * islands
        return self._repaired(codes, slice(0, grown), rounds=GROWTH_ROUNDS)

    def _repaired(self, codes: Codes, grown: slice | NDArray[np.bool_], *, rounds: int) -> Codes:
        order = np.argsort(self._generator.random(self._layers))
        arranged = codes[:, :, order]
        macs = self._genome.macs[order]
        weights_first = np.zeros((self._count, self._layers), dtype=bool)
        if self._operations is not None:
            weights_first = self._generator.random((self._count, self._layers)) < 0.5
        shrink(
            arranged,
            self._genome,
            limits=self._limits,
            operations_limits=self._operations,
            macs=macs,
            weights_first=weights_first,
        )
        growing = arranged[grown]
        grow(
            growing,
            self._genome,
            limits=self._limits[grown],
            operations_limits=None if self._operations is None else self._operations[grown],
            macs=macs,
            weights_first=weights_first[grown],
            rounds=rounds,
        )
        arranged[grown] = growing
        repaired = np.empty_like(codes)
        repaired[:, :, order] = arranged
        return repaired
