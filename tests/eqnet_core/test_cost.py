from __future__ import annotations

import numpy as np
import pytest

from eqnet_core.cost import CostModel
from eqnet_core.errors import InvalidConfigurationError
from eqnet_core.space import FORMS, LayerSpec, SearchSpace, SubnetConfiguration


def test_costs_of_a_small_network_by_hand(tiny_space: SearchSpace) -> None:
    configuration = SubnetConfiguration(
        form=FORMS[4], weight_bits=(2, 3, 8), activation_bits=(4, 5, 6)
    )  # per-channel, symmetric
    cost = CostModel(tiny_space).of(configuration)
    packed_bits = 37 * 2 + 53 * 3 + 211 * 8
    assert cost.weight_bits == packed_bits / (37 + 53 + 211)
    assert cost.activation_bits == (64 * 4 + 21 * 5 + 16 * 6) / (64 + 21 + 16)
    assert cost.bit_operations == 1000 * 64 + 700 * 8 + 900 * 15 + 1300 * 48 + 50 * 64
    channels = 4 + 4 + 6 + 5 + 10
    packed_bytes = -(-(packed_bits + 8 * (101 + 50)) // 8)
    assert cost.model_bytes == packed_bytes + 4 * 2 * channels + 4 * (channels + 5)
    assert cost.compression == 4 * (101 + 37 + 53 + 211 + 50 + 2 * channels) / cost.model_bytes


def test_zero_points_and_step_sizes_follow_the_form(tiny_space: SearchSpace) -> None:
    costs = CostModel(tiny_space)
    sizes = [costs.of(tiny_space.uniform(form, 4)).model_bytes for form in FORMS]
    layers, channels = 5, 29
    # Per tensor: symmetric, + activation zero-points, + weight zero-points, + both; then per channel.
    steps = np.array([layers] * 4 + [channels] * 4)
    zeros = np.array([0, layers, layers, 2 * layers, 0, layers, channels, channels + layers])
    assert np.array_equal(np.diff(sizes), np.diff(4 * steps + zeros))


def test_signed_runtimes_use_seven_bits_of_nonnegative_inputs(tiny_space: SearchSpace) -> None:
    costs = CostModel(tiny_space)
    cost = costs.of(tiny_space.uniform(FORMS[4], 8, signed=True))
    assert cost.activation_bits == (64 * 7 + 21 * 8 + 16 * 7) / (64 + 21 + 16)
    assert cost.bit_operations == 8 * (1000 * 8 + 700 * 7 + 900 * 8 + 1300 * 7 + 50 * 7)
    assert cost.model_bytes == costs.of(tiny_space.uniform(FORMS[4], 8)).model_bytes


@pytest.mark.parametrize("bits", range(2, 9))
def test_uniform_subnets_average_to_their_bits_exactly(resnet20_space: SearchSpace, bits: int) -> None:
    cost = CostModel(resnet20_space).of(resnet20_space.uniform(FORMS[4], bits))
    assert (cost.weight_bits, cost.activation_bits) == (bits, bits)


def test_a_population_costs_what_its_members_cost(resnet20_space: SearchSpace) -> None:
    costs = CostModel(resnet20_space)
    generator = np.random.default_rng(1)
    weight_bits, activation_bits = generator.integers(2, 9, size=(2, 20, 18))
    for form in FORMS:
        columns = costs.evaluate(form, weight_bits, activation_bits, signed=True)
        for row in range(20):
            configuration = SubnetConfiguration(
                form=form,
                weight_bits=tuple(weight_bits[row].tolist()),
                activation_bits=tuple(activation_bits[row].tolist()),
                signed=True,
            )
            expected = costs.of(configuration).to_json()
            assert expected == {name: column[row] for name, column in columns.items()}


def test_many_subnets_cost_what_each_costs(resnet20_space: SearchSpace) -> None:
    costs, generator = CostModel(resnet20_space), np.random.default_rng(3)
    many = [
        SubnetConfiguration(
            form=FORMS[position % 8],
            weight_bits=tuple(generator.integers(2, 9, size=18).tolist()),
            activation_bits=tuple(generator.integers(2, 9, size=18).tolist()),
            signed=position % 3 == 0,
        )
        for position in range(40)
    ]
    assert costs.of_all(many) == [costs.of(one) for one in many]
    assert costs.of_all([]) == []
    assert isinstance(costs.of(many[0]).model_bytes, int)


def test_a_configuration_of_another_network_is_refused(
    resnet20_space: SearchSpace, tiny_space: SearchSpace
) -> None:
    with pytest.raises(InvalidConfigurationError):
        CostModel(resnet20_space).of(tiny_space.uniform(FORMS[0], 4))


def test_a_network_without_searchable_layers_has_no_averages(resnet20_space: SearchSpace) -> None:
    fixed: tuple[LayerSpec, ...] = tuple(layer for layer in resnet20_space.layers if not layer.searchable)
    with pytest.raises(ValueError, match="searchable"):
        CostModel(SearchSpace(fixed))
