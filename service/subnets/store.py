"""Records, leases and progress in Redis, changed only by Lua scripts so that no replica sees a half step.

eqnet:record:<id>      JSON: {"record": as shown, "order": what to build, "member": entry in the index}
eqnet:index            sorted set of <microseconds><id>, all scores 0: newest first by name
eqnet:building         set of ids that somebody has promised to build
eqnet:lease:<id>       who builds it now; expires when the heartbeat stops
eqnet:progress:<id>    stage and fraction, as long as the lease
eqnet:fence            counter: a later claim has a higher number, and only the current one can finish
eqnet:cancelled:<claim>  that claim's builder is to stop
eqnet:restored         there while everything in the artifact store is known here
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

_CLAIM = """
local current = redis.call('GET', KEYS[1])
if current and cjson.decode(current).record.status == 'ready' then return {'ready', current} end
if redis.call('EXISTS', KEYS[2]) == 1 then return {'held', current or ''} end
if current then redis.call('ZREM', KEYS[4], cjson.decode(current).member) end
local claim = redis.call('INCR', KEYS[5]) .. '-' .. ARGV[1]
redis.call('SET', KEYS[2], claim, 'PX', ARGV[2])
redis.call('SET', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[4], 0, ARGV[4])
redis.call('SADD', KEYS[3], ARGV[5])
return {'claimed', claim}
"""

_RENEW = """
if redis.call('EXISTS', KEYS[6]) == 1 then return 'cancelled' end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return 'lost' end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[5], ARGV[5], 'PX', ARGV[2])
redis.call('SET', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[4], 0, ARGV[4])
redis.call('SADD', KEYS[3], ARGV[6])
return 'held'
"""

_FINISH = """
if redis.call('EXISTS', KEYS[6]) == 1 then return 'cancelled' end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return 'lost' end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[4], 0, ARGV[3])
redis.call('SREM', KEYS[3], ARGV[4])
redis.call('DEL', KEYS[2], KEYS[5])
return 'finished'
"""

_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'released'
"""

_DROP = """
local current = redis.call('GET', KEYS[1])
local holder = redis.call('GET', KEYS[2])
if holder then redis.call('SET', 'eqnet:cancelled:' .. holder, 1, 'EX', 3600) end
if current then redis.call('ZREM', KEYS[4], cjson.decode(current).member) end
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[5])
return current and 1 or 0
"""

_INDEX = "eqnet:index"
_BUILDING = "eqnet:building"
_FENCE = "eqnet:fence"
_RESTORED = "eqnet:restored"


def connect(url: str) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://`. Nothing is sent before it is used."""
    # Bounded, and waited for: a thousand requests at once must not become a thousand connections.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=32,
        timeout=5,
        socket_connect_timeout=2,
        socket_timeout=5,
        health_check_interval=30,
        retry=Retry(NoBackoff(), 1),
    )
    return Redis.from_pool(pool)


class StoreUnavailableError(Exception):
    """Redis does not answer."""


class LeaseLostError(Exception):
    """Somebody else builds it now, or it was cancelled (`cancelled`): stop, and publish nothing."""

    def __init__(self, *, cancelled: bool) -> None:
        super().__init__("cancelled" if cancelled else "taken over by another builder")
        self.cancelled = cancelled


