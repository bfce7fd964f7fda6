"""Requests that were answered before: quicker, and otherwise no different."""

import json
from typing import Any

import httpx
import pytest

from service.recent import Recent

REQUEST = {"device": "fpga-mixed", "search": {"population": 10, "generations": 3, "seed": 77}}


def ask(client: httpx.Client, body: bytes, prefer: str = "wait=500") -> httpx.Response:
    headers = {"Content-Type": "application/json", "Prefer": prefer}
    return client.post("/subnets", content=body, headers=headers)


def shown(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """Everything but what differs between any two answers."""
    headers = {k: v for k, v in response.headers.items() if k not in ("date", "x-request-id")}
    return response.status_code, response.content, headers


def test_the_short_way_answers_as_the_long_one(client: httpx.Client) -> None:
    body = json.dumps(REQUEST).encode()
    assert ask(client, body).status_code == 201
    for prefer in ("wait=3", "respond-async", "unheard-of"):
        long_way = ask(client, body + b" " * len(prefer), prefer)  # other bytes, the same request
        assert shown(ask(client, body, prefer)) == shown(long_way)
        assert long_way.headers["cache-status"] == "eqnet; hit"


def test_what_was_deleted_is_not_answered(client: httpx.Client) -> None:
    body = json.dumps(REQUEST | {"budget": {"weight_bits": 7.0}}).encode()
    first = ask(client, body)
    assert [first.status_code, ask(client, body).status_code] == [201, 200]
    assert client.delete(first.headers["location"]).status_code == 204
    again = ask(client, body)
    assert (again.status_code, again.headers["cache-status"]) == (201, "eqnet; fwd=miss; stored")
    assert [file["sha256"] for file in again.json()["artifacts"]] == [
        file["sha256"] for file in first.json()["artifacts"]
    ]


def test_hits_are_counted_on_either_way(client: httpx.Client) -> None:
    def hits() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if 'requests_total{outcome="hit"}' in line)

    body = json.dumps(REQUEST | {"budget": {"weight_bits": 6.0}}).encode()
    ask(client, body)
    before = hits()
    ask(client, body)
    ask(client, body + b" ")
    assert hits() == before + 2


@pytest.mark.parametrize("value", [0, 1])
def test_recent_forgets_what_was_not_used(value: Any) -> None:
    recent: Recent[str, int] = Recent(2)
    recent.put("a", value)
    recent.put("b", value)
    assert recent.get("a") == value
    recent.put("c", value)
    assert [recent.get(key) for key in "abc"] == [value, None, value]
