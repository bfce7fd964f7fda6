"""Identity: what makes two orders the same subnet."""

import json
from dataclasses import replace
from typing import Any

import pytest

from eqnet_core.profile import Budget, DeviceProfile, LayerPin, SearchSettings
from service.subnets.order import SearchOrder, SubnetOrder, is_subnet_id

PROFILE = {
    "weight": {"bits": [4, 8], "granularity": "per_channel", "symmetry": "symmetric"},
    "activation": {"bits": [8], "symmetry": "asymmetric"},
}
SEARCH = SearchOrder(
    profile=DeviceProfile.from_json(PROFILE),
    budget=Budget(weight_bits=4.0),
    search=SearchSettings(),
    pins={"a": LayerPin(weight_bits=8), "b": LayerPin(activation_bits=8)},
)
ORDER = SubnetOrder(
    supernet="test", bundle_digest="sha256:00", what=SEARCH, artifacts=("model.onnx", "report.json")
)


def test_the_id_does_not_change_between_versions() -> None:
    """Records of earlier versions are found by it: change this only together with EXPORTER_VERSION or
    SEARCH_VERSION."""
    assert ORDER.id == "baf54ff0c5a4ef190b5b79922b510385"
    assert is_subnet_id(ORDER.id)


@pytest.mark.parametrize(
    "change",
    [
        {"bundle_digest": "sha256:01"},
        {"artifacts": ("model.onnx",)},
        {"evaluation": "digest"},
        {"what": replace(SEARCH, budget=Budget(weight_bits=4.5))},
        {"what": replace(SEARCH, budget=Budget(weight_bits=4.0, model_bytes=10**6))},
        {"what": replace(SEARCH, search=SearchSettings(seed=1))},
        {"what": replace(SEARCH, pins={})},
        {"what": replace(SEARCH, profile=replace(SEARCH.profile, signed=True))},
        {"what": replace(SEARCH, profile=replace(SEARCH.profile, narrow_range=True))},
        {"what": replace(SEARCH, device="tensorrt")},
        {"what": {"layers": []}},
    ],
)
def test_what_determines_the_result_is_part_of_the_id(change: dict[str, Any]) -> None:
    assert replace(ORDER, **change).id != ORDER.id


def test_what_means_the_same_has_one_id() -> None:
    profile = DeviceProfile.from_json(
        {
            "weight": PROFILE["weight"] | {"bits": [8, 4, 4], "narrow_range": False},
            "activation": PROFILE["activation"] | {"signed": False},
        }
    )
    same = replace(
        SEARCH, profile=profile, budget=Budget(weight_bits=4), pins=dict(reversed(SEARCH.pins.items()))
    )
    assert replace(ORDER, what=same).id == ORDER.id
    assert replace(ORDER, supernet="renamed").id == ORDER.id


@pytest.mark.parametrize("order", [ORDER, replace(ORDER, what={"layers": []}, evaluation="digest")])
def test_an_order_survives_the_way_to_the_builder(order: SubnetOrder) -> None:
    assert SubnetOrder.from_json(json.loads(json.dumps(order.to_json()))) == order


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "0" * 31 + "g", "0" * 31 + "A", "0" * 32 + "\n"])
def test_other_texts_are_no_ids(text: str) -> None:
    assert not is_subnet_id(text)
