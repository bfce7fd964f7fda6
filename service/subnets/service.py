"""From a request to a finished subnet: find it, or claim it and have it built, or wait for who builds it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from service.errors import ProblemError, not_found, unavailable
from service.health.metrics import Metrics
from service.jobs.pool import BuilderDiedError, BuilderPool, BuildTimeoutError, QueueFullError
from service.subnets.artifacts import ArtifactStore, DamagedArtifactError, StoredFile
from service.subnets.order import SubnetOrder
from service.subnets.record import RETRY_AFTER, new_record, shown_record
from service.subnets.store import (
    Claim,
    LeaseLostError,
    StoredRecord,
    StoreUnavailableError,
    SubnetStore,
)

logger = logging.getLogger("eqnet.subnets")

_FINAL = ("ready", "failed")
_WATCH_INTERVAL = 0.1
_MISSING_LIMIT = 15
"""Looks without a record after which it counts as deleted: three heartbeats."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`built` by this very call, a `hit` that was there before, or neither: waited for another's build."""

    record: Mapping[str, Any]
    built: bool = False
    hit: bool = False

    @property
    def final(self) -> bool:
        return self.record["status"] in _FINAL


class SubnetService:
    """One per web process; `lease` in seconds. `start` and `stop` bracket its life."""

    def __init__(
        self,
        *,
        store: SubnetStore,
        artifacts: ArtifactStore,
        pool: BuilderPool,
        lease: float,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._pool = pool
        self._lease = lease
        self._metrics = metrics
        self._builds: dict[str, asyncio.Task[None]] = {}
        self._watches: dict[str, asyncio.Task[StoredRecord | None]] = {}
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._background = [asyncio.create_task(self._adopt_abandoned())]

    async def stop(self) -> None:
        """End local builds and hand them back: a restart, or another replica, takes them up at once."""
        tasks = [*self._background, *self._watches.values(), *self._builds.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, order: SubnetOrder, *, wait: float) -> Answer:
        """The subnet of this order; a record in progress where it takes longer than `wait` seconds.

        Raises:
            ProblemError: 429 when too many builds wait, 503 when it would have to be built but Redis is away.
        """
        subnet = order.id
        found = await self._find(subnet)
        if found is not None and found.status == "ready":
            self._metrics.subnets.labels("hit").inc()
            return Answer(record=shown_record(found), hit=True)
        claimed = await self._claim(order)
        if isinstance(claimed, StoredRecord):
            self._metrics.subnets.labels("hit").inc()
            return Answer(record=shown_record(claimed), hit=True)
        self._metrics.subnets.labels("built" if claimed else "shared").inc()
        settled = await self._settled(subnet, wait)
        if settled is None:
            return Answer(record=await self.record(subnet), built=claimed)
        return Answer(record=shown_record(settled), built=claimed)

    async def record(self, subnet: str) -> dict[str, Any]:
        """The record as the API shows it, with the progress of a build.

        Raises:
            ProblemError: 404, or 503 where it may exist but Redis is away.
        """
        found = await self._find(subnet)
        if found is None:
            raise not_found("subnet", subnet)
        shown = shown_record(found)
        if found.status not in _FINAL:
            with suppress(StoreUnavailableError):
                progress = await self._store.progress(subnet) or {"stage": "queued", "fraction": 0.0}
                shown["progress"] = progress
                shown["status"] = "queued" if progress["stage"] == "queued" else "building"
        return shown

    async def page(self, limit: int, before: str | None) -> tuple[list[dict[str, Any]], str | None]:
        try:
            records, following = await self._store.page(limit, before)
        except StoreUnavailableError as error:
            raise unavailable(str(error)) from error
        return [shown_record(record) for record in records], following

    async def drop(self, subnet: str) -> None:
        """Cancel the build if there is one, and forget record and artifacts."""
        if await self._find(subnet) is None:
            raise not_found("subnet", subnet)
        try:
            await self._store.drop(subnet)
        except StoreUnavailableError as error:
            raise unavailable(str(error)) from error
        build = self._builds.get(subnet)
        if build is not None:
            self._metrics.builds.labels("cancelled").inc()
            build.cancel()
            await asyncio.wait([build])
        await asyncio.to_thread(self._artifacts.drop, subnet)

    async def artifact(self, subnet: str, name: str) -> tuple[StoredFile, bytes]:
        """The file and its checked content; a damaged one is built again, from the same order.

        Raises:
            ProblemError: 404 for no such subnet or artifact, 409 until it is ready, 503 while mended.
        """
        found = await self._find(subnet)
        if found is None:
            raise not_found("subnet", subnet)
        if found.status != "ready":
            raise ProblemError(
                409,
                "not-ready",
                f"subnet {subnet} is {found.status}: ask again when GET /subnets/{subnet} says ready",
                headers={"Retry-After": str(RETRY_AFTER)},
            )
        files = [
            StoredFile(name=f["name"], bytes=f["bytes"], sha256=f["sha256"])
            for f in found.record["artifacts"]
        ]
        for file in files:
            if file.name == name:
                break
        else:
            raise not_found("artifact", name, [file.name for file in files])
        try:
            return file, await asyncio.to_thread(self._artifacts.read, subnet, file)
        except DamagedArtifactError as error:
            logger.error("%s; it is built again", error)
            await self._mend(found)
            raise unavailable(
                f"the stored {name} was damaged and is being built again; ask again", code="damaged-artifact"
            ) from error

    async def _find(self, subnet: str) -> StoredRecord | None:
        """From Redis, or failing that from the artifact store, which has every finished subnet."""
        outage: StoreUnavailableError | None = None
        try:
            found = await self._store.find(subnet)
        except StoreUnavailableError as error:
            found, outage = None, error
        if found is not None:
            return found
        try:
            document = await asyncio.to_thread(self._artifacts.record, subnet)
        except OSError as error:
            raise unavailable(f"the artifact store does not answer: {error}") from error
        if document is None:
            if outage is not None:
                raise unavailable(str(outage)) from outage
            return None
        stored = StoredRecord.from_json(document)
        if outage is None:
            with suppress(StoreUnavailableError):
                await self._store.put(stored)
        return stored

    async def _claim(self, order: SubnetOrder) -> bool | StoredRecord:
        """Start the build here unless somebody has; whether it is ours, or the record where it is ready."""
        try:
            self._pool.reserve()
        except QueueFullError as error:
            with suppress(StoreUnavailableError):
                if await self._store.held(order.id):
                    return False  # being built already: waiting for it takes no place in the queue
            raise ProblemError(
                429,
                "queue-full",
                f"{self._pool.queued} builds are waiting already: ask again later",
                headers={"Retry-After": "10"},
            ) from error
        claim = None
        try:
            try:
                claim = await self._store.claim(new_record(order))
            except StoreUnavailableError as error:
                raise unavailable(str(error)) from error
            if not isinstance(claim, Claim):
                return claim if claim is not None else False
            task = asyncio.create_task(self._build(claim), name=f"build {order.id}")
            self._builds[order.id] = task
            task.add_done_callback(lambda done: self._forget_build(order.id, done))
            return True
        finally:
            if not isinstance(claim, Claim):
                self._pool.cancel_reservation()

    def _forget_build(self, subnet: str, task: asyncio.Task[None]) -> None:
        if self._builds.get(subnet) is task:
            del self._builds[subnet]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the build of %s ended in a defect", subnet, exc_info=error)

    async def _build(self, claim: Claim) -> None:
        """Hold the lease while the pool builds, then publish."""
        state: dict[str, Any] = {"stage": "queued", "fraction": 0.0}
        job = {"id": claim.stored.id, "order": claim.stored.order}
        run = asyncio.create_task(
            self._pool.run(job, lambda stage, fraction: state.update(stage=stage, fraction=fraction))
        )
        heartbeat = asyncio.create_task(self._heartbeat(claim, state))
        started = time.monotonic()
        try:
            await asyncio.wait([run, heartbeat], return_when=asyncio.FIRST_COMPLETED)
            if not run.done():
                heartbeat.result()  # raises LeaseLostError: the finally stops the builder
            outcome = _outcome(run)
            await self._publish(claim, outcome)
            self._metrics.builds.labels("ready" if "built" in outcome else "failed").inc()
            self._metrics.build_seconds.observe(time.monotonic() - started)
        except LeaseLostError as error:
            logger.info("build of %s stopped: %s", claim.stored.id, error)
            self._metrics.builds.labels("cancelled" if error.cancelled else "lost").inc()
            if error.cancelled:
                await self._sweep(claim.stored.id)
        except asyncio.CancelledError:
            with suppress(StoreUnavailableError):
                await self._store.release(claim)
            raise
        finally:
            for task in (run, heartbeat):
                task.cancel()
            await asyncio.gather(run, heartbeat, return_exceptions=True)

    async def _sweep(self, subnet: str) -> None:
        """Remove what a cancelled build left, unless somebody has asked for the subnet again meanwhile."""
        with suppress(StoreUnavailableError, OSError):
            if await self._store.find(subnet) is None:
                await asyncio.to_thread(self._artifacts.drop, subnet)

    async def _heartbeat(self, claim: Claim, state: Mapping[str, Any]) -> None:
        interval = min(0.5, self._lease / 4)
        while True:
            status = "queued" if state["stage"] == "queued" else "building"
            stored = replace(claim.stored, record={**claim.stored.record, "status": status})
            # An outage is no reason to stop: what is being built stays right, the next beat may pass.
            with suppress(StoreUnavailableError):
                await self._store.renew(claim, stored, state)
            await asyncio.sleep(interval)

    async def _publish(self, claim: Claim, outcome: Mapping[str, Any]) -> None:
        record = dict(claim.stored.record)
        if "built" in outcome:
            record |= {"status": "ready", **outcome["built"]}
        else:
            record |= {"status": "failed", "problem": outcome["failed"]}
        stored = replace(claim.stored, record=record)
        if "built" in outcome:
            # Checked before and after the commit: a deletion in between must not leave the subnet behind.
            with suppress(StoreUnavailableError):
                await self._store.renew(claim, claim.stored, {"stage": "store", "fraction": 1.0})
            commit = asyncio.create_task(
                asyncio.to_thread(self._artifacts.commit, stored.id, stored.to_json())
            )
            try:
                await asyncio.shield(commit)
            except asyncio.CancelledError:
                await commit  # a thread cannot be stopped: whoever cancelled must find it done
                raise
        try:
            await self._store.finish(claim, stored)
        except StoreUnavailableError as error:
            logger.warning("%s is finished but not announced: %s", stored.id, error)

    async def _settled(self, subnet: str, wait: float) -> StoredRecord | None:
        """The final record, or None after `wait` seconds. All who wait for one subnet share one watch."""
        if wait <= 0:
            return None
        watch = self._watches.get(subnet)
        if watch is None or watch.done():
            watch = self._watches[subnet] = asyncio.create_task(self._watch(subnet))
            watch.add_done_callback(lambda done: self._forget_watch(subnet, done))
        try:
            settled = await asyncio.wait_for(asyncio.shield(watch), wait)
        except TimeoutError:
            return None
        if settled is None:
            raise ProblemError(409, "cancelled", f"the build of {subnet} was cancelled by DELETE: ask again")
        return settled

    def _forget_watch(self, subnet: str, watch: asyncio.Task[StoredRecord | None]) -> None:
        if self._watches.get(subnet) is watch:
            del self._watches[subnet]

    async def _watch(self, subnet: str) -> StoredRecord | None:
        """Until the record is final; None when it was deleted."""
        missing = 0
        while True:
            build = self._builds.get(subnet)
            if build is not None:
                await asyncio.wait([build])
            try:
                found = await self._find(subnet)
            except ProblemError:  # an outage: those who wait have their own limit
                found = None
            else:
                # A Redis that came back empty knows of a build again with its builder's next heartbeat.
                missing = missing + 1 if found is None else 0
                if missing > _MISSING_LIMIT or (found is not None and found.status in _FINAL):
                    return found
            await asyncio.sleep(_WATCH_INTERVAL)

    async def _mend(self, found: StoredRecord) -> None:
        """Drop a damaged subnet and build it again."""
        with suppress(StoreUnavailableError):
            await self._store.drop(found.id)
        with suppress(OSError):
            await asyncio.to_thread(self._artifacts.drop, found.id)
        with suppress(ProblemError):
            await self._claim(SubnetOrder.from_json(found.order))

    async def _adopt_abandoned(self) -> None:
        """Take up builds whose builder is gone: of a killed replica, or of this server before a restart."""
        while True:
            try:
                if not await self._store.restored():
                    await self._restore()
                for subnet in await self._store.promised():
                    if subnet not in self._builds and not await self._store.held(subnet):
                        await self._adopt(subnet)
            except StoreUnavailableError as error:
                logger.warning("%s", error)
            except Exception:
                logger.exception("abandoned builds cannot be looked after")
            await asyncio.sleep(self._lease / 2)

    async def _restore(self) -> None:
        """Fill a Redis that is new, or came back empty, from the artifact store."""
        for subnet in await asyncio.to_thread(lambda: list(self._artifacts.subnets())):
            document = await asyncio.to_thread(self._artifacts.record, subnet)
            if document is not None:
                await self._store.put(StoredRecord.from_json(document))
        await self._store.mark_restored()

    async def _adopt(self, subnet: str) -> None:
        document = await asyncio.to_thread(self._artifacts.record, subnet)
        if document is not None:  # finished, but Redis was away when it was
            await self._store.put(StoredRecord.from_json(document))
            return
        found = await self._store.find(subnet)
        if found is None or found.status in _FINAL:
            return
        logger.info("build of %s was abandoned and is taken up here", subnet)
        with suppress(ProblemError):  # a full queue: the next round tries again
            await self._claim(SubnetOrder.from_json(found.order))


def _outcome(run: asyncio.Task[dict[str, Any]]) -> dict[str, Any]:
    try:
        return run.result()
    except BuilderDiedError:
        return {"failed": {"code": "builder-died", "detail": "the builder process died twice; ask again"}}
    except BuildTimeoutError:
        return {"failed": {"code": "build-timeout", "detail": "the build took too long; ask again"}}
