"""`/predict-accuracy` and `/pareto` of a real server."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import Request
from starlette.types import Message

from service.errors import ProblemError
from service.predictions.endpoints import predict_many
from service.supernets.catalogue import SupernetCatalogue
from service.turns import Turns

FORM = {
    "weight_granularity": "per_channel",
    "weight_symmetry": "symmetric",
    "activation_symmetry": "asymmetric",
}


def test_one_configuration_by_form(client: httpx.Client) -> None:
    response = client.get("/predict-accuracy", params=FORM | {"weight_bits": 3, "activation_bits": "4"})
    assert response.status_code == 200, response.text
    answer = response.json()
    low, high = answer["prediction_interval"]
    assert 0 <= low <= answer["predicted_accuracy"] <= high <= 1
    assert answer["cost"]["weight_bits"] == 3.0
    assert answer["cost"]["activation_bits"] == 4.0
    assert {layer["weight_bits"] for layer in answer["configuration"]["layers"]} == {3}


def test_a_number_and_a_list_of_it_are_the_same(client: httpx.Client) -> None:
    number = client.get("/predict-accuracy", params=FORM | {"weight_bits": 3, "activation_bits": 4})
    listed = client.get(
        "/predict-accuracy",
        params=FORM | {"weight_bits": ",".join("3" * 18), "activation_bits": ", ".join("4" * 18)},
    )
    assert listed.json() == number.json()


def test_a_device_gives_the_form(client: httpx.Client) -> None:
    answer = client.get("/predict-accuracy?device=tensorrt&weight_bits=8&activation_bits=8").json()
    assert answer["configuration"]["signed"] is True
    assert answer["configuration"]["weight_symmetry"] == "symmetric"


def test_costs_of_a_signed_device_follow_from_the_layers(client: httpx.Client) -> None:
    cost = client.get("/predict-accuracy?device=tensorrt&weight_bits=8&activation_bits=8").json()["cost"]
    layers = client.get("/supernets").json()["supernets"][0]["layers"]
    bits = {layer["name"]: 7 if layer["nonnegative"] else 8 for layer in layers}
    searched = [layer for layer in layers if layer["searchable"]]
    elements = sum(layer["inputs"] for layer in searched)
    average = sum(layer["inputs"] * bits[layer["name"]] for layer in searched) / elements
    assert cost["activation_bits"] == average < 8
    assert cost["bit_operations"] == sum(layer["macs"] * 8 * bits[layer["name"]] for layer in layers)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"weight_bits": "9"}, "/weight_bits"),
        ({"weight_bits": "3,4"}, "/weight_bits"),
        ({"weight_bits": ",".join("3" * 1001)}, "/weight_bits"),
        ({"activation_bits": ""}, "/activation_bits"),
        ({"activation_bits": "four"}, "/activation_bits"),
        ({"weight_granularity": "per_pixel"}, "/weight_granularity"),
        ({"weight_symmetry": None}, "/weight_symmetry"),
        ({"supernet": "no-such"}, "/supernet"),
        ({"device": "tensorrt"}, "/weight_granularity"),
        ({"device": "no-such"} | dict.fromkeys(FORM), "/device"),
        ({"narrow_range": True, "weight_symmetry": "asymmetric"}, "/narrow_range"),
    ],
)
def test_what_is_wrong_is_pointed_at(client: httpx.Client, change: dict[str, Any], pointer: str) -> None:
    query = FORM | {"weight_bits": "3", "activation_bits": "4"} | change
    response = client.get(
        "/predict-accuracy", params={name: value for name, value in query.items() if value is not None}
    )
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["errors"][0]["pointer"] == pointer


def test_a_list_is_answered_in_order(client: httpx.Client) -> None:
    queries = [FORM | {"weight_bits": bits, "activation_bits": [bits] * 18} for bits in (8, 2, 5)]
    queries.append({"device": "tensorrt", "weight_bits": 8, "activation_bits": 8})
    answers = client.post("/predict-accuracy", json=queries).json()
    assert [answer["cost"]["weight_bits"] for answer in answers] == [8.0, 2.0, 5.0, 8.0]
    single = client.get("/predict-accuracy", params=FORM | {"weight_bits": 5, "activation_bits": 5})
    assert answers[2] == single.json()


def test_ten_thousand_are_answered_and_one_more_is_not(client: httpx.Client) -> None:
    query = FORM | {"weight_bits": [3] * 18, "activation_bits": [4] * 18}
    answers = client.post("/predict-accuracy", json=[query] * 10_000)
    assert answers.status_code == 200, answers.text[:500]
    assert len(answers.json()) == 10_000
    assert client.post("/predict-accuracy", json=[query] * 10_001).status_code == 422


def test_a_fault_in_a_list_is_pointed_at(client: httpx.Client) -> None:
    good = FORM | {"weight_bits": 3, "activation_bits": 4}
    response = client.post("/predict-accuracy", json=[good, good | {"weight_bits": [3, 4]}])
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/1/weight_bits"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"weight_bits": 9}, "/0/weight_bits"),
        ({"activation_bits": "four"}, "/0/activation_bits"),
        ({"activation_bits": [4, 9]}, "/0/activation_bits/1"),
        ({"one": 1}, "/0/one"),
    ],
)
def test_a_fault_has_one_error_at_its_place_in_the_body(
    client: httpx.Client, change: dict[str, Any], pointer: str
) -> None:
    query = FORM | {"weight_bits": 3, "activation_bits": 4} | change
    answer = client.post("/predict-accuracy", json=[query]).json()
    assert [error["pointer"] for error in answer["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        (b'{"device": "tensorrt", "device": "tensorrt"}', "", "given twice"),
        (b'{"device": "tensorrt", "weight_bits": NaN}', "", "NaN"),
        (b'{"device": "tensorrt", "weight_bits": 9, "activation_bits": 3}', "/9000/weight_bits", ""),
    ],
)
def test_a_fault_in_a_long_list_is_pointed_at(
    client: httpx.Client, body: bytes, pointer: str, detail: str
) -> None:
    good = b'{"device": "tensorrt", "weight_bits": 3, "activation_bits": 3}'
    response = client.post(
        "/predict-accuracy",
        content=b"[%b]" % b",".join([good] * 9000 + [body]),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"].startswith(pointer)
    assert detail in response.json()["detail"]


def test_of_a_list_full_of_faults_the_first_are_told(client: httpx.Client) -> None:
    response = client.post("/predict-accuracy", json=[{"device": "tensorrt"}] * 1000)
    assert response.status_code == 422
    errors = response.json()["errors"]
    assert [error["pointer"] for error in errors[:3]] == [
        "/0/weight_bits",
        "/0/activation_bits",
        "/1/weight_bits",
    ]
    assert len(errors) == 50


@pytest.mark.parametrize("body", ["", "[]", "{}", "null", '"list"', "[1]"])
def test_what_is_no_list_of_queries_is_told(client: httpx.Client, body: str) -> None:
    response = client.post("/predict-accuracy", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text


def test_only_long_lists_wait_for_their_turn(bundle: Path) -> None:
    query = FORM | {"weight_bits": 3, "activation_bits": 4}
    request = Request({"type": "http"}, _nobody_hangs_up)

    async def main() -> None:
        turns = Turns(1, waiting=0)
        state: Any = SimpleNamespace(supernets=SupernetCatalogue.open([str(bundle)]), turns=turns)
        async with turns.turn(request):
            answer = await predict_many([query] * 100, state, request)  # type: ignore[arg-type]
            assert len(json.loads(answer.body)) == 100
            with pytest.raises(ProblemError) as raised:
                await predict_many([query] * 101, state, request)  # type: ignore[arg-type]
        assert raised.value.status == 503

    asyncio.run(main())


async def _nobody_hangs_up() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def test_the_front_rises_with_the_budget(client: httpx.Client) -> None:
    front = client.get("/pareto", params={"device": "fpga-mixed", "points": 4, "seed": 3}).json()
    accuracies = [point["predicted_accuracy"] for point in front["points"]]
    assert len(accuracies) == 4
    assert accuracies == sorted(accuracies)
    for point in front["points"]:
        assert point["cost"]["weight_bits"] <= point["budget"]["weight_bits"] + 1e-9
        assert len(point["configuration"]["layers"]) == 18


def test_the_front_of_a_described_device(client: httpx.Client) -> None:
    query = FORM | {"weight_bits": "4,8", "axis": "weights", "points": 3}
    front = client.get("/pareto", params=query).json()
    assert front["profile"]["weight"]["bits"] == [4, 8]
    bits = {layer["weight_bits"] for point in front["points"] for layer in point["configuration"]["layers"]}
    assert bits <= {4, 8}


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("", "/weight_granularity"),
        ("device=tensorrt&points=1", "/points"),
        ("device=tensorrt&weight_bits=8", "/weight_bits"),
        ("device=tensorrt&activation_bits=8", "/activation_bits"),
        ("axis=up", "/axis"),
    ],
)
def test_fronts_that_make_no_sense_are_told(client: httpx.Client, query: str, pointer: str) -> None:
    response = client.get(f"/pareto?{query}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer
