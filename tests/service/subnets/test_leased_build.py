"""Against a real store, with a pool that needs no builders."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.embedded import EmbeddedStore
from service.health.metrics import Metrics
from service.jobs.pool import BuilderDiedError, BuildTimeoutError, Progress
from service.subnets.artifacts import ArtifactStore
from service.subnets.leased_build import MAX_ATTEMPTS, LeasedBuilds
from service.subnets.order import SubnetOrder
from service.subnets.record import new_record
from service.subnets.store import Claim, StoredRecord, SubnetStore, connect

ORDER = SubnetOrder(supernet="a", bundle_digest="sha256:a", what={"layers": []}, artifacts=("model.onnx",))


class Pool:
    def __init__(self, outcome: dict[str, Any] | Exception) -> None:
        self._outcome = outcome
        self.cancelled = 0

    async def run(self, job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        progress("store", 0.95)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def cancel_reservation(self) -> None:
        self.cancelled += 1


class Observed(SubnetStore):
    """Keeps the status that each record had which was written while artifacts were stored."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.statuses: list[str] = []

    async def renew(self, claim: Claim, stored: StoredRecord, progress: Mapping[str, Any]) -> None:
        if progress["stage"] == "store":
            self.statuses.append(stored.status)
        await super().renew(claim, stored, progress)


def run(folder: Path, pool: Pool, use: Callable[[Observed, LeasedBuilds], Awaitable[None]]) -> None:
    async def main() -> None:
        server = EmbeddedStore(folder / "store")
        await server.start()
        redis = connect(server.url)
        store = Observed(redis, lease=10)
        builds = LeasedBuilds(
            store=store,
            artifacts=ArtifactStore(f"file://{folder}/artifacts"),
            pool=pool,  # type: ignore[arg-type]
            lease=10,
            metrics=Metrics(),
        )
        try:
            await use(store, builds)
        finally:
            await redis.aclose()
            await server.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("outcome", "ending"),
    [({"built": {"timings": {}}}, "ready"), ({"failed": {"code": "a", "detail": "b"}}, "failed")],
)
def test_a_build_in_its_last_stage_is_not_called_queued(
    tmp_path: Path, outcome: dict[str, Any], ending: str
) -> None:
    """Its process may die there: the caretaker looks for files of builds that were begun, and no others."""

    async def use(store: Observed, builds: LeasedBuilds) -> None:
        claim = await store.claim(new_record(ORDER))
        assert isinstance(claim, Claim)
        assert await builds.run(claim) == ending
        assert set(store.statuses) == {"building"}

    run(tmp_path, Pool(outcome), use)


@pytest.mark.parametrize(
    ("fault", "code"), [(BuildTimeoutError(), "build-timeout"), (BuilderDiedError(), "builder-died")]
)
def test_a_builder_s_end_is_the_build_s_and_told(tmp_path: Path, fault: Exception, code: str) -> None:
    async def use(store: Observed, builds: LeasedBuilds) -> None:
        record = new_record(ORDER)
        claim = await store.claim(record)
        assert isinstance(claim, Claim)
        assert await builds.run(claim) == "failed"
        kept = await store.find(record.id)
        assert kept is not None
        assert kept.status == "failed"
        assert kept.record["problem"]["code"] == code

    run(tmp_path, Pool(fault), use)


def test_a_build_that_nobody_survives_is_not_tried_for_ever(tmp_path: Path) -> None:
    pool = Pool({"built": {"timings": {}}})

    async def use(store: Observed, builds: LeasedBuilds) -> None:
        record = new_record(ORDER)
        claim = await store.claim(record)
        assert isinstance(claim, Claim)
        assert await builds.run(replace(claim, attempt=MAX_ATTEMPTS + 1)) == "failed"
        kept = await store.find(record.id)
        assert kept is not None
        assert kept.record["problem"]["code"] == "builder-died"

    run(tmp_path, pool, use)
    assert pool.cancelled == 1
