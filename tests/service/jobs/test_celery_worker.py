"""`eqnet serve` and `eqnet worker` as processes of their own, with a real broker between them."""

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

pytestmark = pytest.mark.slow

Start = Callable[..., Any]

SEARCH = {"population": 10, "generations": 10}
LONG = {"population": 200, "generations": 4000}
ENDLESS = {"population": 400, "generations": 10000}


def ask(client: httpx.Client, prefer: str = "wait=500", **search: int) -> httpx.Response:
    request = {"device": "fpga-mixed", "budget": {"weight_bits": 4.0}, "search": search}
    return client.post("/subnets", json=request, headers={"Prefer": prefer})


def searching(client: httpx.Client, location: str) -> bool:
    return client.get(location).json().get("progress", {}).get("stage") == "search"


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def test_builds_on_workers_outlive_every_one_of_them(
    serve: Start, work: Start, redis: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    shared = {
        "redis_url": redis.url,
        "broker_url": redis.broker_url,
        "artifacts_url": f"file://{tmp_path}/shared",
        "queue_limit": 2,
        "lease": 4,
    }
    server = serve(**shared)
    with server.client() as client:
        lacking = until("a look at the workers", lambda: degraded(client))
        assert (lacking["workers"], lacking["builders"]) == (0, 0)
        assert "eqnet worker" in lacking["detail"]
        assert "eqnet_workers 0.0" in client.get("/metrics").text
        # Before there is any worker, builds wait, as many as may.
        first = ask(client, "wait=0", seed=0, **SEARCH)
        assert (first.status_code, first.json()["status"]) == (202, "queued")
        assert first.json()["progress"]["detail"] == lacking["detail"]
        assert ask(client, "wait=0", seed=1, **SEARCH).status_code == 202
        refused = ask(client, seed=2, **SEARCH)
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:eqnet:problem:queue-full")
        assert refused.json()["detail"].startswith("2 builds are waiting")
        assert "retry-after" in refused.headers
        assert server.children("service.jobs.worker") == []

        worker = work(**shared)
        until("the worker", lambda: worker.process.poll() is None and ready(worker))
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: ask(client, seed=0, **SEARCH), range(8)))
        assert {answer.status_code for answer in answers} <= {200}
        assert len({answer.content for answer in answers}) == 1
        assert ask(client, seed=1, **SEARCH).status_code == 200
        assert until("its sign", lambda: not degraded(client)) is True
        told = client.get("/health/ready").json()
        assert (told["status"], told["workers"], told["builders"]) == ("ready", 1, 1)
        assert "eqnet_workers 1.0" in client.get("/metrics").text
        assert 'outcome="ready"} 2.0' in httpx.get(f"{worker.url}/metrics").text

        # Cancelled through the service, stopped on the worker.
        location = ask(client, "respond-async", **ENDLESS).headers["location"]
        until("the search", lambda: searching(client, location))
        (builder,) = worker.children("service.jobs.worker")
        assert client.delete(location).status_code == 204
        until("the builder's end", lambda: gone(builder), 60)
        assert client.get(location).status_code == 404

        # Killed in mid-build: the lease runs out, and another worker gets the build.
        location = ask(client, "respond-async", **LONG).headers["location"]
        until("the search", lambda: searching(client, location))
        (builder,) = worker.children("service.jobs.worker")
        worker.process.kill()
        worker.process.wait()
        until("the builder's end", lambda: gone(builder), 60)
        until("its silence", lambda: degraded(client), 60)
        assert "detail" in client.get(location).json()["progress"]
        second = work(**shared, shutdown_grace=1)  # the longest search may take less than ten seconds
        until("the build", lambda: client.get(location).json()["status"] == "ready", 120)

        # Redis, and with it the broker, away in mid-build and back without its data.
        location = ask(client, "respond-async", seed=3, **LONG).headers["location"]
        until("the search", lambda: searching(client, location))
        redis.stop()
        assert client.get("/health/ready").status_code == 503
        assert client.get(location).status_code == 503
        assert ask(client, seed=0, **SEARCH).status_code == 200  # finished: the artifact store knows it
        redis.start()
        until("readiness", lambda: client.get("/health/ready").status_code == 200)
        until("the build", lambda: status(client, location) == "ready", 120)
        assert ask(client, seed=4, **SEARCH).status_code == 201

        # Ended in order in mid-build: it is handed back, and whoever is next builds it.
        location = ask(client, "respond-async", **ENDLESS).headers["location"]
        until("the search", lambda: searching(client, location))
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(60) == 0
        assert client.get(location).json()["status"] == "queued"
        with Redis.from_url(redis.url) as store:
            assert store.hgetall("eqnet:workers") == {}  # at once, and not by its silence
        until("the news of it", lambda: degraded(client), 60)
        assert client.delete(location).status_code == 204


def ready(worker: Any) -> bool:
    try:
        return httpx.get(f"{worker.url}/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def degraded(client: httpx.Client) -> dict[str, Any] | None:
    """What readiness says, where it is not all well."""
    told = client.get("/health/ready")
    return told.json() if told.status_code == 200 and told.json()["status"] == "degraded" else None


def status(client: httpx.Client, location: str) -> str | None:
    record = client.get(location)
    return record.json()["status"] if record.status_code == 200 else None
