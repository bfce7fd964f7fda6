"""Turns at what computes for seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.errors import unavailable

_RETRY_AFTER = 10


class Turns:
    """`at_once` requests compute, the others wait, at most `waiting` of them: threads that all computed would
    keep every other request, and the probes, waiting.
    """

    def __init__(self, at_once: int, *, waiting: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._places = waiting
        self._waiting = 0

    @asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[None]:
        """
        Raises:
            ProblemError: 503, as many wait already as may.
            ClientDisconnect: the turn has come, but nobody waits for the answer any more.
        """
        if self._free.locked() and self._waiting >= self._places:
            raise unavailable(
                f"{self._waiting} fronts or long lists of predictions are waiting already: ask again in "
                f"{_RETRY_AFTER} s",
                code="busy",
                retry_after=_RETRY_AFTER,
            )
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            if await request.is_disconnected():
                raise ClientDisconnect
            yield
        finally:
            self._free.release()
