"""What `/subnets` does not do, and what it says instead: problems that say what to change."""

import json
from typing import Any

import httpx
import pytest

QUICK = {"population": 10, "generations": 10}
PROFILE = {
    "weight": {"bits": [8], "granularity": "per_channel", "symmetry": "symmetric"},
    "activation": {"bits": [8], "symmetry": "asymmetric"},
}


def ask(client: httpx.Client, request: dict[str, Any], **headers: str) -> httpx.Response:
    return client.post("/subnets", json=request, headers=headers)


def test_layers_that_a_device_cannot_take_are_named(client: httpx.Client) -> None:
    """This bundle has no ranges: its only ONNX file holds 4-bit weights in int4, unsigned or not."""
    pinned = {"layer2.0.conv1": {"weight_bits": 3}}
    response = ask(client, {"device": "tensorrt", "pinned": pinned, "search": QUICK}, Prefer="wait=500")
    problem = response.json()
    assert response.status_code == 422, response.text
    assert problem["type"].endswith(":unsupported-target")
    assert [error["pointer"] for error in problem["errors"]] == ["/layers/layer2.0.conv1/weight"]
    assert "is in int4, which tensorrt does not take" in problem["detail"]


def test_an_infeasible_budget_names_the_nearest_and_that_one_is_feasible(
    client: httpx.Client, wanted: dict[str, Any]
) -> None:
    response = ask(client, wanted | {"budget": {"weight_bits": 1.5, "activation_bits": 3.0}})
    problem = response.json()
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"].endswith("infeasible-budget")
    assert [error["pointer"] for error in problem["errors"]] == ["/budget/weight_bits"]
    nearest = ask(client, wanted | {"budget": problem["nearest"]}, Prefer="wait=500")
    assert nearest.status_code == 201, nearest.text
    assert nearest.json()["cost"]["weight_bits"] == problem["nearest"]["weight_bits"]


def _with(wanted: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    request: dict[str, Any] = json.loads(json.dumps(wanted))
    *parents, last = path.split("/")[1:]
    target = request
    for parent in parents:
        target = target.setdefault(parent, {})
    target[last] = value
    return request


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/profile/weight/bits", []),
        ("/profile/weight/bits", [9]),
        ("/profile/weight/bits", ["4"]),
        ("/profile/weight/bits", [4.5]),
        ("/profile/weight/bits", True),
        ("/profile/weight/granularity", "per_pixel"),
        ("/profile/activation/symmetry", None),
        ("/profile/activation/signed", "yes"),
        ("/profile/extra", 1),
        ("/budget/weight_bits", "3"),
        ("/budget/weight_bits", -1),
        ("/budget/weight_bits", 0),
        ("/budget/bit_operations", 1e300),
        ("/budget/model_bytes", 1.5),
        ("/budget/model_bytes", True),
        ("/budget/model_bytes", 10**30),
        ("/budget/colour", 1),
        ("/search/population", 10**9),
        ("/search/seed", -1),
        ("/pinned", []),
        ("/pinned/nowhere", {"weight_bits": 4}),
        ("/pinned/nowhere", {"weight_bits": None}),
        ("/pinned/nowhere", {}),
        ("/pinned/layer1.0.conv1/weight_bits", 1),
        ("/supernet", "no-such"),
        ("/supernet", 3),
        ("/artifacts", []),
        ("/artifacts", ["../../etc/passwd"]),
        ("/artifacts", ["model.integer.onnx"]),
        ("/verify", "true"),
        ("/more", {}),
    ],
)
def test_what_is_wrong_is_pointed_at(
    client: httpx.Client, wanted: dict[str, Any], pointer: str, value: Any
) -> None:
    response = ask(client, _with(wanted, pointer, value))
    problem = response.json()
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == 422
    assert problem["detail"]
    assert any(error["pointer"].startswith(pointer) for error in problem["errors"]), problem


