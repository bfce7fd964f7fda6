"""`/subnets`: ask for one, look at it, fetch its files, drop it."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from eqnet_core.bundle import Bundle
from eqnet_core.configuration_json import configuration_from_json, configuration_to_json
from eqnet_core.errors import InvalidConfigurationError, InvalidProfileError, UnsupportedTargetError
from eqnet_core.profile import Budget, LayerPin, SearchSettings
from eqnet_core.search import check_feasible
from service.devices.resolve import named_device, resolve_profile
from service.errors import ProblemError, json_pointer, not_found, problem_of, problem_responses
from service.parameters import EACH_KNOWN_AND_ONCE
from service.state import ServiceState, State
from service.subnets.content import file_response
from service.subnets.order import SearchOrder, SubnetOrder, is_subnet_id
from service.subnets.preference import preferred_wait
from service.subnets.record import RETRY_AFTER, failure
from service.subnets.schemas import SubnetPage, SubnetRecord, SubnetRequest
from service.subnets.store import FINAL
from service.subnets.warm import WarmRoute

router = APIRouter(tags=["subnets"], route_class=WarmRoute)

_LOCATION = {"Location": {"schema": {"type": "string"}, "description": "The subnet's URL"}}
_RETRY = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}
_CACHE = {"Cache-Status": {"schema": {"type": "string"}, "description": "`eqnet; hit` (RFC 9211)"}}


@router.post(
    "/subnets",
    summary="The subnet for a device and a budget",
    status_code=201,
    response_model=SubnetRecord,
    response_class=JSONResponse,
    responses={
        200: {"model": SubnetRecord, "description": "It was there already", "headers": _CACHE},
        201: {"description": "This call built it", "headers": _LOCATION},
        202: {"model": SubnetRecord, "description": "It is being built", "headers": _LOCATION | _RETRY},
        **problem_responses(409, 413, 415, 422, 429, 500, 503),
    },
)
async def ask(
    request: SubnetRequest,
    state: State,
    http: Request,
    prefer: Annotated[
        str | None, Header(description="`wait=N` seconds, or `respond-async` (RFC 7240)")
    ] = None,
) -> Response:
    order = await asyncio.to_thread(_order, request, state)
    wait, applied = preferred_wait(http.headers.getlist("prefer"), default=state.settings.wait)
    answer = await state.subnets.ask(order, wait=wait)
    location = f"/subnets/{order.id}"
    headers = {"Location": location}
    if applied is not None:
        headers["Preference-Applied"] = applied
    if answer.record["status"] == "failed":
        problem = failure(answer.record)
        problem.headers |= headers
        raise problem
    if not answer.final:
        return JSONResponse(answer.record, 202, headers | {"Retry-After": str(RETRY_AFTER)})
    if answer.built:
        return JSONResponse(answer.record, 201, headers | {"Cache-Status": "eqnet; fwd=miss; stored"})
    cache = "eqnet; hit" if answer.hit else "eqnet; fwd=miss; collapsed"
    return JSONResponse(answer.record, 200, headers | {"Cache-Status": cache})


@router.get(
    "/subnets",
    summary="Subnets, newest first",
    response_model=SubnetPage,
    dependencies=[EACH_KNOWN_AND_ONCE],
    responses=problem_responses(422, 503),
)
async def page(
    state: State,
    limit: Annotated[int, Query(ge=1, le=200, description="Records per page")] = 20,
    cursor: Annotated[
        str | None, Query(max_length=200, description="`next_cursor` of the page before")
    ] = None,
) -> Response:
    records, following = await state.subnets.page(limit, None if cursor is None else _read_cursor(cursor))
    return JSONResponse({"subnets": records, "next_cursor": following and _write_cursor(following)})


@router.get(
    "/subnets/{subnet}",
    summary="One subnet, also while it is being built",
    response_model=SubnetRecord,
    responses=problem_responses(404, 503),
)
async def record(subnet: str, state: State) -> Response:
    shown = await state.subnets.record(_known(subnet))
    headers = {} if shown["status"] in ("ready", "failed") else {"Retry-After": str(RETRY_AFTER)}
    return JSONResponse(shown, headers=headers)


async def _present(subnet: str, state: State) -> None:
    """404 before the stream begins: afterwards there is no status to say it with."""
    await state.subnets.record(_known(subnet))


@router.get(
    "/subnets/{subnet}/events",
    summary="Its progress as server-sent events",
    description="`progress` after every change while it is queued or being built, and one last event: "
    "`ready` or `failed` with the record, or `deleted`. Whoever connects is told the present state first. "
    "`reconnect` ends a stream before that, because this server ends: connect again, to a replica or later.",
    response_class=EventSourceResponse,
    dependencies=[Depends(_present)],
    responses=problem_responses(404, 503),
)
async def events(subnet: str, state: State) -> AsyncIterator[ServerSentEvent]:
    async with aclosing(state.subnets.states(subnet)) as states:
        async for record in states:
            if record is None:
                yield ServerSentEvent(event="deleted", data={"id": subnet})
                return
            elif record["status"] in FINAL:
                yield ServerSentEvent(event=record["status"], data=record)
                return
            else:
                data = {name: record[name] for name in ("id", "status", "progress")}
                yield ServerSentEvent(event="progress", data=data)
    yield ServerSentEvent(event="reconnect", data={"id": subnet}, retry=1000 * RETRY_AFTER)


@router.delete(
    "/subnets/{subnet}",
    summary="Cancel the build, drop record and artifacts",
    status_code=204,
    responses=problem_responses(404, 503),
)
async def drop(subnet: str, state: State) -> Response:
    await state.subnets.drop(_known(subnet))
    return Response(status_code=204)


@router.get(
    "/subnets/{subnet}/artifacts/{name}",
    summary="One file of a subnet",
    response_class=Response,
    responses={
        200: {
            "description": "The file; `ETag`, `Content-Digest` (RFC 9530)",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                "application/json": {"schema": {}},
            },
        },
        206: {"description": "The part asked for with `Range`"},
        304: {"description": "Not changed (`If-None-Match`)"},
        **problem_responses(404, 409, 412, 416, 503),
    },
)
@router.head("/subnets/{subnet}/artifacts/{name}", include_in_schema=False)
async def artifact(subnet: str, name: str, state: State, request: Request) -> Response:
    return await state.subnets.artifact(
        _known(subnet),
        name,
        lambda content: file_response(name, content, request.headers, method=request.method),
    )


def _known(subnet: str) -> str:
    if not is_subnet_id(subnet):
        raise not_found("subnet", subnet)
    return subnet


def _evaluation(bundle: Bundle, state: ServiceState) -> str:
    """The digest of the images that top-1 is to be measured on."""
    images = state.evaluation
    if images is None:
        reason = "this server has no evaluation images"
    elif mismatch := images.mismatch(bundle.input, len(bundle.classes)):
        reason = f"the evaluation images of this server are not for supernet {bundle.name}: they {mismatch}"
    else:
        return images.digest
    raise ProblemError(
        422,
        "no-evaluation-data",
        f"{reason}; leave out `verify`, or have its operator set EQNET_EVALUATION_DATA",
        errors=[("/verify", "must be false here")],
    )


def _order(request: SubnetRequest, state: ServiceState) -> SubnetOrder:
    """Everything that can be wrong with a request is found here, before a record or a build exists."""
    factory = state.supernets.in_request(request.supernet)
    bundle = factory.bundle
    evaluation = _evaluation(bundle, state) if request.verify else None
    what: SearchOrder | dict[str, Any]
    if request.configuration is not None:
        try:
            configuration = configuration_from_json(request.configuration.model_dump(), bundle.space)
        except InvalidConfigurationError as error:
            raise problem_of(error, prefix="/configuration") from error
        what, form = configuration_to_json(configuration, bundle.space), configuration.form
    else:
        profile = resolve_profile(request.device, request.profile.model_dump() if request.profile else None)
        try:
            search = SearchSettings.from_json(request.search.model_dump() if request.search else {})
        except InvalidProfileError as error:
            raise problem_of(error, prefix="/search") from error
        pins = {name: LayerPin.from_json(pin.model_dump()) for name, pin in (request.pinned or {}).items()}
        what = SearchOrder(
            device=request.device,
            profile=profile,
            budget=Budget.from_json(request.budget.model_dump() if request.budget else {}),
            search=search,
            pins={name: pin for name, pin in pins.items() if pin != LayerPin()},
        )
        # All pins: one that pins nothing, which is no part of the order, must name a layer too.
        check_feasible(
            space=bundle.space, costs=factory.costs, profile=profile, budget=what.budget, pins=pins
        )
        form = profile.form
    artifacts = request.artifacts or factory.usual_artifacts(
        None if request.device is None else named_device(request.device)
    )
    try:
        factory.check_artifacts(artifacts, form)
    except UnsupportedTargetError as error:
        raise problem_of(error) from error
    return SubnetOrder(
        supernet=bundle.name,
        bundle_digest=bundle.digest,
        what=what,
        artifacts=tuple(sorted(set(artifacts))),
        evaluation=evaluation,
    )


def _write_cursor(member: str) -> str:
    return base64.urlsafe_b64encode(member.encode()).decode()


def _read_cursor(cursor: str) -> str:
    try:
        member = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        member = ""
    if len(member) != 52 or not member[:20].isdigit() or not is_subnet_id(member[20:]):
        raise ProblemError(
            422,
            "invalid-cursor",
            "not a cursor of this service: pass `next_cursor` of the page before, unchanged",
            errors=[(json_pointer(("query", "cursor")), "is not a cursor")],
        )
    return member
