from __future__ import annotations

from typing import Any

import pytest

from eqnet_core.cost import CostModel
from eqnet_core.errors import InfeasibleBudgetError, InvalidProfileError
from eqnet_core.pareto import FrontAxis, FrontPoint, front
from eqnet_core.profile import Budget, DeviceProfile, LayerPin, SearchSettings
from eqnet_core.search import search
from eqnet_core.space import Granularity, SearchSpace, Symmetry

PROFILE = DeviceProfile(
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    weight_granularity=Granularity.PER_CHANNEL,
    weight_symmetry=Symmetry.SYMMETRIC,
    activation_bits=(2, 3, 4, 5, 6, 7, 8),
    activation_symmetry=Symmetry.ASYMMETRIC,
)


def run(space: SearchSpace, predictor: Any, **changes: Any) -> tuple[FrontPoint, ...]:
    return front(space=space, predictor=predictor, costs=CostModel(space), **{"profile": PROFILE, **changes})


def test_the_front_rises_within_its_budgets(resnet20_space: SearchSpace, resnet20_mlp: Any) -> None:
    points = run(resnet20_space, resnet20_mlp)
    assert [point.budget.weight_bits for point in points] == [2 + index / 4 for index in range(25)]
    for point in points:
        assert point.budget.weight_bits == point.budget.activation_bits
        assert point.cost.weight_bits <= point.budget.weight_bits
        assert point.cost.activation_bits <= point.budget.activation_bits
    accuracies = [point.predicted_accuracy for point in points]
    assert accuracies == sorted(accuracies)
    assert points[0].configuration == resnet20_space.uniform(PROFILE.form, 2)
    assert points[0].prediction_interval == pytest.approx((accuracies[0] - 0.004, accuracies[0] + 0.003))


def test_points_are_about_as_good_as_searches(resnet20_space: SearchSpace, resnet20_mlp: Any) -> None:
    points = run(resnet20_space, resnet20_mlp)
    for point in points[2::6]:
        result = search(
            space=resnet20_space,
            predictor=resnet20_mlp,
            costs=CostModel(resnet20_space),
            profile=PROFILE,
            budget=point.budget,
            settings=SearchSettings(),
        )
        assert point.predicted_accuracy > result.predicted_accuracy - 0.0001


def test_one_axis_leaves_the_other_at_its_highest_bits(
    resnet20_space: SearchSpace, resnet20_mlp: Any
) -> None:
    weights = run(resnet20_space, resnet20_mlp, axis=FrontAxis.WEIGHTS, points=5, generations=30)
    assert {point.configuration.activation_bits for point in weights} == {(8,) * 18}
    assert {point.budget.activation_bits for point in weights} == {None}
    activations = run(resnet20_space, resnet20_mlp, axis=FrontAxis.ACTIVATIONS, points=5, generations=30)
    assert {point.configuration.weight_bits for point in activations} == {(8,) * 18}
    assert [point.budget.activation_bits for point in activations] == [2.0, 3.5, 5.0, 6.5, 8.0]


def test_further_bounds_and_pins_hold_at_every_point(resnet20_space: SearchSpace, resnet20_mlp: Any) -> None:
    budget = Budget(weight_bits=5.0, model_bytes=150_000, bit_operations=5e8)
    pins = {"layer2.0.conv1": LayerPin(weight_bits=6)}
    points = run(resnet20_space, resnet20_mlp, budget=budget, pins=pins, points=7, generations=40)
    assert len(points) == 7
    for point in points:
        assert point.cost.weight_bits <= point.budget.weight_bits <= 5
        assert point.cost.model_bytes <= 150_000
        assert point.cost.bit_operations <= 5e8
        assert point.configuration.weight_bits[6] == 6


def test_a_side_without_a_choice_does_not_shorten_the_front(
    resnet20_space: SearchSpace, resnet20_mlp: Any
) -> None:
    device = DeviceProfile.from_json(
        {**PROFILE.to_json(), "activation": {"bits": [8], "symmetry": "symmetric", "signed": True}}
    )
    points = run(resnet20_space, resnet20_mlp, profile=device, points=4, generations=20)
    assert [point.budget.weight_bits for point in points] == [2.0, 4.0, 6.0, 8.0]
    assert all(point.cost.activation_bits <= point.budget.activation_bits for point in points)


def test_a_device_with_one_subnet_has_a_front_of_one_point(
    resnet20_space: SearchSpace, resnet20_mlp: Any
) -> None:
    document = PROFILE.to_json()
    document["weight"]["bits"] = document["activation"]["bits"] = [4]
    points = run(resnet20_space, resnet20_mlp, profile=DeviceProfile.from_json(document))
    assert [point.configuration for point in points] == [resnet20_space.uniform(PROFILE.form, 4)]


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [([4], [8]), ([2, 3], [6, 8]), ([2, 4], [8])])
def test_sides_with_averages_apart_have_no_point_twice(
    resnet20_space: SearchSpace, resnet20_mlp: Any, weight_bits: list[int], activation_bits: list[int]
) -> None:
    document = PROFILE.to_json()
    document["weight"]["bits"], document["activation"]["bits"] = weight_bits, activation_bits
    points = run(resnet20_space, resnet20_mlp, profile=DeviceProfile.from_json(document), generations=15)
    pairs = [(point.budget.weight_bits, point.budget.activation_bits) for point in points]
    assert len(set(pairs)) == len(pairs)
    assert pairs == sorted(pairs)
    assert pairs[0] == (min(weight_bits), min(activation_bits))
    assert pairs[-1] == (max(weight_bits), max(activation_bits))
    assert (len(pairs) == 1) == (len(weight_bits) == len(activation_bits) == 1)


def test_the_front_is_deterministic_in_its_seed(resnet20_space: SearchSpace, resnet20_mlp: Any) -> None:
    one, two, other = (
        run(resnet20_space, resnet20_mlp, points=5, generations=15, seed=seed) for seed in (3, 3, 4)
    )
    assert one == two
    assert one != other


def test_fronts_that_cannot_be_made_are_refused(resnet20_space: SearchSpace, resnet20_mlp: Any) -> None:
    with pytest.raises(InvalidProfileError):
        run(resnet20_space, resnet20_mlp, points=1)
    with pytest.raises(InfeasibleBudgetError):
        run(resnet20_space, resnet20_mlp, budget=Budget(model_bytes=10))
