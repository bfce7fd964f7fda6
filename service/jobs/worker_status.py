"""What a worker answers over HTTP: probes and metrics, let through by the same rules as in a web process."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Protocol, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.connection import BoundedConnection
from service.errors import ProblemError, install_error_handlers, problem_response
from service.health.metrics import Metrics
from service.observed import Observed
from service.security.access import AccessControl
from service.settings import Settings

logger = logging.getLogger("eqnet.worker")


class Reported(Protocol):
    @property
    def metrics(self) -> Metrics: ...

    def ready(self) -> str | None:
        """None, or what is wrong."""

    def exposition(self) -> bytes: ...


class WorkerStatus:
    """Answers on a port until stopped, in a thread of its own."""

    def __init__(self, server: uvicorn.Server, listening: socket.socket) -> None:
        self._server = server
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="status", daemon=True
        )

    @classmethod
    def start(cls, settings: Settings, reported: Reported) -> Self:
        """On `settings.worker_port` of every address; of loopback only, where everybody would see the metrics
        and nobody has said that they may.

        Raises:
            KeyEntryError, KeyFileError: the API keys cannot be used.
            OSError: the port is taken.
        """
        keys = settings.keys
        host = "0.0.0.0" if keys.required or settings.allow_anonymous else "127.0.0.1"
        if host == "127.0.0.1":
            logger.warning(
                "without API keys, port %d answers this machine only: set EQNET_API_KEYS or "
                "EQNET_API_KEYS_FILE, or EQNET_ALLOW_ANONYMOUS=true to let everybody see the metrics",
                settings.worker_port,
            )
        app = _application(reported)
        app.add_middleware(
            AccessControl,
            keys=keys,
            anonymous=settings.allow_anonymous,
            rate=settings.rate_limit,
            metrics=reported.metrics,
        )
        app.add_middleware(Observed, metrics=reported.metrics)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            http=BoundedConnection,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        status = cls(uvicorn.Server(config), socket.create_server((host, settings.worker_port)))
        status._thread.start()
        return status

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


def _application(reported: Reported) -> Starlette:
    # Not `async`: what they ask is answered by the event loop of the builds.
    def live(_: Request) -> Response:
        return JSONResponse({"status": "live"})

    def ready(_: Request) -> Response:
        reason = reported.ready()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return problem_response(ProblemError(503, "not-ready", reason, headers={"Retry-After": "2"}))

    def metrics(_: Request) -> Response:
        return Response(reported.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app = Starlette(
        routes=[Route("/health/live", live), Route("/health/ready", ready), Route("/metrics", metrics)]
    )
    install_error_handlers(app)
    return app
