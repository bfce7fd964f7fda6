"""What the endpoints need, made once per application by its lifespan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.health.metrics import Metrics
from service.jobs.evaluation import EvaluationImages
from service.jobs.queue import BuildQueue
from service.predictions.direct import DirectPredictions
from service.settings import Settings
from service.subnets.artifacts import ArtifactStore
from service.subnets.service import SubnetService
from service.subnets.store import SubnetStore
from service.subnets.warm import WarmAnswers
from service.supernets.catalogue import SupernetCatalogue
from service.turns import Turns


@dataclass(frozen=True, kw_only=True)
class ServiceState:
    """`evaluation` describes the operator's evaluation set, if there is one."""

    settings: Settings
    supernets: SupernetCatalogue
    store: SubnetStore
    artifacts: ArtifactStore
    queue: BuildQueue
    subnets: SubnetService
    warm: WarmAnswers
    predictions: DirectPredictions
    metrics: Metrics
    evaluation: EvaluationImages | None
    turns: Turns


async def _state(request: Request) -> ServiceState:  # async: FastAPI runs others in a thread
    state = request.app.state.service
    assert isinstance(state, ServiceState)
    return state


State = Annotated[ServiceState, Depends(_state)]
