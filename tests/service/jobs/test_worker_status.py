"""What a worker answers over HTTP, by a real server in front of a worker that is none."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.health.metrics import Metrics
from service.jobs.worker_status import WorkerStatus
from service.security.keys import ApiKey, Scope
from service.settings import Settings


class Worker:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.reason: str | None = None

    def ready(self) -> str | None:
        return self.reason

    def exposition(self) -> bytes:
        return self.metrics.exposition(queued=0, restarts=0)


@contextmanager
def answering(folder: Path, port: int, **settings: Any) -> Iterator[tuple[Worker, httpx.Client]]:
    worker = Worker()
    status = WorkerStatus.start(Settings(data_dir=folder, worker_port=port, **settings), worker)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield worker, client
    finally:
        status.stop()


def test_metrics_need_a_key_and_probes_do_not(tmp_path: Path, port: int) -> None:
    entry, key = ApiKey.make(name="prometheus", scope=Scope.READ)
    with answering(tmp_path, port, api_keys=entry.to_entry()) as (worker, client):
        for path in ("/health/live", "/health/ready"):
            assert client.get(path).status_code == 200
        worker.reason = "no builder runs"
        told = client.get("/health/ready")
        assert (told.status_code, told.json()["detail"]) == (503, worker.reason)
        refused = client.get("/metrics")
        assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
        shown = client.get("/metrics", headers={"Authorization": f"Bearer {key}"})
        assert shown.status_code == 200
        assert 'eqnet_refused_requests_total{reason="unauthorized"} 1.0' in shown.text
        assert shown.headers["x-content-type-options"] == "nosniff"
        missing = client.get("/subnets", headers={"X-API-Key": key})
        assert (missing.status_code, missing.json()["type"]) == (404, "urn:eqnet:problem:not-found")


@pytest.mark.parametrize("anonymous", [False, True])
def test_without_keys_others_are_answered_if_they_may(tmp_path: Path, port: int, anonymous: bool) -> None:
    with answering(tmp_path, port, allow_anonymous=anonymous) as (_, client):
        assert client.get("/metrics").status_code == 200
        with socket.socket() as other:  # another address of this machine, as others would use
            reached = other.connect_ex(("127.0.0.2", port)) == 0
        assert reached is anonymous


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(data_dir=tmp_path, worker_port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            WorkerStatus.start(settings, Worker())
