"""Builds on other machines, by Celery."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from celery import Celery
from kombu.exceptions import OperationalError

from service.errors import unavailable
from service.jobs.broker import TASK, messages
from service.jobs.local import queue_full
from service.jobs.roster import Roster, WorkerSite
from service.jobs.waiting import WaitingBuilds
from service.subnets.order import SubnetOrder
from service.subnets.record import new_record
from service.subnets.store import StoredRecord, StoreUnavailableError, SubnetStore

logger = logging.getLogger("eqnet.subnets")

_ROUND = 2.0
"""Seconds between looks after what was sent from here, and who there is to take it."""

_LOST = 15.0
"""Seconds after which a message that is neither in the broker nor with a builder is sent again."""

_DELAYED = 600.0
"""The same while there are other messages in the broker: it is likely one of them."""


class CeleryQueue:
    """A BuildQueue on a broker. The store has the promise, so that a lost message costs time and no build."""

    def __init__(self, *, store: SubnetStore, waiting: WaitingBuilds, roster: Roster, celery: Celery) -> None:
        self._store = store
        self._waiting = waiting
        self._roster = roster
        self._celery = celery
        self._workers: tuple[WorkerSite, ...] | None = None
        self._sent: dict[str, StoredRecord] = {}
        self._queued = 0
        self._resend = _LOST
        self._keeper: asyncio.Task[None] | None = None

    builders = 0
    restarts = 0

    @property
    def queued(self) -> int:
        return self._queued

    @property
    def workers(self) -> tuple[WorkerSite, ...] | None:
        return self._workers

    def obstacle(self, bundle: str) -> str | None:
        if self._workers is None or any(bundle in worker.bundles for worker in self._workers):
            return None
        if not self._workers:
            return "no worker runs: builds wait until one does (`eqnet worker`)"
        return (
            f"no worker has the bundle {bundle}: builds from it fail after half a minute, "
            "restart workers with it"
        )

    async def start(self) -> None:
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())

    async def renew(self, arguments: Sequence[str]) -> None:
        """Workers have bundles of their own: their operator replaces those and restarts them."""
        await self.start()  # not done yet where these are the first bundles

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await asyncio.to_thread(self._celery.close)

    async def submit(self, order: SubnetOrder) -> StoredRecord | bool:
        return await self._submit(new_record(order))

    async def cancel(self, subnet: str) -> bool:
        self._sent.pop(subnet, None)
        return False

    async def _submit(self, stored: StoredRecord) -> StoredRecord | bool:
        try:
            answer = await self._waiting.enqueue(stored, resend=self._resend)
            if answer == "full":
                raise queue_full(await self._waiting.count())
        except StoreUnavailableError as error:
            raise unavailable(str(error)) from error
        if isinstance(answer, StoredRecord):
            return answer
        if answer in ("queued", "again"):
            self._sent[stored.id] = stored
            await self._send(stored.id)
        return answer == "queued"

    async def _send(self, subnet: str) -> None:
        try:
            await asyncio.to_thread(self._celery.send_task, TASK, args=[subnet], retry=False)
        except (OperationalError, OSError) as error:
            logger.warning("the broker does not answer, the build of %s is sent later: %s", subnet, error)
            with suppress(StoreUnavailableError):
                await self._waiting.unsent(subnet)

    async def _keep(self) -> None:
        while True:
            try:
                self._count(await self._roster.present())
                self._queued = await self._waiting.count()
                if self._queued:
                    self._resend = _DELAYED if await asyncio.to_thread(messages, self._celery) else _LOST
                await self._look_after_sent()
            except (StoreUnavailableError, OperationalError, OSError) as error:
                logger.warning("%s", error)
            except Exception:
                logger.exception("builds that were sent cannot be looked after")
            await asyncio.sleep(_ROUND)

    def _count(self, workers: tuple[WorkerSite, ...]) -> None:
        if not workers and self._workers != ():
            logger.warning("no worker runs: builds wait until one does")
        elif workers and not self._workers:
            logger.info("workers that take builds: %d", len(workers))
        self._workers = workers

    async def _look_after_sent(self) -> None:
        """Send again what a Redis that came back empty no longer knows; forget what has ended."""
        for subnet, stored in list(self._sent.items()):
            found = await self._store.find(subnet)
            if found is None and not await self._store.dropped(subnet):
                logger.warning("the store has forgotten the build of %s: it is sent again", subnet)
                await self._submit(stored)
            elif found is None or found.final:
                self._sent.pop(subnet, None)
