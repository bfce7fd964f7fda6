from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from eqnet_core.cost import CostModel
from eqnet_core.errors import InfeasibleBudgetError, InvalidProfileError
from eqnet_core.genome import Genome, build_genome
from eqnet_core.profile import Budget, DeviceProfile, LayerPin
from eqnet_core.space import DEPTHWISE, Granularity, SearchSpace, Symmetry


def profile(
    weight_bits: tuple[int, ...], activation_bits: tuple[int, ...], *, signed: bool = False
) -> DeviceProfile:
    return DeviceProfile(
        weight_bits=weight_bits,
        weight_granularity=Granularity.PER_CHANNEL,
        weight_symmetry=Symmetry.SYMMETRIC,
        activation_bits=activation_bits,
        activation_symmetry=Symmetry.ASYMMETRIC,
        signed=signed,
    )


def everything(genome: Genome) -> np.ndarray:
    ranges = [
        range(low, high + 1) for low, high in zip(genome.lowest.ravel(), genome.highest.ravel(), strict=True)
    ]
    return np.array(list(itertools.product(*ranges)), dtype=np.int64).reshape(-1, *genome.lowest.shape)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "budget",
    [
        Budget(weight_bits=4.3),
        Budget(activation_bits=5.0),
        Budget(model_bytes=650),
        Budget(bit_operations=110_000.0),
        Budget(weight_bits=5.1, activation_bits=4.7, model_bytes=640, bit_operations=120_000.0),
    ],
)
def test_integer_limits_agree_with_the_reported_costs(
    tiny_space: SearchSpace, budget: Budget, signed: bool
) -> None:
    costs = CostModel(tiny_space)
    genome = build_genome(
        costs=costs,
        profile=profile((2, 4, 5, 8), (2, 4, 7, 8), signed=signed),
        budget=budget,
        pins={},
        fix_unbounded=False,
    )
    codes = everything(genome)
    assert len(codes) == genome.choices == 4**3 * (4 * 3 * 3 if signed else 4**3)
    within = genome.feasible(codes)
    assert 0 < within.sum() < len(codes)
    asked = {name: value for name, value in budget.to_json().items() if value is not None}
    for row in range(0, len(codes), 7):
        cost = costs.of(genome.configuration(codes[row])).to_json()
        assert within[row] == all(cost[name] <= value for name, value in asked.items())


def test_an_average_at_the_limit_is_within_it(resnet20_space: SearchSpace) -> None:
    costs = CostModel(resnet20_space)
    genome = build_genome(
        costs=costs,
        profile=profile((2, 3, 8), (3,)),
        budget=Budget(weight_bits=3.0, activation_bits=3.0),
        pins={},
    )
    uniform = genome.at_most(np.full((1, 2, 18), 3))
    assert genome.feasible(uniform).all()
    assert genome.configuration(uniform[0]).weight_bits == (3,) * 18


def test_seven_and_eight_bits_are_one_choice_where_they_are_the_same(tiny_space: SearchSpace) -> None:
    genome = build_genome(
        costs=CostModel(tiny_space),
        profile=profile((8,), (6, 7, 8), signed=True),
        budget=Budget(activation_bits=6.5),
        pins={},
    )
    assert (genome.highest - genome.lowest + 1).tolist() == [[1, 1, 1], [2, 3, 2]]
    assert genome.configuration(genome.highest).activation_bits == (8, 8, 8)


@pytest.mark.parametrize("signed", [False, True])
def test_features_are_those_of_the_configurations(tiny_space: SearchSpace, signed: bool) -> None:
    genome = build_genome(
        costs=CostModel(tiny_space),
        profile=profile((2, 4, 5, 8), (2, 7, 8), signed=signed),
        budget=Budget(weight_bits=6.0, activation_bits=6.0),
        pins={"b": LayerPin(weight_bits=5)},
    )
    codes = everything(genome)[::5]
    expected = tiny_space.encode([genome.configuration(one) for one in codes])
    np.testing.assert_array_equal(genome.features(codes), expected)


@pytest.mark.parametrize(
    ("budget", "choices"),
    [
        (Budget(), 1),
        (Budget(weight_bits=4.0), 3**3),
        (Budget(model_bytes=10**6), 3**3),
        (Budget(activation_bits=5.0), 2**3),
        (Budget(weight_bits=4.0, activation_bits=5.0), 6**3),
        (Budget(bit_operations=1e12), 6**3),
    ],
)
def test_a_side_without_a_bound_has_its_highest_bits(
    tiny_space: SearchSpace, budget: Budget, choices: int
) -> None:
    """Also bounds that no subnet of the device exceeds are searched below."""
    device = profile((2, 4, 6), (3, 5))
    genome = build_genome(costs=CostModel(tiny_space), profile=device, budget=budget, pins={})
    assert genome.choices == choices
    lowest = genome.configuration(genome.lowest)
    if budget.activation_bits is None and budget.bit_operations is None:
        assert lowest.activation_bits == (5, 5, 5)
    if budget == Budget(activation_bits=5.0):
        assert lowest.weight_bits == (6, 6, 6)


