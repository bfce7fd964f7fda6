"""Forms, configurations, their JSON and the predictor's encoding."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eqnet_core.configuration_json import configuration_from_json, configuration_to_json
from eqnet_core.errors import InvalidConfigurationError
from eqnet_core.space import (
    DEPTHWISE,
    FORMS,
    LayerSpec,
    QuantizationForm,
    SearchSpace,
    SubnetConfiguration,
    Symmetry,
)


def layer(name: str, *, searchable: bool = True, nonnegative: bool = True) -> LayerSpec:
    return LayerSpec(
        name=name,
        kind="conv",
        searchable=searchable,
        output_channels=4,
        weights=36,
        inputs=64,
        macs=576,
        nonnegative=nonnegative,
        float_parameters=8,
    )


SPACE = SearchSpace(
    (
        layer("stem", searchable=False, nonnegative=False),
        layer("a"),
        layer("b", nonnegative=False),
        layer("c"),
    )
)
CONFIGURATION = SubnetConfiguration(form=FORMS[5], weight_bits=(2, 5, 8), activation_bits=(3, 4, 8))


def test_forms_are_all_eight_and_know_their_place() -> None:
    assert len(set(FORMS)) == 8
    assert [form.index for form in FORMS] == list(range(8))


def test_json_round_trip_in_any_order_of_layers() -> None:
    document = configuration_to_json(CONFIGURATION, SPACE)
    document["layers"].reverse()
    assert configuration_from_json(document, SPACE) == CONFIGURATION


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"layers": [{"name": "a", "weight_bits": 2, "activation_bits": 2}]}, "/layers"),
        ({"layers": [{"name": n, "weight_bits": 2, "activation_bits": 2} for n in "abcc"]}, "/layers/3/name"),
        ({"layers": [{"name": n, "weight_bits": 2, "activation_bits": 2} for n in "abcx"]}, "/layers/3/name"),
        (
            {"layers": [{"name": n, "weight_bits": 9, "activation_bits": 2} for n in "abc"]},
            "/layers/0/weight_bits",
        ),
    ],
)
def test_wrong_layers_are_pointed_at(change: dict[str, object], pointer: str) -> None:
    with pytest.raises(InvalidConfigurationError) as caught:
        configuration_from_json({**configuration_to_json(CONFIGURATION, SPACE), **change}, SPACE)
    assert pointer in [violation.pointer for violation in caught.value.violations]


def test_a_wrong_layer_is_pointed_at_where_the_document_has_it() -> None:
    document = configuration_to_json(CONFIGURATION, SPACE)
    document["layers"].reverse()
    document["layers"][0]["activation_bits"] = 9
    with pytest.raises(InvalidConfigurationError) as caught:
        configuration_from_json(document, SPACE)
    assert [violation.pointer for violation in caught.value.violations] == ["/layers/0/activation_bits"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_of_texts_is_the_form(form: QuantizationForm) -> None:
    """Not only equal to it: what is compared is which member an axis is."""
    texts: dict[str, Any] = {name: str(value) for name, value in vars(form).items()}
    written = QuantizationForm(**texts)
    assert written == form
    assert all(type(value) is not str for value in vars(written).values())
    encoded = [SPACE.encode([SPACE.uniform(one, 4)]) for one in (written, form)]
    np.testing.assert_array_equal(*encoded)
    with pytest.raises(InvalidConfigurationError, match="use one of per_tensor, per_channel"):
        QuantizationForm(**{**texts, "weight_granularity": "per_chanel"})


@pytest.mark.parametrize("bits", [np.array([2, 5, 8]), [2, 5, 8], map(np.int8, (2, 5, 8))])
def test_bits_become_whole_numbers_that_json_knows(bits: Any) -> None:
    configuration = SubnetConfiguration(form=FORMS[5], weight_bits=bits, activation_bits=(3, 4, 8))
    assert configuration == CONFIGURATION
    assert json.dumps(configuration_to_json(configuration, SPACE))
    with pytest.raises(InvalidConfigurationError, match="whole numbers"):
        replace(configuration, activation_bits=(3.0, 4, 8))
    with pytest.raises(InvalidConfigurationError, match="use True or False"):
        replace(configuration, signed="no")


def test_members_that_are_not_known_are_refused() -> None:
    document = configuration_to_json(CONFIGURATION, SPACE)
    with pytest.raises(InvalidConfigurationError, match="'narrow-range' is not known here: use "):
        configuration_from_json({**document, "narrow-range": True}, SPACE)


def test_many_layers_are_read_in_a_moment() -> None:
    document = configuration_to_json(CONFIGURATION, SPACE)
    document["layers"] = document["layers"][:1] * 50_000  # half an hour where each is compared with each
    with pytest.raises(InvalidConfigurationError) as caught:
        configuration_from_json(document, SPACE)
    assert len(caught.value.violations) == 50_000


def test_nothing_is_rounded_or_taken_for_true() -> None:
    document = configuration_to_json(CONFIGURATION, SPACE)
    for flag in ("narrow_range", "signed"):
        with pytest.raises(InvalidConfigurationError, match="true or false"):
            configuration_from_json({**document, flag: "false"}, SPACE)
    document["layers"][1]["weight_bits"] = 3.9
    with pytest.raises(InvalidConfigurationError, match="integer"):
        configuration_from_json(document, SPACE)


def test_a_network_with_depthwise_convolutions_has_no_two_bits() -> None:
    space = SearchSpace((*SPACE.layers[:2], replace(SPACE.layers[2], kind=DEPTHWISE), SPACE.layers[3]))
    assert SPACE.bit_widths == (2, 3, 4, 5, 6, 7, 8)
    assert space.bit_widths == (3, 4, 5, 6, 7, 8)
    three = space.uniform(FORMS[5], 3)
    assert configuration_from_json(configuration_to_json(three, space), space) == three
    with pytest.raises(
        InvalidConfigurationError, match=r"/layers/0/weight_bits must be one of 3\.\.8"
    ) as caught:
        space.encode([three, CONFIGURATION])
    assert [violation.pointer for violation in caught.value.violations] == ["/layers/0/weight_bits"]
    with pytest.raises(InvalidConfigurationError) as caught:
        configuration_from_json(configuration_to_json(CONFIGURATION, SPACE), space)
    assert [violation.pointer for violation in caught.value.violations] == ["/layers/0/weight_bits"]


@pytest.mark.parametrize("key", ["granularity", "weight_symmetry", "activation_symmetry", "layers"])
def test_missing_parts_are_refused(key: str) -> None:
    document = configuration_to_json(CONFIGURATION, SPACE)
    del document[key]
    with pytest.raises(InvalidConfigurationError, match=key):
        configuration_from_json(document, SPACE)


def test_encoding_is_one_hot_and_the_same_for_populations() -> None:
    encoded = SPACE.encode([CONFIGURATION])
    assert encoded.shape == (1, SPACE.encoding_size)
    assert encoded.sum() == 3 + 2 * 3
    population = SPACE.encode_population(FORMS[5], np.array([[2, 5, 8]]), np.array([[3, 4, 8]]))
    np.testing.assert_array_equal(encoded, population)


def test_signed_runtimes_are_encoded_with_the_bits_they_use() -> None:
    signed = SPACE.encode_population(FORMS[5], np.array([[2, 5, 8]]), np.array([[8, 8, 8]]), signed=True)
    # "b" may be negative and keeps 8 bits; "a" and "c" are left with 7.
    same = SPACE.encode_population(FORMS[5], np.array([[2, 5, 8]]), np.array([[7, 8, 7]]))
    np.testing.assert_array_equal(signed, same)
    mixed = [SPACE.uniform(FORMS[5], 8, signed=True), CONFIGURATION, SPACE.uniform(FORMS[0], 8)]
    one_by_one = [SPACE.encode([configuration])[0] for configuration in mixed]
    np.testing.assert_array_equal(SPACE.encode(mixed), one_by_one)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_narrow_range_needs_symmetric_weights(form: QuantizationForm) -> None:
    if form.weight_symmetry is Symmetry.SYMMETRIC:
        assert SPACE.uniform(form, 4, narrow_range=True).narrow_range
        return
    with pytest.raises(InvalidConfigurationError, match="use symmetric weights") as caught:
        SPACE.uniform(form, 4, narrow_range=True)
    assert [violation.pointer for violation in caught.value.violations] == ["/narrow_range"]


@pytest.mark.parametrize("bits", [1, 9, 0])
def test_bit_widths_outside_the_space_are_refused(bits: int) -> None:
    with pytest.raises(InvalidConfigurationError):
        SubnetConfiguration(form=FORMS[0], weight_bits=(bits,), activation_bits=(8,))
