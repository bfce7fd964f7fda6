"""What a connection may send before there is a request that anybody could limit."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024
"""Bytes of a request line with its headers, or of the trailers after a body; a little more may pass."""

HEAD_SECONDS = 20.0
"""In which the headers of a request must have arrived, from its first byte or the connection's begin on."""

_TOO_LARGE = (
    b'{"type": "urn:eqnet:problem:headers-too-large", "title": "Request Header Fields Too Large", '
    b'"status": 431, '
    b'"detail": "request line and headers may have at most %d bytes together: send fewer", "errors": []}'
) % MAX_HEAD
_ANSWER = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: application/problem+json\r\ncontent-length: %d\r\n\r\n%b"
) % (len(_TOO_LARGE), _TOO_LARGE)


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's, which takes headers of any length for as long as it takes: without a key, anybody could make
    the process hold as much memory and as many connections as it pleases them.
    """

    _unread = 0
    """Bytes since the parser last had anything whole."""

    _late: asyncio.TimerHandle | None = None

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
                self.transport.write(_ANSWER)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._cancel_late()
        self._unread = 0
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
