"""What the service asks of those who build, whether in this process's pool or on other machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from service.jobs.roster import WorkerSite
from service.subnets.order import SubnetOrder
from service.subnets.store import StoredRecord


class BuildQueue(Protocol):
    """Takes orders. Whoever builds one holds its lease, tells its progress and publishes its record there."""

    @property
    def builders(self) -> int:
        """Builders that this process runs itself."""

    @property
    def workers(self) -> tuple[WorkerSite, ...] | None:
        """Those elsewhere that take builds; None where builds run here, or that is not known yet."""

    def obstacle(self, bundle: str) -> str | None:
        """Why nobody will begin with a build from the bundle of this digest at present, if that is so."""

    @property
    def restarts(self) -> int:
        """How often one of them had to be replaced."""

    @property
    def queued(self) -> int:
        """Builds that wait for a builder, as far as is known here."""

    async def start(self) -> None: ...

    async def renew(self, arguments: Sequence[str]) -> None:
        """The bundles are others now: builders of this process are started again with these arguments."""

    async def stop(self) -> None:
        """Hand back what is being built here: a restart, or somebody else, takes it up at once."""

    async def submit(self, order: SubnetOrder) -> StoredRecord | bool:
        """Have it built unless somebody does: True if this call came first, the record where it is ready.

        Raises:
            ProblemError: 429 when too many builds wait, 503 when the store does not answer.
        """

    async def cancel(self, subnet: str) -> bool:
        """End the build now if it runs here; whether it did. Elsewhere the lease, which is gone, ends it."""
