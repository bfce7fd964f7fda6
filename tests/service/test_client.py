"""The Python client against a real server."""

import base64
import hashlib
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import httpx
import pytest

from service import client as client_module
from service.cli import main
from service.client import Client, ServiceError
from tests.support.servers import answering

Server = Any

SEARCH = {"population": 10, "generations": 10, "seed": 21}


def test_the_way_of_a_deployment_tool(server: Server, tmp_path: Path) -> None:
    with Client(server.url) as client:
        record = client.subnet(device="fpga-mixed", budget={"weight_bits": 3.0}, search=SEARCH)
        assert record["status"] == "ready"
        saved = client.download(record, tmp_path)
        assert {path.name for path in saved} == {file["name"] for file in record["artifacts"]}
        assert client.record(record["id"]) == record
        client.delete(record["id"])
        with pytest.raises(ServiceError) as raised:
            client.record(record["id"])
    assert (raised.value.status, raised.value.code) == (404, "unknown-subnet")


@contextmanager
def cutting(port: int, *, after: int, times: int) -> Iterator[tuple[str, list[bytes]]]:
    """The server at `port` behind a wire that breaks: the first `times` connections bring `after` bytes at
    most. Its URL, and what was asked.
    """
    asked: list[bytes] = []

    def carry(client: socket.socket, limit: float) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            request = client.recv(65536)
            asked.append(request)
            server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            carried = 0
            while carried < limit and (part := server.recv(4096)):
                client.sendall(part)
                carried += len(part)

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            count = 0
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                count += 1
                limit = after if count <= times else math.inf
                threading.Thread(target=carry, args=(client, limit), daemon=True).start()

        accepting = threading.Thread(target=serve, daemon=True)
        accepting.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)
    accepting.join(30)


@pytest.fixture(scope="module")
def record(server: Server) -> dict[str, Any]:
    with Client(server.url) as client:
        return client.subnet(device="fpga-mixed", budget={"weight_bits": 3.0}, search=SEARCH | {"seed": 22})


