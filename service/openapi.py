"""The OpenAPI document, with what the routes themselves do not know: problems, keys, limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.routing import compile_path

from service.errors import Problem, ProblemError, problem_response, problem_responses
from service.security.access import is_public, needed_scope
from service.security.key_file import KeysInForce

_READ = ["get", "head"]
"""Methods of the pages, which are not in the document."""

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def install_document(app: FastAPI, keys: KeysInForce) -> None:
    """Make `app` answer with the document; keys are asked for in it while they are in force."""
    app.openapi = _document(app, keys)  # type: ignore[method-assign]


def install_allowed_methods(app: FastAPI) -> None:
    """Make a 405 name all methods of its path; routes by themselves name only their own."""
    allowed = {
        path: sorted({*operations, *(_READ if "get" in operations else [])})
        for path, operations in _paths(app).items()
    }
    patterns = [(compile_path(path)[0], methods) for path, methods in allowed.items()]

    async def answer(request: Request, error: Exception) -> Response:
        methods = next((m for pattern, m in patterns if pattern.fullmatch(request.scope["path"])), _READ)
        names = ", ".join(method.upper() for method in methods)
        return problem_response(
            ProblemError(
                405,
                "method-not-allowed",
                f"{request.scope['method'][:20]} is not for this path: use {names}",
                headers={"Allow": names},
            )
        )

    app.add_exception_handler(405, answer)


def _paths(app: FastAPI) -> dict[str, dict[str, Any]]:
    paths: dict[str, dict[str, Any]] = get_openapi(title="", version="", routes=app.routes)["paths"]
    return paths


def _document(app: FastAPI, keys: KeysInForce) -> Callable[[], dict[str, Any]]:
    made: dict[bool, dict[str, Any]] = {}

    def document() -> dict[str, Any]:
        keys.ring()
        required = keys.required
        if required not in made:
            made[required] = _make(app, required)
        return made[required]

    return document


def _make(app: FastAPI, keys_required: bool) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = document["components"]["schemas"]
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {})
    schemas["Problem"] = problem
    # Every 422 here is a problem; what FastAPI documents by itself is never answered.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["securitySchemes"] = _SCHEMES
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(path, method.upper(), operation, keys_required)
    return document


def _complete(path: str, method: str, operation: dict[str, Any], keys_required: bool) -> None:
    answers = operation["responses"]
    if "422" in answers:
        answers["422"] = problem_responses(422)[422]
    statuses: list[int] = []
    if method == "POST":
        statuses += [408, 413, 415]
    if not is_public(path):
        statuses += [401, 403, 421, 429]
        if keys_required:
            operation["security"] = [{name: []} for name in _SCHEMES]
            scope = needed_scope(method, path)
            operation["description"] = (
                operation.get("description", "") + f"\n\nNeeds a key with the scope `{scope}`."
            ).lstrip()
    for status, answer in problem_responses(*statuses).items():
        answers.setdefault(str(status), answer)
