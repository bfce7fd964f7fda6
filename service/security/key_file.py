"""Where keys are kept: a file that only its owner reads, changed whole, followed while the service runs."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from service.security.keys import ApiKey, KeyEntryError, KeyRing

logger = logging.getLogger("eqnet.security")

_HEADER = """# API keys of EQ-Net Serve, one per line: name:scope:sha256[:requests per second].
# `eqnet keys` changes this file; a running service follows it within a second or two.
"""

_LOOK_INTERVAL = 1.0
"""Seconds between looks at the file."""

_MAX_BYTES = 1024 * 1024


def default_key_file(data_dir: Path) -> Path:
    return data_dir / "api-keys"


class KeyFileError(Exception):
    """The file cannot be used; the message says what to do."""


class KeyFile:
    """Read and changed by the `eqnet keys` commands.

    Raises:
        KeyFileError: it cannot be read or written, or has a malformed entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> KeyRing:
        """The keys; none where there is no file."""
        try:
            with self.path.open(encoding="utf-8") as file:
                text = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return KeyRing(())
        except (OSError, ValueError) as error:
            raise KeyFileError(f"the key file {self.path} cannot be read: {error}") from error
        if len(text) > _MAX_BYTES:
            raise KeyFileError(f"the key file {self.path} is longer than {_MAX_BYTES} characters")
        try:
            return KeyRing.parse(text)
        except KeyEntryError as error:
            raise KeyFileError(f"the key file {self.path}: {error}") from error

    def add(self, key: ApiKey) -> None:
        with self._locked():
            ring = self.read()
            if any(known.name == key.name for known in ring.keys):
                raise KeyFileError(f"there is a key {key.name} already: revoke it, or take another name")
            self._write([*ring.keys, key])

    def revoke(self, name: str) -> None:
        with self._locked():
            ring = self.read()
            kept = [key for key in ring.keys if key.name != name]
            if len(kept) == len(ring.keys):
                known = ", ".join(key.name for key in ring.keys) or "none"
                raise KeyFileError(f"no key {name[:64]!r} in {self.path}: there are {known}")
            self._write(kept)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=5):
                yield
        except (OSError, Timeout) as error:
            raise KeyFileError(f"the key file {self.path} cannot be changed: {error}") from error

    def _write(self, keys: list[ApiKey]) -> None:
        text = _HEADER + "".join(f"{key.to_entry()}\n" for key in KeyRing(keys).keys)
        partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        try:
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)


class KeysInForce:
    """The keys of a running service: `fixed` ones and those of `file`, which is looked at again and again.

    A file that is damaged or taken away later leaves its last keys in force, so that a slip of an editor
    locks nobody out; keys are taken back by taking their lines out.

    Raises:
        KeyFileError: the file cannot be used at the start.
        KeyEntryError: a name is given both here and there.
    """

    def __init__(self, *, fixed: KeyRing, file: KeyFile | None) -> None:
        self._fixed = fixed
        self._file = file
        self._state = self._look()
        self._looked = time.monotonic()
        self._ring = self._read()

    @property
    def required(self) -> bool:
        """Whether requests need a key: from the moment that one is configured, and then for good."""
        return bool(self._fixed.keys) or self._state is not None

    def ring(self) -> KeyRing:
        """The keys of now, at most a second old."""
        now = time.monotonic()
        if self._file is not None and now - self._looked >= _LOOK_INTERVAL:
            self._looked = now
            state = self._look()
            if state is None and self._state is not None:
                logger.error("the key file %s is gone: its last keys stay in force", self._file.path)
            elif state != self._state:
                self._state = state
                self._follow()
        return self._ring

    def _follow(self) -> None:
        try:
            self._ring = self._read()
        except (KeyFileError, KeyEntryError) as error:
            logger.error("%s: the last keys stay in force", error)
        else:
            logger.info("API keys in force: %s", ", ".join(key.name for key in self._ring.keys) or "none")

    def _read(self) -> KeyRing:
        listed = self._file.read().keys if self._file is not None else ()
        return KeyRing([*self._fixed.keys, *listed])

    def _look(self) -> tuple[int, int, int] | None:
        """What changes whenever the file does; None while there is none."""
        if self._file is None:
            return None
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
