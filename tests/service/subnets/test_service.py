"""Against a real store, with a queue that nothing is built from."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.datastructures import Headers

from service.embedded import EmbeddedStore
from service.errors import ProblemError
from service.health.metrics import Metrics
from service.jobs.local import LocalQueue
from service.jobs.pool import BuilderPool
from service.subnets import caretaker, endpoints, watch
from service.subnets.artifacts import ArtifactStore
from service.subnets.caretaker import Caretaker
from service.subnets.checked_file import CheckedFile
from service.subnets.content import file_response
from service.subnets.order import SubnetOrder
from service.subnets.record import new_record
from service.subnets.service import SubnetService
from service.subnets.store import Claim, StoredRecord, StoreUnavailableError, SubnetStore, connect

ORDER = SubnetOrder(
    supernet="a", bundle_digest="sha256:a", what={"layers": []}, artifacts=("model.onnx", "report.json")
)
OTHER = "0" * 32
"""The id that another version of the service would have given an order."""


class Interrupted(SubnetStore):
    """Redis goes away between two looks at it, which no real one does when it is told to."""

    async def progress(self, subnet: str) -> dict[str, Any] | None:
        raise StoreUnavailableError("the store does not answer: gone")


@dataclass(frozen=True, kw_only=True)
class Site:
    store: SubnetStore
    artifacts: ArtifactStore
    service: SubnetService
    caretaker: Caretaker


def run(
    folder: Path,
    use: Callable[[Site], Awaitable[Any]],
    *,
    kind: type[SubnetStore] = SubnetStore,
    buildable: bool = True,
    artifacts_url: str | None = None,
) -> None:
    async def main() -> None:
        server = EmbeddedStore(folder / "store")
        await server.start()
        redis = connect(server.url)
        store = kind(redis, lease=10)
        pool = BuilderPool(count=1, queue_limit=1, timeout=60, arguments=[])
        queue = LocalQueue(store=store, pool=pool, builds=None)  # type: ignore[arg-type]
        artifacts = ArtifactStore(artifacts_url or f"file://{folder}/artifacts")
        service = SubnetService(
            store=store, artifacts=artifacts, queue=queue, metrics=Metrics(), buildable=lambda _: buildable
        )
        looking = Caretaker(store=store, artifacts=artifacts, queue=queue, lease=10)
        try:
            await use(Site(store=store, artifacts=artifacts, service=service, caretaker=looking))
        finally:
            service.stop()
            await redis.aclose()
            await server.stop()

    asyncio.run(main())


def of_another_version(stored: StoredRecord, status: str) -> StoredRecord:
    return replace(
        stored, record={**stored.record, "id": OTHER, "status": status}, member=stored.member[:20] + OTHER
    )


async def refused(answer: Awaitable[Any]) -> ProblemError:
    with pytest.raises(ProblemError) as raised:
        await answer
    return raised.value


def size(content: CheckedFile) -> int:
    with content:
        return content.size


def test_a_build_whose_progress_is_not_known_is_not_called_queued(tmp_path: Path) -> None:
    async def use(site: Site) -> None:
        assert isinstance(await site.store.claim(new_record(ORDER)), Claim)
        assert (await refused(site.service.record(ORDER.id))).status == 503

    run(tmp_path, use, kind=Interrupted)


@pytest.mark.parametrize("buildable", [True, False])
def test_what_cannot_be_built_again_keeps_the_files_that_are_whole(tmp_path: Path, buildable: bool) -> None:
    async def use(site: Site) -> None:
        stored = replace(new_record(ORDER), record={**new_record(ORDER).record, "status": "ready"})
        stored = of_another_version(stored, "ready") if buildable else stored
        files = site.artifacts.save(stored.id, {"model.onnx": b"model", "report.json": b"{}"})
        record = {**stored.record, "artifacts": [file.to_json() for file in files]}
        stored = replace(stored, record=record)
        site.artifacts.commit(stored.id, stored.to_json())
        (tmp_path / "artifacts" / stored.id / files[1].sha256).write_bytes(b"rotten")
        problem = await refused(site.service.artifact(stored.id, "report.json", size))
        assert (problem.status, problem.code) == (503, "damaged-artifact")
        assert "repeat its POST" in problem.detail
        assert await site.service.artifact(stored.id, "model.onnx", size) == len(b"model")
        assert (await site.service.record(stored.id))["status"] == "ready"
        assert await site.store.promised() == []

    run(tmp_path, use, buildable=buildable)


def test_an_artifact_store_that_is_away_is_503(tmp_path: Path) -> None:
    async def use(site: Site) -> None:
        record = new_record(ORDER)
        file = {"name": "model.onnx", "bytes": 1, "sha256": "a" * 64}
        await site.store.put(
            replace(record, record={**record.record, "status": "ready", "artifacts": [file]})
        )
        problem = await refused(site.service.artifact(ORDER.id, "model.onnx", size))
        assert (problem.status, problem.code) == (503, "storage")
        assert problem.headers["Retry-After"]

    (tmp_path / "artifacts").write_bytes(b"a file where a folder should be")
    run(tmp_path, use)


@pytest.mark.parametrize(
    ("fault", "code"), [(None, "damaged-artifact"), (OSError("no such disk"), "storage")]
)
@pytest.mark.parametrize("wanted", [{}, {"range": "bytes=1-2"}])
def test_a_file_that_is_damaged_or_lost_while_it_is_sent_is_503(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: OSError | None,
    code: str,
    wanted: dict[str, str],
) -> None:
    def altered_meanwhile(name: str, content: CheckedFile, headers: Any, *, method: str) -> Any:
        if fault is not None:
            content.close()
            raise fault
        (tmp_path / "artifacts" / ORDER.id / content.sha256).write_bytes(b"other")
        return file_response(name, content, headers, method=method)

    async def use(site: Site) -> None:
        files = site.artifacts.save(ORDER.id, {"model.onnx": b"model"})
        record = {"status": "ready", "artifacts": [file.to_json() for file in files]}
        await site.store.put(replace(new_record(ORDER), record={**new_record(ORDER).record, **record}))
        state: Any = SimpleNamespace(subnets=site.service)
        request: Any = SimpleNamespace(headers=Headers(wanted), method="GET")
        problem = await refused(endpoints.artifact(ORDER.id, "model.onnx", state, request))
        assert (problem.status, problem.code) == (503, code)

    monkeypatch.setattr(endpoints, "file_response", altered_meanwhile)
    run(tmp_path, use, buildable=False)


def test_a_file_of_a_failed_build_is_not_waited_for(tmp_path: Path) -> None:
    async def use(site: Site) -> None:
        assert isinstance(await site.store.claim(new_record(ORDER)), Claim)
        state: Any = SimpleNamespace(subnets=site.service)
        request: Any = SimpleNamespace(headers={})
        problem = await refused(endpoints.artifact(ORDER.id, "model.onnx", state, request))
        assert (problem.status, problem.headers["Retry-After"]) == (409, "2")
        await site.store.drop(ORDER.id)
        again = await site.store.claim(new_record(ORDER))
        assert isinstance(again, Claim)
        failed = {**again.stored.record, "status": "failed", "problem": {"code": "storage", "detail": "full"}}
        await site.store.finish(again, replace(again.stored, record=failed))
        problem = await refused(endpoints.artifact(ORDER.id, "model.onnx", state, request))
        assert problem.status == 409
        assert "repeat the POST" in problem.detail
        assert "Retry-After" not in problem.headers

    run(tmp_path, use)


def test_builds_that_another_version_promised_end_and_hold_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(site: Site) -> None:
        promised = [of_another_version(new_record(ORDER), "queued")]
        unreadable = new_record(replace(ORDER, artifacts=("model.onnx",)))
        promised.append(replace(unreadable, order={"supernet": {"name": "a", "digest": "sha256:a"}}))
        for stored in promised:
            claim = await site.store.claim(stored)
            assert isinstance(claim, Claim)
            await site.store.release(claim)
        for _ in range(3):
            await site.caretaker._look()
        assert len(await site.store.promised()) == 2  # whoever promised them may still be there
        monkeypatch.setattr(caretaker, "_FOREIGN", 0.0)
        await site.caretaker._look()
        assert await site.store.promised() == []
        for stored in promised:
            record = await site.service.record(stored.id)
            assert record["status"] == "failed"
            assert record["problem"]["type"].endswith(":other-version")
            assert record["problem"]["status"] == 503

    run(tmp_path, use)


def test_a_build_that_redis_forgot_is_not_called_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_INTERVAL", 0.01)

    async def use(site: Site) -> None:
        async def ended(gone: Awaitable[Any], *, within: float) -> bool:
            states = site.service.states(ORDER.id)
            assert await anext(states) is not None
            await gone
            try:
                async with asyncio.timeout(within):
                    return await anext(states) is None
            except TimeoutError:
                return False
            finally:
                await states.aclose()

        assert isinstance(await site.store.claim(new_record(ORDER)), Claim)
        assert not await ended(site.store._redis.flushall(), within=3.0)
        assert isinstance(await site.store.claim(new_record(ORDER)), Claim)
        assert await ended(site.store.drop(ORDER.id), within=1.0)

    run(tmp_path, use)
