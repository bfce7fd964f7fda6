"""`/predict-accuracy`: what a configuration would be worth, without building it."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import SkipValidation
from pydantic_core import to_json

from eqnet_core.pareto import MAX_POINTS, FrontAxis
from eqnet_core.profile import MAX_SEED
from eqnet_core.space import BIT_WIDTHS
from service.errors import problem_responses
from service.parameters import EACH_KNOWN_AND_ONCE
from service.predictions.direct import DirectRoute
from service.predictions.predict import pareto, predict, read_bits, resolve_query
from service.predictions.schemas import (
    Granularity,
    Pareto,
    Prediction,
    PredictionQueries,
    PredictionQuery,
    Symmetry,
)
from service.state import State
from service.strict_json import StrictJsonRoute

router = APIRouter(tags=["predictions"], route_class=StrictJsonRoute, dependencies=[EACH_KNOWN_AND_ONCE])

_BITS = Query(
    max_length=4000,
    description="One number for all searchable layers, or a comma-separated list, one per searchable layer",
    examples=["4"],
)

_PART = 100
"""Predictions of a list that are made at once; longer lists are made in turn."""

_ACCEPTED = Query(
    max_length=100, description="Bits that the device accepts, comma-separated (default: 2 to 8)"
)


async def _named_form(
    supernet: Annotated[str | None, Query(max_length=200)] = None,
    device: Annotated[str | None, Query(max_length=200, description="Instead of the form")] = None,
    weight_granularity: Granularity | None = None,
    weight_symmetry: Symmetry | None = None,
    activation_symmetry: Symmetry | None = None,
    narrow_range: bool | None = None,
    signed: bool | None = None,
) -> dict[str, Any]:
    return {
        "supernet": supernet,
        "device": device,
        "weight_granularity": weight_granularity,
        "weight_symmetry": weight_symmetry,
        "activation_symmetry": activation_symmetry,
        "narrow_range": narrow_range,
        "signed": signed,
    }


NamedForm = Annotated[dict[str, Any], Depends(_named_form)]
"""The members of a PredictionQuery that name a supernet and a form, as query parameters."""


async def predict_one(
    state: State,
    form: NamedForm,
    weight_bits: Annotated[str, _BITS],
    activation_bits: Annotated[str, _BITS],
) -> Response:
    query = PredictionQuery(
        weight_bits=read_bits(weight_bits, "/weight_bits"),
        activation_bits=read_bits(activation_bits, "/activation_bits"),
        **form,
    )
    return Response(to_json(predict([query], state.supernets)[0]), media_type="application/json")


router.add_api_route(
    "/predict-accuracy",
    predict_one,
    summary="Predicted accuracy of one configuration",
    response_model=Prediction,
    responses=problem_responses(422, 503),
    route_class_override=DirectRoute,
)


@router.post(
    "/predict-accuracy",
    summary="Predicted accuracies of up to 10,000 configurations",
    response_model=list[Prediction],
    responses=problem_responses(413, 415, 422, 503),
)
async def predict_many(
    queries: Annotated[PredictionQueries, SkipValidation, Body()], state: State, request: Request
) -> Response:
    def answer() -> bytes:
        # In parts: all in one go would keep every other request waiting, and hold 100 MB.
        checked = PredictionQueries.in_parts(document)
        answers: list[bytes] = []
        for start in range(0, len(checked), _PART):
            part = predict(checked[start : start + _PART], state.supernets, position=start)
            answers += map(to_json, part)
        return b"[%b]" % b",".join(answers)

    document: Any = queries  # as it came
    long = isinstance(document, list) and len(document) > _PART
    async with state.turns.turn(request) if long else nullcontext():
        return Response(await asyncio.to_thread(answer), media_type="application/json")


@router.get(
    "/pareto",
    summary="Predicted accuracy along the budget for one device or profile",
    response_model=Pareto,
    responses=problem_responses(422, 503),
)
async def front(
    state: State,
    request: Request,
    form: NamedForm,
    weight_bits: Annotated[str | None, _ACCEPTED] = None,
    activation_bits: Annotated[str | None, _ACCEPTED] = None,
    axis: Annotated[FrontAxis, Query(description="Which averages the budget bounds")] = FrontAxis.BOTH,
    points: Annotated[int, Query(ge=2, le=MAX_POINTS, description="Budgets along the front")] = 25,
    seed: Annotated[int, Query(ge=0, le=MAX_SEED)] = 0,
) -> Response:
    factory = state.supernets.in_request(form["supernet"])
    query = PredictionQuery(
        weight_bits=_listed_bits(weight_bits, "/weight_bits"),
        activation_bits=_listed_bits(activation_bits, "/activation_bits"),
        **form,
    )
    given = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    profile = resolve_query(query, bits_given=[name for name, bits in given.items() if bits is not None])
    async with state.turns.turn(request):
        found = await asyncio.to_thread(pareto, factory, profile, axis=axis, points=points, seed=seed)
    return JSONResponse(found)


def _listed_bits(text: str | None, pointer: str) -> list[int]:
    bits = list(BIT_WIDTHS) if text is None else read_bits(text, pointer)
    return [bits] if isinstance(bits, int) else bits
