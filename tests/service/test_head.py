"""HEAD of a real server: what GET says, without its body."""

from typing import Any

import httpx
import pytest

NOBODY = "0" * 32
VARIES = {"date", "x-request-id"}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/web/page.css",
        "/openapi.json",
        "/health/live",
        "/health/ready",
        "/devices",
        "/devices/fpga-mixed",
        "/devices/no-such",
        "/supernets",
        "/supernets/random-resnet20",
        "/predict-accuracy?device=fpga-mixed&weight_bits=4&activation_bits=4",
        "/predict-accuracy?device=fpga-mixed&weight_bits=99&activation_bits=4",
        "/subnets?limit=0",
        f"/subnets/{NOBODY}",
        f"/subnets/{NOBODY}/events",
        f"/subnets/{NOBODY}/artifacts/model.onnx",
        "/nowhere",
    ],
)
def test_head_says_what_get_says(client: httpx.Client, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert {name: value for name, value in head.headers.items() if name not in VARIES} == {
        name: value for name, value in get.headers.items() if name not in VARIES
    }


def test_the_head_of_a_stream_ends_and_leaves_the_connection_in_order(client: httpx.Client) -> None:
    request = {"device": "fpga-mixed", "search": {"population": 300, "generations": 10_000, "seed": 77}}
    pending = client.post("/subnets", json=request, headers={"Prefer": "respond-async"})
    location = pending.headers["location"]
    for _ in range(3):
        head = client.head(f"{location}/events")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")
        assert client.head(location).status_code == 200
        assert client.get(location).json()["id"] in location
    assert client.delete(location).status_code == 204


def test_heads_are_counted_by_their_route_and_allowed(client: httpx.Client) -> None:
    client.head("/devices/fpga-mixed")
    text = client.get("/metrics").text
    assert 'eqnet_requests_total{method="HEAD",route="/devices/{name}",status="200"}' in text
    refused: Any = client.put("/devices/fpga-mixed")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
