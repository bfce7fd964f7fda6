"""What a request may look like at all, decided before anything of it is parsed; plain ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ProblemError, problem_response


class RequestLimits:
    """`limits` are bytes, by the paths that take a body: 413 beyond, 408 for bodies that have not arrived
    after `body_timeout` seconds, 415 for those that do not say they are JSON, or that are
    compressed. No other body is read.
    """

    def __init__(self, app: ASGIApp, *, limits: Mapping[str, int], body_timeout: float) -> None:
        self._app = app
        self._limits = dict(limits)
        self._body_timeout = body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        takes_body = scope["type"] == "http" and scope["method"] == "POST"
        limit = self._limits.get(scope["path"]) if takes_body else None
        if limit is None:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:18]) > limit:
            await problem_response(_too_large(limit))(scope, receive, send)
            return
        try:
            body = await self._body(receive, limit)
        except ProblemError as refusal:
            await problem_response(refusal)(scope, receive, send)
            return
        if body is None:
            return
        if not _is_json(headers.get(b"content-type", b"")):
            problem = ProblemError(
                415, "not-json", "the body must be JSON: send it with Content-Type: application/json"
            )
            await problem_response(problem)(scope, receive, send)
            return
        if headers.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"):
            problem = ProblemError(
                415,
                "encoded-body",
                "the body must be JSON as it is: send it uncompressed, without Content-Encoding",
                headers={"Accept-Encoding": "identity"},
            )
            await problem_response(problem)(scope, receive, send)
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _body(self, receive: Receive, limit: int) -> bytes | None:
        try:
            async with asyncio.timeout(self._body_timeout):
                return await _read_body(receive, limit)
        except TimeoutError:
            detail = f"the body has not arrived within {self._body_timeout:g} s"
            raise ProblemError(408, "body-timeout", detail, headers={"Connection": "close"}) from None


async def _read_body(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None where the client is gone. Raises ProblemError beyond `limit` bytes."""
    message = await receive()
    body = message.get("body", b"")
    if message.get("more_body", False) and message["type"] == "http.request":
        parts = bytearray(body)
        while message.get("more_body", False) and len(parts) <= limit:
            message = await receive()
            parts += message.get("body", b"")
        body = bytes(parts)
    if message["type"] == "http.disconnect":
        return None
    if len(body) > limit:
        raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> ProblemError:
    return ProblemError(413, "body-too-large", f"the body may have at most {limit} bytes")


def _is_json(content_type: bytes) -> bool:
    kind = content_type.split(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))