def whole(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The record with one of its files only."""
    return record | {"artifacts": [file for file in record["artifacts"] if file["name"] == name]}


def test_a_download_goes_on_where_its_connection_broke(
    server: Server, record: dict[str, Any], tmp_path: Path
) -> None:
    port = httpx.URL(server.url).port
    assert port is not None
    with (
        cutting(port, after=60_000, times=2) as (url, asked),
        Client(url) as client,
        Client(server.url) as direct,
    ):
        (saved,) = client.download(whole(record, "model.safetensors"), tmp_path)
        assert saved.read_bytes() == direct.artifact(record["id"], "model.safetensors")
    assert [b"range: bytes=" in request.lower() for request in asked] == [False, True, True]
    assert list(tmp_path.iterdir()) == [saved]


def test_a_download_waits_for_a_service_that_is_starting_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client._PAUSE", 0.0)
    content = b"weights"
    answers = [503, 200, 503, 503, 503, 503, 503, 404]

    class Starting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = answers.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    file = {"name": "w", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    record = {"id": "1", "artifacts": [file]}
    with ThreadingHTTPServer(("127.0.0.1", 0), Starting) as starting:
        threading.Thread(target=starting.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{starting.server_port}") as client:
            assert client.download(record, tmp_path)[0].read_bytes() == content
            for status in (503, 404):
                with pytest.raises(ServiceError) as raised:
                    client.download(record, tmp_path / "none")
                assert raised.value.status == status
        starting.shutdown()
    assert not answers, "five attempts while it starts, one where there is nothing"


def test_a_download_that_fails_leaves_what_was_there(
    server: Server, record: dict[str, Any], tmp_path: Path
) -> None:
    port = httpx.URL(server.url).port
    assert port is not None
    old = tmp_path / "model.safetensors"
    old.write_bytes(b"the one before")
    with (
        cutting(port, after=600, times=99) as (url, _),
        Client(url) as client,
        pytest.raises(httpx.TransportError),
    ):
        client.download(whole(record, "model.safetensors"), tmp_path)
    other = whole(record, "model.safetensors")
    other["artifacts"] = [other["artifacts"][0] | {"sha256": "0" * 64}]
    with Client(server.url) as client, pytest.raises(ValueError, match="damaged on the way"):
        client.download(other, tmp_path)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"the one before"


def test_a_build_may_take_longer_than_an_answer_in_general(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client._PAUSE", 0.0)
    preferred: list[str] = []

    class Building(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            preferred.append(self.headers["Prefer"])
            time.sleep(3)
            self.answer("building")

        def do_GET(self) -> None:
            self.answer("ready")

        def answer(self, status: str) -> None:
            content = json.dumps({"id": "1", "status": status}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Building) as building:
        threading.Thread(target=building.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{building.server_port}", timeout=2) as client:
            assert client.subnet(device="fpga-mixed", wait=600)["status"] == "ready"
        building.shutdown()
    assert preferred == ["wait=30"]


class Limited(BaseHTTPRequestHandler):
    """Gives the `answers` in turn: a document, or the code of a 429 and the seconds of its Retry-After."""

    answers: ClassVar[list[Any]]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        document, wait = self.answers.pop(0), None
        if isinstance(document, tuple):
            code, wait = document
            document = {"type": f"urn:eqnet:problem:{code}", "detail": "ask again"}
        content = json.dumps(document).encode()
        self.send_response(200 if wait is None else 429)
        self.send_header("Content-Length", str(len(content)))
        if wait is not None:
            self.send_header("Retry-After", str(wait))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815


def test_a_key_with_a_rate_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slept: list[float] = []
    monkeypatch.setattr(
        "service.client.time", SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    )
    content = b'"weights"'
    file = {"name": "w", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    building, ready = {"id": "1", "status": "building"}, {"id": "1", "status": "ready", "artifacts": [file]}
    with ThreadingHTTPServer(("127.0.0.1", 0), Limited) as limiting:
        threading.Thread(target=limiting.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{limiting.server_port}") as client:
            limited = "rate-limited"
            Limited.answers = [(limited, 7), building, *[(limited, 1)] * 9, ready, (limited, 3), "weights"]
            record = client.subnet(device="fpga-mixed", wait=60)
            client.download(record, tmp_path)
            assert slept == [7, client_module._PAUSE, *[1] * 9, 3]
            for refusal in ((limited, 61), ("queue-full", 1)):  # later than it may be; not for the key's rate
                Limited.answers = [refusal]
                with pytest.raises(ServiceError) as raised:
                    client.subnet(device="fpga-mixed", wait=60)
                assert (raised.value.code, raised.value.retry_after) == refusal
        limiting.shutdown()
    assert not Limited.answers


def test_no_waiting_is_asked_for_at_once() -> None:
    asked: list[Any] = []
    with (
        answering('{"id": "1", "status": "queued"}', asked=asked) as url,
        Client(url) as client,
        pytest.raises(TimeoutError),
    ):
        client.subnet(device="fpga-mixed", wait=-1)
    assert [sent["Prefer"] for sent in asked] == ["wait=0"]


def test_a_problem_is_said_once() -> None:
    errors = [{"pointer": "/a", "detail": "is wrong"}, {"pointer": "/b", "detail": "is bad"}]
    said = str(ServiceError(422, {"detail": "/a: is wrong (and 1 more)", "errors": errors}))
    assert said == "/a: is wrong (and 1 more)\n  /b: is bad"


def test_a_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    with answering('{"devices": []}', asked=asked) as url:
        with Client(url, api_key="k-1") as client:
            client.devices()
        monkeypatch.setenv("EQNET_API_KEY", " k-2\n")
        assert main(["devices", "--url", url]) == 0
    assert [sent["Authorization"] for sent in asked] == ["Bearer k-1", "Bearer k-2"]


def test_a_failed_build_is_raised() -> None:
    problem = {"type": "urn:eqnet:problem:proof", "status": 500, "detail": "it differs"}
    with (
        answering(json.dumps({"id": "1", "status": "failed", "problem": problem})) as url,
        Client(url) as client,
        pytest.raises(ServiceError, match="it differs") as raised,
    ):
        client.subnet(device="fpga-mixed")
    assert (raised.value.status, raised.value.code) == (500, "proof")


def test_an_artifact_with_another_digest_is_not_handed_out() -> None:
    digest = base64.b64encode(hashlib.sha256(b"another").digest()).decode()
    with (
        answering("{}", headers={"Content-Digest": f"sha-256=:{digest}:"}) as url,
        Client(url) as client,
        pytest.raises(ValueError, match="damaged on the way"),
    ):
        client.artifact("1", "model.onnx")


def test_predictions_devices_supernets(server: Server) -> None:
    with Client(server.url) as client:
        assert client.devices()
        (supernet,) = client.supernets()
        count = sum(layer["searchable"] for layer in supernet["layers"])
        answer = client.predict_accuracy(
            supernet=None, device="fpga-mixed", weight_bits=[3] * count, activation_bits=4
        )
    assert answer["cost"]["weight_bits"] == 3.0


def test_problems_are_raised_with_their_code(server: Server) -> None:
    with Client(server.url) as client, pytest.raises(ServiceError, match="weight_bits") as raised:
        client.subnet(device="fpga-mixed", budget={"weight_bits": 1.0})
    assert raised.value.code == "infeasible-budget"
    assert raised.value.document["nearest"] == {"weight_bits": 2.0}
