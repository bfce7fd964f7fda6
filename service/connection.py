"""What a connection may send before there is a request that anybody could limit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import MEDIA_TYPE, ProblemError

MAX_HEAD = 64 * 1024
"""Bytes of a request line with its headers, or of the trailers after a body."""

HEAD_SECONDS = 20.0
"""In which the headers of a request must have arrived, from its first byte or the connection's begin on."""


def _last_answer(problem: ProblemError) -> bytes:
    """To what is no request, so that there is nobody else to answer it; the connection ends with it."""
    document = problem.document()
    body = json.dumps(document).encode()
    headers = {
        "connection": "close",
        "content-type": MEDIA_TYPE,
        "content-length": str(len(body)),
        "x-content-type-options": "nosniff",
    }
    lines = [f"HTTP/1.1 {problem.status} {document['title']}", *(f"{n}: {v}" for n, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


_TOO_LARGE = _last_answer(
    ProblemError(
        431,
        "headers-too-large",
        f"request line and headers may have at most {MAX_HEAD} bytes together: send fewer",
    )
)
_MALFORMED = _last_answer(
    ProblemError(400, "malformed-http", "this is not HTTP/1.1: use a client that speaks it, without TLS")
)

_UPGRADE = _last_answer(
    ProblemError(
        400,
        "upgrade-with-body",
        "this server speaks HTTP/1.1 alone: send a request with a body without Upgrade (Java's HttpClient: "
        "version(HTTP_1_1); curl: --http1.1)",
    )
)


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0"))
        for name, value in headers
    )


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's, which takes headers of any length for as long as it takes: without a key, anybody could make
    the process hold as much memory and as many connections as it pleases them. What is not HTTP it answers
    in plain text, and in the middle of another answer.
    """

    _unread = 0
    """Bytes since the parser last had anything whole."""

    _late: asyncio.TimerHandle | None = None
    _refusal = _MALFORMED

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_late()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MAX_HEAD and not self.transport.is_closing():
            if not self._answering():
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        # `cycle` is the last request; while others are in the pipeline, one before it is being answered.
        if not (self._answering() and (self.cycle.response_started or self.pipeline)):
            self.transport.write(self._refusal)
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._cancel_late()
        self._unread = 0
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            self._refusal = _TOO_LARGE  # they came at once, before anybody could count them
            raise OverflowError
        if self.parser.should_upgrade() and _has_body(self.headers):
            # The parser would take the body for what follows in another protocol, and we it for a request.
            self._refusal = _UPGRADE
            raise OverflowError
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._unread = 0

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        self._cancel_late()
        self._late = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _cancel_late(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if not self._answering() and not self.transport.is_closing():
            self.transport.close()
