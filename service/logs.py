"""Log lines that say which request and which subnet they belong to, for people or, as JSON, for machines."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request being answered; tasks started by it, such as a build, keep it."""

subnet_id: ContextVar[str | None] = ContextVar("subnet_id", default=None)

_CONTEXT = {"request": request_id, "subnet": subnet_id}
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)} | {
    10: "\\n",
    13: "\\r",
}
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(*, form: LogFormat, level: str) -> None:
    """Everything to standard error, ours from `level` on, other libraries' from `warning` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("eqnet").setLevel(level.upper())
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.setLevel(level.upper())
    uvicorn.handlers.clear()
    uvicorn.propagate = True


def _members(record: logging.LogRecord) -> dict[str, Any]:
    """What was given with `extra`, and the context; the former wins."""
    context = {name: variable.get() for name, variable in _CONTEXT.items()}
    extra = {name: value for name, value in vars(record).items() if name not in _PLAIN and name[0] != "_"}
    extra.pop("color_message", None)  # uvicorn's
    return {name: value for name, value in (context | extra).items() if value is not None}


class _TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO eqnet.service: what happened [request=… subnet=…]`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        text = super().formatMessage(record)
        members = " ".join(f"{name}={value}" for name, value in _members(record).items())
        # One line, whatever came with a request: nobody forges entries with line ends, or moves the cursor.
        return (f"{text} [{members}]" if members else text).translate(_CONTROL)


class _JsonFormatter(logging.Formatter):
    """One object a line: `time` (RFC 3339, UTC), `level`, `logger`, `message`, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds")
        document = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_members(record),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)
