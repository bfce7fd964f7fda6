from __future__ import annotations

import numpy as np
import pytest

from eqnet_core.cost import CostModel
from eqnet_core.genome import Genome, build_genome
from eqnet_core.profile import Budget, DeviceProfile
from eqnet_core.repair import Limits, Precedence, Repair
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
    free = build_genome(costs=costs, profile=device, budget=Budget(), pins={}, fix_unbounded=False)
    cost = costs.of(free.configuration(generator.integers(free.lowest, free.highest + 1)))
    budget = Budget(
        weight_bits=cost.weight_bits,
        activation_bits=cost.activation_bits,
        bit_operations=max(1.0, cost.bit_operations) if operations else None,
    )
    return build_genome(costs=costs, profile=device, budget=budget, pins={}, fix_unbounded=False)


@pytest.mark.parametrize("operations", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_repaired_codes_meet_the_budget_and_use_it(seed: int, operations: bool) -> None:
    genome = random_request(seed, operations=operations)
    generator = np.random.default_rng(seed + 1000)
    layers = genome.lowest.shape[1]
    codes = generator.integers(genome.lowest, genome.highest + 1, size=(64, 2, layers))
    limits = Limits.of(genome).repeated(64)
    repair, precedence = Repair(genome, limits), Precedence(generator, limits, layers)
    before = codes.copy()

    repair.shrink(codes, precedence)
    shrunk = codes.copy()
    assert genome.feasible(codes).all()
    assert (codes <= before).all()
    met = genome.feasible(before)
    assert np.array_equal(codes[met], before[met])

    repair.grow(codes, precedence, rows=slice(0, 40), rounds=200)
    assert np.array_equal(codes[40:], shrunk[40:])
    repair.grow(codes, precedence, rows=slice(40, None), rounds=200)
    assert genome.feasible(codes).all()
    assert (codes >= shrunk).all()
    assert (codes <= genome.highest).all()
    # Nothing is left that a single step could still buy.
    for side in range(2):
        for layer in range(layers):
            stepped = codes.copy()
            stepped[:, side, layer] += 1
            possible = stepped[:, side, layer] <= genome.highest[side, layer]
            assert not genome.feasible(stepped[possible]).any()


def test_a_row_is_repaired_into_its_own_budget(resnet20_space: SearchSpace) -> None:
    device = DeviceProfile(
        weight_bits=(2, 3, 4, 5, 6, 7, 8),
        weight_granularity=Granularity.PER_TENSOR,
        weight_symmetry=Symmetry.SYMMETRIC,
        activation_bits=(2, 3, 4, 5, 6, 7, 8),
        activation_symmetry=Symmetry.SYMMETRIC,
    )
    costs = CostModel(resnet20_space)
    averages = (2.0, 3.5, 8.0)
    genomes = [
        build_genome(
            costs=costs,
            profile=device,
            budget=Budget(weight_bits=bits, activation_bits=bits),
            pins={},
            fix_unbounded=False,
        )
        for bits in averages
    ]
    limits = Limits(sizes=np.stack([genome.limits for genome in genomes]), operations=None).repeated(5)
    codes = np.broadcast_to(genomes[0].highest, (15, 2, 18)).copy()
    Repair(genomes[0], limits).shrink(codes, Precedence(np.random.default_rng(0), limits, 18))
    for row, one in enumerate(codes):
        cost = costs.of(genomes[0].configuration(one))
        assert averages[row % 3] - 0.3 < cost.weight_bits <= averages[row % 3]
        assert averages[row % 3] - 0.3 < cost.activation_bits <= averages[row % 3]
