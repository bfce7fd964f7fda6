"""The HTTP server around the application: what `eqnet serve` runs, and what benchmarks compare it with."""

from __future__ import annotations

import uvicorn
from starlette.types import ASGIApp

GRACE = 10
"""Seconds that answers under way may take after the signal to end."""


def run_server(app: ASGIApp, *, host: str, port: int) -> None:
    """Until SIGTERM or SIGINT, and then until what is under way is answered."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # `service.observed` logs requests, with what belongs to them
        timeout_graceful_shutdown=GRACE,
        server_header=False,
        ws="none",
    )