def test_a_search_too_long_as_a_whole_is_pointed_at(client: httpx.Client, wanted: dict[str, Any]) -> None:
    response = ask(client, wanted | {"search": {"population": 2000, "generations": 10_000}})
    assert response.status_code == 422
    problem = response.json()
    pointers = [error["pointer"] for error in problem["errors"]]
    assert pointers == ["/search/population", "/search/generations"]
    assert problem["detail"].startswith("/search/population: ")
    assert problem["detail"].endswith(" (and 1 more)")


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"device": "tensorrt", "profile": PROFILE},
        {"configuration": {"granularity": "per_tensor"}},
        {"device": "no-such-device"},
        {"device": "tensorrt", "configuration": {"granularity": "per_tensor"}},
        [],
        "tensorrt",
    ],
)
def test_requests_without_sense_are_told_what_to_change(client: httpx.Client, request_: Any) -> None:
    response = client.post("/subnets", json=request_)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["errors"]


def test_a_configuration_of_another_network_is_refused(client: httpx.Client, record: dict[str, Any]) -> None:
    configuration = record["configuration"] | {"layers": record["configuration"]["layers"][1:]}
    response = ask(client, {"configuration": configuration})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/configuration/layers"


def test_narrow_range_with_asymmetric_weights_is_refused(
    client: httpx.Client, record: dict[str, Any], wanted: dict[str, Any]
) -> None:
    weight = wanted["profile"]["weight"] | {"symmetry": "asymmetric", "narrow_range": True}
    configuration = record["configuration"] | {"weight_symmetry": "asymmetric", "narrow_range": True}
    for request, pointer in (
        ({"profile": wanted["profile"] | {"weight": weight}}, "/profile/weight/narrow_range"),
        ({"configuration": configuration}, "/configuration/narrow_range"),
    ):
        response = ask(client, request)
        assert response.status_code == 422
        problem = response.json()
        (error,) = problem["errors"]
        assert error["pointer"] == pointer
        assert "use symmetric weights" in error["detail"]
        assert problem["detail"] == f"{pointer}: {error['detail']}"


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 422),
        (b'{"device": "tensorrt", "device": "fpga-mixed"}', "application/json", 422),
        (b'{"device": "tensorrt", "budget": {"weight_bits": NaN}}', "application/json", 422),
        (b'{"device": "tensorrt", "budget": {"weight_bits": 1e999}}', "application/json", 422),
        (b'{"device": "\\ud800"}', "application/json", 422),
        (b"[" * 30_000, "application/json", 422),
        (b"{}", "text/plain", 415),
        (b"device=tensorrt", "application/x-www-form-urlencoded", 415),
        (b" " * 70_000, "application/json", 413),
    ],
)
def test_bodies_that_cannot_be_read(
    client: httpx.Client, content: bytes, content_type: str, status: int
) -> None:
    response = client.post("/subnets", content=content, headers={"Content-Type": content_type})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"


def test_a_body_without_length_is_limited_too(client: httpx.Client) -> None:
    response = client.post(
        "/subnets", content=(b" " * 10_000 for _ in range(8)), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/subnets/" + "0" * 32),
        ("GET", "/subnets/not-an-id"),
        ("DELETE", "/subnets/" + "0" * 32),
        ("GET", "/subnets/%2e%2e%2fserver.lock"),
        ("GET", "/subnets/" + "0" * 32 + "/artifacts/model.onnx"),
        ("GET", "/nowhere"),
    ],
)
def test_what_is_not_there_is_404(client: httpx.Client, method: str, path: str) -> None:
    response = client.request(method, path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("name", ["record.json", "model.integer.onnx", "..%2frecord.json", "%00"])
def test_only_the_record_s_own_files_are_handed_out(
    client: httpx.Client, record: dict[str, Any], name: str
) -> None:
    assert client.get(f"/subnets/{record['id']}/artifacts/{name}").status_code == 404


@pytest.mark.parametrize("query", ["limit=0", "limit=100000", "limit=x", "cursor=nonsense", "cursor=YWJj"])
def test_pages_that_make_no_sense_are_told(client: httpx.Client, query: str) -> None:
    response = client.get(f"/subnets?{query}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == f"/{query.split('=')[0]}"
