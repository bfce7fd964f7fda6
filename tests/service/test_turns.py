import asyncio
from contextlib import suppress

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.errors import ProblemError
from service.turns import Turns


def _request(*, gone: bool = False) -> Request:
    async def receive() -> Message:
        if not gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


async def _hold(turns: Turns, request: Request, computed: list[Request], end: asyncio.Event) -> None:
    async with turns.turn(request):
        computed.append(request)
        await end.wait()


def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    async def main() -> None:
        turns, end = Turns(1, waiting=9), asyncio.Event()
        requests = [_request(), _request(gone=True), _request(gone=True), _request()]
        computed: list[Request] = []
        tasks = [asyncio.create_task(_hold(turns, request, computed, end)) for request in requests]
        await asyncio.sleep(0)
        end.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers[1:3]] == [ClientDisconnect] * 2
        assert computed == [requests[0], requests[3]]

    asyncio.run(main())


def test_only_so_many_wait_and_who_gives_up_leaves_a_place() -> None:
    async def main() -> None:
        turns, end = Turns(1, waiting=1), asyncio.Event()
        computed: list[Request] = []
        holding, waiting = (asyncio.create_task(_hold(turns, _request(), computed, end)) for _ in range(2))
        await asyncio.sleep(0)
        with pytest.raises(ProblemError) as raised:
            await _hold(turns, _request(), computed, end)
        assert (raised.value.status, raised.value.code) == (503, "busy")
        assert raised.value.headers["Retry-After"] == "10"
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        end.set()
        await asyncio.gather(_hold(turns, _request(), computed, end), holding)
        assert len(computed) == 2

    asyncio.run(main())
