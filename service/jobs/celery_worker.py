"""`eqnet worker`: takes builds from the broker, for any number of web processes on other machines.

Celery's threads only wait: one event loop holds the leases, and the builds run in the same builder processes
as those of a web process. So what is told of a build, how it is cancelled and what ends it are the same.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from typing import Any

from celery import Task
from celery.exceptions import Reject
from celery.signals import worker_ready, worker_shutting_down

from service.health.metrics import Metrics
from service.jobs.broker import TASK, make_celery
from service.jobs.opening import worker_arguments
from service.jobs.pool import BuilderPool
from service.jobs.roster import BEAT, Roster, WorkerSite
from service.jobs.worker_status import WorkerStatus
from service.settings import Settings
from service.subnets.artifacts import ArtifactStore
from service.subnets.leased_build import LeasedBuilds
from service.subnets.order import is_subnet_id
from service.subnets.record import repeatable
from service.subnets.store import Claim, StoreUnavailableError, SubnetStore, connect
from service.supernets.catalogue import SupernetCatalogue
from service.tracing import trace_worker

logger = logging.getLogger("eqnet.worker")

_RETRIES = 15
_RETRY_SECONDS = 2.0


class UnknownBundleError(Exception):
    """This worker has not got the bundle; another may."""


class BuildSite:
    """The builders of this machine, on an event loop of their own."""

    def __init__(self, settings: Settings, arguments: list[str], digests: frozenset[str]) -> None:
        assert settings.redis_url is not None
        self._digests = digests
        self.metrics = Metrics()
        self._stop_tracing = trace_worker()
        self._running: set[asyncio.Task[Any]] = set()
        self._pool = BuilderPool(
            count=settings.builders, queue_limit=0, timeout=settings.build_timeout, arguments=arguments
        )
        self._redis = connect(settings.redis_url)
        self._store = SubnetStore(self._redis, lease=settings.lease)
        self._builds = LeasedBuilds(
            store=self._store,
            artifacts=ArtifactStore(settings.artifacts_location),
            pool=self._pool,
            lease=settings.lease,
            metrics=self.metrics,
        )
        self._roster = Roster(self._redis)
        self._name = uuid.uuid4().hex
        self._presence: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="builds", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._do(self._pool.start())

    def stop(self) -> None:
        self._do(self._sign_off())
        self._do(self._pool.stop())
        self._do(self._redis.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._stop_tracing()

    def sign_on(self) -> None:
        """Tell everybody, from now on, that here is a worker that takes builds."""
        self._loop.call_soon_threadsafe(self._sign_on)

    def sign_off(self) -> None:
        """It takes no more of them."""
        asyncio.run_coroutine_threadsafe(self._sign_off(), self._loop)

    def build(self, subnet: str, *, last: bool) -> None:
        """Build it unless that is being done, or was; blocks.

        Raises:
            StoreUnavailableError: not known whether to build it.
            UnknownBundleError: not here, and not the `last` try.
            CancelledError: handed back.
        """
        self._do(self._build(subnet, last))

    def hand_back(self) -> None:
        """End what runs; the leases are released, whoever takes it up next does at once."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._running])

    def ready(self) -> str | None:
        """None, or what is wrong."""
        try:
            self._do(self._store.check())
        except StoreUnavailableError as error:
            return str(error)
        if self._presence is None:
            return "it takes no builds: the broker does not answer yet, or the worker ends"
        return None if self._pool.pids else "no builder runs"

    def exposition(self) -> bytes:
        return self.metrics.exposition(
            queued=self._pool.queued, restarts=self._pool.restarts, builders=len(self._pool.pids)
        )

    def _sign_on(self) -> None:
        if self._presence is None:
            self._presence = self._loop.create_task(self._stay_signed_on())

    async def _stay_signed_on(self) -> None:
        while True:
            with suppress(StoreUnavailableError):  # then nobody is told anything
                site = WorkerSite(builders=len(self._pool.pids), bundles=self._digests)
                await self._roster.sign_on(self._name, site)
            await asyncio.sleep(BEAT)

    async def _sign_off(self) -> None:
        presence, self._presence = self._presence, None
        if presence is None:
            return
        presence.cancel()
        await asyncio.wait([presence])
        with suppress(StoreUnavailableError):
            await self._roster.sign_off(self._name)

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _build(self, subnet: str, last: bool) -> None:
        found = await self._store.find(subnet)
        if found is None or found.final:  # cancelled, or a message that was delivered twice
            return
        if repeatable(found) is None:  # sent by another version: it would be another subnet under this id
            return
        if found.order["supernet"]["digest"] not in self._digests and not last:
            raise UnknownBundleError(found.order["supernet"]["name"])
        claim = await self._store.claim(replace(found, record={**found.record, "status": "queued"}))
        if not isinstance(claim, Claim):
            return
        self._pool.reserve()
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            ending = await self._builds.run(claim)
        finally:
            self._running.discard(task)
        logger.info("build of %s: %s", subnet, ending)


def run_worker(settings: Settings, *, log_level: str) -> int:
    """Until a signal ends it; the exit code.

    Raises:
        TracingError: traces are wanted and cannot be had.
        KeyEntryError, KeyFileError: the API keys cannot be used.
        OSError: the port for probes and metrics is taken.
    """
    assert settings.broker_url is not None
    supernets = SupernetCatalogue.open(settings.bundles)
    if not supernets.factories:
        logger.error("no supernet can be opened: %s", dict(supernets.failures))
        return 1
    digests = frozenset(factory.bundle.digest for factory in supernets.factories.values())
    site = BuildSite(settings, worker_arguments(settings, supernets), digests)
    celery = make_celery(settings.broker_url, build_timeout=settings.build_timeout)

    def build(task: Task, subnet: object) -> None:
        if not isinstance(subnet, str) or not is_subnet_id(subnet):
            logger.error("a message that is none of ours: %.100r", subnet)
            return
        try:
            site.build(subnet, last=task.request.retries >= _RETRIES)
        except CancelledError as error:
            raise Reject("handed back", requeue=True) from error
        except (StoreUnavailableError, UnknownBundleError) as error:
            raise task.retry(exc=error, countdown=_RETRY_SECONDS, max_retries=_RETRIES) from error

    celery.task(name=TASK, bind=True)(build)

    def present(**_: object) -> None:
        site.sign_on()

    def drain(**_: object) -> None:
        site.sign_off()
        timer = threading.Timer(settings.shutdown_grace, site.hand_back)
        timer.daemon = True
        timer.start()

    status = WorkerStatus.start(settings, site) if settings.worker_port else None
    worker_ready.connect(present, weak=False)
    worker_shutting_down.connect(drain, weak=False)
    site.start()
    try:
        worker = celery.Worker(
            pool="threads",
            concurrency=settings.builders,
            loglevel=log_level.upper(),
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        worker.start()
        return int(worker.exitcode or 0)
    finally:
        worker_ready.disconnect(present)
        worker_shutting_down.disconnect(drain)
        if status is not None:
            status.stop()
        site.stop()
