"""The FastAPI application: `create_app` puts the parts together, the lifespan owns them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from service.data_folder import DataFolder
from service.devices.endpoints import router as devices
from service.embedded import EmbeddedStore
from service.errors import install_error_handlers
from service.head import HeadRequests
from service.health.endpoints import router as health
from service.health.metrics import Metrics
from service.jobs.evaluation import EvaluationImages, EvaluationSet
from service.jobs.opening import open_queue, worker_arguments
from service.limits import RequestLimits
from service.observed import Observed
from service.openapi import install_allowed_methods, install_document
from service.pages import install_pages
from service.predictions.direct import DirectPredictions
from service.predictions.endpoints import router as predictions
from service.security.access import AccessControl
from service.settings import Settings
from service.state import ServiceState
from service.subnets.artifacts import ArtifactStore
from service.subnets.caretaker import Caretaker
from service.subnets.endpoints import router as subnets
from service.subnets.order import SubnetOrder
from service.subnets.service import SubnetService
from service.subnets.store import SubnetStore, connect
from service.subnets.warm import WarmAnswers
from service.supernets.catalogue import SupernetCatalogue
from service.supernets.endpoints import router as supernets
from service.supernets.following import follow_bundles
from service.tracing import telemetry
from service.turns import Turns

_LIST_BODY = 16 * 1024 * 1024
"""Bytes that a list of 10,000 configurations may have."""

_COMPUTING = 2
"""Fronts and long lists of predictions that are computed at once; the others wait for their turn."""

_WAITING = 16
"""Of those others; a list that waits holds megabytes, and a front takes seconds."""

_DESCRIPTION = """One quantised network per device: ask for a subnet that fits a device and a budget.
Accuracies are fractions in [0, 1], sizes bytes, times seconds. `HEAD` works wherever `GET` does."""


def create_app(settings: Settings) -> FastAPI:
    """The application; nothing but the API keys is opened before its lifespan starts.

    Raises:
        KeyEntryError, KeyFileError: the API keys cannot be used.
        TracingError: traces are wanted and cannot be had.
    """
    metrics = Metrics()
    app = FastAPI(
        title="EQ-Net Serve",
        version=version("eqnet-serve"),
        description=_DESCRIPTION,
        lifespan=_lifespan(settings, metrics),
        docs_url=None,  # both load their scripts from a public server; `install_pages` has its own
        redoc_url=None,
        telemetry=telemetry(),
        redirect_slashes=False,  # a redirect would repeat whatever the Host header says
    )
    # The busiest first: they are tried in turn.
    for router in (predictions, subnets, supernets, devices, health):
        app.include_router(router)
    install_pages(app)
    install_error_handlers(app)
    keys = settings.keys
    install_document(app, keys)
    install_allowed_methods(app)
    app.add_middleware(HeadRequests, routes=app.routes)
    app.add_middleware(
        RequestLimits,
        limits={"/subnets": settings.max_body, "/predict-accuracy": _LIST_BODY},
        body_timeout=settings.body_timeout,
    )
    app.add_middleware(
        AccessControl,
        keys=keys,
        anonymous=settings.allow_anonymous,
        rate=settings.rate_limit,
        metrics=metrics,
    )
    app.add_middleware(Observed, metrics=metrics)
    return app


def _lifespan(settings: Settings, metrics: Metrics) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            url = settings.redis_url
            if url is None:
                folder = stack.enter_context(DataFolder(settings.data_dir))
                embedded = EmbeddedStore(folder.path / "store")
                await embedded.start()
                stack.push_async_callback(embedded.stop)
                url = embedded.url
            redis = connect(url)
            stack.push_async_callback(redis.aclose)
            supernets = await asyncio.to_thread(SupernetCatalogue.open, settings.bundles)
            evaluation = None
            if settings.evaluation_data is not None:
                evaluation = await asyncio.to_thread(
                    _evaluation_images, settings.evaluation_data, settings.evaluation_limit
                )
            store = SubnetStore(redis, lease=settings.lease)
            artifacts = ArtifactStore(settings.artifacts_location)
            queue = open_queue(
                settings,
                supernets=supernets,
                redis=redis,
                store=store,
                artifacts=artifacts,
                metrics=metrics,
            )
            if supernets.factories:
                await queue.start()
            stack.push_async_callback(queue.stop)
            service = SubnetService(
                store=store,
                artifacts=artifacts,
                queue=queue,
                metrics=metrics,
                buildable=lambda order: _buildable(order, app.state.service),
            )
            stack.callback(service.stop)
            caretaker = Caretaker(store=store, artifacts=artifacts, queue=queue, lease=settings.lease)
            stack.push_async_callback(_cancel, asyncio.create_task(caretaker.run()))
            app.state.service = ServiceState(
                settings=settings,
                supernets=supernets,
                store=store,
                artifacts=artifacts,
                queue=queue,
                subnets=service,
                predictions=DirectPredictions(),
                warm=WarmAnswers(store=store, metrics=metrics),
                metrics=metrics,
                evaluation=evaluation,
                turns=Turns(_COMPUTING, waiting=_WAITING),
            )

            async def replace_supernets(opened: SupernetCatalogue) -> None:
                # Builders first: an order for a new bundle must not reach one that has not got it.
                if opened.needs_builders(app.state.service.supernets):
                    await queue.renew(worker_arguments(settings, opened))
                app.state.service = replace(app.state.service, supernets=opened)

            following = follow_bundles(
                settings.bundles,
                interval=settings.bundles_interval,
                current=supernets,
                changed=replace_supernets,
            )
            stack.push_async_callback(_cancel, asyncio.create_task(following))
            yield

    return lifespan


def _buildable(order: SubnetOrder, state: ServiceState) -> bool:
    supernets = state.supernets
    whole = [digest for name, digest in supernets.digests.items() if name not in supernets.stale]
    digest = None if state.evaluation is None else state.evaluation.digest
    return order.bundle_digest in whole and order.evaluation in (None, digest)


def _evaluation_images(path: Path, limit: int) -> EvaluationImages:
    return EvaluationSet.open(path, limit=limit).described


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
