"""Records, leases and progress in Redis, changed only by Lua scripts so that no replica sees a half step.

eqnet:record:<id>      JSON: {"record": as shown, "order": what to build, "member": entry in the index}
eqnet:index            sorted set of <microseconds><id>, all scores 0: newest first by name
eqnet:building         set of ids that somebody has promised to build
eqnet:lease:<id>       who builds it now; expires when the heartbeat stops
eqnet:progress:<id>    stage and fraction, as long as the lease
eqnet:fence            counter: a later claim has a higher number, and only the current one can finish
eqnet:claimant:<id>    the last claim, or `dropped`: every other claim's builder was overtaken
eqnet:attempts:<id>    claims since the subnet was last finished: a build that kills every builder must end
eqnet:waiting          see service/jobs/waiting.py
eqnet:cancelled:<claim>  that claim's builder is to stop
eqnet:restored         there while everything in the artifact store is known here
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.subnets import scripts

_INDEX = "eqnet:index"
_BUILDING = "eqnet:building"
_FENCE = "eqnet:fence"
_RESTORED = "eqnet:restored"
WAITING = "eqnet:waiting"


def connect(url: str) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://`. Nothing is sent before it is used."""
    # Bounded, and waited for: a thousand requests at once must not become a thousand connections.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=32,
        timeout=5,
        socket_connect_timeout=2,
        socket_timeout=3,
        retry=Retry(NoBackoff(), 1),
    )
    return Redis.from_pool(pool)


_PATIENCE = 6.0
"""Seconds for all that one method asks of Redis. A silent one can cost more than a socket's timeouts: a
connection to wait for, a new one, a second attempt.
"""

FINAL = ("ready", "failed")
"""Status of a record that does not change by itself."""

