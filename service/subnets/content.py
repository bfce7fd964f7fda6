"""Answering with a stored file: validators, one byte range, digests (RFC 9110, RFC 9530)."""

from __future__ import annotations

import base64
import re
from typing import Any

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from service.errors import ProblemError
from service.subnets.checked_file import BLOCK, CheckedFile

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_MEDIA_TYPES = {".json": "application/json", ".onnx": "application/octet-stream"}


class CheckedFileResponse(StreamingResponse):
    """Some bytes of a checked file, which is closed whatever becomes of the answer.

    Where the file turns out to be altered in the midst of it, the connection ends before the length that was
    announced: nobody takes what came for the whole.
    """

    def __init__(self, content: CheckedFile, start: int, end: int, **options: Any) -> None:
        super().__init__(content.blocks(start, end), **options)
        self.headers["Content-Length"] = str(end - start)
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            self.body_iterator = iterate_in_threadpool(())
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._content.close()


def file_response(
    name: str, content: CheckedFile, request_headers: Headers, *, method: str = "GET"
) -> Response:
    """The whole file, a part of it (206, for GET), or nothing because it is known (304). Blocking; closes
    `content`, at once or when it has been sent.

    Raises:
        ProblemError: 412, another version is wanted; 416, the range lies outside the file.
        DamagedArtifactError: it was altered since it was checked.
        OSError: it cannot be read any more.
    """
    try:
        response = _file_response(name, content, request_headers, method)
    except BaseException:
        content.close()
        raise
    if not isinstance(response, CheckedFileResponse):
        content.close()
    return response


def _file_response(name: str, content: CheckedFile, request_headers: Headers, method: str) -> Response:
    etag = f'"{content.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
        "Content-Disposition": f'attachment; filename="{name}"',
        "Repr-Digest": _digest(content.sha256),
    }
    wanted_tags, known_tags = (_tags(request_headers, kind) for kind in ("if-match", "if-none-match"))
    if wanted_tags and not {"*", etag} & wanted_tags:
        raise ProblemError(
            412,
            "precondition-failed",
            f"{name} is not the version of If-Match: leave that out, or give the ETag of this answer",
            headers={"ETag": etag},
        )
    if {"*", etag, f"W/{etag}"} & known_tags:
        return Response(status_code=304, headers=headers)
    status, start, end = 200, 0, content.size
    # Of GET alone, as RFC 9110 section 14.2 has it.
    wanted = _RANGE.fullmatch(request_headers.get("range", "").strip()) if method == "GET" else None
    if wanted is not None and _valid(wanted) and request_headers.get("if-range", etag) == etag:
        span = _span(wanted[1], wanted[2], content.size)
        if span is None:
            raise ProblemError(
                416,
                "range-not-satisfiable",
                f"{name} has {content.size} bytes: ask for a range within them",
                headers={"Content-Range": f"bytes */{content.size}"},
            )
        first, last = span
        headers["Content-Range"] = f"bytes {first}-{last}/{content.size}"
        status, start, end = 206, first, last + 1
    headers["Content-Digest"] = _digest(content.digest(start, end))
    options: dict[str, Any] = {
        "status_code": status,
        "headers": headers,
        "media_type": _MEDIA_TYPES.get(name[name.rfind(".") :], "application/octet-stream"),
    }
    if end - start <= BLOCK:  # most files: not worth the threads that long ones are read in
        return Response(b"".join(content.blocks(start, end)), **options)
    return CheckedFileResponse(content, start, end, **options)


def _digest(sha256: str) -> str:
    """As RFC 9530 has it."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def _tags(headers: Headers, name: str) -> set[str]:
    """The entity tags of a header, on however many lines."""
    return {tag.strip() for line in headers.getlist(name) for tag in line.split(",")}


def _valid(wanted: re.Match[str]) -> bool:
    """Malformed ranges are ignored, as RFC 9110 section 14.2 has it."""
    first, last = wanted[1], wanted[2]
    return bool(first or last) and not (first and last and int(last) < int(first))


def _span(first: str, last: str, size: int) -> tuple[int, int] | None:
    """First and last byte, both included, or None where the range lies outside the file."""
    if first == "":
        length = min(int(last), size)
        return (size - length, size - 1) if length else None
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    return (start, end) if start <= end else None
