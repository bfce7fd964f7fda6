"""A fixed number of builder processes, each a `python -m service.jobs.worker` spoken to in JSON lines.

A builder loads torch and the supernets once and keeps them. It ends when its standard input does, so that it
never outlives the web process, however that dies; one that dies itself is replaced when its turn comes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

logger = logging.getLogger("eqnet.builders")

Progress = Callable[[str, float], None]
"""Told the stage and the fraction done, in [0, 1]."""

_LINE_LIMIT = 16 * 1024 * 1024

_UNHURRIED = {"OMP_WAIT_POLICY": "PASSIVE"}
"""By default torch's threads spin while they wait for each other. Beside two busy processes on two cores, a
build then took 4 to 26 s, with this 2 to 5; on an idle machine 0.7 s, with this 0.6 to 1.0."""


class QueueFullError(Exception):
    """More builds are waiting than `queue_limit`."""


class BuilderDiedError(Exception):
    """The process ended in mid-build, twice."""


class BuildTimeoutError(Exception):
    """The build took longer than `timeout`; its builder was ended."""


class _Builder:
    """One process; started when first needed, started again after it has ended."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = tuple(arguments)
        self._process: asyncio.subprocess.Process | None = None
        self._outdated = False
        self.starts = 0

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def renew(self, arguments: Sequence[str]) -> None:
        """Use other arguments from the next `start` or `run` on."""
        self._arguments = tuple(arguments)
        self._outdated = self.pid is not None

    async def start(self) -> asyncio.subprocess.Process:
        if self._outdated:
            self._outdated = False
            await self.stop()
            self.starts -= 1  # not a replacement of one that broke
        process = self._process
        if process is None or process.returncode is not None:
            # Its own session: Ctrl-C is for the web process, which ends its builders in order.
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "service.jobs.worker",
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_LIMIT,
                start_new_session=True,
                env=_UNHURRIED | os.environ,
            )
            self.starts += 1
        return process

    async def run(self, job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Raises EOFError or OSError when the process ends before it has answered."""
        process = await self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        await process.stdin.drain()
        while line := await process.stdout.readline():
            message = json.loads(line)
            if "outcome" in message:
                return dict(message["outcome"])
            progress(message["stage"], message["fraction"])
        raise EOFError("the builder ended before it answered")

    async def kill(self) -> None:
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def stop(self) -> None:
        """Let it end by itself; it is idle, so it does at once."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), timeout=5)
        except TimeoutError:
            await self.kill()


class BuilderPool:
    """`count` builders, at most `queue_limit` builds waiting for one, `timeout` seconds for each build."""

    def __init__(self, *, count: int, queue_limit: int, timeout: float, arguments: Sequence[str]) -> None:
        self._builders = [_Builder(arguments) for _ in range(count)]
        self._idle: asyncio.LifoQueue[_Builder] = asyncio.LifoQueue()
        for builder in self._builders:
            self._idle.put_nowait(builder)
        self._queue_limit = queue_limit
        self._timeout = timeout
        self._promised = 0

    async def start(self) -> None:
        """Start every builder now, so that the first request does not wait for the imports."""
        for builder in self._builders:
            await builder.start()

    async def renew(self, arguments: Sequence[str]) -> None:
        """Have the builders start again with other arguments: idle ones now, others after their build."""
        for builder in self._builders:
            builder.renew(arguments)
        idle = [self._idle.get_nowait() for _ in range(self._idle.qsize())]
        try:
            for builder in idle:
                await builder.start()
        finally:
            for builder in idle:
                self._idle.put_nowait(builder)

    async def stop(self) -> None:
        await asyncio.gather(*(builder.stop() for builder in self._builders))

    @property
    def pids(self) -> list[int]:
        """Of the builders that run now."""
        return [builder.pid for builder in self._builders if builder.pid is not None]

    @property
    def restarts(self) -> int:
        """How often a builder had to be replaced."""
        return sum(max(0, builder.starts - 1) for builder in self._builders)

    @property
    def queued(self) -> int:
        """Builds that wait for a builder."""
        return max(0, self._promised - len(self._builders))

    def reserve(self) -> None:
        """Promise a place; `run` or `cancel_reservation` must follow.

        Raises:
            QueueFullError: ask again later.
        """
        if self._promised >= len(self._builders) + self._queue_limit:
            raise QueueFullError
        self._promised += 1

    def cancel_reservation(self) -> None:
        self._promised -= 1

    async def run(self, job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Build on the reserved place, in a process; cancelling this ends that process.

        Raises:
            BuilderDiedError: the process died twice over this build.
            BuildTimeoutError: it took too long.
        """
        try:
            builder = await self._idle.get()
            try:
                return await self._run_on(builder, job, progress)
            finally:
                self._idle.put_nowait(builder)
        finally:
            self._promised -= 1

    async def _run_on(self, builder: _Builder, job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        # One retry: a builder may have died while idle, or been killed for memory that another process held.
        for attempt in range(2):
            try:
                async with asyncio.timeout(self._timeout):
                    return await builder.run(job, progress)
            except TimeoutError as error:
                await builder.kill()
                raise BuildTimeoutError from error
            except (EOFError, OSError) as error:
                await builder.kill()
                logger.warning("a builder died in mid-build (attempt %d): %s", attempt + 1, error)
            except BaseException:
                await builder.kill()
                await builder.start()  # now, so that the next build does not wait for the imports
                raise
        raise BuilderDiedError
