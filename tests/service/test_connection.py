"""Raw connections to a real server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

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
async def connected(
    app: ASGIApp = _app,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = uvicorn.Config(app, http=BoundedConnection, ws="none", lifespan="off", port=0, log_config=None)
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


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_headers_that_are_too_long_are_refused_with_or_without_end(end: bytes) -> None:
    async def main() -> None:
        async with connected() as (reader, writer):
            writer.write(START + b"X-A: " + b"a" * MAX_HEAD + end)
            answer = await asyncio.wait_for(reader.read(), 30)
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert b"urn:eqnet:problem:headers-too-large" in answer

    asyncio.run(main())


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /a b c HTTP/1.1\r\n\r\n", id="spaces"),
        pytest.param(b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", id="not ASCII"),
        pytest.param(b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n", id="no host"),
        pytest.param(b"GET /a HTTP/1.1\r\nNo colon\r\n\r\n", id="no header"),
        pytest.param(START + b"Content-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(START + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", id="no chunk"),
        pytest.param(
            START + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="two lengths"
        ),
    ],
)
def test_what_is_not_http_gets_a_problem_too(sent: bytes) -> None:
    async def main() -> None:
        async with connected() as (reader, writer):
            writer.write(sent)
            head, body = (await asyncio.wait_for(reader.read(), 30)).split(b"\r\n\r\n", 1)
            assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert b"content-type: application/problem+json" in head
            assert b"content-length: %d" % len(body) in head
            assert json.loads(body)["type"] == "urn:eqnet:problem:malformed-http"

    asyncio.run(main())


def test_an_answer_under_way_is_not_broken_into() -> None:
    """By what follows another request behind it."""

    async def main() -> None:
        ended = asyncio.Event()

        async def stream(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await ended.wait()

        async with connected(stream) as (reader, writer):
            writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"begun\r\n"), 30)
            writer.write(b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n" + b"\x16\x03\x01\r\n\r\n")
            rest = await asyncio.wait_for(reader.read(), 30)
            ended.set()
        assert rest == b""

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


@pytest.mark.parametrize("body", [b"Content-Length: 40", b"Transfer-Encoding: chunked"])
def test_a_body_after_an_upgrade_is_not_taken_for_a_request(body: bytes) -> None:
    """The parser ends a message that offers an upgrade after its headers, whatever they say of a body."""
    seen: list[str] = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(f"{scope['method']} {scope['path']}")
        await _app(scope, receive, send)

    async def main() -> bytes:
        async with connected(noting) as (reader, writer):
            writer.write(START + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + body + b"\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.1)
            with contextlib.suppress(ConnectionError):
                writer.write(b"DELETE /b HTTP/1.1\r\nHost: x\r\n\r\n")
                await writer.drain()
            return await asyncio.wait_for(reader.read(), 30)

    answer = asyncio.run(main())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"urn:eqnet:problem:upgrade-with-body" in answer
    assert seen == []


def test_an_upgrade_that_is_offered_without_a_body_is_ignored() -> None:
    async def main() -> None:
        async with connected() as (reader, writer):
            for path in (b"/a", b"/b"):
                writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n")
                writer.write(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n")
                answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
                assert answer.startswith(b"HTTP/1.1 204 ")

    asyncio.run(main())
