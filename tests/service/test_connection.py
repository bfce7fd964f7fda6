"""Raw connections to a real server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service import connection
from service.connection import MAX_HEAD, BoundedConnection

START = b"POST /a HTTP/1.1\r\nHost: x\r\n"


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = uvicorn.Config(_app, http=BoundedConnection, ws="none", lifespan="off", port=0, log_config=None)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        await server.shutdown()


async def _flood(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            writer.write(b"a" * MAX_HEAD)
            await writer.drain()


def test_headers_without_end_are_refused() -> None:
    async def main() -> None:
        async with connected() as (reader, writer):
            writer.write(START + b"X-A: ")
            writer.write(b"a" * MAX_HEAD)
            answer = await asyncio.wait_for(reader.read(), 30)
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert b"urn:eqnet:problem:headers-too-large" in answer

    asyncio.run(main())


def test_trailers_without_end_close_the_connection() -> None:
    async def main() -> None:
        async with connected() as (reader, writer):
            writer.write(START + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-A: ")
            await _flood(writer)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 30) == b""

    asyncio.run(main())


def test_long_bodies_and_many_requests_pass() -> None:
    async def main() -> None:
        async with connected() as (reader, writer):
            for _ in range(5):
                writer.write(START + b"Content-Length: %d\r\nX-A: " % (3 * MAX_HEAD) + b"a" * (MAX_HEAD // 2))
                writer.write(b"\r\n\r\n" + b"b" * (3 * MAX_HEAD))
                answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
                assert answer.startswith(b"HTTP/1.1 204 ")

    asyncio.run(main())


@pytest.mark.parametrize("sent", [b"", START])
def test_who_sends_no_headers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)

    async def main() -> None:
        async with connected() as (reader, writer):
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 30) == b""

    asyncio.run(main())
