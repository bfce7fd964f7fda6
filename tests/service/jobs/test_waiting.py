"""Against a real server of the Redis protocol."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from service.embedded import EmbeddedStore
from service.jobs.waiting import WaitingBuilds
from service.subnets.store import Claim, StoredRecord, SubnetStore, connect, index_member


def stored(number: int) -> StoredRecord:
    subnet = f"{number:032x}"
    return StoredRecord(
        record={"id": subnet, "status": "queued"}, order={}, member=index_member(subnet, 10**15 + number)
    )


def run(folder: Path, use: Callable[[WaitingBuilds, SubnetStore, Redis], Awaitable[Any]]) -> None:
    async def main() -> None:
        server = EmbeddedStore(folder)
        await server.start()
        redis = connect(server.url)
        try:
            await use(WaitingBuilds(redis, limit=2), SubnetStore(redis, lease=5), redis)
        finally:
            await redis.aclose()
            await server.stop()

    asyncio.run(main())


def test_a_build_is_sent_once_until_a_worker_claims_it(tmp_path: Path) -> None:
    async def use(waiting: WaitingBuilds, store: SubnetStore, _: Redis) -> None:
        answers = await asyncio.gather(*(waiting.enqueue(stored(1), resend=60) for _ in range(20)))
        assert sorted(map(str, answers)) == ["queued"] + ["waiting"] * 19
        assert await store.promised() == [stored(1).id]
        assert await waiting.count() == 1
        claim = await store.claim(stored(1))
        assert isinstance(claim, Claim)
        assert await waiting.count() == 0
        assert await waiting.enqueue(stored(1), resend=60) == "held"
        ready = replace(stored(1), record={"id": stored(1).id, "status": "ready"})
        await store.finish(claim, ready)
        assert await waiting.enqueue(stored(1), resend=60) == ready

    run(tmp_path, use)


def test_a_message_that_got_lost_is_sent_again(tmp_path: Path) -> None:
    async def use(waiting: WaitingBuilds, store: SubnetStore, _: Redis) -> None:
        await waiting.enqueue(stored(1), resend=60)
        assert await waiting.enqueue(stored(1), resend=0) == "again"
        await waiting.unsent(stored(1).id)
        assert await waiting.enqueue(stored(1), resend=60) == "again"
        assert await waiting.enqueue(stored(1), resend=60) == "waiting"
        # A worker died over it: nobody holds it, and no message is under way.
        claim = await store.claim(stored(1))
        assert isinstance(claim, Claim)
        await store.release(claim)
        assert await waiting.enqueue(stored(1), resend=60) == "queued"

    run(tmp_path, use)


def test_the_queue_is_bounded_and_dropping_makes_room(tmp_path: Path) -> None:
    async def use(waiting: WaitingBuilds, store: SubnetStore, redis: Redis) -> None:
        for number in (1, 2):
            assert await waiting.enqueue(stored(number), resend=60) == "queued"
        assert await waiting.enqueue(stored(3), resend=60) == "full"
        assert await store.find(stored(3).id) is None
        assert await waiting.enqueue(stored(1), resend=60) == "waiting"  # takes no further place
        await store.drop(stored(1).id)
        assert await store.dropped(stored(1).id)
        await waiting.unsent(stored(1).id)
        assert await waiting.count() == 1
        assert await waiting.enqueue(stored(3), resend=60) == "queued"
        await redis.flushall()
        assert not await store.dropped(stored(1).id)

    run(tmp_path, use)


def test_a_clock_that_was_set_back_loses_no_message(tmp_path: Path) -> None:
    async def use(waiting: WaitingBuilds, _: SubnetStore, redis: Redis) -> None:
        await waiting.enqueue(stored(1), resend=60)
        ahead = int((await redis.time())[0] + 3600) * 1000
        await redis.hset("eqnet:waiting", stored(1).id, str(ahead))
        assert await waiting.enqueue(stored(1), resend=60) == "again"

    run(tmp_path, use)


def test_what_its_builder_took_back_does_not_wait(tmp_path: Path) -> None:
    """Redis came back empty, or a lease ran out, and somebody sent for the build before the heartbeat."""

    async def use(waiting: WaitingBuilds, store: SubnetStore, redis: Redis) -> None:
        again = replace(stored(1), member=index_member(stored(1).id, 10**15 + 9))
        claim = await store.claim(stored(1))
        assert isinstance(claim, Claim)
        await redis.flushall()
        assert await waiting.enqueue(again, resend=60) == "queued"
        await store.renew(claim, stored(1), {"stage": "build", "fraction": 0.5})
        assert await waiting.count() == 0
        await redis.delete(f"eqnet:lease:{stored(1).id}")
        assert await waiting.enqueue(again, resend=60) == "queued"
        await store.finish(claim, replace(stored(1), record={"id": stored(1).id, "status": "failed"}))
        assert await waiting.count() == 0
        assert await waiting.enqueue(again, resend=60) == "queued"  # asking again tries again
        page, _ = await store.page(10, None)
        assert page == [again]
        assert await store.drop(again.id)
        assert await redis.zcard("eqnet:index") == 0

    run(tmp_path, use)


def test_a_failed_build_that_counts_as_waiting_is_promised_anew(tmp_path: Path) -> None:
    async def use(waiting: WaitingBuilds, store: SubnetStore, redis: Redis) -> None:
        claim = await store.claim(stored(1))
        assert isinstance(claim, Claim)
        await store.finish(claim, replace(stored(1), record={"id": stored(1).id, "status": "failed"}))
        now = int((await redis.time())[0]) * 1000
        await redis.hset("eqnet:waiting", stored(1).id, str(now))  # of an older version
        assert await waiting.enqueue(stored(1), resend=60) == "queued"
        assert await store.find(stored(1).id) == stored(1)

    run(tmp_path, use)
