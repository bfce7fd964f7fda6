"""From a device, a budget and pinned layers to the subnet with the highest predicted accuracy.

Genetic search (docs/method.md section 4) in `evolution.py`; where the request leaves no more subnets than the
search may look at, it looks at every one of them instead and the answer is the optimum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eqnet_core.cost import Cost, CostModel
from eqnet_core.evolution import Evolved, evolve
from eqnet_core.genome import Codes, Genome, build_genome
from eqnet_core.profile import Budget, DeviceProfile, LayerPin, SearchSettings
from eqnet_core.repair import Limits
from eqnet_core.space import SearchSpace, SubnetConfiguration

SEARCH_VERSION = 6
"""Raise this when the same request comes to find another subnet: it is part of what identifies the answer."""

BATCH = 8192
"""Subnets per prediction when all of them are looked at; bounds memory."""


class AccuracyPredicting(Protocol):
    """What the search needs of a predictor."""

    def predict(self, features: NDArray[np.float32], /) -> NDArray[np.float64]:
        """Accuracies [N] in [0, 1] of encoded subnets [N, encoding_size]."""

    def interval(self, accuracy: NDArray[np.float64], /) -> tuple[NDArray[Any], NDArray[Any]]:
        """Lower and upper ends [N] of the 90 % prediction intervals of predicted accuracies [N]."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The subnet that was found. `evaluations`: predictions made; `seconds`: wall time of the search."""

    configuration: SubnetConfiguration
    predicted_accuracy: float
    prediction_interval: tuple[float, float]
    cost: Cost
    evaluations: int
    seconds: float


def check_feasible(
    *,
    space: SearchSpace,
    costs: CostModel,
    profile: DeviceProfile,
    budget: Budget,
    pins: Mapping[str, LayerPin] | None = None,
) -> None:
    """Return if some subnet meets the request; takes no search. JSON pointers are those of `POST /subnets`.

    Raises:
        InvalidProfileError: a pinned layer that does not exist, or bits that the device does not accept
            or the network does not have.
        InfeasibleBudgetError: no subnet meets the budget; `nearest` has the same bounds, each raised only as
        far as needed, and the same request with it is feasible.
    """
    _check_space(space, costs)
    build_genome(costs=costs, profile=profile, budget=budget, pins=pins or {})


def search(
    *,
    space: SearchSpace,
    predictor: AccuracyPredicting,
    costs: CostModel,
    profile: DeviceProfile,
    budget: Budget,
    settings: SearchSettings,
    pins: Mapping[str, LayerPin] | None = None,
    progress: Callable[[float], None] | None = None,
) -> SearchResult:
    """The subnet of highest predicted accuracy that the device accepts, within the budget and with the pinned
    bits.

    Makes at most `settings.population` x `settings.generations` predictions and is deterministic in
    `settings.seed`. A side of the network (weights, activations) that no bound of the budget concerns has
    its highest bits, so an empty budget means 8/8 bits on a device that accepts them. `progress` is told the
    fraction that is done: of the generations, or of all subnets where those are fewer than the predictions.

    Raises:
        InvalidProfileError, InfeasibleBudgetError: as `check_feasible`, before anything is searched.
    """
    started = time.perf_counter()
    _check_space(space, costs)
    genome = build_genome(costs=costs, profile=profile, budget=budget, pins=pins or {})

    def fitness(codes: Codes) -> NDArray[np.float64]:
        return np.asarray(predictor.predict(genome.features(codes)), dtype=np.float64)

    if genome.choices <= settings.population * settings.generations:
        found = _best_of_all(genome, fitness, progress)
    else:
        found = evolve(
            genome,
            Limits.of(genome),
            fitness,
            population=settings.population,
            generations=settings.generations,
            generator=np.random.default_rng(settings.seed),
            progress=progress,
        )
    configuration = genome.configuration(found.codes[0])
    low, high = predictor.interval(found.fitness)
    return SearchResult(
        configuration=configuration,
        predicted_accuracy=float(found.fitness[0]),
        prediction_interval=(float(low[0]), float(high[0])),
        cost=costs.of(configuration),
        evaluations=found.evaluations,
        seconds=time.perf_counter() - started,
    )


def _check_space(space: SearchSpace, costs: CostModel) -> None:
    if costs.space != space:
        raise ValueError("the cost model belongs to another search space: build it with CostModel(space)")


def _best_of_all(genome: Genome, fitness: Any, progress: Callable[[float], None] | None) -> Evolved:
    best, best_fitness, evaluations = genome.lowest, -np.inf, 0
    for looked_at, codes in _all_feasible(genome):
        if progress is not None:
            progress(looked_at / genome.choices)
        if not len(codes):
            continue
        scores = fitness(codes)
        evaluations += len(codes)
        position = int(scores.argmax())
        if scores[position] > best_fitness:
            best, best_fitness = codes[position], float(scores[position])
    return Evolved(codes=best[None], fitness=np.array([best_fitness]), evaluations=evaluations)


def _all_feasible(genome: Genome) -> Iterator[tuple[int, Codes]]:
    """Every combination of codes within the budget, the highest bits first, in batches [N, 2, L], N from 0;
    beside each how many combinations have been looked at."""
    counts = (genome.highest - genome.lowest + 1).ravel()
    strides = np.concatenate([np.cumprod(counts[:0:-1])[::-1], [1]]) if len(counts) else counts
    for start in range(0, genome.choices, BATCH):
        number = np.arange(start, min(start + BATCH, genome.choices))
        digits = number[:, None] // strides % counts
        codes = (genome.highest.ravel() - digits).reshape(len(number), *genome.lowest.shape)
        yield start + len(number), codes[genome.feasible(codes)]
