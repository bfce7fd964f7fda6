"""What is noticed of every request: counted, timed, and answered with the headers that every answer has."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import answer_defect
from service.health.metrics import Metrics
from service.security.headers import secured

_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")


class Observed:
    """The outermost layer: a defect anywhere below becomes a problem here, with the headers of any answer."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = secured(message["headers"])
            await send(message)

        try:
            await self._app(scope, receive, observe)
        except Exception as error:
            if status:  # half an answer is out: only the connection's end can tell
                raise
            await answer_defect(scope, error)(scope, receive, observe)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, status or 499).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)
