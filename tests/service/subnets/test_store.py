"""Against a real server of the Redis protocol."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from service.embedded import EmbeddedStore
from service.subnets.store import (
    Claim,
    LeaseLostError,
    StoredRecord,
    StoreUnavailableError,
    SubnetStore,
    connect,
    index_member,
)

LEASE = 1.5
"""Seconds."""


def stored(number: int = 1, status: str = "queued") -> StoredRecord:
    subnet = f"{number:032x}"
    return StoredRecord(
        record={"id": subnet, "status": status},
        order={"supernet": "test"},
        member=index_member(subnet, 1_700_000_000_000_000 + number),
    )


def run(folder: Path, use: Callable[[SubnetStore, SubnetStore, Redis], Awaitable[Any]]) -> None:
    """`use` gets the stores of two replicas, and the Redis that they share."""

    async def main() -> None:
        server = EmbeddedStore(folder)
        await server.start()
        redis = connect(server.url)
        try:
            await use(SubnetStore(redis, lease=LEASE), SubnetStore(redis, lease=LEASE), redis)
        finally:
            await redis.aclose()
            await server.stop()

    asyncio.run(main())


async def claimed(store: SubnetStore, record: StoredRecord) -> Claim:
    claim = await store.claim(record)
    assert isinstance(claim, Claim)
    return claim


def test_a_silent_redis_is_told_to_all_who_ask_at_once(tmp_path: Path) -> None:
    async def use(one: SubnetStore, _: SubnetStore, redis: Redis) -> None:
        process = (await redis.info("server"))["process_id"]
        os.kill(process, signal.SIGSTOP)
        try:
            async with asyncio.timeout(60):  # or for ever
                asked = (one.find(stored().id) for _ in range(100))
                answers = await asyncio.gather(*asked, return_exceptions=True)
        finally:
            os.kill(process, signal.SIGCONT)
        assert {type(answer) for answer in answers} == {StoreUnavailableError}
        assert await one.find(stored().id) is None

    run(tmp_path, use)


def test_only_one_of_many_claims_wins(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        claims = await asyncio.gather(*(store.claim(stored()) for store in (one, other) for _ in range(50)))
        assert len([claim for claim in claims if isinstance(claim, Claim)]) == 1
        assert claims.count(None) == 99

    run(tmp_path, use)


def test_a_finished_subnet_is_found_by_all_and_not_claimed_again(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        await one.finish(await claimed(one, stored()), stored(status="ready"))
        assert await other.find(stored().id) == stored(status="ready")
        assert await other.claim(stored()) == stored(status="ready")
        assert await other.promised() == []

    run(tmp_path, use)


@pytest.mark.parametrize("status", ["ready", "failed"])
def test_a_heartbeat_that_comes_after_the_end_changes_nothing(tmp_path: Path, status: str) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        claim = await claimed(one, stored())
        await one.finish(claim, stored(status=status))
        with pytest.raises(LeaseLostError):
            await one.renew(claim, stored(status="building"), {})
        assert await other.find(stored().id) == stored(status=status)
        assert await other.promised() == []

    run(tmp_path, use)


def test_a_failed_subnet_can_be_claimed_again(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        await one.finish(await claimed(one, stored()), stored(status="failed"))
        await claimed(other, stored())
        records, _following = await one.page(10, None)
        assert [record.status for record in records] == ["queued"]

    run(tmp_path, use)


def test_a_lease_without_heartbeat_passes_to_another_and_the_first_cannot_finish(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        late = await claimed(one, stored())
        assert await other.claim(stored()) is None
        await asyncio.sleep(LEASE * 1.2)
        current = await claimed(other, stored())
        for act in (one.renew(late, stored(), {}), one.finish(late, stored(status="ready"))):
            with pytest.raises(LeaseLostError) as raised:
                await act
            assert not raised.value.cancelled
        await other.finish(current, stored(status="ready"))

    run(tmp_path, use)


def test_a_heartbeat_keeps_the_lease_and_tells_the_progress(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        claim = await claimed(one, stored())
        for _beat in range(7):
            await asyncio.sleep(LEASE / 5)
            await one.renew(claim, stored(), {"stage": "build", "fraction": 0.5})
        assert await other.claim(stored()) is None
        assert await other.progress(stored().id) == {"stage": "build", "fraction": 0.5}

    run(tmp_path, use)


def test_dropping_cancels_the_claim_and_allows_a_new_one_at_once(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        claim = await claimed(one, stored())
        assert await other.drop(stored().id)
        assert not await other.drop(stored().id)
        again = await claimed(other, stored())
        with pytest.raises(LeaseLostError) as raised:
            await one.finish(claim, stored(status="ready"))
        assert raised.value.cancelled
        await other.finish(again, stored(status="ready"))

    run(tmp_path, use)


def test_a_build_goes_on_when_redis_came_back_empty(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, redis: Redis) -> None:
        claim = await claimed(one, stored())
        await redis.flushall()
        await one.renew(claim, stored(), {"stage": "build", "fraction": 0.5})
        assert await other.claim(stored()) is None
        assert await other.promised() == [stored().id]
        await redis.flushall()
        await one.finish(claim, stored(status="ready"))
        assert await other.find(stored().id) == stored(status="ready")

    run(tmp_path, use)


def test_a_released_claim_is_free_at_once_and_still_promised(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        await one.release(await claimed(one, stored()))
        assert await other.promised() == [stored().id]
        await claimed(other, stored())

    run(tmp_path, use)


def test_a_builder_that_slept_through_its_successor_changes_nothing(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, redis: Redis) -> None:
        late = await claimed(one, stored(1))
        await redis.delete(f"eqnet:lease:{stored(1).id}")
        await other.finish(await claimed(other, stored(1)), stored(1, status="ready"))
        for act in (one.renew(late, stored(1), {}), one.finish(late, stored(1, status="failed"))):
            with pytest.raises(LeaseLostError):
                await act
        assert await other.find(stored(1).id) == stored(1, status="ready")

        late = await claimed(one, stored(2))
        await redis.delete(f"eqnet:lease:{stored(2).id}")
        assert await other.drop(stored(2).id)
        with pytest.raises(LeaseLostError) as raised:
            await one.finish(late, stored(2, status="ready"))
        assert raised.value.cancelled
        assert await other.find(stored(2).id) is None

    run(tmp_path, use)


def test_attempts_are_counted_until_the_subnet_is_finished_or_handed_back(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, redis: Redis) -> None:
        for attempt in (1, 2, 3):
            claim = await claimed(one, stored())
            assert claim.attempt == attempt
            await redis.delete(f"eqnet:lease:{stored().id}")  # its builder died
        await one.release(claim := await claimed(one, stored()))
        assert claim.attempt == 4
        claim = await claimed(one, stored())
        assert claim.attempt == 1
        await one.finish(claim, stored(status="failed"))
        assert (await claimed(other, stored())).attempt == 1

    run(tmp_path, use)


def test_only_a_builder_without_heartbeat_is_expelled(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        claim = await claimed(one, stored())
        before = await other.pulse(stored().id)
        assert before is not None
        await one.renew(claim, stored(), {"stage": "build", "fraction": 0.5})
        assert not await other.expel(stored().id, before)
        last = await other.pulse(stored().id)
        assert last is not None
        assert await other.expel(stored().id, last)
        assert await other.pulse(stored().id) is None
        await claimed(other, stored())

    run(tmp_path, use)


def test_a_record_read_before_its_deletion_does_not_come_back(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        assert await one.put(stored(status="ready"))
        assert await other.drop(stored().id)
        assert not await one.put(stored(status="ready"))
        assert await other.find(stored().id) is None
        await other.undrop(stored().id)
        assert await one.put(stored(status="ready"))
        assert await other.drop(stored().id)
        claim = await claimed(other, stored())
        assert not await one.put(stored(status="ready"))
        await other.finish(claim, stored(status="failed"))
        assert await one.put(stored(status="ready"))

    run(tmp_path, use)


def test_a_ready_subnet_is_promised_anew_by_one_alone(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        await one.put(stored(1, status="ready"))
        queued = stored(1)
        assert sorted(await asyncio.gather(one.reopen(queued), other.reopen(queued))) == [False, True]
        assert await other.promised() == [queued.id]
        assert await other.find(queued.id) == queued
        await claimed(other, queued)
        assert not await one.reopen(queued)
        await one.drop(queued.id)
        assert not await one.reopen(queued)

    run(tmp_path, use)


def test_pages_are_newest_first_and_complete(tmp_path: Path) -> None:
    async def use(one: SubnetStore, other: SubnetStore, _: Redis) -> None:
        for number in range(7):
            await one.put(stored(number, status="ready"))
        seen: list[str] = []
        before: str | None = None
        for size in (3, 3, 1):
            records, before = await other.page(3, before)
            assert len(records) == size
            seen += [record.id for record in records]
        assert before is None
        assert seen == [stored(number).id for number in reversed(range(7))]

    run(tmp_path, use)


def test_a_store_that_is_away_is_told_at_once(tmp_path: Path) -> None:
    async def use() -> None:
        store = SubnetStore(connect(f"unix://{tmp_path}/nobody.sock"), lease=LEASE)
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            await store.find(stored().id)
        with pytest.raises(StoreUnavailableError):
            await store.claim(stored())
        assert time.monotonic() - started < 10

    asyncio.run(use())
