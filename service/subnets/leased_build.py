"""One build under a lease: the heartbeat while a pool builds, then the record. The same wherever it runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from service.health.metrics import Metrics
from service.jobs.pool import BuilderDiedError, BuilderPool, BuildTimeoutError
from service.logs import subnet_id
from service.subnets.artifacts import ArtifactStore
from service.subnets.builder import problem_document
from service.subnets.store import Claim, LeaseLostError, StoredRecord, StoreUnavailableError, SubnetStore
from service.tracing import build_span, record_stages

logger = logging.getLogger("eqnet.subnets")

Ending = Literal["ready", "failed", "cancelled", "lost"]

MAX_ATTEMPTS = 5
"""Claims after which a build that never ends is failed: it may be what kills its builders."""

_HEARTBEAT = 0.4
"""Seconds; also how long a cancelled build goes on at most."""


class LeasedBuilds:
    """Runs claimed builds on `pool`; `lease` is in seconds."""

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
        self._interval = min(_HEARTBEAT, lease / 4)
        self._metrics = metrics

    async def run(self, claim: Claim) -> Ending:
        """Hold the lease while the pool builds on the place reserved there, then publish.

        Cancelling this ends the builder and hands the build back: whoever claims it next, does at once.
        """
        subnet = claim.stored.id
        subnet_id.set(subnet)
        with build_span(subnet):
            return await self._run(claim)

    async def _run(self, claim: Claim) -> Ending:
        subnet = claim.stored.id
        state: dict[str, Any] = {"stage": "queued", "fraction": 0.0}
        started = time.monotonic()
        run = asyncio.create_task(self._build(claim, state))
        heartbeat = asyncio.create_task(self._heartbeat(claim, state))
        try:
            await asyncio.wait([run, heartbeat], return_when=asyncio.FIRST_COMPLETED)
            if not run.done():
                heartbeat.result()  # raises LeaseLostError: the finally stops the builder
            ending = await self._publish(claim, run.result())
            self._metrics.build_seconds.observe(time.monotonic() - started)
        except LeaseLostError as error:
            logger.info("build of %s stopped: %s", subnet, error)
            ending = "cancelled" if error.cancelled else "lost"
        except asyncio.CancelledError:
            with suppress(StoreUnavailableError):
                await self._store.release(claim)
            raise
        finally:
            for task in (run, heartbeat):
                task.cancel()
            await asyncio.gather(run, heartbeat, return_exceptions=True)
        if ending == "cancelled":  # only now: a builder that still runs may still store files
            await self._sweep(subnet)
        self._metrics.builds.labels(ending).inc()
        return ending

    async def _build(self, claim: Claim, state: dict[str, Any]) -> dict[str, Any]:
        if claim.attempt > MAX_ATTEMPTS:
            self._pool.cancel_reservation()
            return _failed(
                "builder-died", f"{MAX_ATTEMPTS} servers or workers ended over this build; ask again"
            )
        try:
            return await self._pool.run(
                {"id": claim.stored.id, "order": claim.stored.order},
                lambda stage, fraction: state.update(stage=stage, fraction=fraction),
            )
        except BuilderDiedError:
            return _failed("builder-died", "the builder process died twice; ask again")
        except BuildTimeoutError:
            return _failed("build-timeout", "the build took too long; ask again")

    async def _heartbeat(self, claim: Claim, state: Mapping[str, Any]) -> None:
        while True:
            stored = claim.stored if state["stage"] == "queued" else _begun(claim)
            # An outage is no reason to stop: what is being built stays right, the next beat may pass.
            with suppress(StoreUnavailableError):
                await self._store.renew(claim, stored, state)
            await asyncio.sleep(self._interval)

    async def _publish(self, claim: Claim, outcome: Mapping[str, Any]) -> Ending:
        if "built" in outcome:
            ready = {**claim.stored.record, "status": "ready", **outcome["built"]}
            try:
                await self._commit(claim, ready)
            except OSError as error:
                outcome = {"failed": problem_document(error)}
            else:
                await self._finish(claim, ready)
                self._metrics.stages(ready["timings"])
                record_stages(ready["timings"], end=time.time())
                logger.info("built %s", claim.stored.id, extra={"timings": ready["timings"]})
                return "ready"
        # What a failed build has stored is of no use to anybody, and may be what fills the disk.
        with suppress(StoreUnavailableError, OSError):
            # Renewed first: it must not be dropped under the hands of a builder that has taken over.
            await self._store.renew(claim, _begun(claim), {"stage": "store", "fraction": 1.0})
            await asyncio.to_thread(self._artifacts.drop, claim.stored.id)
        await self._finish(claim, {**claim.stored.record, "status": "failed", "problem": outcome["failed"]})
        return "failed"

    async def _commit(self, claim: Claim, record: Mapping[str, Any]) -> None:
        # Checked before and, by `finish`, after: a deletion in between must not leave the subnet behind.
        with suppress(StoreUnavailableError):
            await self._store.renew(claim, _begun(claim), {"stage": "store", "fraction": 1.0})
        stored = replace(claim.stored, record=record)
        commit = asyncio.create_task(asyncio.to_thread(self._artifacts.commit, stored.id, stored.to_json()))
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait([commit])  # a thread cannot be stopped: whoever cancelled must find it done
            raise

    async def _finish(self, claim: Claim, record: Mapping[str, Any]) -> None:
        try:
            await self._store.finish(claim, replace(claim.stored, record=record))
        except StoreUnavailableError as error:
            logger.warning("%s is finished but not announced: %s", claim.stored.id, error)

    async def _sweep(self, subnet: str) -> None:
        """Remove what a cancelled build left, unless somebody has asked for the subnet again meanwhile."""
        with suppress(StoreUnavailableError, OSError):
            if await self._store.find(subnet) is None:
                await asyncio.to_thread(self._artifacts.drop, subnet)


def _begun(claim: Claim) -> StoredRecord:
    """Not `queued`: if this process dies, whoever finds it is to look whether it was committed."""
    return replace(claim.stored, record={**claim.stored.record, "status": "building"})


def _failed(code: str, detail: str) -> dict[str, Any]:
    return {"failed": {"code": code, "detail": detail}}
