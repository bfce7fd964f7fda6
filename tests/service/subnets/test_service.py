"""Against a real store, with a queue that nothing is built from."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.embedded import EmbeddedStore
from service.errors import ProblemError
from service.health.metrics import Metrics
from service.jobs.local import LocalQueue
from service.jobs.pool import BuilderPool
from service.subnets.artifacts import ArtifactStore
from service.subnets.service import SubnetService
from service.subnets.store import (
    Claim,
    StoredRecord,
    StoreUnavailableError,
    SubnetStore,
    connect,
    index_member,
)

SUBNET = "0" * 32


class Interrupted(SubnetStore):
    """Redis goes away between two looks at it, which no real one does when it is told to."""

    async def progress(self, subnet: str) -> dict[str, Any] | None:
        raise StoreUnavailableError("the store does not answer: gone")


def test_a_build_whose_progress_is_not_known_is_not_called_queued(tmp_path: Path) -> None:
    async def main() -> None:
        server = EmbeddedStore(tmp_path / "store")
        await server.start()
        redis = connect(server.url)
        store = Interrupted(redis, lease=10)
        pool = BuilderPool(count=1, queue_limit=1, timeout=60, arguments=[])
        queue = LocalQueue(store=store, pool=pool, builds=None)  # type: ignore[arg-type]
        artifacts = ArtifactStore(f"file://{tmp_path}/artifacts")
        service = SubnetService(store=store, artifacts=artifacts, queue=queue, metrics=Metrics())
        try:
            record = {"id": SUBNET, "status": "building", "artifacts": [], "supernet": {"digest": "a"}}
            order = {"supernet": {"digest": "a"}}
            stored = StoredRecord(record=record, order=order, member=index_member(SUBNET, 10**15))
            assert isinstance(await store.claim(stored), Claim)
            with pytest.raises(ProblemError) as raised:
                await service.record(SUBNET)
            assert raised.value.status == 503
        finally:
            await redis.aclose()
            await server.stop()

    asyncio.run(main())
