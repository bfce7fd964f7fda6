"""API keys: 256 random bits, shown once, of which only the SHA-256 is kept.

An entry is one line, `name:scope:sha256` or `name:scope:sha256:requests per second`. A plain hash is enough,
and cheap enough for every request, because nobody can try 2^256 keys; passwords would need a slow one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

MAX_KEYS = 1000

_PREFIX = "eqnet_"
"""Lets secret scanners find a key that was committed somewhere."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_RATE = re.compile(r"\d{1,6}(\.\d{1,3})?")


class Scope(StrEnum):
    """What a key allows: `READ` everything that changes nothing, `BUILD` also to build and to delete."""

    READ = "read"
    BUILD = "build"


class KeyEntryError(ValueError):
    """An entry, or a list of them, is malformed; the message says which and why, and shows no hash."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """`sha256` of the key, hexadecimal; `rate` in requests per second, None for the service's own limit.

    Raises:
        KeyEntryError: a name or rate that cannot be written as an entry.
    """

    name: str
    scope: Scope
    sha256: str
    rate: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise KeyEntryError(
                "the name of a key has 1 to 64 letters, digits, dots, dashes or underscores, "
                "and begins with a letter or digit"
            )
        if not _HASH.fullmatch(self.sha256):
            raise KeyEntryError(f"the key {self.name} needs the 64 hexadecimal digits of its SHA-256")
        if self.rate is not None and not 0 < self.rate < 1_000_000:
            raise KeyEntryError(f"the rate of the key {self.name} must be above 0 and below 1,000,000")
        if self.rate is not None and float(_written(self.rate)) != self.rate:
            raise KeyEntryError(f"the rate of the key {self.name} must have at most 3 decimals")

    @classmethod
    def make(cls, *, name: str, scope: Scope, rate: float | None = None) -> tuple[ApiKey, str]:
        """A new entry, and the key itself, which is nowhere else."""
        key = _PREFIX + secrets.token_urlsafe(32)
        return cls(name=name, scope=scope, sha256=_digest(key.encode()), rate=rate), key

    @classmethod
    def from_entry(cls, entry: str) -> ApiKey:
        parts = entry.split(":")
        if len(parts) not in (3, 4):
            raise KeyEntryError("an entry is name:scope:sha256 or name:scope:sha256:rate")
        name, scope, sha256 = parts[:3]
        if scope not in list(Scope):
            raise KeyEntryError(f"the scope of a key is {' or '.join(Scope)}")
        if len(parts) == 4 and not _RATE.fullmatch(parts[3]):
            raise KeyEntryError(
                "the rate of a key is a number of requests per second with at most 3 decimals, such as 0.5"
            )
        rate = float(parts[3]) if len(parts) == 4 else None
        return cls(name=name, scope=Scope(scope), sha256=sha256.lower(), rate=rate)

    def to_entry(self) -> str:
        rate = "" if self.rate is None else f":{_written(self.rate)}"
        return f"{self.name}:{self.scope}:{self.sha256}{rate}"


class KeyRing:
    """The keys in force.

    Raises:
        KeyEntryError: two keys of one name, or more than `MAX_KEYS`.
    """

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self.keys = tuple(keys)
        if len({key.name for key in self.keys}) != len(self.keys):
            raise KeyEntryError("two keys have the same name")
        if len(self.keys) > MAX_KEYS:
            raise KeyEntryError(f"there are more than {MAX_KEYS} keys")
        self._digests = [key.sha256.encode() for key in self.keys]

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Entries separated by commas or line ends; from `#` to the end of a line is a comment."""
        lines = [line.split("#", 1)[0] for line in text.splitlines()]
        entries = [entry.strip() for line in lines for entry in line.split(",") if entry.strip()]
        keys = []
        for number, entry in enumerate(entries, start=1):
            try:
                keys.append(ApiKey.from_entry(entry))
            except KeyEntryError as error:
                raise KeyEntryError(f"entry {number}: {error}") from None
        return cls(keys)

    def find(self, presented: bytes) -> ApiKey | None:
        """The key that this is. Takes as long whether and wherever it matches."""
        digest = _digest(presented).encode()
        found = None
        for key, known in zip(self.keys, self._digests, strict=True):
            if hmac.compare_digest(digest, known):
                found = key
        return found


def _written(rate: float) -> str:
    return f"{rate:.3f}".rstrip("0").rstrip(".")


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()
