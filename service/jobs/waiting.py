"""Builds that were sent to the broker and that no worker has claimed yet.

The broker may lose a message, deliver it twice or keep it for an hour after its worker died. So a message is
no more than a hint: the promise to build, and whether somebody keeps it, are in the store with the records.

eqnet:waiting          hash: id -> milliseconds since 1970 of the last message, by Redis' clock
"""

from __future__ import annotations

from typing import Literal

from redis.asyncio import Redis

from service.subnets import scripts
from service.subnets.store import WAITING, StoredRecord, decode, encode, enqueue_keys, reachable

Enqueued = Literal["queued", "again", "waiting", "held", "full"]

_ENQUEUE = (
    scripts.ENTER
    + """
local current = redis.call('GET', KEYS[1])
local status = current and cjson.decode(current).record.status
if status == 'ready' then return {'ready', current} end
if redis.call('EXISTS', KEYS[2]) == 1 then return {'held'} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local sent = redis.call('HGET', KEYS[5], ARGV[3])
if sent and status ~= 'failed' then
    local age = now - tonumber(sent)
    if age >= 0 and age < tonumber(ARGV[5]) then return {'waiting'} end
    redis.call('HSET', KEYS[5], ARGV[3], now)
    return {'again'}
end
if not sent and redis.call('HLEN', KEYS[5]) >= tonumber(ARGV[4]) then return {'full'} end
enter(ARGV[1], ARGV[2])
redis.call('SADD', KEYS[3], ARGV[3])
redis.call('HSET', KEYS[5], ARGV[3], now)
return {'queued'}
"""
)

_UNSENT = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then redis.call('HSET', KEYS[1], ARGV[1], 0) end
return 1
"""


class WaitingBuilds:
    """At most `limit` of them. Every method raises StoreUnavailableError where Redis does not answer."""

    def __init__(self, redis: Redis, *, limit: int) -> None:
        self._redis = redis
        self._limit = limit
        self._enqueue = redis.register_script(_ENQUEUE)
        self._unsent = redis.register_script(_UNSENT)

    async def enqueue(self, stored: StoredRecord, *, resend: float) -> Enqueued | StoredRecord:
        """Promise the build, and say what to do: send a message (`queued`; `again` where the last one is
        older than `resend` seconds), or nothing: it is `waiting` or `held` by a builder, the queue is `full`,
        or it is ready (the record).
        """
        async with reachable():
            kind, *value = await self._enqueue(
                keys=enqueue_keys(stored.id),
                args=[encode(stored), stored.member, stored.id, self._limit, int(resend * 1000)],
            )
        return decode(value[0]) if kind == b"ready" else kind.decode()

    async def unsent(self, subnet: str) -> None:
        """The message could not be sent: whoever looks next is to send it."""
        async with reachable():
            await self._unsent(keys=[WAITING], args=[subnet])

    async def count(self) -> int:
        async with reachable():
            return int(await self._redis.hlen(WAITING))
