"""The front: the highest predicted accuracy along the budget, for one device, in one run.

Every budget is an island of one genetic search; islands with neighbouring budgets learn from each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from eqnet_core.cost import Cost, CostModel
from eqnet_core.errors import InvalidProfileError, Violation
from eqnet_core.evolution import evolve
from eqnet_core.genome import Codes, Genome, build_genome, limit_genome
from eqnet_core.profile import Budget, DeviceProfile, LayerPin
from eqnet_core.repair import Limits
from eqnet_core.search import AccuracyPredicting
from eqnet_core.space import SearchSpace, SubnetConfiguration

MAX_POINTS = 100
POPULATION = 20
GENERATIONS = 220
"""Of 25 points; fewer have more each, for the same number of predictions."""

POLISHING = 4 / 5
"""Share of the predictions for the local search: so few individuals end further from an optimum."""


class FrontAxis(StrEnum):
    """Which averages the budget bounds along the front."""

    WEIGHTS = "weights"
    ACTIVATIONS = "activations"
    BOTH = "both"


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """One budget of the front and the best subnet that was found for it."""

    budget: Budget
    configuration: SubnetConfiguration
    predicted_accuracy: float
    prediction_interval: tuple[float, float]
    cost: Cost


def front(
    *,
    space: SearchSpace,
    predictor: AccuracyPredicting,
    costs: CostModel,
    profile: DeviceProfile,
    axis: FrontAxis = FrontAxis.BOTH,
    points: int = 25,
    seed: int = 0,
    budget: Budget | None = None,
    pins: Mapping[str, LayerPin] | None = None,
    population: int = POPULATION,
    generations: int | None = None,
) -> tuple[FrontPoint, ...]:
    """Subnets for `points` budgets, tightest first: from the fewest bits that device and network allow to the
    most.

    The averages of `axis` are spaced evenly; `budget` adds bounds that hold at every point. Predicted
    accuracy never falls along the front. Deterministic in `seed`; makes at most `points` x `population` x
    `generations` predictions (by default 110,000, more for more than 25 points). Where the device leaves a
    single average, the front is one point; where the averages of weights and of activations lie apart, it has
    fewer points than asked for.

    Raises:
        InvalidProfileError: points outside 2..100, or pins as in `search`.
        InfeasibleBudgetError: no subnet meets `budget`.
    """
    if not 2 <= points <= MAX_POINTS:
        raise InvalidProfileError(
            f"a front of {points} points cannot be made: ask for 2..{MAX_POINTS}",
            violations=[Violation("/points", f"must be in 2..{MAX_POINTS}")],
        )
    if costs.space != space:
        raise ValueError("the cost model belongs to another search space: build it with CostModel(space)")
    base = budget or Budget()
    pins = pins or {}
    budgets = _budgets(costs, profile, axis, points, base, pins)
    # The tightest budget bounds every side that the front is about, so that none of them is fixed.
    genome = build_genome(costs=costs, profile=profile, budget=budgets[0], pins=pins)

    def fitness(codes: Codes) -> NDArray[np.float64]:
        return np.asarray(predictor.predict(genome.features(codes)), dtype=np.float64)

    found = evolve(
        genome,
        _limits(genome, costs, budgets),
        fitness,
        population=population,
        generations=generations or max(GENERATIONS, 25 * GENERATIONS // points),
        generator=np.random.default_rng(seed),
        polishing=POLISHING,
    )
    # A subnet within a tighter budget is within every looser one.
    best = np.zeros(len(budgets), dtype=np.int64)
    for point in range(1, len(budgets)):
        better = found.fitness[point] >= found.fitness[best[point - 1]]
        best[point] = point if better else best[point - 1]
    low, high = predictor.interval(found.fitness[best])
    configurations = [genome.configuration(found.codes[island]) for island in best]
    return tuple(
        FrontPoint(
            budget=budgets[point],
            configuration=configuration,
            predicted_accuracy=float(found.fitness[best[point]]),
            prediction_interval=(float(low[point]), float(high[point])),
            cost=costs.of(configuration),
        )
        for point, configuration in enumerate(configurations)
    )


def _budgets(
    costs: CostModel,
    profile: DeviceProfile,
    axis: FrontAxis,
    points: int,
    base: Budget,
    pins: Mapping[str, LayerPin],
) -> list[Budget]:
    tightest = build_genome(costs=costs, profile=profile, budget=base, pins=pins, fix_unbounded=False)
    least = costs.of(tightest.configuration(tightest.lowest))
    most = costs.of(tightest.configuration(tightest.highest))
    weights, activations = axis is not FrontAxis.ACTIVATIONS, axis is not FrontAxis.WEIGHTS
    reached = [(least.weight_bits, most.weight_bits)] if weights else []
    reached += [(least.activation_bits, most.activation_bits)] if activations else []
    averages = np.linspace(min(low for low, _ in reached), max(high for _, high in reached), points)

    def bounds(average: float) -> tuple[float | None, float | None]:
        return (
            _bound(base.weight_bits, average, *reached[0]) if weights else base.weight_bits,
            _bound(base.activation_bits, average, *reached[-1]) if activations else base.activation_bits,
        )

    # Each once: an average that only one side reaches leaves the other where it is, one between them both.
    pairs = dict.fromkeys(bounds(average) for average in averages.tolist())
    return [replace(base, weight_bits=weight, activation_bits=activation) for weight, activation in pairs]


def _bound(base: float | None, average: float, least: float, most: float) -> float:
    """The tighter of the two bounds, within the `least` and the `most` that is feasible."""
    bound = min(max(average, least), most)
    return bound if base is None else min(base, bound)


def _limits(genome: Genome, costs: CostModel, budgets: list[Budget]) -> Limits:
    limited = [limit_genome(genome, costs, budget) for budget in budgets]
    # A bound on bit operations that a looser island cannot reach is still a bound for the others.
    reachable = [island.operations_limit for island in limited]
    most = int(genome.operations(genome.highest))
    operations = None
    if any(limit is not None for limit in reachable):
        operations = np.array([most if limit is None else limit for limit in reachable], dtype=np.int64)
    return Limits(sizes=np.stack([island.limits for island in limited]), operations=operations)
