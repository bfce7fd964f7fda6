"""Finished subnets in a folder or bucket, by fsspec. What is here survives the loss of Redis.

    <root>/<subnet id>/<sha256 of the content>     one file per artifact
    <root>/<subnet id>/record.json                 written last: a subnet without it does not exist

Files are named by their content but kept per subnet, so that dropping one subnet can never take a file
from another, without reference counts that would have to survive every fault.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from eqnet_core.files import write_atomically
from service.subnets.checked_file import BLOCK, CheckedFile, DamagedArtifactError
from service.subnets.order import is_subnet_id

RECORD = "record.json"
_PROBE = ".writable"

_SILENCE = 4.0
"""Seconds in which a bucket says nothing, at most."""

_WRITING = 60.0
"""Seconds for one file into a bucket."""

_TRIES = 2
"""At each call to a bucket."""
_IN_MEMORY = 1024 * 1024
"""Bytes; longer ones of a bucket pass through a temporary file."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """What a record keeps of one artifact. `sha256` is hexadecimal."""

    name: str
    bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256}


def _is_s3(url: str) -> bool:
    return url.startswith(("s3://", "s3a://"))


def _patience(url: str) -> dict[str, Any]:
    """What bounds the time that a bucket may take; by default that is six minutes, with a thread of ours."""
    if not _is_s3(url):
        return {}
    timeouts = {"connect_timeout": 2, "read_timeout": _SILENCE, "retries": {"total_max_attempts": 1}}
    return {"config_kwargs": timeouts}


@contextmanager
def _storage_errors() -> Iterator[None]:
    """OSError for whatever else an fsspec implementation raises, such as botocore's own tree of errors."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"the artifact store does not answer: {error}") from error


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ArtifactStore:
    """Blocking; the web process calls it in a thread. `url` is any fsspec URL.

    Raises OSError where the folder or bucket cannot be used.
    """

    def __init__(self, url: str) -> None:
        # No listings kept: other machines write to the same bucket.
        self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **_patience(url))
        if _is_s3(url):
            self._fs.retries = _TRIES
        self._root = str(root).rstrip("/")

    def check(self) -> None:
        """Raise OSError unless the root can be written."""
        if not isinstance(self._fs, LocalFileSystem):
            with _storage_errors():
                self._fs.pipe_file(f"{self._root}/{_PROBE}", b"", **self._within(_TRIES * _SILENCE))
            return
        self._fs.makedirs(self._root, exist_ok=True)
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise PermissionError(f"the artifact folder {self._root} is not writable")

    def save(self, subnet: str, files: Mapping[str, bytes]) -> list[StoredFile]:
        """Store `files` (name -> content) of a subnet; not visible before `commit`."""
        stored = []
        for name, content in files.items():
            digest = hashlib.sha256(content).hexdigest()
            self._write(subnet, digest, content)
            stored.append(StoredFile(name=name, bytes=len(content), sha256=digest))
        return stored

    def commit(self, subnet: str, document: Mapping[str, Any]) -> None:
        """Make the subnet exist, with `document` as its record."""
        content = json.dumps({"sha256": _digest(document), "subnet": document}, separators=(",", ":"))
        self._write(subnet, RECORD, content.encode())

    def record(self, subnet: str) -> dict[str, Any] | None:
        """The committed record, or None. A damaged one counts as none: the subnet is then built again."""
        try:
            with _storage_errors():
                content = self._fs.cat_file(self._path(subnet, RECORD), **self._within(_TRIES * _SILENCE))
            stored = json.loads(content)
            document = dict(stored["subnet"])
            return document if stored["sha256"] == _digest(document) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def open(self, subnet: str, file: StoredFile) -> CheckedFile:
        """The content, checked against its digest; close it.

        Raises:
            DamagedArtifactError: the file is missing or altered.
        """
        name = f"{file.name} of {subnet}"
        try:
            with _storage_errors():
                content = self._open(self._path(subnet, file.sha256))
        except FileNotFoundError as error:
            raise DamagedArtifactError(f"{name} is missing") from error
        return CheckedFile(content, name=name, sha256=file.sha256)

    def drop(self, subnet: str) -> None:
        """Remove the record first, then the files; no error where there is nothing."""
        for path in (self._path(subnet, RECORD), f"{self._root}/{subnet}"):
            try:
                with _storage_errors():
                    self._fs.rm(path, recursive=True)
            except FileNotFoundError:
                continue

    def subnets(self) -> Iterator[str]:
        """Ids of everything stored, finished or not; other people's files beside it are left alone."""
        try:
            with _storage_errors():
                entries = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return
        for entry in entries:
            name = str(entry).rstrip("/").rsplit("/", 1)[-1]
            if is_subnet_id(name):
                yield name

    def _within(self, seconds: float) -> dict[str, float]:
        """The bound of a call as fsspec takes it, for what is not on this machine: a bucket that accepts
        connections and says nothing would otherwise keep the calling thread for ever.
        """
        return {"timeout": seconds} if isinstance(self._fs, AsyncFileSystem) else {}

    def _path(self, subnet: str, name: str) -> str:
        return f"{self._root}/{subnet}/{name}"

    def _open(self, path: str) -> IO[bytes]:
        if isinstance(self._fs, LocalFileSystem):
            return Path(path).open("rb")
        # Fetched once, checked and sent from the copy: a second look might find something else there.
        copy: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  closed by who gets it
        try:
            with self._fs.open(path, "rb", block_size=BLOCK, cache_type="none") as remote:
                shutil.copyfileobj(remote, copy, BLOCK)
        except BaseException:
            copy.close()
            raise
        copy.seek(0)
        return copy

    def _write(self, subnet: str, name: str, content: bytes) -> None:
        path = self._path(subnet, name)
        if not isinstance(self._fs, LocalFileSystem):
            with _storage_errors():
                # One PUT: object stores show an object whole or not at all.
                self._fs.pipe_file(path, content, **self._within(_WRITING))
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
