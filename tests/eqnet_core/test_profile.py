from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from eqnet_core.errors import InvalidProfileError
from eqnet_core.profile import Budget, DeviceProfile, LayerPin, SearchSettings, escape_pointer
from eqnet_core.space import FORMS, Symmetry

DOCUMENT: dict[str, Any] = {
    "weight": {
        "bits": [8, 4, 2, 4],
        "granularity": "per_channel",
        "symmetry": "symmetric",
        "narrow_range": True,
    },
    "activation": {"bits": [8], "symmetry": "asymmetric", "signed": False},
}


def pointers(error: pytest.ExceptionInfo[InvalidProfileError]) -> list[str]:
    return [violation.pointer for violation in error.value.violations]


def changed(section: str, **entries: object) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    document[section].update(entries)
    return document


def test_profile_is_normalised_and_survives_a_round_trip() -> None:
    profile = DeviceProfile.from_json(DOCUMENT)
    assert profile.weight_bits == (2, 4, 8)
    assert profile.form == FORMS[5]
    assert DeviceProfile.from_json(profile.to_json()) == profile
    assert profile.to_json()["weight"] == {**DOCUMENT["weight"], "bits": [2, 4, 8]}


def test_profile_flags_default_to_false() -> None:
    document = copy.deepcopy(DOCUMENT)
    del document["weight"]["narrow_range"], document["activation"]["signed"]
    profile = DeviceProfile.from_json(document)
    assert (profile.narrow_range, profile.signed) == (False, False)


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        (changed("weight", bits=[4, 16]), "/weight/bits/1"),
        (changed("weight", bits=[True]), "/weight/bits/0"),
        (changed("weight", bits=["4"]), "/weight/bits/0"),
        (changed("activation", bits=[]), "/activation/bits"),
        (changed("activation", bits=8), "/activation/bits"),
        (changed("weight", granularity="per_row"), "/weight/granularity"),
        (changed("weight", granularity=["per_channel"]), "/weight/granularity"),
        (changed("activation", symmetry=None), "/activation/symmetry"),
        (changed("activation", signed="yes"), "/activation/signed"),
        (changed("weight", signed=True), "/weight/signed"),
        (changed("weight", symmetry="asymmetric"), "/weight/narrow_range"),
        ({**DOCUMENT, "a/b": 1}, "/a~1b"),
        ({"weight": DOCUMENT["weight"]}, "/activation"),
        ({**DOCUMENT, "weight": [8]}, "/weight"),
    ],
)
def test_a_senseless_profile_is_refused_where_it_is_wrong(document: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidProfileError) as error:
        DeviceProfile.from_json(document)
    assert pointer in pointers(error)


def test_narrow_range_with_asymmetric_weights_says_what_to_change() -> None:
    with pytest.raises(InvalidProfileError, match="use symmetric weights, or set narrow_range to false"):
        DeviceProfile.from_json(changed("weight", symmetry="asymmetric"))
    for change in ({"symmetry": "symmetric"}, {"narrow_range": False}):
        DeviceProfile.from_json(changed("weight", **{"symmetry": "asymmetric"} | change))


def test_every_fault_of_a_profile_is_named_at_once() -> None:
    document = {"weight": {"bits": [1], "granularity": "x", "symmetry": "y"}, "activation": {"bits": [9]}}
    with pytest.raises(InvalidProfileError) as error:
        DeviceProfile.from_json(document)
    assert pointers(error) == [
        "/weight/bits/0",
        "/weight/granularity",
        "/weight/symmetry",
        "/activation/bits/0",
        "/activation/symmetry",
    ]


def test_what_is_made_by_hand_is_normalised_and_checked_too() -> None:
    texts: dict[str, Any] = {
        "weight_bits": (bits for bits in (8, np.int64(4), 2)),
        "weight_granularity": "per_channel",
        "weight_symmetry": "symmetric",
        "activation_bits": np.array([8]),
        "activation_symmetry": "asymmetric",
        "narrow_range": True,
    }
    profile = DeviceProfile(**texts)
    assert profile == DeviceProfile.from_json(DOCUMENT)
    assert profile.form.activation_symmetry is Symmetry.ASYMMETRIC
    assert json.dumps(profile.to_json()) == json.dumps(DeviceProfile.from_json(DOCUMENT).to_json())
    wrong = {
        "weight_bits": (4,),
        "weight_granularity": "per_chanel",
        "weight_symmetry": "asymmetric",
        "signed": "no",
    }
    with pytest.raises(InvalidProfileError) as error:
        DeviceProfile(**{**texts, **wrong})
    assert pointers(error) == ["/weight/granularity", "/activation/signed", "/weight/narrow_range"]


def test_numbers_of_numpy_are_numbers() -> None:
    made = (
        Budget(weight_bits=np.float32(3), model_bytes=np.int64(120_000)),
        SearchSettings(population=np.int32(10)),
        LayerPin(weight_bits=np.int8(4)),
    )
    assert made == (
        Budget(weight_bits=3.0, model_bytes=120_000),
        SearchSettings(population=10),
        LayerPin(weight_bits=4),
    )
    assert json.dumps([each.to_json() for each in made])


def test_budgets_that_mean_the_same_are_equal() -> None:
    assert Budget.from_json({"weight_bits": 4, "model_bytes": 1000.0, "bit_operations": None}) == Budget(
        weight_bits=4.0, model_bytes=1000
    )
    assert Budget.from_json(Budget(model_bytes=7).to_json()) == Budget(model_bytes=7)
    assert repr(Budget(weight_bits=4).to_json()) == repr(Budget(weight_bits=4.0).to_json())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_bits", 0),
        ("weight_bits", -1.0),
        ("weight_bits", float("nan")),
        ("activation_bits", float("inf")),
        ("activation_bits", "4"),
        ("activation_bits", True),
        ("model_bytes", 10.5),
        ("bit_operations", 10**400),
    ],
)
def test_a_bound_must_be_a_positive_number(name: str, value: object) -> None:
    with pytest.raises(InvalidProfileError) as error:
        Budget.from_json({name: value})
    assert pointers(error) == [f"/{name}"]


def test_an_unknown_bound_is_refused() -> None:
    with pytest.raises(InvalidProfileError) as error:
        Budget.from_json({"weights": 4})
    assert pointers(error) == ["/weights"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("population", 1),
        ("population", 10**6),
        ("generations", 0),
        ("generations", 2.5),
        ("seed", -1),
        ("seed", None),
    ],
)
def test_search_settings_are_bounded(name: str, value: object) -> None:
    with pytest.raises(InvalidProfileError) as error:
        SearchSettings.from_json({name: value})
    assert pointers(error) == [f"/{name}"]


def test_a_search_is_bounded_by_what_a_builder_can_remember() -> None:
    SearchSettings(population=2000, generations=2000)
    with pytest.raises(InvalidProfileError, match="4,000,000") as error:
        SearchSettings(population=2000, generations=2001)
    assert pointers(error) == ["/population", "/generations"]


def test_search_settings_default_to_100_times_500() -> None:
    assert SearchSettings.from_json({}).to_json() == {"population": 100, "generations": 500, "seed": 0}


def test_a_pin_takes_bits_of_the_space_only() -> None:
    assert LayerPin.from_json({"weight_bits": 8}) == LayerPin(weight_bits=8)
    for pin in ({"weight_bits": 9}, {"bits": 8}, {"activation_bits": 4.0}):
        with pytest.raises(InvalidProfileError):
            LayerPin.from_json(pin)


def test_pointer_tokens_are_escaped() -> None:
    assert escape_pointer("a/b~c") == "a~1b~0c"
