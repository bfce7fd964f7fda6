"""From the settings to whoever builds."""

from __future__ import annotations

import os

from redis.asyncio import Redis

from service.health.metrics import Metrics
from service.jobs.local import LocalQueue
from service.jobs.pool import BuilderPool
from service.jobs.queue import BuildQueue
from service.settings import Settings
from service.subnets.artifacts import ArtifactStore
from service.subnets.leased_build import LeasedBuilds
from service.subnets.store import SubnetStore
from service.supernets.catalogue import SupernetCatalogue


def open_queue(
    settings: Settings,
    *,
    supernets: SupernetCatalogue,
    redis: Redis,
    store: SubnetStore,
    artifacts: ArtifactStore,
    metrics: Metrics,
) -> BuildQueue:
    """Celery workers where a broker is configured, otherwise a pool of this process. Not started yet."""
    if settings.broker_url is not None:
        # Imported here: without a broker nobody needs Celery, nor has to have it.
        from service.jobs.broker import make_celery
        from service.jobs.remote import CeleryQueue
        from service.jobs.roster import Roster
        from service.jobs.waiting import WaitingBuilds

        return CeleryQueue(
            store=store,
            # A build always waits for a moment before a worker claims it: a limit of 0 would refuse all.
            waiting=WaitingBuilds(redis, limit=max(1, settings.queue_limit)),
            roster=Roster(redis),
            celery=make_celery(settings.broker_url, build_timeout=settings.build_timeout),
        )
    pool = BuilderPool(
        count=settings.builders,
        queue_limit=settings.queue_limit,
        timeout=settings.build_timeout,
        arguments=worker_arguments(settings, supernets),
    )
    builds = LeasedBuilds(
        store=store,
        artifacts=artifacts,
        pool=pool,
        lease=settings.lease,
        metrics=metrics,
    )
    return LocalQueue(store=store, pool=pool, builds=builds)


def worker_arguments(settings: Settings, supernets: SupernetCatalogue) -> list[str]:
    """For `python -m service.jobs.worker`."""
    threads = settings.builder_threads or max(1, (os.cpu_count() or 1) // settings.builders)
    arguments = ["--artifacts-url", settings.artifacts_location, "--threads", str(threads)]
    if settings.evaluation_data is not None:
        arguments += ["--evaluation-data", str(settings.evaluation_data)]
        arguments += ["--evaluation-limit", str(settings.evaluation_limit)]
    return [*arguments, *(str(path) for path in supernets.paths.values())]
