"""HEAD wherever there is GET, as RFC 9110 wants it; plain ASGI."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """Has the GET route answer, and keeps its body back. FastAPI's routes know the methods that they document
    and no others; to document HEAD as well would double every operation.

    Those of `routes` that answer HEAD themselves, for less, do.
    """

    def __init__(self, app: ASGIApp, *, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or self._answered_anyway(scope):
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                # The answer is complete: what streams for ever is told that its client has gone.
                await send({"type": "http.response.body", "body": b""})

        get = {**scope, "method": "GET"}  # a copy: the server keeps bodies back by its own
        try:
            await self._app(get, receive, send_head)
        finally:
            scope["route"] = get.get("route")

    def _answered_anyway(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._routes)
