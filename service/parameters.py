"""Query parameters that a route does not have, or that are given twice: FastAPI itself ignores the former,
and of the latter all but the last.
"""

from __future__ import annotations

from collections import Counter

from fastapi import Depends, Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute

from service.errors import invalid_request, json_pointer


async def _each_known_and_once(request: Request) -> None:
    given = Counter(name for name, _ in request.query_params.multi_items())
    if not given:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    fields = get_flat_params(route.dependant)
    known = [field.alias for field in fields if isinstance(field.field_info, Query)]
    unknown = "is not known here: " + (f"use {', '.join(known)}" if known else "leave it out")
    errors = [
        (json_pointer((name[:100],)), unknown if name not in known else _REPEATED)
        for name, count in given.items()
        if name not in known or count > 1
    ]
    if errors:
        raise invalid_request(errors[:50])


_REPEATED = "is given twice: give it once; lists are comma-separated"

EACH_KNOWN_AND_ONCE = Depends(_each_known_and_once)
"""A dependency of routes that should say so, with a 422."""
