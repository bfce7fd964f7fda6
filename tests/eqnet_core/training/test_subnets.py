"""Which subnets are drawn."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqnet_core.space import DEPTHWISE, FORMS, LayerSpec, SearchSpace, SubnetConfiguration
from eqnet_core.training.sampling import pilot_configurations
from eqnet_core.training.subnets import (
    RandomBits,
    sample_configuration,
    sandwich,
    searched_configuration,
    spread_bits,
    spread_encodings,
)
from eqnet_core.training.trainer import watched

SPACE = SearchSpace(
    tuple(
        LayerSpec(
            name=f"layer{position}",
            kind="conv",
            searchable=0 < position < 19,
            output_channels=4,
            weights=36,
            inputs=64,
            macs=576,
            nonnegative=True,
            float_parameters=8,
        )
        for position in range(20)
    )
)


def test_sandwich_has_highest_random_and_lowest_bits_of_all_forms() -> None:
    generator = np.random.default_rng(0)
    drawn = [sandwich(SPACE, generator) for _ in range(200)]
    for position in range(3):
        assert {subnets[position].form for subnets in drawn} == set(FORMS)
    assert {bits for highest, _, _ in drawn for bits in highest.weight_bits + highest.activation_bits} == {8}
    assert {bits for _, _, lowest in drawn for bits in lowest.weight_bits + lowest.activation_bits} == {2}
    assert {bits for _, random, _ in drawn for bits in random.weight_bits} == set(range(2, 9))


def test_nothing_is_drawn_that_a_network_with_depthwise_convolutions_does_not_have() -> None:
    space = SearchSpace((*SPACE.layers[:3], replace(SPACE.layers[3], kind=DEPTHWISE), *SPACE.layers[4:]))
    generator = np.random.default_rng(0)
    drawn = [sandwich(space, generator, random_bits) for random_bits in list(RandomBits)[:2] * 50]
    assert {bits for _, _, lowest in drawn for bits in lowest.weight_bits + lowest.activation_bits} == {3}
    assert {bits for _, random, _ in drawn for bits in random.weight_bits} == set(range(3, 9))
    samples = [sample_configuration(space, index, generator) for index in range(100)]
    assert {bits for sample in samples[:48] for bits in set(sample.weight_bits)} == set(range(3, 9))
    assert len({(sample.form, sample.weight_bits) for sample in samples[:48]}) == 48
    samples += [searched_configuration(space, FirstLayerMatters(), index, generator) for index in range(8)]
    assert min(bits for sample in samples for bits in sample.weight_bits + sample.activation_bits) == 3
    pilots = [*pilot_configurations(space), *watched(space)]
    assert min(bits for pilot in pilots for bits in pilot.weight_bits + pilot.activation_bits) == 3
    two_bits = spread_encodings(space, 200, generator)[:, 7::7]
    assert not two_bits.any()
    assert spread_encodings(SPACE, 200, generator)[:, 7::7].any()


def test_random_bits_can_be_spread() -> None:
    generator = np.random.default_rng(0)

    def low(random_bits: RandomBits) -> int:
        drawn = [sandwich(SPACE, generator, random_bits)[1] for _ in range(200)]
        return sum(np.mean(subnet.weight_bits) < 3.5 for subnet in drawn)

    assert low(RandomBits.INDEPENDENT) == 0
    assert 30 < low(RandomBits.SPREAD) < 70  # a quarter


def test_every_other_random_subnet_is_one_that_a_search_finds() -> None:
    generator = np.random.default_rng(0)
    predictor = FirstLayerMatters()
    drawn = [sandwich(SPACE, generator, RandomBits.SEARCHED, predictor)[1] for _ in range(60)]
    first_layer_at_8 = sum(subnet.weight_bits[0] == 8 for subnet in drawn)
    assert 20 < first_layer_at_8 < 50  # half of them, and those that are spread by chance
    assert {subnet.form for subnet in drawn} == set(FORMS)


class FirstLayerMatters:
    """A predictor that likes bits in the first searchable layer alone."""

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        lowest, best = SPACE.encode([SPACE.uniform(FORMS[0], 2), with_first_layer_at_8()])
        first = np.flatnonzero(lowest != best)
        return np.asarray(-np.abs(features[:, first] - best[first]).sum(1), dtype=np.float64)

    def interval(self, accuracy: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
        return accuracy, accuracy


def with_first_layer_at_8() -> SubnetConfiguration:
    """Everything else at 2 bits."""
    lowest = SPACE.uniform(FORMS[0], 2)
    return replace(lowest, weight_bits=(8, *lowest.weight_bits[1:]))


def test_averages_are_spread_evenly_and_near_their_target() -> None:
    generator = np.random.default_rng(0)
    averages = np.array([spread_bits(SPACE, generator).mean() for _ in range(1200)])
    counts, _ = np.histogram(averages, bins=6, range=(2, 8))
    assert counts.min() > 150
    assert counts.max() < 250


def test_samples_begin_with_the_uniform_nets_and_visit_forms_in_turn() -> None:
    configurations = [sample_configuration(SPACE, i, np.random.default_rng(i)) for i in range(120)]
    uniform = {(c.form, c.weight_bits, c.activation_bits) for c in configurations[:56]}
    assert len(uniform) == 56
    assert all(len({*c.weight_bits, *c.activation_bits}) == 1 for c in configurations[:56])
    assert [c.form for c in configurations[56:64]] == list(FORMS)
    assert any(c.narrow_range for c in configurations[56:])
