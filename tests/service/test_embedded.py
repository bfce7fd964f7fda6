import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.embedded import EmbeddedStore, EmbeddedStoreError


async def _with_store(folder: Path, use: Callable[[Redis, EmbeddedStore], Awaitable[None]]) -> None:
    store = EmbeddedStore(folder)
    await store.start()
    redis = Redis.from_url(store.url)
    try:
        await use(redis, store)
    finally:
        await redis.aclose()
        await store.stop()


async def _write(redis: Redis, _: EmbeddedStore) -> None:
    await redis.set("key", "value")


async def _read(redis: Redis, _: EmbeddedStore) -> None:
    assert await redis.get("key") == b"value"


@pytest.mark.parametrize("name", ["store", "a folder with spaces", "deep/" * 30 + "store", "ünïcode"])
def test_data_outlives_the_server(tmp_path: Path, name: str) -> None:
    asyncio.run(_with_store(tmp_path / name, _write))
    asyncio.run(_with_store(tmp_path / name, _read))


def test_a_killed_server_is_started_again_with_its_data(tmp_path: Path) -> None:
    async def use(redis: Redis, store: EmbeddedStore) -> None:
        await redis.set("key", "value")
        await asyncio.sleep(1.2)  # appendfsync everysec
        assert store.pid is not None
        os.kill(store.pid, signal.SIGKILL)
        for _ in range(100):
            try:
                assert await redis.get("key") == b"value"
                return
            except (OSError, RedisError):
                await asyncio.sleep(0.05)
        pytest.fail("the store did not come back")

    asyncio.run(_with_store(tmp_path / "store", use))


def test_the_server_that_a_killed_process_left_behind_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "store"

    async def abandon() -> int:
        store = EmbeddedStore(folder)
        await store.start()
        redis = Redis.from_url(store.url)
        await _write(redis, store)
        await redis.aclose()
        assert store._keeper is not None
        store._keeper.cancel()
        assert store.pid is not None
        return store.pid

    async def both() -> None:
        left = await abandon()
        await _with_store(folder, _read)
        with pytest.raises(ProcessLookupError):
            os.kill(left, 0)

    asyncio.run(both())


def test_only_its_owner_reaches_the_socket(tmp_path: Path) -> None:
    async def use(_: Redis, store: EmbeddedStore) -> None:
        mode = await asyncio.to_thread(lambda: Path(store.url.removeprefix("unix://")).stat().st_mode)
        assert mode & 0o077 == 0

    asyncio.run(_with_store(tmp_path / "store", use))


def test_a_socket_folder_that_others_can_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = tmp_path / f"eqnet-{os.getuid()}"
    made.mkdir()
    made.chmod(0o777)
    with pytest.raises(EmbeddedStoreError, match="this user's alone"):
        asyncio.run(EmbeddedStore(tmp_path / "a folder with spaces").start())
