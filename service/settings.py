"""What an operator can set, from `EQNET_*` environment variables. `eqnet serve --help` prints this class."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.logs import LogFormat
from service.security.key_file import KeyFile, KeyFileError, KeysInForce, default_key_file
from service.security.keys import KeyRing

logger = logging.getLogger("eqnet.settings")

_OF_OTHERS = frozenset({"EQNET_API_KEY", "EQNET_REDIS_PORT"})
"""No settings of a server: one is a client's, one what Kubernetes tells of a service named so."""


def _default_builders() -> int:
    return max(1, min(4, (os.cpu_count() or 1) // 2))


class Settings(BaseSettings):
    """Field names are the variables' names without the prefix; units are in the descriptions."""

    model_config = SettingsConfigDict(env_prefix="EQNET_", frozen=True, extra="ignore")

    data_dir: Path = Field(
        default=Path("data"),
        description="Folder for everything the service keeps (default: ./data). "
        "One server per folder, unless EQNET_REDIS_URL is set.",
    )
    bundles: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated bundle folders, folders of bundles, or names of shipped ones "
        "(default: all that ship).",
    )
    bundles_interval: float = Field(
        default=5.0,
        gt=0,
        description="Seconds between looks at the bundle folders: what is added or replaced there is served "
        "without a restart.",
    )
    builders: int = Field(
        default_factory=_default_builders,
        ge=1,
        le=64,
        description="Builder processes; each holds the supernets (default: half the cores, 1 to 4).",
    )
    builder_threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Threads each builder computes with (default 0: the cores shared out among them).",
    )
    build_timeout: float = Field(
        default=900.0, gt=0, description="Seconds after which a build is given up and its builder replaced."
    )
    queue_limit: int = Field(
        default=100, ge=0, description="Builds that may wait for a free builder; beyond that, 429."
    )
    redis_url: str | None = Field(
        default=None,
        repr=False,
        description="Redis for records and locks, such as redis://host:6379/0 "
        "(default: an embedded server in the data folder).",
    )
    broker_url: str | None = Field(
        default=None,
        repr=False,
        description="Celery broker, such as redis://host:6379/1: builds then run in `eqnet worker`, on any "
        "number of machines with the same EQNET_REDIS_URL and EQNET_ARTIFACTS_URL "
        "(default: in builder processes of this server).",
    )
    worker_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port on which `eqnet worker` answers /health/ready and /metrics (default 0: none).",
    )
    artifacts_url: str | None = Field(
        default=None,
        repr=False,
        description="fsspec URL for finished subnets, such as s3://bucket/eqnet (default: the data folder).",
    )
    evaluation_data: Path | None = Field(
        default=None,
        description="An .npz with x_test (uint8 [N, C, H, W]) and y_test, for requests with `verify` "
        "(default: none, such requests get 422).",
    )
    evaluation_limit: int = Field(
        default=10_000, ge=1, description="At most this many of its images are used for one measurement."
    )
    lease: float = Field(
        default=10.0,
        ge=1,
        description="Seconds without a heartbeat after which another takes over a build.",
    )
    wait: float = Field(
        default=30.0, ge=0, le=600, description="Seconds that POST /subnets waits before it answers 202."
    )
    max_body: int = Field(default=64 * 1024, ge=1024, description="Bytes that a request body may have.")
    body_timeout: float = Field(
        default=20.0, gt=0, description="Seconds in which a request's body must have arrived; then 408."
    )
    api_keys: str = Field(
        default="",
        repr=False,
        description="Comma-separated entries name:scope:sha256[:requests per second], as `eqnet keys add "
        "--print-entry` prints them. Where there is any key, every request needs one.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File of such entries, followed while the service runs; `eqnet keys` changes it "
        "(default: api-keys in the data folder, if there is one).",
    )
    allow_anonymous: bool = Field(
        default=False,
        description="Listen beyond this machine, and under any name, without any API key too "
        "(default: refuse).",
    )
    log_format: LogFormat = Field(
        default="text", description="`text` for people, or `json`: one object a line."
    )
    shutdown_grace: float = Field(
        default=10.0,
        ge=1,
        le=3600,
        description="Seconds that requests and builds may still take when the service or a worker is told "
        "to end; what is not done by then is answered 202 and handed back.",
    )
    rate_limit: float = Field(
        default=0.0,
        ge=0,
        description="Requests per second of each key that has no rate of its own, or of each address where "
        "there are no keys; beyond that, 429 (default 0: no limit).",
    )

    @field_validator("bundles", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str | None) -> str | None:
        if value is not None:
            from redis.asyncio.connection import parse_url  # here: `eqnet keys` needs no client

            try:
                parse_url(value)
            except ValueError as error:
                raise ValueError(f"{error}; use one such as redis://host:6379/0") from error
        return value

    @field_validator("artifacts_url")
    @classmethod
    def _known_protocol(cls, value: str | None) -> str | None:
        if value is not None:
            from fsspec import get_filesystem_class
            from fsspec.core import split_protocol

            protocol = split_protocol(value.rsplit("::", 1)[-1])[0] or "file"
            try:
                get_filesystem_class(protocol)
            except ValueError as error:
                known = "file://folder or s3://bucket/folder"
                raise ValueError(f"fsspec has no {protocol}://: use a URL such as {known}") from error
            except ImportError as error:
                raise ValueError(f"{error} (for s3: `scripts/install serve,s3` in the checkout)") from error
        return value

    @field_validator("broker_url")
    @classmethod
    def _shared_store(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("redis_url") is None:
            raise ValueError("workers need the same records as this server: set EQNET_REDIS_URL too")
        return value

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                from kombu.connection import Connection
            except ImportError:  # `eqnet` says that Celery is not installed
                return value
            try:
                for url in value.split(";"):  # several are tried in turn
                    if "://" not in url:
                        raise ValueError("no scheme")
                    connection = Connection(url)  # type: ignore[no-untyped-call]
                    transport = connection.get_transport_cls()  # type: ignore[no-untyped-call]
                    if transport.driver_type == "memory":
                        raise ValueError("no other process, such as a worker, can reach it")
                    if url.startswith(("redis://", "rediss://")):
                        int(connection.virtual_host.strip("/") or 0)
            except Exception as error:  # kombu's: also KeyError, ImportError and NameError
                # Not what kombu says: that may be part of a password.
                raise ValueError(
                    "Celery cannot use this URL, for its scheme, its port, its database, or a client that is "
                    "not installed: use one such as redis://host:6379/1"
                ) from error
        return value

    @field_validator(
        "redis_url", "broker_url", "artifacts_url", "evaluation_data", "api_keys_file", mode="before"
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @property
    def keys(self) -> KeysInForce:
        """Opened anew at each call.

        Raises:
            KeyEntryError, KeyFileError: a malformed entry, or a file that cannot be read.
        """
        named = self.api_keys_file
        if named is not None and not named.is_file():
            raise KeyFileError(f"EQNET_API_KEYS_FILE: there is no file {named}; `eqnet keys add` makes one")
        file = KeyFile(named or default_key_file(self.data_dir))
        return KeysInForce(fixed=KeyRing.parse(self.api_keys), file=file)

    @property
    def artifacts_location(self) -> str:
        """The fsspec URL in use. fsspec takes paths as they are: percent signs are not escapes to it."""
        return self.artifacts_url or f"file://{self.data_dir.absolute() / 'artifacts'}"


def warn_of_misspelt(environment: Mapping[str, str]) -> None:
    """Log the variables that are nearly a setting: without a warning, one of them is set in vain."""
    names = [f"EQNET_{name.upper()}" for name in Settings.model_fields]
    for given in sorted({name for name in environment if name.startswith("EQNET_")} - {*names, *_OF_OTHERS}):
        for meant in get_close_matches(given, names, n=1, cutoff=0.8):
            logger.warning("there is no setting %s, so it is ignored: did you mean %s?", given, meant)


def describe_settings() -> str:
    """One paragraph per variable, for the command line's help."""
    return "\n".join(
        f"  EQNET_{name.upper()}\n      {_described(field)}" for name, field in Settings.model_fields.items()
    )


def _described(field: FieldInfo) -> str:
    """With its default, unless it says that itself or there is nothing to say."""
    text, default = str(field.description), field.default
    if "(default" in text or field.is_required() or default in (None, "", PydanticUndefined):
        return text
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    return f"{text.removesuffix('.')} (default: {shown})."
