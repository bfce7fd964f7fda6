"""Against a real store; the builds themselves are other tests' matter."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from eqnet_core.profile import Budget, SearchSettings
from service.devices.resolve import named_device
from service.embedded import EmbeddedStore
from service.errors import ProblemError
from service.jobs.local import LocalQueue
from service.jobs.pool import BuilderPool
from service.subnets.order import SearchOrder, SubnetOrder
from service.subnets.store import Claim, StoredRecord, SubnetStore, connect


def order(seed: int) -> SubnetOrder:
    device = named_device("tensorrt")
    search = SearchSettings(seed=seed)
    what = SearchOrder(profile=device.profile, budget=Budget(), search=search, pins={}, device=device.name)
    return SubnetOrder(supernet="test", bundle_digest="sha256:0", what=what, artifacts=("model.onnx",))


class Endless:
    """Builds that hold their place until they are cancelled."""

    async def run(self, claim: Claim) -> Any:
        await asyncio.Event().wait()


def test_identical_orders_at_once_take_one_place_in_the_queue(tmp_path: Path) -> None:
    async def main() -> None:
        server = EmbeddedStore(tmp_path)
        await server.start()
        redis = connect(server.url)
        pool = BuilderPool(count=1, queue_limit=1, timeout=60, arguments=[])
        queue = LocalQueue(store=SubnetStore(redis, lease=10), pool=pool, builds=Endless())  # type: ignore[arg-type]
        try:
            same = [queue.submit(order(1)) for _ in range(50)]
            answers = await asyncio.gather(*same, queue.submit(order(2)))
            assert sorted(map(bool, answers)) == [False] * 49 + [True] * 2
            assert answers[-1] is True
            with pytest.raises(ProblemError) as refused:
                await queue.submit(order(3))
            assert refused.value.status == 429
            assert await queue.submit(order(1)) is False
        finally:
            await queue.stop()
            await redis.aclose()
            await server.stop()

    asyncio.run(main())


class Gated:
    """A store that claims when it is let."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()

    async def claim(self, stored: StoredRecord) -> Claim:
        self.asked.set()
        await self.gate.wait()
        return Claim(token="1", stored=stored)

    async def held(self, subnet: str) -> bool:
        return False


def test_a_build_that_is_cancelled_before_its_first_step_gives_its_place_back() -> None:
    async def main() -> None:
        store = Gated()
        pool = BuilderPool(count=1, queue_limit=0, timeout=60, arguments=[])
        queue = LocalQueue(store=store, pool=pool, builds=Endless())  # type: ignore[arg-type]
        submitting = asyncio.create_task(queue.submit(order(1)))
        await store.asked.wait()
        # The submission is woken first, the cancellation next, and only then the build that is there by then.
        store.gate.set()
        assert await asyncio.create_task(queue.cancel(order(1).id))
        assert await submitting is True
        assert await queue.submit(order(2)) is True
        await queue.stop()

    asyncio.run(main())
