"""What users see of a server that was stopped, killed or damaged: real processes throughout."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.data_folder import DataFolder

pytestmark = pytest.mark.slow

Serve = Callable[..., Any]
Until = Callable[..., Any]

SEARCH = {"population": 10, "generations": 10}
LONG_SEARCH = {"population": 400, "generations": 1000}
"""Some seconds: long enough to be interrupted, short enough to be waited for."""


def request(**members: Any) -> dict[str, Any]:
    return {"device": "fpga-mixed", "budget": {"weight_bits": 4.0}, "search": SEARCH} | members


def ask(client: httpx.Client, prefer: str = "wait=500", **members: Any) -> httpx.Response:
    return client.post("/subnets", json=request(**members), headers={"Prefer": prefer})


def files(client: httpx.Client, record: dict[str, Any]) -> dict[str, bytes]:
    return {file["name"]: client.get(file["url"]).content for file in record["artifacts"]}


def building(client: httpx.Client, location: str) -> bool:
    return bool(client.get(location).json()["status"] == "building")


linux_only = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")


@linux_only
def test_a_killed_server_resumes_its_build_and_still_has_everything(
    serve: Serve, tmp_path: Path, until: Until
) -> None:
    server = serve()
    with server.client() as client:
        unverifiable = ask(client, verify=True)
        assert unverifiable.status_code == 422
        assert unverifiable.json()["errors"][0]["pointer"] == "/verify"
        done = ask(client).json()
        kept = files(client, done)
        pending = ask(client, "respond-async", search=LONG_SEARCH).headers["location"]
        until("the build", lambda: building(client, pending))
    builders = server.children("service.jobs.worker")
    server.process.kill()
    server.process.wait()
    until("the builders' end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in builders), 60)

    server = serve()
    with server.client() as client:
        again = ask(client)
        assert (again.status_code, again.json()) == (200, done)
        assert again.headers["cache-status"] == "eqnet; hit"
        assert files(client, done) == kept
        # Nobody asks again for what was in the making; it gets ready all the same.
        until("the interrupted build", lambda: client.get(pending).json()["status"] == "ready")

    assert server.stop() in (0, -signal.SIGTERM)


@linux_only
def test_killed_builders_are_replaced_and_the_queue_is_bounded(serve: Serve, until: Until) -> None:
    server = serve(queue_limit=0)
    with server.client() as client:
        pending = ask(client, "respond-async", search=LONG_SEARCH).headers["location"]
        until("the build", lambda: building(client, pending))
        refused = ask(client, search={"seed": 3})
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:eqnet:problem:queue-full")
        assert "retry-after" in refused.headers
        # The same request takes no place in the queue: it waits for the build that runs.
        assert ask(client, "wait=0", search=LONG_SEARCH).status_code == 202

        (builder,) = server.children("service.jobs.worker")
        os.kill(builder, signal.SIGKILL)
        record = until(
            "the build",
            lambda: (found := client.get(pending).json())["status"] in ("ready", "failed") and found,
        )
        assert record["status"] == "ready", record
        assert server.children("service.jobs.worker") != [builder]
        assert "eqnet_builder_restarts 1.0" in client.get("/metrics").text


def test_two_replicas_build_once(serve: Serve, redis: Any, tmp_path: Path, until: Until) -> None:
    shared = {"redis_url": redis.url, "artifacts_url": f"file://{tmp_path}/shared"}
    servers = [serve(**shared) for _ in range(2)]
    clients = [server.client() for server in servers]
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda number: ask(clients[number % 2]), range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 11 + [201]
    assert len({answer.content for answer in answers}) == 1
    record = answers[0].json()
    assert files(clients[0], record) == files(clients[1], record)

    # Cancelled through one replica, stopped in whichever builds it.
    pending = ask(clients[0], "respond-async", search=LONG_SEARCH | {"generations": 10000})
    location = pending.headers["location"]
    until("the build", lambda: building(clients[1], location))
    assert clients[1].delete(location).status_code == 204
    until(
        "the end",
        lambda: 'eqnet_builds_total{outcome="cancelled"} 1.0' in clients[0].get("/metrics").text,
        60,
    )
    assert clients[0].get(location).status_code == 404
    for client in clients:
        client.close()


def test_a_second_server_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with DataFolder(tmp_path):
        second = subprocess.run(
            [sys.executable, "-m", "service.cli", "serve", "--port", "1"],
            env=os.environ | {"EQNET_DATA_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert second.returncode == 1
    assert "another server uses the data folder" in second.stderr
    assert "Traceback" not in second.stderr