Pulse = tuple[bytes | str, bytes | str | None]
"""Lease and progress as stored; the progress has a number that rises with every heartbeat."""


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

    @property
    def final(self) -> bool:
        return self.status in FINAL

    def to_json(self) -> dict[str, Any]:
        return {"record": dict(self.record), "order": dict(self.order), "member": self.member}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StoredRecord:
        return cls(record=document["record"], order=document["order"], member=document["member"])


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The promise to build: `token` is the fence, `attempt` counts claims since the subnet was finished."""

    token: str
    stored: StoredRecord
    attempt: int = 1


class SubnetStore:
    """`lease` is in seconds. Every method raises StoreUnavailableError where Redis does not answer."""

    def __init__(self, redis: Redis, *, lease: float) -> None:
        self._redis = redis
        self._lease_ms = int(lease * 1000)
        self._owner = uuid.uuid4().hex
        self._claim = redis.register_script(scripts.CLAIM)
        self._put = redis.register_script(scripts.PUT)
        self._reopen = redis.register_script(scripts.REOPEN)
        self._renew = redis.register_script(scripts.RENEW)
        self._finish = redis.register_script(scripts.FINISH)
        self._release = redis.register_script(scripts.RELEASE)
        self._expel = redis.register_script(scripts.EXPEL)
        self._drop = redis.register_script(scripts.DROP)
        self._undrop = redis.register_script(scripts.UNDROP)

    async def check(self) -> None:
        async with reachable():
            await self._redis.ping()

    async def text(self, subnet: str) -> bytes | None:
        """The record as it is stored, for `decode`."""
        async with reachable():
            text = await self._redis.get(_record(subnet))
        return text.encode() if isinstance(text, str) else text

    async def find(self, subnet: str) -> StoredRecord | None:
        text = await self.text(subnet)
        return None if text is None else decode(text)

    async def progress(self, subnet: str) -> dict[str, Any] | None:
        """What the builder last told; None when nobody builds it now."""
        async with reachable():
            text = await self._redis.get(_progress(subnet))
        if text is None:
            return None
        progress = json.loads(text)
        return {"stage": progress["stage"], "fraction": progress["fraction"]}

    async def held(self, subnet: str) -> bool:
        """Whether somebody builds it now."""
        async with reachable():
            return bool(await self._redis.exists(_lease(subnet)))

    async def put(self, stored: StoredRecord) -> bool:
        """Take in a record that was found in the artifact store only; False where the subnet was dropped, or
        is being built, meanwhile.
        """
        async with reachable():
            return bool(await self._put(keys=self._settled_keys(stored.id), args=_entry(stored)))

    async def reopen(self, stored: StoredRecord) -> bool:
        """Promise to build a ready subnet again; False where somebody else did, or it was dropped."""
        async with reachable():
            return bool(await self._reopen(keys=self._settled_keys(stored.id)[:5], args=_entry(stored)))

    async def claim(self, stored: StoredRecord) -> Claim | StoredRecord | None:
        """A claim when it is now ours to build, the record when it is ready, None when another builds it."""
        async with reachable():
            kind, value, *attempt = await self._claim(
                keys=[
                    _record(stored.id),
                    _lease(stored.id),
                    _BUILDING,
                    _INDEX,
                    _FENCE,
                    _claimant(stored.id),
                    _attempts(stored.id),
                    WAITING,
                ],
                args=[self._owner, self._lease_ms, encode(stored), stored.member, stored.id],
            )
        if kind == b"claimed":
            return Claim(token=value.decode(), stored=stored, attempt=attempt[0])
        return decode(value) if kind == b"ready" else None

    async def renew(self, claim: Claim, stored: StoredRecord, progress: Mapping[str, Any]) -> None:
        """The heartbeat. Restores record and lease where Redis came back empty.

        Raises:
            LeaseLostError: cancelled, or taken over.
        """
        async with reachable():
            answer = await self._renew(
                keys=self._keys(claim),
                args=[
                    claim.token,
                    self._lease_ms,
                    encode(stored),
                    stored.member,
                    json.dumps({**progress, "beat": time.monotonic_ns()}),
                    stored.id,
                ],
            )
        _check_lease(answer)

    async def finish(self, claim: Claim, stored: StoredRecord) -> None:
        """Publish the final record and give up the lease.

        Raises:
            LeaseLostError: cancelled, or taken over; nothing was published.
        """
        async with reachable():
            answer = await self._finish(
                keys=self._keys(claim), args=[claim.token, encode(stored), stored.member, stored.id]
            )
        _check_lease(answer)

    async def release(self, claim: Claim) -> None:
        """Let another replica, or this one after a restart, take the build over at once."""
        subnet = claim.stored.id
        async with reachable():
            await self._release(
                keys=[_lease(subnet), _progress(subnet), _attempts(subnet)], args=[claim.token]
            )

    async def pulse(self, subnet: str) -> Pulse | None:
        """What changes with every heartbeat; None when nobody builds it."""
        async with reachable():
            lease, beat = await self._redis.mget([_lease(subnet), _progress(subnet)])
        return None if lease is None else (lease, beat)

    async def expel(self, subnet: str, pulse: Pulse) -> bool:
        """End the lease of a builder without heartbeat since `pulse`; False if it turned out to be alive.

        Redis ends leases by its own wall clock. Where that was set back, somebody else has to.
        """
        lease, beat = pulse
        async with reachable():
            keys = [_lease(subnet), _progress(subnet)]
            return bool(await self._expel(keys=keys, args=[lease, beat or b""]))

    async def drop(self, subnet: str) -> bool:
        """Forget a subnet and cancel its build. Whether there was one."""
        async with reachable():
            return bool(
                await self._drop(
                    keys=[
                        _record(subnet),
                        _lease(subnet),
                        _BUILDING,
                        _INDEX,
                        _progress(subnet),
                        _claimant(subnet),
                        _attempts(subnet),
                        WAITING,
                    ],
                    args=[subnet],
                )
            )

    async def undrop(self, subnet: str) -> None:
        """It was dropped here, but its artifacts could not be: it may be taken in again."""
        async with reachable():
            await self._undrop(keys=[_claimant(subnet)])

    async def dropped(self, subnet: str) -> bool:
        """Whether it is missing because somebody dropped it, within a day; not because Redis lost it."""
        async with reachable():
            return await self._redis.get(_claimant(subnet)) == b"dropped"

    async def promised(self) -> list[str]:
        """Ids that somebody has promised to build."""
        async with reachable():
            return sorted(_text(member) for member in await self._redis.smembers(_BUILDING))

    async def restored(self) -> bool:
        """False for a Redis that is new or lost its data."""
        async with reachable():
            return bool(await self._redis.exists(_RESTORED))

    async def mark_restored(self) -> None:
        async with reachable():
            await self._redis.set(_RESTORED, 1)

    async def page(self, limit: int, before: str | None) -> tuple[list[StoredRecord], str | None]:
        """Up to `limit` records, newest first, older than `before`; and where the next page starts."""
        start = "+" if before is None else f"({before}"
        async with reachable():
            members = [
                _text(member)
                for member in await self._redis.zrevrangebylex(_INDEX, start, "-", start=0, num=limit + 1)
            ]
            shown = members[:limit]
            texts = await self._redis.mget([_record(member[20:]) for member in shown]) if shown else []
        records = [decode(text) for text in texts if text is not None]
        return records, (shown[-1] if len(members) > limit else None)

    @staticmethod
    def _settled_keys(subnet: str) -> list[str]:
        return [_record(subnet), _lease(subnet), _BUILDING, _INDEX, _claimant(subnet), WAITING]

    def _keys(self, claim: Claim) -> list[str]:
        subnet = claim.stored.id
        cancelled = f"eqnet:cancelled:{claim.token}"
        return [
            _record(subnet),
            _lease(subnet),
            _BUILDING,
            _INDEX,
            _progress(subnet),
            cancelled,
            _claimant(subnet),
            _attempts(subnet),
            WAITING,
        ]


def enqueue_keys(subnet: str) -> list[str]:
    """Of the script in service/jobs/waiting.py."""
    return [_record(subnet), _lease(subnet), _BUILDING, _INDEX, WAITING]


def index_member(subnet: str, microseconds: int) -> str:
    """The entry in the index of a subnet that was asked for at this time since 1970."""
    return f"{microseconds:020d}{subnet}"


def _record(subnet: str) -> str:
    return f"eqnet:record:{subnet}"


def _lease(subnet: str) -> str:
    return f"eqnet:lease:{subnet}"


def _progress(subnet: str) -> str:
    return f"eqnet:progress:{subnet}"


def _claimant(subnet: str) -> str:
    return f"eqnet:claimant:{subnet}"


def _attempts(subnet: str) -> str:
    return f"eqnet:attempts:{subnet}"


def encode(stored: StoredRecord) -> str:
    return json.dumps(stored.to_json(), separators=(",", ":"))


def decode(text: bytes | str) -> StoredRecord:
    return StoredRecord.from_json(json.loads(text))


def _entry(stored: StoredRecord) -> list[str]:
    return [encode(stored), stored.member, stored.id]


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def _check_lease(answer: bytes) -> None:
    if answer in (b"cancelled", b"lost"):
        raise LeaseLostError(cancelled=answer == b"cancelled")


@asynccontextmanager
async def reachable() -> AsyncIterator[None]:
    """StoreUnavailableError for whatever Redis fails with, and where it is silent for `_PATIENCE`."""
    try:
        async with asyncio.timeout(_PATIENCE):
            yield
    except TimeoutError as error:  # an OSError too, without words
        raise StoreUnavailableError(f"the store does not answer within {_PATIENCE:g} s") from error
    except (RedisError, OSError) as error:
        raise StoreUnavailableError(f"the store does not answer: {error}") from error
