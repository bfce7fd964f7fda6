from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from eqnet_core.cost import CostModel
from eqnet_core.genome import Genome, build_genome
from eqnet_core.profile import Budget, DeviceProfile
from eqnet_core.repair import grow, shrink
from eqnet_core.space import Granularity, LayerSpec, SearchSpace, Symmetry


def random_request(seed: int, *, operations: bool) -> Genome:
    """A random network, device and budget; the budget is that of a random subnet, hence feasible."""
    generator = np.random.default_rng(seed)
    layers = tuple(
        LayerSpec(
            name=f"layer{index}",
            kind="conv",
            searchable=True,
            output_channels=4,
            weights=int(generator.integers(1, 5000)),
            inputs=int(generator.integers(1, 5000)),
            macs=int(generator.integers(0, 100_000)),
            nonnegative=bool(generator.integers(2)),
            float_parameters=0,
        )
        for index in range(int(generator.integers(1, 30)))
    )
    device = DeviceProfile(
        weight_bits=tuple(generator.choice(np.arange(2, 9), size=3).tolist()),
        weight_granularity=Granularity.PER_TENSOR,
        weight_symmetry=Symmetry.SYMMETRIC,
        activation_bits=tuple(generator.choice(np.arange(2, 9), size=5).tolist()),
        activation_symmetry=Symmetry.SYMMETRIC,
        signed=bool(generator.integers(2)),
    )
    costs = CostModel(SearchSpace(layers))
    free = build_genome(costs=costs, profile=device, budget=Budget(), pins={}, fix_unreachable=False)
    cost = costs.of(free.configuration(generator.integers(free.lowest, free.highest + 1)))
    budget = Budget(
        weight_bits=cost.weight_bits,
        activation_bits=cost.activation_bits,
        bit_operations=max(1.0, cost.bit_operations) if operations else None,
    )
    return build_genome(costs=costs, profile=device, budget=budget, pins={}, fix_unreachable=False)


def arranged(
    genome: Genome, generator: np.random.Generator, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    codes = generator.integers(genome.lowest, genome.highest + 1, size=(count, *genome.lowest.shape))
    order = generator.permutation(genome.lowest.shape[1])
    return codes[:, :, order], order


@pytest.mark.parametrize("operations", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_repaired_codes_meet_the_budget_and_use_it(seed: int, operations: bool) -> None:
    genome = random_request(seed, operations=operations)
    generator = np.random.default_rng(seed + 1000)
    codes, order = arranged(genome, generator, 64)
    limits = np.tile(genome.limits, (64, 1))
    bound = None if genome.operations_limit is None else np.full(64, genome.operations_limit)
    macs, first = genome.macs[order], generator.random((64, len(order))) < 0.5
    before = codes.copy()
    back = np.argsort(order)

    shrink(codes, genome, limits=limits, operations_limits=bound, macs=macs, weights_first=first)
    shrunk = codes.copy()
    assert genome.feasible(codes[:, :, back]).all()
    assert (codes <= before).all()
    met = genome.feasible(before[:, :, back])
    assert np.array_equal(codes[met], before[met])

    grow(codes, genome, limits=limits, operations_limits=bound, macs=macs, weights_first=first, rounds=200)
    assert genome.feasible(codes[:, :, back]).all()
    assert (codes >= shrunk).all()
    assert (codes[:, :, back] <= genome.highest).all()
    # Nothing is left that a single step could still buy.
    for side in range(2):
        for layer in range(len(order)):
            stepped = codes[:, :, back].copy()
            stepped[:, side, layer] += 1
            possible = stepped[:, side, layer] <= genome.highest[side, layer]
            assert not genome.feasible(stepped[possible]).any()
