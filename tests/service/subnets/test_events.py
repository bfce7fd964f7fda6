"""`GET /subnets/{id}/events` of a real server: what a build tells while it runs, and how it ends."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

QUICK = {"population": 10, "generations": 10}
ENDLESS = {"population": 300, "generations": 10000}
"""A search that outlasts every test: only a cancelled build ends."""


def ask(client: httpx.Client, **search: int) -> str:
    """The URL of a subnet that is only now being built."""
    request = {"device": "fpga-mixed", "budget": {"weight_bits": 3.0}, "search": search}
    response = client.post("/subnets", json=request, headers={"Prefer": "respond-async"})
    assert response.status_code == 202, response.text
    return response.headers["location"]


def events(stream: httpx.Response) -> Iterator[tuple[str, Any]]:
    """Name and data of each event."""
    name = ""
    for line in stream.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        if line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_events_lead_to_the_record(client: httpx.Client) -> None:
    location = ask(client, seed=16, **QUICK)
    with client.stream("GET", f"{location}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        told = list(events(stream))
    assert {name for name, _ in told[:-1]} <= {"progress"}
    assert told[-1] == ("ready", client.get(location).json())
    # Whoever comes late, or again, is told at once.
    with client.stream("GET", f"{location}/events") as stream:
        assert list(events(stream)) == told[-1:]
    missing = client.get(f"/subnets/{'0' * 32}/events")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


def test_a_search_tells_how_far_it_is_and_ends_when_deleted(
    client: httpx.Client, server: Any, until: Callable[..., Any]
) -> None:
    location = ask(client, **ENDLESS)
    fractions: list[float] = []
    with client.stream("GET", f"{location}/events") as stream:
        told = events(stream)
        while len(fractions) < 3:
            name, data = next(told)
            assert name == "progress"
            if data["progress"]["stage"] == "search":
                assert data["status"] == "building"
                fractions.append(data["progress"]["fraction"])
        assert fractions == sorted(set(fractions))
        (builder,) = server.children("service.jobs.worker")
        assert client.delete(location).status_code == 204
        *_, last = told
    assert last == ("deleted", {"id": location.rsplit("/", 1)[1]})
    until("the builder's end", lambda: not Path(f"/proc/{builder}").exists())
    # Another one takes its place without being asked for.
    until("a new builder", lambda: server.children("service.jobs.worker"))


def test_clients_that_hang_up_leave_nothing_behind(
    client: httpx.Client, server: Any, until: Callable[..., Any]
) -> None:
    location = ask(client, seed=1, **ENDLESS)
    before = server.connections()
    for _ in range(5):
        with server.client() as other, other.stream("GET", f"{location}/events") as stream:
            next(events(stream))
    until("the end of their connections", lambda: server.connections() <= before)
    assert client.get(location).json()["status"] in ("queued", "building")
    assert client.delete(location).status_code == 204
