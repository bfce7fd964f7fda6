"""How the server ends."""

import json
import threading
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest

from service.subnets.preference import MAX_WAIT

pytestmark = pytest.mark.slow

LONG = {"device": "fpga-mixed", "search": {"population": 400, "generations": 10_000, "seed": 1}}
QUICK = {"device": "fpga-mixed", "search": {"population": 10, "generations": 3}}


def test_who_waits_is_answered_and_the_build_handed_back(serve: Callable[..., Any]) -> None:
    server = serve(shutdown_grace=2)
    answers: list[httpx.Response] = []

    def wait() -> None:
        with server.client() as client:
            prefer = {"Prefer": f"wait={MAX_WAIT:.0f}"}
            answers.append(client.post("/subnets", json=LONG, headers=prefer))

    waiting = threading.Thread(target=wait)
    waiting.start()
    with server.client() as client:
        while not client.get("/subnets").json()["subnets"]:
            pass
    assert server.stop() in (0, -15)
    waiting.join(30)
    (answer,) = answers
    assert answer.status_code == 202
    assert answer.json()["status"] in ("queued", "building")
    assert "retry-after" in answer.headers

    # Taken up again after the start, and ended by DELETE like any other.
    server = serve()
    with server.client() as client:
        while client.get(answer.headers["location"]).json()["status"] != "building":
            pass
        assert client.delete(answer.headers["location"]).status_code == 204


def test_who_follows_a_build_is_sent_away_at_once(serve: Callable[..., Any]) -> None:
    """The grace is for answers that are nearly there: a stream would use it up, every time."""
    server = serve(shutdown_grace=3600)
    with server.client() as client:
        prefer = {"Prefer": "respond-async"}
        location = client.post("/subnets", json=LONG, headers=prefer).headers["location"]
        with client.stream("GET", f"{location}/events") as stream:
            told = stream.iter_lines()
            assert next(told) == "event: progress"
            server.process.terminate()
            lines = list(told)
    last = lines[len(lines) - lines[::-1].index("event: reconnect") - 1 :]
    assert json.loads(last[1].removeprefix("data: ")) == {"id": location.rsplit("/", 1)[1]}
    assert int(last[2].removeprefix("retry: ")) > 0
    assert server.process.wait(60) in (0, -15)

    server = serve()
    with server.client() as client, client.stream("GET", f"{location}/events") as stream:
        assert next(stream.iter_lines()) == "event: progress"
        assert client.delete(location).status_code == 204


def test_fronts_that_the_end_cuts_short_are_told_to_ask_again(serve: Callable[..., Any]) -> None:
    """Those that are computed, and those that wait for their turn."""
    server = serve(shutdown_grace=1)
    connections = [HTTPConnection(server.url.removeprefix("http://"), timeout=60) for _ in range(4)]
    for seed, connection in enumerate(connections):
        connection.request("GET", f"/pareto?device=fpga-mixed&points=100&seed={seed}")
    with server.client() as client:
        client.get("/health/live")  # it has read what came before
    assert server.stop() in (0, -15)
    answers = [connection.getresponse() for connection in connections]
    assert [answer.status for answer in answers] == [503] * 4
    assert all(answer.headers["Retry-After"] for answer in answers)
    assert {json.load(answer)["type"] for answer in answers} == {"urn:eqnet:problem:ending"}
    assert "Traceback" not in server.log()


def test_what_is_nearly_done_is_finished(serve: Callable[..., Any]) -> None:
    server = serve(shutdown_grace=300)
    answers: list[httpx.Response] = []

    def wait() -> None:
        with server.client() as client:
            answers.append(client.post("/subnets", json=QUICK, headers={"Prefer": "wait=500"}))

    waiting = threading.Thread(target=wait)
    with server.client() as client:
        waiting.start()
        while not client.get("/subnets").json()["subnets"]:
            pass
        server.process.terminate()
    waiting.join(300)
    assert server.process.wait(60) in (0, -15)
    assert [answer.status_code for answer in answers] == [201]
