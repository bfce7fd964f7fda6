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
from service.subnets.store import Claim, SubnetStore, connect


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
