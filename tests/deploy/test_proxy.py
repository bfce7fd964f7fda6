"""docker/nginx.conf in a real nginx, where this machine has one, in front of no replica at all."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import free_port

CONFIGURATION = Path(__file__).parents[2] / "docker" / "nginx.conf"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Its port."""
    assert NGINX is not None
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    text = CONFIGURATION.read_text(encoding="utf-8")
    for ours, here in {
        "pid /run": f"pid {folder}",
        "/var/cache/nginx": str(folder),
        "/dev/stderr": f"{folder}/error.log",
        "listen 8080": f"listen 127.0.0.1:{port}",
        "http://api:8000": f"http://127.0.0.1:{free_port()}",
    }.items():
        assert ours in text
        text = text.replace(ours, here)
    file = folder / "nginx.conf"
    file.write_text(text, encoding="utf-8")
    process = subprocess.Popen([NGINX, "-c", file, "-e", folder / "error.log", "-g", "daemon off;"])
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield port
    process.terminate()
    process.wait()


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        (b"GET /health/live HTTP/1.1\r\nHost: h\r\n\r\n", 503, "not-ready"),
        (b"POST /subnets HTTP/1.1\r\nHost: h\r\nContent-Length: 20000000\r\n\r\n", 413, "body-too-large"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431, "headers-too-large"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 431, "headers-too-large"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "malformed-http"),
    ],
    ids=["nobody there", "large body", "large header", "large path", "TLS"],
)
def test_what_the_proxy_refuses_itself_is_a_problem_too(
    proxy: int, request_: bytes, status: int, kind: str
) -> None:
    with socket.create_connection(("127.0.0.1", proxy), timeout=60) as connection:
        connection.sendall(request_)
        answer = b""
        while not answer.endswith(b"}") and (part := connection.recv(4096)):
            answer += part
    head, body = answer.decode().split("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert "Content-Type: application/problem+json" in head
    assert ("Retry-After: 2" in head) == (status == 503)
    problem = json.loads(body)
    assert (problem["status"], problem["type"]) == (status, f"urn:eqnet:problem:{kind}")
