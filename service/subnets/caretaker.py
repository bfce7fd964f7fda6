"""What somebody has to see to after a fault: abandoned builds, a Redis without its data, stopped clocks."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace

from service.errors import ProblemError
from service.jobs.queue import BuildQueue
from service.subnets.artifacts import ArtifactStore
from service.subnets.record import repeatable
from service.subnets.store import (
    Claim,
    LeaseLostError,
    Pulse,
    StoredRecord,
    StoreUnavailableError,
    SubnetStore,
)

logger = logging.getLogger("eqnet.subnets")

_ROUND = 2.0
"""Seconds between looks, or half a lease where that is less."""

_STALLED = 1.5
"""Leases without a heartbeat after which a builder counts as dead although its lease has not run out."""

_FOREIGN = 300.0
"""Seconds after which a build that another version promised, and nobody builds, is given up: while a cluster
is updated, those who promised it may still be there."""


class Caretaker:
    """One per web process; all of them look, the leases see to it that only one acts."""

    def __init__(
        self, *, store: SubnetStore, artifacts: ArtifactStore, queue: BuildQueue, lease: float
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._queue = queue
        self._lease = lease
        self._pulses: dict[str, tuple[Pulse, float]] = {}
        self._suspects: set[str] = set()

    async def run(self) -> None:
        """For ever, round by round; no fault ends it."""
        while True:
            for task in (self._restore, self._look):  # an artifact store that is away keeps no build waiting
                try:
                    await task()
                except (StoreUnavailableError, OSError) as error:
                    logger.warning("%s", error)
                except Exception:
                    logger.exception("what a fault left cannot be looked after")
            await asyncio.sleep(min(_ROUND, self._lease / 2))

    async def _look(self) -> None:
        promised = await self._store.promised()
        self._pulses = {subnet: self._pulses[subnet] for subnet in promised if subnet in self._pulses}
        without = {subnet for subnet in promised if not await self._alive(subnet)}
        # Without a lease twice in a row: where a clock was set ahead, its holder only has to renew it.
        for subnet in without & self._suspects:
            await self._adopt(subnet)
        self._suspects = without

    async def _alive(self, subnet: str) -> bool:
        """Whether somebody holds the lease, and has shown a heartbeat by the clock of this process."""
        pulse = await self._store.pulse(subnet)
        if pulse is None:
            return False
        now = time.monotonic()
        last, since = self._pulses.get(subnet, (None, now))
        if last != pulse:
            self._pulses[subnet] = (pulse, now)
            return True
        if now - since < _STALLED * self._lease:
            return True
        logger.warning("the builder of %s has not been heard of for %.0f s", subnet, now - since)
        return not await self._store.expel(subnet, pulse)

    async def _restore(self) -> None:
        """Fill a Redis that is new, or came back empty, from the artifact store."""
        if await self._store.restored():
            return
        for subnet in await asyncio.to_thread(lambda: list(self._artifacts.subnets())):
            document = await asyncio.to_thread(self._artifacts.record, subnet)
            if document is not None:
                await self._store.put(StoredRecord.from_json(document))
        await self._store.mark_restored()

    async def _adopt(self, subnet: str) -> None:
        found = await self._store.find(subnet)
        if found is None or found.final:
            return
        if found.status != "queued":  # it was begun: it may be finished, and Redis was away when it was
            document = await asyncio.to_thread(self._artifacts.record, subnet)
            if document is not None:
                await self._store.put(StoredRecord.from_json(document))
                return
        order = repeatable(found)
        if order is None:
            if time.time() - int(found.member[:20]) / 1e6 > _FOREIGN:
                await self._give_up(found)
            return
        with suppress(ProblemError):  # a full queue: the next round tries again
            if await self._queue.submit(order) is True:
                logger.info("build of %s was abandoned and is taken up here", subnet)

    async def _give_up(self, found: StoredRecord) -> None:
        """End a build that was promised by another version of the service: this one would build another."""
        claim = await self._store.claim(found)
        if not isinstance(claim, Claim):
            return
        problem = {
            "code": "other-version",
            "detail": "the service was replaced by another version: ask again",
        }
        record = {**found.record, "status": "failed", "problem": problem}
        with suppress(LeaseLostError):
            await self._store.finish(claim, replace(found, record=record))
            logger.warning("build of %s was promised by another version and is given up", found.id)
