from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from eqnet_core.cost import CostModel
from eqnet_core.genome import Codes, Genome, build_genome
from eqnet_core.polish import PAIRS, Polish, Scores, _largest
from eqnet_core.profile import Budget, DeviceProfile, LayerPin
from eqnet_core.repair import Limits
from eqnet_core.space import Granularity, SearchSpace, Symmetry

DEVICE = DeviceProfile(
    weight_bits=(2, 3, 4, 6, 8),
    weight_granularity=Granularity.PER_CHANNEL,
    weight_symmetry=Symmetry.SYMMETRIC,
    activation_bits=(2, 4, 5, 8),
    activation_symmetry=Symmetry.ASYMMETRIC,
)
PINS = {"layer2.0.conv1": LayerPin(weight_bits=4)}


def genome_of(space: SearchSpace, budget: Budget) -> Genome:
    return build_genome(costs=CostModel(space), profile=DEVICE, budget=budget, pins=PINS, fix_unbounded=False)


class Additive:
    """Every code of every gene has a worth of its own, so that what pairs gain is no estimate."""

    def __init__(self, genome: Genome) -> None:
        self.worth = np.random.default_rng(5).normal(size=len(genome.emitted))
        self.judged = 0

    def __call__(self, codes: Codes) -> NDArray[np.float64]:
        self.judged += len(codes)
        total: NDArray[np.float64] = self.worth.take(codes).sum(axis=(1, 2))
        return total


@pytest.mark.parametrize(
    "budget",
    [Budget(weight_bits=4.0, activation_bits=5.0), Budget(weight_bits=5.0, bit_operations=5e8)],
    ids=["averages", "operations"],
)
def test_no_one_or_two_changes_are_better(resnet20_space: SearchSpace, budget: Budget) -> None:
    genome = genome_of(resnet20_space, budget)
    fitness, limits = Additive(genome), Limits.of(genome)
    start = genome.lowest[None]
    polish = Polish(genome, limits, fitness)
    codes, scores = polish.improve([(start, fitness(start))], predictions=200 * polish.evaluations)
    assert genome.feasible(codes).all()
    assert scores[0] == pytest.approx(float(fitness(codes)[0]))
    assert fitness.judged <= 2 + 200 * polish.evaluations
    flat = codes.reshape(-1)
    changes = [
        (gene, code)
        for gene, (low, high) in enumerate(zip(genome.lowest.ravel(), genome.highest.ravel(), strict=True))
        for code in range(low, high + 1)
    ]
    for gene, code in changes:
        changed = np.repeat(flat[None], len(changes), axis=0)
        changed[:, gene] = code
        for row, (other, value) in enumerate(changes):
            if other != gene:
                changed[row, other] = value
        neighbours = changed.reshape(-1, *genome.lowest.shape)
        if budget.bit_operations is not None:
            # Which pairs keep to bit operations is known only of those that are judged.
            neighbours = neighbours[(neighbours != codes).sum(axis=(1, 2)) <= 1]
        within = neighbours[genome.feasible(neighbours)]
        assert (fitness(within) <= scores[0] + 1e-9).all()


def test_each_subnet_keeps_its_own_budget(resnet20_space: SearchSpace) -> None:
    budgets = [Budget(weight_bits=bits, activation_bits=bits) for bits in (2.5, 4.0, 7.0)]
    genomes = [genome_of(resnet20_space, budget) for budget in budgets]
    limits = Limits(sizes=np.stack([genome.limits for genome in genomes]), operations=None)
    fitness = Additive(genomes[0])
    start = np.repeat(genomes[0].lowest[None], 3, axis=0)
    polish = Polish(genomes[0], limits, fitness)
    predictions = 300 * polish.evaluations
    codes, scores = polish.improve([(start, fitness(start))], predictions=predictions)
    assert fitness.judged <= predictions + 3
    assert all(genome.feasible(one) for genome, one in zip(genomes, codes, strict=True))
    assert (np.diff(scores) > 0).all()
    assert (codes[:, 0, 6] == genomes[0].lowest[0, 6]).all()  # the pin


def test_what_is_best_stays_as_it_is(resnet20_space: SearchSpace) -> None:
    genome = genome_of(resnet20_space, Budget(weight_bits=4.0, activation_bits=4.0))
    polish = Polish(genome, Limits.of(genome), lambda codes: np.zeros(len(codes)))
    start = genome.lowest[None]
    codes, scores = polish.improve([(start, np.zeros(1))], predictions=10 * polish.evaluations)
    assert np.array_equal(codes, start)
    assert scores.tolist() == [0.0]


def test_of_equal_hopes_the_first_are_taken_on_every_processor() -> None:
    values = np.round(np.random.default_rng(0).normal(size=(3, 18_336)) * 2)
    values[2, 5:] = -np.inf
    taken = _largest(values, 64)
    assert np.array_equal(taken, np.sort(np.argsort(-values, axis=1, kind="stable")[:, :64], axis=1))


