"""Requests that were answered before, recognised by their very bytes: one look into the store, nothing else.

Everything between a body and the id of its subnet (parsing, checking, normalising, hashing) depends on the
body and the loaded supernets alone, and a finished record as it is shown on the stored text alone. Both are
kept here for what was asked last. Whether the subnet is still there is the store's to say, every time.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from service.health.metrics import Metrics
from service.recent import Recent
from service.strict_json import StrictJsonRoute, StrictRequest
from service.subnets.preference import preferred_wait
from service.subnets.record import shown_record
from service.subnets.store import StoreUnavailableError, SubnetStore, decode
from service.supernets.catalogue import SupernetCatalogue

_KEPT = 512
"""Requests, and records: some megabytes."""

_MAX_BODY = 8192
"""Bytes; longer bodies take the long way."""


class WarmAnswers:
    """Forgets everything when it is asked for other `supernets` than the last time."""

    def __init__(self, *, store: SubnetStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._supernets: SupernetCatalogue | None = None
        self._subnets: Recent[bytes, str] = Recent(_KEPT)
        self._records: Recent[str, tuple[bytes, bytes]] = Recent(_KEPT)

    async def find(self, body: bytes, supernets: SupernetCatalogue) -> tuple[str, bytes] | None:
        """Id and record, as JSON, of the finished subnet that this body asks for; None where that is not
        known here, or it is not finished, or the store does not answer.
        """
        if supernets is not self._supernets:
            self._supernets = supernets
            self._subnets.clear()
        subnet = self._subnets.get(body)
        if subnet is None:
            return None
        try:
            text = await self._store.text(subnet)
        except StoreUnavailableError:
            return None
        shown = None if text is None else self._shown(subnet, text)
        if shown is None:
            return None
        self._metrics.subnets.labels("hit").inc()
        return subnet, shown

    def remember(self, body: bytes, subnet: str, supernets: SupernetCatalogue) -> None:
        if supernets is self._supernets and len(body) <= _MAX_BODY:
            self._subnets.put(body, subnet)

    def _shown(self, subnet: str, text: bytes) -> bytes | None:
        known = self._records.get(subnet)
        if known is not None and known[0] == text:
            return known[1]
        stored = decode(text)
        if stored.status != "ready":
            return None
        shown = bytes(JSONResponse(shown_record(stored)).body)
        self._records.put(subnet, (text, shown))
        return shown


class WarmRoute(StrictJsonRoute):
    """A route whose POST is answered from `WarmAnswers` where that knows, before anything is parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if "POST" not in (self.methods or ()):
            return handler

        async def warm(request: Request) -> Response:
            request = StrictRequest(request.scope, request.receive)
            body = await request.body()
            state = request.app.state.service
            supernets = state.supernets
            found = await state.warm.find(body, supernets)
            if found is None:
                response = await handler(request)
                if response.status_code in (200, 201):
                    state.warm.remember(body, response.headers["location"].rsplit("/", 1)[1], supernets)
                return response
            subnet, shown = found
            headers = {"Location": f"/subnets/{subnet}", "Cache-Status": "eqnet; hit"}
            if preferences := request.headers.getlist("prefer"):
                _, applied = preferred_wait(preferences, default=0.0)
                if applied is not None:
                    headers["Preference-Applied"] = applied
            return Response(shown, 200, headers, media_type="application/json")

        return warm