def test_pins_leave_one_choice(tiny_space: SearchSpace) -> None:
    pins = {"b": LayerPin(weight_bits=4), "c": LayerPin(activation_bits=2), "head": LayerPin(weight_bits=8)}
    genome = build_genome(
        costs=CostModel(tiny_space),
        profile=profile((2, 4, 8), (2, 8)),
        budget=Budget(weight_bits=4.0, activation_bits=4.0),
        pins=pins,
    )
    assert (genome.highest - genome.lowest + 1).tolist() == [[3, 1, 3], [2, 2, 1]]
    configuration = genome.configuration(genome.highest)
    assert (configuration.weight_bits[1], configuration.activation_bits[2]) == (4, 2)


def test_pins_that_cannot_be_kept_are_refused_where_they_are_wrong(tiny_space: SearchSpace) -> None:
    pins = {
        "a/b": LayerPin(weight_bits=4),
        "b": LayerPin(weight_bits=5, activation_bits=2),
        "stem": LayerPin(activation_bits=4),
    }
    with pytest.raises(InvalidProfileError) as error:
        build_genome(costs=CostModel(tiny_space), profile=profile((4, 8), (2, 8)), budget=Budget(), pins=pins)
    pointers = [violation.pointer for violation in error.value.violations]
    assert pointers == ["/pinned/a~1b", "/pinned/b/weight_bits", "/pinned/stem/activation_bits"]


def test_only_bits_that_the_network_has_are_chosen(tiny_space: SearchSpace) -> None:
    stem, depthwise, *others = tiny_space.layers
    costs = CostModel(SearchSpace((stem, replace(depthwise, kind=DEPTHWISE), *others)))

    def built(weight_bits: tuple[int, ...], activation_bits: tuple[int, ...], **pins: LayerPin) -> Genome:
        asked = profile(weight_bits, activation_bits)
        return build_genome(
            costs=costs, profile=asked, budget=Budget(weight_bits=8, activation_bits=8), pins=pins
        )

    genome = built((2, 3, 5), (2, 8))
    assert set(genome.emitted.tolist()) == {3, 5, 8}
    assert genome.choices == 2 ** len(costs.space.searchable)
    with pytest.raises(InvalidProfileError) as refused:
        built((2, 3), (2,))
    assert [violation.pointer for violation in refused.value.violations] == ["/profile/activation/bits"]
    assert "must be one of 3..8" in str(refused.value)
    with pytest.raises(InvalidProfileError, match="is 2, but this supernet has 3, 4, 5, 6, 7, 8 bits"):
        built((2, 3), (8,), a=LayerPin(weight_bits=2))


@pytest.mark.parametrize("pinned", [False, True])
def test_the_nearest_feasible_budget_is_feasible_and_nothing_below_it_is(
    resnet20_space: SearchSpace, pinned: bool
) -> None:
    costs = CostModel(resnet20_space)
    device = profile((3, 4, 8), (4, 8))
    pins = {"layer3.2.conv2": LayerPin(weight_bits=8)} if pinned else {}
    asked = Budget(weight_bits=2.5, activation_bits=6.0, model_bytes=1000, bit_operations=1e6)
    with pytest.raises(InfeasibleBudgetError) as error:
        build_genome(costs=costs, profile=device, budget=asked, pins=pins)
    nearest = error.value.nearest
    pointers = [violation.pointer for violation in error.value.violations]
    assert pointers == ["/budget/weight_bits", "/budget/model_bytes", "/budget/bit_operations"]
    assert list(nearest) == ["weight_bits", "activation_bits", "model_bytes", "bit_operations"]
    assert nearest["activation_bits"] == 6.0
    assert (nearest["weight_bits"] > 3.0) == pinned
    build_genome(costs=costs, profile=device, budget=Budget.from_json(nearest), pins=pins)
    for name in ("weight_bits", "model_bytes", "bit_operations"):
        below = nearest[name] - 1 if name == "model_bytes" else np.nextafter(nearest[name], 0.0).item()
        with pytest.raises(InfeasibleBudgetError) as error:
            build_genome(
                costs=costs, profile=device, budget=Budget.from_json({**nearest, name: below}), pins=pins
            )
        assert [violation.pointer for violation in error.value.violations] == [f"/budget/{name}"]
