"""What a worker answers over HTTP: `/health/ready` and `/metrics`, for probes and Prometheus."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol, Self


class Observed(Protocol):
    def ready(self) -> str | None: ...

    def exposition(self) -> bytes: ...


class WorkerStatus:
    """Answers on `port` of every address until stopped."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name="status", daemon=True)

    @classmethod
    def start(cls, port: int, observed: Observed) -> Self:
        """Raises OSError where the port is taken."""

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, "text/plain; version=0.0.4; charset=utf-8", observed.exposition())
                elif self.path in ("/health/live", "/health/ready"):
                    reason = None if self.path == "/health/live" else observed.ready()
                    document = {"status": "ready"} if reason is None else {"detail": reason, "status": 503}
                    status = 200 if reason is None else 503
                    self._answer(status, "application/json", json.dumps(document).encode())
                else:
                    self._answer(404, "text/plain", b"see /health/ready and /metrics\n")

            def _answer(self, status: int, media_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Content-Type-Options", "nosniff")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes every few seconds are no news."""

        status = cls(ThreadingHTTPServer(("", port), Handler))
        status._thread.start()
        return status

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
