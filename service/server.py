"""The HTTP server around the application: what `eqnet serve` runs, and what benchmarks compare it with."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.connection import BoundedConnection

_ANSWERED_BEFORE = 2.0
"""Seconds before the end at which those who wait for builds are answered; half of a short grace."""


class _Server(uvicorn.Server):
    """Awaits `ending` at once, and calls `leave` while there is still time to answer."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        grace: float,
        ending: Callable[[], Awaitable[None]],
        leave: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._patience = max(grace - _ANSWERED_BEFORE, grace / 2)
        self._ending = ending
        self._leave = leave

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there now stays: looking through it for garbage would hold every request up for 100 ms.
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(self._patience, self._leave)
        await self._ending()
        await super().shutdown(sockets)


def _telling(app: ASGIApp, told: tuple[type[Exception], ...]) -> ASGIApp:
    """`app`, whose start that fails with one of `told` is its message, instead of a stack trace."""

    async def telling(scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            # Starlette sends from where it handles the exception, and has made a trace of it.
            if message["type"] == "lifespan.startup.failed" and isinstance(error := sys.exception(), told):
                message = {**message, "message": str(error)}
            await send(message)

        await app(scope, receive, tell if scope["type"] == "lifespan" else send)

    return telling


async def _nothing() -> None:
    """The default of `run_server`."""


def run_server(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    grace: float = 10.0,
    ending: Callable[[], Awaitable[None]] = _nothing,
    leave: Callable[[], None] = lambda: None,
    told: tuple[type[Exception], ...] = (),
) -> None:
    """Until SIGTERM or SIGINT; then no more connections, and `grace` seconds for answers under way.

    `ending` is awaited at the signal: what lasts as long as its client wants should end. `leave` is called a
    little before the end: whoever still waits for something long should be answered now. A start that fails
    with one of `told` is logged as its message; any other, with its stack trace. Both exit with status 3.
    """
    config = uvicorn.Config(
        _telling(app, told),
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # `service.observed` logs requests, with what belongs to them
        timeout_graceful_shutdown=max(1, round(grace)),
        server_header=False,
        http=BoundedConnection,
        ws="none",
    )
    with suppress(KeyboardInterrupt):  # uvicorn ends in order, and then says again what made it
        _Server(config, grace=grace, ending=ending, leave=leave).run()