@dataclass(frozen=True, kw_only=True)
class StoredRecord:
    """`record` as the API shows it; `order` rebuilds it; `member` is its place in the index."""

    record: Mapping[str, Any]
    order: Mapping[str, Any]
    member: str

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def status(self) -> str:
        return str(self.record["status"])

    def to_json(self) -> dict[str, Any]:
        return {"record": dict(self.record), "order": dict(self.order), "member": self.member}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StoredRecord:
        return cls(record=document["record"], order=document["order"], member=document["member"])


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The promise to build: `token` is the fence."""

    token: str
    stored: StoredRecord


class SubnetStore:
    """`lease` is in seconds. Every method raises StoreUnavailableError where Redis does not answer."""

    def __init__(self, redis: Redis, *, lease: float) -> None:
        self._redis = redis
        self._lease_ms = int(lease * 1000)
        self._owner = uuid.uuid4().hex
        self._claim = redis.register_script(_CLAIM)
        self._renew = redis.register_script(_RENEW)
        self._finish = redis.register_script(_FINISH)
        self._release = redis.register_script(_RELEASE)
        self._drop = redis.register_script(_DROP)

    async def check(self) -> None:
        async with _reachable():
            await self._redis.ping()

    async def find(self, subnet: str) -> StoredRecord | None:
        async with _reachable():
            text = await self._redis.get(_record(subnet))
        return None if text is None else _decode(text)

    async def progress(self, subnet: str) -> dict[str, Any] | None:
        """What the builder last told; None when nobody builds it now."""
        async with _reachable():
            text = await self._redis.get(_progress(subnet))
        return None if text is None else dict(json.loads(text))

    async def held(self, subnet: str) -> bool:
        """Whether somebody builds it now."""
        async with _reachable():
            return bool(await self._redis.exists(_lease(subnet)))

    async def put(self, stored: StoredRecord) -> None:
        """Take in a record that was found in the artifact store only."""
        async with _reachable(), self._redis.pipeline(transaction=True) as pipe:
            pipe.set(_record(stored.id), _encode(stored))
            pipe.zadd(_INDEX, {stored.member: 0})
            pipe.srem(_BUILDING, stored.id)
            await pipe.execute()

    async def claim(self, stored: StoredRecord) -> Claim | StoredRecord | None:
        """A claim when it is now ours to build, the record when it is ready, None when another builds it."""
        async with _reachable():
            kind, value = await self._claim(
                keys=[_record(stored.id), _lease(stored.id), _BUILDING, _INDEX, _FENCE],
                args=[self._owner, self._lease_ms, _encode(stored), stored.member, stored.id],
            )
        if kind == b"claimed":
            return Claim(token=value.decode(), stored=stored)
        return _decode(value) if kind == b"ready" else None

    async def renew(self, claim: Claim, stored: StoredRecord, progress: Mapping[str, Any]) -> None:
        """The heartbeat. Restores record and lease where Redis came back empty.

        Raises:
            LeaseLostError: cancelled, or taken over.
        """
        async with _reachable():
            answer = await self._renew(
                keys=self._keys(claim),
                args=[
                    claim.token,
                    self._lease_ms,
                    _encode(stored),
                    stored.member,
                    json.dumps(progress),
                    stored.id,
                ],
            )
        _check_lease(answer)

    async def finish(self, claim: Claim, stored: StoredRecord) -> None:
        """Publish the final record and give up the lease.

        Raises:
            LeaseLostError: cancelled, or taken over; nothing was published.
        """
        async with _reachable():
            answer = await self._finish(
                keys=self._keys(claim), args=[claim.token, _encode(stored), stored.member, stored.id]
            )
        _check_lease(answer)

    async def release(self, claim: Claim) -> None:
        """Let another replica, or this one after a restart, take the build over at once."""
        async with _reachable():
            await self._release(keys=[_lease(claim.stored.id)], args=[claim.token])

    async def drop(self, subnet: str) -> bool:
        """Forget a subnet and cancel its build. Whether there was one."""
        async with _reachable():
            return bool(
                await self._drop(
                    keys=[_record(subnet), _lease(subnet), _BUILDING, _INDEX, _progress(subnet)],
                    args=[subnet],
                )
            )

    async def promised(self) -> list[str]:
        """Ids that somebody has promised to build."""
        async with _reachable():
            return sorted(_text(member) for member in await self._redis.smembers(_BUILDING))

    async def restored(self) -> bool:
        """False for a Redis that is new or lost its data."""
        async with _reachable():
            return bool(await self._redis.exists(_RESTORED))

    async def mark_restored(self) -> None:
        async with _reachable():
            await self._redis.set(_RESTORED, 1)

    async def page(self, limit: int, before: str | None) -> tuple[list[StoredRecord], str | None]:
        """Up to `limit` records, newest first, older than `before`; and where the next page starts."""
        start = "+" if before is None else f"({before}"
        async with _reachable():
            members = [
                _text(member)
                for member in await self._redis.zrevrangebylex(_INDEX, start, "-", start=0, num=limit + 1)
            ]
            shown = members[:limit]
            texts = await self._redis.mget([_record(member[20:]) for member in shown]) if shown else []
        records = [_decode(text) for text in texts if text is not None]
        return records, (shown[-1] if len(members) > limit else None)

    def _keys(self, claim: Claim) -> list[str]:
        subnet = claim.stored.id
        cancelled = f"eqnet:cancelled:{claim.token}"
        return [_record(subnet), _lease(subnet), _BUILDING, _INDEX, _progress(subnet), cancelled]


def index_member(subnet: str, microseconds: int) -> str:
    """The entry in the index of a subnet that was asked for at this time since 1970."""
    return f"{microseconds:020d}{subnet}"


def _record(subnet: str) -> str:
    return f"eqnet:record:{subnet}"


def _lease(subnet: str) -> str:
    return f"eqnet:lease:{subnet}"


def _progress(subnet: str) -> str:
    return f"eqnet:progress:{subnet}"


def _encode(stored: StoredRecord) -> str:
    return json.dumps(stored.to_json(), separators=(",", ":"))


def _decode(text: bytes | str) -> StoredRecord:
    return StoredRecord.from_json(json.loads(text))


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def _check_lease(answer: bytes) -> None:
    if answer in (b"cancelled", b"lost"):
        raise LeaseLostError(cancelled=answer == b"cancelled")


@asynccontextmanager
async def _reachable() -> Any:
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreUnavailableError(f"the store does not answer: {error}") from error
