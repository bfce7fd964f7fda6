"""The genetic algorithm: a population of codes for one budget, or for several budgets side by side.

Each generation makes as many children as there are individuals, repairs them into the budget, and keeps the
best of both. Since only the best ever seen survive, a child that was seen before cannot enter the population
again: it is dropped without a prediction. A population that stops improving is put aside for a new one, which
thus has to settle elsewhere; the last generations breed the best of all of them, and a local search
(`polish.py`) ends on an optimum. Budgets that are searched side by side (`limits` [I, 2]) are islands that
learn from their neighbours, which have a little more or a little less to spend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqnet_core.genome import Codes, Genome
from eqnet_core.polish import Polish
from eqnet_core.repair import Limits, Precedence, Repair, random_bytes

Fitness = Callable[[Codes], NDArray[np.float64]]
"""Fitness [N], higher is better, of codes [N, 2, L]."""

MUTATIONS = (0, 1, 1, 2, 4)
"""Genes that change by themselves; each child gets one of these."""

JUMPS = 4
"""One mutation in so many lands on any code of its gene; the others step down or up. Steps alone do not get
across a bit-width that is bad in one layer."""

FATHER_SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""Share of the genes that come from the father; each child gets one of these."""

GROWN = 7 / 8
"""Share of children that spend what is left of the budget; the others are judged as they are."""

LEAST_GROWN = GROWN / 128
NEIGHBOUR = 1 / 4
"""Share of parents that come from the next island."""

PATIENCE = 30
"""Generations without improvement after which a population is put aside."""

FINAL_SHARE = 1 / 5
"""Share of the generations, `PATIENCE` at least, in which the populations that were put aside meet."""

POLISHING = 1 / 10
"""Share of the predictions that is kept for the local search at the end."""


@dataclass(frozen=True, kw_only=True)
class Evolved:
    """The best codes [I, 2, L] and their fitness [I] per island, and how many predictions that took."""

    codes: Codes
    fitness: NDArray[np.float64]
    evaluations: int


@dataclass(frozen=True, kw_only=True)
class Population:
    """Codes [P * I, 2, L], individual-major (row p * I + i), and scores [P, I]."""

    codes: Codes
    scores: NDArray[np.float64]

    @classmethod
    def best(cls, populations: list[Population], count: int) -> Population:
        """The `count` best of each island, best first."""
        codes = np.concatenate([population.codes for population in populations])
        scores = np.concatenate([population.scores for population in populations])
        islands = np.arange(scores.shape[1])
        order = (-scores).argsort(axis=0, kind="stable")[:count]
        return cls(codes=codes[(order * len(islands) + islands).ravel()], scores=scores[order, islands])

    def first(self, count: int) -> Population:
        """The first `count` of each island."""
        return Population(codes=self.codes[: count * self.scores.shape[1]], scores=self.scores[:count])


