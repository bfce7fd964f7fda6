"""Builds in the pool of this very process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from service.errors import ProblemError, unavailable
from service.jobs.pool import BuilderPool, QueueFullError
from service.subnets.leased_build import LeasedBuilds
from service.subnets.order import SubnetOrder
from service.subnets.record import new_record
from service.subnets.store import Claim, StoredRecord, StoreUnavailableError, SubnetStore

logger = logging.getLogger("eqnet.subnets")


class LocalQueue:
    """A BuildQueue without a broker. Claims at once, so that its leases cover builds that wait, too."""

    def __init__(self, *, store: SubnetStore, pool: BuilderPool, builds: LeasedBuilds) -> None:
        self._store = store
        self._pool = pool
        self._builds = builds
        self._running: dict[str, asyncio.Task[object]] = {}
        self._submitting: dict[str, asyncio.Task[StoredRecord | bool]] = {}

    @property
    def builders(self) -> int:
        return len(self._pool.pids)

    workers = None

    def obstacle(self, bundle: str) -> str | None:
        return None  # a builder that is not there is started when its turn comes

    @property
    def restarts(self) -> int:
        return self._pool.restarts

    @property
    def queued(self) -> int:
        return self._pool.queued

    async def start(self) -> None:
        await self._pool.start()

    async def renew(self, arguments: Sequence[str]) -> None:
        await self._pool.renew(arguments)

    async def stop(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.stop()

    async def submit(self, order: SubnetOrder) -> StoredRecord | bool:
        # Identical ones at once are one: each would take a place in the queue until it knows of the first.
        if (first := self._submitting.get(order.id)) is not None:
            answer = await asyncio.shield(first)
            return answer if isinstance(answer, StoredRecord) else False
        task = asyncio.create_task(self._submit(order))
        self._submitting[order.id] = task
        try:
            return await asyncio.shield(task)
        finally:
            self._submitting.pop(order.id, None)

    async def _submit(self, order: SubnetOrder) -> StoredRecord | bool:
        try:
            self._pool.reserve()
        except QueueFullError as error:
            with suppress(StoreUnavailableError):
                if await self._store.held(order.id):
                    return False  # being built already: waiting for it takes no place in the queue
            raise queue_full(self._pool.queued) from error
        claim = None
        try:
            try:
                claim = await self._store.claim(new_record(order))
            except StoreUnavailableError as error:
                raise unavailable(str(error)) from error
            if not isinstance(claim, Claim):
                return claim if claim is not None else False
            begun = asyncio.Event()
            task = asyncio.create_task(self._run(claim, begun), name=f"build {order.id}")
            self._running[order.id] = task
            task.add_done_callback(lambda done: self._forget(order.id, done, begun))
            return True
        finally:
            if not isinstance(claim, Claim):
                self._pool.cancel_reservation()

    async def _run(self, claim: Claim, begun: asyncio.Event) -> object:
        begun.set()
        return await self._builds.run(claim)

    async def cancel(self, subnet: str) -> bool:
        task = self._running.get(subnet)
        if task is None:
            return False
        task.cancel()
        await asyncio.wait([task])
        return True

    def _forget(self, subnet: str, task: asyncio.Task[object], begun: asyncio.Event) -> None:
        if not begun.is_set():  # cancelled before its first step: nobody else gives the place back
            self._pool.cancel_reservation()
        if self._running.get(subnet) is task:
            del self._running[subnet]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the build of %s ended in a defect", subnet, exc_info=error)


def queue_full(waiting: int) -> ProblemError:
    return ProblemError(
        429,
        "queue-full",
        f"{waiting} builds are waiting already: ask again later",
        headers={"Retry-After": "10"},
    )
