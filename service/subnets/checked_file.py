"""A stored file that is what was written, read in blocks however long it is."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Self

BLOCK = 256 * 1024
"""Bytes that are read, checked and sent at once."""


class DamagedArtifactError(Exception):
    """A stored file is missing or is not what was written."""


class CheckedFile:
    """An open file whose content had the digest `sha256` when this was made, which reads all of it.

    Every block's CRC is kept from then on and compared whenever the block is read: whoever alters the file
    under our hands does not get altered bytes handed out. Blocking. Closes `file`, which is seekable.

    Raises:
        DamagedArtifactError: another content.
    """

    def __init__(self, file: IO[bytes], *, name: str, sha256: str) -> None:
        self._file = file
        self._name = name
        self._checks: list[int] = []
        self.sha256 = sha256
        self.size = 0
        digest = hashlib.sha256()
        try:
            while block := file.read(BLOCK):
                digest.update(block)
                self._checks.append(zlib.crc32(block))
                self.size += len(block)
            if digest.hexdigest() != sha256:
                raise self._altered()
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def blocks(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, which is at most `size`.

        Raises:
            DamagedArtifactError: they are not those that were checked.
        """
        for number in range(start // BLOCK, -(-end // BLOCK)):
            offset = number * BLOCK
            self._file.seek(offset)
            block = self._file.read(BLOCK)
            if zlib.crc32(block) != self._checks[number]:
                raise self._altered()
            yield block[max(start - offset, 0) : end - offset]

    def digest(self, start: int, end: int) -> str:
        """Hexadecimal SHA-256 of these bytes."""
        if (start, end) == (0, self.size):
            return self.sha256
        digest = hashlib.sha256()
        for block in self.blocks(start, end):
            digest.update(block)
        return digest.hexdigest()

    def _altered(self) -> DamagedArtifactError:
        return DamagedArtifactError(f"{self._name} is not what was written")
