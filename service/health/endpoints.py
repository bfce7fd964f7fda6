"""`/health/live`, `/health/ready`, `/metrics`."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from service.errors import ProblemError, problem_responses
from service.state import State
from service.subnets.store import StoreUnavailableError

router = APIRouter(tags=["health"])


class Live(BaseModel):
    status: Literal["live"] = "live"


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    supernets: list[str]
    builders: int


@router.get("/health/live", summary="The process is up")
async def live() -> Live:
    return Live()


@router.get("/health/ready", summary="Requests can be answered", responses=problem_responses(503))
async def ready(state: State) -> Ready:
    supernets = state.supernets
    reasons = [
        f"supernet {n}: {reason}" for n, reason in supernets.failures.items() if n not in supernets.late
    ]
    if not supernets.factories:
        reasons.append("no supernet is loaded")
    try:
        await state.store.check()
    except StoreUnavailableError as error:
        reasons.append(str(error))
    try:
        await asyncio.to_thread(state.artifacts.check)
    except OSError as error:
        reasons.append(f"the artifact store cannot be used: {error}")
    if reasons:
        raise ProblemError(503, "not-ready", "; ".join(reasons), headers={"Retry-After": "2"})
    return Ready(supernets=sorted(state.supernets.factories), builders=state.queue.builders)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(state: State) -> Response:
    text = state.metrics.exposition(
        queued=state.queue.queued,
        restarts=state.queue.restarts,
        builders=state.queue.builders,
        supernets={name: factory.bundle.digest for name, factory in state.supernets.factories.items()},
    )
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
