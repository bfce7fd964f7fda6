"""Which workers there are: each signs on, again and again, and who is silent is not counted.

A message to the broker says nothing about who will take it, and asking all workers over it, at every probe,
would cost more than it tells. So they write into the store that they need anyway.

eqnet:workers          hash: worker -> "<milliseconds since 1970, by Redis' clock> <JSON>"
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from service.subnets.store import reachable

_WORKERS = "eqnet:workers"

BEAT = 2.0
"""Seconds between signs of a worker."""

_SILENCE = 10.0
"""Seconds without one after which a worker does not count; more than a Redis may be busy for."""

_CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function silent(entry)
    return math.abs(now - tonumber(string.match(entry, '^%d+'))) > tonumber(ARGV[1])
end
local entries = redis.call('HGETALL', KEYS[1])
"""

_SIGN_ON = f"""{_CLOCK}
for i = 1, #entries, 2 do
    if silent(entries[i + 1]) then redis.call('HDEL', KEYS[1], entries[i]) end
end
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f', now) .. ' ' .. ARGV[3])
return 1
"""

_PRESENT = f"""{_CLOCK}
local present = {{}}
for i = 2, #entries, 2 do
    if not silent(entries[i]) then table.insert(present, string.match(entries[i], ' (.*)$')) end
end
return present
"""


@dataclass(frozen=True, kw_only=True)
class WorkerSite:
    """What a worker tells of itself: its builder processes, and the digests of its bundles."""

    builders: int
    bundles: frozenset[str]


class Roster:
    """Every method raises StoreUnavailableError where Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._sign_on = redis.register_script(_SIGN_ON)
        self._present = redis.register_script(_PRESENT)

    async def sign_on(self, worker: str, site: WorkerSite) -> None:
        """Count `worker`, a unique name, among the present ones for the next ten seconds."""
        text = json.dumps({"builders": site.builders, "bundles": sorted(site.bundles)})
        async with reachable():
            await self._sign_on(keys=[_WORKERS], args=[int(_SILENCE * 1000), worker, text])

    async def sign_off(self, worker: str) -> None:
        async with reachable():
            await self._redis.hdel(_WORKERS, worker)

    async def present(self) -> tuple[WorkerSite, ...]:
        async with reachable():
            texts: Sequence[bytes] = await self._present(keys=[_WORKERS], args=[int(_SILENCE * 1000)])
        told = [json.loads(text) for text in texts]
        return tuple(
            WorkerSite(builders=entry["builders"], bundles=frozenset(entry["bundles"])) for entry in told
        )
