"""JSON bodies without the leniencies of `json.loads`: no repeated members, no NaN, no endless nesting.

Numbers without a fraction are integers, however they are written (4.0, 1e3), as JSON Schema has it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from service.errors import ProblemError

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""Escapes of halves of a pair, in pairs or not: they come from nowhere else, since UTF-8 has none."""

_LARGE = 64 * 1024
"""Bytes; longer bodies are read in a thread, and in turn: everybody else would wait for a second."""


_DIGITS = 400
"""Of an integer; more than any number here may have, or a float can hold."""


class StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_strict"):
            body = await self.body()
            if len(body) <= _LARGE:
                self._strict = _loads(body)
            else:
                async with self.app.state.service.turns.turn(self):
                    self._strict = await asyncio.to_thread(_loads, body)
        return self._strict


class StrictJsonRoute(APIRoute):
    """A route whose body is read strictly; a body that cannot be is answered as FastAPI does invalid JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            # A body is read from `receive` only once: whoever has done so passes its request on.
            strict_one = isinstance(request, StrictRequest)
            try:
                return await handler(request if strict_one else StrictRequest(request.scope, request.receive))
            except HTTPException as error:
                # FastAPI takes whatever is raised while a body is read for a fault of the body.
                if isinstance(error.__cause__, ProblemError | ClientDisconnect):
                    raise error.__cause__ from None
                raise

        return strict


def _loads(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError("not UTF-8", "", error.start) from error
    try:
        document = json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_number,
        )
        if _SURROGATE.search(body) is not None:
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise json.JSONDecodeError("half of a surrogate pair in a string", "", 0) from error
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # of the hooks
        raise json.JSONDecodeError(str(error), "", 0) from error
    return document


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the member {repeated[:100]!r} is given twice")
    return members


def _integer(text: str) -> int:
    """Not `int` itself: only where Python code runs do other threads get their turn."""
    if len(text) > _DIGITS:
        raise ValueError(f"an integer has {len(text)} digits: give it at most {_DIGITS}")
    return int(text)


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
