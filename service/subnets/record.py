"""What a record says at its beginning, how it is shown, and what a failed one answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from eqnet_core.errors import EqnetError
from service.errors import ProblemError
from service.subnets.order import SearchOrder, SubnetOrder
from service.subnets.store import StoredRecord, index_member

RETRY_AFTER = 2
"""Seconds after which to ask again."""


def failure(record: Mapping[str, Any]) -> ProblemError:
    """Why a failed build failed, as an answer to whoever asked for it."""
    problem = record["problem"]
    return ProblemError(
        problem["status"],
        str(problem["type"]).rsplit(":", 1)[-1],
        problem["detail"],
        errors=[(entry["pointer"], entry["detail"]) for entry in problem["errors"]],
        headers={"Retry-After": str(RETRY_AFTER)} if problem["status"] == 503 else {},
        extra={key: value for key, value in problem.items() if key == "nearest"} | {"subnet": record["id"]},
    )


_FAILURE_STATUS = {
    "builder-died": 503,
    "build-timeout": 503,
    "storage": 503,
    "not-loaded": 503,
    "other-version": 503,
    "other-evaluation-data": 503,
    "build-failed": 500,
    "export-differs-from-simulation": 500,
    "invalid-artifact": 500,
}
"""By code; every other one is the fault of what was asked for: 422."""


def new_record(order: SubnetOrder) -> StoredRecord:
    now = time.time_ns() // 1000
    subnet = order.id
    what: dict[str, Any] = {
        "device": None,
        "profile": None,
        "budget": None,
        "pinned": None,
        "search": None,
        "configuration": None,
    }
    what |= (
        order.what.to_json() if isinstance(order.what, SearchOrder) else {"configuration": dict(order.what)}
    )
    created = datetime.fromtimestamp(now / 1e6, tz=UTC).isoformat(timespec="milliseconds")
    record = {
        "id": subnet,
        "status": "queued",
        "created_at": created.replace("+00:00", "Z"),
        "supernet": {"name": order.supernet, "digest": order.bundle_digest},
        **what,
        "predicted_accuracy": None,
        "prediction_interval": None,
        "measured_accuracy": None,
        "measured_integer_accuracy": None,
        "containers": None,
        "cost": None,
        "artifacts": [],
        "timings": {},
    }
    return StoredRecord(record=record, order=order.to_json(), member=index_member(subnet, now))


def repeatable(stored: StoredRecord) -> SubnetOrder | None:
    """Its order, where building that again gives the same subnet: another version may not understand it, or
    come to other bytes, which then have another id.
    """
    try:
        order = SubnetOrder.from_json(stored.order)
        return order if order.id == stored.id else None
    except (EqnetError, KeyError, TypeError, ValueError):
        return None


def shown_record(stored: StoredRecord) -> dict[str, Any]:
    """The record with what depends on the answer rather than on the subnet: URLs and problem types."""
    record = dict(stored.record)
    record["artifacts"] = [
        {"name": file["name"], "url": f"/subnets/{stored.id}/artifacts/{file['name']}", **file}
        for file in record["artifacts"]
    ]
    if (reason := record.get("problem")) is not None:
        status = _FAILURE_STATUS.get(reason["code"], 422)
        problem = ProblemError(status, reason["code"], reason["detail"]).document()
        record["problem"] = problem | {key: reason[key] for key in ("errors", "nearest") if key in reason}
    return record
