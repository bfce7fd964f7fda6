"""`/health/live`, `/health/ready`, `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from service.errors import ProblemError, problem_responses
from service.state import ServiceState, State
from service.subnets.store import StoreUnavailableError

router = APIRouter(tags=["health"])

_PATIENCE = 3.0
"""Seconds for a look at both stores; those who probe wait for four."""


class Live(BaseModel):
    status: Literal["live"] = "live"


class Ready(BaseModel):
    """`degraded`: some requests cannot be answered as they should, and `detail` says which and why."""

    status: Literal["ready", "degraded"] = "ready"
    supernets: list[str]
    builders: int = Field(description="Builder processes, here and on workers")
    workers: int | None = Field(description="Those that take builds; null where builds run here")
    detail: str | None = None


@router.get("/health/live", summary="The process is up")
async def live() -> Live:
    return Live()


@router.get(
    "/health/ready",
    summary="Requests can be answered",
    description="200 also where only some can: what is built already, and predictions, need no worker, and "
    "every other replica would lack it too. `status` is then `degraded`.",
    responses=problem_responses(503),
)
async def ready(state: State) -> Ready:
    supernets = state.supernets
    reasons = [
        f"supernet {n}: {reason}" for n, reason in supernets.failures.items() if n not in supernets.late
    ]
    if not supernets.factories:
        reasons.append("no supernet is loaded")
    faults = await asyncio.gather(
        _fault("the store", state.store.check()),
        _fault("the artifact store", asyncio.to_thread(state.artifacts.check)),
    )
    reasons += filter(None, faults)
    if reasons:
        raise ProblemError(503, "not-ready", "; ".join(reasons), headers={"Retry-After": "2"})
    return _ready(state)


async def _fault(store: str, look: Awaitable[None]) -> str | None:
    """What is wrong with a store, if anything."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await look
    except TimeoutError:  # an OSError too
        return f"{store} does not answer within {_PATIENCE:g} s"
    except StoreUnavailableError as error:
        return str(error)
    except OSError as error:
        return f"{store} cannot be used: {error}"
    return None


def _ready(state: ServiceState) -> Ready:
    supernets, queue = state.supernets, state.queue
    lacking = [f"supernet {name}: {reason}" for name, reason in supernets.failures.items()]
    lacking += [
        f"supernet {name} is served as it was, but builders that start now lack it: {reason}"
        for name, reason in supernets.stale.items()
    ]
    # No worker at all is the same for every supernet, and is said once.
    lacking += sorted({reason for digest in supernets.digests.values() if (reason := queue.obstacle(digest))})
    workers = queue.workers
    return Ready(
        status="degraded" if lacking else "ready",
        supernets=sorted(supernets.factories),
        builders=queue.builders + sum(worker.builders for worker in workers or ()),
        workers=None if workers is None else len(workers),
        detail="; ".join(lacking) or None,
    )


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
        workers=None if state.queue.workers is None else len(state.queue.workers),
        supernets=state.supernets.digests,
    )
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