def test_pairs_are_of_changes_that_change_something(resnet20_space: SearchSpace) -> None:
    genome = genome_of(resnet20_space, Budget(weight_bits=4.0, activation_bits=4.0))
    judged: list[Codes] = []

    def judge(codes: Codes) -> NDArray[np.float64]:
        judged.append(codes)
        return -np.ones(len(codes))

    polish = Polish(genome, Limits.of(genome), judge)
    polish.improve([(genome.lowest[None], np.zeros(1))], predictions=polish.evaluations)
    singles, several = judged
    assert ((singles != genome.lowest).sum(axis=(1, 2)) <= 1).all()
    assert ((several[:PAIRS] != genome.lowest).sum(axis=(1, 2)) == 2).all()


@pytest.mark.parametrize("spent_on", ["the large layer", "the small layers"])
def test_a_bit_of_a_large_layer_is_exchanged_for_one_of_many_small_ones(
    resnet20_space: SearchSpace, spent_on: str
) -> None:
    """Four bits more for several small layers, or for one that is as large as 16 of them: no pair leads from
    one to the other."""
    device = replace(DEVICE, weight_bits=(4, 8), activation_bits=(8,))
    costs = CostModel(resnet20_space)
    large = int(costs.weights.argmax())
    small = np.flatnonzero(costs.weights * 16 == costs.weights[large])
    assert len(small) > 2
    assert costs.weights[small].sum() <= costs.weights[large]
    pins = {
        layer.name: LayerPin(weight_bits=4)
        for number, layer in enumerate(resnet20_space.searchable)
        if number != large and number not in small
    }
    bound = 4 + 4 * float(costs.weights[large] / costs.weights.sum())
    budget = Budget(weight_bits=bound, activation_bits=8)
    genome = build_genome(costs=costs, profile=device, budget=budget, pins=pins)
    worth = np.zeros(len(genome.emitted))
    wanted = {large} if spent_on == "the large layer" else set(small.tolist())
    worth[genome.highest[0, small]] = 1.0
    worth[genome.highest[0, large]] = len(small) * (2.0 if spent_on == "the large layer" else 0.5)

    def fitness(codes: Codes) -> Scores:
        total: Scores = worth.take(codes).sum(axis=(1, 2))
        return total

    start = genome.lowest.copy()
    unwanted = list(small) if spent_on == "the large layer" else [large]
    start[0, unwanted] = genome.highest[0, unwanted]
    polish = Polish(genome, Limits.of(genome), fitness)
    codes, _ = polish.improve([(start[None], fitness(start[None]))], predictions=3 * polish.evaluations)
    raised = set(np.flatnonzero(codes[0, 0] == genome.highest[0]).tolist()) & {large, *small.tolist()}
    assert raised == wanted
    assert genome.feasible(codes).all()


def test_what_a_tighter_budget_finds_is_where_the_next_one_starts(resnet20_space: SearchSpace) -> None:
    genomes = [genome_of(resnet20_space, Budget(weight_bits=4.0, activation_bits=bits)) for bits in (4.0, 5)]
    limits = Limits(sizes=np.stack([genome.limits for genome in genomes]), operations=None)
    good = genomes[0].lowest + (np.arange(genomes[0].lowest.size).reshape(2, -1) % 2) * (
        genomes[0].highest > genomes[0].lowest
    )
    assert genomes[0].feasible(good[None]).all()

    def fitness(codes: Codes) -> Scores:
        """Flat but for one subnet and those next to it."""
        distance = (codes != good).sum(axis=(1, 2))
        return np.maximum(0.0, 1.0 - distance / 4)

    start = np.stack([good, genomes[0].lowest])
    polish = Polish(genomes[0], limits, fitness)
    codes, scores = polish.improve([(start, fitness(start))], predictions=8 * polish.evaluations)
    assert np.array_equal(codes, np.stack([good, good]))
    assert scores.tolist() == [1.0, 1.0]


def test_every_start_is_climbed_from_and_the_best_is_kept(resnet20_space: SearchSpace) -> None:
    genome = genome_of(resnet20_space, Budget(weight_bits=4.0, activation_bits=4.0))
    fitness, limits = Additive(genome), Limits.of(genome)
    low = genome.lowest[None]
    polish = Polish(genome, limits, fitness)
    best = polish.improve([(low, fitness(low))], predictions=50 * polish.evaluations)
    for starts in ([(low, fitness(low)), best], [best, (low, fitness(low))]):
        codes, scores = polish.improve(starts, predictions=2 * polish.evaluations)
        assert np.array_equal(codes, best[0])
        assert scores == best[1]
    fitness.judged = 0
    codes, _ = polish.improve([(low, fitness(low)), best], predictions=polish.evaluations - 1)
    assert np.array_equal(codes, best[0])
    assert fitness.judged == 1
