"""Which subnets are drawn."""

import numpy as np

from eqnet_core.space import FORMS, LayerSpec, SearchSpace
from eqnet_core.training.subnets import sample_configuration, sandwich, spread_bits

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


def test_averages_are_spread_evenly_and_near_their_target() -> None:
    generator = np.random.default_rng(0)
    averages = np.array([spread_bits(18, generator).mean() for _ in range(1200)])
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
