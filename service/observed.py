"""Every request is named, counted, timed and logged; every answer gets the headers it needs."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import answer_defect, problem_response, unavailable
from service.health.metrics import Metrics
from service.logs import request_id, subnet_id
from service.security.headers import secured

logger = logging.getLogger("eqnet.requests")

_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SUBNET_PATH = re.compile(rb"/subnets/([0-9a-f]{32})")
_HUNG_UP = 499
"""The status counted where the client was gone before an answer began."""

_ENDING = "this server is ending, and the answer takes longer than that: ask again"

_WORTH_TELLING = frozenset({201, 202, 204, 401, 403, 429})
"""Logged at `info`, like every 5xx: something was built or deleted, or somebody was turned away."""


class Observed:
    """The outermost layer: a defect anywhere below becomes a problem here, with the headers of any answer.

    A request keeps the `X-Request-Id` that it came with, if that is 1 to 64 letters, digits, dots, dashes and
    underscores, and gets one otherwise; the answer repeats it.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        name = _named(scope)
        request_id.set(name.decode())
        status = 0

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if (subnet := _subnet(scope, message)) is not None:
                    subnet_id.set(subnet)
                message["headers"] = [*secured(message["headers"]), (b"x-request-id", name)]
            await send(message)

        try:
            await self._app(scope, receive, observe)
        except ClientDisconnect:
            pass  # nobody is there to answer
        except asyncio.CancelledError:
            # The server's, when its grace is over. Passed on, it would be a stack trace for each request.
            if not status:
                await problem_response(unavailable(_ENDING, code="ending"))(scope, receive, observe)
        except Exception as error:
            if status:  # half an answer is out: only the connection's end can tell
                raise
            await answer_defect(scope, error)(scope, receive, observe)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.answered(method, route, status or _HUNG_UP, seconds)
            _log(scope, method, status or _HUNG_UP, seconds)


def _named(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value)
    return secrets.token_hex(8).encode()


def _subnet(scope: Scope, message: Message) -> str | None:
    """The subnet that a request is about: in its path, or where its answer says it is."""
    if not scope["path"].startswith("/subnets"):
        return None
    found = _SUBNET_PATH.match(scope["path"].encode())
    if found is None:
        locations = [value for name, value in message["headers"] if name == b"location"]
        found = _SUBNET_PATH.match(locations[0]) if locations else None
    return None if found is None else found[1].decode()


def _log(scope: Scope, method: str, status: int, seconds: float) -> None:
    telling = status in _WORTH_TELLING or status >= 500
    level = logging.INFO if telling else logging.DEBUG
    if not logger.isEnabledFor(level):
        return
    key = scope.get("state", {}).get("key")
    extra = {"method": method, "path": scope["path"][:200], "status": status, "seconds": round(seconds, 4)}
    # %r: a path may hold anything that a URL can escape.
    logger.log(
        level,
        "%s %r %d in %.1f ms",
        method,
        extra["path"],
        status,
        1000 * seconds,
        extra=extra | ({"key": key} if key else {}),
    )
