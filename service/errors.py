"""Problems (RFC 9457): the one shape of every error answer, and how the library's errors become it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import Scope

from eqnet_core.errors import BundleError, EqnetError, InfeasibleBudgetError
from eqnet_core.profile import escape_pointer

logger = logging.getLogger("eqnet.service")

PROBLEM_TYPES = "urn:eqnet:problem:"
"""Prefix of every problem type; the last part is the error's stable code."""

MEDIA_TYPE = "application/problem+json"


class PointedDetail(BaseModel):
    """One part of the request that is at fault."""

    pointer: str = Field(description="JSON pointer (RFC 6901) into the body, or /name of a query parameter")
    detail: str


class Problem(BaseModel):
    """An error answer, `application/problem+json`."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:eqnet:problem:infeasible-budget",
                    "title": "Unprocessable Entity",
                    "status": 422,
                    "detail": "no subnet meets the budget: averages below 2 bits do not exist",
                    "errors": [{"pointer": "/budget/weight_bits", "detail": "must be at least 2.0"}],
                    "nearest": {"weight_bits": 2.0},
                }
            ]
        },
    )

    type: str = Field(description="Stable identifier of the kind of problem")
    title: str
    status: int
    detail: str = Field(description="What went wrong and what to change")
    errors: list[PointedDetail] = []


class ProblemError(Exception):
    """Raise to answer with a problem. `code` ends the problem's type; `extra` adds members to it."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "type": PROBLEM_TYPES + self.code,
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "errors": [{"pointer": pointer, "detail": detail} for pointer, detail in self.errors],
        }
        return document | self.extra


def not_found(kind: str, name: str, known: Sequence[str] = ()) -> ProblemError:
    hint = f": there are {', '.join(known)}" if known else ""
    return ProblemError(404, f"unknown-{kind}", f"no {kind} {name[:100]!r}{hint}")


def unavailable(detail: str, *, code: str = "unavailable", retry_after: int = 2) -> ProblemError:
    return ProblemError(503, code, detail, headers={"Retry-After": str(retry_after)})


def problem_of(error: EqnetError, *, prefix: str = "", status: int = 422) -> ProblemError:
    """The problem that an error of the library is; `prefix` leads its pointers into the request."""
    if isinstance(error, BundleError):
        return unavailable(str(error), code=error.code, retry_after=30)
    extra = {"nearest": error.nearest} if isinstance(error, InfeasibleBudgetError) else {}
    errors = [(prefix + violation.pointer, violation.detail) for violation in error.violations]
    # The library's pointers, in its message too, lead into the part that it was given.
    detail = _first_of(errors) if prefix and errors else str(error)
    return ProblemError(status, error.code, detail, errors=errors, extra=extra)


def invalid_request(errors: Sequence[tuple[str, str]]) -> ProblemError:
    """422, for pointers into the request and what to change there."""
    return ProblemError(422, "invalid-request", _first_of(errors), errors=errors)


def _first_of(errors: Sequence[tuple[str, str]]) -> str:
    pointer, reason = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{pointer}: {reason}".lstrip(": ") + more


def problem_response(problem: ProblemError) -> JSONResponse:
    return JSONResponse(
        problem.document(), status_code=problem.status, headers=problem.headers, media_type=MEDIA_TYPE
    )


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for these statuses."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def json_pointer(location: Sequence[int | str]) -> str:
    """RFC 6901 pointer of a validation error's location, without its leading `body`, `query` or `path`."""
    parts = location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    return "".join("/" + escape_pointer(str(part)) for part in parts)


async def _answer_problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)
    return problem_response(error)


async def _answer_library_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, EqnetError)
    return problem_response(problem_of(error))


async def _answer_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return problem_response(invalid_request([_pointed(entry) for entry in error.errors()[:50]]))


def _pointed(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Pointer and detail of one of pydantic's errors; its own words where they say what to change."""
    pointer = json_pointer(entry["loc"])
    match entry["type"]:
        case "json_invalid":
            return "", f"the body cannot be read as JSON: {entry['ctx']['error']}"
        case "missing" if pointer:
            return pointer, "is required"
        case "missing":
            return "", "a body is required: send JSON, as /docs shows it"
        case _:
            return pointer, entry["msg"].removeprefix("Value error, ")


async def _answer_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    detail = str(error.detail)
    if error.status_code == 404 and detail == phrase:  # Starlette's, for paths that no route has
        detail = "there is nothing at this path: /docs lists those that there are"
    return problem_response(
        ProblemError(
            error.status_code,
            phrase.lower().replace(" ", "-"),
            detail,
            headers=error.headers,
        )
    )


def answer_defect(scope: Scope, error: Exception) -> JSONResponse:
    """For what nobody expected; its log entry says more than its answer."""
    logger.error("defect while answering %s %r", scope["method"], scope["path"][:200], exc_info=error)
    return problem_response(
        ProblemError(500, "defect", "the service made a mistake; its log tells more. Please report it.")
    )


def install_error_handlers(app: Starlette) -> None:
    app.add_exception_handler(ProblemError, _answer_problem)
    app.add_exception_handler(EqnetError, _answer_library_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
