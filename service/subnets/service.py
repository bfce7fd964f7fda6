"""From a request to a finished subnet: find it, or have it built and wait for that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from service.errors import ProblemError, not_found, unavailable
from service.health.metrics import Metrics
from service.jobs.queue import BuildQueue
from service.subnets.artifacts import ArtifactStore, StoredFile
from service.subnets.checked_file import CheckedFile, DamagedArtifactError
from service.subnets.order import SubnetOrder
from service.subnets.record import RETRY_AFTER, new_record, repeatable, shown_record
from service.subnets.store import FINAL, StoredRecord, StoreUnavailableError, SubnetStore
from service.subnets.watch import Watches

logger = logging.getLogger("eqnet.subnets")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`built` by this very call, a `hit` that was there before, or neither: waited for another's build."""

    record: Mapping[str, Any]
    built: bool = False
    hit: bool = False

    @property
    def final(self) -> bool:
        return self.record["status"] in FINAL


class SubnetService:
    """One per web process."""

    def __init__(
        self,
        *,
        store: SubnetStore,
        artifacts: ArtifactStore,
        queue: BuildQueue,
        metrics: Metrics,
        buildable: Callable[[SubnetOrder], bool],
    ) -> None:
        """`buildable` says whether a builder that starts now has what this order needs."""
        self._store = store
        self._buildable = buildable
        self._artifacts = artifacts
        self._queue = queue
        self._metrics = metrics
        self._watches = Watches(self._look, self._dropped)
        self._leaving = asyncio.Event()

    async def end_streams(self) -> None:
        """The service is about to end: whoever follows a build is to follow it elsewhere, from now on."""
        await self._watches.end_states()

    def leave(self) -> None:
        """The service ends: whoever waits for a build is told now that it is being built."""
        self._leaving.set()

    def stop(self) -> None:
        self._watches.stop()

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
        claimed = await self._queue.submit(order)
        if isinstance(claimed, StoredRecord):
            self._metrics.subnets.labels("hit").inc()
            return Answer(record=shown_record(claimed), hit=True)
        self._metrics.subnets.labels("built" if claimed else "shared").inc()
        if wait <= 0:
            return Answer(record=await self._unfinished(subnet), built=claimed)
        settling = asyncio.ensure_future(self._watches.settled(subnet))
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait([settling, leaving], timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if not settling.done():
                return Answer(record=await self._unfinished(subnet), built=claimed)
            settled = settling.result()
        finally:
            settling.cancel()
            leaving.cancel()
        if settled is None:
            raise _cancelled(subnet)
        return Answer(record=settled, built=claimed)

    async def _unfinished(self, subnet: str) -> dict[str, Any]:
        shown = await self._look(subnet)
        if shown is None:
            raise _cancelled(subnet)
        return shown

    async def record(self, subnet: str) -> dict[str, Any]:
        """The record as the API shows it, with the progress of a build.

        Raises:
            ProblemError: 404, or 503 where it may exist but Redis is away.
        """
        shown = await self._look(subnet)
        if shown is None:
            raise not_found("subnet", subnet)
        return shown

    def states(self, subnet: str) -> AsyncGenerator[Mapping[str, Any] | None]:
        """The record now and after every change, until it is ready, failed or deleted (None), or the service
        ends.
        """
        return self._watches.states(subnet)

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
        if await self._queue.cancel(subnet):
            self._metrics.builds.labels("cancelled").inc()
        try:
            await asyncio.to_thread(self._artifacts.drop, subnet)
        except OSError as error:
            with suppress(StoreUnavailableError):
                await self._store.undrop(subnet)  # it is still there, and is found there
            raise unavailable(f"the artifacts cannot be dropped: {error}", code="storage") from error

    async def artifact(self, subnet: str, name: str, use: Callable[[CheckedFile], T]) -> T:
        """What `use` makes, in a thread, of the file, checked and open, which it closes; a damaged one is
        built again, from the same order.

        Raises:
            ProblemError: 404 for no such subnet or artifact, 409 until it is ready, 503 while it is mended,
                where it cannot be, and while the artifact store is away; and whatever `use` raises.
        """
        found = await self._find(subnet)
        if found is None:
            raise not_found("subnet", subnet)
        if found.status == "failed":
            raise ProblemError(
                409,
                "not-ready",
                f"the build of {subnet} failed: repeat the POST /subnets that asked for it",
            )
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
            return await asyncio.to_thread(lambda: use(self._artifacts.open(subnet, file)))
        except DamagedArtifactError as error:
            obstacle = await self._mend(found)
            logger.error("%s; it %s", error, obstacle or "is built again")
            raise unavailable(
                f"the stored {name} was damaged and {obstacle or 'is being built again; ask again'}",
                code="damaged-artifact",
            ) from error
        except OSError as error:
            raise unavailable(f"the artifact store does not answer: {error}", code="storage") from error

    async def _look(self, subnet: str) -> dict[str, Any] | None:
        found, progress = await self._find(subnet), None
        if found is None:
            return None
        shown = shown_record(found)
        if not found.final:
            try:
                progress = await self._store.progress(subnet)
            except StoreUnavailableError as error:  # not known: to say `queued` would be wrong for most
                raise unavailable(str(error)) from error
            if progress is None:
                progress = {"stage": "queued", "fraction": 0.0}
                if (obstacle := self._queue.obstacle(found.order["supernet"]["digest"])) is not None:
                    progress["detail"] = obstacle
            shown["progress"] = progress
            shown["status"] = "queued" if progress["stage"] == "queued" else "building"
        return shown

    async def _dropped(self, subnet: str) -> bool:
        try:
            return await self._store.dropped(subnet)
        except StoreUnavailableError as error:
            raise unavailable(str(error)) from error

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
                if not await self._store.put(stored):  # dropped, or being built again, since it was read
                    return await self._store.find(subnet)
        return stored

    async def _mend(self, found: StoredRecord) -> str | None:
        """Have a damaged subnet built again; why not, where that is impossible: then nothing is touched, as
        its other files may be whole.

        The promise comes first: whatever happens then, the caretaker keeps it.
        """
        order = repeatable(found)
        if order is None:
            return "cannot be built again, as another version of the service made it: repeat its POST"
        if not self._buildable(order):
            return (
                f"cannot be built again, as {order.supernet} or the evaluation images are no longer what "
                "it was made with: repeat its POST"
            )
        try:
            reopened = await self._store.reopen(new_record(order))
        except StoreUnavailableError:
            return None
        if reopened:
            with suppress(OSError):
                await asyncio.to_thread(self._artifacts.drop, found.id)
            with suppress(ProblemError):
                await self._queue.submit(order)
        return None


def _cancelled(subnet: str) -> ProblemError:
    return ProblemError(409, "cancelled", f"the build of {subnet} was cancelled by DELETE: ask again")
