"""What a request may look like at all, decided before anything of it is parsed; plain ASGI."""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ProblemError, problem_response
from service.health.metrics import Metrics

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)

_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")


class RequestLimits:
    """413 for bodies over `max_body` bytes (`exempt`: over that path's own limit), 415 for bodies that do not
    say they are JSON.
    """

    def __init__(self, app: ASGIApp, *, max_body: int, exempt: Mapping[str, int]) -> None:
        self._app = app
        self._max_body = max_body
        self._exempt = dict(exempt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        limit = self._exempt.get(scope["path"], self._max_body)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:18]) > limit:
            await problem_response(_too_large(limit))(scope, receive, send)
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > limit:
                await problem_response(_too_large(limit))(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        if not _is_json(headers.get(b"content-type", b"")):
            problem = ProblemError(
                415, "not-json", "the body must be JSON: send it with Content-Type: application/json"
            )
            await problem_response(problem)(scope, receive, send)
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, replay, send)


class Observed:
    """Counts and times every answer, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)


def _too_large(limit: int) -> ProblemError:
    return ProblemError(413, "body-too-large", f"the body may have at most {limit} bytes")


def _is_json(content_type: bytes) -> bool:
    kind = content_type.split(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))
