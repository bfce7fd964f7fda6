"""The usual prediction query, answered directly: as FastAPI would have it, but without its eleven parameters.

FastAPI takes longer to collect optional parameters than a prediction takes to make. What is not plainly usual
(an unknown, repeated, boolean, malformed or missing parameter) goes its way instead, and gets its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request, Response
from pydantic import ValidationError
from pydantic_core import to_json

from service.predictions.predict import predict, read_bits
from service.predictions.schemas import PredictionQuery
from service.recent import Recent
from service.strict_json import StrictJsonRoute
from service.supernets.catalogue import SupernetCatalogue

_NEEDED = {"weight_bits", "activation_bits"}
_USUAL = _NEEDED | {"supernet", "device", "weight_granularity", "weight_symmetry", "activation_symmetry"}
_MAX_QUERY = 1000
"""Bytes; longer queries go the long way."""

_KEPT = 1024
"""Answers: some megabytes."""


class DirectPredictions:
    """Also keeps what was answered last; forgets it when asked for other `supernets` than the last time."""

    def __init__(self) -> None:
        self._supernets: SupernetCatalogue | None = None
        self._answers: Recent[bytes, bytes] = Recent(_KEPT)

    def answer(self, query_string: bytes, supernets: SupernetCatalogue) -> bytes | None:
        """The `Prediction` as JSON, or None where the query is not usual.

        Raises:
            ProblemError: as `predict` does.
        """
        if supernets is not self._supernets:
            self._supernets = supernets
            self._answers.clear()
        answer = self._answers.get(query_string)
        if answer is None:
            query = _read_usual(query_string)
            if query is None:
                return None
            answer = to_json(predict([query], supernets)[0])
            self._answers.put(query_string, answer)
        return answer


class DirectRoute(StrictJsonRoute):
    """The route of GET /predict-accuracy."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def direct(request: Request) -> Response:
            state = request.app.state.service
            # In this thread: it takes less time than to reach another.
            answer = state.predictions.answer(request.scope["query_string"], state.supernets)
            if answer is None:
                return await handler(request)
            return Response(answer, media_type="application/json")

        return direct


def _read_usual(query_string: bytes) -> PredictionQuery | None:
    if len(query_string) > _MAX_QUERY:
        return None
    # Commas first: nothing else is escaped in the usual query, and unescaping a part takes long.
    text = query_string.decode("latin-1").replace("%2C", ",")
    pairs = parse_qsl(text, keep_blank_values=True)
    given = dict(pairs)
    if len(given) != len(pairs) or not _NEEDED <= given.keys() <= _USUAL:
        return None
    bits = {name: read_bits(given.pop(name), f"/{name}") for name in ("weight_bits", "activation_bits")}
    try:
        return PredictionQuery.model_validate(given | bits)
    except ValidationError:
        return None
