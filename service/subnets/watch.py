"""Following a record while it is being built: one look at the store for all who follow the same subnet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from service.errors import ProblemError

Record = Mapping[str, Any]
Look = Callable[[str], Awaitable[Record | None]]
"""The record as shown; None where there is none. ProblemError: not known at present."""

Dropped = Callable[[str], Awaitable[bool]]
"""Whether a subnet without a record is known to have been deleted."""

_INTERVAL = 0.1
"""Seconds between looks."""

_LOOKS_PER_SECOND = 100
"""Of this process, at most: a thousand subnets that are waited for must not keep the store busy."""

_MISSING = 8.0
"""Seconds without a record after which it counts as deleted all the same: a Redis that came back empty knows
of a build again with its builder's next heartbeat, or when whoever sent it looks after it."""


class _Watch:
    def __init__(self) -> None:
        self.followers = 0
        self.version = 0
        self.record: Record | None = None
        self.changed = asyncio.Condition()
        self.task: asyncio.Task[Record | None]


class Watches:
    """`look` is what is looked at; a watch lives as long as somebody follows it."""

    def __init__(self, look: Look, dropped: Dropped) -> None:
        self._look = look
        self._dropped = dropped
        self._watches: dict[str, _Watch] = {}
        self._ended = False

    async def settled(self, subnet: str) -> Record | None:
        """The record once it is ready or failed; None when it was deleted."""
        with self._following(subnet) as watch:
            return await asyncio.shield(watch.task)

    async def states(self, subnet: str) -> AsyncGenerator[Record | None]:
        """The record now and after every change, until it is ready, failed or deleted (None), or
        `end_states`.
        """
        with self._following(subnet) as watch:
            seen = 0
            while True:
                async with watch.changed:
                    while watch.version == seen and not self._ended:
                        await watch.changed.wait()
                    if watch.version == seen:
                        return
                    seen, record = watch.version, watch.record
                yield record
                if record is None or record["status"] in ("ready", "failed"):
                    return

    async def end_states(self) -> None:
        """End everybody's `states` now, and every later one's with no more than the present record."""
        self._ended = True
        for watch in list(self._watches.values()):
            async with watch.changed:
                watch.changed.notify_all()

    def stop(self) -> None:
        for watch in self._watches.values():
            watch.task.cancel()

    @contextmanager
    def _following(self, subnet: str) -> Iterator[_Watch]:
        watch = self._watches.get(subnet)
        if watch is None or watch.task.done():
            watch = self._watches[subnet] = _Watch()
            watch.task = asyncio.create_task(self._watch(subnet, watch))
        watch.followers += 1
        try:
            yield watch
        finally:
            watch.followers -= 1
            if watch.followers == 0:
                watch.task.cancel()
                if self._watches.get(subnet) is watch:
                    del self._watches[subnet]

    async def _watch(self, subnet: str, watch: _Watch) -> Record | None:
        loop = asyncio.get_running_loop()
        present = loop.time()
        while True:
            try:
                record = await self._look(subnet)
                dropped = record is None and await self._dropped(subnet)
            except ProblemError:  # an outage: those who wait have their own limit
                present = loop.time()
            else:
                present = present if record is None else loop.time()
                deleted = dropped or loop.time() - present > _MISSING
                if (record is not None and record != watch.record) or deleted:
                    async with watch.changed:
                        watch.record = record
                        watch.version += 1
                        watch.changed.notify_all()
                if deleted or (record is not None and record["status"] in ("ready", "failed")):
                    return record
            await asyncio.sleep(max(_INTERVAL, len(self._watches) / _LOOKS_PER_SECOND))
