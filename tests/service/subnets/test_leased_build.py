"""Against a real store, with a pool that needs no builders."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.embedded import EmbeddedStore
from service.health.metrics import Metrics
from service.jobs.pool import Progress
from service.subnets.artifacts import ArtifactStore
from service.subnets.leased_build import LeasedBuilds
from service.subnets.order import SubnetOrder
from service.subnets.record import new_record
from service.subnets.store import Claim, StoredRecord, SubnetStore, connect

ORDER = SubnetOrder(supernet="a", bundle_digest="sha256:a", what={"layers": []}, artifacts=("model.onnx",))


class Pool:
    def __init__(self, outcome: dict[str, Any]) -> None:
        self._outcome = outcome

    async def run(self, job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        progress("store", 0.95)
        return self._outcome


class Observed(SubnetStore):
    """Keeps the status that each record had which was written while artifacts were stored."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.statuses: list[str] = []

    async def renew(self, claim: Claim, stored: StoredRecord, progress: Mapping[str, Any]) -> None:
        if progress["stage"] == "store":
            self.statuses.append(stored.status)
        await super().renew(claim, stored, progress)


@pytest.mark.parametrize(
    ("outcome", "ending"),
    [({"built": {"timings": {}}}, "ready"), ({"failed": {"code": "a", "detail": "b"}}, "failed")],
)
def test_a_build_in_its_last_stage_is_not_called_queued(
    tmp_path: Path, outcome: dict[str, Any], ending: str
) -> None:
    """Its process may die there: the caretaker looks for files of builds that were begun, and no others."""

    async def main() -> None:
        server = EmbeddedStore(tmp_path / "store")
        await server.start()
        redis = connect(server.url)
        store = Observed(redis, lease=10)
        builds = LeasedBuilds(
            store=store,
            artifacts=ArtifactStore(f"file://{tmp_path}/artifacts"),
            pool=Pool(outcome),  # type: ignore[arg-type]
            lease=10,
            metrics=Metrics(),
        )
        try:
            claim = await store.claim(new_record(ORDER))
            assert isinstance(claim, Claim)
            assert await builds.run(claim) == ending
            assert set(store.statuses) == {"building"}
        finally:
            await redis.aclose()
            await server.stop()

    asyncio.run(main())