def evolve(
    genome: Genome,
    limits: Limits,
    fitness: Fitness,
    *,
    population: int,
    generations: int,
    generator: np.random.Generator,
    polishing: float = POLISHING,
    progress: Callable[[float], None] | None = None,
) -> Evolved:
    """Search `generations` x `population` subnets per island; deterministic in `generator`. Budgets must be
    feasible.

    The first generation is uniform subnets, and Monte-Carlo samples inside the budget and at its boundary.
    A share of the predictions, `polishing`, is kept for the local search that follows. `progress` is told the
    fraction done after every generation.
    """
    nursery = _Nursery(genome, limits, population, generator)
    census = _Census(genome, len(limits), population, fitness)
    polish = Polish(genome, limits, census.fitness)
    reserved = int(polishing * generations)
    if reserved * population < polish.evaluations:
        reserved = 0
    bred = generations - reserved
    final = bred - max(PATIENCE, round(FINAL_SHARE * bred))
    settled: list[Population] = []
    current, stale = Population.best([census.judge(nursery.first())], population), 0
    for generation in range(1, bred):
        if progress is not None:
            progress(generation / generations)
        if generation == final and settled:
            settled.append(current)
            quota = -(-population // len(settled))
            current = Population.best([each.first(quota) for each in settled], population)
        elif stale >= PATIENCE and generation < final - PATIENCE:
            settled.append(current)
            current, stale = Population.best([census.judge(nursery.first())], population), 0
            continue
        children = census.judge(nursery.children(current.codes, news=census.news))
        improved = (children.scores.max(axis=0) > current.scores[0]).any()
        stale = 0 if improved else stale + 1
        current = Population.best([current, children], population)
    starts = [Population.best([*settled, current], 1), *(each.first(1) for each in settled)]
    codes, scores = polish.improve(
        [(start.codes, start.scores[0]) for start in starts],
        predictions=reserved * population * len(limits),
    )
    if progress is not None:
        progress(1.0)
    return Evolved(codes=codes, fitness=scores, evaluations=census.evaluations)


class _Census:
    """Judges codes that were never seen before; the others get -inf, since they are no news."""

    def __init__(self, genome: Genome, islands: int, population: int, fitness: Fitness) -> None:
        # Fixed multipliers: an individual's key is the same in every search. Among 50,000 individuals two
        # share a 64-bit key with probability 1e-10, and all that happens then is that one of them is not
        # looked at.
        multipliers = np.random.default_rng(2023).integers(2**64, size=genome.lowest.size, dtype=np.uint64)
        self._multipliers = multipliers.view(np.int64)
        self._islands = islands
        self._offsets = np.tile(np.arange(islands) * np.int64(0x9E3779B97F4A7C1), population)
        self._fitness = fitness
        self._known: dict[int, float] = {}
        self._seen: set[int] = set()
        self.evaluations = 0
        self.news = 1.0  # share of the codes judged last that had never been seen before

    def judge(self, codes: Codes) -> Population:
        """Codes [P * I, 2, L] with their fitness."""
        # An individual that another island has seen is new to this one.
        keys = self._keys(codes) + self._offsets
        listed = keys.tolist()
        fresh = ~np.fromiter(map(self._seen.__contains__, listed), dtype=bool, count=len(listed))
        self._seen.update(listed)
        order = keys.argsort(kind="stable")
        ordered = keys[order]
        fresh[order[1:][ordered[1:] == ordered[:-1]]] = False  # repeated among these codes themselves
        scores = np.full(len(codes), -np.inf)
        positions = fresh.nonzero()[0]
        if len(positions):
            scores[positions] = self.fitness(codes[positions])
        self.news = len(positions) / len(codes)
        return Population(codes=codes, scores=scores.reshape(-1, self._islands))

    def fitness(self, codes: Codes) -> NDArray[np.float64]:
        """Fitness [N] of codes [N, 2, L], predicted where it is not known yet."""
        keys = self._keys(codes).tolist()
        scores = np.array(list(map(self._known.get, keys)), dtype=np.float64)  # unknown: NaN
        unknown = np.isnan(scores).nonzero()[0]
        if len(unknown):
            scores[unknown] = self._fitness(codes[unknown])
            self._known.update(
                zip(map(keys.__getitem__, unknown.tolist()), scores[unknown].tolist(), strict=True)
            )
        self.evaluations += len(unknown)
        return scores

    def _keys(self, codes: Codes) -> NDArray[np.int64]:
        keys: NDArray[np.int64] = codes.reshape(len(codes), -1) @ self._multipliers
        return keys


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
        self._limits = limits.repeated(population)
        self._repair = Repair(genome, self._limits)
        self._own = np.tile(np.arange(self._islands), population)
        self._share = np.resize(256 * np.array(FATHER_SHARES), self._count).astype(np.uint8)[:, None]
        self._mutants = np.repeat(np.arange(self._count), np.resize(MUTATIONS, self._count))
        # Where there is a choice: genes, their lowest codes and how many they have.
        self._genes = (genome.highest > genome.lowest).ravel().nonzero()[0]
        self._lowest = genome.lowest.ravel()[self._genes]
        self._highest = genome.highest.ravel()[self._genes]
        self._grown = GROWN

    def first(self) -> Codes:
        """Uniform subnets, then Monte-Carlo samples; half of those are grown to the budget's boundary.

        Uniform subnets within the budget stay as they are: no answer is predicted to be worse than they.
        """
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
        grown = slice((uniform + samples // 2) * self._islands, None)
        return self._repaired(codes, grown, rounds=genome.most_steps)

    def children(self, parents: Codes, *, news: float) -> Codes:
        """As many children as parents [P * I, 2, L], which are ordered best first.

        `news`: share of the last generation that had never been seen. Subnets at the budget's boundary run
        out first: while most children are known already, fewer and fewer of them are grown.
        """
        if news < 1 / 2:
            self._grown = max(self._grown / 2, LEAST_GROWN)
        elif news > 3 / 4:
            self._grown = min(self._grown * 2, GROWN)
        generator, count = self._generator, self._count
        draws = generator.random((2, count))
        # The rank of the better of two individuals drawn at random.
        rows = (self._population * (1 - np.sqrt(1 - draws))).astype(np.int64) * self._islands
        rows += self._parent_islands()
        genes = self._genome.lowest.size
        flat = parents.reshape(-1, genes)
        fathers = random_bytes(generator, (count, genes)) < self._share
        codes = np.where(fathers, flat[rows[1]], flat[rows[0]])
        self._mutate(codes)
        grown = round(self._grown * self._population) * self._islands
        return self._repaired(codes.reshape(parents.shape), slice(0, grown), rounds=1)

    def _parent_islands(self) -> NDArray[np.int64]:
        """Where mothers and fathers come from, broadcastable to [2, P * I]."""
        if self._islands == 1:
            return self._own
        draw = self._generator.random((2, self._count))
        step = (draw < NEIGHBOUR / 2).astype(np.int64) - (draw > 1 - NEIGHBOUR / 2)
        islands: NDArray[np.int64] = np.clip(self._own + step, 0, self._islands - 1)
        return islands

    def _mutate(self, codes: Codes) -> None:
        """Change codes [N, genes] in place. A gene that is drawn twice changes once."""
        if not len(self._genes):
            return
        mutants = self._mutants
        draws = self._generator.random((2, len(mutants)))
        drawn = (draws[0] * len(self._genes)).astype(np.int64)
        genes, lowest, highest = self._genes[drawn], self._lowest[drawn], self._highest[drawn]
        mutated = codes[mutants, genes]
        mutated += np.where(draws[1] < 1 / 2, -1, 1)
        jumps = slice(0, None, JUMPS)
        spans = highest[jumps] - lowest[jumps] + 1
        mutated[jumps] = lowest[jumps] + (draws[1, jumps] * spans).astype(np.int64)
        np.maximum(mutated, lowest, out=mutated)
        np.minimum(mutated, highest, out=mutated)
        codes[mutants, genes] = mutated

    def _repaired(self, codes: Codes, grown: slice, *, rounds: int) -> Codes:
        precedence = Precedence(self._generator, self._limits, self._layers)
        self._repair.shrink(codes, precedence)
        self._repair.grow(codes, precedence, rows=grown, rounds=rounds)
        return codes
